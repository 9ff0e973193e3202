//! This process, and what it can do to others.

use crate::pg::{compat, ffi};
use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgTryBuilder, pg_sys};
use std::cell::Cell;
use std::ffi::CStr;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, RefUnwindSafe};

/// A variable of this process alone, for a `static`.
pub struct Local<T>(T);

// SAFETY: PostgreSQL runs this library in processes of one thread.
unsafe impl<T> Sync for Local<T> {}

impl<T> Local<T> {
    pub const fn new(value: T) -> Local<T> {
        Local(value)
    }
}

impl<T> Deref for Local<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Whether the postmaster is loading the library: the only time at which shared memory can be asked for, and at which
/// settings of the postmaster can be defined.
pub fn is_preloading() -> bool {
    // SAFETY: reads a variable of this process.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Whether the server was started by `pg_upgrade`.
pub fn is_upgrading() -> bool {
    // SAFETY: reads a variable of this process.
    unsafe { pg_sys::IsBinaryUpgrade }
}

/// Whether the user of this transaction is a superuser.
pub fn is_superuser() -> bool {
    // SAFETY: label provider and object access hook run in a transaction.
    unsafe { pg_sys::superuser() }
}

/// The role whose privileges this statement has.
pub fn user() -> u32 {
    // SAFETY: reads a variable of this process.
    unsafe { pg_sys::GetUserId() }.into()
}

/// The database of this process; 0 if it has none.
pub fn own_database() -> u32 {
    // SAFETY: reads a variable of this process.
    unsafe { pg_sys::MyDatabaseId }.into()
}

/// The bytes of a UUID that nobody can guess (RFC 9562, version 4). None if the server has no random numbers.
pub fn random_uuid() -> Option<[u8; 16]> {
    let mut bytes = [0u8; 16];
    // SAFETY: writes so many bytes to a local variable.
    if !unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) } {
        return None;
    }
    let [_, _, _, _, _, _, version, _, variant, ..] = &mut bytes;
    *version = *version & 0x0f | 0x40;
    *variant = *variant & 0x3f | 0x80;
    Some(bytes)
}

/// A number that nobody else has drawn, and not 0. If the server has no random numbers, it comes from the clock and the
/// process ID.
pub fn random_number() -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: writes so many bytes to a local variable.
    let drawn = unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) };
    let number = match drawn {
        true => u64::from_ne_bytes(bytes),
        false => tick().rotate_left(32) ^ u64::from(std::process::id()),
    };
    number.max(1)
}

/// Whether this process, a background worker, was told to end, or has no postmaster any more.
pub fn is_to_end() -> bool {
    // SAFETY: a variable of this process, which its signal handler sets.
    let is_told = unsafe { (&raw const pg_sys::ShutdownRequestPending).read_volatile() != 0 };
    is_told || !has_postmaster()
}

/// Whether the postmaster lives. Without it the server is to start anew, and waits for all processes to end before.
pub fn has_postmaster() -> bool {
    // SAFETY: looks at a pipe. It raises nothing.
    unsafe { pg_sys::PostmasterIsAliveInternal() }
}

/// The setting `cluster_name`.
pub fn cluster_name() -> String {
    // SAFETY: a string of the server's settings, which nobody changes while it runs.
    let name = unsafe { CStr::from_ptr(pg_sys::cluster_name) };
    name.to_string_lossy().into_owned()
}

/// The server's port.
pub fn port() -> i32 {
    // SAFETY: a variable of this process.
    unsafe { pg_sys::PostPortNumber }
}

pub fn host_name() -> String {
    let mut name = [0u8; 256];
    // SAFETY: writes at most so many bytes to a local variable; the last byte stays zero.
    unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// A text of any database, for this one: if it is none in this one's encoding, with escapes.
pub fn in_own_encoding(text: &[u8]) -> Vec<u8> {
    // SAFETY: reads the bytes of the text, and variables of this process. It raises nothing when told so.
    let is_valid = unsafe { pg_sys::pg_verifymbstr(text.as_ptr().cast(), text.len() as i32, true) };
    match is_valid {
        true => text.to_vec(),
        false => text.escape_ascii().collect(),
    }
}

/// Microseconds since 2000-01-01, as in a `timestamptz`: the wall clock, for what is shown. It can be set.
pub fn now() -> i64 {
    // SAFETY: only reads the clock.
    unsafe { ffi::GetCurrentTimestamp() }
}

/// The tick: microseconds since the machine started, the same in every process. Nobody can set this clock.
pub fn tick() -> u64 {
    microseconds_of(libc::CLOCK_MONOTONIC)
}

/// As `tick`, but this clock goes on while the machine is suspended.
pub fn boottime() -> u64 {
    microseconds_of(libc::CLOCK_BOOTTIME)
}

/// One of these two.
fn microseconds_of(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes to a local variable. It cannot fail for these clocks.
    unsafe { libc::clock_gettime(clock, &mut now) };
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// Errors show a client nothing of the sources, whatever the server's environment asks for: pgrx would add a backtrace to
/// the DETAIL of a panic.
pub fn show_no_backtraces() {
    const VARIABLE: &str = "RUST_LIB_BACKTRACE";
    let before = std::env::var_os(VARIABLE);
    // std looks at the variable once, for this library. Then others find it as it was.
    // SAFETY: the process has one thread.
    unsafe {
        std::env::set_var(VARIABLE, "0");
        let _ = std::backtrace::Backtrace::capture();
        match before {
            Some(value) => std::env::set_var(VARIABLE, value),
            None => std::env::remove_var(VARIABLE),
        }
    }
}

/// When this process started, by the wall clock.
pub fn started() -> i64 {
    // SAFETY: reads a variable of this process.
    unsafe { pg_sys::MyStartTimestamp }
}

/// Number of PGPROCs that a client, a worker or a walsender can have. A slot number is below it.
pub fn max_backends() -> usize {
    // SAFETY: set before the server asks for shared memory, and never changed.
    unsafe { pg_sys::MaxBackends as usize }
}

/// Wakes the process that has the PGPROC with this number.
pub fn wake(slot: usize) {
    // SAFETY: the array of PGPROCs is never freed, and a slot number is an index of it. SetLatch needs nothing of the
    // caller. A process that got the PGPROC meanwhile takes the wake-up for a spurious one.
    unsafe { pg_sys::SetLatch(&raw mut (*(*pg_sys::ProcGlobal).allProcs.add(slot)).procLatch) };
}

/// The ID of the process that has the PGPROC with this number now; 0 if none has.
pub fn process_at(slot: usize) -> u32 {
    // SAFETY: the array of PGPROCs is never freed, and a slot number is an index of it. Others write the field at any time.
    unsafe {
        let process = (*pg_sys::ProcGlobal).allProcs.add(slot);
        (&raw const (*process).pid).read_volatile() as u32
    }
}

/// Tells a session's process, and what it has started, to end.
pub fn end_session(pid: u32) {
    // SAFETY: only sends a signal. As with `pg_terminate_backend`, the process may be gone by now, and its ID is given
    // to another only after all other IDs were.
    unsafe { libc::kill(-(pid as i32), libc::SIGTERM) };
}

/// Whether no process with this ID has a PGPROC.
pub fn is_gone(pid: u32) -> bool {
    // SAFETY: the caller is a process with a PGPROC, as a lock is taken; the result is only compared.
    unsafe { pg_sys::BackendPidGetProc(pid as i32).is_null() }
}

/// Whether this session says of itself that it is idle.
pub fn is_idle() -> bool {
    // SAFETY: this process's own state, in memory that is never freed.
    let state = unsafe { pg_sys::MyBEEntry.as_ref().map(|entry| entry.st_state) };
    state == Some(pg_sys::BackendState::STATE_IDLE)
}

pub fn is_standby() -> bool {
    // SAFETY: reads shared memory.
    unsafe { ffi::RecoveryInProgress() }
}

/// Counts the invalidation messages that this process has received. What was read from the catalogs is current as long
/// as the number stays.
pub fn receive_invalidations() -> u64 {
    // SAFETY: in a transaction, and in none of the places where caches are being built.
    unsafe {
        ffi::AcceptInvalidationMessages();
        pg_sys::SharedInvalidMessageCounter
    }
}

/// Reads the configuration file anew, as the server's own main loops do.
pub fn reload_settings() {
    // SAFETY: the flag is a variable of this process. The caller runs no statement.
    unsafe {
        pg_sys::ConfigReloadPending = 0;
        pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
    }
}

/// From now on a lock on a catalog that is not granted within a second is an error: the worker must see that the server
/// is stopping.
pub fn never_wait_long_for_a_lock() {
    // SAFETY: a setting of the server and a value that it takes.
    unsafe {
        pg_sys::SetConfigOption(
            c"lock_timeout".as_ptr(),
            c"1s".as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        );
    }
}

/// Runs `act` while no signal ends this process: whoever is told to end meanwhile ends at the next interrupt.
pub fn uninterrupted(act: impl FnOnce()) {
    // SAFETY: HOLD_INTERRUPTS and RESUME_INTERRUPTS change this variable in the same way. If `act` raises, the server
    // sets it to 0.
    unsafe {
        pg_sys::InterruptHoldoffCount += 1;
        act();
        pg_sys::InterruptHoldoffCount -= 1;
    }
}

/// For each of the server's timeouts that can end a login: when it does by the wall clock, and the tick of that.
static TIMEOUTS: Local<Cell<[(i64, u64); compat::LOGIN_TIMEOUTS.len()]>> =
    Local::new(Cell::new([(0, 0); compat::LOGIN_TIMEOUTS.len()]));

/// The tick at which the server's own timeouts end a login that is still in the hook; None without any. Each is looked up
/// soon after it was started, and then not again: later the wall clock may have been set.
pub fn login_timeout() -> Option<u64> {
    let mut timeouts = TIMEOUTS.get();
    let mut first = None;
    for (id, timeout) in compat::LOGIN_TIMEOUTS.iter().zip(&mut timeouts) {
        // SAFETY: both functions only read variables of this process.
        let finish =
            unsafe { ffi::get_timeout_active(*id).then(|| ffi::get_timeout_finish_time(*id)) };
        let Some(finish) = finish else {
            continue;
        };
        if timeout.0 != finish {
            let left = u64::try_from(finish - now()).unwrap_or(0);
            *timeout = (finish, tick() + left);
        }
        first = first.into_iter().chain([timeout.1]).min();
    }
    TIMEOUTS.set(timeouts);
    first
}

/// Reads catalogs in a subtransaction. If that raises an error, everything that was taken is given back, and the error's
/// message is returned.
pub fn try_to_read<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    // SAFETY: in a transaction. Memory context and resource owner are put back, as in the server's own procedural
    // languages.
    let (context, owner) = unsafe {
        let before = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::CurrentMemoryContext = before.0;
        before
    };
    // SAFETY: the ones from before the subtransaction, which outlive it.
    let ended = || unsafe {
        pg_sys::CurrentMemoryContext = context;
        pg_sys::CurrentResourceOwner = owner;
    };
    caught(
        || {
            let result = read();
            // SAFETY: the subtransaction that was begun above.
            unsafe { pg_sys::ReleaseCurrentSubTransaction() };
            ended();
            result
        },
        || {
            // SAFETY: the subtransaction that was begun above.
            unsafe { pg_sys::RollbackAndReleaseCurrentSubTransaction() };
            ended();
        },
    )
}

/// Acts in a transaction, in a process that is in none. If that raises an error, the transaction is rolled back, and the
/// error's message is returned.
pub fn in_transaction(act: impl FnOnce()) -> Result<(), String> {
    // SAFETY: the caller is a process that is connected and in no transaction.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
    }
    caught(
        || {
            act();
            // SAFETY: the transaction that was started above.
            unsafe { pg_sys::CommitTransactionCommand() };
        },
        // SAFETY: the transaction that was started above.
        || unsafe { pg_sys::AbortCurrentTransaction() },
    )
}

/// What `act` returns; or, after `clean_up`, the message of the error that it raised.
fn caught<T>(act: impl FnOnce() -> T, clean_up: impl Fn() + RefUnwindSafe) -> Result<T, String> {
    PgTryBuilder::new(AssertUnwindSafe(|| Ok(act())))
        .catch_others(|error: CaughtError| {
            clean_up();
            let (CaughtError::PostgresError(report)
            | CaughtError::ErrorReport(report)
            | CaughtError::RustPanic {
                ereport: report, ..
            }) = error;
            Err(report.message().to_string())
        })
        .execute()
}
