//! How the limits are used now: by sessions, and by logins that wait for room.

#![expect(
    clippy::type_complexity,
    reason = "pgrx wants a row's columns named in the signature"
)]

use crate::lookup;
use crate::pg::backend::{now, process_at, tick};
use crate::pg::catalog::name_of;
use crate::pg::memory;
use crate::settings::{self, Enforcement};
use crate::shmem;
use crate::sql::in_force::{self, Question};
use crate::sql::in_memory;
use crate::sql::standings::{self, WaitingLogin, waiting_logins};
use crate::sql::subject::Subject;
use crate::sql::viewer::{SqlText, Viewer};
use model::limit::Limit;
use model::members::SessionFilter;
use model::session::Session;
use model::sweep::Applying;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use pgrx::{Inet, pg_sys};
use std::collections::BTreeSet;

/// One row for each count that a limit keeps, if it has a session or a waiter that the caller may see, or if it is in force
/// without one.
#[pg_extern(sql = false)]
pub fn current_usage_0_2() -> TableIterator<
    'static,
    (
        name!(source, SqlText),
        name!(per, &'static str),
        name!(subject, Option<SqlText>),
        name!(in_use, Option<i64>),
        name!(max, i64),
        name!(waiting, Option<i64>),
        name!(longest_wait_us, Option<i64>),
        name!(rolname, Option<SqlText>),
        name!(datname, Option<SqlText>),
        name!(client_addr, Option<Inet>),
        name!(network, Option<String>),
        name!(enforcement, &'static str),
        name!(count, &'static str),
        name!(across, &'static str),
        name!(elsewhere, Option<i64>),
    ),
> {
    let settings = settings::current();
    shmem::require();
    memory::require(0);
    let viewer = Viewer::current();
    let questions = in_force::questions(&viewer, &settings);
    let mut copy = shmem::snapshot();
    let table = copy.table();
    let sessions: Vec<Session> = table.sessions().map(|(_, session)| session).collect();
    let waiters: Vec<Session> = table.waiters().map(|waiter| waiter.session).collect();
    let asked = questions.iter().map(|question| &question.login);
    let logins = sessions.iter().chain(&waiters).chain(asked);
    let (applying, members) = lookup::applying(logins, &settings);
    let in_force = limits_in_force(&questions, &applying);
    let waiting = waiting_logins(&table, &applying, &members, &settings);
    let limits = applying.limits.iter().enumerate();
    let rows = limits.filter_map(|(index, limit)| {
        pgrx::check_for_interrupts!();
        let counted =
            SessionFilter::new(limit.scope, !settings.exempt_replication, &members).ok()?;
        let covered = |session: &&Session| counted.covers(session);
        let mut all = sessions.iter().chain(&waiters).filter(covered);
        if !in_force.contains(&index) && !all.any(|session| viewer.may_see(session.role)) {
            return None;
        }
        let in_use = viewer.may_count_sessions(limit);
        let sees_waiters = viewer.may_count_waiters(&limit.scope);
        let waits_here = |login: &&WaitingLogin| login.in_the_way.contains(&index);
        let waiting = waiting.iter().filter(waits_here);
        let subject = Subject::of(limit);
        let longest = waiting.clone().map(|login| waited_us(&login.session)).max();
        Some((
            limit.source.words(&name_of),
            limit.per.word(),
            subject.words,
            in_use.then(|| i64::from(table.count_units(counted, limit.unit))),
            i64::from(limit.max),
            sees_waiters.then(|| waiting.count() as i64),
            longest.filter(|_| sees_waiters),
            subject.role,
            subject.database,
            subject.address,
            subject.network,
            match settings.enforcement {
                Enforcement::Off => "off",
                _ => limit.enforcement(),
            },
            limit.unit.count().word(),
            limit.across.word(),
            standings::elsewhere(&table, limit).filter(|_| in_use),
        ))
    });
    in_memory(rows)
}

/// The limits that the questions are about, as indexes into [`Applying::limits`].
fn limits_in_force(questions: &[Question], applying: &Applying) -> BTreeSet<usize> {
    let mut in_force = BTreeSet::new();
    for question in questions {
        let held = applying.hold.get(&question.login.kind());
        for index in held.into_iter().flatten() {
            let limit = applying.limits.get(*index);
            if limit.is_some_and(|limit| question.is_about(limit)) {
                in_force.insert(*index);
            }
        }
    }
    in_force
}

/// For each waiter that the caller may see one row for each limit in its way; without a limit if none is any more.
#[pg_extern(sql = false)]
fn current_waiters() -> TableIterator<
    'static,
    (
        name!(pid, i32),
        name!(usesysid, pg_sys::Oid),
        name!(datid, pg_sys::Oid),
        name!(client_addr, Option<Inet>),
        name!(waitstart, Option<TimestampWithTimeZone>),
        name!(source, Option<SqlText>),
        name!(per, Option<&'static str>),
        name!(count, Option<&'static str>),
        name!(across, Option<&'static str>),
        name!(subject, Option<SqlText>),
    ),
> {
    let settings = settings::current();
    let mut copy = shmem::snapshot();
    let table = copy.table();
    let viewer = Viewer::current();
    let waiters: Vec<Session> = table.waiters().map(|waiter| waiter.session).collect();
    let (applying, members) = lookup::applying(waiters.iter(), &settings);
    let mut rows = Vec::new();
    for (login, pid) in with_processes(waiting_logins(&table, &applying, &members, &settings)) {
        let session = login.session;
        if !viewer.may_see(session.role) {
            continue;
        }
        let started = TimestampWithTimeZone::try_from(now() - waited_us(&session)).ok();
        let row = |limit: Option<&Limit>| {
            (
                pid as i32,
                session.role.into(),
                session.database.into(),
                session.address.map(|address| Inet(address.to_string())),
                started,
                limit.map(|limit| limit.source.words(&name_of)),
                limit.map(|limit| limit.per.word()),
                limit.map(|limit| limit.unit.count().word()),
                limit.map(|limit| limit.across.word()),
                limit.and_then(|limit| limit.subject(&name_of)),
            )
        };
        let limits = login.in_the_way.iter();
        let limits = limits.filter_map(|index| applying.limits.get(*index));
        memory::extend(&mut rows, limits.map(|limit| row(Some(limit))));
        if login.in_the_way.is_empty() {
            memory::extend(&mut rows, [row(None)]);
        }
    }
    in_memory(rows.into_iter())
}

/// How long ago the login arrived, in microseconds.
fn waited_us(session: &Session) -> i64 {
    tick().saturating_sub(session.arrival) as i64
}

/// The logins that wait still, each with its process ID. Only the server knows that. It is the login's if the login has been
/// at its slot before and after it was read: no two have the same arrival.
fn with_processes(waiting: Vec<WaitingLogin>) -> Vec<(WaitingLogin, u32)> {
    let waiting = waiting.into_iter().map(|login| {
        let pid = process_at(login.slot);
        (login, pid)
    });
    let mut found = Vec::new();
    memory::extend(&mut found, waiting);
    let mut copy = shmem::snapshot();
    let table = copy.table();
    found.retain(|(login, _)| {
        let waiter = table.waiter(login.slot);
        waiter.is_some_and(|waiter| waiter.session.arrival == login.session.arrival)
    });
    found
}
