//! A short chaos run: once through everything that `cargo chaos` does for minutes, and what must hold
//! meanwhile and at each quiet point.

use pg_test::chaos;
use pg_test::server::Server;
use std::time::Duration;

tests![what_must_hold_holds_through_everything];

/// The plan is the same each time; who comes first is not.
const SEED: u64 = 1;

fn what_must_hold_holds_through_everything(server: &Server) {
    let outcome = chaos::run(server, SEED, Duration::ZERO);
    assert_eq!(outcome.violations, 0, "each was printed, with what was set");
    let counts = outcome.counts;
    assert!(
        counts.admitted > 500 && counts.refused > 100 && counts.replaced > 0,
        "{counts:?}"
    );
    assert!(
        counts.seats > 100 && counts.seats_refused > 10 && counts.looks > 100,
        "{counts:?}"
    );
    assert!(counts.crashes >= 3 && counts.restarts >= 4, "{counts:?}");
}
