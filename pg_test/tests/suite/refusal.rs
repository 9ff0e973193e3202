//! What a refused client is told, and that a login which the server refuses takes nobody's place.

use crate::scene::{admitted, refused, wait_until};
use pg_test::client::Target;
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use pg_test::wait_for;

tests![
    who_cannot_wait_is_told_why,
    under_a_limit_of_0_nobody_waits,
    over_a_roles_limit,
    over_a_databases_limit,
    many_sessions_are_summed_up,
    a_limit_of_zero,
    the_servers_own_refusals_are_the_same,
    the_servers_own_refusals_take_no_place,
    superusers,
    names_with_odd_characters,
];

fn over_a_roles_limit(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.max_sessions_per_role", "1")]);
    cluster.sql(&[
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN CONNECTION LIMIT 2",
    ]);

    let alice = cluster
        .tcp_login_of("alice")
        .login()
        .expect("alice's first");
    let refusal = refused(&cluster.login_of("alice"));
    assert!(refusal.authenticated, "libpq would try again without TLS");
    assert_eq!(refusal.sqlstate(), "53300");
    assert_eq!(
        refusal.message(),
        r#"too many connections for role "alice""#
    );
    let detail = format!(
        "The limit is 1 session (session_limit.max_sessions_per_role); 1 is in use: pid {} from 127.0.0.1 since 20",
        alice.pid
    );
    assert!(
        refusal.detail().starts_with(&detail),
        "{}",
        refusal.detail()
    );
    assert_eq!(
        refusal.hint(),
        "Close one of these sessions, or ask for the limit to be raised."
    );

    let _bob = [
        cluster.login_of("bob").login().expect("one"),
        cluster.login_of("bob").login().expect("two"),
    ];
    let refusal = refused(&cluster.login_of("bob"));
    let detail = "The limit is 2 sessions (CONNECTION LIMIT of role bob); 2 are in use: pid ";
    assert!(refusal.detail().starts_with(detail), "{}", refusal.detail());
    assert!(
        refusal.detail().contains(" from a local socket since "),
        "{}",
        refusal.detail()
    );
    assert!(
        !refusal.detail().contains(&format!("pid {} ", alice.pid)),
        "{}",
        refusal.detail()
    );
}

fn over_a_databases_limit(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.max_wait", "0")]);
    let create = [
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
        "CREATE DATABASE app CONNECTION LIMIT 2",
    ];
    cluster.sql(&create);
    let bob = cluster.login_of("bob").to("app").login().expect("bob");
    let alice = cluster.login_of("alice").to("app").login().expect("alice");
    let refusal = refused(&cluster.login_of("alice").to("app"));
    assert_eq!(
        (refusal.sqlstate(), refusal.message()),
        ("53300", r#"too many connections for database "app""#)
    );
    let detail = format!(
        "The limit is 2 sessions (CONNECTION LIMIT of database app); 2 are in use, 1 of them by this role: pid {} ",
        alice.pid
    );
    assert!(
        refusal.detail().starts_with(&detail),
        "{}",
        refusal.detail()
    );
    let others = format!("pid {} ", bob.pid);
    assert!(
        !refusal.detail().contains(&others),
        "bob's session is nobody else's business: {}",
        refusal.detail()
    );
    // Sessions elsewhere are not counted.
    cluster.login_of("alice").login().expect("another database");
}

fn many_sessions_are_summed_up(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.max_wait", "0")]);
    cluster.sql(&["CREATE ROLE alice LOGIN CONNECTION LIMIT 7"]);
    let _sessions: Vec<_> = (0..7)
        .map(|_| cluster.login_of("alice").login().expect("room"))
        .collect();
    let refusal = refused(&cluster.login_of("alice"));
    assert_eq!(
        refusal.detail().matches("pid ").count(),
        5,
        "{}",
        refusal.detail()
    );
    assert!(
        refusal.detail().ends_with(" and 2 more."),
        "{}",
        refusal.detail()
    );
}

fn a_limit_of_zero(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.max_sessions_per_role", "0")]);
    cluster.sql(&[
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN CONNECTION LIMIT 0",
    ]);
    for role in ["alice", "bob"] {
        let refusal = refused(&cluster.login_of(role));
        assert_eq!(refusal.sqlstate(), "53300");
        assert!(
            refusal.detail().starts_with("The limit is 0 sessions ("),
            "{}",
            refusal.detail()
        );
        assert!(
            refusal.detail().contains("; 0 are in use."),
            "{}",
            refusal.detail()
        );
        assert_eq!(
            refusal.hint(),
            "Under this limit no login is let in; ask for it to be raised."
        );
    }
}

const REFUSED_BY_THE_SERVER: &[&str] = &[
    "CREATE ROLE alice LOGIN",
    "CREATE ROLE nologin NOLOGIN",
    "CREATE DATABASE closed ALLOW_CONNECTIONS false",
    "CREATE DATABASE invalid",
    "UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'invalid'",
    "CREATE DATABASE private",
    "REVOKE CONNECT ON DATABASE private FROM PUBLIC",
    "ALTER ROLE alice PASSWORD 'right'",
];

fn refused_by_the_server(cluster: &Cluster) -> Vec<Target> {
    let alice = || cluster.login_of("alice");
    vec![
        cluster.login_of("missing"),
        cluster.login_of("nologin"),
        alice().to("missing"),
        alice().to("closed"),
        alice().to("invalid"),
        alice().to("private"),
        cluster.login_of("postgres").to("missing"),
        cluster.login_of("postgres").to("closed"),
        Target {
            database: None,
            ..alice()
        },
        Target {
            options: vec![("replication".to_string(), "database".to_string())],
            ..alice()
        },
    ]
}

fn the_servers_own_refusals_are_the_same(server: &Server) {
    let ours = Cluster::start(server, &[]);
    let plain = Cluster::plain(server, &[]);
    ours.sql(REFUSED_BY_THE_SERVER);
    plain.sql(REFUSED_BY_THE_SERVER);
    for (ours, plain) in refused_by_the_server(&ours)
        .iter()
        .zip(refused_by_the_server(&plain))
    {
        let (mut here, mut there) = (refused(ours), refused(&plain));
        for source_line in ['F', 'L', 'R'] {
            here.fields.remove(&source_line);
            there.fields.remove(&source_line);
        }
        assert!(!here.fields.is_empty() && here.authenticated);
        assert_eq!(here, there, "{ours:?}");
    }
}

/// Under a limit of 1, beside a storm of logins that fail, a good one is never refused.
fn the_servers_own_refusals_take_no_place(server: &Server) {
    // With a connection for each, also while the others are leaving.
    let settings = [("session_limit.max_wait", "0"), ("max_connections", "300")];
    let cluster = Cluster::start(server, &settings);
    cluster.sql(REFUSED_BY_THE_SERVER);
    cluster.sql(&[
        "ALTER ROLE alice CONNECTION LIMIT 1",
        "CREATE EXTENSION session_limit",
    ]);
    // Only those that are refused before they claim: no CONNECT privilege is found out later, by
    // the server.
    let failing: Vec<Target> = refused_by_the_server(&cluster)
        .into_iter()
        .filter(|t| t.database.as_deref() != Some("private"))
        .collect();
    for _ in 0..10 {
        let mut connections: Vec<_> = (0..3)
            .flat_map(|_| &failing)
            .map(|t| (t, t.connect()))
            .collect();
        for (target, connection) in &mut connections {
            connection.send_startup(target);
        }
        let alice = admitted(&cluster.login_of("alice"));
        assert!(
            connections
                .into_iter()
                .all(|(_, connection)| connection.outcome().is_err())
        );
        drop(alice);
        cluster.wait_until_gone("alice");
    }
    // No privilege, or a wrong password: no place is kept either.
    assert_eq!(
        refused(&cluster.login_of("alice").to("private")).sqlstate(),
        "42501"
    );
    cluster.require_passwords();
    let printed = cluster.psql_with_password("alice", "wrong", "");
    assert!(
        printed.contains("password authentication failed"),
        "{printed}"
    );
    let mut superuser = cluster.superuser();
    let others = "SELECT count(*) FROM session_limit.sessions WHERE usename <> 'postgres'";
    wait_until(&mut superuser, others, "0");
}

fn superusers(server: &Server) {
    let cluster = Cluster::start(
        server,
        &[
            ("session_limit.max_sessions_per_role", "1"),
            ("session_limit.max_wait", "0"),
        ],
    );
    cluster.sql(&[
        "CREATE ROLE root LOGIN SUPERUSER CONNECTION LIMIT 1",
        "CREATE EXTENSION session_limit",
    ]);
    let (local, tcp) = (cluster.login_of("root"), cluster.tcp_login_of("root"));
    let _sessions = [local.login().expect("on"), tcp.login().expect("on")];
    assert_eq!(
        cluster
            .superuser()
            .value("SELECT count(*) FROM session_limit.sessions WHERE usename = 'root' AND exempt"),
        "2"
    );

    cluster.set(&[("session_limit.exempt_superusers", "local")]);
    assert_eq!(
        refused(&tcp).message(),
        r#"too many connections for role "root""#
    );
    local.login().expect("there is always a way in");

    cluster
        .login_of("root")
        .login()
        .expect("local")
        .query("ALTER SYSTEM SET session_limit.exempt_superusers = off");
    cluster.signal(rustix::process::Signal::HUP);
    pg_test::wait_for("the refusal of a superuser", || local.login().err());
    assert_eq!(
        refused(&local).message(),
        r#"too many connections for role "root""#
    );
}

fn names_with_odd_characters(server: &Server) {
    let cluster = Cluster::start(
        server,
        &[
            ("session_limit.max_wait", "0"),
            ("session_limit.enforcement", "log"),
        ],
    );
    let name = "al\"i%s é\\";
    cluster.sql(&[&format!(
        "CREATE ROLE \"{}\" LOGIN CONNECTION LIMIT 1",
        name.replace('"', "\"\"")
    )]);
    let target = cluster.login_of(name);
    let _first = target.login().expect("the first");
    let refusal = refused(&target);
    assert_eq!(
        refusal.message(),
        format!("too many connections for role \"{name}\"")
    );
    cluster.set(&[("session_limit.enforcement", "on")]);
    let refusal = refused(&target);
    assert_eq!(
        refusal.message(),
        format!("too many connections for role \"{name}\"")
    );
    assert!(
        refusal
            .detail()
            .contains(&format!("(CONNECTION LIMIT of role {name})")),
        "{}",
        refusal.detail()
    );
}

/// The queue is full for the role: its logins are told that they did not wait, and why.
fn who_cannot_wait_is_told_why(server: &Server) {
    let cluster = Cluster::start(
        server,
        &[
            ("session_limit.max_wait", "10min"),
            ("authentication_timeout", "10min"),
            ("session_limit.max_waiters", "4"),
        ],
    );
    cluster.sql(&[
        "CREATE ROLE alice LOGIN CONNECTION LIMIT 1",
        "CREATE EXTENSION session_limit",
    ]);
    let alice = cluster.login_of("alice");
    let _first = alice.login().expect("the first");
    let waits = {
        let mut connection = alice.connect();
        connection.send_startup(&alice);
        connection
    };
    let mut superuser = cluster.superuser();
    let waiting = "SELECT sum(waiting) FROM session_limit.usage";
    wait_for("the second to wait", || {
        (superuser.value(waiting) == "1").then_some(())
    });
    let refusal = alice.login().err().expect("the third");
    assert_eq!(refusal.sqlstate(), "53300");
    let why = "The login did not wait: 1 login of this role wait already, its share of session_limit.max_waiters.";
    assert!(refusal.detail().contains(why), "{refusal:?}");
    assert!(
        refusal.hint().contains("session_limit.max_waiters"),
        "{refusal:?}"
    );
    let event = "SELECT detail->>'not_waited' FROM session_limit.events WHERE event = 'refused'";
    assert_eq!(superuser.value(event), "role_queue_full");
    drop(waits);
}

/// Nobody can ever fit: so nobody waits, and nobody is told to try again.
fn under_a_limit_of_0_nobody_waits(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.max_wait", "10min")]);
    cluster.sql(&["CREATE ROLE alice LOGIN CONNECTION LIMIT 0"]);
    let refusal = cluster.login_of("alice").login().err().expect("refused");
    assert_eq!(refusal.sqlstate(), "53300");
    assert!(!refusal.detail().contains("waited"), "{refusal:?}");
    let hint = "Under this limit no login is let in; ask for it to be raised.";
    assert_eq!(refusal.hint(), hint);
}
