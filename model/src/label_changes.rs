//! Remembers that there is no label at all.
//!
//! Most servers have none, and each login would open a catalog only to see that. It is enough that one login has seen
//! it, and that no label has been changed since. To know that, transactions that change labels are counted.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The counts, in shared memory.
pub struct LabelChanges {
    /// Transactions that are changing labels now.
    now: AtomicU32,
    /// Transactions that have changed labels.
    done: AtomicU64,
    /// The value of `done` at which there was no label; `NEVER` if that is not known.
    none_after: AtomicU64,
}

/// No value that `done` reaches.
const NEVER: u64 = u64::MAX;

impl LabelChanges {
    pub fn new() -> LabelChanges {
        LabelChanges {
            now: AtomicU32::new(0),
            done: AtomicU64::new(0),
            none_after: AtomicU64::new(NEVER),
        }
    }

    /// A transaction is about to change a label. It calls [`LabelChanges::end`] when it has ended or is prepared.
    pub fn begin(&self) {
        self.now.fetch_add(1, Ordering::SeqCst);
    }

    /// A transaction that called [`LabelChanges::begin`] has ended or is prepared.
    pub fn end(&self) {
        self.done.fetch_add(1, Ordering::SeqCst);
        self.now.fetch_sub(1, Ordering::SeqCst);
    }

    /// A number for this moment, at which no transaction is changing labels; None while one does. The number stays the
    /// same until a transaction has changed labels.
    pub fn at_rest(&self) -> Option<u64> {
        // In this order: if a transaction ends in between, it is counted in `done`.
        let at_rest = self.now.load(Ordering::SeqCst) == 0;
        at_rest.then(|| self.done.load(Ordering::SeqCst))
    }

    /// Whether it is known that there was no label at that moment.
    pub fn had_none(&self, at_rest: u64) -> bool {
        self.none_after.load(Ordering::SeqCst) == at_rest
    }

    /// Remembers that there was no label at that moment. The caller has looked after it, and found no row, not even one
    /// of a transaction that has not ended.
    pub fn saw_none(&self, at_rest: u64) {
        self.none_after.store(at_rest, Ordering::SeqCst);
    }

    /// Forgets what is remembered, so that the next login looks. A superuser can write a label into the catalog without
    /// `SECURITY LABEL`, and that is not counted.
    pub fn look_again(&self) {
        self.none_after.store(NEVER, Ordering::SeqCst);
    }
}

impl Default for LabelChanges {
    fn default() -> LabelChanges {
        LabelChanges::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_there_is_no_label_is_remembered_until_one_is_changed() {
        let labels = LabelChanges::new();
        let moment = labels.at_rest().expect("nobody changes any");
        assert!(!labels.had_none(moment), "nobody has looked");
        labels.saw_none(moment);
        assert!(labels.had_none(moment));
        labels.begin();
        assert_eq!(labels.at_rest(), None, "while one is changed");
        labels.end();
        let later = labels.at_rest().expect("it has ended");
        assert!(!labels.had_none(later));
        // A login that looked before the change comes too late with what it saw.
        labels.saw_none(moment);
        assert!(!labels.had_none(later));
        labels.saw_none(later);
        assert!(labels.had_none(later));
        labels.look_again();
        assert!(!labels.had_none(later));
    }
}
