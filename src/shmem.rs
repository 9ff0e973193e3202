//! The tables in shared memory: the sessions, the trail of what was decided, and the statistics.
//!
//! Lock protocol. Each has an LWLock, and nobody holds two. Under any of them nothing raises,
//! logs, allocates, looks up a name or signals; what is wanted is copied out.
//! - One guards the slots, the heirs and the order of the queue: whoever changes them holds it
//!   exclusively, `snapshot` and `my_notice` shared. The claims, the heirs and the queue's entries are
//!   atomic besides (see `sessions`): a release takes no lock, because it comes after the process has left
//!   the process array, when none can be taken. `my_slot` registers the undo of all before the first
//!   decision.
//! - One guards the events, and what was left out of the log: `trail` holds it exclusively.
//! - One guards the statistics: `change_stats` holds it exclusively, `stats` shared.
//!
//! `session_limit_shmem_startup` runs in the postmaster, also anew after a crash, on a fresh
//! segment, and so does `session_limit_shmem_exit`, when there is no other process; the rest in
//! backends and the worker, which inherit `PROCESS`.

use crate::census::Census;
use crate::decide::{self, Attempt, Verdict};
use crate::flood::{Entry, Flood};
use crate::ring::{Record, Ring};
use crate::sessions::{
    Bound, Claim, Columns, Notice, OwnTable, Shared, Slot, TILE, Table, Unknown,
};
use crate::sweep::{Ending, Found, Over, Sweep};
use crate::tally::Tally;
use crate::{compat, error, server, settings, stats};
use pgrx::pg_sys::{self, LWLockMode};
use pgrx::prelude::*;
use std::cell::{Cell, OnceCell, UnsafeCell};
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

const LOCK_NAME: &CStr = c"session_limit";
const TRAIL_LOCK_NAME: &CStr = c"session_limit_events";
const STATS_LOCK_NAME: &CStr = c"session_limit_stats";

/// How many limits there is room for in the queue, for each slot. A login with more of them than are
/// left does not wait.
const BOUNDS: usize = 4;

/// How many causes of lines in the log are told apart in one second.
const CAUSES: usize = 256;

/// What was decided.
pub struct Trail {
    pub ring: Ring<'static>,
    pub flood: Flood<'static>,
}

struct Memory {
    arrivals: &'static AtomicU64,
    shared: Shared<'static>,
    table: Locked<Table<'static>>,
    trail: Locked<Trail>,
    stats: Locked<&'static mut Tally>,
    worker: &'static Worker,
    labels: &'static LabelChanges,
    /// Where the columns are.
    columns: [(*const u8, usize); 3],
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
            server::LWLockAcquire(self.lock, LWLockMode::LW_EXCLUSIVE);
            let changed = change(&mut *self.value.get());
            server::LWLockRelease(self.lock);
            changed
        }
    }

    fn shared<R>(&self, copy: impl FnOnce(&T) -> R) -> R {
        // SAFETY: as above, but the shared lock keeps out only writers.
        unsafe {
            server::LWLockAcquire(self.lock, LWLockMode::LW_SHARED);
            let copied = copy(&*self.value.get());
            server::LWLockRelease(self.lock);
            copied
        }
    }
}

/// What others tell the background worker.
struct Worker {
    /// 0, or one more than its slot.
    slot: AtomicU32,
    /// A limit may have changed since it was asked.
    changed: AtomicBool,
}

/// Most servers have no label, and each login would open a file to see that: it is enough that one saw it, and
/// that no label was changed since.
struct LabelChanges {
    /// So many transactions are changing some now.
    now: AtomicU32,
    /// So many have done so.
    done: AtomicU64,
    /// When so many had, there was none.
    none_after: AtomicU64,
}

/// A process's own variables. A backend is one thread.
struct Process {
    memory: UnsafeCell<Option<Memory>>,
    /// This backend's slot, once its release is registered.
    slot: OnceCell<usize>,
    claim: Cell<Option<Claim>>,
    /// The claim is that of a login which has not arrived.
    arriving: Cell<bool>,
    /// Its transaction changes labels.
    changes_labels: Cell<bool>,
    previous_request: Cell<pg_sys::shmem_request_hook_type>,
    previous_startup: Cell<pg_sys::shmem_startup_hook_type>,
}

// SAFETY: PostgreSQL runs this library in single-threaded processes.
unsafe impl Sync for Process {}

static PROCESS: Process = Process {
    memory: UnsafeCell::new(None),
    slot: OnceCell::new(),
    claim: Cell::new(None),
    arriving: Cell::new(false),
    changes_labels: Cell::new(false),
    previous_request: Cell::new(None),
    previous_startup: Cell::new(None),
};

fn memory() -> &'static Memory {
    existing_memory().unwrap_or_else(|| error::not_preloaded())
}

/// None if the library was not preloaded.
fn existing_memory() -> Option<&'static Memory> {
    // SAFETY: written only by the postmaster's startup hook, while nobody holds a reference.
    unsafe { (*PROCESS.memory.get()).as_ref() }
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
        let tiles = slots.div_ceil(TILE);
        let bytes = [
            array_size::<AtomicU64>(slots + 1),
            array_size::<AtomicU32>(slots + 1),
            array_size::<AtomicU32>(slots),
            array_size::<u32>(tiles * TILE),
            array_size::<u32>(tiles * TILE),
            array_size::<u8>(tiles * TILE),
            array_size::<Slot>(slots),
            array_size::<Bound>(slots * BOUNDS),
            array_size::<Record>(settings::max_events()),
            array_size::<u64>(1),
            array_size::<Entry>(CAUSES),
            array_size::<Tally>(1),
            array_size::<Worker>(1),
            array_size::<LabelChanges>(1),
        ];
        pg_sys::RequestAddinShmemSpace(bytes.iter().sum());
        for lock in [LOCK_NAME, TRAIL_LOCK_NAME, STATS_LOCK_NAME] {
            pg_sys::RequestNamedLWLockTranche(lock.as_ptr(), 1);
        }
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
        let tiles = slots.div_ceil(TILE);
        // In this order: what every login reads lies together, so that the kernel maps it at once.
        let claims = array(c"session_limit claims", slots + 1, || AtomicU64::new(0));
        let queue = array(c"session_limit queue", slots + 1, || AtomicU32::new(0));
        let heirs = array(c"session_limit heirs", slots, || AtomicU32::new(0));
        let labels = array(c"session_limit labels", 1, || LabelChanges {
            now: AtomicU32::new(0),
            done: AtomicU64::new(0),
            none_after: AtomicU64::new(u64::MAX),
        });
        let columns = Columns {
            databases: array(c"session_limit databases", tiles * TILE, || 0),
            hosts: array(c"session_limit hosts", tiles * TILE, || 0),
            marks: array(c"session_limit marks", tiles * TILE, || 0),
        };
        let bytes = |start: *const u32| (start.cast(), tiles * TILE * size_of::<u32>());
        let places = [
            bytes(columns.databases.as_mut_ptr()),
            bytes(columns.hosts.as_mut_ptr()),
            (columns.marks.as_mut_ptr().cast_const(), tiles * TILE),
        ];
        let bounds_of = slots * BOUNDS;
        let slots = array(c"session_limit slots", slots, Slot::free);
        let tally = array(c"session_limit stats", 1, || Tally::new(0));
        let bounds = array(c"session_limit bounds", bounds_of, || Bound::FREE);
        let worker = array(c"session_limit worker", 1, || Worker {
            slot: AtomicU32::new(0),
            changed: AtomicBool::new(false),
        });
        let pushed = array(c"session_limit events so far", 1, || 0);
        let events = array(c"session_limit events", settings::max_events(), || {
            Record::EMPTY
        });
        let causes = array(c"session_limit causes", CAUSES, || Entry::FREE);
        let (
            Some((arrivals, claims)),
            Some((waiting, queue)),
            Some(labels),
            Some(tally),
            Some(worker),
            Some(pushed),
        ) = (
            claims.split_first(),
            queue.split_first(),
            labels.first(),
            tally.first_mut(),
            worker.first(),
            pushed.first_mut(),
        )
        else {
            return;
        };
        let shared = Shared::new(claims, queue, waiting, heirs);
        let trail = Trail {
            ring: Ring::new(events, pushed),
            flood: Flood::new(causes),
        };
        stats::load(tally);
        *PROCESS.memory.get() = Some(Memory {
            arrivals,
            shared,
            table: Locked::new(LOCK_NAME, Table::new(shared, slots, columns, bounds)),
            trail: Locked::new(TRAIL_LOCK_NAME, trail),
            stats: Locked::new(STATS_LOCK_NAME, tally),
            worker,
            labels,
            columns: places,
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
            server::before_shmem_exit(Some(session_limit_leave_queue), pg_sys::Datum::null());
            server::on_proc_exit(Some(session_limit_release), pg_sys::Datum::null());
        }
        compat::my_slot()
    })
}

/// Decides on this backend's login.
pub fn decide(attempt: &Attempt) -> Result<Verdict, Unknown> {
    let memory = memory();
    let slot = attempt.slot;
    PROCESS
        .claim
        .set(Some(Claim::new(attempt.pid, attempt.session.role)));
    map_columns(memory);
    let may_replace = attempt.rules.replacing.allowed;
    let mut census = Census::new(memory.shared, attempt.members, may_replace);
    let (has_left_the_queue, verdict) = memory.table.exclusively(|table| {
        let waits = |table: &Table| table.waiters().any(|waiter| waiter.slot == slot);
        let waited = waits(table);
        let verdict = decide::attempt(table, &mut census, attempt);
        (waited && !waits(table), verdict)
    });
    match verdict {
        Ok(Verdict::Admitted(_)) => {}
        Ok(Verdict::Replacing(..)) => PROCESS.arriving.set(true),
        Ok(Verdict::Waiting | Verdict::Refused(_)) | Err(_) => PROCESS.claim.set(None),
    }
    if has_left_the_queue {
        wake_waiters(memory);
    }
    verdict
}

/// A new process has none of the shared memory mapped. It is not to let others wait while the kernel maps
/// what each decision reads: this, and the claims, which are looked at before.
fn map_columns(memory: &Memory) {
    const PAGE: usize = 4096;
    for (column, bytes) in memory.columns {
        for byte in (0..bytes).step_by(PAGE) {
            // SAFETY: within the column, which stays where it is. Whoever holds the lock may be writing it, but
            // what is read is not used, and volatile, so that nothing is concluded from it.
            unsafe { column.add(byte).read_volatile() };
        }
    }
}

/// The next number in the order of arrival.
pub fn next_arrival() -> u64 {
    let arrivals = memory().arrivals;
    // Memory that is read first is mapped with what is around it, which is needed next.
    arrivals.load(Ordering::Relaxed);
    arrivals.fetch_add(1, Ordering::Relaxed)
}

/// The process IDs of the sessions whose places this backend is to have, once it is noted that they
/// are told to end.
pub fn notify_predecessors() -> Vec<u32> {
    predecessors(|table, slot| table.notify(slot))
}

/// Those that are still there. When none is, this backend is a session.
pub fn remaining_predecessors() -> Vec<u32> {
    let remaining = predecessors(|table, slot| {
        table.arrive(slot);
    });
    PROCESS.arriving.set(!remaining.is_empty());
    remaining
}

fn predecessors(change: impl FnOnce(&mut Table, usize)) -> Vec<u32> {
    let slot = my_slot();
    let mut pids = Vec::with_capacity(slots());
    memory().table.exclusively(|table| {
        change(table, slot);
        pids.extend(table.predecessors(slot));
    });
    pids
}

/// Why this backend's session was told to end, if it was, and its role.
pub fn my_notice() -> Option<(Notice, u32)> {
    let role = PROCESS.claim.get()?.role();
    let slot = *PROCESS.slot.get()?;
    let notice = memory().table.shared(|table| table.notice(slot))?;
    Some((notice, role))
}

/// Adds to the trail, or reads it, while nobody else does.
pub fn trail<R>(change: impl FnOnce(&mut Trail) -> R) -> R {
    memory().trail.exclusively(change)
}

/// Runs in a backend that exits, while it may still take locks.
#[pg_guard]
unsafe extern "C-unwind" fn session_limit_leave_queue(_code: i32, _arg: pg_sys::Datum) {
    let Some(&slot) = PROCESS.slot.get() else {
        return;
    };
    let memory = memory();
    if PROCESS.arriving.get() {
        memory.table.exclusively(|table| table.give_back(slot));
        wake_waiters(memory);
    }
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
    let heir = memory.shared.heir(slot);
    let released = memory.shared.release(slot, claim);
    // Also when the slot's next owner has vacated it: that one wakes nobody.
    wake_waiters(memory);
    heir.into_iter().for_each(wake);
    released
}

fn wake_waiters(memory: &Memory) {
    memory.shared.waiters().for_each(wake);
}

fn wake(slot: usize) {
    // SAFETY: a slot is the index of a PGPROC, and those are never freed. SetLatch needs nothing of
    // the caller, and whoever has the PGPROC by now takes a spurious wake-up for what it is.
    unsafe { pg_sys::SetLatch(&raw mut (*(*pg_sys::ProcGlobal).allProcs.add(slot)).procLatch) };
}

/// From now on this process is the one that is woken when a limit changes.
pub fn become_worker() {
    let slot = compat::my_slot() as u32 + 1;
    memory().worker.slot.store(slot, Ordering::SeqCst);
}

/// A limit may have been changed, for everyone to see.
pub fn limits_changed() {
    let Some(memory) = existing_memory() else {
        return;
    };
    memory.worker.changed.store(true, Ordering::SeqCst);
    let slot = memory.worker.slot.load(Ordering::SeqCst) as usize;
    slot.checked_sub(1).into_iter().for_each(wake);
}

/// Whoever waits tries again.
pub fn wake_all_waiters() {
    wake_waiters(memory());
}

/// Whether that has happened since the last call.
pub fn have_limits_changed() -> bool {
    memory().worker.changed.swap(false, Ordering::SeqCst)
}

/// Whether it has happened, and nobody has asked.
pub fn are_limits_changing() -> bool {
    memory().worker.changed.load(Ordering::SeqCst)
}

/// This transaction is about to change a label. If it says so for the first time, `have_changed_labels` must be
/// called when it has ended or is prepared.
pub fn change_labels() -> bool {
    let Some(memory) = existing_memory() else {
        return false;
    };
    let first = !PROCESS.changes_labels.replace(true);
    if first {
        memory.labels.now.fetch_add(1, Ordering::SeqCst);
    }
    first
}

pub fn have_changed_labels() {
    if let Some(memory) = existing_memory()
        && PROCESS.changes_labels.replace(false)
    {
        memory.labels.done.fetch_add(1, Ordering::SeqCst);
        memory.labels.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A moment at which no transaction is changing labels, to be told apart from any after the next one that
/// does; None while one does.
pub fn labels_at_rest() -> Option<u64> {
    let labels = memory().labels;
    // In this order: one that ends in between is seen as done.
    let rest = labels.now.load(Ordering::SeqCst) == 0;
    rest.then(|| labels.done.load(Ordering::SeqCst))
}

/// Whether it is known that there was no label at that moment.
pub fn had_no_labels(at_rest: u64) -> bool {
    memory().labels.none_after.load(Ordering::SeqCst) == at_rest
}

/// There was not even a row of a transaction that has not ended, when somebody looked after that moment.
pub fn saw_no_labels(at_rest: u64) {
    let none_after = &memory().labels.none_after;
    none_after.store(at_rest, Ordering::SeqCst);
}

/// The next login looks again: a superuser can write a label past `SECURITY LABEL`.
pub fn look_for_labels_again() {
    saw_no_labels(u64::MAX);
}

/// Chooses and tells to end the sessions that exceed these limits.
pub fn end_excess(sweep: &Sweep, over: &[Over]) -> Vec<Ending> {
    let mut found = Found::with_room_for(slots());
    memory()
        .table
        .exclusively(|table| sweep.end(table, over, &mut found));
    // Nothing may come in between: nobody tells them again.
    for ending in &found.endings {
        compat::end_session(ending.pid);
    }
    found.endings
}

/// The claims, each with its slot.
pub fn claims() -> impl Iterator<Item = (usize, Claim)> {
    memory().shared.claims()
}

fn slots() -> usize {
    // SAFETY: set before any backend is started.
    unsafe { pg_sys::MaxBackends as usize }
}

/// A copy of the table.
pub fn snapshot() -> OwnTable {
    let memory = memory();
    let mut copy = OwnTable::new(slots(), slots() * BOUNDS);
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
