//! A slot table in a process's own memory: the copy that a view or a sweep reads without the lock, or a test's.

use crate::account::Account;
use crate::atomics::Shared;
use crate::limit::Condition;
use crate::servers::counter::Counter;
use crate::servers::place::{KNOWN_SERVERS, KnownServer, OfSlot, Place, Places, Reach};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::table::{Columns, Slot, TILE, Table};

/// The memory of a [`Table`].
pub struct OwnTable {
    pub atomics: OwnAtomics,
    pub rows: OwnRows,
}

/// The memory of a [`Shared`].
pub struct OwnAtomics {
    claims: Vec<AtomicU64>,
    queue: Vec<AtomicU32>,
    waiting: AtomicU32,
    successors: Vec<AtomicU32>,
    last_active: Vec<AtomicU64>,
}

/// The memory that nobody reads without the lock.
pub struct OwnRows {
    slots: Vec<Slot>,
    databases: Vec<u32>,
    hosts: Vec<u32>,
    marks: Vec<u8>,
    conditions: Vec<Condition>,
    accounts: Vec<Option<Account>>,
    places: OwnPlaces,
}

/// The memory of [`Places`].
struct OwnPlaces {
    rows: Vec<Place>,
    names: Vec<Counter>,
    of_slots: Vec<OfSlot>,
    servers: Vec<KnownServer>,
    reach: Reach,
}

impl OwnTable {
    /// An empty table, with room for `conditions` conditions of all waiters together.
    pub fn new(slots: usize, conditions: usize) -> OwnTable {
        OwnTable::with_places(slots, conditions, 0)
    }

    /// The same, with places for so many counters across servers.
    pub fn with_places(slots: usize, conditions: usize, places: usize) -> OwnTable {
        OwnTable {
            atomics: OwnAtomics {
                claims: (0..slots).map(|_| AtomicU64::new(0)).collect(),
                queue: (0..slots).map(|_| AtomicU32::new(0)).collect(),
                waiting: AtomicU32::new(0),
                successors: (0..slots).map(|_| AtomicU32::new(0)).collect(),
                last_active: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            },
            rows: OwnRows {
                slots: vec![Slot::free(); slots],
                databases: vec![0; slots.next_multiple_of(TILE)],
                hosts: vec![0; slots.next_multiple_of(TILE)],
                marks: vec![0; slots.next_multiple_of(TILE)],
                conditions: vec![Condition::FREE; conditions],
                accounts: vec![None; slots],
                places: OwnPlaces {
                    rows: vec![Place::default(); places],
                    names: vec![Counter::NONE; places],
                    of_slots: vec![OfSlot::default(); if places > 0 { slots } else { 0 }],
                    servers: vec![KnownServer::NONE; if places > 0 { KNOWN_SERVERS } else { 0 }],
                    reach: Reach::NEW,
                },
            },
        }
    }

    pub fn table(&mut self) -> Table<'_> {
        self.rows.table(self.atomics.shared())
    }

    /// Becomes a copy of `table`, which has the same size. Allocates nothing, so it may run under the lock.
    pub fn copy(&mut self, table: &Table) {
        self.atomics.copy(table.shared);
        let rows = &mut self.rows;
        rows.slots.clone_from_slice(table.slots);
        rows.databases.copy_from_slice(table.columns.databases);
        rows.hosts.copy_from_slice(table.columns.hosts);
        rows.marks.copy_from_slice(table.columns.marks);
        rows.accounts.copy_from_slice(table.accounts);
        rows.places.copy(&table.places);
        let used = table.waiters().map(|waiter| waiter.conditions.len()).sum();
        let conditions = rows.conditions.iter_mut().zip(table.conditions.iter());
        conditions
            .take(used)
            .for_each(|(own, condition)| *own = *condition);
    }
}

impl OwnAtomics {
    pub fn shared(&self) -> Shared<'_> {
        Shared::new(
            &self.claims,
            &self.queue,
            &self.waiting,
            &self.successors,
            &self.last_active,
        )
    }

    fn copy(&mut self, shared: Shared) {
        let words = self.claims.iter().chain(&self.last_active);
        for (own, word) in words.zip(shared.claims.iter().chain(shared.last_active)) {
            own.store(word.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        let words = self.queue.iter().chain(&self.successors);
        for (own, word) in words.zip(shared.queue.iter().chain(shared.successors)) {
            own.store(word.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        let waiting = shared.waiting.load(Ordering::Relaxed);
        self.waiting.store(waiting, Ordering::Relaxed);
    }
}

impl OwnRows {
    pub fn table<'a>(&'a mut self, shared: Shared<'a>) -> Table<'a> {
        let columns = Columns {
            databases: &mut self.databases,
            hosts: &mut self.hosts,
            marks: &mut self.marks,
        };
        Table::new(
            shared,
            &mut self.slots,
            columns,
            &mut self.conditions,
            &mut self.accounts,
            self.places.places(),
        )
    }
}

impl OwnPlaces {
    fn copy(&mut self, places: &Places) {
        let used = places.used();
        let rows = self.rows.iter_mut().zip(places.rows.iter());
        rows.take(used).for_each(|(own, row)| *own = *row);
        let names = self.names.iter_mut().zip(places.names.iter());
        names.take(used).for_each(|(own, name)| *own = *name);
        self.of_slots.copy_from_slice(places.of_slots);
        self.servers.copy_from_slice(places.servers);
        self.reach = *places.reach;
    }

    fn places(&mut self) -> Places<'_> {
        Places::new(
            &mut self.rows,
            &mut self.names,
            &mut self.of_slots,
            &mut self.servers,
            &mut self.reach,
        )
    }
}
