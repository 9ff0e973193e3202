//! The functions of the server that every login calls. pgrx guards each call of each function by code of its own,
//! a tenth of all that the hook runs: here what can raise goes through one piece of code, `guarded`, and what cannot
//! is called as it is.

use pgrx::pg_sys::{
    Buffer, Datum, ForkNumber, HeapTuple, LWLock, LWLockMode, Oid, Relation, Snapshot, TupleDesc,
    ffi, pg_on_exit_callback,
};
use std::mem::MaybeUninit;

// As in `src/include` of each supported version.
unsafe extern "C-unwind" {
    // These raise nothing, called as they are to be; those for the exit end the process when there is no room.
    pub fn GetCurrentTimestamp() -> i64;
    pub fn LWLockAcquire(lock: *mut LWLock, mode: LWLockMode::Type) -> bool;
    pub fn LWLockRelease(lock: *mut LWLock);
    pub fn RecoveryInProgress() -> bool;
    pub fn ReleaseSysCache(tuple: HeapTuple);
    pub fn UnlockReleaseBuffer(buffer: Buffer);
    pub fn UnregisterSnapshot(snapshot: Snapshot);
    pub fn before_shmem_exit(callback: pg_on_exit_callback, argument: Datum);
    pub fn heap_deform_tuple(
        tuple: HeapTuple,
        shape: TupleDesc,
        values: *mut Datum,
        nulls: *mut bool,
    );
    pub fn on_proc_exit(callback: pg_on_exit_callback, argument: Datum);
    pub fn table_close(relation: Relation, lock: i32);

    // These only under `guarded`.
    pub fn AcceptInvalidationMessages();
    pub fn GetCatalogSnapshot(relation: Oid) -> Snapshot;
    pub fn HeapTupleSatisfiesVisibility(
        tuple: HeapTuple,
        snapshot: Snapshot,
        buffer: Buffer,
    ) -> bool;
    pub fn LockBuffer(buffer: Buffer, mode: i32);
    pub fn ReadBuffer(relation: Relation, block: u32) -> Buffer;
    pub fn RegisterSnapshot(snapshot: Snapshot) -> Snapshot;
    pub fn RelationGetNumberOfBlocksInFork(relation: Relation, fork: ForkNumber::Type) -> u32;
    pub fn SearchSysCache1(cache: i32, key: Datum) -> HeapTuple;
    pub fn table_open(relation: Oid, lock: i32) -> Relation;
}

/// Passes on what a call raises.
///
/// # Safety
/// `call` only calls functions of the server, and owns nothing that must be dropped: what they raise leaves it where
/// it is.
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
