//! A session that was told to end tells its client why: the server's own message, with a DETAIL.

use crate::pg::backend::Local;
use crate::{error, slot};
use model::session::EndReason;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::Cell;

static PREVIOUS: Local<Cell<pg_sys::emit_log_hook_type>> = Local::new(Cell::new(None));

pub fn install_hook() {
    // SAFETY: the postmaster is loading the library; the hook is a plain variable, and the previous
    // one is called.
    unsafe {
        PREVIOUS.set(pg_sys::emit_log_hook);
        pg_sys::emit_log_hook = Some(session_limit_emit_log);
    }
}

/// The server calls it for each message that it is about to log, before it sends it to the client.
#[pg_guard]
unsafe extern "C-unwind" fn session_limit_emit_log(message: *mut pg_sys::ErrorData) {
    // SAFETY: the server passes a message of its own, and takes a DETAIL that lives as long as it. The message is
    // raised from ProcessInterrupts, where no lock is held, perhaps outside a transaction: so no catalog access here.
    unsafe {
        let ends = (*message).elevel == pg_sys::FATAL as i32
            && (*message).sqlerrcode == PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN as i32
            && (*message).detail.is_null();
        if let Some((reason, role)) = ends.then(slot::my_end_reason).flatten() {
            let detail = match reason {
                EndReason::Replaced(address) => error::replaced_by(role, address),
                EndReason::RoleDropped => error::role_dropped(),
                EndReason::Swept {
                    source,
                    unit,
                    in_use,
                    max,
                } => error::swept(source, unit, in_use, max, role),
            };
            (*message).detail =
                pg_sys::MemoryContextStrdup((*message).assoc_context, detail.as_ptr());
            // From 19 on the server says who sent the signal, in the log alone and in place of the DETAIL.
            (*message).detail_log = std::ptr::null_mut();
        }
        if let Some(previous) = PREVIOUS.get() {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous(message));
        }
    }
}
