//! Every difference between the supported versions of the server.

use pgrx::pg_sys::{self, FormData_pg_auth_members, SysCacheIdentifier};
use std::ffi::CStr;
use std::sync::atomic::{Ordering, fence};

/// What a syscache is called by.
#[allow(clippy::unnecessary_cast, reason = "until 18 the type is unsigned")]
pub fn cache_number(cache: SysCacheIdentifier::Type) -> i32 {
    cache as i32
}

/// Whether the member has the role's privileges without SET ROLE: on 15 all grants are as the
/// member's attribute INHERIT says.
#[cfg(feature = "pg15")]
pub fn gives_privileges(_grant: &FormData_pg_auth_members, inherit: bool) -> bool {
    inherit
}

/// Whether the member has the role's privileges without SET ROLE.
#[cfg(not(feature = "pg15"))]
pub fn gives_privileges(grant: &FormData_pg_auth_members, _inherit: bool) -> bool {
    grant.inherit_option
}

/// Whether it makes a member that can use the role, and not only grant it on.
#[cfg(feature = "pg15")]
pub fn is_membership(_grant: &FormData_pg_auth_members) -> bool {
    true
}

/// Whether it makes a member that can use the role, and not only grant it on.
#[cfg(not(feature = "pg15"))]
pub fn is_membership(grant: &FormData_pg_auth_members) -> bool {
    grant.inherit_option || grant.set_option
}

/// Whether CREATEROLE lets a role grant every role that is no superuser's: until 15.
pub fn createrole_grants_every_role() -> bool {
    cfg!(feature = "pg15")
}

/// Whether a database's owner has the privileges of `pg_database_owner`: on 15 as the owner's
/// attribute INHERIT says.
#[cfg(feature = "pg15")]
pub fn ownership_gives_privileges(inherit: bool) -> bool {
    inherit
}

/// Whether a database's owner has the privileges of `pg_database_owner`.
#[cfg(not(feature = "pg15"))]
pub fn ownership_gives_privileges(_inherit: bool) -> bool {
    true
}

/// The number of this process's PGPROC, below `MaxBackends` for any process that a client can talk to.
pub fn my_slot() -> usize {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    // SAFETY: MyProc is set before a backend authenticates its client, and until it has left the
    // process array. `slot` asks once, in between.
    let index = unsafe { (*pg_sys::MyProc).pgprocno };
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    // SAFETY: a plain variable of this process.
    let index = unsafe { pg_sys::MyProcNumber };
    index as usize
}

/// How many connections there are for this backend and others, at most so many: its own, and what is free besides those
/// reserved for superusers, and on 16+ for `pg_use_reserved_connections`. 0 if some of these are not free.
pub fn unreserved_connections(at_most: u32) -> u32 {
    // SAFETY: settings that no backend changes.
    #[cfg(feature = "pg15")]
    let reserved = unsafe { pg_sys::ReservedBackends };
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as above.
    let reserved = unsafe { pg_sys::SuperuserReservedConnections + pg_sys::ReservedConnections };
    // HaveNFreeProcs must not be called with 0.
    let free = free_procs((reserved + at_most as i32).max(1));
    u32::try_from(free + 1 - reserved).map_or(0, |number| number.min(at_most))
}

/// How many more backends there can be, at most so many.
fn free_procs(at_most: i32) -> i32 {
    #[cfg(feature = "pg15")]
    {
        let (mut free, mut too_many) = (0, at_most + 1);
        while too_many - free > 1 {
            let number = free + (too_many - free) / 2;
            // SAFETY: takes and gives back a spinlock.
            match unsafe { pg_sys::HaveNFreeProcs(number) } {
                true => free = number,
                false => too_many = number,
            }
        }
        free
    }
    #[cfg(not(feature = "pg15"))]
    {
        let mut free = 0;
        // SAFETY: takes and gives back a spinlock, and writes to a local variable.
        unsafe { pg_sys::HaveNFreeProcs(at_most, &mut free) };
        free
    }
}

/// Whether the session of this process, which has the PGPROC with the number `slot`, is idle outside a transaction at this
/// moment. A session with `track_activities = off` never is, nor is one whose state is just changing. It only reads
/// memory, so it may be asked under a lock.
pub fn is_idle(slot: usize, pid: u32) -> bool {
    // SAFETY: MyBEEntry points into the server's array of all backends' states, from before a backend authenticates its
    // client until it has left the process array. The array is never freed, and the index is checked. Others write to it
    // at any time: so each field is read once, and the state counts only if the counter says that nobody wrote meanwhile.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        let (own, other) = {
            let process = (*pg_sys::ProcGlobal).allProcs.add(slot);
            let other = (&raw const (*process).backendId).read_volatile();
            (pg_sys::MyBackendId as isize - 1, other as isize - 1)
        };
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        let (own, other) = (pg_sys::MyProcNumber as isize, slot as isize);
        if pg_sys::MyBEEntry.is_null() || !(0..pg_sys::MaxBackends as isize).contains(&other) {
            return false;
        }
        let entry = pg_sys::MyBEEntry.offset(other - own);
        let changes = || (&raw const (*entry).st_changecount).read_volatile();
        let before = changes();
        fence(Ordering::Acquire);
        let owner = (&raw const (*entry).st_procpid).read_volatile();
        let state = (&raw const (*entry).st_state).read_volatile();
        fence(Ordering::Acquire);
        let is_settled = before % 2 == 0 && changes() == before;
        is_settled && owner as u32 == pid && state == pg_sys::BackendState::STATE_IDLE
    }
}

/// The process title says, after user, database and address, what the process does.
pub fn set_process_title(activity: &CStr) {
    // SAFETY: writes to memory of this process.
    unsafe {
        #[cfg(feature = "pg15")]
        pg_sys::set_ps_display(activity.as_ptr());
        #[cfg(not(feature = "pg15"))]
        pg_sys::set_ps_display_with_len(activity.as_ptr(), activity.count_bytes());
    }
}

/// What `pg_stat_activity` shows of a process that waits for us: until 16 no extension has a wait event of its own.
///
/// # Safety
/// Only in the shmem_startup_hook, once.
pub unsafe fn new_wait_event(_name: &CStr) -> u32 {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    return pg_sys::PG_WAIT_EXTENSION;
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    // SAFETY: the server's table of wait events is there when the hook runs.
    return unsafe { pg_sys::WaitEventExtensionNew(_name.as_ptr()) };
}

/// A hash table in shared memory, with room for so many entries.
///
/// # Safety
/// Only in the shmem_startup_hook, once for each name, with memory that was reserved.
pub unsafe fn shared_hash(
    name: &CStr,
    room: i64,
    about: &mut pg_sys::HASHCTL,
    flags: i32,
) -> *mut pg_sys::HTAB {
    #[cfg(feature = "pg19")]
    // SAFETY: as the caller says.
    return unsafe { pg_sys::ShmemInitHash(name.as_ptr(), room, about, flags) };
    #[cfg(not(feature = "pg19"))]
    // SAFETY: as the caller says.
    return unsafe { pg_sys::ShmemInitHash(name.as_ptr(), room, room, about, flags) };
}

/// The timeouts that end a login while it is in the hook: `STATEMENT_TIMEOUT`, which stands for
/// `authentication_timeout` until authentication is done, and `TRANSACTION_TIMEOUT`
/// (`src/include/utils/timeout.h`).
#[cfg(any(feature = "pg15", feature = "pg16"))]
pub const LOGIN_TIMEOUTS: &[u32] = &[3];
#[cfg(not(any(feature = "pg15", feature = "pg16")))]
pub const LOGIN_TIMEOUTS: &[u32] = &[3, 8];

/// The server's message, and its DETAIL with an argument, for a walsender whose role lacks REPLICATION (`InitPostgres`).
#[cfg(feature = "pg15")]
pub const NOT_A_WALSENDER: (&CStr, Option<(&CStr, &CStr)>) = (
    c"must be superuser or replication role to start walsender",
    None,
);
#[cfg(not(feature = "pg15"))]
pub const NOT_A_WALSENDER: (&CStr, Option<(&CStr, &CStr)>) = (
    c"permission denied to start WAL sender",
    Some((
        c"Only roles with the %s attribute may start a WAL sender process.",
        c"REPLICATION",
    )),
);
