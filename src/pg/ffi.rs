//! Functions of the server that are called without pgrx's guard, and those that pgrx leaves out.
//!
//! pgrx wraps each function of the server in code that turns what it raises into a panic. Where nothing may be
//! raised, under a lock and while a process exits, the function is called as it is. Everything else goes through pgrx.

use pgrx::pg_sys::{Datum, LWLock, LWLockMode, TimestampTz, pg_on_exit_callback};

macro_rules! unguarded {
    ($(fn $name:ident($($argument:ident: $of:ty),*) $(-> $result:ty)?;)*) => {
        unsafe extern "C-unwind" {
            $(pub fn $name($($argument: $of),*) $(-> $result)?;)*
        }

        // pgrx takes the types from the server's headers: a wrong one here does not compile.
        $(const _: unsafe fn($($of),*) $(-> $result)? = pgrx::pg_sys::$name;)*
    };
}

// They raise nothing: a process here holds one lock at most, and registers two callbacks.
unguarded! {
    fn GetCurrentTimestamp() -> i64;
    fn LWLockAcquire(lock: *mut LWLock, mode: LWLockMode::Type) -> bool;
    fn LWLockRelease(lock: *mut LWLock);
    fn before_shmem_exit(callback: pg_on_exit_callback, argument: Datum);
    fn on_proc_exit(callback: pg_on_exit_callback, argument: Datum);
}

// `src/include/utils/timeout.h`. Both only read variables of this process.
unsafe extern "C-unwind" {
    pub fn get_timeout_active(id: u32) -> bool;
    pub fn get_timeout_finish_time(id: u32) -> TimestampTz;
}
