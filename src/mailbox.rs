//! In shared memory: what others tell the background worker, and all processes each other.

use crate::pg::{backend, compat};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

pub struct Mailbox {
    /// 0, or one more than the worker's slot.
    reader: AtomicU32,
    /// The process ID of the worker, or of the last one that there was; 0 if there was none.
    worker: AtomicU32,
    /// A limit may have changed since the worker asked.
    changed: AtomicBool,
    /// The tick at which some process last said that it cannot read limits; 0 if none has.
    complained: AtomicU64,
}

/// Whatever is broken, the log says so once a minute, however many processes find it.
const COMPLAIN_EVERY_US: u64 = 60_000_000;

impl Mailbox {
    pub fn new() -> Mailbox {
        Mailbox {
            reader: AtomicU32::new(0),
            worker: AtomicU32::new(0),
            changed: AtomicBool::new(false),
            complained: AtomicU64::new(0),
        }
    }

    /// A limit may have been changed, for everyone to see: wakes the worker.
    pub fn limits_changed(&self) {
        self.changed.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Wakes the worker; if there is none, nobody.
    pub fn wake(&self) {
        let reader = self.reader.load(Ordering::SeqCst) as usize;
        reader.checked_sub(1).into_iter().for_each(backend::wake);
    }

    /// From now on this process is the one that is woken.
    pub fn become_reader(&self) {
        let reader = compat::my_slot() as u32 + 1;
        self.reader.store(reader, Ordering::SeqCst);
        self.worker.store(std::process::id(), Ordering::SeqCst);
    }

    /// The process ID of the worker; None if there is none now.
    pub fn worker(&self) -> Option<u32> {
        let pid = self.worker.load(Ordering::SeqCst);
        (pid != 0 && !backend::is_gone(pid)).then_some(pid)
    }

    /// Whether limits have changed since the last call.
    pub fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::SeqCst)
    }

    /// Whether they have, and the worker has not asked yet.
    pub fn has_changed(&self) -> bool {
        self.changed.load(Ordering::SeqCst)
    }

    /// Whether this process is the one to say that something is broken.
    pub fn may_complain(&self) -> bool {
        let now = backend::tick();
        let last = self.complained.load(Ordering::Relaxed);
        let is_due = last == 0 || now.saturating_sub(last) >= COMPLAIN_EVERY_US;
        is_due
            && self
                .complained
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}
