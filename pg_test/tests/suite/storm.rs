//! Logins that arrive together: each time exactly the limit is admitted.

use pg_test::client::{Session, Target};
use pg_test::cluster::Cluster;
use pg_test::server::Server;

tests![
    two_at_once,
    fifty_at_once,
    fifty_at_once_under_the_setting,
    fifty_at_once_under_a_databases_limit
];

fn two_at_once(server: &Server) {
    under_limits_of_roles(server, 2, 200);
}

fn fifty_at_once(server: &Server) {
    under_limits_of_roles(server, 50, 100);
}

/// With `CONNECTION LIMIT`, so that the server's own check comes after ours: what we admit it must
/// not refuse.
fn under_limits_of_roles(server: &Server, logins: usize, rounds: usize) {
    let cluster = Cluster::start(server, &[]);
    cluster.sql(&["CREATE EXTENSION session_limit"]);
    for limit in [1, 10] {
        cluster.sql(&[&format!(
            "CREATE ROLE r{limit} LOGIN CONNECTION LIMIT {limit}"
        )]);
    }
    for max_wait in ["0", "100ms"] {
        cluster.set(&[("session_limit.max_wait", max_wait)]);
        for limit in [1, 10] {
            let role = format!("r{limit}");
            for round in 0..rounds {
                let expected = limit.min(logins);
                let admitted = admitted(&cluster.login_of(&role), logins, r#"role "r"#);
                assert_eq!(
                    admitted, expected,
                    "of {logins} under {limit}, max_wait {max_wait}, round {round}"
                );
                cluster.wait_until_gone(&role);
            }
        }
    }
}

fn fifty_at_once_under_the_setting(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.max_sessions_per_role", "3")]);
    cluster.sql(&["CREATE EXTENSION session_limit", "CREATE ROLE alice LOGIN"]);
    for _ in 0..20 {
        assert_eq!(
            admitted(&cluster.tcp_login_of("alice"), 50, r#"role "alice""#),
            3
        );
        cluster.wait_until_gone("alice");
    }
}

fn fifty_at_once_under_a_databases_limit(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN",
        "CREATE DATABASE app CONNECTION LIMIT 5",
    ]);
    let app = Target {
        database: Some("app".to_string()),
        ..cluster.login_of("alice")
    };
    for _ in 0..20 {
        assert_eq!(admitted(&app, 50, r#"database "app""#), 5);
        cluster.wait_until_gone("alice");
    }
}

/// How many of so many logins at once are admitted; the others must be refused for this limit.
fn admitted(target: &Target, logins: usize, limit: &str) -> usize {
    let outcomes = target.storm(logins);
    for refusal in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert_eq!(refusal.sqlstate(), "53300", "{refusal:?}");
        assert!(
            refusal
                .message()
                .starts_with(&format!("too many connections for {limit}")),
            "{refusal:?}"
        );
    }
    let admitted: Vec<Session> = outcomes.into_iter().filter_map(Result::ok).collect();
    admitted.len()
}
