//! What the statistics show.

use crate::pg::backend::now;
use crate::shmem;
use crate::sql::in_memory;
use crate::sql::viewer::Viewer;
use model::counters::Counters;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys;
use pgrx::prelude::*;

/// One row for each role and database that the caller may see, and one for all pairs that there was no room for.
#[pg_extern(sql = false)]
#[expect(
    clippy::type_complexity,
    reason = "pgrx wants a row's columns named in the signature"
)]
pub fn current_stats_0_2() -> TableIterator<
    'static,
    (
        name!(usesysid, Option<pg_sys::Oid>),
        name!(datid, Option<pg_sys::Oid>),
        name!(others, bool),
        name!(admitted, i64),
        name!(waited, i64),
        name!(wait_us, i64),
        name!(refused, i64),
        name!(last_refused, Option<TimestampWithTimeZone>),
        name!(replaced, i64),
        name!(would_refuse, i64),
        name!(would_replace, i64),
        name!(peak, i64),
        name!(peak_at, Option<TimestampWithTimeZone>),
        name!(decisions, i64),
        name!(decision_us, i64),
        name!(stats_reset, Option<TimestampWithTimeZone>),
        name!(abandoned, i64),
        name!(seats_taken, i64),
        name!(seats_waited, i64),
        name!(seats_refused, i64),
        name!(seats_replaced, i64),
        name!(seats_expired, i64),
        name!(seats_evicted, i64),
    ),
> {
    let statistics = shmem::statistics();
    let viewer = Viewer::current();
    let rows = statistics.rows().filter(|(pair, _)| match pair {
        Some(pair) => viewer.may_see(pair.role),
        None => viewer.sees_all(),
    });
    let rows = rows.map(|(pair, counters)| {
        let Counters {
            admitted,
            waited,
            wait_us,
            refused,
            last_refused,
            replaced,
            would_refuse,
            would_replace,
            peak,
            peak_at,
            decisions,
            decision_us,
            abandoned,
            seats,
        } = *counters;
        (
            pair.map(|pair| pair.role.into()),
            pair.map(|pair| pair.database.into()),
            pair.is_none(),
            number(admitted),
            number(waited),
            number(wait_us),
            number(refused),
            time(last_refused).filter(|_| refused > 0),
            number(replaced),
            number(would_refuse),
            number(would_replace),
            number(peak),
            time(peak_at).filter(|_| peak > 0),
            number(decisions),
            number(decision_us),
            time(statistics.since()),
            number(abandoned),
            number(seats.taken),
            number(seats.waited),
            number(seats.refused),
            number(seats.replaced),
            number(seats.expired),
            number(seats.evicted),
        )
    });
    in_memory(rows)
}

pub fn number(counter: u64) -> i64 {
    counter.try_into().unwrap_or(i64::MAX)
}

pub fn time(at: i64) -> Option<TimestampWithTimeZone> {
    TimestampWithTimeZone::try_from(at).ok()
}

/// All counters begin anew.
#[pg_extern(sql = false)]
fn reset_stats() {
    let since = now();
    shmem::change_statistics(|statistics| statistics.reset(since));
}
