//! The slot table: who is in, and who is to be replaced by whom.
//!
//! Each backend owns one slot, the one with the number of its PGPROC. What is known of its session is in a [`Slot`] and
//! in the [`Columns`], and changes only under the exclusive lock. Shared memory and the lock are the caller's.
//!
//! **Claims.** A slot holds a session while it has a [`Claim`], one atomic word. A session takes it under the lock, and
//! gives it up without the lock: by then its process has left the process array and can take none. [`crate::atomics`] has
//! what works without the lock, and the fences that make it safe. Counts are derived from the claims each time and are
//! stored nowhere, so none can drift.
//!
//! **Successor and victims.** A session that is to end so that a login finds room is a *victim*; that login's slot is
//! its *successor*. The decision that chooses the victims also claims the successor's slot, so that nobody else can
//! take the room. The successor is *pending* until its last victim is gone; then it is *complete*, a session like any
//! other. If it gives up before, it is *rolled back*: its claim is gone, and its victims have no successor any more.
//!
//! A victim and its successor count once: a limit that covers a pending successor and victims of it that are still
//! there counts the victims and not the successor. So the successor of two victims counts as two until one of them is
//! gone, and nobody else can take their room before they leave it.
//!
//! The queue of waiting logins is in [`crate::queue`]. [`crate::count::SessionCounter`] counts faster than this table.

use crate::account::Account;
use crate::atomics::Shared;
use crate::limit::{Condition, Unit};
use crate::members::SessionFilter;
use crate::servers::place::Places;
use crate::session::{Claim, EndReason, Session};
use crate::sync::Ordering;
use crate::tally::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// One slot's row: what counts do not need, which is in the [`Columns`]. 64 bytes, a cache line.
#[derive(Clone, Debug)]
pub struct Slot {
    role: u32,
    address: Option<IpAddr>,
    started: i64,
    arrival: u64,
    /// Why the session was told to end; None if it was not.
    end_reason: Option<EndReason>,
    /// How many entries of [`Table`]'s `conditions` are this waiter's.
    pub(crate) conditions: u16,
}

impl Slot {
    /// A slot that has had no owner yet.
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

/// The mark of a walsender.
pub const WALSENDER: u8 = 1;
/// The mark of an exempt session.
const EXEMPT: u8 = 2;
/// The mark of a pending successor: its victims may still be there.
pub const PENDING: u8 = 4;
/// The mark of a session that was told to end by a sweep.
pub const TOLD: u8 = 8;

/// How many slots a count looks at together. The number is fixed so that the compiler can make vector instructions of
/// the loops. 128 elements of a column fill whole cache lines and whole vector registers, also with one byte each; and
/// the 512 bytes of hits for one tile stay in the processor's nearest cache.
pub const TILE: usize = 128;

/// What sessions are counted by, except their roles, which are in the claims. Each column has one element for each
/// slot, side by side, so that a count reads little memory and several slots at once (see [`crate::count`]).
pub struct Columns<'a> {
    /// OIDs.
    pub databases: &'a mut [u32],
    /// IPv4 addresses as numbers; 0 for sessions without one.
    pub hosts: &'a mut [u32],
    /// For each slot the marks that its session has, or-ed: walsender, exempt, pending, told to end.
    pub marks: &'a mut [u8],
}

/// The whole table. A caller that has it as `&mut` holds the lock exclusively; as `&`, at least shared.
pub struct Table<'a> {
    pub shared: Shared<'a>,
    pub(crate) slots: &'a mut [Slot],
    pub columns: Columns<'a>,
    /// What the waiters wait for: one waiter's conditions after the other's, in the order of the queue.
    pub(crate) conditions: &'a mut [Condition],
    /// By slot: on whose account the waiter there waits.
    pub(crate) accounts: &'a mut [Option<Account>],
    /// Under limits across servers.
    pub places: Places<'a>,
}

impl<'a> Table<'a> {
    /// `slots` and `accounts` have one element for each claim. The columns are longer: a whole number of [`TILE`]s.
    pub fn new(
        shared: Shared<'a>,
        slots: &'a mut [Slot],
        columns: Columns<'a>,
        conditions: &'a mut [Condition],
        accounts: &'a mut [Option<Account>],
        places: Places<'a>,
    ) -> Self {
        Table {
            shared,
            slots,
            columns,
            conditions,
            accounts,
            places,
        }
    }

    /// The session or waiter at `slot`; if there is none, what the last one left behind.
    pub fn session(&self, slot: usize) -> Option<Session> {
        let Columns {
            databases, marks, ..
        } = &self.columns;
        let row = self.slots.get(slot)?;
        Some(row.session(*databases.get(slot)?, *marks.get(slot)?))
    }

    /// The process ID and the session at `slot`, if there is one.
    pub fn process(&self, slot: usize) -> Option<(u32, Session)> {
        let claim = self.shared.claim(slot)?;
        Some((claim.pid(), self.session(slot)?))
    }

    /// The sessions, each with its slot and process ID.
    pub fn claimed(&self) -> impl Iterator<Item = (usize, u32, Session)> {
        let claims = self.shared.claims();
        claims.filter_map(|(slot, claim)| Some((slot, claim.pid(), self.session(slot)?)))
    }

    /// The sessions, each with its process ID.
    pub fn sessions(&self) -> impl Iterator<Item = (u32, Session)> {
        self.claimed().map(|(_, pid, session)| (pid, session))
    }

    /// How many sessions a limit counts: those it covers, except pending successors of victims that it covers, too.
    /// [`crate::count::SessionCounter::count`] returns the same, faster.
    pub fn count(&self, filter: SessionFilter) -> u32 {
        let counts = |(slot, _, session): &(usize, u32, Session)| {
            filter.covers(session) && !(self.is_pending(*slot) && self.has_victim(*slot, filter))
        };
        self.claimed().filter(counts).count() as u32
    }

    /// How many units of sessions a limit counts: each different role or address once. A pending successor that is alone with
    /// its value counts as one with a value that only its victims have (see [`crate::tally`]). Allocates, so it needs a
    /// copy of the table.
    pub fn count_units(&self, filter: SessionFilter, unit: Unit) -> u32 {
        if unit == Unit::Session {
            return self.count(filter);
        }
        let mut slots: BTreeMap<Value, Vec<usize>> = BTreeMap::new();
        for (slot, _, session) in self.claimed() {
            let value = unit.value(&session).filter(|_| filter.covers(&session));
            value
                .into_iter()
                .for_each(|value| slots.entry(value).or_default().push(slot));
        }
        let is_alone_and_left_another = |alone: &&Vec<usize>| match alone.as_slice() {
            [successor] if self.is_pending(*successor) => slots.values().any(|of_one| {
                let mut of_one = of_one.iter();
                of_one.all(|slot| self.shared.successor(*slot) == Some(*successor))
            }),
            _ => false,
        };
        let left_another = slots.values().filter(is_alone_and_left_another).count();
        (slots.len() - left_another) as u32
    }

    /// Whether the limit covers a victim of `successor` that is still there.
    fn has_victim(&self, successor: usize, filter: SessionFilter) -> bool {
        self.claimed().any(|(slot, _, session)| {
            self.shared.successor(slot) == Some(successor) && filter.covers(&session)
        })
    }

    /// The process ID and the session at `slot`, if it may become a victim: it is not exempt, not pending, and not yet
    /// a victim.
    pub fn replaceable(&self, slot: usize) -> Option<(u32, Session)> {
        let (pid, session) = self.process(slot)?;
        let may_end =
            !session.exempt && !self.is_pending(slot) && self.shared.successor(slot).is_none();
        may_end.then_some((pid, session))
    }

    /// The sessions that a limit covers and that are not about to end: not told to, and no victims. Each comes with its
    /// slot and process ID.
    pub fn staying<'b>(
        &'b self,
        filter: SessionFilter<'b>,
    ) -> impl Iterator<Item = (usize, u32, Session)> {
        self.claimed().filter(move |(slot, _, session)| {
            let leaves = self.end_reason(*slot).is_some() || self.shared.successor(*slot).is_some();
            !leaves && filter.covers(session)
        })
    }

    /// Whether the session at `slot` is a successor whose victims may still be there.
    pub fn is_pending(&self, slot: usize) -> bool {
        let mark = self.columns.marks.get(slot);
        mark.is_some_and(|mark| mark & PENDING != 0)
    }

    fn set_pending(&mut self, slot: usize, pending: bool) {
        if let Some(mark) = self.columns.marks.get_mut(slot) {
            *mark = *mark & !PENDING | if pending { PENDING } else { 0 };
        }
    }

    /// Notes that the session at `slot` is told to end, and why. Returns the session.
    pub fn tell_to_end(&mut self, slot: usize, end_reason: EndReason) -> Option<Session> {
        self.slots.get_mut(slot)?.end_reason = Some(end_reason);
        *self.columns.marks.get_mut(slot)? |= TOLD;
        self.session(slot)
    }

    /// Makes the session at `slot` a victim of `successor`, whose login has claimed its slot.
    pub fn hand_over(&mut self, slot: usize, successor: usize) {
        if let Some(word) = self.shared.successors.get(slot) {
            word.store(successor as u32 + 1, Ordering::Relaxed);
        }
        self.set_pending(successor, true);
    }

    /// The process IDs of the victims of `successor` that are still there.
    pub fn victims(&self, successor: usize) -> impl Iterator<Item = u32> {
        let is_victim = move |slot: &usize| self.shared.successor(*slot) == Some(successor);
        self.claimed()
            .filter(move |(slot, _, _)| is_victim(slot))
            .map(|(_, pid, _)| pid)
    }

    /// Notes that the victims of `successor` are told to end, and that it replaces them.
    pub fn tell_victims(&mut self, successor: usize) {
        let address = self.slots.get(successor).and_then(|row| row.address);
        for (slot, row) in self.slots.iter_mut().enumerate() {
            if self.shared.successor(slot) == Some(successor) {
                row.end_reason = Some(EndReason::Replaced(address));
            }
        }
    }

    /// Makes the successor at `slot` a session like any other if its victims are gone; says whether it is one now.
    pub fn complete(&mut self, slot: usize) -> bool {
        let is_complete = self.victims(slot).next().is_none();
        self.set_pending(slot, !is_complete);
        is_complete
    }

    /// Takes back the claim of the pending successor at `slot`; its victims have no successor any more.
    pub fn roll_back(&mut self, slot: usize) {
        for word in self.shared.successors {
            let successor = slot as u32 + 1;
            // No compare-and-swap: nobody changes it without the lock.
            if word.load(Ordering::Relaxed) == successor {
                word.store(0, Ordering::Relaxed);
            }
        }
        self.vacate(slot);
    }

    /// Why the session at `slot` was told to end; None if it was not.
    pub fn end_reason(&self, slot: usize) -> Option<EndReason> {
        self.slots.get(slot)?.end_reason
    }

    /// Puts a session into `slot`: its process claims the slot.
    pub fn claim(&mut self, slot: usize, pid: u32, session: Session) {
        self.put(slot, session);
        if let Some(word) = self.shared.claims.get(slot) {
            word.store(Claim::new(pid, session.role).word(), Ordering::Relaxed);
        }
    }

    /// Writes what is known of a session or waiter into its row and columns.
    pub(crate) fn put(&mut self, slot: usize, session: Session) {
        let Columns {
            databases,
            hosts,
            marks,
        } = &mut self.columns;
        if let (Some(row), Some(database), Some(host), Some(mark)) = (
            self.slots.get_mut(slot),
            databases.get_mut(slot),
            hosts.get_mut(slot),
            marks.get_mut(slot),
        ) {
            row.role = session.role;
            row.address = session.address;
            row.started = session.started;
            row.arrival = session.arrival;
            self.shared.note_active(slot, session.arrival);
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

    /// Empties `slot` for its new owner: a process that had claimed it has left the process array.
    pub fn vacate(&mut self, slot: usize) {
        if let (Some(word), Some(successor)) = (
            self.shared.claims.get(slot),
            self.shared.successors.get(slot),
        ) {
            word.store(0, Ordering::Relaxed);
            successor.store(0, Ordering::Relaxed);
        }
        if let Some(row) = self.slots.get_mut(slot) {
            row.end_reason = None;
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
    fn a_scope_covers_the_sessions_that_all_of_it_matches() {
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
            "new conditions, the same position"
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
            "a login that does not wait comes after all"
        );
        for slot in [3, 0, 4] {
            assert!(table.dequeue(slot));
        }
        assert_eq!(table.waiters().count(), 0);
    }

    #[test]
    fn each_waiter_has_its_conditions_as_far_as_there_is_room() {
        let mut memory = OwnTable::new(5, 6);
        let mut table = memory.table();
        let conditions = |maxes: &'static [u32]| {
            maxes.iter().map(|max| Condition {
                scope: of_role(ALICE),
                unit: Unit::Session,
                max: *max,
                place: None,
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

    /// The size that docs/install.md gives: 309 bytes of shared memory for each slot, with four conditions.
    #[test]
    fn a_slot_is_small() {
        let words = 2 * size_of::<AtomicU64>() + 2 * size_of::<AtomicU32>();
        let columns = 2 * size_of::<u32>() + size_of::<u8>();
        let account = size_of::<Option<Account>>();
        let all = words + columns + account + size_of::<Slot>() + 4 * size_of::<Condition>();
        assert_eq!(all, 309);
    }
}
