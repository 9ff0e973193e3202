//! Which limits apply to a login. Pure: given what was read of its role and database, nothing is
//! looked up here.

/// The sessions that one limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of the role with this OID.
    Role(u32),
    /// Those in the database with this OID.
    Database(u32),
}

/// Where a limit is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `CONNECTION LIMIT` of the scope's role or database.
    ConnectionLimit,
    /// The setting `session_limit.max_sessions_per_role`.
    MaxSessionsPerRole,
}

/// At most `max` sessions in `scope`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub scope: Scope,
    pub max: u32,
    pub source: Source,
}

impl Limit {
    /// Where the limit is set, in words; `name` is that of its scope's role or database.
    pub fn source_name(&self, name: &[u8]) -> Vec<u8> {
        let setting = match (self.source, self.scope) {
            (Source::MaxSessionsPerRole, _) => {
                return b"session_limit.max_sessions_per_role".to_vec();
            }
            (Source::ConnectionLimit, Scope::Role(_)) => b"CONNECTION LIMIT of role ".as_slice(),
            (Source::ConnectionLimit, Scope::Database(_)) => b"CONNECTION LIMIT of database ",
        };
        [setting, name].concat()
    }
}

/// Every limit that one login must meet: its role's and its database's.
pub type Limits = [Option<Limit>; 2];

/// No limit at all: what an exempt login must meet.
pub const NONE: Limits = [None; 2];

/// The limits of a login of `role` to `database`, each an OID with its `CONNECTION LIMIT`;
/// `default` is the setting `max_sessions_per_role`. A negative number is no limit. A role's own
/// limit replaces the default, whichever is larger.
pub fn applicable(role: (u32, i32), database: Option<(u32, i32)>, default: i32) -> Limits {
    let of_role = Scope::Role(role.0);
    [
        limit(of_role, role.1, Source::ConnectionLimit)
            .or_else(|| limit(of_role, default, Source::MaxSessionsPerRole)),
        database.and_then(|(oid, max)| limit(Scope::Database(oid), max, Source::ConnectionLimit)),
    ]
}

fn limit(scope: Scope, max: i32, source: Source) -> Option<Limit> {
    let max = u32::try_from(max).ok()?;
    Some(Limit { scope, max, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(scope: Scope, max: u32, source: Source) -> Option<Limit> {
        Some(Limit { scope, max, source })
    }

    #[test]
    fn a_role_has_its_own_limit_else_the_default_else_none() {
        let own = of(Scope::Role(7), 3, Source::ConnectionLimit);
        assert_eq!(applicable((7, 3), None, -1), [own, None]);
        assert_eq!(
            applicable((7, 3), None, 1),
            [own, None],
            "the nearest wins, not the smallest"
        );
        let default = of(Scope::Role(7), 1, Source::MaxSessionsPerRole);
        assert_eq!(applicable((7, -1), None, 1), [default, None]);
        assert_eq!(applicable((7, -1), None, -1), NONE);
    }

    #[test]
    fn zero_is_a_limit() {
        assert_eq!(
            applicable((7, 0), None, 5),
            [of(Scope::Role(7), 0, Source::ConnectionLimit), None]
        );
    }

    #[test]
    fn the_databases_limit_applies_beside_the_roles() {
        let database = of(Scope::Database(9), 100, Source::ConnectionLimit);
        assert_eq!(applicable((7, -1), Some((9, 100)), -1), [None, database]);
        let own = of(Scope::Role(7), 2, Source::ConnectionLimit);
        assert_eq!(applicable((7, 2), Some((9, 100)), 1), [own, database]);
        assert_eq!(applicable((7, 2), Some((9, -1)), 1), [own, None]);
    }
}
