//! Functions as released versions of the SQL declare them, where they have changed since. A library is installed before
//! `ALTER EXTENSION … UPDATE` runs, and until then it is called by the old SQL. So what C symbol has which arguments and
//! columns never changes: a function with others has a symbol of its own, named after the version, and the old one stays.

#![expect(
    clippy::type_complexity,
    reason = "pgrx wants a row's columns named in the signature"
)]

use crate::sql::explain::explain_login_0_2;
use crate::sql::limits::defined_limits_0_2;
use crate::sql::stats::current_stats_0_2;
use crate::sql::usage::current_usage_0_2;
use crate::sql::viewer::SqlText;
use pgrx::Inet;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::CStr;

/// Of 0.1.0: without `count`, `across` and `elsewhere`.
#[pg_extern(sql = false)]
fn explain_login(
    role: Option<&CStr>,
    database: Option<&CStr>,
    address: Option<Inet>,
) -> TableIterator<
    'static,
    (
        name!(source, SqlText),
        name!(per, &'static str),
        name!(subject, Option<SqlText>),
        name!(in_use, Option<i64>),
        name!(max, i64),
        name!(fits, Option<bool>),
        name!(enforcement, &'static str),
    ),
> {
    let rows = explain_login_0_2(role, database, address);
    TableIterator::new(rows.map(|(a, b, c, d, e, f, g, ..)| (a, b, c, d, e, f, g)))
}

/// Of 0.1.0: without `administrators`, `count` and `across`.
#[pg_extern(sql = false)]
fn defined_limits() -> TableIterator<
    'static,
    (
        name!(source, SqlText),
        name!(per, Option<&'static str>),
        name!(subject, Option<SqlText>),
        name!(database, Option<SqlText>),
        name!(network, Option<String>),
        name!(max, i64),
        name!(on_excess, &'static str),
        name!(max_wait_ms, i64),
        name!(enforcement, &'static str),
        name!(unmatched, bool),
    ),
> {
    let rows = defined_limits_0_2();
    TableIterator::new(
        rows.map(|(a, b, c, d, e, f, g, h, i, j, ..)| (a, b, c, d, e, f, g, h, i, j)),
    )
}

/// Of 0.1.0: without `abandoned` and what is counted of seats.
#[pg_extern(sql = false)]
fn current_stats() -> TableIterator<
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
    ),
> {
    let rows = current_stats_0_2();
    TableIterator::new(
        rows.map(|(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..)| {
            (a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)
        }),
    )
}

/// Of 0.1.0: without `longest_wait_us`, `rolname`, `datname`, `client_addr`, `network`, `count`, `across` and `elsewhere`, and
/// without the counts that the caller may not know: its view would say that nothing is free there. With the rows of limits in
/// force that nobody is under.
#[pg_extern(sql = false)]
fn current_usage() -> TableIterator<
    'static,
    (
        name!(source, SqlText),
        name!(per, &'static str),
        name!(subject, Option<SqlText>),
        name!(in_use, Option<i64>),
        name!(max, i64),
        name!(waiting, Option<i64>),
    ),
> {
    let rows = current_usage_0_2().filter(|(_, _, _, in_use, ..)| in_use.is_some());
    TableIterator::new(rows.map(|(a, b, c, d, e, f, ..)| (a, b, c, d, e, f)))
}
