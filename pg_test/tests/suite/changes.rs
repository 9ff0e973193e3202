//! Roles and limits that change while sessions are open.

use crate::scene::{refused, wait_until};
use pg_test::client::Target;
use pg_test::cluster::Cluster;
use pg_test::server::Server;

tests![
    limits_change_while_connected,
    a_role_is_renamed_while_connected,
    a_role_is_dropped_while_connected
];

fn limits_change_while_connected(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.max_wait", "0")]);
    cluster.sql(&["CREATE ROLE alice LOGIN", "CREATE DATABASE app"]);
    let alice = cluster.login_of("alice").to("app");
    let mut sessions = vec![
        alice.login().expect("no limit"),
        alice.login().expect("no limit"),
    ];
    let message = |target: &Target| {
        target
            .login()
            .err()
            .map(|refusal| refusal.message().to_string())
    };

    cluster.sql(&["ALTER ROLE alice CONNECTION LIMIT 2"]);
    assert_eq!(
        message(&alice).as_deref(),
        Some(r#"too many connections for role "alice""#)
    );
    cluster.sql(&[
        "ALTER ROLE alice CONNECTION LIMIT -1",
        "ALTER DATABASE app CONNECTION LIMIT 2",
    ]);
    assert_eq!(
        message(&alice).as_deref(),
        Some(r#"too many connections for database "app""#)
    );
    cluster.sql(&["ALTER DATABASE app CONNECTION LIMIT 3"]);
    sessions.push(alice.login().expect("the third of three"));
    assert_eq!(
        message(&alice).as_deref(),
        Some(r#"too many connections for database "app""#)
    );
    assert!(sessions.iter_mut().all(|session| session.is_alive()));
}

fn a_role_is_renamed_while_connected(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.max_wait", "0")]);
    cluster.sql(&[
        "CREATE ROLE alice LOGIN CONNECTION LIMIT 1",
        "CREATE EXTENSION session_limit",
    ]);
    let _session = cluster.login_of("alice").login().expect("the first");
    cluster.sql(&["ALTER ROLE alice RENAME TO alicia"]);
    assert_eq!(refused(&cluster.login_of("alice")).sqlstate(), "28000");
    let refusal = refused(&cluster.login_of("alicia"));
    assert_eq!(
        refusal.message(),
        r#"too many connections for role "alicia""#
    );
    let mut superuser = cluster.superuser();
    assert_eq!(
        superuser.value("SELECT usename FROM session_limit.sessions WHERE NOT exempt"),
        "alicia"
    );
    assert_eq!(
        superuser.value("SELECT source FROM session_limit.usage"),
        "CONNECTION LIMIT of role alicia"
    );
}

fn a_role_is_dropped_while_connected(server: &Server) {
    let cluster = Cluster::start(
        server,
        &[
            ("session_limit.max_wait", "0"),
            ("session_limit.max_sessions_per_role", "1"),
        ],
    );
    cluster.sql(&["CREATE ROLE alice LOGIN", "CREATE EXTENSION session_limit"]);
    let session = cluster.login_of("alice").login().expect("the first");
    cluster.sql(&["DROP ROLE alice"]);
    let mut superuser = cluster.superuser();
    let sql =
        "SELECT pid, coalesce(usename, 'dropped') FROM session_limit.sessions WHERE NOT exempt";
    assert_eq!(
        superuser.query(sql),
        [[session.pid.to_string(), "dropped".to_string()]]
    );
    assert_eq!(
        superuser.value("SELECT in_use FROM session_limit.usage"),
        "1"
    );
    // A role of the same name is another role.
    superuser.query("CREATE ROLE alice LOGIN");
    let _new = cluster
        .login_of("alice")
        .login()
        .expect("the new role's first");
    assert_eq!(refused(&cluster.login_of("alice")).sqlstate(), "53300");
    drop(session);
    let sql = "SELECT count(*) FROM session_limit.sessions WHERE NOT exempt";
    wait_until(&mut superuser, sql, "1");
}
