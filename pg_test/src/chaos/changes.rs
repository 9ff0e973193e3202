//! What is changed: each change as SQL, and what it makes of the [`World`].

use super::model::{Count, Database, Label, NETWORKS, OnExcess, Per, Role, Rule, World};
use super::random::{one_in, one_of};
use fastrand::Rng;

/// Clients log in as one of these.
pub const ROLES: usize = 10;
/// Nobody changes anything about the last three: one is exempt, one is a superuser, one is the bench's.
pub const EXEMPT: usize = 7;
pub const BENCH: usize = 9;
const GROUPS: usize = 3;
/// The first is `postgres`, and nothing is set on it.
const DATABASES: usize = 4;

const OF_A_ROLE: [Per; 4] = [Per::Role, Per::Address, Per::RoleDatabase, Per::RoleAddress];
const OF_A_DATABASE: [Per; 6] = [
    Per::Database,
    Per::Role,
    Per::Address,
    Per::RoleDatabase,
    Per::RoleAddress,
    Per::DatabaseAddress,
];
const OF_THE_CLUSTER: [Per; 7] = [
    Per::Role,
    Per::Address,
    Per::Database,
    Per::Cluster,
    Per::RoleDatabase,
    Per::RoleAddress,
    Per::DatabaseAddress,
];

#[derive(Clone, Debug)]
pub enum Change {
    RoleLimit(usize, i32),
    DatabaseLimit(usize, i32),
    RoleLabel(usize, Label),
    GroupLabel(usize, Label),
    DatabaseLabel(usize, Label),
    Grant {
        role: usize,
        group: usize,
    },
    Revoke {
        role: usize,
        group: usize,
    },
    /// Dropped and made anew, whether it has sessions or not.
    Anew(usize),
    RoleRule(usize, Rule),
    DatabaseRule(usize, Rule),
    NoRoleRule(usize, Rule),
    NoDatabaseRule(usize, Rule),
    /// In a transaction that is rolled back.
    Undone(Box<Change>),
    ClusterLimits(Label),
    MaxSessionsPerRole(i32),
    OnExcess(OnExcess),
    OldEnough(bool),
    IdleEnough(bool),
    Enforcement(&'static str),
    Sweep(&'static str),
    MaxWait(i32),
}

impl World {
    /// What the run begins with, and the statements that make it.
    pub fn begin() -> (World, Vec<String>) {
        let role = |number| Role {
            name: match number {
                EXEMPT => "vip".to_string(),
                8 => "boss".to_string(),
                BENCH => "postgres".to_string(),
                _ => format!("r{number}"),
            },
            superuser: number > EXEMPT,
            connection_limit: -1,
            label: Label {
                exempt: number == EXEMPT,
                ..Label::default()
            },
            groups: (0..GROUPS)
                .filter(|group| number < EXEMPT && number % GROUPS == *group)
                .collect(),
        };
        let database = |number| Database {
            name: match number {
                0 => "postgres".to_string(),
                _ => format!("d{number}"),
            },
            connection_limit: -1,
            label: Label::default(),
        };
        let world = World {
            roles: (0..ROLES).map(role).collect(),
            groups: (0..GROUPS)
                .map(|number| (format!("g{number}"), Label::default()))
                .collect(),
            databases: (0..DATABASES).map(database).collect(),
            cluster_limits: Label::default(),
            max_sessions_per_role: -1,
            on_excess: OnExcess::Refuse,
            enforcement: "on",
            sweep: "log",
            anyone_is_old_enough: false,
            anyone_is_idle_enough: false,
        };
        let mut sql = vec!["CREATE EXTENSION session_limit".to_string()];
        for role in &world.roles[..BENCH] {
            let superuser = if role.superuser { " SUPERUSER" } else { "" };
            sql.push(format!("CREATE ROLE {} LOGIN{superuser}", role.name));
        }
        sql.extend((0..GROUPS).map(|group| format!("CREATE ROLE g{group}")));
        sql.push("GRANT g0 TO g1".to_string());
        for role in &world.roles {
            let grants = role.groups.iter();
            sql.extend(grants.map(|group| format!("GRANT g{group} TO {}", role.name)));
        }
        sql.extend((1..DATABASES).map(|database| format!("CREATE DATABASE d{database}")));
        let vip = world.json(&world.roles[EXEMPT].label);
        sql.push(format!(
            "SECURITY LABEL FOR session_limit ON ROLE vip IS '{vip}'"
        ));
        (world, sql)
    }

    pub fn apply(&mut self, change: &Change) {
        match change.clone() {
            Change::RoleLimit(role, max) => self.roles[role].connection_limit = max,
            Change::DatabaseLimit(database, max) => self.databases[database].connection_limit = max,
            Change::RoleLabel(role, label) => self.roles[role].label = label,
            Change::GroupLabel(group, label) => self.groups[group].1 = label,
            Change::DatabaseLabel(database, label) => self.databases[database].label = label,
            Change::Grant { role, group } => {
                self.apply(&Change::Revoke { role, group });
                self.roles[role].groups.push(group);
            }
            Change::Revoke { role, group } => self.roles[role].groups.retain(|it| *it != group),
            Change::Anew(role) => {
                let role = &mut self.roles[role];
                role.connection_limit = -1;
                role.label = Label::default();
                role.groups.clear();
            }
            Change::RoleRule(role, rule) => self.roles[role].label.set(rule),
            Change::DatabaseRule(database, rule) => self.databases[database].label.set(rule),
            Change::NoRoleRule(role, rule) => self.roles[role].label.clear(&rule),
            Change::NoDatabaseRule(database, rule) => self.databases[database].label.clear(&rule),
            Change::Undone(_) | Change::MaxWait(_) => {}
            Change::ClusterLimits(label) => self.cluster_limits = label,
            Change::MaxSessionsPerRole(max) => self.max_sessions_per_role = max,
            Change::OnExcess(on_excess) => self.on_excess = on_excess,
            Change::OldEnough(enough) => self.anyone_is_old_enough = enough,
            Change::IdleEnough(enough) => self.anyone_is_idle_enough = enough,
            Change::Enforcement(enforcement) => self.enforcement = enforcement,
            Change::Sweep(sweep) => self.sweep = sweep,
        }
    }
}

impl Label {
    fn place(&self, rule: &Rule) -> Option<usize> {
        let key = |rule: &Rule| (rule.per, rule.count, rule.database, rule.network);
        self.rules.iter().position(|other| key(other) == key(rule))
    }

    fn set(&mut self, rule: Rule) {
        match self.place(&rule) {
            Some(place) => self.rules[place] = rule,
            None => self.rules.push(rule),
        }
    }

    fn clear(&mut self, rule: &Rule) {
        self.place(rule).map(|place| self.rules.remove(place));
    }
}

impl Change {
    /// Whether it is made on each server for itself, and needs a reload.
    pub fn is_of_a_setting(&self) -> bool {
        self.setting(None).is_some()
    }

    /// The setting's name and value; without a world not the right one.
    fn setting(&self, world: Option<&World>) -> Option<(&'static str, String)> {
        let (name, value) = match self {
            Change::ClusterLimits(label) => (
                "cluster_limits",
                match world {
                    Some(world) if !label.rules.is_empty() => world.json(label),
                    _ => String::new(),
                },
            ),
            Change::MaxSessionsPerRole(max) => ("max_sessions_per_role", max.to_string()),
            Change::OnExcess(on_excess) => ("on_excess", on_excess.word().to_string()),
            Change::OldEnough(enough) => ("replace_min_age", age(*enough)),
            Change::IdleEnough(enough) => ("replace_idle_after", age(*enough)),
            Change::Enforcement(enforcement) => ("enforcement", enforcement.to_string()),
            Change::Sweep(sweep) => ("sweep", sweep.to_string()),
            Change::MaxWait(max_wait) => ("max_wait", max_wait.to_string()),
            _ => return None,
        };
        Some((name, value))
    }

    /// The statements that make it, in the world as it is before.
    pub fn sql(&self, world: &World) -> Vec<String> {
        if let Some((name, value)) = self.setting(Some(world)) {
            return vec![format!("ALTER SYSTEM SET session_limit.{name} = '{value}'")];
        }
        let role = |role: &usize| world.roles[*role].name.clone();
        let group = |group: &usize| world.groups[*group].0.clone();
        let database = |database: &usize| world.databases[*database].name.clone();
        let label = |kind, name: String, label: &Label| {
            let text = match *label == Label::default() {
                true => "NULL".to_string(),
                false => format!("'{}'", world.json(label)),
            };
            format!("SECURITY LABEL FOR session_limit ON {kind} {name} IS {text}")
        };
        let statement = match self {
            Change::RoleLimit(it, max) => {
                format!("ALTER ROLE {} CONNECTION LIMIT {max}", role(it))
            }
            Change::DatabaseLimit(it, max) => {
                format!("ALTER DATABASE {} CONNECTION LIMIT {max}", database(it))
            }
            Change::RoleLabel(it, text) => label("ROLE", role(it), text),
            Change::GroupLabel(it, text) => label("ROLE", group(it), text),
            Change::DatabaseLabel(it, text) => label("DATABASE", database(it), text),
            Change::Grant {
                role: it,
                group: to,
            } => format!("GRANT {} TO {}", group(to), role(it)),
            Change::Revoke {
                role: it,
                group: to,
            } => {
                format!("REVOKE {} FROM {}", group(to), role(it))
            }
            Change::Anew(it) => {
                return vec![
                    format!("DROP ROLE {}", role(it)),
                    format!("CREATE ROLE {} LOGIN", role(it)),
                ];
            }
            Change::RoleRule(it, rule) => {
                let of = format!("role => '{}'", role(it));
                let of_database = rule
                    .database
                    .map(|it| format!(", database => '{}'", database(&it)));
                set_limit(&(of + &of_database.unwrap_or_default()), rule)
            }
            Change::DatabaseRule(it, rule) => {
                set_limit(&format!("database => '{}'", database(it)), rule)
            }
            Change::NoRoleRule(it, rule) => {
                let of = format!("role => '{}'", role(it));
                let of_database = rule
                    .database
                    .map(|it| format!(", database => '{}'", database(&it)));
                clear_limit(&(of + &of_database.unwrap_or_default()), rule)
            }
            Change::NoDatabaseRule(it, rule) => {
                clear_limit(&format!("database => '{}'", database(it)), rule)
            }
            Change::Undone(change) => {
                let mut all = vec!["BEGIN".to_string()];
                all.extend(change.sql(world));
                all.push("ROLLBACK".to_string());
                return all;
            }
            _ => return Vec::new(),
        };
        vec![statement]
    }

    /// Something to change in the catalogs.
    pub fn of_catalogs(random: &mut Rng, world: &World) -> Change {
        let role = random.usize(..EXEMPT);
        let database = 1 + random.usize(..DATABASES - 1);
        let group = random.usize(..GROUPS);
        match random.usize(..16) {
            0 | 1 => Change::RoleLimit(role, max(random, 1, 5)),
            2 | 3 => Change::DatabaseLimit(database, max(random, 3, 9)),
            4 | 5 => Change::RoleLabel(role, label(random, &OF_A_ROLE)),
            6 | 7 => {
                let mut pers = OF_A_ROLE.to_vec();
                pers.extend([Per::Group; 4]);
                Change::GroupLabel(group, label(random, &pers))
            }
            8 => Change::DatabaseLabel(database, label(random, &OF_A_DATABASE)),
            9 | 10 => match world.roles[role].groups.contains(&group) {
                true => Change::Revoke { role, group },
                false => Change::Grant { role, group },
            },
            11 if one_in(random, 2) => Change::Grant { role, group },
            11 => Change::Anew(role),
            12 => {
                let rule = world.roles[role].label.rules.first();
                match rule.filter(|_| one_in(random, 2)) {
                    Some(rule) => Change::NoRoleRule(role, rule.clone()),
                    None => Change::RoleRule(role, rule_of(random, &OF_A_ROLE)),
                }
            }
            13 => {
                let rule = world.databases[database].label.rules.first();
                match rule.filter(|_| one_in(random, 2)) {
                    Some(rule) => Change::NoDatabaseRule(database, rule.clone()),
                    None => {
                        let rule = Rule {
                            database: None,
                            ..rule_of(random, &OF_A_DATABASE)
                        };
                        Change::DatabaseRule(database, rule)
                    }
                }
            }
            14 => Change::Undone(Box::new(Change::RoleLimit(role, 0))),
            _ => Change::Undone(Box::new(Change::DatabaseLabel(
                database,
                label(random, &[Per::Database]),
            ))),
        }
    }

    /// A setting to change.
    pub fn of_settings(random: &mut Rng) -> Change {
        match random.usize(..9) {
            0 | 1 => Change::ClusterLimits(label(random, &OF_THE_CLUSTER)),
            2 => Change::MaxSessionsPerRole(max(random, 2, 5)),
            3 => Change::OnExcess(on_excess(random)),
            4 => Change::OldEnough(!one_in(random, 3)),
            5 => Change::IdleEnough(!one_in(random, 3)),
            6 => Change::Enforcement(one_of(random, &["off", "log", "on"])),
            7 => Change::Sweep(one_of(random, &["off", "log", "terminate"])),
            _ => Change::MaxWait(one_of(random, &[0, 10, 50, 100])),
        }
    }
}

fn age(anyone: bool) -> String {
    if anyone { "0" } else { "1h" }.to_string()
}

fn max(random: &mut Rng, low: i32, high: i32) -> i32 {
    match random.usize(..8) {
        0 => -1,
        1 => low - 1,
        _ => random.i32(low..=high),
    }
}

fn on_excess(random: &mut Rng) -> OnExcess {
    one_of(
        random,
        &[
            OnExcess::Refuse,
            OnExcess::ReplaceOldest,
            OnExcess::ReplaceIdle,
        ],
    )
}

fn rule_of(random: &mut Rng, pers: &[Per]) -> Rule {
    let per = one_of(random, pers);
    let count = match one_in(random, 4) {
        true => one_of(random, &counts(per)),
        false => Count::Sessions,
    };
    let max = match per {
        _ if count == Count::Addresses => max(random, 1, 3),
        _ if count == Count::Roles => max(random, 2, 6),
        Per::Role | Per::RoleDatabase | Per::RoleAddress => max(random, 1, 4),
        Per::Address | Per::DatabaseAddress => max(random, 1, 6),
        Per::Group => max(random, 3, 9),
        Per::Database => max(random, 4, 12),
        Per::Cluster => random.i32(20..=40),
    };
    // Where one label has several for one address, the smallest network counts: that is the suite's.
    let network = one_in(random, 4) && !per.names("address");
    Rule {
        max,
        per,
        count,
        database: one_in(random, 4).then(|| random.usize(..DATABASES)),
        network: network.then(|| random.usize(..NETWORKS.len())),
        only_logged: one_in(random, 8),
        on_excess: (count != Count::Roles && one_in(random, 5)).then(|| on_excess(random)),
        max_wait: one_in(random, 4).then(|| one_of(random, &[0, 20, 60, 120])),
    }
}

/// What a limit with this `per` can count.
fn counts(per: Per) -> Vec<Count> {
    match per {
        Per::Group | Per::Database | Per::Cluster => vec![Count::Roles, Count::Addresses],
        Per::Role | Per::RoleDatabase => vec![Count::Addresses],
        Per::DatabaseAddress => vec![Count::Roles],
        Per::Address | Per::RoleAddress => vec![Count::Sessions],
    }
}

fn label(random: &mut Rng, pers: &[Per]) -> Label {
    let mut label = Label::default();
    for _ in 0..random.usize(..4) {
        let mut rule = rule_of(random, pers);
        if pers.contains(&Per::Database) {
            // A database's own label is about no other, and the cluster's need none here.
            rule.database = None;
        }
        label.set(rule);
    }
    label.on_excess = one_in(random, 4).then(|| on_excess(random));
    label.max_wait = one_in(random, 4).then(|| one_of(random, &[0, 20, 60, 120]));
    label
}

fn set_limit(of: &str, rule: &Rule) -> String {
    let mut sql = format!("SELECT session_limit.set_limit(max => {}, {of}", rule.max);
    sql += &format!(
        ", per => '{}', count => '{}'",
        rule.per.word(),
        rule.count.word()
    );
    if let Some(network) = rule.network {
        sql += &format!(", network => '{}'", NETWORKS[network].0);
    }
    if let Some(on_excess) = rule.on_excess {
        sql += &format!(", on_excess => '{}'", on_excess.word());
    }
    if let Some(max_wait) = rule.max_wait {
        sql += &format!(", max_wait => '{max_wait} ms'");
    }
    if rule.only_logged {
        sql += ", enforcement => 'log'";
    }
    sql + ")"
}

fn clear_limit(of: &str, rule: &Rule) -> String {
    let mut sql = format!(
        "SELECT session_limit.clear_limit({of}, per => '{}', count => '{}'",
        rule.per.word(),
        rule.count.word()
    );
    if let Some(network) = rule.network {
        sql += &format!(", network => '{}'", NETWORKS[network].0);
    }
    sql + ")"
}
