//! One round: what this server asks of etcd for its places, and what it makes of the answer.
//!
//! [`plan`] and [`settle`] run under the table's exclusive lock and allocate nothing; what is between them, in `exchange`,
//! does not.

use super::counter::Counter;
use super::place::{Holder, Number, PLACES_A_SLOT, Place};
use crate::table::Table;
use std::collections::BTreeSet;

mod exchange;

/// So many places at most are in one transaction. etcd allows 128 operations in one, those of transactions within it
/// among them (`--max-txn-ops`): tried, 125 transactions of 3 are taken, 126 are not.
const PLACES_A_ROUND: usize = 40;

/// So many of them at most are raised: something is left for those that are given back, or looked at.
const RAISED_A_ROUND: usize = 30;

/// So many places at most are raised all or none.
const PLACES_TOGETHER: usize = 20;

/// For so long a place that nobody here needs is kept: half of the default `max_wait`, so that a login elsewhere still gets it,
/// and a pool that connects again costs etcd nothing. In microseconds.
pub(super) const LINGER: u64 = 50_000;

/// While somebody waits in line, etcd is looked at so often. In microseconds.
pub(super) const POLL: u64 = 10_000;

/// Whoever is first in line elsewhere and lets a free place lie for so long is passed over. In microseconds.
const PATIENCE: u64 = 200_000;

/// What this server knows of one counter in etcd.
#[derive(Clone, Debug, Default)]
struct View {
    known: Known,
    /// Nobody has changed what is known since this revision, or the next raise fails.
    revision: i64,
    /// What etcd says that this server holds, and the revision of that.
    own: u32,
    own_revision: i64,
    /// What the other servers that live hold.
    others: u32,
    /// The revision at which this server began to wait for a place.
    wish: Option<i64>,
    /// How many places servers wait for that began earlier.
    ahead: u32,
    /// Since this tick nobody has taken a place that is free.
    room_since: Option<u64>,
    /// The tick of the last look.
    looked: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Known {
    /// Nothing of ours is in etcd: nothing was ever sent. So what others hold is not known, but that is no matter: the
    /// first raise says that nobody holds any.
    #[default]
    Untouched,
    /// Something was sent, and there was no answer.
    Uncertain,
    Seen,
}

/// What is asked for one place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    /// To hold so many places, more than before.
    Raise(u32),
    /// To hold so many, fewer than before.
    Lower(u32),
    /// To hold as many as there are sessions: they are in, whatever others hold.
    Assert(u32),
    /// To wait in line, for so many.
    Wish(u32),
    Unwish,
    Look,
}

#[derive(Clone, Debug)]
struct Job {
    number: Number,
    counter: Counter,
    act: Act,
    /// Jobs of one group are done all or none: the index of the first of them.
    group: usize,
}

/// How a place is used, as counted for one round.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    in_use: u32,
    /// Waiters that lack nothing but places.
    asking: u32,
    /// Somebody may still need it.
    pinned: bool,
    /// Places that are held and free for waiters, less those that some get.
    spare: u32,
    /// So many more are needed for waiters that would go in then. There is a job for it.
    wanted: u32,
    /// So many waiters find no place, here or in etcd.
    lacking: u32,
    /// So many of these wait for one, and not only for an answer.
    wishing: u32,
    /// One of the waiters came after the last look. Even if there is a place for it here, etcd is looked at: if others took
    /// that place before the waiter runs, it would have no answer after `etcd_timeout`, and go in as if etcd were silent.
    unanswered: bool,
}

/// The worker's memory for rounds.
pub struct Rounds {
    /// Of all keys.
    prefix: String,
    views: Vec<View>,
    uses: Vec<Use>,
    jobs: Vec<Job>,
    read: Vec<Read>,
    /// Every login that had arrived by this tick is taken into account.
    arrivals: u64,
    /// Keys of servers that do not live any more.
    trash: BTreeSet<String>,
    /// The place with which the next round begins, so that all have their turn.
    first: usize,
    /// Places were asserted since [`Rounds::take_asserted`].
    asserted: bool,
}

/// Why the next round is due before something happens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Due {
    /// There is more to do at once: others were faster, or it was too much for one round.
    pub now: bool,
    /// Somebody waits for a place that others have.
    pub waiting: bool,
    /// A place is spare, and is kept for a moment.
    pub spare: bool,
    /// Sessions that are in have no places in etcd yet.
    pub asserting: bool,
}

/// What was read of one job's counter.
#[derive(Clone, Debug, Default)]
struct Read {
    done: bool,
    revision: i64,
    own: u32,
    own_revision: i64,
    others: u32,
    holder: Holder,
    wish: Option<i64>,
    ahead: u32,
}

impl Rounds {
    /// With memory for so many places. `prefix` is that of all keys.
    pub fn new(prefix: String, places: usize) -> Rounds {
        Rounds {
            prefix,
            views: vec![View::default(); places],
            uses: vec![Use::default(); places],
            jobs: Vec::with_capacity(PLACES_A_ROUND),
            read: Vec::with_capacity(PLACES_A_ROUND),
            arrivals: 0,
            trash: BTreeSet::new(),
            first: 0,
            asserted: false,
        }
    }

    /// This worker is a new process of a server that lives on: what its predecessor sent is not known.
    pub fn be_uncertain(&mut self, table: &Table) {
        for (number, _, _) in table.places.all() {
            if let Some(view) = self.views.get_mut(number as usize) {
                view.known = Known::Uncertain;
            }
        }
    }

    /// The server begins a new life, with an id that etcd knows nothing of. What its sessions have they get again.
    pub fn be_born(&mut self, table: &mut Table) {
        self.views.fill(View::default());
        for place in table.places.rows.iter_mut() {
            (place.held, place.granted, place.yields) = (0, 0, 0);
        }
    }

    /// Finds out what is to be asked for, and takes away here what is to be given back. Every login that arrived until the
    /// tick `arrivals` has been let into the table. If not `valid`, sessions get their places, and nobody else does.
    pub fn plan(&mut self, table: &mut Table, now: u64, arrivals: u64, valid: bool) -> Due {
        let mut due = Due::default();
        self.jobs.clear();
        self.arrivals = arrivals;
        self.count(table);
        if valid {
            due.now = self.serve(table, now);
        }
        let used = table.places.used();
        let first = self.first;
        let mut left_out = None;
        for index in (0..used).map(|offset| (first + offset) % used) {
            let (Some(place), Some(view), Some(usage), Some(name)) = (
                table.places.rows.get_mut(index),
                self.views.get_mut(index),
                self.uses.get(index),
                table.places.names.get_mut(index),
            ) else {
                continue;
            };
            if name.is_none() {
                continue;
            }
            let number = index as Number;
            place.granted = place.granted.min(usage.asking);
            if usage.wanted > 0 {
                let raise = Act::Raise(place.held + usage.wanted);
                let job = self.jobs.iter_mut().find(|job| job.number == number);
                job.into_iter().for_each(|job| {
                    (job.act, job.counter) = (raise, *name);
                });
                continue;
            }
            due.asserting |= usage.in_use > place.held;
            due.waiting |= usage.lacking > 0;
            if self.jobs.len() == PLACES_A_ROUND {
                left_out.get_or_insert(index);
                continue;
            }
            let act = act(place, view, usage, now, valid);
            due.spare |= place.spare_since > 0;
            match act {
                Some(act) => {
                    if let Act::Lower(held) = act {
                        place.give_back(held);
                    }
                    self.jobs.push(Job {
                        number,
                        counter: *name,
                        act,
                        group: self.jobs.len(),
                    });
                }
                None if is_done_with(place, view, usage) => {
                    *view = View::default();
                    (*place, *name) = (Place::default(), Counter::NONE);
                }
                None => {}
            }
        }
        due.now |= left_out.is_some();
        self.first = left_out.unwrap_or(0);
        due
    }

    /// Counts how each place is used.
    fn count(&mut self, table: &Table) {
        for (usage, place) in self.uses.iter_mut().zip(&*table.places.rows) {
            *usage = Use {
                in_use: place.extra,
                ..Use::default()
            };
        }
        let uses = &mut self.uses;
        let mut note = |slot: usize, change: &dyn Fn(Number, &mut Use)| {
            for number in table.places.of(slot) {
                if let Some(usage) = uses.get_mut(number as usize) {
                    usage.pinned = true;
                    change(number, usage);
                }
            }
        };
        for (slot, _) in table.shared.claims() {
            note(slot, &|number, usage| {
                usage.in_use += u32::from(table.counts_for(slot, number));
            });
        }
        for waiter in table.waiters() {
            let (asks, arrival) = (table.places.asks(waiter.slot), waiter.session.arrival);
            note(waiter.slot, &|number, usage| {
                let place = table.places.get(number);
                let unanswered = place.is_some_and(|place| place.looked_at < arrival);
                usage.asking += u32::from(asks);
                usage.unanswered |= asks && unanswered;
            });
        }
        for (usage, place) in self.uses.iter_mut().zip(&*table.places.rows) {
            usage.spare = place.usable(place.max).saturating_sub(usage.in_use);
        }
    }

    /// Goes through the waiters that ask, in order of arrival, and adds a job for each place of which more are needed so that
    /// one of them can go in. Whoever does not find a place under each of its limits gets none: two logins could each have
    /// half of what both need. Returns whether there is more to do than fits into a round.
    fn serve(&mut self, table: &Table, now: u64) -> bool {
        let mut more = false;
        for waiter in table.waiters() {
            if !table.places.asks(waiter.slot) {
                continue;
            }
            let numbers = table.places.of(waiter.slot);
            let mut lacks = [false; PLACES_A_SLOT];
            for (lack, number) in lacks.iter_mut().zip(numbers.clone()) {
                *lack = !self.has_room(table, number, now);
            }
            let lacks = lacks.iter().zip(numbers.clone());
            let mut lacks = lacks.filter_map(|(lack, number)| lack.then_some(number));
            if let Some(first) = lacks.next() {
                let wishes = u32::from(!table.places.only_asks(waiter.slot));
                for number in std::iter::once(first).chain(lacks) {
                    self.change(number, |usage| {
                        usage.lacking += 1;
                        usage.wishing += wishes;
                    });
                }
                continue;
            }
            let grow = |number: &Number| {
                let usage = self.uses.get(*number as usize);
                usage.is_some_and(|usage| usage.spare == 0)
            };
            let mut growing = [None; PLACES_A_SLOT];
            for (growing, number) in growing.iter_mut().zip(numbers.clone().filter(grow)) {
                *growing = Some(number);
            }
            if !self.raise_together(growing.into_iter().flatten()) {
                more = true;
                continue;
            }
            for number in numbers {
                self.change(number, |usage| match usage.spare.checked_sub(1) {
                    Some(left) => usage.spare = left,
                    None => usage.wanted += 1,
                });
            }
        }
        more
    }

    fn change(&mut self, number: Number, change: impl FnOnce(&mut Use)) {
        self.uses.get_mut(number as usize).map(change);
    }

    /// Whether one more waiter would find a place, here or in etcd, as far as that is known.
    fn has_room(&self, table: &Table, number: Number, now: u64) -> bool {
        let index = number as usize;
        let (Some(place), Some(view), Some(usage)) = (
            table.places.get(number),
            self.views.get(index),
            self.uses.get(index),
        ) else {
            return false;
        };
        // Sessions that are in come first.
        let complete = usage.in_use <= place.held;
        usage.spare > 0 || complete && usage.wanted < view.room(place, now)
    }

    /// Adds jobs for these places, and puts them, and the jobs that they share waiters with, into one group. Returns whether
    /// there is room for that in this round.
    fn raise_together(&mut self, numbers: impl Iterator<Item = Number> + Clone) -> bool {
        let is_new = |number: &Number| self.jobs.iter().all(|job| job.number != *number);
        let new = numbers.clone().filter(is_new).count();
        let known = self
            .jobs
            .iter()
            .filter(|job| numbers.clone().any(|it| it == job.number));
        // There are at most 64 jobs.
        let groups = known.fold(0_u64, |groups, job| groups | 1 << job.group);
        let is_joined = |job: &&mut Job| groups >> job.group & 1 == 1;
        let joined = self.jobs.iter_mut().filter(is_joined).count();
        if self.jobs.len() + new > RAISED_A_ROUND || joined + new > PLACES_TOGETHER {
            return false;
        }
        let group = match groups {
            0 => self.jobs.len(),
            _ => groups.trailing_zeros() as usize,
        };
        self.jobs
            .iter_mut()
            .filter(is_joined)
            .for_each(|job| job.group = group);
        for number in numbers {
            if self.jobs.iter().all(|job| job.number != number) {
                // How many, says `plan` when all waiters have been looked at.
                let (counter, act) = (Counter::NONE, Act::Look);
                self.jobs.push(Job {
                    number,
                    counter,
                    act,
                    group,
                });
            }
        }
        true
    }

    /// Another server has taken places for its sessions, whatever others held: what is held here may be too many now.
    pub fn look_again(&mut self) {
        for view in &mut self.views {
            if view.known == Known::Seen {
                view.known = Known::Uncertain;
            }
        }
    }

    /// Whether sessions have been given places, whatever others held, since the last call.
    pub fn take_asserted(&mut self) -> bool {
        std::mem::take(&mut self.asserted)
    }

    /// Nobody knows whether what was sent was done.
    pub fn lose(&mut self) {
        for job in self.jobs.drain(..) {
            if let Some(view) = self.views.get_mut(job.number as usize) {
                view.known = Known::Uncertain;
            }
        }
    }

    /// Makes the answer that was read part of the table.
    pub fn settle(&mut self, table: &mut Table, now: u64) {
        for (job, read) in self.jobs.iter().zip(&self.read) {
            let index = job.number as usize;
            let (Some(place), Some(view), Some(usage)) = (
                table.places.rows.get_mut(index),
                self.views.get_mut(index),
                self.uses.get(index),
            ) else {
                continue;
            };
            match job.act {
                Act::Raise(held) if read.done => place.raise(held, usage.asking),
                Act::Assert(held) if read.done => {
                    // It may have been lowered by a rebirth.
                    place.held = place.held.max(held);
                    self.asserted = true;
                }
                _ => {}
            }
            view.take(read, now);
            let free = place
                .max
                .saturating_sub(view.others)
                .saturating_sub(view.own);
            if free == 0 || usage.asking == 0 {
                view.room_since = None;
            } else {
                view.room_since.get_or_insert(now);
            }
            place.yields = view.ahead.saturating_sub(free).min(place.held);
            (place.elsewhere, place.holder, place.free) = (view.others, read.holder, free);
            place.looked_at = self.arrivals;
        }
        self.jobs.clear();
    }
}

/// What is to be done for one place, apart from more places for waiters that would go in then.
fn act(place: &mut Place, view: &View, usage: &Use, now: u64, valid: bool) -> Option<Act> {
    let certain = |act| {
        Some(if view.known == Known::Uncertain {
            Act::Look
        } else {
            act
        })
    };
    if usage.in_use > place.held {
        return certain(Act::Assert(usage.in_use));
    }
    if !valid {
        return None;
    }
    if view.wish.is_some() && (usage.asking == 0 || place.served) {
        place.served = false;
        return Some(Act::Unwish);
    }
    let idle = place.held.saturating_sub(usage.in_use + usage.asking);
    if idle == 0 {
        place.spare_since = 0;
    } else if place.spare_since == 0 {
        place.spare_since = now;
    }
    let owed = place.held.saturating_sub(usage.in_use + place.granted);
    let owed = owed.min(place.owed());
    if owed > 0 || idle > 0 && now >= place.spare_since + LINGER {
        return certain(Act::Lower(place.held - idle.max(owed)));
    }
    let known = view.known == Known::Seen;
    // A lowering was lost.
    if known && view.own > place.held {
        return Some(Act::Lower(place.held));
    }
    let is_due = usage.wishing > 0 && now >= view.looked + POLL;
    if usage.wishing > 0 && view.wish.is_none() {
        Some(Act::Wish(usage.wishing))
    } else if usage.unanswered || is_due || view.known == Known::Uncertain {
        Some(Act::Look)
    } else {
        None
    }
}

/// Whether nothing of the place is left, here or in etcd.
fn is_done_with(place: &Place, view: &View, usage: &Use) -> bool {
    let unused = place.held == 0 && usage.in_use == 0 && !usage.pinned;
    let gone = view.own == 0 && view.wish.is_none() && view.known != Known::Uncertain;
    unused && gone
}

impl View {
    /// How many more places than are held this server may ask for.
    fn room(&self, place: &Place, now: u64) -> u32 {
        // Those who have waited longer on other servers go first, unless they let room lie.
        let passed_over = self.room_since.is_some_and(|since| now >= since + PATIENCE);
        let ahead = if passed_over { 0 } else { self.ahead };
        let others = self.others.saturating_add(ahead);
        place.max.saturating_sub(others).saturating_sub(place.held)
    }

    fn take(&mut self, read: &Read, now: u64) {
        *self = View {
            known: Known::Seen,
            revision: read.revision,
            own: read.own,
            own_revision: read.own_revision,
            others: read.others,
            wish: read.wish,
            ahead: read.ahead,
            room_since: self.room_since,
            looked: now,
        };
    }
}
