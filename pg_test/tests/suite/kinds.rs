//! Every kind of limit, by real logins from real addresses; each login is explained before it is
//! made, and meets what was explained.

use crate::scene::{admitted, refused, set_label, wait_until};
use pg_test::client::{Session, Target};
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use std::net::TcpListener;

tests![
    of_a_role,
    of_a_group,
    of_a_database,
    of_the_cluster,
    of_each_combination,
    networks_and_sockets,
    an_ipv6_address_is_a_network,
    the_nearest_wins,
    all_that_differ_apply,
    exempt,
    tried_out,
    each_waits_as_long_as_it_says
];

/// A login by role, database and client address (none: over the Unix-domain socket), and what it is
/// refused for.
type Login = (
    &'static str,
    &'static str,
    &'static str,
    Option<&'static str>,
);

const HERE: &str = "127.0.0.1";
const THERE: &str = "127.0.0.2";
const SOCKET: &str = "";

/// Alice and bob are in the team, which is part of the staff; carol is in neither.
fn start(server: &Server) -> Cluster {
    // Not every machine has IPv6; the server listens where it can.
    let settings = [
        ("session_limit.max_wait", "0"),
        ("listen_addresses", "127.0.0.1,::1"),
    ];
    let cluster = Cluster::start(server, &settings);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE staff",
        "CREATE ROLE team IN ROLE staff",
        "CREATE ROLE alice LOGIN IN ROLE team",
        "CREATE ROLE bob LOGIN IN ROLE team",
        "CREATE ROLE carol LOGIN",
        "CREATE DATABASE app",
    ]);
    cluster
}

/// Makes the logins one after the other, each beside those before it, then ends them all and takes
/// back what was set.
fn logins(cluster: &Cluster, set: &[String], logins: &[Login]) {
    cluster.sql(&set.iter().map(String::as_str).collect::<Vec<_>>());
    let mut superuser = cluster.superuser();
    let mut sessions = Vec::new();
    for login in logins {
        let explained = explained(&mut superuser, login);
        let (role, database, address, refused) = *login;
        let outcome = target(cluster, role, database, address).login();
        let refusal = outcome
            .as_ref()
            .err()
            .map(|refusal| (refusal.sqlstate(), refusal.message()));
        let expected = refused.map(|words| format!("too many connections {words}"));
        let expected = expected.as_deref().map(|message| ("53300", message));
        assert_eq!(refusal, expected, "{login:?} under {set:?}");
        assert_eq!(explained, refused.is_none(), "{login:?} under {set:?}");
        sessions.extend(outcome);
    }
    drop(sessions);
    reset(cluster, &mut superuser);
    // It counts under a limit of the whole cluster.
    superuser.end();
}

fn target(cluster: &Cluster, role: &str, database: &str, address: &str) -> Target {
    let target = match address {
        SOCKET => cluster.login_of(role),
        address => cluster.login_from(role, address),
    };
    target.to(database)
}

fn explained(superuser: &mut Session, (role, database, address, _): &Login) -> bool {
    let address = match *address {
        SOCKET => "NULL".to_string(),
        address => format!("'{address}'"),
    };
    let sql = format!(
        "SELECT coalesce(bool_and(fits), true) FROM session_limit.explain_login('{role}', '{database}', {address})"
    );
    superuser.value(&sql) == "t"
}

fn reset(cluster: &Cluster, superuser: &mut Session) {
    for role in ["alice", "bob", "carol"] {
        cluster.wait_until_gone(role);
    }
    for row in superuser
        .query("SELECT objtype, objname FROM pg_seclabels WHERE provider = 'session_limit'")
    {
        superuser.query(&format!(
            "SECURITY LABEL FOR session_limit ON {} {} IS NULL",
            row[0], row[1]
        ));
    }
    for sql in [
        "ALTER ROLE alice CONNECTION LIMIT -1",
        "ALTER DATABASE app CONNECTION LIMIT -1",
    ] {
        superuser.query(sql);
    }
    let settings = "SELECT count(*) FROM pg_settings WHERE name LIKE 'session_limit.%' AND sourcefile LIKE '%auto.conf'";
    if superuser.value(settings) != "0" {
        superuser.query("ALTER SYSTEM RESET ALL");
        cluster.reload();
    }
}

fn cluster_limits(cluster: &Cluster, json: &str) {
    cluster.set(&[("session_limit.cluster_limits", json)]);
}

fn of_a_role(server: &Server) {
    let cluster = start(server);
    let alice = Some(r#"for role "alice""#);
    logins(
        &cluster,
        &[set_label("ROLE alice", r#"{"max": 1}"#)],
        &[
            ("alice", "app", HERE, None),
            ("alice", "postgres", THERE, alice),
            ("alice", "app", SOCKET, alice),
            ("bob", "app", HERE, None),
        ],
    );
    logins(
        &cluster,
        &[set_label("ROLE alice", r#"{"max": 1, "per": "address"}"#)],
        &[
            ("alice", "app", HERE, None),
            (
                "alice",
                "postgres",
                HERE,
                Some(r#"for role "alice" from address 127.0.0.1"#),
            ),
            ("alice", "app", THERE, None),
            (
                "alice",
                "app",
                THERE,
                Some(r#"for role "alice" from address 127.0.0.2"#),
            ),
            ("alice", "app", SOCKET, None),
            ("alice", "app", SOCKET, None),
            ("bob", "app", HERE, None),
        ],
    );
    logins(
        &cluster,
        &[set_label("ROLE alice", r#"{"max": 1, "database": "app"}"#)],
        &[
            ("alice", "postgres", HERE, None),
            ("alice", "app", HERE, None),
            (
                "alice",
                "app",
                THERE,
                Some(r#"for role "alice" in database "app""#),
            ),
            ("alice", "postgres", HERE, None),
            ("bob", "app", HERE, None),
        ],
    );
}

fn of_a_group(server: &Server) {
    let cluster = start(server);
    logins(
        &cluster,
        &[set_label("ROLE team", r#"{"max": 2, "per": "group"}"#)],
        &[
            ("alice", "app", HERE, None),
            ("bob", "postgres", SOCKET, None),
            ("bob", "app", HERE, Some(r#"for members of role "team""#)),
            ("alice", "app", HERE, Some(r#"for members of role "team""#)),
            ("carol", "app", HERE, None),
        ],
    );
    logins(
        &cluster,
        &[set_label("ROLE staff", r#"{"max": 1, "per": "role"}"#)],
        &[
            ("alice", "app", HERE, None),
            ("alice", "postgres", SOCKET, Some(r#"for role "alice""#)),
            ("bob", "app", HERE, None),
            ("bob", "app", HERE, Some(r#"for role "bob""#)),
            ("carol", "app", HERE, None),
            ("carol", "app", HERE, None),
        ],
    );
    logins(
        &cluster,
        &[set_label("ROLE team", r#"{"max": 1, "per": "address"}"#)],
        &[
            ("alice", "app", HERE, None),
            (
                "alice",
                "app",
                HERE,
                Some(r#"for role "alice" from address 127.0.0.1"#),
            ),
            ("bob", "app", HERE, None),
            ("alice", "app", THERE, None),
        ],
    );
    logins(
        &cluster,
        &[set_label(
            "ROLE staff",
            r#"{"max": 1, "per": "group", "database": "app", "network": "127.0.0.2"}"#,
        )],
        &[
            ("alice", "app", HERE, None),
            ("alice", "postgres", THERE, None),
            ("alice", "app", THERE, None),
            (
                "bob",
                "app",
                THERE,
                Some(r#"for members of role "staff" in database "app" from network 127.0.0.2/32"#),
            ),
            ("bob", "app", HERE, None),
        ],
    );
}

fn of_a_database(server: &Server) {
    let cluster = start(server);
    logins(
        &cluster,
        &[set_label("DATABASE app", r#"{"max": 2}"#)],
        &[
            ("alice", "app", HERE, None),
            ("carol", "app", SOCKET, None),
            ("bob", "app", HERE, Some(r#"for database "app""#)),
            ("bob", "postgres", HERE, None),
        ],
    );
    logins(
        &cluster,
        &[set_label(
            "DATABASE app",
            r#"{"limits": [{"max": 1, "per": "role"}, {"max": 2, "per": "address"}]}"#,
        )],
        &[
            ("alice", "app", HERE, None),
            (
                "alice",
                "app",
                THERE,
                Some(r#"for role "alice" in database "app""#),
            ),
            ("bob", "app", HERE, None),
            (
                "carol",
                "app",
                HERE,
                Some(r#"for database "app" from address 127.0.0.1"#),
            ),
            ("carol", "app", THERE, None),
            ("alice", "postgres", HERE, None),
        ],
    );
    logins(
        &cluster,
        &[set_label(
            "DATABASE app",
            r#"{"max": 1, "network": "127.0.0.2"}"#,
        )],
        &[
            ("alice", "app", HERE, None),
            ("alice", "app", THERE, None),
            (
                "bob",
                "app",
                THERE,
                Some(r#"for database "app" from network 127.0.0.2/32"#),
            ),
            ("bob", "app", HERE, None),
        ],
    );
}

fn of_the_cluster(server: &Server) {
    let cluster = start(server);
    cluster_limits(
        &cluster,
        r#"{"limits": [{"max": 1, "per": "role"}, {"max": 2, "per": "address"}]}"#,
    );
    logins(
        &cluster,
        &[],
        &[
            ("alice", "app", HERE, None),
            ("alice", "postgres", SOCKET, Some(r#"for role "alice""#)),
            ("bob", "app", HERE, None),
            ("carol", "postgres", HERE, Some("from address 127.0.0.1")),
            ("carol", "postgres", SOCKET, None),
        ],
    );
    cluster_limits(
        &cluster,
        r#"{"max": 1, "per": "database", "database": "app"}"#,
    );
    logins(
        &cluster,
        &[],
        &[
            ("alice", "app", HERE, None),
            ("bob", "app", HERE, Some(r#"for database "app""#)),
            ("bob", "postgres", HERE, None),
        ],
    );
    // The superuser's session of this test is counted, too.
    cluster_limits(&cluster, r#"{"max": 3, "per": "cluster"}"#);
    logins(
        &cluster,
        &[],
        &[
            ("alice", "app", HERE, None),
            ("bob", "postgres", SOCKET, None),
            ("carol", "app", HERE, Some("for the cluster")),
        ],
    );
    cluster_limits(
        &cluster,
        r#"{"max": 1, "per": "cluster", "network": "127.0.0.2"}"#,
    );
    logins(
        &cluster,
        &[],
        &[
            ("alice", "app", HERE, None),
            ("alice", "app", THERE, None),
            ("bob", "app", THERE, Some("from network 127.0.0.2/32")),
            ("bob", "app", SOCKET, None),
        ],
    );
}

/// A list of `per`.
fn of_each_combination(server: &Server) {
    let cluster = start(server);
    let in_app = Some(r#"for role "alice" in database "app""#);
    let per_pool = r#"{"max": 1, "per": ["role", "database"]}"#;
    let pools = [
        ("alice", "app", HERE, None),
        ("alice", "app", SOCKET, in_app),
        ("alice", "postgres", HERE, None),
        ("bob", "app", HERE, None),
    ];
    logins(&cluster, &[set_label("ROLE staff", per_pool)], &pools);
    logins(&cluster, &[set_label("ROLE alice", per_pool)], &pools);
    logins(&cluster, &[set_label("DATABASE app", per_pool)], &pools);
    cluster_limits(&cluster, per_pool);
    logins(&cluster, &[], &pools);
    // A database's is nearer than the cluster's, and so is a role's.
    cluster_limits(&cluster, r#"{"max": 0, "per": ["database", "role"]}"#);
    logins(
        &cluster,
        &[
            set_label("DATABASE app", per_pool),
            set_label("ROLE bob", r#"{"max": -1, "per": ["role", "database"]}"#),
        ],
        &[
            ("alice", "app", HERE, None),
            ("alice", "app", HERE, in_app),
            (
                "alice",
                "postgres",
                HERE,
                Some(r#"for role "alice" in database "postgres""#),
            ),
            ("bob", "postgres", HERE, None),
            ("bob", "app", HERE, None),
            (
                "bob",
                "app",
                HERE,
                Some(r#"for role "bob" in database "app""#),
            ),
        ],
    );
    cluster_limits(
        &cluster,
        r#"{"limits": [{"max": 1, "per": ["role", "address"]}, {"max": 2, "per": ["database", "address"]}]}"#,
    );
    logins(
        &cluster,
        &[],
        &[
            ("alice", "app", HERE, None),
            (
                "alice",
                "postgres",
                HERE,
                Some(r#"for role "alice" from address 127.0.0.1"#),
            ),
            ("alice", "app", SOCKET, None),
            ("alice", "app", SOCKET, None),
            ("bob", "app", HERE, None),
            (
                "carol",
                "app",
                HERE,
                Some(r#"for database "app" from address 127.0.0.1"#),
            ),
            ("carol", "postgres", HERE, None),
            ("alice", "app", THERE, None),
        ],
    );
    cluster_limits(
        &cluster,
        r#"{"max": 1, "per": ["role", "database", "address"]}"#,
    );
    logins(
        &cluster,
        &[],
        &[
            ("alice", "app", HERE, None),
            (
                "alice",
                "app",
                HERE,
                Some(r#"for role "alice" in database "app" from address 127.0.0.1"#),
            ),
            ("alice", "app", THERE, None),
            ("alice", "postgres", HERE, None),
            ("bob", "app", HERE, None),
            ("alice", "app", SOCKET, None),
        ],
    );
}

fn networks_and_sockets(server: &Server) {
    let cluster = start(server);
    let network = Some(r#"for role "alice" from network 127.0.0.0/30"#);
    logins(
        &cluster,
        &[set_label(
            "ROLE alice",
            r#"{"max": 2, "network": "127.0.0.0/30"}"#,
        )],
        &[
            ("alice", "app", "127.0.0.1", None),
            ("alice", "app", "127.0.0.4", None),
            ("alice", "app", SOCKET, None),
            ("alice", "app", "127.0.0.3", None),
            ("alice", "app", "127.0.0.2", network),
            ("alice", "app", "127.0.0.4", None),
            ("alice", "app", SOCKET, None),
        ],
    );
    if TcpListener::bind("[::1]:0").is_ok() {
        let set = r#"{"limits": [{"max": 1, "network": "::/64"}, {"max": 3, "per": "address"}]}"#;
        logins(
            &cluster,
            &[set_label("ROLE alice", set)],
            &[
                ("alice", "app", "::1", None),
                (
                    "alice",
                    "app",
                    "::1",
                    Some(r#"for role "alice" from network ::/64"#),
                ),
                ("alice", "app", HERE, None),
                ("bob", "app", "::1", None),
            ],
        );
        logins(
            &cluster,
            &[set_label("DATABASE app", r#"{"max": 1, "per": "address"}"#)],
            &[
                ("alice", "app", "::1", None),
                (
                    "bob",
                    "app",
                    "::1",
                    Some(r#"for database "app" from address ::1"#),
                ),
                ("bob", "app", HERE, None),
            ],
        );
    }
    // Mapped into IPv6, the network is the same.
    logins(
        &cluster,
        &[set_label(
            "ROLE alice",
            r#"{"max": 0, "network": "::ffff:127.0.0.0/126"}"#,
        )],
        &[
            ("alice", "app", "127.0.0.1", network),
            ("alice", "app", "127.0.0.4", None),
        ],
    );
    logins(
        &cluster,
        &[set_label("ROLE alice", r#"{"max": 0, "network": "::/0"}"#)],
        &[("alice", "app", HERE, None), ("alice", "app", SOCKET, None)],
    );
    logins(
        &cluster,
        &[set_label(
            "ROLE alice",
            r#"{"max": 0, "network": "0.0.0.0/0"}"#,
        )],
        &[
            (
                "alice",
                "app",
                HERE,
                Some(r#"for role "alice" from network 0.0.0.0/0"#),
            ),
            ("alice", "app", SOCKET, None),
        ],
    );
}

/// A machine has one IPv6 address that can be relied upon, `::1`: logins from others are only explained.
fn an_ipv6_address_is_a_network(server: &Server) {
    if TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    let cluster = start(server);
    cluster.sql(&[&set_label("ROLE alice", r#"{"max": 2, "per": "address"}"#)]);
    let mut superuser = cluster.superuser();
    let alice = cluster.login_from("alice", "::1").to("app");
    let _sessions = [admitted(&alice), admitted(&alice)];
    let mut fits = |address| explained(&mut superuser, &("alice", "app", address, None));
    assert_eq!((fits("::1"), fits("::2")), (false, true));
    assert_eq!(
        refused(&alice).message(),
        r#"too many connections for role "alice" from address ::1"#
    );
    cluster.set(&[("session_limit.ipv6_prefix_length", "64")]);
    // The settings of a session are those of its last statement.
    assert_eq!(
        superuser.value("SHOW session_limit.ipv6_prefix_length"),
        "64"
    );
    let mut fits = |address| explained(&mut superuser, &("alice", "app", address, None));
    assert_eq!(
        (fits("::1"), fits("::2"), fits("::1:0:0:0:1")),
        (false, false, true)
    );
    assert!(fits(HERE));
    let refusal = r#"too many connections for role "alice" from address ::/64"#;
    assert_eq!(refused(&alice).message(), refusal);
    let usage = "SELECT subject || ' ' || client_addr || ' ' || in_use FROM session_limit.usage";
    assert_eq!(superuser.value(usage), "alice from ::/64 ::/64 2");
}

fn the_nearest_wins(server: &Server) {
    let cluster = start(server);
    cluster_limits(&cluster, r#"{"max": 1, "per": "role"}"#);
    let alice = Some(r#"for role "alice""#);
    logins(
        &cluster,
        &[
            set_label("ROLE alice", r#"{"max": -1}"#),
            set_label("ROLE team", r#"{"max": 2, "per": "role"}"#),
        ],
        &[
            ("alice", "app", HERE, None),
            ("alice", "app", HERE, None),
            ("alice", "app", HERE, None),
            ("bob", "app", HERE, None),
            ("bob", "app", HERE, None),
            ("bob", "app", HERE, Some(r#"for role "bob""#)),
        ],
    );
    logins(
        &cluster,
        &[
            "ALTER ROLE alice CONNECTION LIMIT 2".to_string(),
            set_label("ROLE alice", r#"{"max": 3}"#),
        ],
        &[
            ("alice", "app", HERE, None),
            ("alice", "app", HERE, None),
            ("alice", "app", HERE, alice),
        ],
    );
    logins(
        &cluster,
        &[
            set_label("ROLE team", r#"{"max": 2, "per": "role"}"#),
            set_label("ROLE staff", r#"{"max": 0, "per": "role"}"#),
        ],
        &[("alice", "app", HERE, alice)],
    );
    cluster_limits(&cluster, r#"{"max": 1, "per": "database"}"#);
    logins(
        &cluster,
        &[set_label("DATABASE app", r#"{"max": 2}"#)],
        &[
            ("alice", "app", HERE, None),
            ("alice", "app", HERE, None),
            ("alice", "app", HERE, Some(r#"for database "app""#)),
        ],
    );
}

fn all_that_differ_apply(server: &Server) {
    let cluster = start(server);
    let set = [
        set_label(
            "ROLE alice",
            r#"{"limits": [{"max": 3}, {"max": 2, "database": "app"}, {"max": 1, "per": "address"}]}"#,
        ),
        set_label("ROLE team", r#"{"max": 4, "per": "group"}"#),
        set_label("DATABASE app", r#"{"max": 3}"#),
    ];
    logins(
        &cluster,
        &set,
        &[
            ("alice", "app", HERE, None),
            (
                "alice",
                "app",
                HERE,
                Some(r#"for role "alice" from address 127.0.0.1"#),
            ),
            ("alice", "app", SOCKET, None),
            (
                "alice",
                "app",
                SOCKET,
                Some(r#"for role "alice" in database "app""#),
            ),
            ("bob", "app", HERE, None),
            ("carol", "app", HERE, Some(r#"for database "app""#)),
            ("alice", "postgres", SOCKET, None),
            ("alice", "postgres", SOCKET, Some(r#"for role "alice""#)),
            (
                "bob",
                "postgres",
                HERE,
                Some(r#"for members of role "team""#),
            ),
        ],
    );
}

fn exempt(server: &Server) {
    let cluster = start(server);
    cluster_limits(
        &cluster,
        r#"{"limits": [{"max": 1, "per": "role"}, {"max": 2, "per": "cluster", "network": "127.0.0.1"}]}"#,
    );
    logins(
        &cluster,
        &[set_label("ROLE alice", r#"{"exempt": true}"#)],
        &[
            ("alice", "app", HERE, None),
            ("alice", "app", HERE, None),
            ("alice", "app", HERE, None),
            // Who is exempt is counted all the same.
            ("bob", "app", HERE, Some("from network 127.0.0.1/32")),
            ("bob", "app", THERE, None),
            ("bob", "app", THERE, Some(r#"for role "bob""#)),
        ],
    );
    cluster_limits(&cluster, r#"{"max": 1, "per": "role"}"#);
    logins(
        &cluster,
        &[set_label("ROLE staff", r#"{"exempt": true}"#)],
        &[
            ("alice", "app", HERE, None),
            ("alice", "app", HERE, None),
            ("carol", "app", HERE, None),
            ("carol", "app", HERE, Some(r#"for role "carol""#)),
        ],
    );
}

fn tried_out(server: &Server) {
    let cluster = start(server);
    let set = [
        set_label("ROLE alice", r#"{"max": 1, "enforcement": "log"}"#),
        "ALTER ROLE alice CONNECTION LIMIT 2".to_string(),
    ];
    cluster.sql(&[&set[0], &set[1]]);
    let alice = cluster.login_of("alice");
    let sessions = [
        alice.login().expect("the first"),
        alice.login().expect("the second: the label only logs"),
    ];
    // CONNECTION LIMIT does not only log.
    assert_eq!(refused(&alice).sqlstate(), "53300");
    let events = crate::events::logged_as(&cluster, "would_refuse");
    assert_eq!(events.len(), 1, "one login was over the label's limit");
    assert_eq!(events[0]["source"], "label on role alice");
    assert_eq!(events[0]["pid"], sessions[1].pid);
}

fn each_waits_as_long_as_it_says(server: &Server) {
    let cluster = start(server);
    let mut superuser = cluster.superuser();
    superuser.query(&set_label("ROLE alice", r#"{"max": 1, "max_wait": "60s"}"#));
    superuser.query(&set_label("DATABASE app", r#"{"max": 1, "max_wait": 0}"#));
    let first = cluster.login_of("alice").login().expect("the first");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| cluster.login_of("alice").login());
        let waiting = "SELECT coalesce(sum(waiting), 0) FROM session_limit.usage";
        wait_until(&mut superuser, waiting, "1");
        let _bob = target(&cluster, "bob", "app", SOCKET).login().expect("bob");
        let refusal = refused(&target(&cluster, "carol", "app", SOCKET));
        assert!(!refusal.detail().contains("waited"), "{refusal:?}");
        assert_eq!(superuser.value(waiting), "1", "alice still waits");
        first.close();
        waiter.join().expect("alice").expect("let in");
    });
}
