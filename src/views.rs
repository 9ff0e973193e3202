//! The functions under the SQL views. They show of other roles' sessions no more than
//! `pg_stat_activity` does.

#![expect(
    clippy::type_complexity,
    reason = "pgrx wants a row's columns named in the signature"
)]

use crate::catalog::{Database, Role};
use crate::limit::{self, Limit, Scope, Source};
use crate::sessions::{Counted, Session};
use crate::settings::{self, ExemptSuperusers, Settings};
use crate::shmem;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use pgrx::{Inet, pg_sys};

/// One row a session that the caller may see.
#[pg_extern(sql = false)]
fn active_sessions() -> TableIterator<
    'static,
    (
        name!(pid, i32),
        name!(usesysid, pg_sys::Oid),
        name!(datid, pg_sys::Oid),
        name!(client_addr, Option<Inet>),
        name!(backend_start, Option<TimestampWithTimeZone>),
        name!(exempt, bool),
    ),
> {
    let mut sessions = shmem::snapshot().sessions;
    let viewer = Viewer::current();
    sessions.retain(|(_, session)| viewer.may_see(session.role));
    TableIterator::new(sessions.into_iter().map(|(pid, session)| {
        (
            pid as i32,
            session.role.into(),
            session.database.into(),
            session.address.map(|address| Inet(address.to_string())),
            TimestampWithTimeZone::try_from(session.started).ok(),
            session.exempt,
        )
    }))
}

/// One row for each count that a limit keeps, of those with a session or a waiter.
#[pg_extern(sql = false)]
fn current_usage() -> TableIterator<
    'static,
    (
        name!(source, &'static str),
        name!(per, &'static str),
        name!(subject, pg_sys::Oid),
        name!(in_use, i64),
        name!(max, i64),
        name!(waiting, i64),
    ),
> {
    let settings = settings::current();
    let shmem::Snapshot { sessions, waiters } = shmem::snapshot();
    let sessions: Vec<Session> = sessions.into_iter().map(|(_, session)| session).collect();

    let viewer = Viewer::current();
    let mut limits: Vec<Limit> = Vec::new();
    let all = sessions.iter().chain(&waiters);
    for limit in all.flat_map(|session| limits_of(session, &settings)) {
        if !limits.contains(&limit) {
            limits.push(limit);
        }
    }
    let rows = limits.into_iter().filter_map(move |limit| {
        let counted = Counted {
            scope: limit.scope,
            walsenders: !settings.exempt_replication,
        };
        let covered = |session: &&Session| counted.covers(session);
        let mut own = sessions.iter().chain(&waiters).filter(covered);
        if !own.any(|session| viewer.may_see(session.role)) {
            return None;
        }
        let (per, subject) = match limit.scope {
            Scope::Role(oid) => ("role", oid),
            Scope::Database(oid) => ("database", oid),
        };
        let source = match limit.source {
            Source::ConnectionLimit => "CONNECTION LIMIT",
            Source::MaxSessionsPerRole => "session_limit.max_sessions_per_role",
        };
        let in_use = sessions.iter().filter(covered).count() as i64;
        let waiting = waiters.iter().filter(covered).count() as i64;
        Some((
            source,
            per,
            subject.into(),
            in_use,
            i64::from(limit.max),
            waiting,
        ))
    });
    TableIterator::new(rows.collect::<Vec<_>>())
}

/// The limits that count such a session now. A role or database that was dropped has none of its own.
/// A superuser's role has none where superusers are exempt.
fn limits_of(session: &Session, settings: &Settings) -> Vec<Limit> {
    let role = Role::by_oid(session.role);
    let exempt = settings.exempt_superusers == ExemptSuperusers::On;
    let exempt = exempt && role.as_ref().is_some_and(|role| role.superuser);
    let role = role.map_or(-1, |role| role.connection_limit);
    let database = Database::by_oid(session.database);
    let database = database.map(|database| (database.oid, database.connection_limit));
    let limits = limit::applicable(
        (session.role, role),
        database,
        settings.max_sessions_per_role,
    );
    let limits = limits.into_iter().flatten();
    limits
        .filter(|limit| !exempt || limit.scope != Scope::Role(session.role))
        .collect()
}

/// Whoever runs the query.
struct Viewer {
    role: pg_sys::Oid,
    sees_all: bool,
}

impl Viewer {
    fn current() -> Viewer {
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

    fn may_see(&self, role: u32) -> bool {
        // SAFETY: as above.
        self.sees_all || unsafe { pg_sys::has_privs_of_role(self.role, role.into()) }
    }
}
