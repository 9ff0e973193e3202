//! This backend's slot: claimed and queued by a decision, given back as the process exits.
//!
//! The undo comes before the do: `my_slot` registers both exit callbacks before the first decision.
//! - Before the process leaves shared memory it may still take locks: it leaves the queue, and gives back a claim that
//!   still waits for its victims to go.
//! - After it has left the process array it frees its claim, by compare-and-swap of its own value. Not earlier: the
//!   server's own CONNECTION LIMIT check, right after our hook, still counts it until then.
//!
//! At the end of each transaction this backend notes the tick, so that others know since when it has been idle. The
//! server's own `state_change` is a time of the wall clock.

use crate::error;
use crate::pg::backend::{self, Local, max_backends};
use crate::pg::{compat, ffi};
use crate::shmem::memory;
use model::attempt::Attempt;
use model::count::SessionCounter;
use model::decide;
use model::members::Missing;
use model::replace::idle_victim_woke;
use model::servers::place::Wanted;
use model::session::{Claim, EndReason, Session};
use model::sweep::{self, Ending, Exceeded, Found, Sweep};
use model::table::Table;
use model::verdict::Verdict;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::{Cell, OnceCell, RefCell};
use std::ffi::c_void;
use std::ptr::null_mut;

/// The number of this backend's slot, once its release is registered.
static SLOT: Local<OnceCell<usize>> = Local::new(OnceCell::new());
static CLAIM: Local<Cell<Option<Claim>>> = Local::new(Cell::new(None));
/// The claim is that of a login whose victims are not all gone.
static PENDING: Local<Cell<bool>> = Local::new(Cell::new(false));
/// The victims of this login that were chosen because they are idle, each with the tick since which.
static IDLE_VICTIMS: Local<RefCell<Vec<(usize, u64)>>> = Local::new(RefCell::new(Vec::new()));

/// This backend's login is under limits across servers.
static HAS_PLACES: Local<Cell<bool>> = Local::new(Cell::new(false));

/// Since which tick this backend's login asks for places, which etcd may answer; 0: it does not.
static ASKS_SINCE: Local<Cell<u64>> = Local::new(Cell::new(0));

/// This backend may be in the queue.
static QUEUED: Local<Cell<bool>> = Local::new(Cell::new(false));

/// This backend's slot. Whatever it will hold is given up when the process ends.
pub fn my_slot() -> usize {
    *SLOT.get_or_init(|| {
        // SAFETY: the callbacks are functions of this library, which is never unloaded.
        unsafe {
            ffi::RegisterXactCallback(Some(session_limit_transaction_ends), null_mut());
            ffi::before_shmem_exit(Some(session_limit_leave_queue), pg_sys::Datum::null());
            ffi::on_proc_exit(Some(session_limit_release), pg_sys::Datum::null());
        }
        compat::my_slot()
    })
}

/// How many sessions a limit counts; None if that is not known.
pub type InUse = Cell<Option<u32>>;

/// Decides on this backend's login: counts, decides and claims in one hold of the lock. For a login that is admitted it also
/// returns how many sessions each of its limits counts then. `wanted` are its limits across servers.
pub fn decide(attempt: &Attempt, wanted: &[Wanted]) -> Result<(Verdict, Vec<InUse>), Missing> {
    let memory = memory();
    CLAIM.set(Some(Claim::new(attempt.pid, attempt.session.role)));
    let has_waited = QUEUED.replace(true);
    let may_replace = attempt.rules.replacing.allowed;
    // All that the decision needs is allocated here, before the lock.
    let mut counter = SessionCounter::new(
        memory.shared,
        attempt.members,
        may_replace,
        attempt.tallies(),
    );
    counter.in_use = vec![Cell::new(None); attempt.limits.len()];
    let mut limits = match wanted {
        [] => Vec::new(),
        _ => attempt.limits.to_vec(),
    };
    let (mut have_room, mut asks_since) = (true, 0);
    let verdict = memory.table.exclusively(|table| {
        if wanted.is_empty() {
            return decide::attempt(table, &mut counter, attempt);
        }
        have_room = table.enter(attempt.slot, wanted, &mut limits);
        table.wait_for_nothing(&mut limits, &attempt.across);
        let limits = &limits;
        let verdict = decide::attempt(table, &mut counter, &Attempt { limits, ..*attempt });
        if table.places.reach.answers {
            asks_since = table.places.asks_since(attempt.slot);
        }
        verdict
    });
    ASKS_SINCE.set(asks_since);
    if !have_room && memory.servers_mailbox.may_complain() {
        error::no_room_for_count();
    }
    HAS_PLACES.set(!wanted.is_empty());
    // It asks for places, or no longer. Whoever is let in at once takes one that is there.
    let is_in_at_once = !has_waited && matches!(verdict, Ok(Verdict::Admitted(_)));
    if HAS_PLACES.get() && !is_in_at_once {
        memory.servers_mailbox.wake();
    }
    QUEUED.set(matches!(verdict, Ok(Verdict::Waiting) | Err(_)));
    match verdict {
        Ok(Verdict::Admitted(_)) => {}
        Ok(Verdict::Replacing(..)) => {
            PENDING.set(true);
            IDLE_VICTIMS.replace(counter.idle_victims);
        }
        Ok(Verdict::Waiting | Verdict::Refused(_)) | Err(_) => CLAIM.set(None),
    }
    counter.wake.iter().copied().for_each(backend::wake);
    verdict.map(|verdict| (verdict, counter.in_use))
}

/// Since which tick this backend's login, which waits, asks for places; None if it does not, or etcd does not answer.
pub fn asks_since() -> Option<u64> {
    Some(ASKS_SINCE.get()).filter(|since| *since > 0)
}

/// Notes that this backend's victims are told to end, and returns their process IDs. None if one of them was chosen because
/// it was idle, and has begun a transaction since. The caller tells the victims at once: this is the last look at them.
pub fn mark_victims() -> Option<Vec<u32>> {
    let idle_victims = IDLE_VICTIMS.take();
    let mut woke = false;
    let victims = victims(|table, slot| {
        woke = idle_victim_woke(table, slot, &idle_victims, &compat::is_idle);
        if !woke {
            table.tell_victims(slot);
        }
    });
    (!woke).then_some(victims)
}

/// The process IDs of this backend's victims that are still there. When none is, this backend is a session.
pub fn remaining_victims() -> Vec<u32> {
    let remaining = victims(|table, slot| {
        table.complete(slot);
    });
    PENDING.set(!remaining.is_empty());
    remaining
}

fn victims(change: impl FnOnce(&mut Table, usize)) -> Vec<u32> {
    let slot = my_slot();
    let mut pids = Vec::with_capacity(max_backends());
    memory().table.exclusively(|table| {
        change(table, slot);
        pids.extend(table.victims(slot));
    });
    pids
}

/// Why this backend's session was told to end, if it was, and its role.
pub fn my_end_reason() -> Option<(EndReason, u32)> {
    let role = CLAIM.get()?.role();
    let slot = *SLOT.get()?;
    let reason = memory().table.shared(|table| table.end_reason(slot))?;
    Some((reason, role))
}

/// Chooses and tells to end the sessions that exceed these limits.
pub fn end_excess(sweep: &Sweep, exceeded: &[Exceeded]) -> Vec<Ending> {
    let mut found = Found::with_room_for(max_backends());
    memory()
        .table
        .exclusively(|table| sweep.end(table, exceeded, &mut found));
    // Nothing may come in between: nobody tells them again.
    for ending in &found.endings {
        backend::end_session(ending.pid);
    }
    found.endings
}

/// Tells the sessions of these roles, which were dropped, to end. Returns their process IDs and the sessions.
pub fn end_sessions_of(dropped: &[u32], count_walsenders: bool) -> Vec<(u32, Session)> {
    let mut found = Vec::with_capacity(max_backends());
    memory().table.exclusively(|table| {
        sweep::end_sessions_of(dropped, count_walsenders, table, &mut found);
    });
    for (pid, _) in &found {
        backend::end_session(*pid);
    }
    found
}

/// Leaves the queue, and gives back a claim whose victims are not all gone. Others may find room then.
pub fn give_up() {
    let Some(&slot) = SLOT.get() else {
        return;
    };
    if !QUEUED.get() && !PENDING.get() {
        return;
    }
    let first = memory().table.exclusively(|table| {
        if PENDING.get() {
            table.roll_back(slot);
        }
        table.dequeue(slot);
        table.leave_places(slot);
        table.shared.first_waiter()
    });
    if HAS_PLACES.get() {
        memory().servers_mailbox.wake();
    }
    if PENDING.replace(false) {
        CLAIM.set(None);
    }
    QUEUED.set(false);
    first.into_iter().for_each(backend::wake);
}

/// Runs in a backend that exits, while it may still take locks.
#[pg_guard]
unsafe extern "C-unwind" fn session_limit_leave_queue(_code: i32, _arg: pg_sys::Datum) {
    give_up();
}

/// Runs in a backend that has left the process array and given back its PGPROC.
#[pg_guard]
unsafe extern "C-unwind" fn session_limit_release(_code: i32, _arg: pg_sys::Datum) {
    if let (Some(&slot), Some(claim)) = (SLOT.get(), CLAIM.get()) {
        release(slot, claim);
        if HAS_PLACES.get() {
            memory().servers_mailbox.wake();
        }
    }
}

/// Frees a slot whose process is gone; false if it does not hold this claim any more.
pub fn release(slot: usize, claim: Claim) -> bool {
    let memory = memory();
    let successor = memory.shared.successor(slot);
    let released = memory.shared.release(slot, claim);
    memory
        .shared
        .first_waiter()
        .into_iter()
        .for_each(backend::wake);
    successor.into_iter().for_each(backend::wake);
    released
}

/// The server calls it at the end of each transaction, and before. The transaction may be one that the server runs in an
/// idle session, to read what others have announced: that does not make the session busy.
#[pg_guard]
unsafe extern "C-unwind" fn session_limit_transaction_ends(
    event: pg_sys::XactEvent::Type,
    _arg: *mut c_void,
) {
    use pg_sys::XactEvent::{XACT_EVENT_ABORT, XACT_EVENT_COMMIT, XACT_EVENT_PREPARE};
    if ![XACT_EVENT_COMMIT, XACT_EVENT_ABORT, XACT_EVENT_PREPARE].contains(&event) {
        return;
    }
    if let (Some(&slot), false) = (SLOT.get(), backend::is_idle()) {
        memory().shared.note_active(slot, backend::tick());
    }
}

/// Every waiter looks again.
pub fn wake_all_waiters() {
    memory().shared.waiters().for_each(backend::wake);
}
