//! A session that was told to end tells its client why: the server's own message, with a DETAIL.

use crate::sessions::Notice;
use crate::{error, shmem};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::Cell;

struct Previous(Cell<pg_sys::emit_log_hook_type>);

// SAFETY: PostgreSQL runs this library in single-threaded processes.
unsafe impl Sync for Previous {}

static PREVIOUS: Previous = Previous(Cell::new(None));

pub fn install_hook() {
    // SAFETY: the postmaster is loading the library; the hook is a plain variable, and the previous
    // one is called.
    unsafe {
        PREVIOUS.0.set(pg_sys::emit_log_hook);
        pg_sys::emit_log_hook = Some(session_limit_emit_log);
    }
}

/// The server calls it for each message that it is about to log, before it sends it to the client.
#[pg_guard]
unsafe extern "C-unwind" fn session_limit_emit_log(message: *mut pg_sys::ErrorData) {
    // SAFETY: the server passes a message of its own, and takes a DETAIL that lives as long as it.
    // A session ends so in `ProcessInterrupts`, where it holds no lock and can be in no transaction:
    // nothing is looked up.
    unsafe {
        let ends = (*message).elevel == pg_sys::FATAL as i32
            && (*message).sqlerrcode == PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN as i32
            && (*message).detail.is_null();
        if let Some((notice, role)) = ends.then(shmem::my_notice).flatten() {
            let detail = match notice {
                Notice::Replaced(address) => error::replaced_by(role, address),
                Notice::Swept {
                    source,
                    in_use,
                    max,
                } => error::swept(source, in_use, max, role),
            };
            (*message).detail =
                pg_sys::MemoryContextStrdup((*message).assoc_context, detail.as_ptr());
        }
        if let Some(previous) = PREVIOUS.0.get() {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous(message));
        }
    }
}
