//! Seats: at most so many for each key at any moment, for users that the database does not know.
//!
//! All lies in arrays of the caller's, and the caller takes the lock. Nothing here allocates. What holds after each step:
//! - A key is known while at least one of its seats is held. Nobody waits for a key that is not known.
//! - Nobody who waits would fit: whoever ends a seat gives it, in the same step, to the first waiter that fits then. So a
//!   call that finds room passes nobody over, and a waiter finds its seat taken for it when it wakes.
//! - No lease that has ended by the step's moment is held.
//! - The first of those who wait for a key wakes when the first lease ends: nobody else need look then.

mod deadlines;
mod list;
#[cfg(test)]
mod tests;
mod words;

pub use deadlines::{Deadline, Deadlines};
use list::{Links, List, NONE};
pub use words::*;

/// From a key, or the name of a seat, to a number. Its room is that of the seats.
pub trait Map<K> {
    fn get(&self, key: &K) -> Option<u32>;
    /// The key is not in it. False if there is no room.
    fn insert(&mut self, key: &K, number: u32) -> bool;
    fn remove(&mut self, key: &K);
}

/// A place for one seat.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    held: Held,
    /// The number of its key.
    key: u32,
    /// Number of all seats that were taken before.
    order: u64,
    /// In the list of its key's seats, the oldest first; or of free places.
    of_key: Links,
    /// In the list of its session's seats, unless it is a lease.
    of_session: Links,
}

impl Place {
    pub const FREE: Place = Place {
        held: Held {
            id: [0; 16],
            holder: Holder {
                role: 0,
                pid: 0,
                slot: NONE,
                session: 0,
                address: None,
            },
            max: 0,
            taken: 0,
            lease: None,
        },
        key: NONE,
        order: 0,
        of_key: Links::NONE,
        of_session: Links::NONE,
    };
}

/// A key that has seats, or the place for one.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    key: Key,
    /// How many of its seats are held.
    number: u32,
    seats: List,
    waiters: List,
    /// In the list of free places.
    links: Links,
}

impl Known {
    pub const FREE: Known = Known {
        key: Key::NONE,
        number: 0,
        seats: List::EMPTY,
        waiters: List::EMPTY,
        links: Links::NONE,
    };
}

/// What a backend has to do with seats.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// Its own seats, but for leases.
    seats: List,
    /// What it waits for; None: for nothing.
    request: Option<Request>,
    /// The number of the key, while it waits.
    key: u32,
    /// In the list of those who wait for the key.
    links: Links,
}

impl Backend {
    pub const NONE: Backend = Backend {
        seats: List::EMPTY,
        request: None,
        key: NONE,
        links: Links::NONE,
    };
}

/// What a step has done that the caller must see to, without the lock.
#[derive(Debug)]
pub struct Found {
    /// Seats that have ended. With all of this many, the caller sees to them and takes the step again.
    pub ended: Vec<Ended>,
    /// Backends that must be woken.
    pub wake: Vec<u32>,
    /// Of the seats of the key, the oldest: for a caller that is refused.
    pub oldest: Vec<Held>,
}

/// So many seats end in one hold of the lock, so that nobody waits for long.
const AT_ONCE: usize = 64;
/// So many seats of others are shown to whoever is refused, if it may see them.
const SHOWN: usize = 16;

impl Found {
    /// Allocates all that a step needs where there are so many backends.
    pub fn with_room(backends: usize) -> Found {
        Found {
            ended: Vec::with_capacity(AT_ONCE),
            // Each backend, if it gets a seat; and for each seat that ends, and the one that is taken, the waiter that is
            // the first then.
            wake: Vec::with_capacity(backends + 2 * (AT_ONCE + 1)),
            oldest: Vec::with_capacity(SHOWN),
        }
    }

    /// Forgets what the caller has seen to.
    pub fn clear(&mut self) {
        self.ended.clear();
        self.wake.clear();
        self.oldest.clear();
    }

    fn is_full(&self) -> bool {
        self.ended.len() >= AT_ONCE
    }

    fn end(&mut self, ended: Option<Ended>) {
        if !self.is_full() {
            self.ended.extend(ended);
        }
    }

    fn wake(&mut self, slot: u32) {
        if slot != NONE && self.wake.len() < self.wake.capacity() {
            self.wake.push(slot);
        }
    }
}

/// So much has ended that the caller must see to it first, and then take the step again.
#[derive(Debug, PartialEq, Eq)]
pub struct Again;

/// What became of a call for a seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// It has the seat.
    Taken,
    /// It has the seat, and so many others have ended for it.
    Replaced(u32),
    /// It waits. It wakes at this tick, if no seat is given to it before.
    Waiting(Option<u64>),
    /// So many seats are held, and it may not wait.
    Refused(u32),
    /// There is no place for another seat of any key.
    Full,
}

/// What became of a call for a seat that is known by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    Done,
    /// There is no such seat, in this database.
    Gone,
    /// It belongs to this role.
    OfRole(u32),
    /// It has no lease that could be renewed for so long.
    NoLease,
}

/// A seat as a caller names it.
#[derive(Clone, Copy, Debug)]
pub struct Naming {
    pub id: Id,
    /// It is of this database.
    pub database: u32,
    /// It belongs to this role.
    pub role: u32,
}

/// The arrays: `places`, `known`, and the deadlines' have room for all seats, `backends` for all backends.
pub struct Seats<'a, Keys, Ids> {
    places: &'a mut [Place],
    known: &'a mut [Known],
    backends: &'a mut [Backend],
    deadlines: Deadlines<'a>,
    keys: Keys,
    ids: Ids,
    free_places: List,
    free_known: List,
    /// How many seats were ever taken.
    taken: u64,
    /// How many sessions ever had to do with seats.
    sessions: u64,
}

impl<'a, Keys: Map<Key>, Ids: Map<Id>> Seats<'a, Keys, Ids> {
    pub fn new(
        places: &'a mut [Place],
        known: &'a mut [Known],
        backends: &'a mut [Backend],
        deadlines: Deadlines<'a>,
        maps: (Keys, Ids),
    ) -> Self {
        let (mut free_places, mut free_known) = (List::EMPTY, List::EMPTY);
        for number in 0..places.len() as u32 {
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
            taken: 0,
            sessions: 0,
        }
    }

    /// A number that no other session gets.
    pub fn new_session(&mut self) -> u64 {
        self.sessions += 1;
        self.sessions
    }

    /// Every seat that is held, with its key.
    pub fn held(&self) -> impl Iterator<Item = (&Key, &Held)> {
        self.places.iter().filter_map(|place| {
            let known = self.known.get(place.key as usize)?;
            Some((&known.key, &place.held))
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
        if self.ids.get(&request.id).is_some() {
            return Ok(Taking::Taken);
        }
        let key = self.keys.get(&request.key);
        let number = key.map_or(0, |key| self.number(key));
        if number < request.max {
            return Ok(match self.add(now, request) {
                Some(key) => {
                    self.alarm_of_lease(key, request, found);
                    Taking::Taken
                }
                None => Taking::Full,
            });
        }
        let Some(key) = key.filter(|_| request.max > 0) else {
            return Ok(Taking::Refused(number));
        };
        if may_wait {
            return Ok(Taking::Waiting(self.wait(key, request)));
        }
        self.stop_waiting(request.holder.slot, found);
        let replaces = request.on_excess == OnExcess::ReplaceOldest;
        let too_many = number + 1 - request.max;
        if replaces && self.replace(now, key, request, too_many, found) {
            return Ok(Taking::Replaced(too_many));
        }
        self.show(key, found);
        Ok(Taking::Refused(number))
    }

    /// The caller asks for its seat no more, and gives it up if it has it.
    pub fn give_up(&mut self, now: Now, request: &Request, found: &mut Found) {
        self.stop_waiting(request.holder.slot, found);
        if let Some(number) = self.ids.get(&request.id) {
            self.end(now, number, found);
        }
    }

    /// Prolongs a lease for `ttl_us`, or for as long as before; and says whether the seat is held still. `role` may do so,
    /// and whoever has the name of the seat.
    pub fn renew(
        &mut self,
        now: Now,
        seat: Naming,
        ttl_us: Option<u64>,
        found: &mut Found,
    ) -> Result<Finding, Again> {
        self.expire(now, found)?;
        Ok(match self.find(seat) {
            Ok(number) => self.prolong(now, number, ttl_us, found),
            Err(why) => why,
        })
    }

    /// Ends a seat: that of `role`, in this database, with this name.
    pub fn release(&mut self, now: Now, seat: Naming, found: &mut Found) -> Result<Finding, Again> {
        self.expire(now, found)?;
        Ok(match self.find(seat) {
            Ok(number) => {
                self.end(now, number, found);
                Finding::Done
            }
            Err(why) => why,
        })
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

    fn place(&self, number: u32) -> Option<&Place> {
        self.places.get(number as usize)
    }

    fn known(&self, key: u32) -> Option<&Known> {
        self.known.get(key as usize)
    }

    fn backend(&self, slot: u32) -> Option<&Backend> {
        self.backends.get(slot as usize)
    }

    fn number(&self, key: u32) -> u32 {
        self.known(key).map_or(0, |known| known.number)
    }

    fn find(&self, seat: Naming) -> Result<u32, Finding> {
        let number = self.ids.get(&seat.id).ok_or(Finding::Gone)?;
        let place = self.place(number).ok_or(Finding::Gone)?;
        let known = self.known(place.key).ok_or(Finding::Gone)?;
        if known.key.database() != seat.database {
            return Err(Finding::Gone);
        }
        match place.held.holder.role {
            role if role == seat.role => Ok(number),
            role => Err(Finding::OfRole(role)),
        }
    }

    fn ended(&self, number: u32, why: Why) -> Option<Ended> {
        let place = self.place(number)?;
        Some(Ended {
            why,
            key: self.known(place.key)?.key,
            seat: place.held,
        })
    }

    /// The seats of the key, the oldest first.
    fn of_key(&self, key: u32) -> impl Iterator<Item = (u32, &Place)> {
        let first = self.known(key).map_or(NONE, |known| known.seats.first);
        let numbered = |number: u32| self.place(number).map(|place| (number, place));
        std::iter::successors(numbered(first), move |(_, place)| {
            numbered(place.of_key.behind)
        })
    }

    fn show(&self, key: u32, found: &mut Found) {
        let oldest = self.of_key(key).map(|(_, place)| place.held);
        found.oldest.extend(oldest.take(SHOWN));
    }

    /// Holds a seat for the request. Returns the number of its key; None if no place is free.
    fn add(&mut self, now: Now, request: &Request) -> Option<u32> {
        let number = self.free_places.first;
        self.place(number)?;
        let key = self.know(&request.key)?;
        if !self.ids.insert(&request.id, number) {
            self.forget_unused(key);
            return None;
        }
        self.free_places.remove(self.places, of_key, number);
        let ends = |ttl_us: u64| now.tick.saturating_add(ttl_us);
        let lease = request.ttl_us.map(|ttl_us| Lease {
            ttl_us,
            ends: ends(ttl_us),
        });
        if let Some(place) = self.places.get_mut(number as usize) {
            place.held = Held {
                id: request.id,
                holder: request.holder,
                max: request.max,
                taken: now.time,
                lease,
            };
            (place.key, place.order) = (key, self.taken);
        }
        self.taken += 1;
        if let Some(known) = self.known.get_mut(key as usize) {
            known.number += 1;
            known.seats.push(self.places, of_key, number);
        }
        match lease {
            Some(lease) => self.deadlines.add(number, lease.ends),
            None => {
                if let Some(backend) = self.backends.get_mut(request.holder.slot as usize) {
                    backend.seats.push(self.places, of_session, number);
                }
            }
        }
        Some(key)
    }

    /// The number of the key, which is known from now on; None if there is no room for it.
    fn know(&mut self, key: &Key) -> Option<u32> {
        if let Some(number) = self.keys.get(key) {
            return Some(number);
        }
        let number = self.free_known.first;
        self.known(number)?;
        if !self.keys.insert(key, number) {
            return None;
        }
        self.free_known.remove(self.known, of_known, number);
        let known = self.known.get_mut(number as usize)?;
        *known = Known {
            key: *key,
            ..Known::FREE
        };
        Some(number)
    }

    /// A key without seats is known no more.
    fn forget_unused(&mut self, key: u32) {
        let unused = self.known(key).filter(|known| known.number == 0);
        if let Some(known) = unused.copied() {
            self.keys.remove(&known.key);
            self.free_known.push(self.known, of_known, key);
        }
    }

    /// Ends a seat, and gives it to whoever waits for it.
    fn end(&mut self, now: Now, number: u32, found: &mut Found) {
        if let Some(key) = self.remove(number) {
            self.grant(now, key, found);
            self.forget_unused(key);
        }
    }

    /// Ends a seat. Returns the number of its key.
    fn remove(&mut self, number: u32) -> Option<u32> {
        let place = *self.place(number)?;
        self.ids.remove(&place.held.id);
        match place.held.lease {
            Some(_) => self.deadlines.remove(number),
            None => {
                let slot = place.held.holder.slot as usize;
                let backend = self.backends.get_mut(slot)?;
                backend.seats.remove(self.places, of_session, number);
            }
        }
        let known = self.known.get_mut(place.key as usize)?;
        known.number -= 1;
        known.seats.remove(self.places, of_key, number);
        self.places.get_mut(number as usize)?.key = NONE;
        self.free_places.push(self.places, of_key, number);
        Some(place.key)
    }

    fn prolong(
        &mut self,
        now: Now,
        number: u32,
        ttl_us: Option<u64>,
        found: &mut Found,
    ) -> Finding {
        let Some(place) = self.places.get_mut(number as usize) else {
            return Finding::Gone;
        };
        let Some(lease) = &mut place.held.lease else {
            return ttl_us.map_or(Finding::Done, |_| Finding::NoLease);
        };
        let before = lease.ends;
        lease.ttl_us = ttl_us.unwrap_or(lease.ttl_us);
        lease.ends = now.tick.saturating_add(lease.ttl_us);
        let (ends, key) = (lease.ends, place.key);
        self.deadlines.change(number, ends);
        if ends < before {
            self.alarm(key, found);
        }
        Finding::Done
    }

    /// Gives seats of the key to those who wait and fit now, in the order of their arrival.
    fn grant(&mut self, now: Now, key: u32, found: &mut Found) {
        while let Some(request) = self.first_that_fits(key) {
            if self.add(now, &request).is_none() {
                return;
            }
            self.stop_waiting(request.holder.slot, found);
            found.wake(request.holder.slot);
            self.alarm_of_lease(key, &request, found);
        }
    }

    fn first_that_fits(&self, key: u32) -> Option<Request> {
        let known = self.known(key)?;
        let first = self.backend(known.waiters.first);
        let next = |backend: &&Backend| self.backend(backend.links.behind);
        let mut waiting = std::iter::successors(first, next).filter_map(|backend| backend.request);
        waiting.find(|request| known.number < request.max)
    }

    /// Ends so many of the caller's role's own seats of the key, the oldest first, for one of the caller. False, and nothing
    /// has happened, if it has not so many.
    fn replace(
        &mut self,
        now: Now,
        key: u32,
        request: &Request,
        too_many: u32,
        found: &mut Found,
    ) -> bool {
        let role = request.holder.role;
        let own = |(_, place): &(u32, &Place)| place.held.holder.role == role;
        if self.of_key(key).filter(own).take(too_many as usize).count() < too_many as usize {
            return false;
        }
        for _ in 0..too_many {
            let first = self.of_key(key).find(own).map(|(number, _)| number);
            if let Some(number) = first {
                found.end(self.ended(number, Why::Replaced));
                self.remove(number);
            }
        }
        self.add(now, request);
        self.alarm_of_lease(key, request, found);
        // After several have ended for one there can be room for others.
        self.grant(now, key, found);
        true
    }

    /// Queues the caller, unless it is queued. Returns when it must look again, even if nobody wakes it.
    fn wait(&mut self, key: u32, request: &Request) -> Option<u64> {
        let slot = request.holder.slot;
        let backend = self.backends.get_mut(slot as usize)?;
        let waits = backend.request.is_some();
        (backend.request, backend.key) = (Some(*request), key);
        let known = self.known.get_mut(key as usize)?;
        if !waits {
            known.waiters.push(self.backends, of_backend, slot);
        }
        let first = self
            .deadlines
            .first()
            .filter(|_| known.waiters.first == slot);
        first.map(|(tick, _)| tick)
    }

    /// If it waited and was the first, the next one looks when leases end from now on.
    fn stop_waiting(&mut self, slot: u32, found: &mut Found) {
        let Some(backend) = self.backends.get_mut(slot as usize) else {
            return;
        };
        let key = backend.key;
        if backend.request.take().is_none() {
            return;
        }
        if let Some(known) = self.known.get_mut(key as usize) {
            let was_first = known.waiters.first == slot;
            known.waiters.remove(self.backends, of_backend, slot);
            if was_first {
                found.wake(known.waiters.first);
            }
        }
    }

    /// The request got a seat: if that is a lease, it may end before the first waiter looks again.
    fn alarm_of_lease(&self, key: u32, request: &Request, found: &mut Found) {
        if request.ttl_us.is_some() {
            self.alarm(key, found);
        }
    }

    /// The first of those who wait for the key looks when it must wake from now on.
    fn alarm(&self, key: u32, found: &mut Found) {
        found.wake(self.known(key).map_or(NONE, |known| known.waiters.first));
    }
}

fn of_key(place: &mut Place) -> &mut Links {
    &mut place.of_key
}

fn of_session(place: &mut Place) -> &mut Links {
    &mut place.of_session
}

fn of_known(known: &mut Known) -> &mut Links {
    &mut known.links
}

fn of_backend(backend: &mut Backend) -> &mut Links {
    &mut backend.links
}
