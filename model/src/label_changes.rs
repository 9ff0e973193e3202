//! Whether there is any label at all.
//!
//! Most servers have none, and each login would open a catalog to see that. It is enough that one login saw it, and
//! that no label was changed since.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// In shared memory.
pub struct LabelChanges {
    /// Transactions that are changing labels now.
    now: AtomicU32,
    /// Transactions that have changed labels.
    done: AtomicU64,
    /// The value of `done` at which there was no label; `NEVER` if that is not known.
    none_after: AtomicU64,
}

const NEVER: u64 = u64::MAX;

impl LabelChanges {
    pub fn new() -> LabelChanges {
        LabelChanges {
            now: AtomicU32::new(0),
            done: AtomicU64::new(0),
            none_after: AtomicU64::new(NEVER),
        }
    }

    /// A transaction is about to change a label. It calls `end` when it has ended or is prepared.
    pub fn begin(&self) {
        self.now.fetch_add(1, Ordering::SeqCst);
    }

    pub fn end(&self) {
        self.done.fetch_add(1, Ordering::SeqCst);
        self.now.fetch_sub(1, Ordering::SeqCst);
    }

    /// A moment at which no transaction is changing labels; None while one does. A later moment is the same one as
    /// long as no transaction has changed labels in between.
    pub fn at_rest(&self) -> Option<u64> {
        // In this order: a transaction that ends in between is seen as done.
        let at_rest = self.now.load(Ordering::SeqCst) == 0;
        at_rest.then(|| self.done.load(Ordering::SeqCst))
    }

    /// Whether it is known that there was no label at that moment.
    pub fn had_none(&self, at_rest: u64) -> bool {
        self.none_after.load(Ordering::SeqCst) == at_rest
    }

    /// Somebody looked after that moment, and there was no row, not even of a transaction that has not ended.
    pub fn saw_none(&self, at_rest: u64) {
        self.none_after.store(at_rest, Ordering::SeqCst);
    }

    /// The next login looks again: a superuser can write a label without `SECURITY LABEL`.
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
    fn that_there_is_none_is_known_until_one_is_changed() {
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
        // Whoever looked before the change says so too late.
        labels.saw_none(moment);
        assert!(!labels.had_none(later));
        labels.saw_none(later);
        assert!(labels.had_none(later));
        labels.look_again();
        assert!(!labels.had_none(later));
    }
}
