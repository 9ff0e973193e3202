//! The statistics: what backends count at each login, what the SQL functions show of it, and the file
//! that keeps it over a clean restart.
//!
//! The file is the postmaster's. It is there only while the server is down: written at the end of a
//! clean shutdown, or when a start fails, and removed as it is read at the start, so that no crash
//! brings old numbers back. Nothing about it can keep the server from starting or stopping: whatever
//! is wrong with it, the statistics begin anew, and the log says so.

use crate::login::{self, Decision};
use crate::tally::{self, Counters, How, Login, MAX_BYTES, Pair, Tally};
use crate::views::Viewer;
use crate::{error, server, shmem};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::{self, DBState};
use pgrx::prelude::*;
use std::fs::{self, File};
use std::io::{self, Read, Write};

/// In the data directory, which is the postmaster's working directory.
const FILE: &str = "pg_stat/session_limit.stat";
const NEW_FILE: &str = "pg_stat/session_limit.stat.tmp";
const DIRECTORY: &str = "pg_stat";
const CONTROL_FILE: &str = "global/pg_control";

/// Counts a login. Takes the lock of the statistics for a moment.
pub fn decided(decision: &Decision) {
    let pair = Pair {
        role: decision.session.role,
        database: decision.session.database,
    };
    let outcome = match decision.outcome {
        login::Outcome::Admitted(admission) => tally::Outcome::Admitted {
            sessions: admission.sessions,
            how: match admission.over {
                None => How::Room,
                Some((_, ended)) if ended.number == 0 => How::WouldRefuse,
                Some(_) => How::WouldReplace,
            },
        },
        login::Outcome::Replaced(admission, ..) => tally::Outcome::Admitted {
            sessions: admission.sessions,
            how: How::Replaced,
        },
        login::Outcome::Refused(_) => tally::Outcome::Refused,
    };
    let login = Login {
        at: now(),
        outcome,
        waited: decision.waited,
        deciding: decision.deciding,
    };
    shmem::change_stats(|tally| tally.count(pair, &login));
}

/// Microseconds since 2000-01-01, as in a `timestamptz`.
pub fn now() -> i64 {
    // SAFETY: only reads the clock.
    unsafe { server::GetCurrentTimestamp() }
}

/// One row a role and database that the caller may see, and one for those that there was no room for.
#[pg_extern(sql = false)]
#[expect(
    clippy::type_complexity,
    reason = "pgrx wants a row's columns named in the signature"
)]
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
    let tally = shmem::stats();
    let viewer = Viewer::current();
    let rows = tally.rows().filter(|(pair, _)| match pair {
        Some(pair) => viewer.may_see(pair.role),
        None => viewer.sees_all(),
    });
    let rows = rows.map(|(pair, counters)| {
        let Counters {
            admitted,
            waited,
            wait_time,
            refused,
            last_refused,
            replaced,
            would_refuse,
            would_replace,
            peak,
            peak_at,
            decisions,
            deciding,
        } = *counters;
        (
            pair.map(|pair| pair.role.into()),
            pair.map(|pair| pair.database.into()),
            pair.is_none(),
            number(admitted),
            number(waited),
            number(wait_time),
            number(refused),
            time(last_refused).filter(|_| refused > 0),
            number(replaced),
            number(would_refuse),
            number(would_replace),
            number(peak),
            time(peak_at).filter(|_| peak > 0),
            number(decisions),
            number(deciding),
            time(tally.since()),
        )
    });
    TableIterator::new(rows.collect::<Vec<_>>())
}

fn number(counter: u64) -> i64 {
    counter.try_into().unwrap_or(i64::MAX)
}

fn time(at: i64) -> Option<TimestampWithTimeZone> {
    TimestampWithTimeZone::try_from(at).ok()
}

/// All counters begin anew.
#[pg_extern(sql = false)]
fn reset_stats() {
    let since = now();
    shmem::change_stats(|tally| tally.reset(since));
}

/// Run by the postmaster as it starts, with the memory to itself.
pub fn load(tally: &mut Tally) {
    tally.reset(now());
    let loaded = match take() {
        Ok(Some(bytes)) => tally.decode(&bytes).map_err(String::from),
        Ok(None) => Ok(()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(why) = loaded {
        error::stats_are_lost(FILE, &why);
    }
}

/// What the file holds, which is no more; nothing if there is none.
fn take() -> io::Result<Option<Vec<u8>>> {
    let about = match fs::symlink_metadata(FILE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        about => about?,
    };
    // To open a pipe could take forever.
    if !about.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let file = File::open(FILE);
    fs::remove_file(FILE)?;
    File::open(DIRECTORY)?.sync_all()?;
    let mut bytes = Vec::new();
    file?.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Run by the postmaster when all its children are gone, however that came.
pub fn save(tally: &Tally) {
    if !has_shut_down() {
        return;
    }
    if let Err(error) = put(&tally.encode()) {
        let _ = fs::remove_file(NEW_FILE);
        error::stats_are_not_kept(FILE, &error);
    }
}

/// Whether the server was shut down cleanly, or never got so far that anyone could log in. What the
/// postmaster exits with does not tell: it is 0 after an immediate shutdown, too, which may have ended
/// a backend in the middle of a change, and 1 when it cannot start.
fn has_shut_down() -> bool {
    const STATE: usize = std::mem::offset_of!(pg_sys::ControlFileData, state);
    let mut start = [0; STATE + size_of::<DBState::Type>()];
    let read = File::open(CONTROL_FILE).and_then(|mut file| file.read_exact(&mut start));
    let state = start
        .last_chunk()
        .map(|state| DBState::Type::from_ne_bytes(*state));
    read.is_ok()
        && matches!(
            state,
            Some(DBState::DB_SHUTDOWNED | DBState::DB_SHUTDOWNED_IN_RECOVERY)
        )
}

/// All of it, or nothing.
fn put(bytes: &[u8]) -> io::Result<()> {
    // What is left there by whomever: to open a pipe could take forever.
    let _ = fs::remove_file(NEW_FILE);
    let mut file = File::create_new(NEW_FILE)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(NEW_FILE, FILE)?;
    File::open(DIRECTORY)?.sync_all()
}
