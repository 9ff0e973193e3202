//! What is wrong with a call about a seat.

use crate::error::refusal::{are, describe, listed};
use crate::error::report::{Report, Text};
use model::seats::{Held, MAX_KEY};
use model::verdict::ShownSession;
use pgrx::PgSqlErrorCode;
use std::time::Duration;

/// So many of the seats that are held are shown.
const SHOWN: usize = 5;

/// `seats` are those that the caller may see of the `in_use` that are held.
pub fn too_many_seats(
    key: &[u8],
    max: u32,
    in_use: u32,
    seats: &[Held],
    waited: Option<Duration>,
) -> ! {
    let hint = match max {
        0 => c"With a max of 0 no seat can be taken.",
        _ => c"Release a seat of this key, or try again later.",
    };
    let shown = seats.iter().take(SHOWN).map(|seat| ShownSession {
        pid: seat.holder.pid,
        address: seat.holder.address,
        started: seat.taken,
    });
    let shown: Vec<String> = shown.map(|seat| describe(&seat)).collect();
    let mut detail = format!(
        "The limit is {max} seat{}; {in_use} {} in use",
        if max == 1 { "" } else { "s" },
        are(in_use)
    );
    if !shown.is_empty() {
        detail += &format!(": {}", listed(&shown, in_use));
    }
    detail.push('.');
    if let Some(waited) = waited {
        detail += &format!(" The call waited {} ms for a seat.", waited.as_millis());
    }
    Report::new(
        PgSqlErrorCode::ERRCODE_TOO_MANY_CONNECTIONS,
        Text::about(c"too many seats for key \"%s\"", key),
    )
    .detail(detail)
    .hint(hint)
    .error()
}

/// No seat of any key is left.
pub fn no_seat_is_left(max_seats: usize) -> ! {
    let code = PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED;
    let message = match max_seats {
        0 => c"seats are switched off",
        _ => c"no seat is left",
    };
    Report::new(code, message)
        .detail(format!("session_limit.max_seats is {max_seats}."))
        .hint(c"Raise session_limit.max_seats in postgresql.conf and restart the server.")
        .error()
}

pub fn bad_key() -> ! {
    invalid(format!("key must have 1 to {MAX_KEY} bytes"))
}

pub fn bad_max() -> ! {
    invalid("max must not be negative".to_string())
}

pub fn bad_ttl(at_most: Duration) -> ! {
    let at_most = days(at_most);
    invalid(format!("ttl must be more than 0 and at most {at_most}"))
}

pub fn bad_max_wait(at_most: Duration) -> ! {
    let at_most = days(at_most);
    invalid(format!("max_wait must be at least 0 and at most {at_most}"))
}

pub fn bad_on_excess(value: &[u8]) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
    Report::new(code, Text::about(c"invalid on_excess: \"%s\"", value))
        .hint(c"Use \"refuse\" or \"replace_oldest\".")
        .error()
}

/// A seat that ends with its session cannot be given a time.
pub fn seat_without_lease() -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
    Report::new(
        code,
        c"ttl must be null for a seat that was taken without one",
    )
    .detail(c"Such a seat ends with the session that took it.")
    .error()
}

/// There are no random numbers to name a seat with.
pub fn no_random_numbers() -> ! {
    let code = PgSqlErrorCode::ERRCODE_INTERNAL_ERROR;
    Report::new(code, c"could not generate random values").error()
}

fn invalid(message: String) -> ! {
    Report::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message).error()
}

fn days(duration: Duration) -> String {
    match duration.as_secs() / (24 * 60 * 60) {
        1 => "1 day".to_string(),
        days => format!("{days} days"),
    }
}
