//! The queue: who waits, in the order in which they began to, and for what.
//!
//! The entries are atomic, because a process that exits looks for the first waiter without the lock (see
//! [`crate::atomics`]); they change only under the lock. The conditions of all waiters share one slice, one waiter's
//! after the other's. If it is full, a login cannot wait.

use crate::account::Account;
use crate::limit::Condition;
use crate::session::Session;
use crate::sync::{Ordering, fence};
use crate::table::Table;

/// A login in the queue.
pub struct Waiter<'a> {
    pub slot: usize,
    pub session: Session,
    /// It may go in when there is room under all of them.
    pub conditions: &'a [Condition],
    pub account: Option<Account>,
}

impl Table<'_> {
    /// The waiters, in the order of the queue.
    pub fn waiters(&self) -> impl Iterator<Item = Waiter<'_>> {
        let waiting = self.shared.waiting.load(Ordering::Relaxed) as usize;
        let queue = self.shared.queue.iter().take(waiting);
        let mut rest = &*self.conditions;
        queue.filter_map(move |entry| {
            let slot = entry.load(Ordering::Relaxed) as usize;
            let row = self.slots.get(slot)?;
            let (conditions, others) = rest.split_at_checked(row.conditions.into())?;
            rest = others;
            Some(Waiter {
                slot,
                session: self.session(slot)?,
                conditions,
                account: *self.accounts.get(slot)?,
            })
        })
    }

    /// The waiters ahead of the owner of `slot`: all of them, if it does not wait itself.
    pub fn waiters_before(&self, slot: usize) -> impl Iterator<Item = Waiter<'_>> {
        self.waiters().take_while(move |waiter| waiter.slot != slot)
    }

    /// The owner of `slot`; None if it does not wait.
    pub fn waiter(&self, slot: usize) -> Option<Waiter<'_>> {
        self.waiters().find(|waiter| waiter.slot == slot)
    }

    /// Puts the owner of `slot` at the end of the queue, or, if it waits already, replaces its conditions. Returns false,
    /// and changes nothing, if there is no room for the conditions. The caller must count anew afterwards: a session that
    /// left before did not see this waiter, and did not wake it.
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
        let own = if queued {
            self.slots.get(slot).map_or(0, |row| row.conditions)
        } else {
            0
        };
        if !self.splice(slot, own, conditions) {
            return false;
        }
        self.put(slot, session);
        if let Some(row) = self.slots.get_mut(slot) {
            row.conditions = number;
        }
        let waiting = self.shared.waiting.load(Ordering::Relaxed);
        if !queued && let Some(end) = self.shared.queue.get(waiting as usize) {
            end.store(slot as u32, Ordering::Relaxed);
            self.shared.waiting.store(waiting + 1, Ordering::Relaxed);
            // If a process frees its claim and does not see this waiter yet, the counts from here on no longer have that
            // claim (see `atomics`).
            fence(Ordering::SeqCst);
        }
        true
    }

    /// Notes on whose account the owner of `slot` waits.
    pub fn charge(&mut self, slot: usize, account: Option<Account>) {
        if let Some(entry) = self.accounts.get_mut(slot) {
            *entry = account;
        }
    }

    /// Takes the owner of `slot` out of the queue; says whether it was in it.
    pub fn dequeue(&mut self, slot: usize) -> bool {
        let waiting = self.shared.waiting.load(Ordering::Relaxed);
        let Some(position) = self.waiters().position(|waiter| waiter.slot == slot) else {
            return false;
        };
        let own = self.slots.get(slot).map_or(0, |row| row.conditions);
        self.splice(slot, own, std::iter::empty());
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
        // If a process frees its claim and still sees this waiter in the queue, the waiter that is first now no longer
        // counts that claim (see `atomics`).
        fence(Ordering::SeqCst);
        true
    }

    /// Replaces the conditions of the owner of `slot`, of which there are `own`. They come after those of the waiters
    /// ahead of it. Returns false, and changes nothing, if there is no room.
    fn splice(
        &mut self,
        slot: usize,
        own: u16,
        conditions: impl Iterator<Item = Condition> + Clone,
    ) -> bool {
        let all = |waiter: Waiter| waiter.conditions.len();
        let start: usize = self.waiters_before(slot).map(all).sum();
        let end: usize = self.waiters().map(all).sum();
        let (old, new) = (start + usize::from(own), start + conditions.clone().count());
        if end - old + new > self.conditions.len() {
            return false;
        }
        self.conditions.copy_within(old..end, new);
        for (entry, condition) in self.conditions.iter_mut().skip(start).zip(conditions) {
            *entry = condition;
        }
        true
    }
}
