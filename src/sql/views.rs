//! The functions under the SQL views. They show of other roles' sessions and limits no more than
//! `pg_stat_activity` shows of sessions. Names are bytes, so texts are returned as bytes.

#![expect(
    clippy::type_complexity,
    reason = "pgrx wants a row's columns named in the signature"
)]

use crate::pg::memory;
use crate::shmem::{self, About};
use crate::sql::in_memory;
use crate::sql::viewer::{SqlText, Viewer};
use model::event::{Name, Record};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use pgrx::{Inet, pg_sys};

/// One row for each session that the caller may see.
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
    let mut copy = shmem::snapshot();
    let viewer = Viewer::current();
    let table = copy.table();
    let sessions = table.sessions();
    let rows = sessions.filter(|(_, session)| viewer.may_see(session.role));
    let rows = rows.map(|(pid, session)| {
        (
            pid as i32,
            session.role.into(),
            session.database.into(),
            session.address.map(|address| Inet(address.to_string())),
            TimestampWithTimeZone::try_from(session.started).ok(),
            session.exempt,
        )
    });
    in_memory(rows)
}

/// Events copied in one hold of the lock: 64 kB, so that no login waits for long.
const BATCH: usize = 64;

/// One row for each recent event that the caller may see, the oldest first.
#[pg_extern(sql = false)]
fn recent_events() -> TableIterator<
    'static,
    (
        name!(event_time, Option<TimestampWithTimeZone>),
        name!(event, &'static str),
        name!(usename, Option<SqlText>),
        name!(datname, Option<SqlText>),
        name!(client_addr, Option<Inet>),
        name!(pid, Option<i32>),
        name!(detail, SqlText),
    ),
> {
    shmem::require();
    memory::require(0);
    let viewer = Viewer::current();
    let known = |name: &Name| (!name.bytes().is_empty()).then(|| name.bytes().to_vec());
    let row = |it: &Record| {
        (
            TimestampWithTimeZone::try_from(it.time).ok(),
            it.kind.word(),
            known(&it.role_name),
            known(&it.database),
            it.address.map(|address| Inet(address.to_string())),
            (it.pid != 0).then_some(it.pid as i32),
            it.detail.bytes().to_vec(),
        )
    };
    let (mut batch, mut rows) = (vec![Record::EMPTY; BATCH], Vec::new());
    for about in [About::Logins, About::Seats] {
        let mut left = 0..shmem::event_log(about, |log| log.ring.end());
        loop {
            let read = shmem::event_log(about, |log| log.ring.read(left.clone(), &mut batch));
            if read.is_empty() {
                break;
            }
            let records = batch.iter().zip(read.clone()).map(|(record, _)| record);
            let seen = records.filter(|it| viewer.may_see(it.role));
            memory::extend(&mut rows, seen.map(|it| (it.time, row(it))));
            left.start = read.end;
        }
    }
    rows.sort_by_key(|(time, _)| *time);
    in_memory(rows.into_iter().map(|(_, row)| row))
}
