//! The background worker: frees slots whose process is gone, of which it should never find one, and
//! says what was left out of the log where no later line does. No decision depends on it.
//!
//! It connects to no database, so that none is kept from being dropped.

use crate::sessions::Claim;
use crate::{events, shmem};
use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, SignalWakeFlags,
};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::time::{Duration, Instant};

const WAKE_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_secs(10);
const RESTART_AFTER: Duration = Duration::from_secs(1);

pub fn register() {
    BackgroundWorkerBuilder::new("session_limit worker")
        .set_type("session_limit worker")
        .set_library("session_limit")
        .set_function("session_limit_worker_main")
        .enable_shmem_access(None)
        .set_start_time(BgWorkerStartTime::ConsistentState)
        .set_restart_time(Some(RESTART_AFTER))
        .load();
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn session_limit_worker_main(_arg: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    let (mut suspects, mut looked) = (Vec::new(), Instant::now());
    while BackgroundWorker::wait_latch(Some(WAKE_EVERY)) {
        if BackgroundWorker::sighup_received() {
            // SAFETY: where a process of the server reads the file: in its main loop.
            unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
        }
        events::say_what_was_left_out(false);
        if looked.elapsed() >= LOOK_EVERY {
            suspects = reclaim(&suspects);
            looked = Instant::now();
        }
    }
    events::say_what_was_left_out(true);
    // Told to stop. Unless the server is stopping, the postmaster starts a worker again that did
    // not end with 0. SAFETY: ends the process as the server's own do; nothing is held.
    unsafe { pg_sys::proc_exit(1) };
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
