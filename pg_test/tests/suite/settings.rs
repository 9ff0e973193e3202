//! Settings take effect on reload; a bad value changes nothing.

use crate::scene::refused;
use pg_test::cluster::{Cluster, Stop};
use pg_test::server::Server;

tests![
    enforcement,
    limits_follow_a_reload,
    a_bad_value_is_refused_by_name,
    a_misspelt_name_is_said,
    the_hint_is_the_administrators
];

fn enforcement(server: &Server) {
    let cluster = Cluster::start(
        server,
        &[
            ("session_limit.sweep", "off"),
            ("session_limit.max_sessions_per_role", "1"),
        ],
    );
    cluster.sql(&["CREATE ROLE alice LOGIN", "CREATE EXTENSION session_limit"]);
    let alice = cluster.tcp_login_of("alice");
    let _first = alice.login().expect("on: the first");
    assert_eq!(refused(&alice).sqlstate(), "53300");
    assert!(!cluster.log().contains("would_refuse"));

    cluster.set(&[("session_limit.enforcement", "log")]);
    let second = alice.login().expect("log: the second");
    let events = crate::events::logged_as(&cluster, "would_refuse");
    let expected = serde_json::json!({
        "event": "would_refuse", "role": "alice", "database": "postgres", "client_addr": "127.0.0.1",
        "pid": second.pid, "source": "session_limit.max_sessions_per_role", "per": "role", "subject": "alice", "in_use": 1, "max": 1,
    });
    assert_eq!(events, [expected]);

    cluster.set(&[("session_limit.enforcement", "off")]);
    let _third = alice.login().expect("off: the third");
    assert_eq!(
        cluster.log().matches("would_refuse").count(),
        1,
        "off decides nothing"
    );

    // All were counted, so that switching on is exact at once.
    cluster.set(&[
        ("session_limit.enforcement", "on"),
        ("session_limit.max_sessions_per_role", "4"),
    ]);
    let _fourth = alice.login().expect("the fourth of four");
    let refusal = refused(&alice);
    assert!(
        refusal.detail().contains("4 are in use"),
        "{}",
        refusal.detail()
    );
}

fn limits_follow_a_reload(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.max_wait", "0")]);
    cluster.sql(&["CREATE ROLE alice LOGIN"]);
    let alice = cluster.login_of("alice");
    let mut sessions: Vec<_> = (0..3).map(|_| alice.login().expect("no limit")).collect();
    cluster.set(&[("session_limit.max_sessions_per_role", "2")]);
    assert!(
        sessions.iter_mut().all(|session| session.is_alive()),
        "who is in stays in"
    );
    assert_eq!(refused(&alice).sqlstate(), "53300");
    sessions.truncate(1);
    pg_test::wait_for("room", || alice.login().ok());
    cluster.set(&[("session_limit.max_sessions_per_role", "-1")]);
    let _many: Vec<_> = (0..5).map(|_| alice.login().expect("no limit")).collect();
}

/// At a start the server drops it, and starts.
fn a_misspelt_name_is_said(server: &Server) {
    let mut cluster = Cluster::start(server, &[]);
    let misspelt = "session_limit.max_session_per_role";
    let outcome = cluster
        .superuser()
        .try_query(&format!("ALTER SYSTEM SET {misspelt} = 1"));
    let error = outcome.expect_err("no such setting");
    // Before 17 it is unrecognized, later invalid, as in the log.
    assert!(error.message().contains(misspelt), "{error:?}");
    let said = format!("invalid configuration parameter name \"{misspelt}\"");

    cluster.append("postgresql.conf", &format!("{misspelt} = 1\n"));
    cluster.reload();
    pg_test::wait_for("the log to say so", || {
        cluster
            .log()
            .contains(&format!("LOG:  {said}"))
            .then_some(())
    });
    cluster.stop(Stop::Fast);
    cluster.start_again();
    let log = cluster.log();
    assert!(
        log.contains(&format!("WARNING:  {said}, removing it")),
        "{log}"
    );
}

fn a_bad_value_is_refused_by_name(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.max_sessions_per_role", "1")]);
    cluster.sql(&["CREATE ROLE alice LOGIN"]);
    let mut superuser = cluster.superuser();
    let bad = [
        ("enforcement", "maybe"),
        ("max_sessions_per_role", "-2"),
        ("max_sessions_per_role", "262144"),
        ("max_wait", "-1"),
        ("max_wait", "soon"),
        ("max_label_wait", "-2"),
        ("max_label_wait", "11min"),
        ("max_waiters", "-1"),
        ("on_excess", "replace"),
        ("replace_min_age", "-1"),
        ("replace_idle_after", "soon"),
        ("exempt_superusers", "never"),
        ("exempt_replication", "2"),
        ("on_excess", "replace"),
        ("replace_min_age", "-1"),
        ("replace_idle_after", "-1"),
        ("log_events", "some"),
        ("max_events", "-1"),
        ("max_events", "1000001"),
        ("sweep", "on"),
        ("sweep_interval", "999ms"),
        ("ipv6_prefix_length", "0"),
        ("ipv6_prefix_length", "129"),
    ];
    for (name, value) in bad {
        let set = superuser.try_query(&format!(
            "ALTER SYSTEM SET session_limit.{name} = '{value}'"
        ));
        let error = set
            .err()
            .unwrap_or_else(|| panic!("{name} = {value} was accepted"));
        assert_eq!(error.sqlstate(), "22023", "{error:?}");
        assert!(
            error.message().contains(&format!("session_limit.{name}")),
            "{error:?}"
        );
    }
    let misspelt = superuser.try_query("ALTER SYSTEM SET session_limit.max_session_per_role = 1");
    assert!(misspelt.is_err(), "a misspelt name is no setting");
    let words = "SELECT string_agg(enumvals::text, ' ' ORDER BY name) FROM pg_settings WHERE name LIKE 'session_limit.%'";
    assert_eq!(
        superuser.value(words),
        "{on,log,off} {on,local,off} {refuse,replace_oldest,replace_idle} {local,refuse} {off,log,terminate}"
    );

    cluster.append(
        "postgresql.conf",
        "session_limit.max_sessions_per_role = many\nsession_limit.enforcement = maybe\n",
    );
    cluster.signal(rustix::process::Signal::HUP);
    let complaint = |name, value| {
        format!("LOG:  invalid value for parameter \"session_limit.{name}\": \"{value}\"")
    };
    let last = complaint("enforcement", "maybe");
    let log = pg_test::wait_for("the complaint", || {
        Some(cluster.log()).filter(|log| log.contains(&last))
    });
    assert!(
        log.contains(&complaint("max_sessions_per_role", "many")),
        "{log}"
    );
    let _first = cluster
        .login_of("alice")
        .login()
        .expect("the server runs on");
    assert_eq!(refused(&cluster.login_of("alice")).sqlstate(), "53300");
    assert_eq!(superuser.value("SHOW session_limit.enforcement"), "on");
}

fn the_hint_is_the_administrators(server: &Server) {
    let cluster = Cluster::start(
        server,
        &[
            ("session_limit.max_sessions_per_role", "0"),
            ("session_limit.max_wait", "0"),
        ],
    );
    cluster.sql(&["CREATE ROLE alice LOGIN"]);
    cluster.set(&[(
        "session_limit.refusal_hint",
        "Ask dba@example.com, 100% of the time: %s %n.",
    )]);
    let refusal = refused(&cluster.login_of("alice"));
    assert_eq!(
        refusal.hint(),
        "Ask dba@example.com, 100% of the time: %s %n."
    );
    cluster.set(&[("session_limit.refusal_hint", "")]);
    let refusal = refused(&cluster.login_of("alice"));
    assert!(
        refusal.hint().starts_with("Under this limit"),
        "{refusal:?}"
    );
}
