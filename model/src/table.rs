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
//!
//! A session that is to be replaced has an *successor*: the slot of the login that gets its place. The successor
//! claims its slot in the hold that decides it, so that nobody else can take the place. Until the session
//! is gone the two count as one wherever a limit covers both, and an successor of several as the several: if
//! it gives up, their places fall back, and nobody must have taken them. It *arrives* when all are gone.

use crate::atomics::Shared;
use crate::limit::Condition;
use crate::members::SessionFilter;
use crate::session::{Claim, EndReason, Session};
use crate::sync::Ordering;
use std::net::IpAddr;

/// One backend's place in the table, a cache line, but for what the columns have.
#[derive(Clone, Debug)]
pub struct Slot {
    role: u32,
    address: Option<IpAddr>,
    started: i64,
    arrival: u64,
    /// Some: it was told to end.
    end_reason: Option<EndReason>,
    /// How many limits a waiting login must meet.
    pub(crate) conditions: u16,
}

impl Slot {
    pub fn free() -> Slot {
        Slot {
            role: 0,
            address: None,
            started: 0,
            arrival: 0,
            end_reason: None,
            conditions: 0,
        }
    }

    fn session(&self, database: u32, mark: u8) -> Session {
        Session {
            role: self.role,
            database,
            address: self.address,
            started: self.started,
            walsender: mark & WALSENDER != 0,
            exempt: mark & EXEMPT != 0,
            arrival: self.arrival,
        }
    }
}

pub const WALSENDER: u8 = 1;
const EXEMPT: u8 = 2;
/// It is the successor of sessions that may still be there.
pub const PENDING: u8 = 4;

/// So many slots are looked at together.
pub const TILE: usize = 128;

/// What sessions are counted by, besides their roles, which are in the claims: an element for each slot, side
/// by side, so that a count reads little memory, and several slots at once (see `counter`).
pub struct Columns<'a> {
    pub databases: &'a mut [u32],
    /// The bits of IPv4 addresses; 0 for all other sessions.
    pub hosts: &'a mut [u32],
    pub marks: &'a mut [u8],
}

/// The whole table: `&mut` under the exclusive lock, `&` under the shared one.
pub struct Table<'a> {
    pub shared: Shared<'a>,
    pub(crate) slots: &'a mut [Slot],
    pub columns: Columns<'a>,
    /// What the waiters have to meet, one waiter's after the other's, in the order of the queue.
    pub(crate) conditions: &'a mut [Condition],
}

impl<'a> Table<'a> {
    /// `slots` has as many elements as there are claims, each column besides fills up its last tile.
    pub fn new(
        shared: Shared<'a>,
        slots: &'a mut [Slot],
        columns: Columns<'a>,
        conditions: &'a mut [Condition],
    ) -> Self {
        Table {
            shared,
            slots,
            columns,
            conditions,
        }
    }

    /// What is known of the owner of `slot`, or of its last one.
    pub fn session(&self, slot: usize) -> Option<Session> {
        let Columns {
            databases, marks, ..
        } = &self.columns;
        let place = self.slots.get(slot)?;
        Some(place.session(*databases.get(slot)?, *marks.get(slot)?))
    }

    /// The process ID and the session at `slot`, if there is one.
    pub fn process(&self, slot: usize) -> Option<(u32, Session)> {
        let claim = self.shared.claim(slot)?;
        Some((claim.pid(), self.session(slot)?))
    }

    /// The slots that are claimed, by which process, and their sessions.
    fn claimed(&self) -> impl Iterator<Item = (usize, u32, Session)> {
        let claims = self.shared.claims();
        claims.filter_map(|(slot, claim)| Some((slot, claim.pid(), self.session(slot)?)))
    }

    /// The sessions with their process IDs.
    pub fn sessions(&self) -> impl Iterator<Item = (u32, Session)> {
        self.claimed().map(|(_, pid, session)| (pid, session))
    }

    /// How many sessions a limit counts: not an pending one beside those whose place it is to have.
    /// `SessionCounter` says the same, faster.
    pub fn count(&self, counted: SessionFilter) -> u32 {
        let counts = |(slot, _, session): &(usize, u32, Session)| {
            counted.covers(session) && !(self.is_pending(*slot) && self.has_victim(*slot, counted))
        };
        self.claimed().filter(counts).count() as u32
    }

    /// Whether a session that the limit covers is left to the owner of `successor` and still there.
    fn has_victim(&self, successor: usize, counted: SessionFilter) -> bool {
        self.claimed().any(|(slot, _, session)| {
            self.shared.successor(slot) == Some(successor) && counted.covers(&session)
        })
    }

    /// The process ID and the session at `slot`, if nothing keeps it from being told to end: it is neither
    /// exempt nor pending nor left to another already.
    pub fn replaceable(&self, slot: usize) -> Option<(u32, Session)> {
        let (pid, session) = self.process(slot)?;
        let free =
            !session.exempt && !self.is_pending(slot) && self.shared.successor(slot).is_none();
        free.then_some((pid, session))
    }

    /// The sessions that a limit counts and that are not about to end: neither told to nor left to
    /// another. With their slots and process IDs.
    pub fn staying<'b>(
        &'b self,
        counted: SessionFilter<'b>,
    ) -> impl Iterator<Item = (usize, u32, Session)> {
        self.claimed().filter(move |(slot, _, session)| {
            let leaves = self.end_reason(*slot).is_some() || self.shared.successor(*slot).is_some();
            !leaves && counted.covers(session)
        })
    }

    /// Whether the session at `slot` takes the place of others that may still be there.
    pub fn is_pending(&self, slot: usize) -> bool {
        let mark = self.columns.marks.get(slot);
        mark.is_some_and(|mark| mark & PENDING != 0)
    }

    fn set_pending(&mut self, slot: usize, pending: bool) {
        if let Some(mark) = self.columns.marks.get_mut(slot) {
            *mark = *mark & !PENDING | if pending { PENDING } else { 0 };
        }
    }

    /// Notes that the session at `slot` is told to end, and why.
    pub fn tell_to_end(&mut self, slot: usize, end_reason: EndReason) -> Option<Session> {
        self.slots.get_mut(slot)?.end_reason = Some(end_reason);
        self.session(slot)
    }

    /// Leaves the place of the session at `slot` to the owner of `successor`, which has claimed its own.
    pub fn hand_over(&mut self, slot: usize, successor: usize) {
        if let Some(word) = self.shared.successors.get(slot) {
            word.store(successor as u32 + 1, Ordering::Relaxed);
        }
        self.set_pending(successor, true);
    }

    /// The process IDs of the sessions that are left to the owner of `successor` and still there.
    pub fn victims(&self, successor: usize) -> impl Iterator<Item = u32> {
        let left = move |slot: &usize| self.shared.successor(*slot) == Some(successor);
        self.claimed()
            .filter(move |(slot, _, _)| left(slot))
            .map(|(_, pid, _)| pid)
    }

    /// Notes that the sessions that are left to the owner of `successor` are told to end, and why.
    pub fn tell_victims(&mut self, successor: usize) {
        let address = self.slots.get(successor).and_then(|place| place.address);
        for (slot, place) in self.slots.iter_mut().enumerate() {
            if self.shared.successor(slot) == Some(successor) {
                place.end_reason = Some(EndReason::Replaced(address));
            }
        }
    }

    /// Makes the owner of `slot` a session like any other, if those before it are gone.
    pub fn complete(&mut self, slot: usize) -> bool {
        let arrived = self.victims(slot).next().is_none();
        self.set_pending(slot, !arrived);
        arrived
    }

    /// Takes back the claim of a login that has not arrived; the places that it was to have fall back.
    pub fn roll_back(&mut self, slot: usize) {
        for word in self.shared.successors {
            let successor = slot as u32 + 1;
            // Whoever else changes it holds the lock, too.
            if word.load(Ordering::Relaxed) == successor {
                word.store(0, Ordering::Relaxed);
            }
        }
        self.vacate(slot);
    }

    /// Why the session at `slot` was told to end.
    pub fn end_reason(&self, slot: usize) -> Option<EndReason> {
        self.slots.get(slot)?.end_reason
    }

    /// Makes the owner of `slot` a session.
    pub fn claim(&mut self, slot: usize, pid: u32, session: Session) {
        self.put(slot, session);
        if let Some(word) = self.shared.claims.get(slot) {
            word.store(Claim::new(pid, session.role).word(), Ordering::Relaxed);
        }
    }

    pub(crate) fn put(&mut self, slot: usize, session: Session) {
        let Columns {
            databases,
            hosts,
            marks,
        } = &mut self.columns;
        if let (Some(place), Some(database), Some(host), Some(mark)) = (
            self.slots.get_mut(slot),
            databases.get_mut(slot),
            hosts.get_mut(slot),
            marks.get_mut(slot),
        ) {
            place.role = session.role;
            place.address = session.address;
            place.started = session.started;
            place.arrival = session.arrival;
            *database = session.database;
            *host = match session.address.map(|address| address.to_canonical()) {
                Some(IpAddr::V4(address)) => address.to_bits(),
                Some(IpAddr::V6(_)) | None => 0,
            };
            let walsender = if session.walsender { WALSENDER } else { 0 };
            let exempt = if session.exempt { EXEMPT } else { 0 };
            *mark = *mark & PENDING | walsender | exempt;
        }
    }

    /// Takes over `slot` for its new owner: the process that claimed it has left the process array.
    pub fn vacate(&mut self, slot: usize) {
        if let (Some(word), Some(successor)) = (
            self.shared.claims.get(slot),
            self.shared.successors.get(slot),
        ) {
            word.store(0, Ordering::Relaxed);
            successor.store(0, Ordering::Relaxed);
        }
        if let Some(place) = self.slots.get_mut(slot) {
            place.end_reason = None;
        }
        self.set_pending(slot, false);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::limit::tests::{in_database, of_role};
    use crate::limit::{Scope, Who};
    use crate::members::{Members, Missing};
    use crate::own_table::OwnTable;
    use crate::queue::Waiter;
    use crate::sync::{AtomicU32, AtomicU64};

    pub fn session(role: u32, database: u32) -> Session {
        Session {
            role,
            database,
            ..Slot::free().session(0, 0)
        }
    }

    const ALICE: u32 = 10;
    const BOB: u32 = 11;
    const OTHER: u32 = 12;
    const TEAM: u32 = 20;
    const APP: u32 = 5;

    fn count(table: &Table, scope: Scope) -> u32 {
        counted(table, scope, false)
    }

    fn counted(table: &Table, scope: Scope, walsenders: bool) -> u32 {
        let mut members = Members::default();
        members.insert(TEAM, vec![BOB, ALICE]);
        table.count(SessionFilter::new(scope, walsenders, &members).expect("a known group"))
    }

    fn slots(table: &Table) -> Vec<usize> {
        table.waiters().map(|waiter| waiter.slot).collect()
    }

    #[test]
    fn a_session_counts_for_its_role_and_its_database_until_it_is_released() {
        let mut memory = OwnTable::new(3, 0);
        let mut table = memory.table();
        table.claim(0, 100, session(ALICE, APP));
        table.claim(2, 101, session(BOB, APP));
        assert_eq!(count(&table, of_role(ALICE)), 1);
        assert_eq!(count(&table, in_database(APP)), 2);
        assert!(table.shared.release(0, Claim::new(100, ALICE)));
        assert_eq!(count(&table, of_role(ALICE)), 0);
        assert_eq!(count(&table, in_database(APP)), 1);
    }

    #[test]
    fn the_previous_owner_of_a_slot_cannot_release_the_next_one() {
        let mut memory = OwnTable::new(1, 0);
        let mut table = memory.table();
        table.claim(0, 100, session(ALICE, APP));
        table.vacate(0);
        assert_eq!(count(&table, of_role(ALICE)), 0);
        table.claim(0, 101, session(ALICE, APP));
        assert!(!table.shared.release(0, Claim::new(100, ALICE)));
        assert_eq!(count(&table, of_role(ALICE)), 1);
    }

    #[test]
    fn walsenders_count_only_where_they_are_sessions_like_others() {
        let mut memory = OwnTable::new(1, 0);
        let mut table = memory.table();
        table.claim(
            0,
            100,
            Session {
                walsender: true,
                ..session(ALICE, 0)
            },
        );
        assert_eq!(counted(&table, of_role(ALICE), false), 0);
        assert_eq!(counted(&table, of_role(ALICE), true), 1);
        assert_eq!(table.sessions().count(), 1, "listed all the same");
    }

    #[test]
    fn a_scope_covers_what_all_of_it_applies_to() {
        let from = |address: Option<&str>| Session {
            address: address.map(|text| text.parse().expect(text)),
            ..session(ALICE, APP)
        };
        let network = Some("10.0.0.0/8".parse().expect("a network"));
        let mut memory = OwnTable::new(5, 0);
        let mut table = memory.table();
        table.claim(0, 100, from(Some("10.0.0.5")));
        table.claim(1, 101, from(Some("192.168.0.1")));
        table.claim(2, 102, from(None));
        table.claim(
            3,
            103,
            Session {
                role: BOB,
                ..from(Some("10.0.0.6"))
            },
        );
        table.claim(
            4,
            104,
            Session {
                role: OTHER,
                database: 6,
                ..from(Some("10.0.0.7"))
            },
        );
        let team = Scope {
            who: Who::MembersOf(TEAM),
            database: None,
            network: None,
        };
        let anyone = Scope {
            who: Who::Anyone,
            ..team
        };
        let counts = [
            (anyone, 5),
            (Scope { network, ..anyone }, 3),
            (
                Scope {
                    network,
                    ..in_database(APP)
                },
                2,
            ),
            (of_role(ALICE), 3),
            (
                Scope {
                    network,
                    ..of_role(ALICE)
                },
                1,
            ),
            (team, 4),
            (Scope { network, ..team }, 2),
            (
                Scope {
                    database: Some(6),
                    ..team
                },
                0,
            ),
        ];
        for (scope, expected) in counts {
            assert_eq!(count(&table, scope), expected, "{scope:?}");
        }
        let unknown = SessionFilter::new(team, false, &Members::default()).err();
        assert_eq!(unknown, Some(Missing::Members(TEAM)));
    }

    #[test]
    fn the_queue_keeps_the_order_of_arrival() {
        let mut memory = OwnTable::new(5, 0);
        let mut table = memory.table();
        let nothing = std::iter::empty::<Condition>;
        for slot in [3, 1, 4, 0] {
            assert!(table.enqueue(slot, session(ALICE, APP), nothing()));
        }
        assert!(table.enqueue(1, session(BOB, APP), nothing()));
        assert_eq!(
            slots(&table),
            [3, 1, 4, 0],
            "renewing what one waits for keeps the place"
        );
        assert_eq!(
            table.waiters().nth(1).map(|waiter| waiter.session.role),
            Some(BOB)
        );
        assert!(table.dequeue(1));
        assert!(!table.dequeue(1));
        assert_eq!(slots(&table), [3, 4, 0]);
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

    #[test]
    fn each_waiter_has_its_bounds_as_far_as_there_is_room() {
        let mut memory = OwnTable::new(5, 6);
        let mut table = memory.table();
        let conditions = |maxes: &'static [u32]| {
            maxes.iter().map(|max| Condition {
                scope: of_role(ALICE),
                max: *max,
            })
        };
        let of = |table: &Table| {
            let maxes = |waiter: Waiter| {
                waiter
                    .conditions
                    .iter()
                    .map(|condition| condition.max)
                    .collect()
            };
            table.waiters().map(maxes).collect::<Vec<Vec<u32>>>()
        };
        assert!(table.enqueue(3, session(ALICE, APP), conditions(&[1, 2])));
        assert!(table.enqueue(0, session(ALICE, APP), conditions(&[])));
        assert!(table.enqueue(1, session(ALICE, APP), conditions(&[3])));
        assert_eq!(of(&table), [vec![1, 2], vec![], vec![3]]);
        assert!(table.enqueue(3, session(ALICE, APP), conditions(&[4])));
        assert!(table.enqueue(0, session(ALICE, APP), conditions(&[5, 6, 7, 8])));
        assert_eq!(of(&table), [vec![4], vec![5, 6, 7, 8], vec![3]]);
        assert!(
            !table.enqueue(1, session(ALICE, APP), conditions(&[3, 9])),
            "seven"
        );
        assert!(
            !table.enqueue(4, session(ALICE, APP), conditions(&[9])),
            "and one more"
        );
        assert_eq!(
            of(&table),
            [vec![4], vec![5, 6, 7, 8], vec![3]],
            "as before"
        );
        assert!(table.dequeue(0));
        assert_eq!(of(&table), [vec![4], vec![3]]);
        assert!(table.enqueue(0, session(ALICE, APP), conditions(&[10])));
        assert_eq!(of(&table), [vec![4], vec![3], vec![10]]);
        let mut copy = OwnTable::new(5, 6);
        copy.copy(&table);
        assert_eq!(of(&copy.table()), of(&table));
    }

    /// What the README says of the shared memory, but for the four conditions of each slot.
    #[test]
    fn a_slot_is_small() {
        let words = size_of::<AtomicU64>() + 2 * size_of::<AtomicU32>();
        let columns = 2 * size_of::<u32>() + size_of::<u8>();
        let all = words + columns + size_of::<Slot>() + 4 * size_of::<Condition>();
        assert_eq!(all, 249);
    }
}
