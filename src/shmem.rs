//! The tables in shared memory.
//!
//! Lock protocol. Each table has an LWLock, and nobody holds both. Under either nothing raises,
//! logs, allocates, looks up a name or signals; what is wanted is copied out.
//! - One guards the slots and the order of the queue: `decide` and `session_limit_leave_queue` hold
//!   it exclusively, `snapshot` shared. The claims and the queue's entries are atomic besides (see
//!   `sessions`): a release takes no lock, because it comes after the process has left the process
//!   array, when none can be taken. `my_slot` registers the undo of both before the first decision.
//! - One guards the statistics: `change_stats` holds it exclusively, `stats` shared.
//!
//! `session_limit_shmem_startup` runs in the postmaster, also anew after a crash, on a fresh
//! segment, and so does `session_limit_shmem_exit`, when there is no other process; the rest in
//! backends and the worker, which inherit `PROCESS`.

use crate::decide::{self, Attempt, Verdict};
use crate::sessions::{Bound, Claim, OwnTable, Shared, Slot, Table, UnknownGroup};
use crate::tally::Tally;
use crate::{compat, error, stats};
use pgrx::pg_sys::{self, LWLockMode};
use pgrx::prelude::*;
use std::cell::{Cell, OnceCell, UnsafeCell};
use std::ffi::CStr;
use std::sync::atomic::{AtomicU32, AtomicU64};

const LOCK_NAME: &CStr = c"session_limit";
const STATS_LOCK_NAME: &CStr = c"session_limit_stats";

/// How many limits there is room for in the queue, for each slot. A login with more of them than are
/// left does not wait.
const BOUNDS: usize = 4;

struct Memory {
    shared: Shared<'static>,
    table: Locked<Table<'static>>,
    stats: Locked<&'static mut Tally>,
}

/// What is only reached while its lock is held.
struct Locked<T> {
    lock: *mut pg_sys::LWLock,
    value: UnsafeCell<T>,
}

impl<T> Locked<T> {
    /// # Safety
    /// Only in the shmem_startup_hook, with a name that was asked for, once.
    unsafe fn new(lock: &CStr, value: T) -> Locked<T> {
        Locked {
            // SAFETY: as the caller says.
            lock: unsafe { &raw mut (*pg_sys::GetNamedLWLockTranche(lock.as_ptr())).lock },
            value: UnsafeCell::new(value),
        }
    }

    fn exclusively<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: any process with a PGPROC may take the lock, and it makes this the only reference
        // that anyone has.
        unsafe {
            pg_sys::LWLockAcquire(self.lock, LWLockMode::LW_EXCLUSIVE);
            let changed = change(&mut *self.value.get());
            pg_sys::LWLockRelease(self.lock);
            changed
        }
    }

    fn shared(&self, copy: impl FnOnce(&T)) {
        // SAFETY: as above, but the shared lock keeps out only writers.
        unsafe {
            pg_sys::LWLockAcquire(self.lock, LWLockMode::LW_SHARED);
            copy(&*self.value.get());
            pg_sys::LWLockRelease(self.lock);
        }
    }
}

/// A process's own variables. A backend is one thread.
struct Process {
    memory: UnsafeCell<Option<Memory>>,
    /// This backend's slot, once its release is registered.
    slot: OnceCell<usize>,
    claim: Cell<Option<Claim>>,
    previous_request: Cell<pg_sys::shmem_request_hook_type>,
    previous_startup: Cell<pg_sys::shmem_startup_hook_type>,
}

// SAFETY: PostgreSQL runs this library in single-threaded processes.
unsafe impl Sync for Process {}

static PROCESS: Process = Process {
    memory: UnsafeCell::new(None),
    slot: OnceCell::new(),
    claim: Cell::new(None),
    previous_request: Cell::new(None),
    previous_startup: Cell::new(None),
};

fn memory() -> &'static Memory {
    // SAFETY: written only by the postmaster's startup hook, while nobody holds a reference.
    unsafe { (*PROCESS.memory.get()).as_ref() }.unwrap_or_else(|| error::not_preloaded())
}

/// Raises an error if the library was not preloaded.
pub fn require() {
    memory();
}

/// Whether the postmaster is loading the library, the only time at which shared memory can be asked
/// for.
pub fn can_preload() -> bool {
    // SAFETY: a plain variable of this process.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Asks for shared memory, as soon as the server knows how many backends it can have.
pub fn reserve() {
    // SAFETY: the postmaster is loading the library; hooks are plain variables, and the previous
    // ones are kept and called.
    unsafe {
        PROCESS.previous_request.set(pg_sys::shmem_request_hook);
        pg_sys::shmem_request_hook = Some(session_limit_shmem_request);
        PROCESS.previous_startup.set(pg_sys::shmem_startup_hook);
        pg_sys::shmem_startup_hook = Some(session_limit_shmem_startup);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn session_limit_shmem_request() {
    // SAFETY: we are the shmem_request_hook, where these calls belong and MaxBackends is known.
    unsafe {
        if let Some(previous) = PROCESS.previous_request.get() {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
        let slots = pg_sys::MaxBackends as usize;
        let bytes = [
            array_size::<AtomicU64>(slots),
            array_size::<AtomicU32>(slots + 1),
            array_size::<Slot>(slots),
            array_size::<Bound>(slots * BOUNDS),
            array_size::<Tally>(1),
        ];
        pg_sys::RequestAddinShmemSpace(bytes.iter().sum());
        pg_sys::RequestNamedLWLockTranche(LOCK_NAME.as_ptr(), 1);
        pg_sys::RequestNamedLWLockTranche(STATS_LOCK_NAME.as_ptr(), 1);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn session_limit_shmem_startup() {
    // SAFETY: we are the shmem_startup_hook: the space and the locks that were asked for are there,
    // and no other process is. Each array has the size that was reserved, is initialised below, and
    // stays where it is while the server runs.
    unsafe {
        if let Some(previous) = PROCESS.previous_startup.get() {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
        let slots = pg_sys::MaxBackends as usize;
        let claims = array(c"session_limit claims", slots, || AtomicU64::new(0));
        let queue = array(c"session_limit queue", slots + 1, || AtomicU32::new(0));
        let Some((waiting, queue)) = queue.split_first() else {
            return;
        };
        let shared = Shared::new(claims, queue, waiting);
        let bounds = array(c"session_limit bounds", slots * BOUNDS, || Bound::FREE);
        let slots = array(c"session_limit slots", slots, Slot::free);
        let tally = array(c"session_limit stats", 1, || Tally::new(0));
        let Some(tally) = tally.first_mut() else {
            return;
        };
        stats::load(tally);
        *PROCESS.memory.get() = Some(Memory {
            shared,
            table: Locked::new(LOCK_NAME, Table::new(shared, slots, bounds)),
            stats: Locked::new(STATS_LOCK_NAME, tally),
        });
        pg_sys::on_shmem_exit(Some(session_limit_shmem_exit), pg_sys::Datum::null());
    }
}

/// Runs in the postmaster, also before it starts all anew after a crash.
#[pg_guard]
unsafe extern "C-unwind" fn session_limit_shmem_exit(_code: i32, _arg: pg_sys::Datum) {
    // SAFETY: it is read only if the server was shut down, so that no backend is left to change it. The
    // lock could not be taken anyway, if a backend was killed that held it.
    stats::save(unsafe { &*memory().stats.value.get() });
}

/// What `ShmemInitStruct` takes for an array of `T`: it rounds up to a cache line.
fn array_size<T>(length: usize) -> usize {
    (length * size_of::<T>()).next_multiple_of(pg_sys::PG_CACHE_LINE_SIZE as usize)
}

/// # Safety
/// Only in the shmem_startup_hook, once for each name.
unsafe fn array<T>(name: &CStr, length: usize, element: fn() -> T) -> &'static mut [T] {
    let mut found = false;
    // SAFETY: the caller is the startup hook; the memory is aligned to a cache line, large enough,
    // and only ours.
    unsafe {
        let array = pg_sys::ShmemInitStruct(name.as_ptr(), array_size::<T>(length), &mut found);
        let array = array.cast::<T>();
        for index in 0..length {
            array.add(index).write(element());
        }
        std::slice::from_raw_parts_mut(array, length)
    }
}

/// This backend's slot. Whatever it will hold is given up when the process ends.
pub fn my_slot() -> usize {
    *PROCESS.slot.get_or_init(|| {
        // SAFETY: both callbacks are functions of this library, which is never unloaded.
        unsafe {
            pg_sys::before_shmem_exit(Some(session_limit_leave_queue), pg_sys::Datum::null());
            pg_sys::on_proc_exit(Some(session_limit_release), pg_sys::Datum::null());
        }
        compat::my_slot()
    })
}

/// Decides on this backend's login.
pub fn decide(attempt: &Attempt) -> Result<Verdict, UnknownGroup> {
    let memory = memory();
    let slot = attempt.slot;
    PROCESS
        .claim
        .set(Some(Claim::new(attempt.pid, attempt.session.role)));
    let (has_left_the_queue, verdict) = memory.table.exclusively(|table| {
        let waits = |table: &Table| table.waiters().any(|waiter| waiter.slot == slot);
        let waited = waits(table);
        let verdict = decide::attempt(table, attempt);
        (waited && !waits(table), verdict)
    });
    if !matches!(verdict, Ok(Verdict::Admitted(_))) {
        PROCESS.claim.set(None);
    }
    if has_left_the_queue {
        wake_waiters(memory);
    }
    verdict
}

/// Runs in a backend that exits, while it may still take locks.
#[pg_guard]
unsafe extern "C-unwind" fn session_limit_leave_queue(_code: i32, _arg: pg_sys::Datum) {
    let Some(&slot) = PROCESS.slot.get() else {
        return;
    };
    let memory = memory();
    let queued = memory.shared.waiters().any(|waiter| waiter == slot);
    if queued && memory.table.exclusively(|table| table.dequeue(slot)) {
        wake_waiters(memory);
    }
}

/// Runs in a backend that has left the process array and given back its PGPROC.
#[pg_guard]
unsafe extern "C-unwind" fn session_limit_release(_code: i32, _arg: pg_sys::Datum) {
    if let (Some(&slot), Some(claim)) = (PROCESS.slot.get(), PROCESS.claim.get()) {
        release(slot, claim);
    }
}

/// Frees a slot whose process is gone; false if it does not hold this claim any more.
pub fn release(slot: usize, claim: Claim) -> bool {
    let memory = memory();
    let released = memory.shared.release(slot, claim);
    // Also when the slot's next owner has vacated it: that one wakes nobody.
    wake_waiters(memory);
    released
}

fn wake_waiters(memory: &Memory) {
    for slot in memory.shared.waiters() {
        // SAFETY: a slot is the index of a PGPROC, and those are never freed. SetLatch needs
        // nothing of the caller, and whoever has the PGPROC by now takes a spurious wake-up for
        // what it is.
        unsafe { pg_sys::SetLatch(&raw mut (*(*pg_sys::ProcGlobal).allProcs.add(slot)).procLatch) };
    }
}

/// The claims, each with its slot.
pub fn claims() -> impl Iterator<Item = (usize, Claim)> {
    memory().shared.claims()
}

/// A copy of the table.
pub fn snapshot() -> OwnTable {
    let memory = memory();
    // SAFETY: set before any backend is started.
    let slots = unsafe { pg_sys::MaxBackends as usize };
    let mut copy = OwnTable::new(slots, slots * BOUNDS);
    memory.table.shared(|table| copy.copy(table));
    copy
}

pub fn change_stats(change: impl FnOnce(&mut Tally)) {
    memory().stats.exclusively(|tally| change(tally));
}

/// A copy of the statistics.
pub fn stats() -> Box<Tally> {
    let memory = memory();
    let mut copy = Box::new(Tally::new(0));
    memory.stats.shared(|tally| *copy = **tally);
    copy
}
