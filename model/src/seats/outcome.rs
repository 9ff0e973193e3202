//! What comes of a step.

use super::list::NONE;
use super::words::{Ended, Held, Id};

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
pub(super) const AT_ONCE: usize = if cfg!(test) { 2 } else { 64 };
/// So many seats of others are shown to whoever is refused, if it may see them.
pub(super) const SHOWN: usize = 16;

impl Found {
    /// Allocates all that a step needs where there are so many backends.
    pub fn with_room(backends: usize) -> Found {
        Found {
            ended: Vec::with_capacity(AT_ONCE),
            // Each backend gets one seat at most. Then it is woken, and whoever is the first that waits before and after.
            wake: Vec::with_capacity(3 * (backends + 1)),
            oldest: Vec::with_capacity(SHOWN),
        }
    }

    /// Forgets what the caller has seen to.
    pub fn clear(&mut self) {
        self.ended.clear();
        self.wake.clear();
        self.oldest.clear();
    }

    pub(super) fn is_full(&self) -> bool {
        self.ended.len() >= AT_ONCE
    }

    pub(super) fn end(&mut self, ended: Option<Ended>) {
        if !self.is_full() {
            self.ended.extend(ended);
        }
    }

    pub(super) fn wake(&mut self, slot: u32) {
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
pub enum Answer {
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
pub struct Named {
    pub id: Id,
    /// It is of this database.
    pub database: u32,
    /// It belongs to this role.
    pub role: u32,
}
