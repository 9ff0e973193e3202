//! The part of the slot table that needs no lock, and the memory orderings that keep a waiter from being forgotten.
//!
//! A session gives up its claim after its process has left the process array, when no lock can be taken. So the claims
//! are atomic. So is the queue, because the process that leaves must find the first waiter, to wake it. That waiter
//! then finds out, under the lock, who may go in now, and wakes them (see [`crate::decide::attempt`]).
//!
//! No waiter may sleep on while a claim that it still counted has become free. Two rules see to that:
//! - A process that frees a claim stores that, passes a fence, and only then reads who is first in the queue.
//! - A process that enters or leaves the queue stores that and passes a fence. Only then are the claims counted: by the
//!   login that entered, or by the waiter that is first now and is woken.
//!
//! The loads and stores themselves are relaxed: the lock guards everything else in the table. The fences are
//! sequentially consistent: if two processes do these steps at once, at least one of them sees what the
//! other has stored. `tests/interleavings.rs` tries every order of their steps.

use crate::session::Claim;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// References to the part of the table that needs no lock. Only the holder of the exclusive lock changes it, except
/// that [`Shared::release`] takes no lock.
#[derive(Clone, Copy)]
pub struct Shared<'a> {
    pub(crate) claims: &'a [AtomicU64],
    pub(crate) queue: &'a [AtomicU32],
    /// How many entries of `queue` are in use, from the front.
    pub(crate) waiting: &'a AtomicU32,
    /// For each slot 0, or one more than the slot of its successor (see [`crate::table`]).
    pub(crate) successors: &'a [AtomicU32],
    /// For each slot the tick at which its session was last active. Its own process writes it, without the lock.
    pub(crate) last_active: &'a [AtomicU64],
}

impl<'a> Shared<'a> {
    /// All but `waiting` have one element for each slot.
    pub fn new(
        claims: &'a [AtomicU64],
        queue: &'a [AtomicU32],
        waiting: &'a AtomicU32,
        successors: &'a [AtomicU32],
        last_active: &'a [AtomicU64],
    ) -> Self {
        Shared {
            claims,
            queue,
            waiting,
            successors,
            last_active,
        }
    }

    /// Frees the slot if it still holds this claim, and says whether it did: a next owner may have taken the slot over,
    /// and keeps it. In both cases the caller then wakes the first waiter, because a next owner wakes nobody for it.
    pub fn release(self, slot: usize, claim: Claim) -> bool {
        let released = self.claims.get(slot).is_some_and(|word| {
            word.compare_exchange(claim.word(), 0, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        });
        fence(Ordering::SeqCst);
        released
    }

    /// The slot of the waiter that entered the queue first.
    pub fn first_waiter(self) -> Option<usize> {
        let waiting = self.waiting.load(Ordering::Relaxed);
        let first = self.queue.first().filter(|_| waiting > 0)?;
        Some(first.load(Ordering::Relaxed) as usize)
    }

    /// The slots of the waiters, the last one first. Without the lock, while others leave the queue, a slot may come twice
    /// or be left out.
    pub fn waiters(self) -> impl Iterator<Item = usize> {
        let waiting = self.waiting.load(Ordering::Relaxed) as usize;
        let queue = self.queue.iter().take(waiting).rev();
        queue.map(|slot| slot.load(Ordering::Relaxed) as usize)
    }

    /// The slot whose login replaces the session at `slot`, if there is one.
    pub fn successor(self, slot: usize) -> Option<usize> {
        let successor = self.successors.get(slot)?.load(Ordering::Relaxed);
        (successor as usize).checked_sub(1)
    }

    /// Each slot that has a successor, with the successor's slot.
    pub fn successors(self) -> impl Iterator<Item = (usize, usize)> {
        let successors =
            (0..self.successors.len()).map(move |slot| Some((slot, self.successor(slot)?)));
        successors.flatten()
    }

    /// The claim on `slot`; None if it is free.
    pub fn claim(self, slot: usize) -> Option<Claim> {
        load(self.claims.get(slot)?)
    }

    /// The slots that are not free, each with its claim.
    pub fn claims(self) -> impl Iterator<Item = (usize, Claim)> {
        let claims = self.claims.iter().map(load).enumerate();
        claims.filter_map(|(slot, claim)| Some((slot, claim?)))
    }

    /// The role of each slot's session; 0 for a free slot.
    pub fn roles(self) -> impl Iterator<Item = u32> {
        let words = self.claims.iter();
        words.map(|word| load(word).map_or(0, Claim::role))
    }

    /// Notes that the session at `slot` is active at this tick. It becomes idle, if it does, after that.
    pub fn note_active(self, slot: usize, tick: u64) {
        if let Some(word) = self.last_active.get(slot) {
            word.store(tick, Ordering::Relaxed);
        }
    }

    /// The tick at which the session at `slot` was last active. If the caller has seen that the session is idle, it is the
    /// one from before that, or a later one.
    pub fn last_active(self, slot: usize) -> Option<u64> {
        fence(Ordering::Acquire);
        Some(self.last_active.get(slot)?.load(Ordering::Relaxed))
    }

    pub fn slots(self) -> usize {
        self.claims.len()
    }
}

/// The tick at which a login arrives: `now`, or the next one after `last`, the latest arrival of all.
///
/// Ticks are the microseconds of a clock that nobody sets, and that all processes share. Ages, idle times and orders are
/// reckoned in them, since the wall clock can be set back or forward.
pub fn arrive(last: &AtomicU64, now: u64) -> u64 {
    let next = |last: u64| now.max(last.saturating_add(1));
    let before = last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
        Some(next(last))
    });
    let (Ok(before) | Err(before)) = before;
    next(before)
}

fn load(word: &AtomicU64) -> Option<Claim> {
    Claim::of(word.load(Ordering::Relaxed))
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_times_and_no_two_are_the_same() {
        let last = AtomicU64::new(0);
        assert_eq!(arrive(&last, 500), 500);
        assert_eq!(arrive(&last, 500), 501);
        // A process read the clock, and then did not run for a while.
        assert_eq!(arrive(&last, 400), 502);
        assert_eq!(arrive(&last, 9000), 9000);
    }
}
