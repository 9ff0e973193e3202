//! Seats: at most so many for each key at any moment, for users that the database does not know.
//!
//! All lies in arrays of the caller's, and the caller takes the lock. Nothing here allocates. What holds after each step:
//! - A key is known while at least one of its seats is held. Nobody waits for a key that is not known.
//! - Nobody who waits would fit: whoever ends a seat gives it, in the same step, to the first waiter that fits then. So a
//!   call that finds room passes nobody over, and a waiter finds its seat taken for it when it wakes.
//! - A seat that a waiter is given belongs to its session until the waiter has learnt of it. Only then a lease begins.
//! - A lease that has ended is in nobody's way: whoever asks for a seat, and who waits for it, ends those that are due. The
//!   first of those who wait for a key wakes when a lease of the key ends: nobody else need look then.

mod deadlines;
mod holding;
mod list;
mod outcome;
mod rows;
#[cfg(test)]
mod tests;
mod words;

pub use deadlines::{Deadline, Deadlines};
use holding::{of_key, of_known};
use list::{List, NONE};
use outcome::AT_ONCE;
pub use outcome::{Again, Answer, Found, Named, Taking};
pub use rows::{Backend, KeyInUse, Place};
use std::ops::Range;
pub use words::*;

/// From a key, or the name of a seat, to a number. Its room is that of the seats.
pub trait Map<K> {
    fn get(&self, key: &K) -> Option<u32>;
    /// The key is not in it. False if there is no room.
    fn insert(&mut self, key: &K, number: u32) -> bool;
    fn remove(&mut self, key: &K);
}

/// The arrays: `places`, `known`, and the deadlines' have room for all seats, `backends` for all backends.
pub struct Seats<'a, Keys, Ids> {
    places: &'a mut [Place],
    known: &'a mut [KeyInUse],
    backends: &'a mut [Backend],
    deadlines: Deadlines<'a>,
    keys: Keys,
    ids: Ids,
    free_places: List,
    free_known: List,
    /// Every place behind so many was never taken.
    used: u32,
    /// How many seats were ever taken.
    taken: u64,
    /// How many sessions ever had to do with seats.
    sessions: u64,
}

impl<'a, Keys: Map<Key>, Ids: Map<Id>> Seats<'a, Keys, Ids> {
    pub fn new(
        places: &'a mut [Place],
        known: &'a mut [KeyInUse],
        backends: &'a mut [Backend],
        deadlines: Deadlines<'a>,
        maps: (Keys, Ids),
    ) -> Self {
        let (mut free_places, mut free_known) = (List::EMPTY, List::EMPTY);
        // The last is taken first, so that those at the start of the arrays are taken again and again.
        for number in (0..places.len() as u32).rev() {
            free_places.push(places, of_key, number);
            free_known.push(known, of_known, number);
        }
        Seats {
            places,
            known,
            backends,
            deadlines,
            keys: maps.0,
            ids: maps.1,
            free_places,
            free_known,
            used: 0,
            taken: 0,
            sessions: 0,
        }
    }

    /// A number that no other session gets.
    pub fn new_session(&mut self) -> u64 {
        self.sessions += 1;
        self.sessions
    }

    /// Every place behind so many was never taken.
    pub fn used(&self) -> usize {
        self.used as usize
    }

    /// Of the places with these numbers, the seats that are held now, with their keys.
    pub fn held(&self, numbers: Range<usize>, tick: u64) -> impl Iterator<Item = (&Key, &Held)> {
        let end = numbers.end.min(self.used as usize);
        let places = self.places.iter().take(end).skip(numbers.start);
        places.filter_map(move |place| {
            let known = self.known.get(place.key as usize)?;
            let held = place.held.is_held_at(tick);
            held.then_some((&known.key, &place.held))
        })
    }

    /// Takes a seat for the caller; or, if `may_wait`, queues it. A caller that waits takes the same step again when it is
    /// woken: it may have its seat by then.
    pub fn take(
        &mut self,
        now: Now,
        request: &Request,
        may_wait: bool,
        found: &mut Found,
    ) -> Result<Taking, Again> {
        self.expire(now, found)?;
        if let Some(number) = self.ids.get(&request.id) {
            self.settle(request.holder.slot, found);
            self.begin_lease(now, number, request, found);
            return Ok(Taking::Taken);
        }
        let key = self.keys.get(&request.key);
        let number = key.map_or(0, |key| self.held_of(key));
        if number < request.max {
            self.settle(request.holder.slot, found);
            return Ok(match self.add(now, request, request.ttl_us, found) {
                Some(()) => Taking::Taken,
                None => Taking::Full,
            });
        }
        let Some(key) = key else {
            return Ok(Taking::Refused(number));
        };
        if may_wait && request.max > 0 {
            return Ok(Taking::Waiting(self.wait(key, request)));
        }
        self.settle(request.holder.slot, found);
        let too_many = number - request.max + 1;
        let replaces = request.replaces && request.max > 0;
        if replaces && self.replace(now, key, request, too_many, found) {
            return Ok(Taking::Replaced(too_many));
        }
        self.show(key, found);
        Ok(Taking::Refused(number))
    }

    /// The caller asks for its seat no more, and gives it up if it has it.
    pub fn give_up(&mut self, now: Now, request: &Request, found: &mut Found) {
        self.settle(request.holder.slot, found);
        if let Some(number) = self.ids.get(&request.id) {
            self.end(now, number, found);
        }
    }

    /// Prolongs a lease for `ttl_us`, or for as long as before; and says whether the seat is held still.
    pub fn renew(
        &mut self,
        now: Now,
        seat: Named,
        ttl_us: Option<u64>,
        found: &mut Found,
    ) -> Answer {
        match self.find(now, seat) {
            Ok(number) => self.prolong(now, number, ttl_us, found),
            Err(why) => why,
        }
    }

    /// Ends a seat, and says whether it was held still.
    pub fn release(&mut self, now: Now, seat: Named, found: &mut Found) -> Answer {
        match self.find(now, seat) {
            Ok(number) => {
                self.end(now, number, found);
                Answer::Done
            }
            Err(why) => why,
        }
    }

    /// Ends seats of the key that were taken before [`Seats::taken`] was `taken`. Returns how many: when it returns 0, none is
    /// left.
    pub fn evict(
        &mut self,
        now: Now,
        key: &Key,
        taken: u64,
        found: &mut Found,
    ) -> Result<u32, Again> {
        self.expire(now, found)?;
        if found.is_full() {
            return Err(Again);
        }
        let Some(key) = self.keys.get(key) else {
            return Ok(0);
        };
        let mut evicted = 0;
        while !found.is_full() {
            let is_old = |(_, place): &(u32, &Place)| place.order < taken;
            let old = self.of_key(key).find(is_old).map(|(number, _)| number);
            let Some(number) = old else {
                break;
            };
            found.end(self.ended(number, Why::Evicted));
            self.end(now, number, found);
            evicted += 1;
        }
        Ok(evicted)
    }

    /// How many seats were ever taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// The session of the backend ends: what it waits for, and what it holds, but for leases. Done when it returns true;
    /// else it is to be called again.
    pub fn leave(&mut self, now: Now, slot: u32, found: &mut Found) -> bool {
        if let Some(request) = self.backend(slot).and_then(|backend| backend.request) {
            self.give_up(now, &request, found);
        }
        for _ in 0..AT_ONCE {
            let first = self
                .backend(slot)
                .map_or(NONE, |backend| backend.seats.first);
            if first == NONE {
                return true;
            }
            self.end(now, first, found);
        }
        false
    }

    /// Ends the leases whose time is over.
    pub fn expire(&mut self, now: Now, found: &mut Found) -> Result<(), Again> {
        while let Some((at, number)) = self.deadlines.first() {
            if at > now.tick {
                break;
            }
            if found.is_full() {
                return Err(Again);
            }
            found.end(self.ended(number, Why::Expired));
            self.end(now, number, found);
        }
        Ok(())
    }
}
