//! Other libraries' ClientAuthentication hooks, before ours and after it.

use crate::scene::refused;
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use std::time::{Duration, Instant};

tests![before_ours, after_ours];

fn before_ours(server: &Server) {
    beside(server, |others| format!("{others}, session_limit"));
}

fn after_ours(server: &Server) {
    beside(server, |others| format!("session_limit, {others}"));
}

/// Every hook does its work: a good login, a refused one and one with a wrong password.
fn beside(server: &Server, libraries: fn(&str) -> String) {
    // Not every server comes with auth_delay.
    let has_auth_delay = server.has_library("auth_delay");
    let others = if has_auth_delay {
        "session_limit_probe, auth_delay"
    } else {
        "session_limit_probe"
    };
    let libraries = libraries(others);
    let mut settings = vec![
        ("shared_preload_libraries", libraries.as_str()),
        ("log_line_prefix", "%u: "),
    ];
    if has_auth_delay {
        settings.push(("auth_delay.milliseconds", "300"));
    }
    let cluster = Cluster::plain(server, &settings);
    cluster.sql(&["CREATE ROLE alice LOGIN CONNECTION LIMIT 1 PASSWORD 'right'"]);

    let _first = cluster.login_of("alice").login().expect("the first");
    assert_eq!(
        cluster
            .log()
            .matches("alice: LOG:  probe: status 0")
            .count(),
        1
    );
    assert_eq!(refused(&cluster.login_of("alice")).sqlstate(), "53300");
    // Called after ours, it does not hear of who was refused there.
    let heard = if libraries.starts_with("session_limit,") {
        1
    } else {
        2
    };
    assert_eq!(
        cluster
            .log()
            .matches("alice: LOG:  probe: status 0")
            .count(),
        heard
    );

    cluster.require_passwords();
    let start = Instant::now();
    let printed = cluster.psql_with_password("alice", "wrong", "");
    assert!(
        printed.contains("password authentication failed"),
        "{printed}"
    );
    assert!(!has_auth_delay || start.elapsed() >= Duration::from_millis(300));
    assert_eq!(
        cluster
            .log()
            .matches("alice: LOG:  probe: status -1")
            .count(),
        1
    );
}
