//! Which limits apply to a login, given what was read of its role, groups and database, and the settings. Nothing is
//! looked up here.
//!
//! A limit's *key* is its `per`, `database`, `network`, `count` and `across`. Limits with different keys all apply. Of those with
//! the same key the nearest wins: the login role's own (the smaller of its label's and its `CONNECTION LIMIT`), then its groups'
//! (the smallest), then the cluster's. `max: -1` is no limit, and lifts those further out. A group's total and the
//! limits set on the database always apply; but one whose `per` names the database is nearer than the cluster's with
//! the same `per`.

use crate::label::{Label, LabelLimit, LimitEnforcement};
use crate::label_target::LabelTarget;
use crate::limit::{Across, Count, Limit, Object, OnExcess, Scope, Source, Unit, Who};
use crate::network::Network;
use crate::per::Per;
use std::net::IpAddr;
use std::time::Duration;

/// A login, and what was read for it.
#[derive(Clone, Debug)]
pub struct LoginFacts<'a> {
    /// OID.
    pub role: u32,
    /// The role's `CONNECTION LIMIT`; negative: none.
    pub connection_limit: i32,
    /// The role's label.
    pub label: Label,
    /// The groups that the role is a member of and that have a label: OID and label.
    pub groups: Vec<(u32, Label)>,
    pub database: Option<InDatabase<'a>>,
    /// None over a Unix-domain socket.
    pub address: Option<IpAddr>,
    pub defaults: &'a Defaults,
}

/// The database that a login asks for.
#[derive(Clone, Debug)]
pub struct InDatabase<'a> {
    /// OID.
    pub oid: u32,
    pub name: &'a [u8],
    /// The database's `CONNECTION LIMIT`; negative: none.
    pub connection_limit: i32,
    pub label: Label,
}

/// The settings that say which limits apply.
#[derive(Clone, Debug)]
pub struct Defaults {
    pub cluster_limits: Label,
    /// The limit of every role that has no nearer one; negative: none.
    pub max_sessions_per_role: i32,
    pub on_excess: OnExcess,
    pub max_wait: Duration,
    /// So many leading bits of an IPv6 address are one client address.
    pub ipv6_prefix_length: u8,
    /// Whether no limit is enforced, because `session_limit.enforcement` is `log`.
    pub dry_run: bool,
}

/// What applies to a login.
#[derive(Debug, Default, PartialEq)]
pub struct Applicable {
    /// Whether the login is exempt by a label: it is never refused, whatever the limits.
    pub exempt: bool,
    pub limits: Vec<Limit>,
}

/// A limit that counts the login, before it is known whether another one wins.
struct Candidate {
    level: Level,
    key: Key,
    /// Negative: none.
    max: i32,
    limit: Limit,
}

/// Where a limit is set; the nearest first.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Level {
    Role,
    Group,
    Database,
    Cluster,
}

/// Of limits with the same key the nearest wins.
#[derive(Clone, Copy, PartialEq)]
struct Key {
    per: Per,
    count: Count,
    across: Across,
    /// Whether the limit has a `database`: that of the login, or it would not count the login.
    in_database: bool,
    network: Option<Network>,
    /// If the limit is about a whole group, or in any way about the login's database: which.
    whole: Option<Object>,
}

/// The limits that apply, and whether the login is exempt. A limit that is only tried out never replaces an enforced
/// one: the enforced ones are chosen as if there were no others.
pub fn applicable(facts: &LoginFacts) -> Applicable {
    let candidates = facts.candidates();
    let all: Vec<&Candidate> = candidates.iter().collect();
    let is_enforced = |one: &&Candidate| one.limit.enforced;
    let enforced: Vec<&Candidate> = candidates.iter().filter(is_enforced).collect();
    let mut limits = nearest(&enforced);
    if enforced.len() < all.len() {
        limits.extend(nearest(&all).into_iter().filter(|limit| !limit.enforced));
    }
    Applicable {
        exempt: facts.label.exempt || facts.groups.iter().any(|(_, label)| label.exempt),
        limits,
    }
}

/// The limits of the candidates that no other one wins over.
fn nearest(candidates: &[&Candidate]) -> Vec<Limit> {
    // Hidden: another limit of the same label is about a smaller network. It still wins over what is further out.
    let is_hidden = |one: &&Candidate| candidates.iter().any(|it| it.is_narrower_than(one));
    let hidden: Vec<bool> = candidates.iter().map(is_hidden).collect();
    let all = || candidates.iter().zip(&hidden).enumerate();
    let applies = |(index, (one, hidden)): &(usize, (&&Candidate, &bool))| {
        let wins = |(other_index, (other, other_hidden)): (usize, (&&Candidate, &bool))| {
            let is_smaller =
                (*other_hidden, other.rank(), other_index) < (**hidden, one.rank(), *index);
            other.wins_over(one, is_smaller)
        };
        one.max >= 0 && !**hidden && !all().any(wins)
    };
    all()
        .filter(applies)
        .map(|(_, (one, _))| one.limit)
        .collect()
}

impl Candidate {
    /// Whether both are limits of one label for the same client address whose keys differ in the network alone, and this
    /// one's is smaller. The limit with the smallest network is the one that is meant.
    fn is_narrower_than(&self, other: &Candidate) -> bool {
        let prefix = |candidate: &Candidate| candidate.key.network.map(Network::prefix);
        let same_network = Key {
            network: self.key.network,
            ..other.key
        };
        // Both networks have the login's address, so one is in the other, or they are the same.
        self.limit.per.has_address()
            && (self.limit.source, self.key) == (other.limit.source, same_network)
            && prefix(self) > prefix(other)
    }

    /// `max` as a number to compare: no limit, which is negative, is larger than every limit.
    fn rank(&self) -> u32 {
        self.max as u32
    }

    /// Whether it has the same key and is nearer, or as near and the smaller one. Nothing wins over a limit on a database:
    /// all of these apply.
    fn wins_over(&self, other: &Candidate, is_smaller: bool) -> bool {
        let is_nearer = self.level < other.level || (self.level == other.level && is_smaller);
        self.key == other.key && other.level != Level::Database && is_nearer
    }
}

/// The `on_excess` and `max_wait` of a limit that has none of its own; None: as the settings say.
pub type Policy = (Option<OnExcess>, Option<Duration>);

impl LoginFacts<'_> {
    /// The limits that count the login, wherever they are set.
    fn candidates(&self) -> Vec<Candidate> {
        let mut all = Vec::new();
        let role = Object::Role(self.role);
        self.add_label(&mut all, Level::Role, Source::Label(role), &self.label);
        let (source, max) = (Source::ConnectionLimit(role), self.connection_limit);
        self.add_number(&mut all, Level::Role, source, max, self.role_policy());
        for (group, label) in &self.groups {
            let source = Source::Label(Object::Role(*group));
            self.add_label(&mut all, Level::Group, source, label);
        }
        if let Some(database) = &self.database {
            let object = Object::Database(database.oid);
            let (source, label) = (Source::Label(object), &database.label);
            self.add_label(&mut all, Level::Database, source, label);
            let (source, max) = (Source::ConnectionLimit(object), database.connection_limit);
            self.add_number(&mut all, Level::Database, source, max, policy(label));
        }
        let Defaults {
            cluster_limits: label,
            max_sessions_per_role: max,
            ..
        } = self.defaults;
        self.add_label(&mut all, Level::Cluster, Source::ClusterLimits, label);
        let (source, policy) = (Source::MaxSessionsPerRole, self.role_policy());
        self.add_number(&mut all, Level::Cluster, source, *max, policy);
        all
    }

    /// The policy of a limit on the role that is not in a label: its label's, else of its groups' the mildest `on_excess`
    /// and the shortest `max_wait`.
    pub fn role_policy(&self) -> Policy {
        let groups = || self.groups.iter().map(|(_, label)| label);
        (
            self.label
                .on_excess
                .or_else(|| groups().filter_map(|label| label.on_excess).min()),
            self.label
                .max_wait
                .or_else(|| groups().filter_map(|label| label.max_wait).min()),
        )
    }

    /// Adds a limit that is only a number. A negative one is no limit, and lifts none.
    fn add_number(
        &self,
        all: &mut Vec<Candidate>,
        level: Level,
        source: Source,
        max: i32,
        policy: Policy,
    ) {
        if max >= 0 {
            let per = match level {
                Level::Database => Per::Database,
                Level::Role | Level::Group | Level::Cluster => Per::Role,
            };
            all.extend(self.candidate(level, source, per, &LabelLimit::new(max), policy));
        }
    }

    /// Adds the limits of a label that count the login. When a role gets or loses LOGIN, its label stays as it is: limits
    /// that it could not have now are left out.
    fn add_label(&self, all: &mut Vec<Candidate>, level: Level, source: Source, label: &Label) {
        let target = match level {
            Level::Role => LabelTarget::Role,
            Level::Group => LabelTarget::Group,
            Level::Database => LabelTarget::Database,
            Level::Cluster => LabelTarget::Cluster,
        };
        for limit in &label.limits {
            if let Some(per) = limit.per.or(target.default_per())
                && target.allows(per, limit.count)
            {
                all.extend(self.candidate(level, source, per, limit, policy(label)));
            }
        }
    }

    /// None if the limit does not count the login.
    fn candidate(
        &self,
        level: Level,
        source: Source,
        per: Per,
        written: &LabelLimit,
        policy: Policy,
    ) -> Option<Candidate> {
        if !self.is_counted_by(written) {
            return None;
        }
        let whole = self.whole(per, source)?;
        let defaults = self.defaults;
        let is_tried_out = written.enforcement == Some(LimitEnforcement::Log);
        let limit = Limit {
            scope: self.scope(per, source, whole, written)?,
            per,
            unit: Unit::new(written.count, defaults.ipv6_prefix_length),
            across: written.across,
            max: u32::try_from(written.max).unwrap_or(u32::MAX),
            source,
            on_excess: match written.count {
                // No session of the login's own role can make room for another role.
                Count::Roles => OnExcess::Refuse,
                _ => written.on_excess.or(policy.0).unwrap_or(defaults.on_excess),
            },
            max_wait: written.max_wait.or(policy.1).unwrap_or(defaults.max_wait),
            place: None,
            enforced: !defaults.dry_run && !is_tried_out,
        };
        let key = Key {
            per,
            count: written.count,
            across: written.across,
            in_database: written.database.is_some(),
            network: written.network,
            whole,
        };
        Some(Candidate {
            level,
            key,
            max: written.max,
            limit,
        })
    }

    /// The network that counts as the login's client address.
    fn client_address(&self) -> Option<Network> {
        let length = self.defaults.ipv6_prefix_length;
        self.address
            .map(|address| Network::of_client(address, length))
    }

    /// Whether the login is to the limit's database and from its network.
    fn is_counted_by(&self, written: &LabelLimit) -> bool {
        let own_database = self.database.as_ref().map(|database| database.name);
        let is_from = |network: Network| {
            self.address
                .is_some_and(|address| network.contains(address))
        };
        let database = written.database.as_deref();
        database.is_none_or(|name| own_database == Some(name))
            && written.network.is_none_or(is_from)
    }

    /// The group or database that the limit is about as a whole, if it is about one. None if it is about the login's
    /// database, and the login has none.
    fn whole(&self, per: Per, source: Source) -> Option<Option<Object>> {
        Some(match (per, source) {
            (Per::Group, Source::Label(group)) => Some(group),
            (_, Source::Label(Object::Database(_))) => {
                Some(Object::Database(self.database.as_ref()?.oid))
            }
            _ if per.has_database() => Some(Object::Database(self.database.as_ref()?.oid)),
            _ => None,
        })
    }

    /// The sessions that the limit counts together with the login. None if they are those from the login's address, and
    /// it has none.
    fn scope(
        &self,
        per: Per,
        source: Source,
        whole: Option<Object>,
        written: &LabelLimit,
    ) -> Option<Scope> {
        let in_database = matches!(whole, Some(Object::Database(_))) || written.database.is_some();
        let database = self.database.as_ref().filter(|_| in_database);
        Some(Scope {
            who: match (per, source, whole) {
                (_, _, Some(Object::Role(group))) => Who::MembersOf(group),
                (Per::Address, Source::Label(Object::Role(_)), _) => Who::Role(self.role),
                _ if per.has_role() => Who::Role(self.role),
                _ => Who::Anyone,
            },
            database: database.map(|database| database.oid),
            network: match per.has_address() {
                true => {
                    let client = self.client_address()?;
                    Some(written.network.map_or(client, |it| it.smaller(client)))
                }
                false => written.network,
            },
        })
    }
}

/// The policy of a limit in this label.
pub fn policy(label: &Label) -> Policy {
    (label.on_excess, label.max_wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: u32 = 1;
    const TEAM: u32 = 2;
    const STAFF: u32 = 3;
    const APP: u32 = 9;

    fn label(target: LabelTarget, json: &str) -> Label {
        Label::check(json.as_bytes(), target).expect(json)
    }

    fn defaults() -> Defaults {
        Defaults {
            cluster_limits: Label::default(),
            max_sessions_per_role: -1,
            on_excess: OnExcess::Refuse,
            max_wait: Duration::from_millis(100),
            ipv6_prefix_length: 128,
            dry_run: false,
        }
    }

    /// What is set there: the rest of the entry that begins with `place`, among entries separated by semicolons.
    fn set_on<'a>(set: &'a str, place: &str) -> Option<&'a str> {
        let entries = set.split(';').map(str::trim);
        let mut values = entries.filter_map(|entry| entry.strip_prefix(place)?.strip_prefix(' '));
        values.next()
    }

    /// The label that is set there; an empty one if none is.
    fn label_on(set: &str, place: &str, target: LabelTarget) -> Label {
        set_on(set, place).map_or(Label::default(), |json| label(target, json))
    }

    /// The groups that alice is a member of, with the labels that are set on them.
    fn groups(set: &str) -> Vec<(u32, Label)> {
        vec![
            (TEAM, label_on(set, "team", LabelTarget::Group)),
            (STAFF, label_on(set, "staff", LabelTarget::Group)),
        ]
    }

    /// What applies to a login of alice, sorted. `set` is what is set where: labels on `alice`, `team`, `staff` and `app`,
    /// the `CONNECTION LIMIT` as `alice's` and `app's`, and the settings `cluster`, `default` and `ipv6`.
    fn applying(set: &str, database: &str, address: &str) -> Vec<String> {
        for entry in set.split(';').map(str::trim).filter(|it| !it.is_empty()) {
            let place = entry.split(' ').next().unwrap_or_default();
            let places = [
                "alice", "alice's", "team", "staff", "app", "app's", "cluster", "default", "ipv6",
            ];
            assert!(places.contains(&place), "{entry}");
        }
        let number = |place| set_on(set, place).map_or(-1, |number| number.parse().expect(number));
        let defaults = Defaults {
            cluster_limits: label_on(set, "cluster", LabelTarget::Cluster),
            max_sessions_per_role: number("default"),
            ipv6_prefix_length: u8::try_from(number("ipv6")).unwrap_or(128),
            ..defaults()
        };
        let facts = LoginFacts {
            role: ALICE,
            connection_limit: number("alice's"),
            label: label_on(set, "alice", LabelTarget::Role),
            groups: groups(set),
            database: Some(InDatabase {
                oid: APP,
                name: database.as_bytes(),
                connection_limit: number("app's"),
                label: label_on(set, "app", LabelTarget::Database),
            }),
            address: address.parse().ok(),
            defaults: &defaults,
        };
        let Applicable { exempt, limits } = applicable(&facts);
        let mut lines: Vec<String> = limits.iter().map(say).collect();
        lines.sort();
        lines.extend(exempt.then(|| "exempt".to_string()));
        lines
    }

    /// The same as the lines of a text.
    fn lines(text: &str) -> Vec<String> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let mut lines: Vec<String> = lines.map(str::to_string).collect();
        lines.sort();
        lines
    }

    fn say(limit: &Limit) -> String {
        let names = |object| match object {
            Object::Role(ALICE) => b"alice".to_vec(),
            Object::Role(TEAM) => b"team".to_vec(),
            Object::Role(_) => b"staff".to_vec(),
            Object::Database(_) => b"app".to_vec(),
        };
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let subject = limit.subject(&names).map_or("all".to_string(), text);
        let tried = if limit.enforced { "" } else { ", tried out" };
        let across = match limit.across {
            Across::Server => "",
            Across::Servers => " across servers",
        };
        format!(
            "{subject}: {}{across} by {}{tried}",
            limit.max,
            text(limit.source.words(&names))
        )
    }

    const HERE: &str = "10.0.0.5";
    const SOCKET: &str = "";

    /// One case a line: what is set, and what applies to a login from `HERE` to the database app.
    const NEAREST: &str = r#"
        =>
        default 4 => alice: 4 by session_limit.max_sessions_per_role
        default 4; alice's 7 => alice: 7 by CONNECTION LIMIT of role alice
        default 4; alice's 0 => alice: 0 by CONNECTION LIMIT of role alice
        alice {"max": 3}; alice's 7 => alice: 3 by label on role alice
        alice {"max": 9}; alice's 7 => alice: 7 by CONNECTION LIMIT of role alice
        alice {"max": -1}; alice's 7 => alice: 7 by CONNECTION LIMIT of role alice
        alice {"max": 9}; team {"max": 2, "per": "role"}; default 1 => alice: 9 by label on role alice
        team {"max": 2, "per": "role"}; default 1 => alice: 2 by label on role team
        team {"max": 5, "per": "role"}; staff {"max": 2, "per": "role"} => alice: 2 by label on role staff
        team {"max": 5, "per": "role"}; staff {"max": -1, "per": "role"} => alice: 5 by label on role team
        team {"max": -1, "per": "role"}; default 1 =>
        alice {"max": -1}; team {"max": 5, "per": "role"}; default 1 =>
        cluster {"max": 5, "per": "role"}; default 3 => alice: 3 by session_limit.max_sessions_per_role
        cluster {"max": 5, "per": "role"}; alice {"max": 8} => alice: 8 by label on role alice
        cluster {"max": 5, "per": "address"}; alice {"max": 8, "per": "address"} => alice from 10.0.0.5: 8 by label on role alice
        cluster {"max": 5, "per": "address"}; team {"max": 8, "per": "address"} => alice from 10.0.0.5: 8 by label on role team
        cluster {"max": 50, "per": "database"} => app: 50 by session_limit.cluster_limits
        cluster {"max": 50, "per": "database"}; app {"max": 80} => app: 80 by label on database app
        cluster {"max": 50, "per": "database"}; app's 80 => app: 80 by CONNECTION LIMIT of database app
        cluster {"max": 50, "per": "database"}; app {"max": -1} =>
        cluster {"max": 9, "per": ["role", "database"]} => alice in app: 9 by session_limit.cluster_limits
        cluster {"max": 9, "per": ["role", "database"]}; team {"max": 4, "per": ["database", "role"]} => alice in app: 4 by label on role team
        cluster {"max": 9, "per": ["role", "database"]}; alice {"max": 12, "per": ["role", "database"]} => alice in app: 12 by label on role alice
        cluster {"max": 9, "per": ["role", "database"]}; app {"max": 12, "per": ["role", "database"]} => alice in app: 12 by label on database app
        cluster {"max": 9, "per": ["role", "database"]}; app {"max": -1, "per": ["role", "database"]} =>
        alice {"max": -1, "per": ["role", "database"]}; app {"max": 12, "per": ["role", "database"]} => alice in app: 12 by label on database app
        cluster {"max": 5, "per": ["role", "address"]}; alice {"max": 8, "per": ["role", "address"]} => alice from 10.0.0.5: 8 by label on role alice
    "#;

    #[test]
    fn the_nearest_wins_for_one_key() {
        for case in NEAREST.lines().filter(|case| !case.trim().is_empty()) {
            let (set, expected) = case.split_once("=>").expect(case);
            assert_eq!(applying(set, "app", HERE), lines(expected), "{set}");
        }
    }

    /// One case a line, as above. A limit across servers and one on this server have different keys.
    const ACROSS: &str = r#"
        alice {"limits": [{"max": 300, "across": "servers"}, {"max": 120}]} => alice: 300 across servers by label on role alice; alice: 120 by label on role alice
        alice {"max": 1, "across": "servers"}; default 4 => alice: 1 across servers by label on role alice; alice: 4 by session_limit.max_sessions_per_role
        alice {"max": 1, "across": "servers"}; alice's 7 => alice: 1 across servers by label on role alice; alice: 7 by CONNECTION LIMIT of role alice
        alice {"max": 1, "across": "server"}; alice's 7 => alice: 1 by label on role alice
        alice {"max": -1}; cluster {"max": 3, "per": "role", "across": "servers"} => alice: 3 across servers by session_limit.cluster_limits
        alice {"max": -1, "across": "servers"}; cluster {"max": 3, "per": "role", "across": "servers"} =>
        alice {"max": 5, "across": "servers"}; team {"max": 2, "per": "role", "across": "servers"}; default 4 => alice: 5 across servers by label on role alice; alice: 4 by session_limit.max_sessions_per_role
        team {"max": 9, "per": "role", "across": "servers"}; staff {"max": 2, "per": "role", "across": "servers"} => alice: 2 across servers by label on role staff
        app {"limits": [{"max": 90, "across": "servers"}, {"max": 40}]}; app's 50 => app: 90 across servers by label on database app; app: 40 by label on database app; app: 50 by CONNECTION LIMIT of database app
        cluster {"limits": [{"max": 4, "per": "address", "across": "servers"}, {"max": 9, "per": "address", "network": "10.0.0.5/32"}]} => 10.0.0.5: 4 across servers by session_limit.cluster_limits; 10.0.0.5: 9 by session_limit.cluster_limits
    "#;

    #[test]
    fn across_servers_and_on_this_server_both_apply() {
        for case in ACROSS.lines().filter(|case| !case.trim().is_empty()) {
            let (set, expected) = case.split_once("=>").expect(case);
            let expected = lines(&expected.replace("; ", "\n"));
            assert_eq!(applying(set, "app", HERE), expected, "{set}");
        }
    }

    #[test]
    fn different_keys_all_apply() {
        let set = r#"
            alice {"limits": [{"max": 6}, {"max": 5, "per": "address"}, {"max": 4, "database": "app"},
                {"max": 3, "network": "10.0.0.0/8"}, {"max": 2, "per": "address", "database": "app"}]};
            team {"limits": [{"max": 9, "per": "role"}, {"max": 20, "per": "group"},
                {"max": 8, "per": "role", "network": "10.0.0.0/9"}]};
            staff {"limits": [{"max": 30, "per": "group"}, {"max": 31, "per": "group", "database": "app"}]};
            app {"limits": [{"max": 100}, {"max": 7, "per": "role"}, {"max": 10, "per": "address"},
                {"max": 17, "per": ["role", "address"]}, {"max": 18, "per": ["database", "address"]}]};
            app's 90;
            cluster {"limits": [{"max": 11, "per": "address"}, {"max": 15, "per": ["role", "database"]},
                {"max": 16, "per": ["role", "address"]}, {"max": 19, "per": ["role", "database", "address"]}, {"max": 12, "per": "cluster"},
                {"max": 13, "per": "cluster", "network": "0.0.0.0/0"}, {"max": 14, "per": "role", "database": "app"}]}
        "#;
        let everywhere = "
            alice: 6 by label on role alice
            all: 12 by session_limit.cluster_limits
            team: 20 by label on role team
            staff: 30 by label on role staff
            app: 100 by label on database app
            app: 90 by CONNECTION LIMIT of database app
            alice in app: 15 by session_limit.cluster_limits
            alice in app: 7 by label on database app";
        let in_app = "
            alice in app: 4 by label on role alice
            staff in app: 31 by label on role staff";
        let in_app_from_here = "
            alice from 10.0.0.5: 5 by label on role alice
            alice from 10.0.0.0/8: 3 by label on role alice
            alice from 10.0.0.0/9: 8 by label on role team
            alice from 10.0.0.5: 16 by session_limit.cluster_limits
            alice in app from 10.0.0.5: 17 by label on database app
            alice in app from 10.0.0.5: 19 by session_limit.cluster_limits
            app from 10.0.0.5: 10 by label on database app
            app from 10.0.0.5: 18 by label on database app
            0.0.0.0/0: 13 by session_limit.cluster_limits
            alice in app from 10.0.0.5: 2 by label on role alice";
        assert_eq!(
            applying(set, "app", HERE),
            lines(&[everywhere, in_app, in_app_from_here].concat())
        );
        // The database with this OID has another name now: limits with `"database": "app"` are not about it.
        assert_eq!(applying(set, "web", SOCKET), lines(everywhere));
        assert_eq!(
            applying(set, "app", SOCKET),
            lines(&[everywhere, in_app].concat())
        );
    }

    #[test]
    fn for_one_address_the_smallest_network_wins() {
        let set = r#"cluster {"limits": [
            {"max": 4, "per": "address"},
            {"max": 6, "per": "address", "network": "10.0.0.0/8"},
            {"max": 9, "per": "address", "network": "10.0.0.5/32"},
            {"max": -1, "per": "address", "network": "10.9.0.0/16"}]}"#;
        let cases = "
            10.0.0.5: 9 by session_limit.cluster_limits
            10.1.1.1: 6 by session_limit.cluster_limits
            192.168.0.1: 4 by session_limit.cluster_limits
            ::1: 4 by session_limit.cluster_limits";
        for expected in lines(cases) {
            let (address, _) = expected.split_once(": ").expect("an address");
            assert_eq!(applying(set, "app", address), [expected.as_str()]);
        }
        assert_eq!(applying(set, "app", "10.9.0.1"), [""; 0]);
    }

    #[test]
    fn an_ipv6_address_is_the_network_that_the_setting_says() {
        let by = "by session_limit.cluster_limits";
        let limits = r#"cluster {"limits": [{"max": 4, "per": "address"},
            {"max": 6, "per": "address", "network": "2001:db8::/32"},
            {"max": 9, "per": "address", "network": "2001:db8::5/128"}]}"#;
        let cases = [
            ("128", "2001:db9::5", format!("2001:db9::5: 4 {by}")),
            ("64", "2001:db9::5", format!("2001:db9::/64: 4 {by}")),
            ("64", "2001:db8::6", format!("2001:db8::/64: 6 {by}")),
            // Of the sessions from the address only those from the limit's network count.
            ("64", "2001:db8::5", format!("2001:db8::5: 9 {by}")),
            ("16", "2001:db8::6", format!("2001:db8::/32: 6 {by}")),
            ("64", HERE, format!("{HERE}: 4 {by}")),
        ];
        for (length, address, expected) in cases {
            let set = format!("ipv6 {length}; {limits}");
            assert_eq!(applying(&set, "app", address), [expected]);
        }
        let alice = r#"ipv6 56; alice {"max": 2, "per": "address"}"#;
        let expected = "alice from 2001:db8:0:100::/56: 2 by label on role alice";
        assert_eq!(applying(alice, "app", "2001:db8:0:1ff::1"), [expected]);
    }

    #[test]
    fn a_hidden_limit_wins_over_those_further_out_unless_what_hides_it_is_tried_out() {
        let hiding = r#"{"limits": [{"max": 4, "per": "address"}, {"max": 50, "per": "address", "network": "10.0.0.5/32"}]}"#;
        let tried_out = r#"{"limits": [{"max": 4, "per": "address"},
            {"max": 2, "per": "address", "network": "10.0.0.5/32", "enforcement": "log"}]}"#;
        let cluster = r#"cluster {"max": 2, "per": "address"}"#;
        let staff = r#"staff {"max": 10, "per": "address"}"#;
        let cases = [
            (
                format!("alice {hiding}; {cluster}"),
                "alice from 10.0.0.5: 50 by label on role alice",
            ),
            (
                format!("alice {tried_out}; {cluster}"),
                "alice from 10.0.0.5: 2 by label on role alice, tried out
                alice from 10.0.0.5: 4 by label on role alice",
            ),
            (
                format!("team {hiding}; {staff}"),
                "alice from 10.0.0.5: 10 by label on role staff
                alice from 10.0.0.5: 50 by label on role team",
            ),
        ];
        for (set, expected) in cases {
            assert_eq!(applying(&set, "app", HERE), lines(expected), "{set}");
        }
    }

    #[test]
    fn a_limit_that_is_tried_out_never_replaces_an_enforced_one() {
        let set = r#"alice {"max": 1, "enforcement": "log"}; alice's 7;
            app {"max": 1, "enforcement": "log"}; cluster {"max": 5, "per": "database"}"#;
        let expected = "
            alice: 1 by label on role alice, tried out
            alice: 7 by CONNECTION LIMIT of role alice
            app: 1 by label on database app, tried out
            app: 5 by session_limit.cluster_limits";
        assert_eq!(applying(set, "app", HERE), lines(expected));
    }

    #[test]
    fn when_a_role_gets_or_loses_login_its_label_is_read_as_what_it_is_now() {
        let json = r#"{"limits": [{"max": 1}, {"max": 2, "per": "address"}]}"#;
        assert_eq!(
            applying(&format!("alice {json}"), "app", SOCKET),
            ["alice: 1 by label on role alice"]
        );
        // A role's label has become a group's: its limit without "per" covers nothing.
        let defaults = defaults();
        let mut facts = LoginFacts {
            role: ALICE,
            connection_limit: -1,
            label: Label::default(),
            groups: vec![(TEAM, label(LabelTarget::Role, json))],
            database: None,
            address: HERE.parse().ok(),
            defaults: &defaults,
        };
        let said = |facts: &LoginFacts| -> Vec<String> {
            applicable(facts).limits.iter().map(say).collect()
        };
        assert_eq!(
            said(&facts),
            ["alice from 10.0.0.5: 2 by label on role team"]
        );
        // A group's label has become a role's: its total of the members covers nothing.
        facts.groups.clear();
        facts.label = label(
            LabelTarget::Group,
            r#"{"limits": [{"max": 1, "per": "group"}, {"max": 2, "per": "role"}]}"#,
        );
        assert_eq!(said(&facts), ["alice: 2 by label on role alice"]);
    }

    #[test]
    fn a_login_is_exempt_by_its_roles_label_or_a_groups() {
        let own = r#"alice {"exempt": true}"#;
        assert_eq!(applying(own, "app", HERE), ["exempt"]);
        let group = r#"team {"max": 1, "per": "role", "exempt": true}"#;
        assert_eq!(
            applying(group, "app", HERE),
            ["alice: 1 by label on role team", "exempt"]
        );
    }

    /// One case a line: what is set, beside a `CONNECTION LIMIT` of alice's, and the policy of each limit. Of several
    /// groups the mildest `on_excess` and the shortest wait; a group's limit has that group's policy, not the role's.
    const POLICIES: &str = r#"
        => refuse 100ms
        alice {"on_excess": "replace_oldest"} => replace_oldest 100ms
        team {"on_excess": "replace_oldest", "max_wait": "2s"}; staff {"on_excess": "replace_idle", "max_wait": "1s"} => replace_idle 1s
        team {"on_excess": "replace_oldest", "max_wait": "2s"}; staff {"on_excess": "replace_idle", "max_wait": "1s"}; alice {"max_wait": "3s"} => replace_idle 3s
        alice {"limits": [{"max": 1, "on_excess": "refuse", "max_wait": 7}], "on_excess": "replace_oldest"} => refuse 7ms
        team {"max": 1, "per": "group", "max_wait": 8}; alice {"max_wait": 9} => refuse 9ms, refuse 8ms
    "#;

    #[test]
    fn policy_is_the_limits_else_its_labels_else_the_settings() {
        for case in POLICIES.lines().filter(|case| !case.trim().is_empty()) {
            let (set, expected) = case.split_once("=>").expect(case);
            let defaults = defaults();
            let facts = LoginFacts {
                role: ALICE,
                connection_limit: 5,
                label: label_on(set, "alice", LabelTarget::Role),
                groups: groups(set),
                database: None,
                address: None,
                defaults: &defaults,
            };
            let policy = |limit: &Limit| format!("{} {:?}", limit.on_excess.word(), limit.max_wait);
            let policies: Vec<String> = applicable(&facts).limits.iter().map(policy).collect();
            assert_eq!(policies.join(", "), expected.trim(), "{set}");
        }
    }
}
