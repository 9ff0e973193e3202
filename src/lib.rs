//! `session_limit`: how many sessions a user may have open at once, decided inside the server,
//! exactly.
//!
//! The rooms, from the ground up; each knows only those before it:
//! - the crate `model`: what a limit is, which apply, who is in, what becomes of a login. No PostgreSQL in it.
//! - `pg`: what is borrowed from the server. It knows no limits.
//! - `error`: what users are told. `settings`: what they set.
//! - `shmem`: the tables and their locks. `mailbox`: what the worker is told. `stats_file`: what outlives a restart.
//! - `slot`: this backend's place in the table. `seat`: the seats that it takes. `lookup`: which limits apply. `record`: what is kept of a decision.
//!   `end_detail`: what a session that is told to end tells its client.
//! - `login`, `worker`, `servers`, `sql`: the ways in: a login, the clock, etcd, a user's statement.
//!
//! ARCHITECTURE.md has a login's way through them.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod pg;

mod error;
mod settings;

mod mailbox;
mod shmem;
mod stats_file;

mod end_detail;
mod lookup;
mod record;
mod seat;
mod slot;

mod login;
mod servers;
mod sql;
mod worker;

use pgrx::prelude::*;

pgrx::pg_module_magic!(name, version);

pgrx::extension_sql_file!("../sql/session_limit--0.2.0.sql", name = "session_limit");

/// Run by the postmaster as it starts. A backend that loads the library later has no shared memory
/// to count in: there labels can be set and removed, and each SQL function says what is missing.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    pg::backend::show_no_backtraces();
    sql::label_provider::register_provider();
    if !pg::backend::is_preloading() {
        return;
    }
    settings::define();
    shmem::reserve();
    login::install_hook();
    end_detail::install_hook();
    worker::register();
    servers::register();
}
