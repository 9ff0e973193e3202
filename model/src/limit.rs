//! What a limit is: which sessions it counts, how many it allows, where it is set, and how a message words it.

use crate::network::Network;
use crate::per::Per;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a limit can be set on: a role or a database, by OID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Object {
    Role(u32),
    Database(u32),
}

/// Where a limit is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Source {
    /// The `CONNECTION LIMIT` of a role or a database.
    ConnectionLimit(Object),
    /// The security label on a role, a group or a database.
    Label(Object),
    /// The setting `session_limit.cluster_limits`.
    ClusterLimits,
    /// The setting `session_limit.max_sessions_per_role`.
    MaxSessionsPerRole,
}

/// What a limit counts, as a label names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Count {
    #[default]
    Sessions,
    /// How many different roles have sessions.
    Roles,
    /// From how many different client addresses there are sessions.
    Addresses,
}

/// On which servers a limit counts sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Across {
    /// On this one.
    #[default]
    Server,
    /// On all that count together.
    Servers,
}

/// Which sessions a limit counts as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Unit {
    /// Each is one.
    Session,
    /// All of a role.
    Role,
    /// All from a client address, or over a Unix-domain socket.
    Address {
        /// So many leading bits of an IPv6 address are one address.
        ipv6_prefix_length: u8,
    },
}

/// What happens to a login over a limit after it has waited. In order of harshness: where groups differ, the least
/// applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExcess {
    /// The login is refused.
    Refuse,
    /// The role's longest idle session ends, if it has been idle for long enough.
    ReplaceIdle,
    /// The role's oldest session ends.
    ReplaceOldest,
}

/// Whose sessions a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Who {
    Anyone,
    /// The role with this OID.
    Role(u32),
    /// The members of the group with this OID.
    MembersOf(u32),
}

/// The sessions that one count of a limit covers: those that all three fields match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scope {
    pub who: Who,
    /// Sessions in the database with this OID; None: in any.
    pub database: Option<u32>,
    /// Sessions from these addresses, so none over a Unix-domain socket; None: from anywhere.
    pub network: Option<Network>,
}

/// A limit as it applies to one login: at most `max` units of sessions in `scope`, the login's own among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    pub scope: Scope,
    pub per: Per,
    pub unit: Unit,
    pub across: Across,
    pub max: u32,
    pub source: Source,
    pub on_excess: OnExcess,
    pub max_wait: Duration,
    /// The number of its place, of a limit across servers (see [`crate::servers::place`]). None: it is of this server alone.
    #[serde(skip)]
    pub place: Option<u32>,
    /// False if `enforcement` is `log`: the limit is only tried out. A login over it is logged and admitted.
    pub enforced: bool,
}

/// What a waiter waits for: room for it under a limit of `max`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Condition {
    pub scope: Scope,
    pub unit: Unit,
    pub max: u32,
    pub place: Option<u32>,
}

impl Condition {
    /// An entry of the queue's memory that no waiter uses.
    pub const FREE: Condition = Condition {
        scope: Scope {
            who: Who::Anyone,
            database: None,
            network: None,
        },
        unit: Unit::Session,
        max: 0,
        place: None,
    };
}

/// Finds the name of a role or database. A name is bytes: its encoding is not known.
pub type Names<'a> = &'a dyn Fn(Object) -> Vec<u8>;

impl Source {
    /// What the limit is set on; None for a setting.
    pub fn object(self) -> Option<Object> {
        match self {
            Source::ConnectionLimit(object) | Source::Label(object) => Some(object),
            Source::ClusterLimits | Source::MaxSessionsPerRole => None,
        }
    }

    /// The database that the limit is set on, by OID; None if it is set elsewhere.
    pub fn database(self) -> Option<u32> {
        match self.object() {
            Some(Object::Database(oid)) => Some(oid),
            _ => None,
        }
    }

    /// Where the limit is set, as the views and messages say it: `label on role alice`.
    pub fn words(self, names: Names) -> Vec<u8> {
        let (setting, object) = match self {
            Source::ClusterLimits => return b"session_limit.cluster_limits".to_vec(),
            Source::MaxSessionsPerRole => return b"session_limit.max_sessions_per_role".to_vec(),
            Source::ConnectionLimit(object) => ("CONNECTION LIMIT of", object),
            Source::Label(object) => ("label on", object),
        };
        [
            format!("{setting} {} ", object.kind()).into_bytes(),
            names(object),
        ]
        .concat()
    }
}

impl Object {
    pub fn kind(self) -> &'static str {
        match self {
            Object::Role(_) => "role",
            Object::Database(_) => "database",
        }
    }
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

impl Across {
    pub fn word(self) -> &'static str {
        match self {
            Across::Server => "server",
            Across::Servers => "servers",
        }
    }
}

impl Unit {
    pub fn new(count: Count, ipv6_prefix_length: u8) -> Unit {
        match count {
            Count::Sessions => Unit::Session,
            Count::Roles => Unit::Role,
            Count::Addresses => Unit::Address { ipv6_prefix_length },
        }
    }

    pub fn count(self) -> Count {
        match self {
            Unit::Session => Count::Sessions,
            Unit::Role => Count::Roles,
            Unit::Address { .. } => Count::Addresses,
        }
    }
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

impl Scope {
    /// The OID of the role or group whose sessions are covered.
    pub fn role(self) -> Option<u32> {
        match self.who {
            Who::Anyone => None,
            Who::Role(oid) | Who::MembersOf(oid) => Some(oid),
        }
    }
}

impl Limit {
    /// What a login waits for if this limit is full.
    pub fn condition(&self) -> Condition {
        Condition {
            scope: self.scope,
            unit: self.unit,
            max: self.max,
            place: self.place,
        }
    }

    /// `on`, or `log` for a limit that is only tried out.
    pub fn enforcement(&self) -> &'static str {
        if self.enforced { "on" } else { "log" }
    }

    /// Whether sessions may end to make room under it.
    pub fn replaces(&self) -> bool {
        self.on_excess != OnExcess::Refuse
    }

    /// Which sessions the limit covers, such as `alice`, `alice in app`, `team from 10.0.0.0/8`; None for the whole
    /// cluster.
    pub fn subject(&self, names: Names) -> Option<Vec<u8>> {
        let role = self.scope.role().map(|oid| names(Object::Role(oid)));
        let database = self.scope.database.map(|oid| names(Object::Database(oid)));
        let from = self
            .scope
            .network
            .map(|network| self.from(network).into_bytes());
        let parts = [("", role), (" in ", database), (" from ", from)];
        parts
            .into_iter()
            .fold(None, |subject, (link, part)| match (subject, part) {
                (Some(subject), Some(part)) => Some([subject, link.into(), part].concat()),
                (subject, part) => subject.or(part),
            })
    }

    /// The message of a refusal. For a plain limit on a role or a database it is the server's own.
    pub fn message(&self, names: Names) -> Vec<u8> {
        let quoted = |object| [b"\"", names(object).as_slice(), b"\""].concat();
        let mut message = match self.unit {
            Unit::Session => b"too many connections".to_vec(),
            Unit::Role => b"too many users".to_vec(),
            Unit::Address { .. } => b"too many client addresses".to_vec(),
        };
        let mut say = |words: &str, name: Vec<u8>| {
            message.extend_from_slice(words.as_bytes());
            message.extend(name);
        };
        match self.scope.who {
            Who::Anyone => {}
            Who::Role(oid) => say(" for role ", quoted(Object::Role(oid))),
            Who::MembersOf(oid) => say(" for members of role ", quoted(Object::Role(oid))),
        }
        if let Some(oid) = self.scope.database {
            let link = if self.scope.role().is_some() {
                "in"
            } else {
                "for"
            };
            say(&format!(" {link} database "), quoted(Object::Database(oid)));
        }
        match self.scope.network {
            Some(network) => {
                let link = match self.per.has_address() {
                    true => " from address ",
                    false => " from network ",
                };
                say(link, self.from(network).into_bytes());
            }
            None if self.per == Per::Cluster => say(" for the cluster", Vec::new()),
            None => {}
        }
        message
    }

    fn from(&self, network: Network) -> String {
        match self.per.has_address() {
            true => network.client(),
            false => network.to_string(),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A limit for tests in which only scope and `max` matter.
    pub fn at_most(max: u32, scope: Scope) -> Limit {
        Limit {
            scope,
            per: Per::Role,
            unit: Unit::Session,
            across: Across::Server,
            max,
            source: Source::MaxSessionsPerRole,
            on_excess: OnExcess::Refuse,
            max_wait: Duration::from_secs(1),
            place: None,
            enforced: true,
        }
    }

    pub fn of_role(oid: u32) -> Scope {
        Scope {
            who: Who::Role(oid),
            database: None,
            network: None,
        }
    }

    pub fn in_database(oid: u32) -> Scope {
        Scope {
            who: Who::Anyone,
            database: Some(oid),
            network: None,
        }
    }

    fn name(object: Object) -> Vec<u8> {
        match object {
            Object::Role(1) => b"alice".to_vec(),
            Object::Role(_) => b"team".to_vec(),
            Object::Database(_) => b"app".to_vec(),
        }
    }

    fn said(per: Per, scope: Scope) -> (String, String) {
        let limit = Limit {
            per,
            ..at_most(1, scope)
        };
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (
            text(limit.message(&name)),
            text(limit.subject(&name).unwrap_or_default()),
        )
    }

    #[test]
    fn message_and_subject_name_what_the_limit_covers() {
        let scope = |who, database, network: Option<&str>| Scope {
            who,
            database,
            network: network.map(|text| text.parse().expect(text)),
        };
        let (alice, team) = (Who::Role(1), Who::MembersOf(2));
        let (net, here) = (Some("10.0.0.0/8"), Some("10.0.0.5"));
        let table = [
            (
                Per::Role,
                scope(alice, None, None),
                r#"for role "alice""#,
                "alice",
            ),
            (
                Per::Role,
                scope(alice, Some(5), None),
                r#"for role "alice" in database "app""#,
                "alice in app",
            ),
            (
                Per::Role,
                scope(alice, None, net),
                r#"for role "alice" from network 10.0.0.0/8"#,
                "alice from 10.0.0.0/8",
            ),
            (
                Per::Address,
                scope(alice, None, here),
                r#"for role "alice" from address 10.0.0.5"#,
                "alice from 10.0.0.5",
            ),
            (
                Per::Group,
                scope(team, None, None),
                r#"for members of role "team""#,
                "team",
            ),
            (
                Per::Group,
                scope(team, Some(5), net),
                r#"for members of role "team" in database "app" from network 10.0.0.0/8"#,
                "team in app from 10.0.0.0/8",
            ),
            (
                Per::Database,
                scope(Who::Anyone, Some(5), None),
                r#"for database "app""#,
                "app",
            ),
            (
                Per::Address,
                scope(Who::Anyone, Some(5), here),
                r#"for database "app" from address 10.0.0.5"#,
                "app from 10.0.0.5",
            ),
            (
                Per::Address,
                scope(Who::Anyone, None, here),
                "from address 10.0.0.5",
                "10.0.0.5",
            ),
            (
                Per::RoleDatabaseAddress,
                scope(alice, Some(5), here),
                r#"for role "alice" in database "app" from address 10.0.0.5"#,
                "alice in app from 10.0.0.5",
            ),
            (
                Per::Cluster,
                scope(Who::Anyone, None, net),
                "from network 10.0.0.0/8",
                "10.0.0.0/8",
            ),
            (
                Per::Cluster,
                scope(Who::Anyone, None, None),
                "for the cluster",
                "",
            ),
        ];
        for (per, scope, message, subject) in table {
            let expected = (
                format!("too many connections {message}"),
                subject.to_string(),
            );
            assert_eq!(said(per, scope), expected);
        }
    }

    #[test]
    fn a_message_says_what_is_too_many() {
        let table = [
            (
                Count::Sessions,
                Who::Role(1),
                r#"connections for role "alice""#,
            ),
            (
                Count::Addresses,
                Who::Role(1),
                r#"client addresses for role "alice""#,
            ),
            (
                Count::Roles,
                Who::MembersOf(2),
                r#"users for members of role "team""#,
            ),
            (Count::Roles, Who::Anyone, "users for the cluster"),
        ];
        for (count, who, expected) in table {
            let scope = Scope {
                who,
                database: None,
                network: None,
            };
            let limit = Limit {
                per: match who {
                    Who::Anyone => Per::Cluster,
                    Who::Role(_) | Who::MembersOf(_) => Per::Role,
                },
                unit: Unit::new(count, 128),
                ..at_most(1, scope)
            };
            let message = String::from_utf8(limit.message(&name)).expect("UTF-8");
            assert_eq!(message.strip_prefix("too many "), Some(expected));
        }
    }

    #[test]
    fn each_source_has_its_words() {
        let table = [
            (
                Source::ConnectionLimit(Object::Role(1)),
                "CONNECTION LIMIT of role alice",
            ),
            (
                Source::ConnectionLimit(Object::Database(1)),
                "CONNECTION LIMIT of database app",
            ),
            (Source::Label(Object::Role(2)), "label on role team"),
            (Source::Label(Object::Database(1)), "label on database app"),
            (Source::ClusterLimits, "session_limit.cluster_limits"),
            (
                Source::MaxSessionsPerRole,
                "session_limit.max_sessions_per_role",
            ),
        ];
        for (source, words) in table {
            assert_eq!(source.words(&name), words.as_bytes());
        }
    }
}
