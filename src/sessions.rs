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
//! A session that is to be replaced has an *heir*: the slot of the login that gets its place. The heir
//! claims its slot in the hold that decides it, so that nobody else can take the place. Until the session
//! is gone the two count as one wherever a limit covers both, and an heir of several as the several: if
//! it gives up, their places fall back, and nobody must have taken them. It *arrives* when all are gone.

use crate::limit::{Scope, Source, Who};
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
    /// The order in which logins arrived: no clock's, which can be set back.
    pub arrival: u64,
}

/// What a session has in common with those that the same limits apply to.
pub type Kind = (u32, u32, Option<IpAddr>, bool);

impl Session {
    /// Role, database, address, walsender.
    pub fn kind(&self) -> Kind {
        (self.role, self.database, self.address, self.walsender)
    }
}

/// Why a session was told to end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Notice {
    /// By a newer session of its role, from this address.
    Replaced(Option<IpAddr>),
    /// This limit was lowered, or set, when there were so many sessions.
    Swept {
        source: Source,
        in_use: u32,
        max: u32,
    },
}

/// One backend's place in the table, a cache line, but for what the columns have.
#[derive(Clone, Debug)]
pub struct Slot {
    role: u32,
    address: Option<IpAddr>,
    started: i64,
    arrival: u64,
    /// Some: it was told to end.
    notice: Option<Notice>,
    /// How many limits a waiting login must meet.
    bounds: u16,
}

impl Slot {
    pub fn free() -> Slot {
        Slot {
            role: 0,
            address: None,
            started: 0,
            arrival: 0,
            notice: None,
            bounds: 0,
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
/// It is the heir of sessions that may still be there.
pub const ARRIVING: u8 = 4;

/// So many slots are looked at together.
pub const TILE: usize = 128;

/// What sessions are counted by, besides their roles, which are in the claims: an element for each slot, side
/// by side, so that a count reads little memory, and several slots at once (see `census`).
pub struct Columns<'a> {
    pub databases: &'a mut [u32],
    /// The bits of IPv4 addresses; 0 for all other sessions.
    pub hosts: &'a mut [u32],
    pub marks: &'a mut [u8],
}

/// What a waiting login has to meet: less than `max` sessions in `scope`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    pub scope: Scope,
    pub max: u32,
}

impl Bound {
    pub const FREE: Bound = Bound {
        scope: Scope {
            who: Who::Anyone,
            database: None,
            network: None,
        },
        max: 0,
    };
}

/// The members of some groups, as the catalogs had them before the lock was taken.
#[derive(Clone, Debug, Default)]
pub struct Members(Vec<(u32, Vec<u32>)>);

/// What nobody has said, and must be known to decide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unknown {
    /// Who the members of the group with this OID are.
    Members(u32),
    /// Which sessions are idle.
    Idle,
    /// Whether the login may wait at all.
    Patience,
}

impl Members {
    pub fn insert(&mut self, group: u32, mut members: Vec<u32>) {
        members.sort_unstable();
        self.0.push((group, members));
    }

    pub fn extend(&mut self, others: Members) {
        self.0.extend(others.0);
    }

    pub fn of(&self, group: u32) -> Option<&[u32]> {
        let mut known = self.all().filter(|(known, _)| *known == group);
        known.next().map(|(_, members)| members)
    }

    /// The groups, each with its members, sorted.
    pub fn all(&self) -> impl Iterator<Item = (u32, &[u32])> {
        self.0
            .iter()
            .map(|(group, members)| (*group, members.as_slice()))
    }
}

/// The sessions that a limit counts: those in its scope, walsenders among them or not.
#[derive(Clone, Copy)]
pub struct Counted<'a> {
    pub scope: Scope,
    /// Sorted.
    members: &'a [u32],
    pub walsenders: bool,
    /// Only this role's.
    pub own: Option<u32>,
}

impl<'a> Counted<'a> {
    pub fn new(scope: Scope, walsenders: bool, members: &'a Members) -> Result<Self, Unknown> {
        let members = match scope.who {
            Who::MembersOf(group) => members.of(group).ok_or(Unknown::Members(group))?,
            Who::Anyone | Who::Role(_) => &[],
        };
        Ok(Counted {
            scope,
            members,
            walsenders,
            own: None,
        })
    }

    /// Of these, those of a role.
    pub fn of(self, role: u32) -> Counted<'a> {
        Counted {
            own: Some(role),
            ..self
        }
    }

    pub fn covers(self, session: &Session) -> bool {
        let theirs = match self.scope.who {
            Who::Anyone => true,
            Who::Role(role) => session.role == role,
            Who::MembersOf(_) => self.members.binary_search(&session.role).is_ok(),
        };
        let from = |address| {
            self.scope
                .network
                .is_none_or(|network| network.contains(address))
        };
        theirs
            && self.own.is_none_or(|own| session.role == own)
            && self
                .scope
                .database
                .is_none_or(|database| session.database == database)
            && session.address.map_or(self.scope.network.is_none(), from)
            && (self.walsenders || !session.walsender)
    }
}

/// The part of the table that needs no lock.
#[derive(Clone, Copy)]
pub struct Shared<'a> {
    claims: &'a [AtomicU64],
    queue: &'a [AtomicU32],
    waiting: &'a AtomicU32,
    /// 0, or one more than the heir's slot.
    heirs: &'a [AtomicU32],
}

impl<'a> Shared<'a> {
    /// `claims`, `queue` and `heirs` have one element a slot.
    pub fn new(
        claims: &'a [AtomicU64],
        queue: &'a [AtomicU32],
        waiting: &'a AtomicU32,
        heirs: &'a [AtomicU32],
    ) -> Self {
        Shared {
            claims,
            queue,
            waiting,
            heirs,
        }
    }

    /// Frees the slot if it still holds this claim; whoever owns the slot now keeps it.
    pub fn release(self, slot: usize, claim: Claim) -> bool {
        self.claims.get(slot).is_some_and(|word| {
            word.compare_exchange(claim.0, 0, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        })
    }

    /// The slot that gets the place of this slot's session.
    pub fn heir(self, slot: usize) -> Option<usize> {
        let heir = self.heirs.get(slot)?.load(Ordering::SeqCst);
        (heir as usize).checked_sub(1)
    }

    /// The claims, each with its slot.
    pub fn claims(self) -> impl Iterator<Item = (usize, Claim)> {
        let claims = self.claims.iter().map(Claim::load).enumerate();
        claims.filter_map(|(slot, claim)| Some((slot, claim?)))
    }

    pub fn slots(self) -> usize {
        self.claims.len()
    }

    /// The role of each slot's session, 0 where there is none.
    pub fn roles(self) -> impl Iterator<Item = u32> {
        let words = self.claims.iter();
        words.map(|word| Claim(word.load(Ordering::SeqCst)).role())
    }

    /// The slots that have an heir, each with the heir's.
    pub fn heirs(self) -> impl Iterator<Item = (usize, usize)> {
        let heirs = (0..self.heirs.len()).map(move |slot| Some((slot, self.heir(slot)?)));
        heirs.flatten()
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
    pub columns: Columns<'a>,
    /// What the waiters have to meet, one waiter's after the other's, in the order of the queue.
    bounds: &'a mut [Bound],
}

/// A login in the queue.
pub struct Waiter<'a> {
    pub slot: usize,
    pub session: Session,
    pub bounds: &'a [Bound],
}

impl<'a> Table<'a> {
    /// `slots` has as many elements as there are claims, each column besides fills up its last tile.
    pub fn new(
        shared: Shared<'a>,
        slots: &'a mut [Slot],
        columns: Columns<'a>,
        bounds: &'a mut [Bound],
    ) -> Self {
        Table {
            shared,
            slots,
            columns,
            bounds,
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
        let claim = Claim::load(self.shared.claims.get(slot)?)?;
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

    /// How many sessions a limit counts: not an arriving one beside those whose place it is to have.
    /// `Census` says the same, faster.
    pub fn count(&self, counted: Counted) -> u32 {
        let counts = |(slot, _, session): &(usize, u32, Session)| {
            counted.covers(session)
                && !(self.is_arriving(*slot) && self.has_predecessor(*slot, counted))
        };
        self.claimed().filter(counts).count() as u32
    }

    /// Whether a session that the limit covers is left to the owner of `heir` and still there.
    fn has_predecessor(&self, heir: usize, counted: Counted) -> bool {
        self.claimed().any(|(slot, _, session)| {
            self.shared.heir(slot) == Some(heir) && counted.covers(&session)
        })
    }

    /// The process ID and the session at `slot`, if nothing keeps it from being told to end: it is neither
    /// exempt nor arriving nor left to another already.
    pub fn replaceable(&self, slot: usize) -> Option<(u32, Session)> {
        let (pid, session) = self.process(slot)?;
        let free = !session.exempt && !self.is_arriving(slot) && self.shared.heir(slot).is_none();
        free.then_some((pid, session))
    }

    /// The sessions that a limit counts and that are not about to end: neither told to nor left to
    /// another. With their slots and process IDs.
    pub fn staying<'b>(
        &'b self,
        counted: Counted<'b>,
    ) -> impl Iterator<Item = (usize, u32, Session)> {
        self.claimed().filter(move |(slot, _, session)| {
            let leaves = self.notice(*slot).is_some() || self.shared.heir(*slot).is_some();
            !leaves && counted.covers(session)
        })
    }

    /// Whether the session at `slot` takes the place of others that may still be there.
    pub fn is_arriving(&self, slot: usize) -> bool {
        let mark = self.columns.marks.get(slot);
        mark.is_some_and(|mark| mark & ARRIVING != 0)
    }

    fn set_arriving(&mut self, slot: usize, arriving: bool) {
        if let Some(mark) = self.columns.marks.get_mut(slot) {
            *mark = *mark & !ARRIVING | if arriving { ARRIVING } else { 0 };
        }
    }

    /// Notes that the session at `slot` is told to end, and why.
    pub fn tell(&mut self, slot: usize, notice: Notice) -> Option<Session> {
        self.slots.get_mut(slot)?.notice = Some(notice);
        self.session(slot)
    }

    /// Leaves the place of the session at `slot` to the owner of `heir`, which has claimed its own.
    pub fn bequeath(&mut self, slot: usize, heir: usize) {
        if let Some(word) = self.shared.heirs.get(slot) {
            word.store(heir as u32 + 1, Ordering::SeqCst);
        }
        self.set_arriving(heir, true);
    }

    /// The process IDs of the sessions that are left to the owner of `heir` and still there.
    pub fn predecessors(&self, heir: usize) -> impl Iterator<Item = u32> {
        let left = move |slot: &usize| self.shared.heir(*slot) == Some(heir);
        self.claimed()
            .filter(move |(slot, _, _)| left(slot))
            .map(|(_, pid, _)| pid)
    }

    /// Notes that the sessions that are left to the owner of `heir` are told to end, and why.
    pub fn notify(&mut self, heir: usize) {
        let address = self.slots.get(heir).and_then(|place| place.address);
        for (slot, place) in self.slots.iter_mut().enumerate() {
            if self.shared.heir(slot) == Some(heir) {
                place.notice = Some(Notice::Replaced(address));
            }
        }
    }

    /// Makes the owner of `slot` a session like any other, if those before it are gone.
    pub fn arrive(&mut self, slot: usize) -> bool {
        let arrived = self.predecessors(slot).next().is_none();
        self.set_arriving(slot, !arrived);
        arrived
    }

    /// Takes back the claim of a login that has not arrived; the places that it was to have fall back.
    pub fn give_back(&mut self, slot: usize) {
        for word in self.shared.heirs {
            let heir = slot as u32 + 1;
            // Whoever else changes it holds the lock, too.
            if word.load(Ordering::SeqCst) == heir {
                word.store(0, Ordering::SeqCst);
            }
        }
        self.vacate(slot);
    }

    /// Why the session at `slot` was told to end.
    pub fn notice(&self, slot: usize) -> Option<Notice> {
        self.slots.get(slot)?.notice
    }

    /// Makes the owner of `slot` a session.
    pub fn claim(&mut self, slot: usize, pid: u32, session: Session) {
        self.put(slot, session);
        if let Some(word) = self.shared.claims.get(slot) {
            word.store(Claim::new(pid, session.role).0, Ordering::SeqCst);
        }
    }

    fn put(&mut self, slot: usize, session: Session) {
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
            *mark = *mark & ARRIVING | walsender | exempt;
        }
    }

    /// Takes over `slot` for its new owner: the process that claimed it has left the process array.
    pub fn vacate(&mut self, slot: usize) {
        if let (Some(word), Some(heir)) =
            (self.shared.claims.get(slot), self.shared.heirs.get(slot))
        {
            word.store(0, Ordering::SeqCst);
            heir.store(0, Ordering::SeqCst);
        }
        if let Some(place) = self.slots.get_mut(slot) {
            place.notice = None;
        }
        self.set_arriving(slot, false);
    }

    /// The waiters in order of arrival.
    pub fn waiters(&self) -> impl Iterator<Item = Waiter<'_>> {
        let waiting = self.shared.waiting.load(Ordering::SeqCst) as usize;
        let queue = self.shared.queue.iter().take(waiting);
        let mut rest = &*self.bounds;
        queue.filter_map(move |entry| {
            let slot = entry.load(Ordering::SeqCst) as usize;
            let place = self.slots.get(slot)?;
            let (bounds, others) = rest.split_at_checked(place.bounds.into())?;
            rest = others;
            Some(Waiter {
                slot,
                session: self.session(slot)?,
                bounds,
            })
        })
    }

    /// Those who arrived before the owner of `slot`: all, if it does not wait.
    pub fn waiters_before(&self, slot: usize) -> impl Iterator<Item = Waiter<'_>> {
        self.waiters().take_while(move |waiter| waiter.slot != slot)
    }

    /// Puts the owner of `slot` at the end of the queue, or, if it is there, renews what it waits
    /// for. False if there is no room for that many `bounds`.
    pub fn enqueue(
        &mut self,
        slot: usize,
        session: Session,
        bounds: impl Iterator<Item = Bound> + Clone,
    ) -> bool {
        let Ok(number) = u16::try_from(bounds.clone().count()) else {
            return false;
        };
        let queued = self.waiters().any(|waiter| waiter.slot == slot);
        let kept = if queued {
            self.slots.get(slot).map_or(0, |place| place.bounds)
        } else {
            0
        };
        if !self.splice(slot, kept, bounds) {
            return false;
        }
        self.put(slot, session);
        if let Some(place) = self.slots.get_mut(slot) {
            place.bounds = number;
        }
        let waiting = self.shared.waiting.load(Ordering::SeqCst);
        if !queued && let Some(end) = self.shared.queue.get(waiting as usize) {
            end.store(slot as u32, Ordering::SeqCst);
            self.shared.waiting.store(waiting + 1, Ordering::SeqCst);
        }
        true
    }

    /// Takes the owner of `slot` out of the queue; true if it was in.
    pub fn dequeue(&mut self, slot: usize) -> bool {
        let waiting = self.shared.waiting.load(Ordering::SeqCst);
        let Some(position) = self.waiters().position(|waiter| waiter.slot == slot) else {
            return false;
        };
        let kept = self.slots.get(slot).map_or(0, |place| place.bounds);
        self.splice(slot, kept, std::iter::empty());
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

    /// Replaces the `kept` bounds of the owner of `slot`, which come after those of the waiters before
    /// it. False, and nothing changed, if there is no room.
    fn splice(
        &mut self,
        slot: usize,
        kept: u16,
        bounds: impl Iterator<Item = Bound> + Clone,
    ) -> bool {
        let all = |waiter: Waiter| waiter.bounds.len();
        let start: usize = self.waiters_before(slot).map(all).sum();
        let end: usize = self.waiters().map(all).sum();
        let (old, new) = (start + usize::from(kept), start + bounds.clone().count());
        if end - old + new > self.bounds.len() {
            return false;
        }
        self.bounds.copy_within(old..end, new);
        for (place, bound) in self.bounds.iter_mut().skip(start).zip(bounds) {
            *place = bound;
        }
        true
    }
}

/// A table in a process's own memory: a copy, for a view, or a test's.
pub struct OwnTable {
    claims: Vec<AtomicU64>,
    queue: Vec<AtomicU32>,
    waiting: AtomicU32,
    heirs: Vec<AtomicU32>,
    slots: Vec<Slot>,
    databases: Vec<u32>,
    hosts: Vec<u32>,
    marks: Vec<u8>,
    bounds: Vec<Bound>,
}

impl OwnTable {
    pub fn new(slots: usize, bounds: usize) -> OwnTable {
        OwnTable {
            claims: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            queue: (0..slots).map(|_| AtomicU32::new(0)).collect(),
            waiting: AtomicU32::new(0),
            heirs: (0..slots).map(|_| AtomicU32::new(0)).collect(),
            slots: vec![Slot::free(); slots],
            databases: vec![0; slots.next_multiple_of(TILE)],
            hosts: vec![0; slots.next_multiple_of(TILE)],
            marks: vec![0; slots.next_multiple_of(TILE)],
            bounds: vec![Bound::FREE; bounds],
        }
    }

    pub fn table(&mut self) -> Table<'_> {
        let shared = Shared::new(&self.claims, &self.queue, &self.waiting, &self.heirs);
        let columns = Columns {
            databases: &mut self.databases,
            hosts: &mut self.hosts,
            marks: &mut self.marks,
        };
        Table::new(shared, &mut self.slots, columns, &mut self.bounds)
    }

    /// Becomes a copy of a table of the same size. Allocates nothing.
    pub fn copy(&mut self, table: &Table) {
        for (own, claim) in self.claims.iter().zip(table.shared.claims) {
            own.store(claim.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        let words = self.queue.iter().chain(&self.heirs);
        for (own, word) in words.zip(table.shared.queue.iter().chain(table.shared.heirs)) {
            own.store(word.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        let waiting = table.shared.waiting.load(Ordering::SeqCst);
        self.waiting.store(waiting, Ordering::SeqCst);
        self.slots.clone_from_slice(table.slots);
        self.databases.copy_from_slice(table.columns.databases);
        self.hosts.copy_from_slice(table.columns.hosts);
        self.marks.copy_from_slice(table.columns.marks);
        let used = table.waiters().map(|waiter| waiter.bounds.len()).sum();
        let bounds = self.bounds.iter_mut().zip(table.bounds.iter());
        bounds.take(used).for_each(|(own, bound)| *own = *bound);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::limit::tests::{in_database, of_role};

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
        table.count(Counted::new(scope, walsenders, &members).expect("a known group"))
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
        let unknown = Counted::new(team, false, &Members::default()).err();
        assert_eq!(unknown, Some(Unknown::Members(TEAM)));
    }

    #[test]
    fn the_queue_keeps_the_order_of_arrival() {
        let mut memory = OwnTable::new(5, 0);
        let mut table = memory.table();
        let nothing = std::iter::empty::<Bound>;
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
        let bounds = |maxes: &'static [u32]| {
            maxes.iter().map(|max| Bound {
                scope: of_role(ALICE),
                max: *max,
            })
        };
        let of = |table: &Table| {
            let maxes = |waiter: Waiter| waiter.bounds.iter().map(|bound| bound.max).collect();
            table.waiters().map(maxes).collect::<Vec<Vec<u32>>>()
        };
        assert!(table.enqueue(3, session(ALICE, APP), bounds(&[1, 2])));
        assert!(table.enqueue(0, session(ALICE, APP), bounds(&[])));
        assert!(table.enqueue(1, session(ALICE, APP), bounds(&[3])));
        assert_eq!(of(&table), [vec![1, 2], vec![], vec![3]]);
        assert!(table.enqueue(3, session(ALICE, APP), bounds(&[4])));
        assert!(table.enqueue(0, session(ALICE, APP), bounds(&[5, 6, 7, 8])));
        assert_eq!(of(&table), [vec![4], vec![5, 6, 7, 8], vec![3]]);
        assert!(
            !table.enqueue(1, session(ALICE, APP), bounds(&[3, 9])),
            "seven"
        );
        assert!(
            !table.enqueue(4, session(ALICE, APP), bounds(&[9])),
            "and one more"
        );
        assert_eq!(
            of(&table),
            [vec![4], vec![5, 6, 7, 8], vec![3]],
            "as before"
        );
        assert!(table.dequeue(0));
        assert_eq!(of(&table), [vec![4], vec![3]]);
        assert!(table.enqueue(0, session(ALICE, APP), bounds(&[10])));
        assert_eq!(of(&table), [vec![4], vec![3], vec![10]]);
        let mut copy = OwnTable::new(5, 6);
        copy.copy(&table);
        assert_eq!(of(&copy.table()), of(&table));
    }

    /// What the README says of the shared memory, but for the four bounds of each slot.
    #[test]
    fn a_slot_is_small() {
        let words = size_of::<AtomicU64>() + 2 * size_of::<AtomicU32>();
        let columns = 2 * size_of::<u32>() + size_of::<u8>();
        let all = words + columns + size_of::<Slot>() + 4 * size_of::<Bound>();
        assert_eq!(all, 249);
    }
}
