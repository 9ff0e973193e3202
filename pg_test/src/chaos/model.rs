//! What is set, and what must follow from it for a login: written from the rules of docs/concepts.md, apart from
//! the extension, and as simple as they can be said. Pure.

use serde_json::{Map, Value, json};
use std::fmt;

/// What a client asks for: the role, the database, and the last number of 127.0.0.x; 0 is the socket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Login {
    pub role: usize,
    pub database: usize,
    pub address: u8,
}

/// A session as `pg_stat_activity` shows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    pub pid: i32,
    /// None: the role was dropped since.
    pub role: Option<usize>,
    pub database: usize,
    pub address: u8,
    /// And not in a transaction.
    pub idle: bool,
}

pub const ADDRESSES: u8 = 4;
/// And which addresses are in it.
pub const NETWORKS: [(&str, &[u8]); 3] = [
    ("127.0.0.0/8", &[1, 2, 3]),
    ("127.0.0.2/31", &[2, 3]),
    ("127.0.0.3/32", &[3]),
];

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Per {
    Role,
    Address,
    Group,
    Database,
    Cluster,
    RoleDatabase,
    RoleAddress,
    DatabaseAddress,
}

/// The mildest first.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub enum OnExcess {
    Refuse,
    ReplaceIdle,
    ReplaceOldest,
}

impl OnExcess {
    pub fn word(self) -> &'static str {
        match self {
            OnExcess::Refuse => "refuse",
            OnExcess::ReplaceIdle => "replace_idle",
            OnExcess::ReplaceOldest => "replace_oldest",
        }
    }
}

impl Per {
    pub fn word(self) -> &'static str {
        match self {
            Per::Role => "role",
            Per::Address => "address",
            Per::Group => "group",
            Per::Database => "database",
            Per::Cluster => "cluster",
            Per::RoleDatabase => "role, database",
            Per::RoleAddress => "role, address",
            Per::DatabaseAddress => "database, address",
        }
    }

    /// As a label has it.
    fn json(self) -> Value {
        let words: Vec<&str> = self.word().split(", ").collect();
        match words.as_slice() {
            [word] => json!(word),
            words => json!(words),
        }
    }

    pub fn names(self, word: &str) -> bool {
        self.word().split(", ").any(|it| it == word)
    }
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Count {
    Sessions,
    Roles,
    Addresses,
}

impl Count {
    pub fn word(self) -> &'static str {
        match self {
            Count::Sessions => "sessions",
            Count::Roles => "roles",
            Count::Addresses => "addresses",
        }
    }
}

/// A limit of a label. Negative: none.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub max: i32,
    pub per: Per,
    pub count: Count,
    pub database: Option<usize>,
    pub network: Option<usize>,
    pub only_logged: bool,
    pub on_excess: Option<OnExcess>,
    /// Milliseconds.
    pub max_wait: Option<i32>,
}

impl Rule {
    /// Of whatever there is, enforced, with the policy of others.
    fn bare(max: i32, per: Per) -> Rule {
        Rule {
            max,
            per,
            count: Count::Sessions,
            database: None,
            network: None,
            only_logged: false,
            on_excess: None,
            max_wait: None,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Label {
    pub rules: Vec<Rule>,
    pub on_excess: Option<OnExcess>,
    pub max_wait: Option<i32>,
    pub exempt: bool,
}

#[derive(Clone, Debug)]
pub struct Role {
    pub name: String,
    pub superuser: bool,
    pub connection_limit: i32,
    pub label: Label,
    /// Those that it was granted itself.
    pub groups: Vec<usize>,
}

#[derive(Clone, Debug)]
pub struct Database {
    pub name: String,
    pub connection_limit: i32,
    pub label: Label,
}

/// All that is set.
#[derive(Clone, Debug)]
pub struct World {
    pub roles: Vec<Role>,
    /// The second is a member of the first.
    pub groups: Vec<(String, Label)>,
    pub databases: Vec<Database>,
    pub cluster_limits: Label,
    pub max_sessions_per_role: i32,
    pub on_excess: OnExcess,
    pub enforcement: &'static str,
    pub sweep: &'static str,
    /// Everyone is old enough to be replaced, or nobody.
    pub anyone_is_old_enough: bool,
    /// Everyone who is idle is so for long enough, or nobody.
    pub anyone_is_idle_enough: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Who {
    Anyone,
    Role(usize),
    Group(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum From {
    Anywhere,
    Network(usize),
    Address(u8),
}

/// Which sessions are counted, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scope {
    pub count: Count,
    pub who: Who,
    pub database: Option<usize>,
    pub from: From,
}

impl Scope {
    /// The same for those that differ only in whom they name.
    pub fn kind(self) -> String {
        let who = match self.who {
            Who::Anyone => "anyone",
            Who::Role(_) => "role",
            Who::Group(_) => "group",
        };
        let from = match self.from {
            From::Anywhere => "",
            From::Network(_) => "network",
            From::Address(_) => "address",
        };
        let count = self.count.word();
        format!("{count} {who} {from} {}", self.database.is_some())
    }
}

/// A limit that a login must meet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    pub scope: Scope,
    pub max: i32,
    pub on_excess: OnExcess,
}

/// Two limits with the same key: the nearer applies, if it is no total.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Key {
    per: Per,
    count: Count,
    of_a_database: bool,
    network: Option<usize>,
    /// The object whose total it is.
    whole: Option<(Level, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Level {
    Role,
    Group,
    Database,
    Cluster,
}

/// A limit that applies if no nearer one takes its place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    level: Level,
    key: Key,
    limit: Limit,
}

/// What a login must come to that is alone in asking.
#[derive(Clone, Debug, PartialEq)]
pub enum Expected {
    In,
    Refused(Limit),
    /// Sessions of its role end for it.
    Replaces(Limit),
}

/// What a session is counted as: sessions with the same count as one.
type Counted = (Option<i32>, Option<Option<usize>>, Option<u8>);

fn counted(scope: Scope, session: &Seen) -> Counted {
    match scope.count {
        Count::Sessions => (Some(session.pid), None, None),
        Count::Roles => (None, Some(session.role), None),
        Count::Addresses => (None, None, Some(session.address)),
    }
}

impl World {
    /// Whether whoever has the role is counted and never refused.
    pub fn is_exempt(&self, role: usize) -> bool {
        self.roles[role].superuser || self.roles[role].label.exempt
    }

    /// The groups that a role is in.
    fn groups_of(&self, role: usize) -> Vec<usize> {
        let own = &self.roles[role].groups;
        let is_in = |group: &usize| own.contains(group) || (*group == 0 && own.contains(&1));
        (0..self.groups.len()).filter(is_in).collect()
    }

    pub fn covers(&self, scope: Scope, session: &Seen) -> bool {
        let theirs = match scope.who {
            Who::Anyone => true,
            Who::Role(role) => session.role == Some(role),
            Who::Group(group) => session
                .role
                .is_some_and(|role| self.groups_of(role).contains(&group)),
        };
        let from_there = match scope.from {
            From::Anywhere => true,
            From::Network(network) => NETWORKS[network].1.contains(&session.address),
            From::Address(address) => session.address == address,
        };
        theirs && from_there && scope.database.is_none_or(|it| session.database == it)
    }

    pub fn count(&self, scope: Scope, sessions: &[Seen]) -> i32 {
        let covered = sessions
            .iter()
            .filter(|session| self.covers(scope, session));
        let mut counted: Vec<Counted> = covered.map(|session| counted(scope, session)).collect();
        counted.sort();
        counted.dedup();
        counted.len() as i32
    }

    /// Whether such a login is counted already, so that it needs no room.
    fn is_counted(&self, scope: Scope, login: Login, sessions: &[Seen]) -> bool {
        let own = Seen {
            pid: 0,
            role: Some(login.role),
            database: login.database,
            address: login.address,
            idle: false,
        };
        let same = |session: &Seen| counted(scope, session) == counted(scope, &own);
        let mut covered = sessions
            .iter()
            .filter(|session| self.covers(scope, session));
        scope.count != Count::Sessions && covered.any(same)
    }

    fn is_full(&self, limit: &Limit, login: Login, sessions: &[Seen]) -> bool {
        let is_counted = limit.max > 0 && self.is_counted(limit.scope, login, sessions);
        !is_counted && self.count(limit.scope, sessions) >= limit.max
    }

    /// The same, without those that no limit refuses.
    pub fn count_held(&self, scope: Scope, sessions: &[Seen]) -> i32 {
        let held = |session: &&Seen| session.role.is_none_or(|role| !self.is_exempt(role));
        let held: Vec<Seen> = sessions.iter().filter(held).copied().collect();
        self.count(scope, &held)
    }

    /// The members of a group.
    pub fn members(&self, group: usize) -> Vec<usize> {
        let is_in = |role: &usize| self.groups_of(*role).contains(&group);
        (0..self.roles.len()).filter(is_in).collect()
    }

    /// Every enforced limit about such a login, before the nearest are chosen.
    pub fn candidates(&self, login: Login) -> Vec<Candidate> {
        let (role, database) = (&self.roles[login.role], &self.databases[login.database]);
        let groups = self.groups_of(login.role);
        let of_groups = groups.iter().map(|group| &self.groups[*group].1);
        let mildest = of_groups
            .filter_map(|label| label.on_excess)
            .reduce(|one, two| if one < two { one } else { two });
        let role_policy = role.label.on_excess.or(mildest);
        let mut all = Vec::new();
        let mut add = |level, of, rule: &Rule, policy| {
            all.extend(self.candidate(login, level, of, rule, policy));
        };
        for rule in &role.label.rules {
            add(Level::Role, login.role, rule, role.label.on_excess);
        }
        for group in groups {
            let label = &self.groups[group].1;
            for rule in &label.rules {
                add(Level::Group, group, rule, label.on_excess);
            }
        }
        for rule in &database.label.rules {
            add(
                Level::Database,
                login.database,
                rule,
                database.label.on_excess,
            );
        }
        for rule in &self.cluster_limits.rules {
            add(Level::Cluster, 0, rule, self.cluster_limits.on_excess);
        }
        // Where a negative number says nothing at all.
        let bares = [
            (Level::Role, role.connection_limit, Per::Role, role_policy),
            (
                Level::Database,
                database.connection_limit,
                Per::Database,
                database.label.on_excess,
            ),
            (
                Level::Cluster,
                self.max_sessions_per_role,
                Per::Role,
                role_policy,
            ),
        ];
        for (level, max, per, policy) in bares.into_iter().filter(|bare| bare.1 >= 0) {
            add(level, login.database, &Rule::bare(max, per), policy);
        }
        all
    }

    /// Those of them of which one may be a limit with this scope, and those that may take its place.
    pub fn contenders(&self, login: Login, scope: Scope) -> Vec<Candidate> {
        let all = self.candidates(login);
        let with_it = all.iter().filter(|other| other.limit.scope == scope);
        let keys: Vec<Key> = with_it.map(|candidate| candidate.key).collect();
        let contenders = all.into_iter();
        contenders.filter(|it| keys.contains(&it.key)).collect()
    }

    fn candidate(
        &self,
        login: Login,
        level: Level,
        of: usize,
        rule: &Rule,
        policy: Option<OnExcess>,
    ) -> Option<Candidate> {
        let elsewhere = rule.database.is_some_and(|it| it != login.database)
            || rule
                .network
                .is_some_and(|it| !NETWORKS[it].1.contains(&login.address))
            || (rule.per.names("address") && login.address == 0);
        if elsewhere || rule.only_logged {
            return None;
        }
        let whole = match (rule.per, level) {
            (Per::Group, _) => Some((level, of)),
            (_, Level::Database) => Some((Level::Database, login.database)),
            (per, _) if per.names("database") => Some((Level::Database, login.database)),
            _ => None,
        };
        let of_database = matches!(whole, Some((Level::Database, _))) || rule.database.is_some();
        let scope = Scope {
            count: rule.count,
            who: match (rule.per, level) {
                (Per::Group, _) => Who::Group(of),
                (Per::Address, Level::Role | Level::Group) => Who::Role(login.role),
                (per, _) if per.names("role") => Who::Role(login.role),
                _ => Who::Anyone,
            },
            database: of_database.then_some(login.database),
            from: match (rule.per, rule.network) {
                (per, _) if per.names("address") => From::Address(login.address),
                (_, Some(network)) => From::Network(network),
                (_, None) => From::Anywhere,
            },
        };
        Some(Candidate {
            level,
            key: Key {
                per: rule.per,
                count: rule.count,
                of_a_database: rule.database.is_some(),
                network: rule.network,
                whole,
            },
            limit: Limit {
                scope,
                max: rule.max,
                on_excess: match rule.count {
                    Count::Roles => OnExcess::Refuse,
                    _ => rule.on_excess.or(policy).unwrap_or(self.on_excess),
                },
            },
        })
    }

    /// The limits that such a login must meet.
    pub fn limits(&self, login: Login) -> Vec<Limit> {
        if self.enforcement != "on" || self.roles[login.role].superuser {
            return Vec::new();
        }
        if self.is_exempt(login.role) {
            return self.the_servers_own(login);
        }
        let all = self.candidates(login);
        let rank = |candidate: &Candidate| match candidate.limit.max {
            ..0 => i32::MAX,
            max => max,
        };
        let stands = |(place, one): &(usize, &Candidate)| {
            all.iter().enumerate().all(|(other_place, other)| {
                let beats = other.level < one.level
                    || (other.level == one.level
                        && (rank(other), other_place) < (rank(one), *place));
                // All that is set on a database applies.
                other.key != one.key || one.level == Level::Database || !beats
            })
        };
        let standing = all.iter().enumerate().filter(stands);
        let limits = standing.map(|(_, candidate)| candidate.limit);
        limits.filter(|limit| limit.max >= 0).collect()
    }

    /// What the server holds everyone to but superusers.
    fn the_servers_own(&self, login: Login) -> Vec<Limit> {
        let scope = |who, database| Scope {
            count: Count::Sessions,
            who,
            database,
            from: From::Anywhere,
        };
        let role = self.roles[login.role].connection_limit;
        let database = self.databases[login.database].connection_limit;
        let both = [
            (role, scope(Who::Role(login.role), None)),
            (database, scope(Who::Anyone, Some(login.database))),
        ];
        let limits = both.into_iter().filter(|(max, _)| *max >= 0);
        let limit = |(max, scope)| Limit {
            scope,
            max,
            on_excess: OnExcess::Refuse,
        };
        limits.map(limit).collect()
    }

    /// Every way to log in as this role.
    pub fn logins_of(&self, role: usize) -> impl Iterator<Item = Login> {
        (0..self.databases.len()).flat_map(move |database| {
            (0..ADDRESSES).map(move |address| Login {
                role,
                database,
                address,
            })
        })
    }

    /// Every login.
    pub fn logins(&self) -> impl Iterator<Item = Login> {
        (0..self.roles.len()).flat_map(|role| self.logins_of(role))
    }

    /// Whether a session of this role could end for another.
    pub fn replaces(&self, role: usize) -> bool {
        let replaces = |limit: &Limit| limit.on_excess != OnExcess::Refuse;
        self.logins_of(role)
            .any(|login| self.limits(login).iter().any(replaces))
    }

    /// What becomes of a login that nobody else's comes before, while nobody leaves.
    pub fn expected(&self, login: Login, sessions: &[Seen]) -> Expected {
        let limits = self.limits(login).into_iter();
        let full = limits.filter(|limit| self.is_full(limit, login, sessions));
        let full: Vec<Limit> = full.collect();
        let can_make_room = |limit: &Limit| {
            let needed = self.count(limit.scope, sessions) + 1 - limit.max;
            let may_end = |session: &&Seen| {
                let idle = session.idle && self.anyone_is_idle_enough;
                session.role == Some(login.role)
                    && self.covers(limit.scope, session)
                    && self.anyone_is_old_enough
                    && (idle || limit.on_excess == OnExcess::ReplaceOldest)
            };
            // All of an address end, or none.
            let stay = sessions
                .iter()
                .filter(|session| self.covers(limit.scope, session) && !may_end(session));
            let stay: Vec<Counted> = stay.map(|session| counted(limit.scope, session)).collect();
            let leaves = |session: &&Seen| !stay.contains(&counted(limit.scope, session));
            let leaving = sessions.iter().filter(may_end).filter(leaves);
            let leaving: Vec<Seen> = leaving.copied().collect();
            limit.on_excess != OnExcess::Refuse && self.count(limit.scope, &leaving) >= needed
        };
        match (full.first(), full.iter().find(|it| !can_make_room(it))) {
            (None, _) => Expected::In,
            (Some(_), Some(limit)) => Expected::Refused(*limit),
            (Some(limit), None) => Expected::Replaces(*limit),
        }
    }

    /// How many more such logins fit; None: any number.
    pub fn room(&self, login: Login, sessions: &[Seen]) -> Option<i32> {
        let limits = self.limits(login).into_iter();
        let room = limits.filter_map(|limit| {
            let full = self.is_full(&limit, login, sessions);
            match limit.scope.count {
                Count::Sessions => Some(limit.max - self.count(limit.scope, sessions)),
                // With the first of them the others are counted.
                Count::Roles | Count::Addresses => full.then_some(0),
            }
        });
        room.min().map(|room| room.max(0))
    }

    /// The JSON of a label.
    pub fn json(&self, label: &Label) -> String {
        let rules = label.rules.iter().map(|rule| {
            let mut json = json!({"max": rule.max, "per": rule.per.json()});
            let mut put = |name: &str, value: Value| json[name] = value;
            if rule.count != Count::Sessions {
                put("count", json!(rule.count.word()));
            }
            if let Some(database) = rule.database {
                put("database", json!(self.databases[database].name));
            }
            if let Some(network) = rule.network {
                put("network", json!(NETWORKS[network].0));
            }
            if rule.only_logged {
                put("enforcement", json!("log"));
            }
            if let Some(on_excess) = rule.on_excess {
                put("on_excess", json!(on_excess.word()));
            }
            if let Some(max_wait) = rule.max_wait {
                put("max_wait", json!(max_wait));
            }
            json
        });
        let mut json = Map::new();
        let rules: Vec<Value> = rules.collect();
        if !rules.is_empty() {
            json.insert("limits".into(), Value::Array(rules));
        }
        if let Some(on_excess) = label.on_excess {
            json.insert("on_excess".into(), json!(on_excess.word()));
        }
        if let Some(max_wait) = label.max_wait {
            json.insert("max_wait".into(), json!(max_wait));
        }
        if label.exempt {
            json.insert("exempt".into(), json!(true));
        }
        Value::Object(json).to_string()
    }

    /// For whoever reads a violation.
    pub fn say(&self, login: Login) -> String {
        let (role, database) = (&self.roles[login.role], &self.databases[login.database]);
        let address = match login.address {
            0 => "the socket".to_string(),
            number => format!("127.0.0.{number}"),
        };
        format!("{} to {} over {address}", role.name, database.name)
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for role in &self.roles {
            let groups: Vec<&str> = role
                .groups
                .iter()
                .map(|group| self.groups[*group].0.as_str())
                .collect();
            let (limit, label) = (role.connection_limit, self.json(&role.label));
            writeln!(f, "  role {}: {limit} {label} in {groups:?}", role.name)?;
        }
        for (name, label) in &self.groups {
            writeln!(f, "  group {name}: {}", self.json(label))?;
        }
        for database in &self.databases {
            let (limit, label) = (database.connection_limit, self.json(&database.label));
            writeln!(f, "  database {}: {limit} {label}", database.name)?;
        }
        write!(
            f,
            "  cluster_limits {}, max_sessions_per_role {}, on_excess {}, enforcement {}, sweep {}, old enough: {}, idle enough: {}",
            self.json(&self.cluster_limits),
            self.max_sessions_per_role,
            self.on_excess.word(),
            self.enforcement,
            self.sweep,
            self.anyone_is_old_enough,
            self.anyone_is_idle_enough,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::changes::Change;
    use super::*;

    const LOGIN: Login = Login {
        role: 3,
        database: 1,
        address: 2,
    };

    fn label(rules: &[Rule]) -> Label {
        Label {
            rules: rules.to_vec(),
            ..Label::default()
        }
    }

    fn maxima(changes: &[Change]) -> Vec<i32> {
        let (mut world, _) = World::begin();
        changes.iter().for_each(|change| world.apply(change));
        world.limits(LOGIN).iter().map(|limit| limit.max).collect()
    }

    #[test]
    fn the_nearest_applies() {
        let default = Change::MaxSessionsPerRole(5);
        let group = Change::GroupLabel(
            0,
            label(&[Rule::bare(4, Per::Role), Rule::bare(9, Per::Group)]),
        );
        let own = Change::RoleLimit(3, 7);
        let lifted = Change::RoleLabel(3, label(&[Rule::bare(-1, Per::Role)]));
        assert_eq!(maxima(&[]), [] as [i32; 0]);
        assert_eq!(maxima(std::slice::from_ref(&default)), [5]);
        assert_eq!(maxima(&[default.clone(), group.clone()]), [4, 9]);
        assert_eq!(maxima(&[default.clone(), group.clone(), own]), [9, 7]);
        assert_eq!(maxima(&[default, group, lifted]), [9]);
    }

    #[test]
    fn a_login_comes_to_what_there_is_room_for() {
        let (mut world, _) = World::begin();
        let session = |pid, role| Seen {
            pid,
            role: Some(role),
            database: 1,
            address: 2,
            idle: true,
        };
        let sessions = [session(1, 3), session(2, 4)];
        assert_eq!(world.expected(LOGIN, &sessions), Expected::In);
        world.apply(&Change::DatabaseLimit(1, 2));
        let limit = world.limits(LOGIN)[0];
        assert_eq!(world.expected(LOGIN, &sessions), Expected::Refused(limit));
        world.apply(&Change::OnExcess(OnExcess::ReplaceIdle));
        world.apply(&Change::OldEnough(true));
        world.apply(&Change::IdleEnough(true));
        let limit = world.limits(LOGIN)[0];
        assert_eq!(world.expected(LOGIN, &sessions), Expected::Replaces(limit));
        assert_eq!(
            world.expected(LOGIN, &sessions[1..]),
            Expected::In,
            "room for one"
        );
        let others = [session(1, 5), session(2, 4)];
        assert_eq!(
            world.expected(LOGIN, &others),
            Expected::Refused(limit),
            "nobody of its role"
        );
    }
}
