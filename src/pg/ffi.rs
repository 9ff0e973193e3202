//! Functions of the server that logins call, and those that pgrx leaves out.
//!
//! What a function of the server raises must become a panic, to pass through Rust. pgrx does that with a copy of its
//! guard around each call, 1.5 kB each: scattered over a library so large, the code of a login costs each new process
//! more to map than to run. Here the guard stands once. Where nothing may be raised, under a lock and while a process
//! exits, there is none.

use pgrx::pg_sys::{
    BlockNumber, CatCList, Datum, ForkNumber, HASHACTION, HTAB, HeapTuple, LWLock, LWLockMode, Oid,
    Relation, ScanKey, Size, Snapshot, SysScanDesc, TimestampTz, TupleDesc, XactCallback,
    ffi::pg_guard_ffi_boundary, pg_on_exit_callback,
};
use std::ffi::{c_char, c_int, c_void};
use std::mem::MaybeUninit;

/// Declares functions, and holds their types against pgrx's, which come from the server's headers: a wrong one does not
/// compile.
macro_rules! declared {
    ($($of_fn:vis fn $name:ident($($argument:ident: $of:ty),*) $(-> $result:ty)?;)*) => {
        unsafe extern "C-unwind" {
            $($of_fn fn $name($($argument: $of),*) $(-> $result)?;)*
        }

        $(const _: unsafe fn($($of),*) $(-> $result)? = pgrx::pg_sys::$name;)*
    };
}

// They raise nothing: a process here holds one lock at most, registers four callbacks, and makes no entry in a hash table
// that has no room.
declared! {
    pub fn GetCurrentTimestamp() -> i64;
    pub fn LWLockAcquire(lock: *mut LWLock, mode: LWLockMode::Type) -> bool;
    pub fn LWLockRelease(lock: *mut LWLock);
    pub fn hash_search(table: *mut HTAB, key: *const c_void, action: HASHACTION::Type, found: *mut bool) -> *mut c_void;
    pub fn before_shmem_exit(callback: pg_on_exit_callback, argument: Datum);
    pub fn on_shmem_exit(callback: pg_on_exit_callback, argument: Datum);
    pub fn on_proc_exit(callback: pg_on_exit_callback, argument: Datum);
}

/// Functions that pass on what they raise, named as in the server.
macro_rules! guarded {
    ($(fn $name:ident($($argument:ident: $of:ty),*) $(-> $result:ty)?;)*) => {
        mod raw {
            use super::*;

            declared! {
                $(pub fn $name($($argument: $of),*) $(-> $result)?;)*
            }
        }

        $(
            /// # Safety
            /// As the server says.
            #[allow(non_snake_case, reason = "named as in the server")]
            pub unsafe fn $name($($argument: $of),*) $(-> $result)? {
                // SAFETY: as the caller says; the arguments are plain values.
                unsafe { guarded(|| raw::$name($($argument),*)) }
            }
        )*
    };
}

guarded! {
    fn AcceptInvalidationMessages();
    fn RecoveryInProgress() -> bool;
    fn RegisterXactCallback(callback: XactCallback, argument: *mut c_void);
    fn RelationGetNumberOfBlocksInFork(relation: Relation, fork: ForkNumber::Type) -> BlockNumber;
    fn ReleaseCatCacheList(list: *mut CatCList);
    fn ReleaseSysCache(tuple: HeapTuple);
    fn SearchSysCache1(cache: i32, key: Datum) -> HeapTuple;
    fn SearchSysCacheList(cache: i32, keys: i32, one: Datum, two: Datum, three: Datum) -> *mut CatCList;
    fn ShmemInitStruct(name: *const c_char, size: Size, found: *mut bool) -> *mut c_void;
    fn heap_deform_tuple(tuple: HeapTuple, shape: TupleDesc, values: *mut Datum, nulls: *mut bool);
    fn systable_beginscan(relation: Relation, index: Oid, usable: bool, snapshot: Snapshot, keys: i32, key: ScanKey) -> SysScanDesc;
    fn systable_endscan(scan: SysScanDesc);
    fn systable_getnext(scan: SysScanDesc) -> HeapTuple;
    fn table_close(relation: Relation, lock: i32);
    fn table_open(relation: Oid, lock: i32) -> Relation;
}

/// # Safety
/// `call` only calls one function of the server: it does not panic, and has nothing to drop.
unsafe fn guarded<T: Copy>(call: impl Fn() -> T) -> T {
    let mut result = MaybeUninit::uninit();
    // SAFETY: as the caller says. `run` returns only after the call has.
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
    unsafe { pg_guard_ffi_boundary(call) }
}

// `src/include/utils/timeout.h`. Both only read variables of this process.
unsafe extern "C-unwind" {
    pub fn get_timeout_active(id: u32) -> bool;
    pub fn get_timeout_finish_time(id: u32) -> TimestampTz;
}

// `src/include/utils/elog.h`: how a message is sent. A caller whose message is an error guards itself.
unsafe extern "C-unwind" {
    pub fn errstart(level: c_int, domain: *const c_char) -> bool;
    pub fn errcode(code: c_int) -> c_int;
    pub fn errmsg(format: *const c_char, ...) -> c_int;
    pub fn errdetail(format: *const c_char, ...) -> c_int;
    pub fn errhint(format: *const c_char, ...) -> c_int;
    pub fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
}
