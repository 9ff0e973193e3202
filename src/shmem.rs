//! The tables in shared memory: the sessions, the event log, the statistics and the seats.
//!
//! Lock protocol. Each has an LWLock, and nobody holds two. Under any of them nothing raises, logs, allocates, looks
//! up a name or signals; what is wanted is copied out.
//! - One guards the slots, the successors and the order of the queue: whoever changes them holds it exclusively, a
//!   reader shared. The claims, the successors and the queue's entries are atomic besides (see `model::atomics`): a
//!   release takes no lock, because it comes after the process has left the process array, when none can be taken.
//! - One guards the events of logins, and what was suppressed of the log: always held exclusively. Another guards those
//!   of seats: whoever asks for seats in a loop pushes no refused login out.
//! - One guards the statistics: whoever changes them holds it exclusively, a reader shared.
//! - One guards the seats, in the same way: no login takes it.
//!
//! The startup hook runs in the postmaster, also anew after a crash, on a fresh segment. So does the exit callback,
//! when there is no other process. The rest runs in backends and in the worker, which inherit `MEMORY`.

use crate::mailbox::Mailbox;
use crate::pg::backend::{Local, max_backends, tick};
use crate::pg::compat;
use crate::pg::ffi;
use crate::pg::lwlock::Locked;
use crate::pg::memory;
use crate::pg::shared_map::SharedMap;
use crate::{error, settings, stats_file};
use model::account::Account;
use model::atomics::{Shared, arrive};
use model::counters::Statistics;
use model::event::Record;
use model::label_changes::LabelChanges;
use model::limit::Condition;
use model::own_table::OwnTable;
use model::ring::Ring;
use model::seats::{Backend, Deadline, Deadlines, Id, Key, KeyInUse, Place, Seats};
use model::servers::counter::Counter;
use model::servers::place::{
    KNOWN_SERVERS, KnownServer, OfSlot, Place as ServerPlace, Places, Reach,
};
use model::table::{Columns, Slot, TILE, Table};
use model::throttle::{Entry, Throttle};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::Cell;
use std::ffi::CStr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const LOCK_NAME: &CStr = c"session_limit";
const EVENT_LOCK_NAME: &CStr = c"session_limit_events";
const SEAT_EVENT_LOCK_NAME: &CStr = c"session_limit_seat_events";
const STATS_LOCK_NAME: &CStr = c"session_limit_stats";
const SEATS_LOCK_NAME: &CStr = c"session_limit_seats";
const WAIT_EVENT: &CStr = c"SessionLimit";
const SEAT_WAIT_EVENT: &CStr = c"SessionLimitSeat";

/// How many limits the queue can store, for each possible backend. A login with more of them than are left does not
/// wait.
const CONDITIONS_A_SLOT: usize = 4;

/// For how many counters across servers there are places, for each possible backend.
const COUNTERS_A_SLOT: usize = 2;

/// What a copy of the table takes, in bytes for each possible backend: at most.
const COPIED_BYTES_A_SLOT: usize =
    size_of::<Slot>() + CONDITIONS_A_SLOT * size_of::<Condition>() + 64;

/// How many causes of log lines are told apart in one second.
const THROTTLED_CAUSES: usize = 256;

/// What was decided, and what was left out of the server log.
pub struct EventLog {
    pub ring: Ring<'static>,
    pub throttle: Throttle<'static>,
}

pub type SeatTable = Seats<'static, SharedMap<Key>, SharedMap<Id>>;

pub struct Memory {
    /// The latest arrival.
    arrivals: &'static AtomicU64,
    pub shared: Shared<'static>,
    pub table: Locked<Table<'static>>,
    event_log: Locked<EventLog>,
    seat_event_log: Locked<EventLog>,
    statistics: Locked<&'static mut Statistics>,
    pub mailbox: &'static Mailbox,
    /// Of the worker that asks etcd.
    pub servers_mailbox: &'static Mailbox,
    label_changes: &'static LabelChanges,
    pub seats: Locked<&'static mut SeatTable>,
    /// Of a process that waits for room.
    pub wait_event: u32,
    /// Of a process that waits for a seat.
    pub seat_wait_event: u32,
}

static MEMORY: Local<Cell<Option<&'static Memory>>> = Local::new(Cell::new(None));
static PREVIOUS_REQUEST: Local<Cell<pg_sys::shmem_request_hook_type>> = Local::new(Cell::new(None));
static PREVIOUS_STARTUP: Local<Cell<pg_sys::shmem_startup_hook_type>> = Local::new(Cell::new(None));

/// Raises an error if the library was not preloaded.
pub fn memory() -> &'static Memory {
    existing_memory().unwrap_or_else(|| error::not_preloaded())
}

/// None if the library was not preloaded.
pub fn existing_memory() -> Option<&'static Memory> {
    MEMORY.get()
}

/// Raises an error if the library was not preloaded.
pub fn require() {
    memory();
}

/// Asks for shared memory, as soon as the server knows how many backends it can have.
pub fn reserve() {
    // SAFETY: the postmaster is loading the library. Hooks are plain variables, and the previous ones are called.
    unsafe {
        PREVIOUS_REQUEST.set(pg_sys::shmem_request_hook);
        pg_sys::shmem_request_hook = Some(session_limit_shmem_request);
        PREVIOUS_STARTUP.set(pg_sys::shmem_startup_hook);
        pg_sys::shmem_startup_hook = Some(session_limit_shmem_startup);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn session_limit_shmem_request() {
    // SAFETY: we are the shmem_request_hook, where these calls belong and MaxBackends is known.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST.get() {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
        let slots = max_backends();
        let padded = slots.next_multiple_of(TILE);
        let bytes = [
            array_size::<AtomicU64>(1 + slots),
            array_size::<AtomicU32>(1 + slots),
            array_size::<AtomicU32>(slots),
            array_size::<AtomicU64>(slots),
            array_size::<u32>(padded),
            array_size::<u32>(padded),
            array_size::<u8>(padded),
            array_size::<Slot>(slots),
            array_size::<Condition>(slots * CONDITIONS_A_SLOT),
            array_size::<Option<Account>>(slots),
            event_log_size(settings::max_events()),
            event_log_size(max_seat_events()),
            array_size::<Statistics>(1),
            array_size::<Mailbox>(2),
            array_size::<LabelChanges>(1),
            seats_size(settings::max_seats(), slots),
            places_size(slots),
        ];
        pg_sys::RequestAddinShmemSpace(bytes.iter().sum());
        for lock in [
            LOCK_NAME,
            EVENT_LOCK_NAME,
            STATS_LOCK_NAME,
            SEATS_LOCK_NAME,
            SEAT_EVENT_LOCK_NAME,
        ] {
            pg_sys::RequestNamedLWLockTranche(lock.as_ptr(), 1);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn session_limit_shmem_startup() {
    // SAFETY: we are the shmem_startup_hook: the space and the locks that were asked for are there, and no other
    // process is.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP.get() {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
        // The one that a crash has made worthless is leaked: a few hundred bytes of the postmaster.
        MEMORY.set(lay_out().map(|memory| &*Box::leak(Box::new(memory))));
        pg_sys::on_shmem_exit(Some(session_limit_shmem_exit), pg_sys::Datum::null());
    }
}

/// Lays the tables out, empty, in the space that was reserved.
///
/// # Safety
/// Only in the shmem_startup_hook.
unsafe fn lay_out() -> Option<Memory> {
    let slots = max_backends();
    let padded = slots.next_multiple_of(TILE);
    // SAFETY: as the caller says. Each array has the size that was reserved, is initialised here, and stays where it
    // is while the server runs.
    unsafe {
        // First what every login reads: side by side, the kernel maps it at once.
        let claims = array(c"session_limit claims", 1 + slots, || AtomicU64::new(0));
        let queue = array(c"session_limit queue", 1 + slots, || AtomicU32::new(0));
        let successors = array(c"session_limit successors", slots, || AtomicU32::new(0));
        let labels = array(c"session_limit labels", 1, LabelChanges::new);
        let columns = Columns {
            databases: array(c"session_limit databases", padded, || 0),
            hosts: array(c"session_limit hosts", padded, || 0),
            marks: array(c"session_limit marks", padded, || 0),
        };
        let last_active = array(c"session_limit last active", slots, || AtomicU64::new(0));
        let places = array(c"session_limit slots", slots, Slot::free);
        let statistics = array(c"session_limit stats", 1, || Statistics::new(0)).first_mut()?;
        let conditions = slots * CONDITIONS_A_SLOT;
        let conditions = array(c"session_limit conditions", conditions, || Condition::FREE);
        let accounts = array(c"session_limit accounts", slots, || None);
        let mailboxes = array(c"session_limit worker", 2, Mailbox::new);
        let (mailbox, servers_mailbox) = mailboxes.split_first()?;
        let (arrivals, claims) = claims.split_first()?;
        let (waiting, queue) = queue.split_first()?;
        let shared = Shared::new(claims, queue, waiting, successors, last_active);
        let across = server_places(slots)?;
        let table = Table::new(shared, places, columns, conditions, accounts, across);
        let names = [
            c"session_limit events so far",
            c"session_limit events",
            c"session_limit causes",
        ];
        let logins = event_log_of(names, settings::max_events())?;
        let names = [
            c"session_limit seat events so far",
            c"session_limit seat events",
            c"session_limit seat causes",
        ];
        let of_seats = event_log_of(names, max_seat_events())?;
        stats_file::load(statistics);
        Some(Memory {
            arrivals,
            shared,
            table: Locked::new(LOCK_NAME, table),
            event_log: Locked::new(EVENT_LOCK_NAME, logins),
            seat_event_log: Locked::new(SEAT_EVENT_LOCK_NAME, of_seats),
            statistics: Locked::new(STATS_LOCK_NAME, statistics),
            mailbox,
            servers_mailbox: servers_mailbox.first()?,
            label_changes: labels.first()?,
            seats: Locked::new(SEATS_LOCK_NAME, seats(settings::max_seats(), slots)),
            wait_event: compat::new_wait_event(WAIT_EVENT),
            seat_wait_event: compat::new_wait_event(SEAT_WAIT_EVENT),
        })
    }
}

/// How many counters this server has places for, slots that can have such places, and servers that it can know; none where
/// servers share no limits.
fn places_lengths(slots: usize) -> [usize; 3] {
    match settings::servers::are_shared() {
        true => [slots * COUNTERS_A_SLOT, slots, KNOWN_SERVERS],
        false => [0; 3],
    }
}

/// What places under limits across servers take, in bytes.
fn places_size(slots: usize) -> usize {
    let [places, slots, known] = places_lengths(slots);
    let sizes = [
        array_size::<ServerPlace>(places),
        array_size::<Counter>(places),
        array_size::<OfSlot>(slots),
        array_size::<KnownServer>(known),
        array_size::<Reach>(1),
    ];
    sizes.iter().sum()
}

/// # Safety
/// Only in the shmem_startup_hook, once.
unsafe fn server_places(slots: usize) -> Option<Places<'static>> {
    let [places, slots, known] = places_lengths(slots);
    // SAFETY: as the caller says.
    unsafe {
        Some(Places::new(
            array(c"session_limit places", places, ServerPlace::default),
            array(c"session_limit counters", places, || Counter::NONE),
            array(c"session_limit slots' places", slots, OfSlot::default),
            array(c"session_limit servers", known, || KnownServer::NONE),
            array(c"session_limit reach", 1, || Reach::NEW).first_mut()?,
        ))
    }
}

/// Where there are no seats, nothing happens to them.
fn max_seat_events() -> usize {
    match settings::max_seats() {
        0 => 0,
        _ => settings::max_events(),
    }
}

fn event_log_size(events: usize) -> usize {
    array_size::<Record>(events) + array_size::<u64>(1) + array_size::<Entry>(THROTTLED_CAUSES)
}

/// # Safety
/// Only in the shmem_startup_hook, once for each name.
unsafe fn event_log_of(names: [&CStr; 3], events: usize) -> Option<EventLog> {
    let [pushed, records, causes] = names;
    // SAFETY: as the caller says.
    unsafe {
        Some(EventLog {
            ring: Ring::new(
                array(records, events, || Record::EMPTY),
                array(pushed, 1, || 0).first_mut()?,
            ),
            throttle: Throttle::new(array(causes, THROTTLED_CAUSES, || Entry::FREE)),
        })
    }
}

/// What the seats take, in bytes.
fn seats_size(seats: usize, slots: usize) -> usize {
    let sizes = [
        array_size::<Place>(seats),
        array_size::<KeyInUse>(seats),
        array_size::<Deadline>(seats),
        array_size::<u32>(seats),
        array_size::<Backend>(slots),
        array_size::<SeatTable>(1),
        SharedMap::<Key>::size(seats),
        SharedMap::<Id>::size(seats),
    ];
    sizes.iter().sum()
}

/// # Safety
/// Only in the shmem_startup_hook, once.
unsafe fn seats(seats: usize, slots: usize) -> &'static mut SeatTable {
    // SAFETY: as the caller says.
    unsafe {
        let places = array(c"session_limit seats", seats, || Place::FREE);
        let known = array(c"session_limit keys", seats, || KeyInUse::FREE);
        let backends = array(c"session_limit seat backends", slots, || Backend::NONE);
        let heap = array(c"session_limit deadlines", seats, || Deadline::NONE);
        let of_seats = array(c"session_limit seat deadlines", seats, || 0);
        let keys = SharedMap::new(c"session_limit keys by text", seats);
        let ids = SharedMap::new(c"session_limit seats by name", seats);
        let deadlines = Deadlines::new(heap, of_seats);
        let table = Seats::new(places, known, backends, deadlines, (keys, ids));
        // It has numbers of its own, which all processes share.
        place(c"session_limit seat table", table)
    }
}

/// Runs in the postmaster, also before it starts all anew after a crash.
#[pg_guard]
unsafe extern "C-unwind" fn session_limit_shmem_exit(_code: i32, _arg: pg_sys::Datum) {
    // SAFETY: what is read is used only if the server was shut down, so that no backend is left to change it. The lock
    // could not be taken: a backend that was killed may have held it.
    stats_file::save(unsafe { memory().statistics.without_lock() });
}

/// What `ShmemInitStruct` takes for an array of `T`, in bytes: it rounds up to a cache line.
fn array_size<T>(length: usize) -> usize {
    (length * size_of::<T>()).next_multiple_of(pg_sys::PG_CACHE_LINE_SIZE as usize)
}

/// # Safety
/// Only in the shmem_startup_hook, once for each name.
unsafe fn array<T>(name: &CStr, length: usize, element: fn() -> T) -> &'static mut [T] {
    // SAFETY: as the caller says. There is room for so many.
    unsafe {
        let array = room::<T>(name, length);
        for index in 0..length {
            array.add(index).write(element());
        }
        std::slice::from_raw_parts_mut(array, length)
    }
}

/// # Safety
/// Only in the shmem_startup_hook, once for each name. What the value refers to is in shared memory, or was there before the
/// first process was forked.
unsafe fn place<T>(name: &CStr, value: T) -> &'static mut T {
    // SAFETY: as the caller says. There is room for it.
    unsafe {
        let place = room::<T>(name, 1);
        place.write(value);
        &mut *place
    }
}

/// Memory for so many, not initialised.
///
/// # Safety
/// Only in the shmem_startup_hook, once for each name.
unsafe fn room<T>(name: &CStr, length: usize) -> *mut T {
    let mut found = false;
    // SAFETY: the caller is the startup hook. The memory is aligned to a cache line, large enough, and only ours.
    unsafe { ffi::ShmemInitStruct(name.as_ptr(), array_size::<T>(length), &mut found) }.cast()
}

/// The tick at which this login arrives, later than that of any other.
pub fn next_arrival() -> u64 {
    arrive(memory().arrivals, tick())
}

/// The servers that count together.
pub fn known_servers() -> Vec<KnownServer> {
    let mut copy = vec![KnownServer::NONE; KNOWN_SERVERS];
    let copied = memory().table.shared(|table| {
        let known = table.places.servers.iter().zip(&mut copy);
        known.map(|(server, copy)| *copy = *server).count()
    });
    copy.truncate(copied);
    copy.retain(|server| server.known);
    copy
}

/// The tick of the login that arrived last.
pub fn latest_arrival() -> u64 {
    memory().arrivals.load(Ordering::SeqCst)
}

/// A copy of the slot table.
pub fn snapshot() -> OwnTable {
    let slots = max_backends();
    memory::require(slots * COPIED_BYTES_A_SLOT + places_size(slots));
    let conditions = slots * CONDITIONS_A_SLOT;
    let [places, ..] = places_lengths(slots);
    let mut copy = OwnTable::with_places(slots, conditions, places);
    memory().table.shared(|table| copy.copy(table));
    copy
}

/// Whether there is any label.
pub fn label_changes() -> &'static LabelChanges {
    memory().label_changes
}

/// As `label_changes`; None if the library was not preloaded.
pub fn existing_label_changes() -> Option<&'static LabelChanges> {
    existing_memory().map(|memory| memory.label_changes)
}

/// What the events of a log are about.
#[derive(Clone, Copy)]
pub enum About {
    Logins,
    Seats,
}

/// Adds to an event log, or reads it, while nobody else does.
pub fn event_log<R>(about: About, change: impl FnOnce(&mut EventLog) -> R) -> R {
    match about {
        About::Logins => memory().event_log.exclusively(change),
        About::Seats => memory().seat_event_log.exclusively(change),
    }
}

pub fn change_statistics(change: impl FnOnce(&mut Statistics)) {
    memory()
        .statistics
        .exclusively(|statistics| change(statistics));
}

/// Asks the statistics something, without a copy.
pub fn ask_statistics(question: impl FnOnce(&Statistics) -> bool) -> bool {
    memory()
        .statistics
        .shared(|statistics| question(statistics))
}

/// A copy of the statistics.
pub fn statistics() -> Box<Statistics> {
    memory::require(size_of::<Statistics>());
    // Not by way of the stack, which has less room.
    let mut copy = Box::<Statistics>::new_uninit();
    memory().statistics.shared(|statistics| {
        copy.write(**statistics);
    });
    // SAFETY: written just now.
    unsafe { copy.assume_init() }
}
