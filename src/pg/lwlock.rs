//! Data in shared memory that is only reached while its lock is held.

use crate::pg::ffi;
use pgrx::pg_sys::{self, LWLockMode};
use std::cell::UnsafeCell;
use std::ffi::CStr;

pub struct Locked<T> {
    lock: *mut pg_sys::LWLock,
    value: UnsafeCell<T>,
}

impl<T> Locked<T> {
    /// # Safety
    /// Only in the shmem_startup_hook, with the name of a tranche that was requested, once.
    pub unsafe fn new(lock: &CStr, value: T) -> Locked<T> {
        Locked {
            // SAFETY: the caller requested the tranche, so the server has made its one lock.
            lock: unsafe { &raw mut (*pg_sys::GetNamedLWLockTranche(lock.as_ptr())).lock },
            value: UnsafeCell::new(value),
        }
    }

    /// `change` does not raise, log, allocate, look up a name, signal, or take another lock.
    pub fn exclusively<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: any process with a PGPROC may take the lock. While it is held exclusively, this is the only
        // reference that any process has.
        unsafe {
            ffi::LWLockAcquire(self.lock, LWLockMode::LW_EXCLUSIVE);
            let changed = change(&mut *self.value.get());
            ffi::LWLockRelease(self.lock);
            changed
        }
    }

    /// As `exclusively`, but others may read at the same time.
    pub fn shared<R>(&self, copy: impl FnOnce(&T) -> R) -> R {
        // SAFETY: any process with a PGPROC may take the lock. While it is held, nobody has a mutable reference.
        unsafe {
            ffi::LWLockAcquire(self.lock, LWLockMode::LW_SHARED);
            let copied = copy(&*self.value.get());
            ffi::LWLockRelease(self.lock);
            copied
        }
    }

    /// # Safety
    /// No other process is left that could change the data.
    pub unsafe fn without_lock(&self) -> &T {
        // SAFETY: nobody changes it, as the caller says.
        unsafe { &*self.value.get() }
    }
}
