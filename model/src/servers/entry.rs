//! Who has which places: a login enters, a session is given some, and what is in use is counted.

use super::counter::Counter;
use super::place::{
    AcrossRules, Contact, NO_PLACE, Number, OfSlot, OnUnreachable, PLACES_A_SLOT, Wanted,
};
use crate::limit::{Condition, Limit};
use crate::session::Claim;
use crate::table::Table;
use std::time::Duration;

impl Table<'_> {
    /// Enters the login at `slot` into the places of its limits, before each decision on it: sets `place` of those that are
    /// across servers. Returns whether there is room for all these places.
    pub fn enter(&mut self, slot: usize, wanted: &[Wanted], limits: &mut [Limit]) -> bool {
        // A process that had the slot before may still seem to have places.
        self.vacate(slot);
        let mut numbers = [0; PLACES_A_SLOT];
        let (mut length, mut have_room) = (0, true);
        for one in wanted {
            let found = self.places.find(one);
            let is_known = found.is_some_and(|number| numbers.contains(&(number + 1)));
            let place = match numbers.get_mut(length) {
                _ if is_known => found,
                Some(free) => {
                    *free = found.map_or(0, |number| number + 1);
                    length += usize::from(found.is_some());
                    found
                }
                None => None,
            };
            if let Some(limit) = limits.get_mut(one.limit) {
                limit.place = Some(place.unwrap_or(NO_PLACE));
            }
            have_room &= place.is_some();
            // Several limits may have one counter.
            let alike = wanted
                .iter()
                .filter(|other| other.hash == one.hash && other.counter == one.counter);
            let max = alike.map(|other| other.max).min().unwrap_or(one.max);
            if let Some(place) = place.and_then(|number| self.places.get_mut(number))
                && place.max != max
            {
                place.max = max;
                place.free = max
                    .saturating_sub(place.elsewhere)
                    .saturating_sub(place.held);
            }
        }
        self.places.set(slot, numbers);
        have_room
    }

    /// Nobody waits for room under a limit that lets in nobody here as long as etcd cannot be reached, or asked.
    pub fn wait_for_nothing(&self, limits: &mut [Limit], rules: &AcrossRules) {
        let contact = self.places.contact((rules.boottime)());
        for limit in limits {
            let Some(number) = limit.place else {
                continue;
            };
            let is_asked = contact.may_answer() && self.places.get(number).is_some();
            if !is_asked && self.bound(&limit.condition(), contact, rules.on_unreachable) == 0 {
                limit.max_wait = Duration::ZERO;
            }
        }
    }

    /// Whether the session at `slot` has these places, and no others.
    pub fn has_places(&self, slot: usize, wanted: &[Wanted]) -> bool {
        let name = |number: Number| self.places.names.get(number as usize);
        let mut has = self.places.of(slot).filter_map(name);
        let is_wanted = |name: &Counter| wanted.iter().any(|one| one.counter == *name);
        let is_there = |one: &Wanted| {
            let mut names = self.places.of(slot).filter_map(name);
            names.any(|name| one.counter == *name)
        };
        has.all(is_wanted) && wanted.iter().all(is_there)
    }

    /// Gives these sessions the places of the limits that count them now, and no others: they may have come before there was
    /// the limit, or be exempt.
    pub fn adopt_all(&mut self, sessions: &[(usize, Claim, Vec<Wanted>)]) {
        for (slot, claim, wanted) in sessions {
            self.adopt(*slot, *claim, wanted);
        }
        self.places
            .rows
            .iter_mut()
            .for_each(|place| place.extra = 0);
    }

    /// Nothing happens if the slot holds another claim by now, or waits for its victims.
    fn adopt(&mut self, slot: usize, claim: Claim, wanted: &[Wanted]) {
        if self.shared.claim(slot) != Some(claim) || self.is_pending(slot) {
            return;
        }
        let mut numbers = [0; PLACES_A_SLOT];
        let found = wanted.iter().filter_map(|one| {
            let number = self.places.find(one)?;
            let place = self.places.get_mut(number)?;
            if place.max == 0 {
                place.max = one.max;
            }
            Some(number + 1)
        });
        let mut length = 0;
        for number in found {
            // Several limits may have one counter.
            if numbers.contains(&number) {
                continue;
            }
            if let Some(free) = numbers.get_mut(length) {
                *free = number;
                length += 1;
            }
        }
        self.places.set(slot, numbers);
    }

    /// The owner of `slot` has none, and asks for none.
    pub fn leave_places(&mut self, slot: usize) {
        if let Some(of_slot) = self.places.of_slots.get_mut(slot) {
            *of_slot = OfSlot::default();
        }
    }

    /// Whether the session at `slot` has this place, and is counted for it: a pending successor is not if a victim of it
    /// has the place, too.
    pub(crate) fn counts_for(&self, slot: usize, number: Number) -> bool {
        if !self.places.of(slot).any(|it| it == number) {
            return false;
        }
        let has = |victim: usize| {
            self.shared.claim(victim).is_some() && self.places.of(victim).any(|it| it == number)
        };
        let mut victims = self.shared.successors();
        !self.is_pending(slot) || !victims.any(|(victim, of)| of == slot && has(victim))
    }

    /// The slots of the waiters that ask for places.
    pub fn asking(&self) -> impl Iterator<Item = usize> {
        let slots = self.waiters().map(|waiter| waiter.slot);
        slots.filter(|slot| self.places.asks(*slot))
    }

    /// How many sessions have this place.
    fn taken(&self, number: Number) -> u32 {
        let slots = self.shared.claims().map(|(slot, _)| slot);
        slots.filter(|slot| self.counts_for(*slot, number)).count() as u32
    }

    /// Notes how many sessions under this limit have no place, if it counts so many.
    pub(crate) fn note_counted(&mut self, number: Number, counted: u32) {
        let extra = counted.saturating_sub(self.taken(number));
        if let Some(place) = self.places.get_mut(number) {
            place.extra = extra;
        }
    }

    /// How many sessions there may be under the condition's limit here, given the contact to etcd.
    pub fn bound(&self, condition: &Condition, contact: Contact, alone: OnUnreachable) -> u32 {
        let Some(number) = condition.place else {
            return condition.max;
        };
        match (self.places.get(number), contact, alone) {
            (Some(place), Contact::Good, _)
            | (Some(place), Contact::Silent, OnUnreachable::Refuse) => place.usable(condition.max),
            (Some(_), Contact::Joining, _) | (_, _, OnUnreachable::Refuse) => 0,
            (_, _, OnUnreachable::Local) => condition.max,
        }
    }
}
