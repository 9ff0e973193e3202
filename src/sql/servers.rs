//! The servers that count together.

use crate::pg::{backend, memory};
use crate::shmem;
use crate::sql::in_memory;
use crate::sql::stats::time;
use crate::sql::viewer::{SqlText, Viewer};
use pgrx::prelude::*;

/// Each server that has given a sign of life, as this one last saw it; how many places it holds only for those who may see
/// all sessions.
#[pg_extern(sql = false)]
#[expect(
    clippy::type_complexity,
    reason = "pgrx wants a row's columns named in the signature"
)]
fn current_servers() -> TableIterator<
    'static,
    (
        name!(name, SqlText),
        name!(since, Option<TimestampWithTimeZone>),
        name!(last_seen, Option<TimestampWithTimeZone>),
        name!(places, Option<i64>),
        name!(this, bool),
    ),
> {
    shmem::require();
    memory::require(0);
    let sees_all = Viewer::current().sees_all();
    let (now, tick) = (backend::now(), backend::tick());
    let rows = shmem::known_servers().into_iter().map(|server| {
        let ago = tick.saturating_sub(server.last_seen) as i64;
        (
            server.name().to_vec(),
            time(server.since),
            time(now - ago),
            sees_all.then_some(server.places as i64),
            server.this,
        )
    });
    in_memory(rows)
}
