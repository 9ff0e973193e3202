//! Every message that a user can see.

mod label;
mod refusal;
mod report;
mod seat;
mod servers;

pub use label::*;
pub use refusal::*;
pub use seat::*;
pub use servers::*;

use pgrx::{PgLogLevel, PgSqlErrorCode};
use report::Report;
use std::ffi::CStr;

fn about(code: PgSqlErrorCode, before: &str, name: &[u8], after: &str) -> Report {
    Report::new(code, [before.as_bytes(), name, after.as_bytes()].concat())
}

pub fn undefined_role(name: &CStr) -> ! {
    let code = PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT;
    about(code, "role \"", name.to_bytes(), "\" does not exist").error()
}

pub fn cannot_log_in(name: &[u8]) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION;
    about(code, "role \"", name, "\" is not permitted to log in").error()
}

pub fn undefined_database(name: &CStr) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_CATALOG_NAME;
    about(code, "database \"", name.to_bytes(), "\" does not exist").error()
}

pub fn cannot_connect_to(name: &[u8]) -> ! {
    let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
    let after = "\" is not currently accepting connections";
    about(code, "database \"", name, after).error()
}

pub fn not_an_address(text: &str) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
    Report::new(code, format!("\"{text}\" is not a client's address")).error()
}

pub fn must_not_be_null(argument: &str) -> ! {
    let code = PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED;
    Report::new(code, format!("{argument} must not be null")).error()
}

pub fn nothing_to_label() -> ! {
    let code = PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED;
    Report::new(code, c"role and database must not both be null")
        .hint(c"Name the role or the database whose label is to change.")
        .error()
}

pub fn no_such_limit() -> ! {
    let code = PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT;
    Report::new(code, c"the label has no such limit")
        .hint(
            c"A limit is found by \"per\", \"database\", \"network\", \"count\" and \"across\". See session_limit.limits.",
        )
        .error()
}

pub fn may_not_explain(role: &[u8]) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE;
    about(
        code,
        "permission denied to explain a login of role \"",
        role,
        "\"",
    )
    .detail(c"Only roles with privileges of that role, or of the role \"pg_read_all_stats\", may.")
    .error()
}

/// A SQL function needs the table in shared memory.
pub fn not_preloaded() -> ! {
    let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
    Report::new(
        code,
        c"session_limit must be loaded via \"shared_preload_libraries\"",
    )
    .hint(
        c"Add session_limit to shared_preload_libraries in postgresql.conf and restart the server.",
    )
    .error()
}

/// Another library's ClientAuthentication hook is called after ours, and some limit replaces sessions.
pub fn another_library_decides_later() {
    let code = PgSqlErrorCode::ERRCODE_WARNING;
    let message = c"a library that is loaded after session_limit decides about logins, too";
    Report::new(code, message)
        .detail(c"A login that it refuses may have ended another session by then.")
        .hint(c"Name session_limit last in shared_preload_libraries.")
        .send(PgLogLevel::WARNING);
}

/// The server starts without the numbers that it stopped with.
pub fn stats_are_lost(file: &str, why: &str) {
    log(format!(
        "session_limit: could not read \"{file}\", statistics begin anew: {why}"
    ));
}

/// The server stops, and will start without its numbers.
pub fn stats_are_not_kept(file: &str, why: &std::io::Error) {
    log(format!(
        "session_limit: could not write \"{file}\", statistics are not kept: {why}"
    ));
}

fn log(message: String) {
    Report::new(PgSqlErrorCode::ERRCODE_IO_ERROR, message).send(PgLogLevel::LOG);
}
