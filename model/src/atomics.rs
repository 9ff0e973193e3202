//! The part of the slot table that needs no lock, and why nobody is forgotten.
//!
//! A session gives its claim up after its process has left the process array, where no lock can be taken. So the claims
//! are atomic, and so is the queue, in which the leaver looks for whom to wake: the waiter that is first. The first
//! waiter finds out, under the lock, who may go in now, and wakes them (see `decide`).
//!
//! A waiter must not go to sleep before a place that it has not seen becomes free without its being woken:
//! - Whoever frees a claim stores that, passes a fence, and then reads who is first.
//! - Whoever enters the queue, or leaves it, stores that, passes a fence, and then claims are counted: by the one who
//!   enters, or by the one who is first then and is woken.
//!
//! The fences are all that this needs. The loads and stores themselves are relaxed: everything else in the table is
//! guarded by the lock.
//!
//! Of two processes that do both at once, at least one sees what the other has stored. `tests/interleavings.rs` tries
//! every order of their steps.

use crate::session::Claim;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// References to the part of the table that needs no lock.
#[derive(Clone, Copy)]
pub struct Shared<'a> {
    pub(crate) claims: &'a [AtomicU64],
    pub(crate) queue: &'a [AtomicU32],
    pub(crate) waiting: &'a AtomicU32,
    /// 0, or one more than the successor's slot.
    pub(crate) successors: &'a [AtomicU32],
}

impl<'a> Shared<'a> {
    /// `claims`, `queue` and `successors` have one element a slot.
    pub fn new(
        claims: &'a [AtomicU64],
        queue: &'a [AtomicU32],
        waiting: &'a AtomicU32,
        successors: &'a [AtomicU32],
    ) -> Self {
        Shared {
            claims,
            queue,
            waiting,
            successors,
        }
    }

    /// Frees the slot if it still holds this claim; whoever owns the slot now keeps it. In any case the caller wakes
    /// the first waiter: the slot's next owner, who has taken the slot over, wakes nobody.
    pub fn release(self, slot: usize, claim: Claim) -> bool {
        let released = self.claims.get(slot).is_some_and(|word| {
            word.compare_exchange(claim.word(), 0, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        });
        fence(Ordering::SeqCst);
        released
    }

    /// The slot of the waiter that arrived first.
    pub fn first_waiter(self) -> Option<usize> {
        let waiting = self.waiting.load(Ordering::Relaxed);
        let first = self.queue.first().filter(|_| waiting > 0)?;
        Some(first.load(Ordering::Relaxed) as usize)
    }

    /// The slots of the waiters. Without the lock a slot may come twice, but none is left out that was in the queue
    /// before the call and still is.
    pub fn waiters(self) -> impl Iterator<Item = usize> {
        // From the end, while entries only ever move towards the front.
        let waiting = self.waiting.load(Ordering::Relaxed) as usize;
        let queue = self.queue.iter().take(waiting).rev();
        queue.map(|slot| slot.load(Ordering::Relaxed) as usize)
    }

    /// The slot that gets the place of this slot's session.
    pub fn successor(self, slot: usize) -> Option<usize> {
        let successor = self.successors.get(slot)?.load(Ordering::Relaxed);
        (successor as usize).checked_sub(1)
    }

    /// The slots that have a successor, each with the successor's.
    pub fn successors(self) -> impl Iterator<Item = (usize, usize)> {
        let successors =
            (0..self.successors.len()).map(move |slot| Some((slot, self.successor(slot)?)));
        successors.flatten()
    }

    /// The claim on `slot`, if it is not free.
    pub fn claim(self, slot: usize) -> Option<Claim> {
        load(self.claims.get(slot)?)
    }

    /// The claims, each with its slot.
    pub fn claims(self) -> impl Iterator<Item = (usize, Claim)> {
        let claims = self.claims.iter().map(load).enumerate();
        claims.filter_map(|(slot, claim)| Some((slot, claim?)))
    }

    /// The role of each slot's session, 0 where there is none.
    pub fn roles(self) -> impl Iterator<Item = u32> {
        let words = self.claims.iter();
        words.map(|word| load(word).map_or(0, Claim::role))
    }

    pub fn slots(self) -> usize {
        self.claims.len()
    }
}

fn load(word: &AtomicU64) -> Option<Claim> {
    Claim::of(word.load(Ordering::Relaxed))
}
