//! The slot table: who is in, and who waits. Pure: shared memory and its lock are `shmem`'s.
//!
//! A backend owns the slot at its PGPROC's index. A session is the slot's *claim*, one atomic word,
//! so that it can be given up after the process has left the process array, where no lock can be
//! taken. Everything else is written under the lock. Counts are derived from the claims each time,
//! never kept, so none can drift.
//!
//! The queue holds the slots of the waiting logins in order of arrival. It too is atomic, because
//! whoever gives up a claim must find the waiters without the lock. It reads the queue from the end,
//! while entries only ever move towards the front, so it passes over none. And a waiter enters the
//! queue before it counts, so either it sees the claim gone, or it is woken: that follows from one order
//! of all stores and loads of claims, queue and length, hence SeqCst everywhere.

use crate::limit::{Limits, NONE, Scope};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A backend's hold on its slot: process ID and role OID in one word, 0 when free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim(u64);

impl Claim {
    pub fn new(pid: u32, role: u32) -> Claim {
        Claim((u64::from(pid) << 32) | u64::from(role))
    }

    fn load(word: &AtomicU64) -> Option<Claim> {
        match word.load(Ordering::SeqCst) {
            0 => None,
            claim => Some(Claim(claim)),
        }
    }

    pub fn pid(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub fn role(self) -> u32 {
        self.0 as u32
    }
}

/// What is known of a session, or of a login that waits to become one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Session {
    pub role: u32,
    /// 0 for a walsender without a database.
    pub database: u32,
    /// None over a Unix-domain socket.
    pub address: Option<IpAddr>,
    /// When its process started: microseconds since 2000-01-01, as in a `timestamptz`.
    pub started: i64,
    pub walsender: bool,
    /// Counted, never refused.
    pub exempt: bool,
}

/// One backend's place in the table.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    session: Session,
    /// The limits that a waiting login must meet.
    limits: Limits,
    /// Scratch of one hold of the lock: this waiter fits and goes before whoever is deciding.
    goes_first: bool,
}

impl Slot {
    pub const FREE: Slot = Slot {
        session: Session {
            role: 0,
            database: 0,
            address: None,
            started: 0,
            walsender: false,
            exempt: false,
        },
        limits: NONE,
        goes_first: false,
    };
}

/// The sessions that a limit counts: those in its scope, walsenders among them or not.
#[derive(Clone, Copy)]
pub struct Counted {
    pub scope: Scope,
    pub walsenders: bool,
}

impl Counted {
    pub fn covers(self, session: &Session) -> bool {
        let in_scope = match self.scope {
            Scope::Role(role) => session.role == role,
            Scope::Database(database) => session.database == database,
        };
        in_scope && (self.walsenders || !session.walsender)
    }
}

/// The part of the table that needs no lock.
#[derive(Clone, Copy)]
pub struct Shared<'a> {
    claims: &'a [AtomicU64],
    queue: &'a [AtomicU32],
    waiting: &'a AtomicU32,
}

impl<'a> Shared<'a> {
    /// `claims` and `queue` have one element a slot.
    pub fn new(claims: &'a [AtomicU64], queue: &'a [AtomicU32], waiting: &'a AtomicU32) -> Self {
        Shared {
            claims,
            queue,
            waiting,
        }
    }

    /// Frees the slot if it still holds this claim; whoever owns the slot now keeps it.
    pub fn release(self, slot: usize, claim: Claim) -> bool {
        self.claims.get(slot).is_some_and(|word| {
            word.compare_exchange(claim.0, 0, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        })
    }

    /// The claims, each with its slot.
    pub fn claims(self) -> impl Iterator<Item = (usize, Claim)> {
        let claims = self.claims.iter().map(Claim::load).enumerate();
        claims.filter_map(|(slot, claim)| Some((slot, claim?)))
    }

    /// The slots of the waiters, latest first. Without the lock a slot may come twice, but none is
    /// left out that was in the queue before the call.
    pub fn waiters(self) -> impl Iterator<Item = usize> {
        let waiting = self.waiting.load(Ordering::SeqCst) as usize;
        let queue = self.queue.iter().take(waiting).rev();
        queue.map(|slot| slot.load(Ordering::SeqCst) as usize)
    }
}

/// The whole table: `&mut` under the exclusive lock, `&` under the shared one.
pub struct Table<'a> {
    pub shared: Shared<'a>,
    slots: &'a mut [Slot],
}

impl<'a> Table<'a> {
    /// `slots` has as many elements as there are claims.
    pub fn new(shared: Shared<'a>, slots: &'a mut [Slot]) -> Self {
        Table { shared, slots }
    }

    /// The sessions with their process IDs.
    pub fn sessions(&self) -> impl Iterator<Item = (u32, &Session)> {
        let slots = self.shared.claims.iter().zip(self.slots.iter());
        slots.filter_map(|(word, slot)| Some((Claim::load(word)?.pid(), &slot.session)))
    }

    /// How many sessions a limit counts.
    pub fn count(&self, counted: Counted) -> u32 {
        self.sessions()
            .filter(|(_, session)| counted.covers(session))
            .count() as u32
    }

    /// Makes the owner of `slot` a session.
    pub fn claim(&mut self, slot: usize, pid: u32, session: Session) {
        if let (Some(place), Some(word)) = (self.slots.get_mut(slot), self.shared.claims.get(slot))
        {
            *place = Slot {
                session,
                ..Slot::FREE
            };
            word.store(Claim::new(pid, session.role).0, Ordering::SeqCst);
        }
    }

    /// Takes over `slot` for its new owner: the process that claimed it has left the process array.
    pub fn vacate(&mut self, slot: usize) {
        if let Some(word) = self.shared.claims.get(slot) {
            word.store(0, Ordering::SeqCst);
        }
    }

    /// The waiters in order of arrival, with the limits that each must meet.
    pub fn waiters(&self) -> impl Iterator<Item = (usize, &Session, &Limits)> {
        let waiting = self.shared.waiting.load(Ordering::SeqCst) as usize;
        let queue = self
            .shared
            .queue
            .iter()
            .take(waiting)
            .map(|s| s.load(Ordering::SeqCst) as usize);
        queue.filter_map(|slot| {
            let place = self.slots.get(slot)?;
            Some((slot, &place.session, &place.limits))
        })
    }

    /// Those who arrived before the owner of `slot`: all, if it does not wait.
    pub fn waiters_before(&self, slot: usize) -> impl Iterator<Item = (usize, &Session, &Limits)> {
        self.waiters()
            .take_while(move |(waiter, ..)| *waiter != slot)
    }

    /// Marks, for this hold of the lock, that a waiter goes before whoever is deciding, or does
    /// not.
    pub fn set_goes_first(&mut self, slot: usize, first: bool) {
        if let Some(place) = self.slots.get_mut(slot) {
            place.goes_first = first;
        }
    }

    pub fn goes_first(&self, slot: usize) -> bool {
        self.slots.get(slot).is_some_and(|place| place.goes_first)
    }

    /// Puts the owner of `slot` at the end of the queue, or, if it is there, renews what it waits
    /// for.
    pub fn enqueue(&mut self, slot: usize, session: Session, limits: Limits) {
        let queued = self.waiters().any(|(waiter, ..)| waiter == slot);
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Slot {
                session,
                limits,
                goes_first: false,
            };
        }
        let waiting = self.shared.waiting.load(Ordering::SeqCst);
        if !queued && let Some(end) = self.shared.queue.get(waiting as usize) {
            end.store(slot as u32, Ordering::SeqCst);
            self.shared.waiting.store(waiting + 1, Ordering::SeqCst);
        }
    }

    /// Takes the owner of `slot` out of the queue; true if it was in.
    pub fn dequeue(&mut self, slot: usize) -> bool {
        let waiting = self.shared.waiting.load(Ordering::SeqCst);
        let Some(position) = self.waiters().position(|(waiter, ..)| waiter == slot) else {
            return false;
        };
        let queue = self
            .shared
            .queue
            .iter()
            .take(waiting as usize)
            .skip(position);
        for (entry, next) in queue.clone().zip(queue.skip(1)) {
            entry.store(next.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        self.shared.waiting.store(waiting - 1, Ordering::SeqCst);
        true
    }
}

/// A table of its own memory, for the unit tests of the model.
#[cfg(test)]
pub mod memory {
    use super::*;

    pub struct Memory {
        claims: Vec<AtomicU64>,
        queue: Vec<AtomicU32>,
        waiting: AtomicU32,
        slots: Vec<Slot>,
    }

    impl Memory {
        pub fn new(slots: usize) -> Memory {
            Memory {
                claims: (0..slots).map(|_| AtomicU64::new(0)).collect(),
                queue: (0..slots).map(|_| AtomicU32::new(0)).collect(),
                waiting: AtomicU32::new(0),
                slots: vec![Slot::FREE; slots],
            }
        }

        pub fn table(&mut self) -> Table<'_> {
            let shared = Shared::new(&self.claims, &self.queue, &self.waiting);
            Table::new(shared, &mut self.slots)
        }
    }

    pub fn session(role: u32, database: u32) -> Session {
        Session {
            role,
            database,
            ..Slot::FREE.session
        }
    }
}

#[cfg(test)]
mod tests {
    use super::memory::{Memory, session};
    use super::*;

    const ALICE: u32 = 10;
    const BOB: u32 = 11;
    const APP: u32 = 5;

    fn count(table: &Table, scope: Scope) -> u32 {
        table.count(Counted {
            scope,
            walsenders: false,
        })
    }

    #[test]
    fn a_session_counts_for_its_role_and_its_database_until_it_is_released() {
        let mut memory = Memory::new(3);
        let mut table = memory.table();
        table.claim(0, 100, session(ALICE, APP));
        table.claim(2, 101, session(BOB, APP));
        assert_eq!(count(&table, Scope::Role(ALICE)), 1);
        assert_eq!(count(&table, Scope::Database(APP)), 2);
        assert!(table.shared.release(0, Claim::new(100, ALICE)));
        assert_eq!(count(&table, Scope::Role(ALICE)), 0);
        assert_eq!(count(&table, Scope::Database(APP)), 1);
    }

    #[test]
    fn the_previous_owner_of_a_slot_cannot_release_the_next_one() {
        let mut memory = Memory::new(1);
        let mut table = memory.table();
        table.claim(0, 100, session(ALICE, APP));
        table.vacate(0);
        assert_eq!(count(&table, Scope::Role(ALICE)), 0);
        table.claim(0, 101, session(ALICE, APP));
        assert!(!table.shared.release(0, Claim::new(100, ALICE)));
        assert_eq!(count(&table, Scope::Role(ALICE)), 1);
    }

    #[test]
    fn walsenders_count_only_where_they_are_sessions_like_others() {
        let mut memory = Memory::new(1);
        let mut table = memory.table();
        table.claim(
            0,
            100,
            Session {
                walsender: true,
                ..session(ALICE, 0)
            },
        );
        let scope = Scope::Role(ALICE);
        assert_eq!(
            table.count(Counted {
                scope,
                walsenders: false
            }),
            0
        );
        assert_eq!(
            table.count(Counted {
                scope,
                walsenders: true
            }),
            1
        );
        assert_eq!(table.sessions().count(), 1, "listed all the same");
    }

    #[test]
    fn the_queue_keeps_the_order_of_arrival() {
        let mut memory = Memory::new(5);
        let mut table = memory.table();
        for slot in [3, 1, 4, 0] {
            table.enqueue(slot, session(ALICE, APP), NONE);
        }
        table.enqueue(1, session(BOB, APP), NONE);
        let order = |table: &Table| table.waiters().map(|(slot, ..)| slot).collect::<Vec<_>>();
        assert_eq!(
            order(&table),
            [3, 1, 4, 0],
            "renewing what one waits for keeps the place"
        );
        assert_eq!(
            table.waiters().nth(1).map(|(_, session, _)| session.role),
            Some(BOB)
        );
        assert!(table.dequeue(1));
        assert!(!table.dequeue(1));
        assert_eq!(order(&table), [3, 4, 0]);
        assert_eq!(table.shared.waiters().collect::<Vec<_>>(), [0, 4, 3]);
        assert_eq!(table.waiters_before(0).count(), 2);
        assert_eq!(
            table.waiters_before(2).count(),
            3,
            "who does not wait comes after all"
        );
        for slot in [3, 0, 4] {
            assert!(table.dequeue(slot));
        }
        assert_eq!(table.waiters().count(), 0);
    }
}
