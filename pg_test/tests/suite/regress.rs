//! PostgreSQL's own regression tests pass with the library preloaded and limits set. This is the beginning
//! of them; `cargo regress` runs all, and the isolation tests.

use pg_test::regress::{REGRESS, Tests};
use pg_test::server::Server;
use pg_test::{place, say};
use std::fs;

tests![the_servers_own_tests];

/// So many lines of the schedule: some twenty tests run at once in several of them.
const GROUPS: usize = 10;

fn the_servers_own_tests(server: &Server) {
    // To get them is some 35 MB: that is done for one major, as far as no installation brings them.
    if server.major != 15 && Tests::shipped(server).is_none() {
        return;
    }
    let work = format!("run/{}-regress", std::process::id());
    let work = place::servers().join(work);
    let Some(tests) = Tests::get(server, None, &work) else {
        return say("its tests are not to be had: nothing was tested");
    };
    let compare = || tests.compare(server, &REGRESS, Some(GROUPS));
    let mut compared = compare();
    if !compared.broken().is_empty() {
        say("some fail only with the library: once more, in case that was by chance");
        compared = compare();
    }
    let diffs = fs::read_to_string(&compared.diffs).unwrap_or_default();
    let summary = compared.summary();
    assert!(compared.broken().is_empty(), "{summary}\n{diffs}");
    let (tests, logins) = (compared.alone.len(), &compared.logins);
    // Each test is at least one login; and something was tested.
    assert!(logins.admitted >= tests && logins.refused == 0, "{summary}");
    let passed = compared.alone.values().filter(|passed| **passed).count();
    assert!(passed * 10 > tests * 9, "{summary}");
    fs::remove_dir_all(work).expect("remove the tests");
}
