//! What each limit did to logins and sessions.

use crate::pg::catalog::name_of;
use crate::shmem;
use crate::sql::in_memory;
use crate::sql::stats::{number, time};
use crate::sql::subject::Subject;
use crate::sql::viewer::{SqlText, Viewer};
use model::limit::Source;
use model::limit_counters::{Counted, LimitCounters};
use pgrx::Inet;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;

/// One row for each limit that the caller may see, and one for all limits that there was no room for.
#[pg_extern(sql = false)]
#[expect(
    clippy::type_complexity,
    reason = "pgrx wants a row's columns named in the signature"
)]
fn current_limit_stats() -> TableIterator<
    'static,
    (
        name!(source, Option<SqlText>),
        name!(per, Option<&'static str>),
        name!(count, Option<&'static str>),
        name!(across, Option<&'static str>),
        name!(subject, Option<SqlText>),
        name!(others, bool),
        name!(max, Option<i64>),
        name!(enforcement, Option<&'static str>),
        name!(rolname, Option<SqlText>),
        name!(datname, Option<SqlText>),
        name!(client_addr, Option<Inet>),
        name!(network, Option<String>),
        name!(admitted, i64),
        name!(refused_no_room, i64),
        name!(refused_no_place_to_wait, i64),
        name!(refused_not_replaced, i64),
        name!(refused_unreadable_label, i64),
        name!(last_refused, Option<TimestampWithTimeZone>),
        name!(replaced, i64),
        name!(would_refuse, i64),
        name!(would_replace, i64),
        name!(swept, i64),
        name!(peak, i64),
        name!(peak_at, Option<TimestampWithTimeZone>),
        name!(stats_reset, Option<TimestampWithTimeZone>),
    ),
> {
    let statistics = shmem::statistics();
    let viewer = Viewer::current();
    let rows = statistics.limits.rows();
    let rows = rows.filter(|(counted, _)| match counted {
        Some(Counted::Limit(limit)) => viewer.may_count_waiters(&limit.scope),
        Some(Counted::UnreadableLabel(_)) | None => viewer.sees_all(),
    });
    let rows = rows.map(|(counted, counters)| {
        let limit = match counted {
            Some(Counted::Limit(limit)) => Some(limit),
            _ => None,
        };
        let source = counted.map(|counted| match counted {
            Counted::Limit(limit) => limit.source,
            Counted::UnreadableLabel(object) => Source::Label(object),
        });
        let subject = limit.as_ref().map(Subject::of).unwrap_or_default();
        let LimitCounters {
            admitted,
            refused_no_room,
            refused_no_place_to_wait,
            refused_not_replaced,
            refused_unreadable_label,
            last_refused,
            replaced,
            would_refuse,
            would_replace,
            swept,
            peak,
            peak_at,
        } = *counters;
        (
            source.map(|source| source.words(&name_of)),
            limit.map(|limit| limit.per.word()),
            limit.map(|limit| limit.unit.count().word()),
            limit.map(|limit| limit.across.word()),
            subject.words,
            counted.is_none(),
            limit.map(|limit| i64::from(limit.max)),
            limit.map(|limit| limit.enforcement()),
            subject.role,
            subject.database,
            subject.address,
            subject.network,
            number(admitted),
            number(refused_no_room),
            number(refused_no_place_to_wait),
            number(refused_not_replaced),
            number(refused_unreadable_label),
            time(last_refused).filter(|_| last_refused != 0),
            number(replaced),
            number(would_refuse),
            number(would_replace),
            number(swept),
            number(peak),
            time(peak_at).filter(|_| peak > 0),
            time(statistics.since()),
        )
    });
    in_memory(rows)
}
