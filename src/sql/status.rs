//! Whether the library does what it should, in one row for a monitor.

use crate::pg::{backend, memory};
use crate::settings::{self, Enforcement};
use crate::shmem;
use crate::sql::in_memory;
use crate::sql::viewer::Viewer;
use model::counters::Statistics;
use model::servers::place::Contact;
use pgrx::prelude::*;

/// The state of the library on this server, for everyone; how many logins wait only for those who may see who waits.
#[pg_extern(sql = false)]
#[expect(
    clippy::type_complexity,
    reason = "pgrx wants a row's columns named in the signature"
)]
fn current_status() -> TableIterator<
    'static,
    (
        name!(library_version, &'static str),
        name!(enforcement, &'static str),
        name!(worker_pid, Option<i32>),
        name!(slots_in_use, i64),
        name!(slots, i64),
        name!(waiting, Option<i64>),
        name!(stats_lost, bool),
        name!(etcd_reachable, Option<bool>),
    ),
> {
    let tables = shmem::memory();
    memory::require(0);
    let shared = tables.shared;
    let sees_waiters = Viewer::current().sees_all();
    let boottime = backend::boottime();
    let contact = tables.table.shared(|table| table.places.contact(boottime));
    let row = (
        env!("CARGO_PKG_VERSION"),
        match settings::current().enforcement {
            Enforcement::On => "on",
            Enforcement::Log => "log",
            Enforcement::Off => "off",
        },
        tables.mailbox.worker().map(|pid| pid as i32),
        shared.claims().count() as i64,
        shared.slots() as i64,
        sees_waiters.then(|| shared.waiters().count() as i64),
        shmem::ask_statistics(Statistics::lost),
        settings::servers::are_shared().then(|| contact == Contact::Good),
    );
    in_memory(std::iter::once(row))
}
