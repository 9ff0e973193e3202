//! Which limits apply to a login. Pure: given what was read of its role, groups, database and the
//! settings, nothing is looked up here.
//!
//! A limit's key is what it is kept for and which sessions it is about. For one key the nearest limit
//! wins: the login role's own (its label and its `CONNECTION LIMIT`: the smaller), then its groups'
//! (the smallest), then the cluster's. `max: -1`, no limit, lifts those further out. A group's total
//! and what is set on the database always apply; for a whole database, its own limits are nearer than
//! the cluster's.

use crate::label::{Label, LabelLimit, LimitEnforcement};
use crate::label_target::LabelTarget;
use crate::limit::{Limit, Object, OnExcess, Per, Scope, Source, Who};
use crate::network::Network;
use std::net::IpAddr;
use std::time::Duration;

/// A login, and what was read for it.
#[derive(Clone, Debug)]
pub struct LoginFacts<'a> {
    /// OID.
    pub role: u32,
    /// `CONNECTION LIMIT`; negative: none.
    pub connection_limit: i32,
    pub label: Label,
    /// The groups that the role is a member of and that have a label, by OID.
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
    /// `CONNECTION LIMIT`; negative: none.
    pub connection_limit: i32,
    pub label: Label,
}

/// What the settings say.
#[derive(Clone, Debug)]
pub struct Defaults {
    pub cluster_limits: Label,
    /// Negative: none.
    pub max_sessions_per_role: i32,
    pub on_excess: OnExcess,
    pub max_wait: Duration,
    /// No limit is enforced.
    pub dry_run: bool,
}

/// The limits that a login must meet.
#[derive(Debug, Default, PartialEq)]
pub struct Applicable {
    /// It is never refused, though.
    pub exempt: bool,
    pub limits: Vec<Limit>,
}

/// A limit before it is known whether another takes its place.
struct Candidate {
    level: Level,
    key: Key,
    /// Negative: none.
    max: i32,
    limit: Limit,
}

/// The nearest first.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Level {
    Role,
    Group,
    Database,
    Cluster,
}

/// What a nearer limit must have in common with one further out to take its place.
#[derive(Clone, Copy, PartialEq)]
struct Key {
    per: Per,
    /// Whether only sessions in the login's database count.
    in_database: bool,
    network: Option<Network>,
    /// The group or database whose sessions count, whichever the login's role.
    whole: Option<Object>,
}

/// The limits that apply. One that is only tried out takes no enforced limit's place.
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

/// The limits whose place none of the others takes.
fn nearest(candidates: &[&Candidate]) -> Vec<Limit> {
    // Of which another of the same label is about a smaller network.
    let is_hidden = |one: &&Candidate| candidates.iter().any(|it| it.is_narrower_than(one));
    let hidden: Vec<bool> = candidates.iter().map(is_hidden).collect();
    let all = || candidates.iter().zip(&hidden).enumerate();
    let applies = |(place, (one, hidden)): &(usize, (&&Candidate, &bool))| {
        let takes_its_place =
            |(other_place, (other, other_hidden)): (usize, (&&Candidate, &bool))| {
                let is_smaller =
                    (*other_hidden, other.rank(), other_place) < (**hidden, one.rank(), *place);
                other.replaces(one, is_smaller)
            };
        one.max >= 0 && !**hidden && !all().any(takes_its_place)
    };
    all()
        .filter(applies)
        .map(|(_, (one, _))| one.limit)
        .collect()
}

impl Candidate {
    /// Of several limits of one label for the same client address, which count the same sessions, that of
    /// the smallest network is about it.
    fn is_narrower_than(&self, other: &Candidate) -> bool {
        let prefix = |candidate: &Candidate| candidate.key.network.map(Network::prefix);
        let (one, two) = (&self.limit, &other.limit);
        one.per == Per::Address
            && (one.source, one.per, one.scope) == (two.source, two.per, two.scope)
            && prefix(self) > prefix(other)
    }

    /// Negative, no limit, is the largest number of all.
    fn rank(&self) -> u32 {
        self.max as u32
    }

    /// Whether it is nearer, or as near and the smaller one. Those of a database all apply.
    fn replaces(&self, other: &Candidate, is_smaller: bool) -> bool {
        let as_near = self.level == other.level && self.level != Level::Database;
        self.key == other.key && (self.level < other.level || (as_near && is_smaller))
    }
}

/// `on_excess` and `max_wait` where a limit has none of its own.
pub type Policy = (Option<OnExcess>, Option<Duration>);

impl LoginFacts<'_> {
    /// The limits that count such a login, wherever they are set.
    fn candidates(&self) -> Vec<Candidate> {
        let mut all = Vec::new();
        let role = Object::Role(self.role);
        self.labelled(&mut all, Level::Role, Source::Label(role), &self.label);
        let (source, max) = (Source::ConnectionLimit(role), self.connection_limit);
        self.bare(&mut all, Level::Role, source, max, self.role_policy());
        for (group, label) in &self.groups {
            let source = Source::Label(Object::Role(*group));
            self.labelled(&mut all, Level::Group, source, label);
        }
        if let Some(database) = &self.database {
            let object = Object::Database(database.oid);
            let (source, label) = (Source::Label(object), &database.label);
            self.labelled(&mut all, Level::Database, source, label);
            let (source, max) = (Source::ConnectionLimit(object), database.connection_limit);
            self.bare(&mut all, Level::Database, source, max, policy(label));
        }
        let Defaults {
            cluster_limits: label,
            max_sessions_per_role: max,
            ..
        } = self.defaults;
        self.labelled(&mut all, Level::Cluster, Source::ClusterLimits, label);
        let (source, policy) = (Source::MaxSessionsPerRole, self.role_policy());
        self.bare(&mut all, Level::Cluster, source, *max, policy);
        all
    }

    /// For a limit on the role that is no label's.
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

    /// A limit that is only a number; a negative one says nothing.
    fn bare(
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

    /// The limits of a label, but for those that this login, or now that it has lost or got LOGIN the
    /// label's role, has nothing to do with.
    fn labelled(&self, all: &mut Vec<Candidate>, level: Level, source: Source, label: &Label) {
        let target = match level {
            Level::Role => LabelTarget::Role,
            Level::Group => LabelTarget::Group,
            Level::Database => LabelTarget::Database,
            Level::Cluster => LabelTarget::Cluster,
        };
        for limit in &label.limits {
            if let Some(per) = limit.per.or(target.default_per())
                && target.pers().contains(&per)
            {
                all.extend(self.candidate(level, source, per, limit, policy(label)));
            }
        }
    }

    /// None if the limit does not count such a login.
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
            max: u32::try_from(written.max).unwrap_or(u32::MAX),
            source,
            on_excess: written.on_excess.or(policy.0).unwrap_or(defaults.on_excess),
            max_wait: written.max_wait.or(policy.1).unwrap_or(defaults.max_wait),
            enforced: !defaults.dry_run && !is_tried_out,
        };
        let key = Key {
            per,
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

    /// Whether the login is to the limit's database and from its network.
    fn is_counted_by(&self, written: &LabelLimit) -> bool {
        let to = self.database.as_ref().map(|database| database.name);
        let from = |network: Network| self.address.is_some_and(|it| network.contains(it));
        let database = written.database.as_ref().map(String::as_bytes);
        database.is_none_or(|name| to == Some(name)) && written.network.is_none_or(from)
    }

    /// The group or database whose sessions all count. None if it is the login's database, and it has none.
    fn whole(&self, per: Per, source: Source) -> Option<Option<Object>> {
        Some(match (per, source) {
            (Per::Group, Source::Label(group)) => Some(group),
            (_, Source::Label(Object::Database(_))) | (Per::Database, _) => {
                Some(Object::Database(self.database.as_ref()?.oid))
            }
            _ => None,
        })
    }

    /// The sessions that count with such a login. None if they are those of its address, and it has none.
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
                (Per::Role, ..) | (Per::Address, Source::Label(Object::Role(_)), _) => {
                    Who::Role(self.role)
                }
                _ => Who::Anyone,
            },
            database: database.map(|database| database.oid),
            network: match per {
                Per::Address => Some(Network::of(self.address?)),
                _ => written.network,
            },
        })
    }
}

/// For a limit of this label.
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
            dry_run: false,
        }
    }

    /// A case: what is set, as lines of `where json`, and who logs in.
    fn said(set: &[(&str, &str)], database: &str, address: &str) -> Vec<String> {
        let of = |place: &str, target| {
            let json = set.iter().find(|(other, _)| *other == place);
            json.map_or(Label::default(), |(_, json)| label(target, json))
        };
        let number = |place: &str| {
            let number = set.iter().find(|(other, _)| *other == place);
            number.map_or(-1, |(_, number)| number.parse().expect(number))
        };
        let defaults = Defaults {
            cluster_limits: of("cluster", LabelTarget::Cluster),
            max_sessions_per_role: number("default"),
            ..defaults()
        };
        let facts = LoginFacts {
            role: ALICE,
            connection_limit: number("alice's"),
            label: of("alice", LabelTarget::Role),
            groups: vec![
                (TEAM, of("team", LabelTarget::Group)),
                (STAFF, of("staff", LabelTarget::Group)),
            ],
            database: Some(InDatabase {
                oid: APP,
                name: database.as_bytes(),
                connection_limit: number("app's"),
                label: of("app", LabelTarget::Database),
            }),
            address: address.parse().ok(),
            defaults: &defaults,
        };
        let Applicable { exempt, limits } = applicable(&facts);
        let mut said: Vec<String> = limits.iter().map(say).collect();
        said.sort();
        said.extend(exempt.then(|| "exempt".to_string()));
        said
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
        let tried = if limit.enforced { "" } else { " tried out" };
        format!(
            "{subject}: {} by {}{tried}",
            limit.max,
            text(limit.source.words(&names))
        )
    }

    const HERE: &str = "10.0.0.5";
    const SOCKET: &str = "";

    #[test]
    fn the_nearest_wins_for_one_key() {
        type Case = (
            &'static [(&'static str, &'static str)],
            &'static [&'static str],
        );
        let cases: &[Case] = &[
            (&[], &[]),
            (
                &[("default", "4")],
                &["alice: 4 by session_limit.max_sessions_per_role"],
            ),
            (
                &[("default", "4"), ("alice's", "7")],
                &["alice: 7 by CONNECTION LIMIT of role alice"],
            ),
            (
                &[("default", "4"), ("alice's", "0")],
                &["alice: 0 by CONNECTION LIMIT of role alice"],
            ),
            (
                &[("alice", r#"{"max": 3}"#), ("alice's", "7")],
                &["alice: 3 by label on role alice"],
            ),
            (
                &[("alice", r#"{"max": 9}"#), ("alice's", "7")],
                &["alice: 7 by CONNECTION LIMIT of role alice"],
            ),
            (
                &[("alice", r#"{"max": -1}"#), ("alice's", "7")],
                &["alice: 7 by CONNECTION LIMIT of role alice"],
            ),
            (
                &[
                    ("alice", r#"{"max": 9}"#),
                    ("team", r#"{"max": 2, "per": "role"}"#),
                    ("default", "1"),
                ],
                &["alice: 9 by label on role alice"],
            ),
            (
                &[("team", r#"{"max": 2, "per": "role"}"#), ("default", "1")],
                &["alice: 2 by label on role team"],
            ),
            (
                &[
                    ("team", r#"{"max": 5, "per": "role"}"#),
                    ("staff", r#"{"max": 2, "per": "role"}"#),
                ],
                &["alice: 2 by label on role staff"],
            ),
            (
                &[
                    ("team", r#"{"max": 5, "per": "role"}"#),
                    ("staff", r#"{"max": -1, "per": "role"}"#),
                ],
                &["alice: 5 by label on role team"],
            ),
            (
                &[("team", r#"{"max": -1, "per": "role"}"#), ("default", "1")],
                &[],
            ),
            (
                &[
                    ("alice", r#"{"max": -1}"#),
                    ("team", r#"{"max": 5, "per": "role"}"#),
                    ("default", "1"),
                ],
                &[],
            ),
            (
                &[
                    ("cluster", r#"{"max": 5, "per": "role"}"#),
                    ("default", "3"),
                ],
                &["alice: 3 by session_limit.max_sessions_per_role"],
            ),
            (
                &[
                    ("cluster", r#"{"max": 5, "per": "role"}"#),
                    ("alice", r#"{"max": 8}"#),
                ],
                &["alice: 8 by label on role alice"],
            ),
            (
                &[
                    ("cluster", r#"{"max": 5, "per": "address"}"#),
                    ("alice", r#"{"max": 8, "per": "address"}"#),
                ],
                &["alice from 10.0.0.5: 8 by label on role alice"],
            ),
            (
                &[
                    ("cluster", r#"{"max": 5, "per": "address"}"#),
                    ("team", r#"{"max": 8, "per": "address"}"#),
                ],
                &["alice from 10.0.0.5: 8 by label on role team"],
            ),
            (
                &[("cluster", r#"{"max": 50, "per": "database"}"#)],
                &["app: 50 by session_limit.cluster_limits"],
            ),
            (
                &[
                    ("cluster", r#"{"max": 50, "per": "database"}"#),
                    ("app", r#"{"max": 80}"#),
                ],
                &["app: 80 by label on database app"],
            ),
            (
                &[
                    ("cluster", r#"{"max": 50, "per": "database"}"#),
                    ("app's", "80"),
                ],
                &["app: 80 by CONNECTION LIMIT of database app"],
            ),
            (
                &[
                    ("cluster", r#"{"max": 50, "per": "database"}"#),
                    ("app", r#"{"max": -1}"#),
                ],
                &[],
            ),
        ];
        for (set, expected) in cases {
            assert_eq!(said(set, "app", HERE), *expected, "{set:?}");
        }
    }

    #[test]
    fn different_keys_all_apply() {
        let alice = r#"{"limits": [{"max": 6}, {"max": 5, "per": "address"}, {"max": 4, "database": "app"},
            {"max": 3, "network": "10.0.0.0/8"}, {"max": 2, "per": "address", "database": "app"}]}"#;
        let set = [
            ("alice", alice),
            (
                "team",
                r#"{"limits": [{"max": 9, "per": "role"}, {"max": 20, "per": "group"}, {"max": 8, "per": "role", "network": "10.0.0.0/9"}]}"#,
            ),
            (
                "staff",
                r#"{"limits": [{"max": 30, "per": "group"}, {"max": 31, "per": "group", "database": "app"}]}"#,
            ),
            (
                "app",
                r#"{"limits": [{"max": 100}, {"max": 7, "per": "role"}, {"max": 10, "per": "address"}]}"#,
            ),
            ("app's", "90"),
            (
                "cluster",
                r#"{"limits": [{"max": 11, "per": "address"}, {"max": 12, "per": "cluster"}, {"max": 13, "per": "cluster", "network": "0.0.0.0/0"}, {"max": 14, "per": "role", "database": "app"}]}"#,
            ),
        ];
        let everywhere = [
            "alice: 6 by label on role alice",
            "all: 12 by session_limit.cluster_limits",
            "team: 20 by label on role team",
            "staff: 30 by label on role staff",
        ];
        let of_app = [
            "app: 100 by label on database app",
            "app: 90 by CONNECTION LIMIT of database app",
            "alice in app: 7 by label on database app",
        ];
        let in_app = [
            "alice in app: 4 by label on role alice",
            "staff in app: 31 by label on role staff",
        ];
        let from_here = [
            "alice from 10.0.0.5: 5 by label on role alice",
            "alice from 10.0.0.0/8: 3 by label on role alice",
            "alice from 10.0.0.0/9: 8 by label on role team",
            "app from 10.0.0.5: 10 by label on database app",
            "0.0.0.0/0: 13 by session_limit.cluster_limits",
        ];
        let both = ["alice in app from 10.0.0.5: 2 by label on role alice"];
        let expect = |groups: &[&[&str]]| {
            let mut all: Vec<String> = groups
                .concat()
                .iter()
                .map(|line| line.to_string())
                .collect();
            all.sort();
            all
        };
        assert_eq!(
            said(&set, "app", HERE),
            expect(&[&everywhere, &of_app, &in_app, &from_here, &both])
        );
        // The database with this OID has another name now: what says "app" is not about it.
        assert_eq!(said(&set, "web", SOCKET), expect(&[&everywhere, &of_app]));
        assert_eq!(
            said(&set, "app", SOCKET),
            expect(&[&everywhere, &of_app, &in_app])
        );
    }

    #[test]
    fn for_one_address_the_smallest_network_wins() {
        let cluster = r#"{"limits": [{"max": 4, "per": "address"}, {"max": 6, "per": "address", "network": "10.0.0.0/8"},
            {"max": 9, "per": "address", "network": "10.0.0.5/32"}, {"max": -1, "per": "address", "network": "10.9.0.0/16"}]}"#;
        let at = |address| said(&[("cluster", cluster)], "app", address);
        assert_eq!(at(HERE), ["10.0.0.5: 9 by session_limit.cluster_limits"]);
        assert_eq!(
            at("10.1.1.1"),
            ["10.1.1.1: 6 by session_limit.cluster_limits"]
        );
        assert_eq!(
            at("192.168.0.1"),
            ["192.168.0.1: 4 by session_limit.cluster_limits"]
        );
        assert_eq!(at("10.9.0.1"), [""; 0]);
        assert_eq!(at("::1"), ["::1: 4 by session_limit.cluster_limits"]);
    }

    #[test]
    fn what_is_hidden_hides_what_is_further_out_but_nothing_that_is_enforced() {
        let role = r#"{"limits": [{"max": 4, "per": "address"}, {"max": 50, "per": "address", "network": "10.0.0.5/32"}]}"#;
        let cluster = ("cluster", r#"{"max": 2, "per": "address"}"#);
        assert_eq!(
            said(&[("alice", role), cluster], "app", HERE),
            ["alice from 10.0.0.5: 50 by label on role alice"]
        );
        let tried = r#"{"limits": [{"max": 4, "per": "address"}, {"max": 2, "per": "address", "network": "10.0.0.5/32", "enforcement": "log"}]}"#;
        assert_eq!(
            said(&[("alice", tried), cluster], "app", HERE),
            [
                "alice from 10.0.0.5: 2 by label on role alice tried out",
                "alice from 10.0.0.5: 4 by label on role alice"
            ]
        );
        let staff = ("staff", r#"{"max": 10, "per": "address"}"#);
        assert_eq!(
            said(&[("team", role), staff], "app", HERE),
            [
                "alice from 10.0.0.5: 10 by label on role staff",
                "alice from 10.0.0.5: 50 by label on role team"
            ]
        );
    }

    #[test]
    fn a_limit_that_is_tried_out_takes_no_enforced_ones_place() {
        let tried = r#"{"max": 1, "enforcement": "log"}"#;
        assert_eq!(
            said(&[("alice", tried), ("alice's", "7")], "app", HERE),
            [
                "alice: 1 by label on role alice tried out",
                "alice: 7 by CONNECTION LIMIT of role alice"
            ]
        );
        assert_eq!(
            said(
                &[
                    ("app", tried),
                    ("cluster", r#"{"max": 5, "per": "database"}"#)
                ],
                "app",
                HERE
            ),
            [
                "app: 1 by label on database app tried out",
                "app: 5 by session_limit.cluster_limits"
            ]
        );
    }

    #[test]
    fn a_role_that_gets_or_loses_login() {
        let mut set = vec![(
            "alice",
            r#"{"limits": [{"max": 1}, {"max": 2, "per": "address"}]}"#,
        )];
        assert_eq!(
            said(&set, "app", SOCKET),
            ["alice: 1 by label on role alice"]
        );
        // What was a role's label is a group's: a limit without "per" covers nothing.
        let defaults = defaults();
        let mut facts = LoginFacts {
            role: ALICE,
            connection_limit: -1,
            label: Label::default(),
            groups: vec![(TEAM, label(LabelTarget::Role, set.remove(0).1))],
            database: None,
            address: HERE.parse().ok(),
            defaults: &defaults,
        };
        let lines =
            |facts: &LoginFacts| applicable(facts).limits.iter().map(say).collect::<Vec<_>>();
        assert_eq!(
            lines(&facts),
            ["alice from 10.0.0.5: 2 by label on role team"]
        );
        // And what was a group's is the role's own: a total of its members covers nothing.
        facts.groups.clear();
        facts.label = label(
            LabelTarget::Group,
            r#"{"limits": [{"max": 1, "per": "group"}, {"max": 2, "per": "role"}]}"#,
        );
        assert_eq!(lines(&facts), ["alice: 2 by label on role alice"]);
    }

    #[test]
    fn exempt_by_the_roles_label_or_a_groups() {
        assert_eq!(
            said(&[("alice", r#"{"exempt": true}"#)], "app", HERE),
            ["exempt"]
        );
        let team = r#"{"max": 1, "per": "role", "exempt": true}"#;
        assert_eq!(
            said(&[("team", team)], "app", HERE),
            ["alice: 1 by label on role team", "exempt"]
        );
    }

    #[test]
    fn policy_is_the_limits_else_its_labels_else_the_settings() {
        let policies = |set: &[(&str, &str)]| {
            let of = |place: &str, target| {
                set.iter()
                    .find(|(other, _)| *other == place)
                    .map_or(Label::default(), |(_, json)| label(target, json))
            };
            let defaults = defaults();
            let facts = LoginFacts {
                role: ALICE,
                connection_limit: 5,
                label: of("alice", LabelTarget::Role),
                groups: vec![
                    (TEAM, of("team", LabelTarget::Group)),
                    (STAFF, of("staff", LabelTarget::Group)),
                ],
                database: None,
                address: None,
                defaults: &defaults,
            };
            let limits = applicable(&facts).limits;
            limits
                .iter()
                .map(|limit| (limit.on_excess.word(), limit.max_wait.as_millis()))
                .collect::<Vec<_>>()
        };
        assert_eq!(policies(&[]), [("refuse", 100)]);
        assert_eq!(
            policies(&[("alice", r#"{"on_excess": "replace_oldest"}"#)]),
            [("replace_oldest", 100)]
        );
        let groups = [
            (
                "team",
                r#"{"on_excess": "replace_oldest", "max_wait": "2s"}"#,
            ),
            (
                "staff",
                r#"{"on_excess": "replace_idle", "max_wait": "1s"}"#,
            ),
        ];
        assert_eq!(
            policies(&groups),
            [("replace_idle", 1000)],
            "the mildest, the shortest"
        );
        let own = [&groups[..], &[("alice", r#"{"max_wait": "3s"}"#)]].concat();
        assert_eq!(policies(&own), [("replace_idle", 3000)]);
        let limit = r#"{"limits": [{"max": 1, "on_excess": "refuse", "max_wait": 7}], "on_excess": "replace_oldest"}"#;
        assert_eq!(policies(&[("alice", limit)]), [("refuse", 7)]);
        // A group's limit has that group's policy, not the role's.
        let team = [
            ("team", r#"{"max": 1, "per": "group", "max_wait": 8}"#),
            ("alice", r#"{"max_wait": 9}"#),
        ];
        assert_eq!(policies(&team), [("refuse", 9), ("refuse", 8)]);
    }
}
