//! Counting, fast: what a decision asks of the table again and again. Pure.
//!
//! Before it takes the lock, a process looks at the claims and works out who of those it saw is in which
//! group, whatever that takes. Under the lock it looks again, and only for what has changed meanwhile is
//! that worked out anew. A count then goes over plain columns, a tile of them at a time, each condition
//! in a loop of its own that does the same for every slot: the compiler makes it treat many at once.
//!
//! A session that leaves after the last look is still counted: who is going to wait looks again. `Table::count`
//! says plainly what is counted here.

use crate::atomics::Shared;
use crate::limit::{Scope, Who};
use crate::members::{Members, SessionFilter};
use crate::network::Network;
use crate::session::Session;
use crate::table::{PENDING, TILE, Table, WALSENDER};
use std::cell::Cell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::hint::black_box;

/// Which sessions end first: those that were not told before, for one that was and is still there may be
/// one that does not go; of the idle, those that are idle for longest; those that arrived first.
pub type VictimRank = (bool, i64, u64);

/// How many counts are cache for those who wait.
const CACHE_SIZE: usize = 512;

/// Who was in when its owner last looked, and room for what is worked out under the lock.
pub struct SessionCounter<'a> {
    /// The role of each slot's session; 0 where there is none.
    roles: Vec<u32>,
    groups: Vec<Group<'a>>,
    /// What some mark has.
    marks: u8,
    /// Whether this successor was found not to count, by slot.
    successors: Vec<Cell<bool>>,
    /// Counts since the last look, each where its scope's hash says.
    cache: Vec<Cell<Option<(Scope, bool, u32)>>>,
    /// The slots of the waiters that go first, as far as that is known.
    pub first: Vec<usize>,
    /// The slots of the waiters that are to look again, once the lock is free.
    pub wake: Vec<usize>,
    /// The slots of sessions that may be ended for a limit, and in which order.
    pub candidates: Vec<(VictimRank, usize)>,
}

/// 1 for each slot of a tile that is meant.
type Hits = [u32; TILE];

struct Group<'a> {
    oid: u32,
    members: &'a [u32],
    /// 1 where the slot's session is a member's.
    theirs: Vec<u32>,
}

impl<'a> SessionCounter<'a> {
    /// Allocates all that it will need, and looks.
    pub fn new(shared: Shared, members: &'a Members, may_replace: bool) -> SessionCounter<'a> {
        let slots = shared.slots();
        let candidates = if may_replace { slots } else { 0 };
        let padded = slots.next_multiple_of(TILE);
        let groups = members.all().map(|(oid, members)| Group {
            oid,
            members,
            theirs: vec![0; padded],
        });
        let waiting = shared.waiters().count();
        let mut counter = SessionCounter {
            roles: vec![0; padded],
            groups: groups.collect(),
            marks: 0,
            successors: vec![Cell::new(false); slots],
            cache: vec![Cell::new(None); if waiting > 0 { CACHE_SIZE } else { 0 }],
            first: vec![usize::MAX; slots],
            // Only a waiter wakes others, and it is in the queue already.
            wake: vec![usize::MAX; if waiting > 0 { slots } else { 0 }],
            candidates: vec![((true, i64::MAX, u64::MAX), usize::MAX); candidates],
        };
        // Memory that nobody has written to is not there yet; nobody is to wait for it under the lock.
        black_box(&mut counter.roles).fill(0);
        for group in &mut counter.groups {
            black_box(&mut group.theirs).fill(0);
        }
        counter.first.clear();
        counter.wake.clear();
        counter.candidates.clear();
        counter.refresh_claims(shared);
        counter
    }

    /// Takes in what has changed since the last look.
    pub fn refresh(&mut self, table: &Table) {
        self.refresh_claims(table.shared);
        self.marks = table.columns.marks.iter().fold(0, |all, mark| all | mark);
    }

    fn refresh_claims(&mut self, shared: Shared) {
        for (slot, (seen, role)) in self.roles.iter_mut().zip(shared.roles()).enumerate() {
            if *seen != role {
                *seen = role;
                self.groups
                    .iter_mut()
                    .for_each(|group| group.set(slot, role));
            }
        }
        self.clear_cache();
    }

    /// Takes in that the session at `slot` is this role's; 0: that it is none.
    pub fn set(&mut self, slot: usize, role: u32) {
        if let Some(seen) = self.roles.get_mut(slot) {
            *seen = role;
            self.groups
                .iter_mut()
                .for_each(|group| group.set(slot, role));
        }
        self.clear_cache();
    }

    /// Leaves the place of a session to an successor (see `Table`).
    pub fn hand_over(&mut self, table: &mut Table, slot: usize, successor: usize) {
        table.hand_over(slot, successor);
        self.marks |= PENDING;
    }

    fn clear_cache(&self) {
        self.cache.iter().for_each(|cache| cache.set(None));
    }

    /// How many sessions a limit counts.
    pub fn count(&self, table: &Table, counted: SessionFilter) -> u32 {
        let replaced = self.replaced(table, None, counted);
        self.sum(table, counted).saturating_sub(replaced)
    }

    /// The same; where a hash finds it, it is not counted again.
    pub fn count_cached(&self, table: &Table, counted: SessionFilter) -> u32 {
        if self.cache.is_empty() {
            return self.count(table, counted);
        }
        let mut hasher = DefaultHasher::new();
        counted.scope.hash(&mut hasher);
        let place = self.cache.get(hasher.finish() as usize % CACHE_SIZE);
        if let Some((scope, walsenders, number)) = place.and_then(Cell::get)
            && (scope, walsenders) == (counted.scope, counted.walsenders)
        {
            return number;
        }
        let number = self.count(table, counted);
        if let Some(place) = place {
            place.set(Some((counted.scope, counted.walsenders, number)));
        }
        number
    }

    /// How many sessions a limit will count when the login at `slot` has arrived.
    pub fn count_when_complete(&self, table: &Table, slot: usize, counted: SessionFilter) -> u32 {
        let replaced = self.replaced(table, Some(slot), counted);
        self.sum(table, counted).saturating_sub(replaced)
    }

    /// The sessions that a limit counts, with their process IDs.
    pub fn counted<'b>(
        &'b self,
        table: &'b Table,
        counted: SessionFilter<'b>,
    ) -> impl Iterator<Item = (u32, Session)> {
        let replaced = self.replaced(table, None, counted) > 0;
        let counts = move |slot: &usize| !(replaced && self.is_replaced(*slot));
        self.covered(table, counted)
            .filter(counts)
            .filter_map(|slot| table.process(slot))
    }

    fn sum(&self, table: &Table, counted: SessionFilter) -> u32 {
        let mut hits = [0; TILE];
        let tiles = 0..self.roles.len() / TILE;
        let sums = tiles.map(|tile| self.find(table, counted, tile, &mut hits));
        sums.flatten().sum()
    }

    /// The slots of the sessions that a limit covers.
    pub fn covered<'b>(
        &'b self,
        table: &'b Table,
        counted: SessionFilter<'b>,
    ) -> impl Iterator<Item = usize> {
        let tiles = 0..self.roles.len() / TILE;
        let hits = tiles.filter_map(move |tile| {
            let mut hits = [0; TILE];
            self.find(table, counted, tile, &mut hits)?;
            Some((tile, hits))
        });
        hits.flat_map(|(tile, hits)| {
            let slots = (tile * TILE..).zip(hits);
            slots.filter_map(|(slot, hit)| (hit != 0).then_some(slot))
        })
    }

    /// Finds the slots of a tile whose session the limit covers, and says how many; None if there is none.
    fn find(
        &self,
        table: &Table,
        counted: SessionFilter,
        tile: usize,
        hits: &mut Hits,
    ) -> Option<u32> {
        let Scope {
            who,
            database,
            network,
        } = counted.scope;
        let roles = part(&self.roles, tile)?;
        let databases = part(table.columns.databases, tile)?;
        let database = database.map(|database| (databases, database));
        let mut number = match who {
            Who::Anyone => set(hits, roles, |role| role != 0, database),
            Who::Role(wanted) => set(hits, roles, |role| role == wanted, database),
            Who::MembersOf(oid) => {
                let group = self.groups.iter().find(|group| group.oid == oid)?;
                set(hits, part(&group.theirs, tile)?, |it| it != 0, database)
            }
        };
        if let Some(own) = counted.own {
            number = keep(hits, roles, |role| role == own);
        }
        if number == 0 {
            return None;
        }
        if let Some(network) = network {
            number = match network.host_and_mask() {
                Some((first, mask)) => keep(hits, part(table.columns.hosts, tile)?, |host| {
                    host & mask == first
                }),
                None => keep_from(hits, table, tile, network),
            };
        }
        if !counted.walsenders && self.marks & WALSENDER != 0 {
            number = keep(hits, part(table.columns.marks, tile)?, |mark| {
                mark & WALSENDER == 0
            });
        }
        Some(number)
    }

    /// How many of the sessions that a limit covers it does not count: those that are left to the login at
    /// `arrived`, and of each other pending one and those whose place it is to have the former.
    fn replaced(&self, table: &Table, arrived: Option<usize>, counted: SessionFilter) -> u32 {
        if self.marks & PENDING == 0 {
            return 0;
        }
        let covers = |slot: usize| {
            let is_there = self.roles.get(slot).is_some_and(|role| *role != 0);
            is_there && table.session(slot).is_some_and(|it| counted.covers(&it))
        };
        self.successors
            .iter()
            .for_each(|successor| successor.set(false));
        let mut number = 0;
        for (slot, successor) in table.shared.successors() {
            if !covers(slot) {
                continue;
            }
            let new = || {
                self.successors
                    .get(successor)
                    .is_some_and(|found| !found.replace(true))
            };
            if arrived == Some(successor)
                || (table.is_pending(successor) && covers(successor) && new())
            {
                number += 1;
            }
        }
        number
    }

    /// Whether the pending session at `slot` was not counted the last time.
    fn is_replaced(&self, slot: usize) -> bool {
        self.successors.get(slot).is_some_and(Cell::get)
    }
}

impl Group<'_> {
    fn set(&mut self, slot: usize, role: u32) {
        if let Some(theirs) = self.theirs.get_mut(slot) {
            *theirs = (role != 0 && self.members.binary_search(&role).is_ok()).into();
        }
    }
}

/// The tile of a column.
fn part<T>(column: &[T], tile: usize) -> Option<&[T; TILE]> {
    column.as_chunks().0.get(tile)
}

/// Says how many there are.
fn set(
    hits: &mut Hits,
    column: &[u32; TILE],
    matches: impl Fn(u32) -> bool,
    database: Option<(&[u32; TILE], u32)>,
) -> u32 {
    let mut number = 0;
    let hits = hits.iter_mut().zip(column);
    match database {
        None => hits.for_each(|(hit, it)| {
            *hit = matches(*it).into();
            number += *hit;
        }),
        Some((databases, wanted)) => hits.zip(databases).for_each(|((hit, it), database)| {
            *hit = (matches(*it) & (*database == wanted)).into();
            number += *hit;
        }),
    }
    number
}

fn keep<T: Copy>(hits: &mut Hits, column: &[T; TILE], matches: impl Fn(T) -> bool) -> u32 {
    let mut number = 0;
    for (hit, it) in hits.iter_mut().zip(column) {
        *hit &= u32::from(matches(*it));
        number += *hit;
    }
    number
}

/// As `keep`, for a network that the column of IPv4 addresses does not tell from others.
fn keep_from(hits: &mut Hits, table: &Table, tile: usize, network: Network) -> u32 {
    for (slot, hit) in (tile * TILE..)
        .zip(&mut *hits)
        .filter(|(_, hit)| **hit != 0)
    {
        let session = table.session(slot);
        let address = session.and_then(|session| session.address);
        *hit = address
            .is_some_and(|address| network.contains(address))
            .into();
    }
    hits.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::own_table::OwnTable;
    use crate::session::{Claim, Session};
    use crate::table::tests::session;

    const TEAM: u32 = 1;
    const NOBODY: u32 = 2;

    /// Some of every sort.
    fn any(number: u32) -> Session {
        let address = [
            "10.0.0.1",
            "10.1.0.1",
            "::1",
            "::ffff:10.0.0.1",
            "2001:db8::1",
        ];
        let address = address.get(number as usize / 3 % 7);
        Session {
            address: address.map(|text| text.parse().expect(text)),
            walsender: number.is_multiple_of(11),
            ..session(10 + number % 5, number / 2 % 3)
        }
    }

    fn scopes() -> Vec<Scope> {
        let mut scopes = Vec::new();
        let networks = [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.0.0.1",
            "::/0",
            "::1",
            "0.0.0.0/8",
        ];
        let networks = networks.map(|text| Some(text.parse().expect(text)));
        let whose = [
            Who::Anyone,
            Who::Role(12),
            Who::Role(9),
            Who::MembersOf(TEAM),
            Who::MembersOf(NOBODY),
        ];
        for who in whose {
            for database in [None, Some(0), Some(1), Some(7)] {
                for network in networks.into_iter().chain([None]) {
                    scopes.push(Scope {
                        who,
                        database,
                        network,
                    });
                }
            }
        }
        scopes
    }

    /// Counts, and says which, as the table does.
    fn compare(table: &Table, counter: &SessionCounter, members: &Members) {
        for scope in scopes() {
            for walsenders in [false, true] {
                let all = SessionFilter::new(scope, walsenders, members).expect("a known group");
                for counted in [all, all.of(12)] {
                    let plain = table.count(counted);
                    assert_eq!(counter.count(table, counted), plain, "{scope:?}");
                    assert_eq!(counter.counted(table, counted).count() as u32, plain);
                }
                assert_eq!(counter.count_cached(table, all), table.count(all));
                assert_eq!(counter.count_cached(table, all), table.count(all), "again");
            }
        }
    }

    #[test]
    fn it_counts_what_the_table_does_whatever_has_changed_since_the_first_look() {
        let slots = 2 * TILE + 17;
        let mut memory = OwnTable::new(slots, 4);
        let mut table = memory.table();
        for slot in (0..slots).filter(|slot| slot % 7 != 3) {
            table.claim(slot, 100 + slot as u32, any(slot as u32));
        }
        // Someone waits, so that counts are cache.
        assert!(table.enqueue(3, any(3), std::iter::empty()));
        let mut members = Members::default();
        members.insert(TEAM, vec![13, 12, 99]);
        members.insert(NOBODY, vec![]);
        let mut counter = SessionCounter::new(table.shared, &members, true);
        counter.refresh(&table);
        compare(&table, &counter, &members);
        // Slots change hands, with and without a session.
        for slot in (0..slots).step_by(5) {
            table.vacate(slot);
            if slot % 2 == 0 {
                table.claim(slot, 900, any(slot as u32 + 1));
            }
        }
        counter.refresh(&table);
        compare(&table, &counter, &members);
        // Heirs of one and of several, some of whom, or all, are gone.
        for (slot, successor) in [
            (7, 1),
            (12, 2),
            (22, 2),
            (256, 2),
            (37, 4),
            (17, 6),
            (27, 6),
        ] {
            table.hand_over(slot, successor);
        }
        for gone in [37, 27] {
            let claim = Claim::new(100 + gone as u32, any(gone as u32).role);
            assert!(table.shared.release(gone, claim));
        }
        counter.refresh(&table);
        compare(&table, &counter, &members);
        // Once an successor has arrived, it is counted, and those before it are not.
        for scope in scopes() {
            let counted = SessionFilter::new(scope, true, &members).expect("a known group");
            let then = counter.count_when_complete(&table, 2, counted);
            let mut later = OwnTable::new(slots, 4);
            later.copy(&table);
            let mut later = later.table();
            [12, 22, 256]
                .into_iter()
                .for_each(|slot| later.vacate(slot));
            assert!(later.complete(2));
            assert_eq!(then, later.count(counted), "{scope:?}");
        }
    }
}
