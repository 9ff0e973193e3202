//! How the limits are used now: by sessions, and by logins that wait for room.

#![expect(
    clippy::type_complexity,
    reason = "pgrx wants a row's columns named in the signature"
)]

use crate::lookup;
use crate::pg::backend::{now, process_at, tick};
use crate::pg::catalog::name_of;
use crate::pg::memory;
use crate::settings;
use crate::shmem;
use crate::sql::in_memory;
use crate::sql::standings::{WaitingLogin, waiting_logins};
use crate::sql::viewer::{SqlText, Viewer};
use model::limit::{Limit, Object};
use model::members::SessionFilter;
use model::session::Session;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use pgrx::{Inet, pg_sys};

/// One row for each count that a limit keeps, if it has a session or a waiter that the caller may see.
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
        name!(count, &'static str),
    ),
> {
    let settings = settings::current();
    let mut copy = shmem::snapshot();
    let table = copy.table();
    let viewer = Viewer::current();
    let sessions: Vec<Session> = table.sessions().map(|(_, session)| session).collect();
    let waiters: Vec<Session> = table.waiters().map(|waiter| waiter.session).collect();
    let (applying, members) = lookup::applying(sessions.iter().chain(&waiters), &settings);
    let waiting = waiting_logins(&table, &applying, &members, &settings);
    let limits = applying.limits.iter().enumerate();
    let rows = limits.filter_map(|(index, limit)| {
        let counted =
            SessionFilter::new(limit.scope, !settings.exempt_replication, &members).ok()?;
        let covered = |session: &&Session| counted.covers(session);
        let mut all = sessions.iter().chain(&waiters).filter(covered);
        if !all.any(|session| viewer.may_see(session.role)) {
            return None;
        }
        let in_use = viewer.may_count_sessions(limit);
        let sees_waiters = viewer.may_count_waiters(&limit.scope);
        let waits_here = |login: &&WaitingLogin| login.in_the_way.contains(&index);
        let waiting = waiting.iter().filter(waits_here);
        let (address, network) = client(limit);
        let (role, database) = (limit.scope.role(), limit.scope.database);
        let longest = waiting.clone().map(|login| waited_us(&login.session)).max();
        Some((
            limit.source.words(&name_of),
            limit.per.word(),
            limit.subject(&name_of),
            in_use.then(|| i64::from(table.count_units(counted, limit.unit))),
            i64::from(limit.max),
            sees_waiters.then(|| waiting.count() as i64),
            longest.filter(|_| sees_waiters),
            role.map(|oid| name_of(Object::Role(oid))),
            database.map(|oid| name_of(Object::Database(oid))),
            address,
            network,
            limit.unit.count().word(),
        ))
    });
    in_memory(rows)
}

/// From where the sessions come that the limit counts: of a limit by address the address, of any other the network.
fn client(limit: &Limit) -> (Option<Inet>, Option<String>) {
    let network = limit.scope.network;
    match limit.per.has_address() {
        true => (network.map(|network| Inet(network.client())), None),
        false => (None, network.map(|network| network.to_string())),
    }
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
