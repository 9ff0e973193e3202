//! `session_limit`: how many sessions a user may have open at once, decided inside the server,
//! exactly.
//!
//! Read in this order: `limit`, `network`, `grammar`, `apply`, `sessions`, `census`, `decide`, `replace`, `sweep`,
//! `ring`, `flood` and `tally` are the model and know nothing of PostgreSQL; `shmem` holds the model's tables
//! for all processes; `label` takes labels in, `catalog` and `facts` read what a login depends on; `login` is
//! the hook, `excess` what happens to a login that finds no room, `error` what its client is told, and
//! `notice` what that of a session is told that ends; `events` says what was decided, and `stats` counts it;
//! `worker` and `views` look after the table and show it, and `edit` writes labels; `rows`, `server` and `compat`
//! are what they share of PostgreSQL.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod apply;
mod census;
mod decide;
mod flood;
mod grammar;
mod limit;
mod network;
mod replace;
mod ring;
mod sessions;
mod sweep;
mod tally;

mod catalog;
mod compat;
mod edit;
mod error;
mod events;
mod excess;
mod explain;
mod facts;
mod label;
mod login;
mod notice;
mod rows;
mod server;
mod settings;
mod shmem;
mod stats;
mod views;
mod worker;

use pgrx::prelude::*;

// The unwinder becomes part of the library. As a library of its own, which a server else has no use for, it costs each
// login more than the hook does: a new process maps it, and at its end runs its destructors.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[link(name = "gcc_eh", kind = "static", modifiers = "-bundle")]
unsafe extern "C" {}

pgrx::pg_module_magic!(name, version);

pgrx::extension_sql_file!("../sql/session_limit--0.1.0.sql", name = "session_limit");

/// Run by the postmaster as it starts. A backend that loads the library later has no shared memory
/// to count in: there labels can be set and removed, and each SQL function says what is missing.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    label::register_provider();
    if !shmem::can_preload() {
        return;
    }
    settings::define();
    shmem::reserve();
    login::install_hook();
    notice::install_hook();
    worker::register();
}
