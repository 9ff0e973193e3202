//! The functions of the server that logins call most. pgrx guards each call of each function by code of its own,
//! a tenth of all that the hook runs: here what can raise goes through one piece of code, `guarded`, and what cannot
//! is called as it is.

use pgrx::pg_sys::{
    Buffer, Datum, ForkNumber, HeapTuple, LWLock, LWLockMode, Oid, Relation, Snapshot, TupleDesc,
    ffi, pg_on_exit_callback,
};
use std::mem::MaybeUninit;

macro_rules! functions {
    ($(fn $name:ident($($argument:ident: $of:ty),*) $(-> $result:ty)?;)*) => {
        unsafe extern "C-unwind" {
            $(pub fn $name($($argument: $of),*) $(-> $result)?;)*
        }

        // What pgrx makes of the server's headers is of the same type.
        $(const _: unsafe fn($($of),*) $(-> $result)? = pgrx::pg_sys::$name;)*
    };
}

// These raise nothing: what is given back is held, by the resource owner that was current when it was taken, few locks
// are, and a row has all of its catalog's columns. Those for the exit end the process when there is no room.
functions! {
    fn GetCurrentTimestamp() -> i64;
    fn LWLockAcquire(lock: *mut LWLock, mode: LWLockMode::Type) -> bool;
    fn LWLockRelease(lock: *mut LWLock);
    fn RecoveryInProgress() -> bool;
    fn ReleaseSysCache(tuple: HeapTuple);
    fn UnlockReleaseBuffer(buffer: Buffer);
    fn UnregisterSnapshot(snapshot: Snapshot);
    fn before_shmem_exit(callback: pg_on_exit_callback, argument: Datum);
    fn heap_deform_tuple(tuple: HeapTuple, shape: TupleDesc, values: *mut Datum, nulls: *mut bool);
    fn on_proc_exit(callback: pg_on_exit_callback, argument: Datum);
    fn table_close(relation: Relation, lock: i32);
}

// These only under `guarded`.
functions! {
    fn AcceptInvalidationMessages();
    fn GetCatalogSnapshot(relation: Oid) -> Snapshot;
    fn HeapTupleSatisfiesVisibility(tuple: HeapTuple, snapshot: Snapshot, buffer: Buffer) -> bool;
    fn LockBuffer(buffer: Buffer, mode: i32);
    fn ReadBuffer(relation: Relation, block: u32) -> Buffer;
    fn RegisterSnapshot(snapshot: Snapshot) -> Snapshot;
    fn RelationGetNumberOfBlocksInFork(relation: Relation, fork: ForkNumber::Type) -> u32;
    fn SearchSysCache1(cache: i32, key: Datum) -> HeapTuple;
    fn table_open(relation: Oid, lock: i32) -> Relation;
}

/// Passes on what a call raises.
///
/// # Safety
/// `call` only calls functions of the server, does not panic, and has made nothing that must be dropped: what they raise
/// leaves it where it is. What it captures is dropped as usual.
pub unsafe fn guarded<T: Copy>(call: impl Fn() -> T) -> T {
    let mut result = MaybeUninit::uninit();
    // SAFETY: as the caller says. It returns only when the result is there.
    unsafe {
        run(&mut || {
            result.write(call());
        });
        result.assume_init()
    }
}

/// # Safety
/// As `guarded`.
#[inline(never)]
unsafe fn run(call: &mut dyn FnMut()) {
    // SAFETY: as the caller says.
    unsafe { ffi::pg_guard_ffi_boundary(call) }
}
