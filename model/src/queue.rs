//! The queue: who waits, in order of arrival, and for what.

use crate::limit::Condition;
use crate::session::Session;
use crate::sync::{Ordering, fence};
use crate::table::Table;

/// A login in the queue.
pub struct Waiter<'a> {
    pub slot: usize,
    pub session: Session,
    pub conditions: &'a [Condition],
}

impl Table<'_> {
    /// The waiters in order of arrival.
    pub fn waiters(&self) -> impl Iterator<Item = Waiter<'_>> {
        let waiting = self.shared.waiting.load(Ordering::Relaxed) as usize;
        let queue = self.shared.queue.iter().take(waiting);
        let mut rest = &*self.conditions;
        queue.filter_map(move |entry| {
            let slot = entry.load(Ordering::Relaxed) as usize;
            let place = self.slots.get(slot)?;
            let (conditions, others) = rest.split_at_checked(place.conditions.into())?;
            rest = others;
            Some(Waiter {
                slot,
                session: self.session(slot)?,
                conditions,
            })
        })
    }

    /// Those who arrived before the owner of `slot`: all, if it does not wait.
    pub fn waiters_before(&self, slot: usize) -> impl Iterator<Item = Waiter<'_>> {
        self.waiters().take_while(move |waiter| waiter.slot != slot)
    }

    /// The owner of `slot`, if it waits.
    pub fn waiter(&self, slot: usize) -> Option<Waiter<'_>> {
        self.waiters().find(|waiter| waiter.slot == slot)
    }

    /// Puts the owner of `slot` at the end of the queue, or, if it is there, renews what it waits for. False, and
    /// nothing changed, if there is no room for that many `conditions`. The caller counts after that.
    pub fn enqueue(
        &mut self,
        slot: usize,
        session: Session,
        conditions: impl Iterator<Item = Condition> + Clone,
    ) -> bool {
        let Ok(number) = u16::try_from(conditions.clone().count()) else {
            return false;
        };
        let queued = self.waiters().any(|waiter| waiter.slot == slot);
        let kept = if queued {
            self.slots.get(slot).map_or(0, |place| place.conditions)
        } else {
            0
        };
        if !self.splice(slot, kept, conditions) {
            return false;
        }
        self.put(slot, session);
        if let Some(place) = self.slots.get_mut(slot) {
            place.conditions = number;
        }
        let waiting = self.shared.waiting.load(Ordering::Relaxed);
        if !queued && let Some(end) = self.shared.queue.get(waiting as usize) {
            end.store(slot as u32, Ordering::Relaxed);
            self.shared.waiting.store(waiting + 1, Ordering::Relaxed);
            // What is counted from here on is what a leaver sees that does not see this waiter (see `atomics`).
            fence(Ordering::SeqCst);
        }
        true
    }

    /// Takes the owner of `slot` out of the queue; true if it was in.
    pub fn dequeue(&mut self, slot: usize) -> bool {
        let waiting = self.shared.waiting.load(Ordering::Relaxed);
        let Some(position) = self.waiters().position(|waiter| waiter.slot == slot) else {
            return false;
        };
        let kept = self.slots.get(slot).map_or(0, |place| place.conditions);
        self.splice(slot, kept, std::iter::empty());
        let queue = self
            .shared
            .queue
            .iter()
            .take(waiting as usize)
            .skip(position);
        for (entry, next) in queue.clone().zip(queue.skip(1)) {
            entry.store(next.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.shared.waiting.store(waiting - 1, Ordering::Relaxed);
        // Whoever is first now counts later: a leaver that still saw this waiter is seen then (see `atomics`).
        fence(Ordering::SeqCst);
        true
    }

    /// Replaces the `kept` conditions of the owner of `slot`, which come after those of the waiters before
    /// it. False, and nothing changed, if there is no room.
    fn splice(
        &mut self,
        slot: usize,
        kept: u16,
        conditions: impl Iterator<Item = Condition> + Clone,
    ) -> bool {
        let all = |waiter: Waiter| waiter.conditions.len();
        let start: usize = self.waiters_before(slot).map(all).sum();
        let end: usize = self.waiters().map(all).sum();
        let (old, new) = (
            start + usize::from(kept),
            start + conditions.clone().count(),
        );
        if end - old + new > self.conditions.len() {
            return false;
        }
        self.conditions.copy_within(old..end, new);
        for (place, condition) in self.conditions.iter_mut().skip(start).zip(conditions) {
            *place = condition;
        }
        true
    }
}
