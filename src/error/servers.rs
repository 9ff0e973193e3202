//! What the log says about etcd and the other servers.

use crate::error::report::Report;
use model::encoding;
use pgrx::{PgLogLevel, PgSqlErrorCode};

/// The library that speaks with etcd cannot be used.
pub fn no_etcd_library(why: &str) {
    let code = PgSqlErrorCode::ERRCODE_UNDEFINED_FILE;
    Report::new(
        code,
        c"could not open the library \"session_limit_servers\"",
    )
    .detail(text(why))
    .hint(c"Install it beside session_limit, or leave session_limit.etcd_endpoints empty.")
    .send(PgLogLevel::WARNING);
}

/// A setting about etcd is wrong. `why` begins with the end of its name.
pub fn bad_etcd_setting(why: &str) {
    let code = PgSqlErrorCode::ERRCODE_CONFIG_FILE_ERROR;
    Report::new(
        code,
        c"limits across servers are out of use because a setting is wrong",
    )
    .detail(text(&format!("session_limit.etcd_{why}")))
    .send(PgLogLevel::WARNING);
}

/// Others may take a server for gone too early, or too late.
pub fn server_timeouts_differ(name: &str, timeout_ms: u64) {
    let code = PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION;
    let message = format!(
        "session_limit: server \"{name}\" has another session_limit.server_timeout: {timeout_ms} ms"
    );
    Report::new(code, text(&message)).send(PgLogLevel::LOG);
}

/// etcd stores so many bytes.
pub fn etcd_is_large(bytes: u64) {
    let code = PgSqlErrorCode::ERRCODE_DISK_FULL;
    let megabytes = bytes >> 20;
    Report::new(code, c"session_limit: etcd is too large to be written to")
        .detail(text(&format!(
            "It has {megabytes} MB; from 1024 MB on nothing is written, so that others can write."
        )))
        .hint(c"Switch on etcd's auto-compaction, and defragment it.")
        .send(PgLogLevel::WARNING);
}

/// Its place would be one too many.
pub fn no_room_for_count() {
    let code = PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED;
    Report::new(
        code,
        c"session_limit: there is no room for another count across servers",
    )
    .detail(c"For its limit session_limit.on_unreachable holds, as if etcd could not be reached.")
    .hint(c"There is room for 8 of one login, and for twice as many as there can be backends of all: raise max_connections, or set fewer such limits.")
    .send(PgLogLevel::WARNING);
}

fn text(text: &str) -> Vec<u8> {
    encoding::bytes(text)
}
