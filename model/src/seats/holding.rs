//! How seats are held, given and ended, within a step.

use super::list::{Links, NONE};
use super::outcome::SHOWN;
use super::{
    Answer, Backend, Ended, Found, Held, Id, Key, KeyInUse, Lease, Map, Named, Now, Place, Request,
    Seats, Why,
};

/// So many seats of a key are looked through.
const FEW: u32 = if cfg!(test) { 2 } else { 64 };

impl<Keys: Map<Key>, Ids: Map<Id>> Seats<'_, Keys, Ids> {
    pub(super) fn place(&self, number: u32) -> Option<&Place> {
        self.places.get(number as usize)
    }

    pub(super) fn known(&self, key: u32) -> Option<&KeyInUse> {
        self.known.get(key as usize)
    }

    pub(super) fn backend(&self, slot: u32) -> Option<&Backend> {
        self.backends.get(slot as usize)
    }

    pub(super) fn held_of(&self, key: u32) -> u32 {
        self.known(key).map_or(0, |known| known.held)
    }

    pub(super) fn find(&self, now: Now, seat: Named) -> Result<u32, Answer> {
        let number = self.ids.get(&seat.id).ok_or(Answer::Gone)?;
        let place = self.place(number).ok_or(Answer::Gone)?;
        let known = self.known(place.key).ok_or(Answer::Gone)?;
        if known.key.database() != seat.database || !place.held.is_held_at(now.tick) {
            return Err(Answer::Gone);
        }
        match place.held.holder.role {
            role if role == seat.role => Ok(number),
            role => Err(Answer::OfRole(role)),
        }
    }

    pub(super) fn ended(&self, number: u32, why: Why) -> Option<Ended> {
        let place = self.place(number)?;
        Some(Ended {
            why,
            key: self.known(place.key)?.key,
            seat: place.held,
        })
    }

    /// The seats of the key, the oldest first.
    pub(super) fn of_key(&self, key: u32) -> impl Iterator<Item = (u32, &Place)> {
        let first = self.known(key).map_or(NONE, |known| known.seats.first);
        let numbered = |number: u32| self.place(number).map(|place| (number, place));
        std::iter::successors(numbered(first), move |(_, place)| {
            numbered(place.of_key.behind)
        })
    }

    pub(super) fn show(&self, key: u32, found: &mut Found) {
        let oldest = self.of_key(key).map(|(_, place)| place.held);
        found.oldest.extend(oldest.take(SHOWN));
    }

    /// Holds a seat for the request, with a lease or without. None if no place is free.
    pub(super) fn add(
        &mut self,
        now: Now,
        request: &Request,
        ttl_us: Option<u64>,
        found: &mut Found,
    ) -> Option<()> {
        let number = self.free_places.last;
        self.place(number)?;
        let key = self.know(&request.key)?;
        if !self.ids.insert(&request.id, number) {
            self.forget_unused(key);
            return None;
        }
        self.free_places.remove(self.places, of_key, number);
        let lease = ttl_us.map(|ttl_us| Lease::from(now, ttl_us));
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
        self.used = self.used.max(number + 1);
        if let Some(known) = self.known.get_mut(key as usize) {
            known.held += 1;
            known.seats.push(self.places, of_key, number);
        }
        match lease {
            Some(lease) => {
                self.deadlines.add(number, lease.ends);
                self.alarm(key, found);
            }
            None => {
                if let Some(backend) = self.backends.get_mut(request.holder.slot as usize) {
                    backend.seats.push(self.places, of_session, number);
                }
            }
        }
        Some(())
    }

    /// The number of the key, which is known from now on; None if there is no room for it.
    pub(super) fn know(&mut self, key: &Key) -> Option<u32> {
        if let Some(number) = self.keys.get(key) {
            return Some(number);
        }
        let number = self.free_known.last;
        self.known(number)?;
        if !self.keys.insert(key, number) {
            return None;
        }
        self.free_known.remove(self.known, of_known, number);
        let known = self.known.get_mut(number as usize)?;
        *known = KeyInUse {
            key: *key,
            ..KeyInUse::FREE
        };
        Some(number)
    }

    /// A key without seats is known no more.
    pub(super) fn forget_unused(&mut self, key: u32) {
        let unused = self.known(key).filter(|known| known.held == 0);
        if let Some(known) = unused.copied() {
            self.keys.remove(&known.key);
            self.free_known.push(self.known, of_known, key);
        }
    }

    /// Ends a seat, and gives it to whoever waits for it.
    pub(super) fn end(&mut self, now: Now, number: u32, found: &mut Found) {
        if let Some(key) = self.remove(number) {
            self.grant(now, key, found);
            self.forget_unused(key);
        }
    }

    /// Ends a seat. Returns the number of its key.
    pub(super) fn remove(&mut self, number: u32) -> Option<u32> {
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
        known.held -= 1;
        known.seats.remove(self.places, of_key, number);
        self.places.get_mut(number as usize)?.key = NONE;
        self.free_places.push(self.places, of_key, number);
        Some(place.key)
    }

    pub(super) fn prolong(
        &mut self,
        now: Now,
        number: u32,
        ttl_us: Option<u64>,
        found: &mut Found,
    ) -> Answer {
        let Some(place) = self.places.get_mut(number as usize) else {
            return Answer::Gone;
        };
        let Some(lease) = &mut place.held.lease else {
            return ttl_us.map_or(Answer::Done, |_| Answer::NoLease);
        };
        let before = lease.ends;
        *lease = Lease::from(now, ttl_us.unwrap_or(lease.ttl_us));
        let (ends, key) = (lease.ends, place.key);
        self.deadlines.change(number, ends);
        if ends < before {
            self.alarm(key, found);
        }
        Answer::Done
    }

    /// Gives seats of the key to those who wait and fit now, in the order of their arrival.
    pub(super) fn grant(&mut self, now: Now, key: u32, found: &mut Found) {
        while let Some(request) = self.first_that_fits(key) {
            if self.add(now, &request, None, found).is_none() {
                return;
            }
            self.stop_waiting(request.holder.slot, found);
            found.wake(request.holder.slot);
        }
    }

    /// The caller has learnt of a seat that it was given while it waited.
    pub(super) fn begin_lease(
        &mut self,
        now: Now,
        number: u32,
        request: &Request,
        found: &mut Found,
    ) {
        let Some(lease) = request.ttl_us.map(|ttl_us| Lease::from(now, ttl_us)) else {
            return;
        };
        if let Some(backend) = self.backends.get_mut(request.holder.slot as usize) {
            backend.seats.remove(self.places, of_session, number);
        }
        if let Some(place) = self.places.get_mut(number as usize) {
            place.held.lease = Some(lease);
            let key = place.key;
            self.deadlines.add(number, lease.ends);
            self.alarm(key, found);
        }
    }

    pub(super) fn first_that_fits(&self, key: u32) -> Option<Request> {
        let known = self.known(key)?;
        let first = self.backend(known.waiters.first);
        let next = |backend: &&Backend| self.backend(backend.links.behind);
        let mut waiting = std::iter::successors(first, next).filter_map(|backend| backend.request);
        waiting.find(|request| known.held < request.max)
    }

    /// Ends so many of the caller's role's own seats of the key, the oldest first, for one of the caller. False, and nothing
    /// has happened, if it has not so many.
    pub(super) fn replace(
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
        let mut number = self.known(key).map_or(NONE, |known| known.seats.first);
        let mut left = too_many;
        while let Some(place) = self.place(number).copied().filter(|_| left > 0) {
            if place.held.holder.role == role {
                // Of very many, not all are shown.
                found.end(self.ended(number, Why::Replaced));
                self.remove(number);
                left -= 1;
            }
            number = place.of_key.behind;
        }
        self.add(now, request, request.ttl_us, found);
        // After several have ended for one there can be room for others.
        self.grant(now, key, found);
        true
    }

    /// Queues the caller, unless it is queued. Returns when it must look again, even if nobody wakes it.
    pub(super) fn wait(&mut self, key: u32, request: &Request) -> Option<u64> {
        let slot = request.holder.slot;
        let backend = self.backends.get_mut(slot as usize)?;
        let known = self.known.get_mut(key as usize)?;
        if backend.key == NONE {
            (backend.request, backend.key) = (Some(*request), key);
            known.waiters.push(self.backends, of_backend, slot);
        }
        let is_first = known.waiters.first == slot;
        is_first.then(|| self.first_end(key)).flatten()
    }

    /// The tick at which the first lease of the key ends; if the key has many seats, of all keys.
    fn first_end(&self, key: u32) -> Option<u64> {
        if self.held_of(key) > FEW {
            return self.deadlines.first().map(|(tick, _)| tick);
        }
        let leases = self.of_key(key).filter_map(|(_, place)| place.held.lease);
        leases.map(|lease| lease.ends).min()
    }

    /// If it waited and was the first, the next one looks when leases end from now on.
    pub(super) fn stop_waiting(&mut self, slot: u32, found: &mut Found) {
        let Some(backend) = self.backends.get_mut(slot as usize) else {
            return;
        };
        let key = std::mem::replace(&mut backend.key, NONE);
        if let Some(known) = self.known.get_mut(key as usize) {
            let was_first = known.waiters.first == slot;
            known.waiters.remove(self.backends, of_backend, slot);
            if was_first {
                found.wake(known.waiters.first);
            }
        }
    }

    /// The backend learns what becomes of its call.
    pub(super) fn settle(&mut self, slot: u32, found: &mut Found) {
        self.stop_waiting(slot, found);
        if let Some(backend) = self.backends.get_mut(slot as usize) {
            backend.request = None;
        }
    }

    /// A lease of the key may end before the first of those who wait looks again: that one looks now.
    pub(super) fn alarm(&self, key: u32, found: &mut Found) {
        found.wake(self.known(key).map_or(NONE, |known| known.waiters.first));
    }
}

pub(super) fn of_key(place: &mut Place) -> &mut Links {
    &mut place.of_key
}

pub(super) fn of_session(place: &mut Place) -> &mut Links {
    &mut place.of_session
}

pub(super) fn of_known(known: &mut KeyInUse) -> &mut Links {
    &mut known.links
}

pub(super) fn of_backend(backend: &mut Backend) -> &mut Links {
    &mut backend.links
}
