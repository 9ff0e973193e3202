//! `session_limit`: how many sessions a user may have open at once, decided inside the server,
//! exactly.
//!
//! Read in this order: `limit`, `sessions` and `decide` are the model and know nothing of
//! PostgreSQL; `shmem` holds the model's table for all processes; `login` is the hook, `excess`
//! what happens to a login that finds no room, `error` what its client is told; `worker` and
//! `views` look after the table and show it.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod decide;
mod limit;
mod sessions;

mod catalog;
mod compat;
mod error;
mod events;
mod excess;
mod login;
mod settings;
mod shmem;
mod views;
mod worker;

use pgrx::prelude::*;

pgrx::pg_module_magic!(name, version);

pgrx::extension_sql_file!("../sql/session_limit--0.1.0.sql", name = "session_limit");

/// Run by the postmaster as it starts. A backend that loads the library later has no shared memory
/// to count in: there only the SQL functions remain, each of which says so.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    if !shmem::can_preload() {
        return;
    }
    settings::define();
    shmem::reserve();
    login::install_hook();
    worker::register();
}
