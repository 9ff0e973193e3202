//! Logins that arrive together: each time exactly the limit is admitted.

use pg_test::client::{Session, Target};
use pg_test::cluster::Cluster;
use pg_test::server::Server;

tests![
    two_at_once,
    fifty_at_once,
    fifty_at_once_under_the_setting,
    fifty_at_once_under_a_databases_limit,
    sixty_at_once_under_four_kinds_of_limits
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
    let app = cluster.login_of("alice").to("app");
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

/// Of each: a role, at most 3; an address, 4; the team, which is four of the six roles, 6; the
/// database, 10.
fn sixty_at_once_under_four_kinds_of_limits(server: &Server) {
    let cluster = Cluster::start(server, &[("max_connections", "120")]);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE team",
        "CREATE DATABASE app",
    ]);
    for role in 0..6 {
        let team = if role < 4 { "IN ROLE team" } else { "" };
        cluster.sql(&[&format!("CREATE ROLE r{role} LOGIN {team}")]);
    }
    cluster.sql(&[
        r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"max": 6, "per": "group"}'"#,
        r#"SECURITY LABEL FOR session_limit ON DATABASE app IS '{"max": 10}'"#,
    ]);
    let of_all = r#"{"limits": [{"max": 3, "per": "role"}, {"max": 4, "per": "address"}]}"#;
    for (round, max_wait) in (0..50).zip(["0", "100ms"].into_iter().cycle()) {
        cluster.set(&[
            ("session_limit.cluster_limits", of_all),
            ("session_limit.max_wait", max_wait),
        ]);
        let targets: Vec<Target> = (0..60)
            .map(|login| one_of_sixty(&cluster, login, round))
            .collect();
        let sessions = storm(&targets);
        let counts = |of: &Target| counts(&targets, &sessions, of);
        for (target, session) in targets.iter().zip(&sessions) {
            let counts = counts(target);
            assert!(
                counts.iter().all(|(in_use, max)| in_use <= max),
                "round {round}: {counts:?}"
            );
            let full = counts.iter().any(|(in_use, max)| in_use == max);
            assert!(
                session.is_some() || full,
                "round {round}: refused, with room: {target:?} {counts:?}"
            );
        }
        drop(sessions);
        (0..6).for_each(|role| cluster.wait_until_gone(&format!("r{role}")));
    }
}

fn one_of_sixty(cluster: &Cluster, login: usize, round: usize) -> Target {
    let login = (login * 7 + round) % 60;
    Target {
        database: Some("app".to_string()),
        ..cluster.login_from(
            &format!("r{}", login % 6),
            &format!("127.0.0.{}", 1 + login / 6 % 3),
        )
    }
}

/// All at once; whoever is in stays.
pub fn storm(targets: &[Target]) -> Vec<Option<Session>> {
    let mut connections: Vec<_> = targets.iter().map(Target::connect).collect();
    for (connection, target) in connections.iter_mut().zip(targets) {
        connection.send_startup(target);
    }
    let outcome = |connection: pg_test::client::Connection| {
        let outcome = connection.outcome();
        outcome
            .map_err(|refusal| assert_eq!(refusal.sqlstate(), "53300", "{refusal:?}"))
            .ok()
    };
    connections.into_iter().map(outcome).collect()
}

/// For each limit on such a login, how many are in that it counts, and its number.
fn counts(targets: &[Target], sessions: &[Option<Session>], of: &Target) -> Vec<(usize, usize)> {
    let is_member = |target: &Target| ["r0", "r1", "r2", "r3"].contains(&target.user.as_str());
    let count = |covers: &dyn Fn(&Target) -> bool| {
        let targets = targets.iter().zip(sessions);
        targets
            .filter(|(target, session)| session.is_some() && covers(target))
            .count()
    };
    let mut counts = vec![
        (count(&|other| other.user == of.user), 3),
        (count(&|other| other.endpoint == of.endpoint), 4),
        (count(&|_| true), 10),
    ];
    if is_member(of) {
        counts.push((count(&is_member), 6));
    }
    counts
}
