//! The functions that take, renew, release and show seats.

use crate::error;
use crate::pg::{backend, memory};
use crate::seat::{self, Outcome};
use crate::settings;
use crate::shmem;
use crate::sql::in_memory;
use crate::sql::viewer::{SqlText, Viewer};
use model::seats::{Answer, Held, Key, Named, Request};
use pgrx::datum::{Interval, TimestampWithTimeZone, Uuid};
use pgrx::prelude::*;
use pgrx::{Inet, pg_sys};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// A lease is not meant to outlive a year.
const MAX_TTL: Duration = DAY.saturating_mul(366);
/// Nor a call a day.
const MAX_WAIT: Duration = DAY;

/// Takes a seat; an error if none is free.
#[pg_extern(sql = false)]
fn take_seat(
    key: Option<&[u8]>,
    max: Option<i32>,
    ttl: Option<Interval>,
    max_wait: Option<Interval>,
    on_excess: Option<&[u8]>,
) -> Uuid {
    let (request, max_wait) = request(key, max, ttl, max_wait, on_excess);
    match seat::take(&request, max_wait) {
        Outcome::Taken => Uuid::from_bytes(request.id),
        Outcome::Full => error::no_seat_is_left(settings::max_seats()),
        Outcome::Refused {
            in_use,
            mut oldest,
            waited,
        } => {
            let viewer = Viewer::current();
            oldest.retain(|seat| viewer.may_see(seat.holder.role));
            error::too_many_seats(request.key.text(), request.max, in_use, &oldest, waited)
        }
    }
}

/// Takes a seat; null if none is free.
#[pg_extern(sql = false)]
fn try_take_seat(
    key: Option<&[u8]>,
    max: Option<i32>,
    ttl: Option<Interval>,
    max_wait: Option<Interval>,
    on_excess: Option<&[u8]>,
) -> Option<Uuid> {
    let (request, max_wait) = request(key, max, ttl, max_wait, on_excess);
    match seat::take(&request, max_wait) {
        Outcome::Taken => Some(Uuid::from_bytes(request.id)),
        Outcome::Full => error::no_seat_is_left(settings::max_seats()),
        Outcome::Refused { .. } => None,
    }
}

/// Checks what a call for a seat says.
fn request(
    key: Option<&[u8]>,
    max: Option<i32>,
    ttl: Option<Interval>,
    max_wait: Option<Interval>,
    on_excess: Option<&[u8]>,
) -> (Request, Duration) {
    shmem::require();
    memory::keep_reserve();
    let key = own_key(key);
    let max = max.unwrap_or_else(|| error::must_not_be_null("max"));
    let replaces = match on_excess.unwrap_or_else(|| error::must_not_be_null("on_excess")) {
        b"refuse" => false,
        b"replace_oldest" => true,
        other => error::bad_on_excess(other),
    };
    let request = Request {
        key,
        id: backend::random_uuid().unwrap_or_else(|| error::no_random_numbers()),
        holder: seat::holder(backend::user()),
        max: u32::try_from(max).unwrap_or_else(|_| error::bad_max()),
        ttl_us: ttl.map(lease),
        replaces,
    };
    let max_wait = max_wait.map(|max_wait| {
        let wait = duration(max_wait).filter(|wait| *wait <= MAX_WAIT);
        wait.unwrap_or_else(|| error::bad_max_wait(MAX_WAIT))
    });
    (
        request,
        max_wait.unwrap_or_else(|| settings::current().max_wait),
    )
}

/// Prolongs a lease. Returns whether the seat is held.
#[pg_extern(sql = false)]
fn renew_seat(seat: Option<Uuid>, ttl: Option<Interval>) -> bool {
    let ttl_us = ttl.map(lease);
    with_seat(seat, |seat| seat::renew(seat, ttl_us))
}

/// Ends a seat. Returns whether it was held.
#[pg_extern(sql = false)]
fn release_seat(seat: Option<Uuid>) -> bool {
    with_seat(seat, seat::release)
}

/// Ends the seats of the key in this database, whoever holds them. Returns how many.
#[pg_extern(sql = false)]
fn evict_seats(key: Option<&[u8]>) -> i32 {
    shmem::require();
    memory::keep_reserve();
    seat::evict(&own_key(key)) as i32
}

/// Acts upon a seat of this database if its role, or a role of which the caller has the privileges, holds it.
fn with_seat(seat: Option<Uuid>, act: impl Fn(Named) -> Answer) -> bool {
    shmem::require();
    memory::keep_reserve();
    let seat = seat.unwrap_or_else(|| error::must_not_be_null("seat"));
    let own = Named {
        id: *seat.as_bytes(),
        database: backend::own_database(),
        role: backend::user(),
    };
    let mut done = act(own);
    if let Answer::OfRole(role) = done
        && Viewer::current().may_act_as(role)
    {
        done = act(Named { role, ..own });
    }
    match done {
        Answer::Done => true,
        Answer::Gone | Answer::OfRole(_) => false,
        Answer::NoLease => error::seat_without_lease(),
    }
}

fn own_key(key: Option<&[u8]>) -> Key {
    let key = key.unwrap_or_else(|| error::must_not_be_null("key"));
    Key::new(backend::own_database(), key).unwrap_or_else(|| error::bad_key())
}

/// The time of a lease, in microseconds.
fn lease(ttl: Interval) -> u64 {
    let ttl = duration(ttl).filter(|ttl| !ttl.is_zero() && *ttl <= MAX_TTL);
    let ttl = ttl.unwrap_or_else(|| error::bad_ttl(MAX_TTL));
    ttl.as_micros() as u64
}

/// A month is 30 days, as where the server compares intervals. None if it is negative, or beyond all bounds.
fn duration(interval: Interval) -> Option<Duration> {
    let micros = interval.as_micros();
    u64::try_from(micros).ok().map(Duration::from_micros)
}

/// One row for each seat that the caller may see.
#[pg_extern(sql = false)]
#[expect(
    clippy::type_complexity,
    reason = "pgrx wants a row's columns named in the signature"
)]
fn current_seats() -> TableIterator<
    'static,
    (
        name!(key, SqlText),
        name!(usesysid, pg_sys::Oid),
        name!(datid, pg_sys::Oid),
        name!(pid, i32),
        name!(client_addr, Option<Inet>),
        name!(taken_at, Option<TimestampWithTimeZone>),
        name!(expires_at, Option<TimestampWithTimeZone>),
        name!(max, i32),
        name!(seat, Option<Uuid>),
    ),
> {
    shmem::require();
    memory::require(0);
    let viewer = Viewer::current();
    let (tick, time) = (backend::tick(), backend::now());
    // A lease ends by a clock that nobody sets.
    let shown = |ends: u64| time.saturating_add(ends.wrapping_sub(tick) as i64);
    let seats = seat::all().into_iter();
    let rows = seats.filter(|(_, seat)| viewer.may_see(seat.holder.role));
    // Behind a pooler several roles can have one session after the other.
    let may_renew = |seat: &Held| seat::is_own(seat) && viewer.may_act_as(seat.holder.role);
    let rows = rows.map(|(key, seat)| {
        let expires = seat.lease.map(|lease| shown(lease.ends));
        (
            backend::in_own_encoding(key.text()),
            seat.holder.role.into(),
            key.database().into(),
            seat.holder.pid as i32,
            seat.holder.address.map(|address| Inet(address.to_string())),
            TimestampWithTimeZone::try_from(seat.taken).ok(),
            expires.and_then(|expires| TimestampWithTimeZone::try_from(expires).ok()),
            seat.max as i32,
            may_renew(&seat).then(|| Uuid::from_bytes(seat.id)),
        )
    });
    in_memory(rows)
}
