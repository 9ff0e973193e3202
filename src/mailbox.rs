//! In shared memory: what others tell the background worker.

use crate::pg::{backend, compat};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

pub struct Mailbox {
    /// 0, or one more than the worker's slot.
    reader: AtomicU32,
    /// A limit may have changed since the worker asked.
    changed: AtomicBool,
}

impl Mailbox {
    pub fn new() -> Mailbox {
        Mailbox {
            reader: AtomicU32::new(0),
            changed: AtomicBool::new(false),
        }
    }

    /// A limit may have been changed, for everyone to see: wakes the worker.
    pub fn limits_changed(&self) {
        self.changed.store(true, Ordering::SeqCst);
        let reader = self.reader.load(Ordering::SeqCst) as usize;
        reader.checked_sub(1).into_iter().for_each(backend::wake);
    }

    /// From now on this process is the one that is woken.
    pub fn become_reader(&self) {
        let reader = compat::my_slot() as u32 + 1;
        self.reader.store(reader, Ordering::SeqCst);
    }

    /// Whether limits have changed since the last call.
    pub fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::SeqCst)
    }

    /// Whether they have, and the worker has not asked yet.
    pub fn has_changed(&self) -> bool {
        self.changed.load(Ordering::SeqCst)
    }
}
