//! The background worker: sweeps, that is finds the sessions over a limit that was lowered, or set,
//! after they came; frees slots whose process is gone, of which it should never find one; and says
//! what was left out of the log where no later line does. No decision about a login depends on it.
//!
//! It connects to no database, so that none is kept from being dropped. If the catalogs cannot be read,
//! it ends with that error, and the postmaster starts the next one after a second: no more often
//! does it fail.

use crate::limit::{Limit, Per, Scope, Source};
use crate::sessions::{Claim, Session};
use crate::settings::{self, Enforcement, Settings};
use crate::sweep::{Over, Sweep};
use crate::{compat, events, facts, shmem};
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
    shmem::become_worker();
    // Before it could hear of one, there may have been a reload.
    reload();
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
        // There may be room for them now. A moment after the commit that woke this worker, they read it, too.
        if changed {
            shmem::wake_all_waiters();
        }
        // It is woken for other reasons, too.
        if reclaimed.elapsed() >= RECLAIM_EVERY {
            reclaimed = Instant::now();
            suspects = reclaim(&suspects);
            shmem::look_for_labels_again();
        }
        events::say_what_was_left_out(false);
        let left = RECLAIM_EVERY
            .saturating_sub(reclaimed.elapsed())
            .min(settings.sweep_interval.saturating_sub(swept.elapsed()))
            .min(SAY_EVERY);
        // It waits for whole milliseconds.
        if !BackgroundWorker::wait_latch(Some(left + Duration::from_millis(1))) {
            break;
        }
        changed = shmem::have_limits_changed();
        if BackgroundWorker::sighup_received() {
            reload();
            changed = true;
        }
    }
    events::say_what_was_left_out(true);
    // Told to stop. Unless the server is stopping, the postmaster starts a worker again that did
    // not end with 0. SAFETY: ends the process as the server's own do; nothing is held.
    unsafe { pg_sys::proc_exit(1) };
}

fn reload() {
    // SAFETY: as in the main loops of the server's own workers.
    unsafe {
        pg_sys::ConfigReloadPending = 0;
        pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
    }
}

/// A limit that was said to be exceeded.
type Said = (Source, Scope, Per, u32, u32);

/// Does to the sessions over a limit what the setting says. What was said last time is not said again.
fn sweep(settings: &Settings, said: &mut Vec<Said>) {
    if settings.sweep == settings::Sweep::Off || settings.enforcement == Enforcement::Off {
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
    let (applying, members) = facts::applying(sessions.iter(), settings);
    let ends = settings.sweep == settings::Sweep::Terminate;
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
    let limit_of = |over: &Over| applying.limits.get(over.limit);
    let ends = |over: &Over| ends && limit_of(over).is_some_and(|limit| limit.enforced);
    let (end, say): (Vec<Over>, Vec<Over>) = sweep.over(&table).into_iter().partition(ends);
    // A limit that changes just now may have been raised: the next sweep knows.
    if !end.is_empty() && !shmem::are_limits_changing() {
        for ending in shmem::end_excess(&sweep, &end) {
            if let Some(limit) = limit_of(&ending.over) {
                let ended = Some((ending.pid, &ending.session));
                events::swept(limit, ending.over.in_use, ended);
            }
        }
    }
    let mut now = Vec::new();
    for over in &say {
        if let Some(limit) = limit_of(over) {
            let saying = to_say(limit, over);
            if !said.contains(&saying) {
                events::swept(limit, over.in_use, None);
            }
            now.push(saying);
        }
    }
    *said = now;
}

fn to_say(limit: &Limit, over: &Over) -> Said {
    (limit.source, limit.scope, limit.per, limit.max, over.in_use)
}

/// Frees the slots of `suspects` whose process is still gone, and returns those whose process is
/// gone now: one that has just left the process array is about to free its slot itself.
fn reclaim(suspects: &[(usize, Claim)]) -> Vec<(usize, Claim)> {
    let gone: Vec<_> = shmem::claims()
        .filter(|(_, claim)| is_gone(*claim))
        .collect();
    for (slot, claim) in gone.iter().filter(|orphan| suspects.contains(orphan)) {
        if shmem::release(*slot, *claim) {
            events::reclaimed(claim.pid(), claim.role());
        }
    }
    gone
}

fn is_gone(claim: Claim) -> bool {
    // SAFETY: the worker has a PGPROC, so it may take the lock that this takes; the result is only
    // compared.
    unsafe { pg_sys::BackendPidGetProc(claim.pid() as i32).is_null() }
}
