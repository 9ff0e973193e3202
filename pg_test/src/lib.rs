//! The test bench: gets a PostgreSQL, builds the extension and installs it there, starts throwaway
//! clusters, and logs in to them through real clients. It touches nothing outside the checkout's
//! `target` and cargo's folders; the one exception is said in [`place`].

pub mod bench;
pub mod chaos;
pub mod chaos_servers;
pub mod client;
pub mod cluster;
pub mod etcd;
pub mod fleet;
pub mod kept;
pub mod licences;
pub mod link;
pub mod packages;
pub mod picture;
pub mod place;
pub mod pooler;
pub mod regress;
pub mod server;

use std::fmt::Display;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Says what the bench is about to do, for someone who watches a terminal.
pub fn say(what: impl Display) {
    eprintln!("[pg_test] {what}");
}

/// Runs a command to its end and returns what it wrote; panics with all of it if it fails.
pub fn run(command: &mut Command) -> String {
    try_run(command).unwrap_or_else(|why| panic!("{why}"))
}

/// Runs a command to its end and returns what it wrote, or else why it failed.
pub fn try_run(command: &mut Command) -> Result<String, String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .output()
        .map_err(|error| format!("cannot run {command:?}: {error}"))?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&stderr);
    Err(format!("{command:?}: {status}\n{stdout}{stderr}"))
}

/// How long anything may take that is expected to happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until `found` has something, or panics after [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "waited {PATIENCE:?} in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}
