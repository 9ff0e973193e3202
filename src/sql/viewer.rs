//! Whose rows a query shows: of other roles no more than `pg_stat_activity` does. That shows everyone which sessions there
//! are, of which role and in which database, and hides from where they come, and who waits to log in.

use model::limit::{Limit, Scope, Unit, Who};
use pgrx::pg_sys;

/// A text in the database's encoding, which is stored as a `bytea` is.
pub type SqlText = Vec<u8>;

/// Whoever runs the query.
pub struct Viewer {
    role: pg_sys::Oid,
    sees_all: bool,
}

impl Viewer {
    pub fn current() -> Viewer {
        // SAFETY: in a transaction, in a backend with a database.
        unsafe {
            let role = pg_sys::GetUserId();
            let all_stats = pg_sys::Oid::from(pg_sys::ROLE_PG_READ_ALL_STATS);
            Viewer {
                role,
                sees_all: pg_sys::has_privs_of_role(role, all_stats),
            }
        }
    }

    /// Including rows that belong to no role.
    pub fn sees_all(&self) -> bool {
        self.sees_all
    }

    /// Whether the viewer may know how many the limit counts.
    pub fn may_count_sessions(&self, limit: &Limit) -> bool {
        let tells_from_where =
            limit.scope.network.is_some() || matches!(limit.unit, Unit::Address { .. });
        !tells_from_where || self.may_count_waiters(&limit.scope)
    }

    /// Whether the viewer may know how many logins wait in this scope.
    pub fn may_count_waiters(&self, scope: &Scope) -> bool {
        self.sees_all || matches!(scope.who, Who::Role(role) if self.may_see(role))
    }

    pub fn may_see(&self, role: u32) -> bool {
        self.sees_all || self.may_act_as(role)
    }

    /// Whether the viewer has the privileges of the role.
    pub fn may_act_as(&self, role: u32) -> bool {
        // SAFETY: in a transaction, in a backend with a database.
        unsafe { pg_sys::has_privs_of_role(self.role, role.into()) }
    }
}
