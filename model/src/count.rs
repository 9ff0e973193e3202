//! Counting, fast: a decision counts sessions once for each limit and for each condition of a waiter.
//!
//! Before it takes the lock, a process reads the claims and works out which of the sessions are of members of which
//! group, however long that takes. Under the lock it reads the claims again, and works that out only for those that
//! have changed. A count then goes over the [`crate::table::Columns`], one [`TILE`] at a time. Each condition has a
//! loop of its own that does the same for every slot, so that the compiler can treat several slots with one
//! instruction.
//!
//! Counts are of the last [`SessionCounter::refresh`]: a session that left since is still counted. So a login that is
//! about to wait refreshes once more. [`Table::count`] is the plain definition of what is counted here.

use crate::atomics::Shared;
use crate::limit::{Scope, Unit, Who};
use crate::members::{Members, Missing, SessionFilter};
use crate::network::Network;
use crate::servers::place::Contact;
use crate::session::Session;
use crate::table::{PENDING, TILE, Table, WALSENDER};
use crate::tally::{Tally, View};
use std::cell::Cell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::hint::black_box;

mod different;

/// The order in which victims are chosen, the smallest first: (1) not yet told to end, since a session that was told
/// and is still there may be stuck; (2) the tick since which it has been idle, so the longest idle, or None if that does
/// not matter; (3) earliest arrival.
pub type VictimRank = (bool, Option<u64>, u64);

/// How many counts are cached while logins wait. The 20 waiters that `max_waiters` allows by default have 80 scopes
/// with four limits each; with several times as many entries, few of them fall on the same one.
const CACHE_SIZE: usize = 512;

/// Counts sessions, as of its last [`SessionCounter::refresh`]. Also the memory for what a decision works out under the
/// lock, where nothing is allocated.
pub struct SessionCounter<'a> {
    /// The role of each slot's session; 0 where there is none.
    roles: Vec<u32>,
    groups: Vec<Group<'a>>,
    /// Bitwise OR of the marks of all slots.
    marks: u8,
    /// By slot: whether the last count left out this pending successor, because it counted victims of it.
    left_out: Vec<Cell<bool>>,
    /// Counts since the last refresh, as scope, whether walsenders count, and count. The scope's hash says in which
    /// entry. Empty while nobody waits.
    cache: Vec<Cell<Option<(Scope, bool, u32)>>>,
    /// For each limit of the login, if the caller gave it room: how many sessions, or units of them, it counts with the login;
    /// None while that is not known.
    pub in_use: Vec<Cell<Option<u32>>>,
    /// Whether places can be had, as of the last refresh.
    pub contact: Contact,
    /// Memory to count different roles or addresses in; not if no limit of the login counts them.
    tally: Cell<Tally>,
    /// Which count is in `tally` since the last refresh.
    tallied: Cell<Option<(Scope, bool, Unit, View)>>,
    /// The slots of the waiters that go before the login, as far as that has been worked out (see [`crate::order`]).
    pub first: Vec<usize>,
    /// The slots of the waiters that the caller wakes once it has dropped the lock.
    pub wake: Vec<usize>,
    /// The slots of the sessions that may end for a limit, each with its rank (see [`crate::replace`]).
    pub candidates: Vec<(VictimRank, usize)>,
    /// The victims that were chosen because they are idle: the slot of each, and the tick since which it has been idle.
    pub idle_victims: Vec<(usize, u64)>,
}

/// For each slot of a tile: 1 if it matches, else 0.
type Hits = [u32; TILE];

/// A group whose members are counted.
struct Group<'a> {
    oid: u32,
    /// OIDs, sorted.
    members: &'a [u32],
    /// For each slot: 1 if its session is a member's, else 0.
    hits: Vec<u32>,
}

impl<'a> SessionCounter<'a> {
    /// Allocates all that a decision will need, and reads the claims. To be called before the lock is taken.
    pub fn new(
        shared: Shared,
        members: &'a Members,
        may_replace: bool,
        tally: bool,
    ) -> SessionCounter<'a> {
        let slots = shared.slots();
        let candidates = if may_replace { slots } else { 0 };
        let padded = slots.next_multiple_of(TILE);
        let groups = members.all().map(|(oid, members)| Group {
            oid,
            members,
            hits: vec![0; padded],
        });
        let waiting = shared.waiters().count();
        let mut counter = SessionCounter {
            roles: vec![0; padded],
            groups: groups.collect(),
            marks: 0,
            left_out: vec![Cell::new(false); slots],
            cache: vec![Cell::new(None); if waiting > 0 { CACHE_SIZE } else { 0 }],
            in_use: Vec::new(),
            contact: Contact::Good,
            tally: Cell::new(if tally {
                Tally::for_slots(slots)
            } else {
                Tally::default()
            }),
            tallied: Cell::new(None),
            first: vec![usize::MAX; slots],
            // Only a login that waits already wakes others. If the queue is empty, this one does not.
            wake: vec![usize::MAX; if waiting > 0 { slots } else { 0 }],
            candidates: vec![((true, None, u64::MAX), usize::MAX); candidates],
            idle_victims: Vec::with_capacity(candidates),
        };
        // The kernel maps memory when it is first written to. Write to it now: under the lock others would wait for that.
        black_box(&mut counter.roles).fill(0);
        for group in &mut counter.groups {
            black_box(&mut group.hits).fill(0);
        }
        counter.first.clear();
        counter.wake.clear();
        counter.candidates.clear();
        counter.refresh_claims(shared);
        counter
    }

    /// Reads the table anew: from here on counts are as of now.
    pub fn refresh(&mut self, table: &Table) {
        self.refresh_claims(table.shared);
        self.marks = table.columns.marks.iter().fold(0, |all, mark| all | mark);
    }

    fn refresh_claims(&mut self, shared: Shared) {
        for (slot, (known, role)) in self.roles.iter_mut().zip(shared.roles()).enumerate() {
            if *known != role {
                *known = role;
                self.groups
                    .iter_mut()
                    .for_each(|group| group.set(slot, role));
            }
        }
        self.clear_cache();
        self.forget_in_use();
    }

    pub fn forget_in_use(&self) {
        self.in_use.iter().for_each(|known| known.set(None));
    }

    /// Notes that `slot` now has a session of this role, or, if 0, none.
    pub fn set(&mut self, slot: usize, role: u32) {
        if let Some(known) = self.roles.get_mut(slot) {
            *known = role;
            self.groups
                .iter_mut()
                .for_each(|group| group.set(slot, role));
        }
        self.clear_cache();
    }

    /// Makes the session at `slot` a victim of `successor`, as [`Table::hand_over`], and counts accordingly.
    pub fn hand_over(&mut self, table: &mut Table, slot: usize, successor: usize) {
        table.hand_over(slot, successor);
        self.marks |= PENDING;
        self.tallied.set(None);
    }

    fn clear_cache(&self) {
        self.cache.iter().for_each(|entry| entry.set(None));
        self.tallied.set(None);
    }

    /// How many units of sessions a limit counts. [`Table::count_units`] is the plain definition.
    pub fn count_units(
        &self,
        table: &Table,
        filter: SessionFilter,
        unit: Unit,
    ) -> Result<u32, Missing> {
        match unit {
            Unit::Session => Ok(self.count(table, filter)),
            _ => Ok(self
                .different(table, filter, unit, View::Now, &[], None)?
                .in_use),
        }
    }

    /// How many sessions a limit counts (see [`Table::count`]).
    pub fn count(&self, table: &Table, filter: SessionFilter) -> u32 {
        let uncounted = self.uncounted(table, None, filter);
        self.sum(table, filter).saturating_sub(uncounted)
    }

    /// The same as [`SessionCounter::count`], from the cache if it has the count. For filters without a role of their own.
    pub fn count_cached(&self, table: &Table, filter: SessionFilter) -> u32 {
        if self.cache.is_empty() {
            return self.count(table, filter);
        }
        let mut hasher = DefaultHasher::new();
        filter.scope.hash(&mut hasher);
        let entry = self.cache.get(hasher.finish() as usize % CACHE_SIZE);
        if let Some((scope, walsenders, number)) = entry.and_then(Cell::get)
            && (scope, walsenders) == (filter.scope, filter.walsenders)
        {
            return number;
        }
        let number = self.count(table, filter);
        if let Some(entry) = entry {
            entry.set(Some((filter.scope, filter.walsenders, number)));
        }
        number
    }

    /// How many sessions a limit will count when the victims of the login at `slot` are gone.
    pub fn count_when_complete(&self, table: &Table, slot: usize, filter: SessionFilter) -> u32 {
        let uncounted = self.uncounted(table, Some(slot), filter);
        self.sum(table, filter).saturating_sub(uncounted)
    }

    /// The sessions that a limit counts, each with its process ID.
    pub fn counted<'b>(
        &'b self,
        table: &'b Table,
        filter: SessionFilter<'b>,
    ) -> impl Iterator<Item = (u32, Session)> {
        let some_left_out = self.uncounted(table, None, filter) > 0;
        let counts = move |slot: &usize| !(some_left_out && self.is_left_out(*slot));
        self.covered(table, filter)
            .filter(counts)
            .filter_map(|slot| table.process(slot))
    }

    /// How many sessions a limit covers.
    fn sum(&self, table: &Table, filter: SessionFilter) -> u32 {
        let mut hits = [0; TILE];
        let tiles = 0..self.roles.len() / TILE;
        let numbers = tiles.map(|tile| self.find(table, filter, tile, &mut hits));
        numbers.flatten().sum()
    }

    /// The slots of the sessions that a limit covers.
    pub fn covered<'b>(
        &'b self,
        table: &'b Table,
        filter: SessionFilter<'b>,
    ) -> impl Iterator<Item = usize> {
        let tiles = 0..self.roles.len() / TILE;
        let hits = tiles.filter_map(move |tile| {
            let mut hits = [0; TILE];
            self.find(table, filter, tile, &mut hits)?;
            Some((tile, hits))
        });
        hits.flat_map(|(tile, hits)| {
            let slots = (tile * TILE..).zip(hits);
            slots.filter_map(|(slot, hit)| (hit != 0).then_some(slot))
        })
    }

    /// Marks in `hits` the slots of this tile whose session the limit covers, and returns how many there are. If it
    /// returns None, there is none, and `hits` means nothing.
    fn find(
        &self,
        table: &Table,
        filter: SessionFilter,
        tile: usize,
        hits: &mut Hits,
    ) -> Option<u32> {
        let Scope {
            who,
            database,
            network,
        } = filter.scope;
        let roles = part(&self.roles, tile)?;
        let databases = part(table.columns.databases, tile)?;
        let database = database.map(|database| (databases, database));
        let mut number = match who {
            Who::Anyone => set(hits, roles, |role| role != 0, database),
            Who::Role(wanted) => set(hits, roles, |role| role == wanted, database),
            Who::MembersOf(oid) => {
                let group = self.groups.iter().find(|group| group.oid == oid)?;
                set(hits, part(&group.hits, tile)?, |hit| hit != 0, database)
            }
        };
        if let Some(own) = filter.own {
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
        if !filter.walsenders && self.marks & WALSENDER != 0 {
            number = keep(hits, part(table.columns.marks, tile)?, |mark| {
                mark & WALSENDER == 0
            });
        }
        Some(number)
    }

    /// How many of the sessions that a limit covers it does not count, because a successor and its victims count once:
    /// for the login at `complete`, each of its victims, as if they were gone; for each other pending successor that
    /// the limit covers together with a victim of it, the successor.
    fn uncounted(&self, table: &Table, complete: Option<usize>, filter: SessionFilter) -> u32 {
        if self.marks & PENDING == 0 {
            return 0;
        }
        let covers = |slot: usize| {
            let is_there = self.roles.get(slot).is_some_and(|role| *role != 0);
            is_there && table.session(slot).is_some_and(|it| filter.covers(&it))
        };
        self.left_out
            .iter()
            .for_each(|left_out| left_out.set(false));
        let mut number = 0;
        for (slot, successor) in table.shared.successors() {
            if !covers(slot) {
                continue;
            }
            let is_new = || {
                let left_out = self.left_out.get(successor);
                left_out.is_some_and(|left_out| !left_out.replace(true))
            };
            if complete == Some(successor)
                || (table.is_pending(successor) && covers(successor) && is_new())
            {
                number += 1;
            }
        }
        number
    }

    /// Whether the last count left out the pending successor at `slot`.
    fn is_left_out(&self, slot: usize) -> bool {
        self.left_out.get(slot).is_some_and(Cell::get)
    }
}

impl Group<'_> {
    /// Notes whose session `slot` now has; 0: none.
    fn set(&mut self, slot: usize, role: u32) {
        if let Some(hit) = self.hits.get_mut(slot) {
            *hit = (role != 0 && self.members.binary_search(&role).is_ok()).into();
        }
    }
}

/// A tile of a column; None behind its end.
fn part<T>(column: &[T], tile: usize) -> Option<&[T; TILE]> {
    column.as_chunks().0.get(tile)
}

/// Marks the slots whose element matches and, if one is wanted, whose database is that one. Returns how many.
fn set(
    hits: &mut Hits,
    column: &[u32; TILE],
    matches: impl Fn(u32) -> bool,
    database: Option<(&[u32; TILE], u32)>,
) -> u32 {
    let mut number = 0;
    let hits = hits.iter_mut().zip(column);
    match database {
        None => hits.for_each(|(hit, element)| {
            *hit = matches(*element).into();
            number += *hit;
        }),
        Some((databases, wanted)) => hits.zip(databases).for_each(|((hit, element), database)| {
            *hit = (matches(*element) & (*database == wanted)).into();
            number += *hit;
        }),
    }
    number
}

/// Of the marked slots keeps those whose element matches. Returns how many.
fn keep<T: Copy>(hits: &mut Hits, column: &[T; TILE], matches: impl Fn(T) -> bool) -> u32 {
    let mut number = 0;
    for (hit, element) in hits.iter_mut().zip(column) {
        *hit &= u32::from(matches(*element));
        number += *hit;
    }
    number
}

/// The same as `keep`, for a network that the column of hosts cannot tell (see [`Network::host_and_mask`]).
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

    /// The sessions of different numbers differ in all that a filter looks at.
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

    const UNITS: [Unit; 3] = [
        Unit::Role,
        Unit::Address {
            ipv6_prefix_length: 128,
        },
        Unit::Address {
            ipv6_prefix_length: 16,
        },
    ];

    /// The counter counts and lists as many sessions as the table, for every scope.
    fn compare(table: &Table, counter: &SessionCounter, members: &Members) {
        for scope in scopes() {
            for walsenders in [false, true] {
                let all = SessionFilter::new(scope, walsenders, members).expect("a known group");
                for filter in [all, all.of(12)] {
                    let plain = table.count(filter);
                    assert_eq!(counter.count(table, filter), plain, "{scope:?}");
                    assert_eq!(counter.counted(table, filter).count() as u32, plain);
                }
                assert_eq!(counter.count_cached(table, all), table.count(all));
                assert_eq!(counter.count_cached(table, all), table.count(all), "again");
                for unit in UNITS {
                    let number = counter.count_units(table, all, unit).expect("memory");
                    assert_eq!(number, table.count_units(all, unit), "{unit:?} {scope:?}");
                }
            }
        }
    }

    #[test]
    fn the_counter_agrees_with_the_table_whatever_has_changed() {
        let slots = 2 * TILE + 17;
        let mut memory = OwnTable::new(slots, 4);
        let mut table = memory.table();
        for slot in (0..slots).filter(|slot| slot % 7 != 3) {
            table.claim(slot, 100 + slot as u32, any(slot as u32));
        }
        // A login waits, so that counts are cached.
        assert!(table.enqueue(3, any(3), std::iter::empty()));
        let mut members = Members::default();
        members.insert(TEAM, vec![13, 12, 99]);
        members.insert(NOBODY, vec![]);
        let mut counter = SessionCounter::new(table.shared, &members, true, true);
        counter.refresh(&table);
        compare(&table, &counter, &members);
        // Slots are emptied; some get another session.
        for slot in (0..slots).step_by(5) {
            table.vacate(slot);
            if slot % 2 == 0 {
                table.claim(slot, 900, any(slot as u32 + 1));
            }
        }
        counter.refresh(&table);
        compare(&table, &counter, &members);
        // Successors of one victim and of several; some victims, or all of a successor's, are gone.
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
        // `count_when_complete` is what is counted when the victims have left.
        for scope in scopes() {
            let filter = SessionFilter::new(scope, true, &members).expect("a known group");
            let then = counter.count_when_complete(&table, 2, filter);
            let mut later = OwnTable::new(slots, 4);
            later.copy(&table);
            let mut later = later.table();
            [12, 22, 256]
                .into_iter()
                .for_each(|slot| later.vacate(slot));
            assert!(later.complete(2));
            assert_eq!(then, later.count(filter), "{scope:?}");
            for unit in UNITS {
                let then = counter.different(&table, filter, unit, View::Complete(2), &[], None);
                let then = then.expect("memory").in_use;
                assert_eq!(then, later.count_units(filter, unit), "{unit:?} {scope:?}");
            }
        }
    }
}
