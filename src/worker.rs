//! The background worker: sweeps, that is finds the sessions over a limit that was lowered, or set,
//! after they came; frees slots whose process is gone, of which it should never find one; and says
//! what was left out of the log where no later line does. No decision about a login depends on it.
//!
//! It connects to no database, so that none is kept from being dropped. If the catalogs cannot be read,
//! it ends with that error, and the postmaster starts the next one after a second: no more often
//! does it fail.

use crate::pg::{backend, compat};
use crate::record::events;
use crate::settings::{self, Enforcement, Settings, SweepSetting};
use crate::{lookup, shmem, slot};
use model::limit::{Limit, Per, Scope, Source};
use model::session::{Claim, Session};
use model::sweep::{Exceeded, Sweep};
use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, SignalWakeFlags,
};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::time::{Duration, Instant};

const SAY_EVERY: Duration = Duration::from_secs(1);
const RECLAIM_EVERY: Duration = Duration::from_secs(10);
const RESTART_AFTER: Duration = Duration::from_secs(1);

pub fn register() {
    BackgroundWorkerBuilder::new("session_limit worker")
        .set_type("session_limit worker")
        .set_library("session_limit")
        .set_function("session_limit_worker_main")
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::ConsistentState)
        .set_restart_time(Some(RESTART_AFTER))
        .load();
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn session_limit_worker_main(_arg: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    BackgroundWorker::connect_worker_to_spi_by_oid(None, None);
    shmem::memory().mailbox.become_reader();
    // Before it could hear of one, there may have been a reload.
    backend::reload_settings();
    let (mut suspects, mut said) = (Vec::new(), Vec::new());
    let (mut reclaimed, mut swept) = (Instant::now(), Instant::now());
    // What changed before there was a worker.
    let mut changed = true;
    loop {
        let settings = settings::current();
        if changed || swept.elapsed() >= settings.sweep_interval {
            swept = Instant::now();
            sweep(&settings, &mut said);
        }
        // There may be room for them now. The sweep comes first, so that the invalidations of the commit that woke this
        // worker have been sent when the waiters read again.
        if changed {
            slot::wake_all_waiters();
        }
        // It is woken for other reasons, too.
        if reclaimed.elapsed() >= RECLAIM_EVERY {
            reclaimed = Instant::now();
            suspects = reclaim(&suspects);
            shmem::label_changes().look_again();
        }
        events::flush_suppressed(false);
        let left = RECLAIM_EVERY
            .saturating_sub(reclaimed.elapsed())
            .min(settings.sweep_interval.saturating_sub(swept.elapsed()))
            .min(SAY_EVERY);
        // It waits for whole milliseconds.
        if !BackgroundWorker::wait_latch(Some(left + Duration::from_millis(1))) {
            break;
        }
        changed = shmem::memory().mailbox.take_changed();
        if BackgroundWorker::sighup_received() {
            backend::reload_settings();
            changed = true;
        }
    }
    events::flush_suppressed(true);
    // Told to stop. Unless the server is stopping, the postmaster starts a worker again that did
    // not end with 0. SAFETY: ends the process as the server's own do; nothing is held.
    unsafe { pg_sys::proc_exit(1) };
}

/// A limit that was said to be exceeded.
type Said = (Source, Scope, Per, u32, u32);

/// Does to the sessions over a limit what the setting says. What was said last time is not said again.
fn sweep(settings: &Settings, said: &mut Vec<Said>) {
    if settings.sweep == SweepSetting::Off || settings.enforcement == Enforcement::Off {
        said.clear();
        return;
    }
    // SAFETY: the worker is connected and in no transaction. As it may be woken before the transaction
    // that changed a limit has told others what they must read anew, it reads everything anew.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::InvalidateSystemCaches();
    }
    in_transaction(settings, said);
    // SAFETY: as above.
    unsafe { pg_sys::CommitTransactionCommand() };
}

fn in_transaction(settings: &Settings, said: &mut Vec<Said>) {
    let mut copy = shmem::snapshot();
    let table = copy.table();
    let sessions: Vec<Session> = table.sessions().map(|(_, session)| session).collect();
    let (applying, members) = lookup::applying(sessions.iter(), settings);
    let ends = settings.sweep == SweepSetting::Terminate;
    let idle = if ends {
        compat::idle_sessions()
    } else {
        Vec::new()
    };
    let sweep = Sweep {
        applying: &applying,
        members: &members,
        idle: &idle,
        count_walsenders: !settings.exempt_replication,
    };
    let is_enforced = |over: &Exceeded| {
        let limit = applying.limits.get(over.limit);
        limit.is_some_and(|limit| limit.enforced)
    };
    let exceeded = sweep.over(&table).into_iter();
    let (end, say): (Vec<_>, Vec<_>) = exceeded.partition(|over| ends && is_enforced(over));
    // A limit that changes just now may have been raised: the next sweep knows.
    if !end.is_empty() && !shmem::memory().mailbox.has_changed() {
        for ending in slot::end_excess(&sweep, &end) {
            if let Some(limit) = applying.limits.get(ending.over.limit) {
                let ended = Some((ending.pid, &ending.session));
                events::swept(limit, ending.over.in_use, ended);
            }
        }
    }
    *said = say_exceeded(&applying.limits, &say, said);
}

/// Says which limits are exceeded, but for what was said last time; and returns what is exceeded now.
fn say_exceeded(limits: &[Limit], exceeded: &[Exceeded], said: &[Said]) -> Vec<Said> {
    let mut now = Vec::new();
    for over in exceeded {
        if let Some(limit) = limits.get(over.limit) {
            let saying = to_say(limit, over);
            if !said.contains(&saying) {
                events::swept(limit, over.in_use, None);
            }
            now.push(saying);
        }
    }
    now
}

fn to_say(limit: &Limit, over: &Exceeded) -> Said {
    (limit.source, limit.scope, limit.per, limit.max, over.in_use)
}

/// Frees the slots of `suspects` whose process is still gone, and returns those whose process is
/// gone now: one that has just left the process array is about to free its slot itself.
fn reclaim(suspects: &[(usize, Claim)]) -> Vec<(usize, Claim)> {
    let gone: Vec<_> = shmem::memory()
        .shared
        .claims()
        .filter(|(_, claim)| backend::is_gone(claim.pid()))
        .collect();
    for (slot, claim) in gone.iter().filter(|orphan| suspects.contains(orphan)) {
        if slot::release(*slot, *claim) {
            events::reclaimed(claim.pid(), claim.role());
        }
    }
    gone
}
