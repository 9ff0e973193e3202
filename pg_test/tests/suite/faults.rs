//! What is broken, or cannot be read: it locks nobody out, and lets nobody slip by.

use crate::scene::{admitted, go_on, process, refused, stop, wait_until};
use pg_test::client::Target;
use pg_test::cluster::{Cluster, Stop};
use pg_test::server::Server;
use pg_test::wait_for;
use rustix::process::Signal;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

tests![
    privileges_that_cannot_be_read,
    labels_that_cannot_be_read,
    labels_that_are_locked,
    a_library_that_is_not_preloaded,
    a_library_that_decides_later,
    a_backtrace_is_nobodys_business,
    waiting_walsenders_take_no_place,
];

/// So many roles may connect that the list is stored out of line, where no login can read it.
fn privileges_that_cannot_be_read(server: &Server) {
    let cluster = Cluster::start(
        server,
        &[
            ("session_limit.on_excess", "replace_oldest"),
            ("session_limit.replace_min_age", "0"),
            ("session_limit.max_wait", "0"),
        ],
    );
    cluster.sql(&[
        "CREATE ROLE alice LOGIN",
        r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"max": 1}'"#,
        "CREATE DATABASE app",
        "REVOKE CONNECT ON DATABASE app FROM PUBLIC",
        "DO $$
         BEGIN
             FOR i IN 1..700 LOOP
                 EXECUTE format('CREATE ROLE member_%s', i);
                 EXECUTE format('GRANT CONNECT ON DATABASE app TO member_%s', i);
             END LOOP;
             GRANT CONNECT ON DATABASE app TO alice;
             ASSERT (SELECT pg_column_size(datacl) > 2100 FROM pg_database WHERE datname = 'app');
         END $$",
    ]);
    let alice = cluster.login_of("alice").to("app");
    let mut first = alice.login().expect("there is room");
    // It is not known whether the server would let the next one in: so nobody's session ends for it.
    let refusal = alice.login().err().expect("no room");
    assert_eq!(refusal.sqlstate(), "53300", "{refusal:?}");
    assert_eq!(first.value("SELECT 1"), "1");
    // Where the privileges can be read, it is replaced.
    let there = cluster.login_of("alice").login().expect("a newer session");
    wait_for("the first to end", || (!first.is_alive()).then_some(()));
    drop(there);

    cluster.set(&[("session_limit.enforcement", "log")]);
    let _dry_run = [
        alice.login().expect("a dry run"),
        alice.login().expect("a dry run"),
    ];
}

/// A page of the labels is broken: XX001 for whoever reads it.
fn labels_that_cannot_be_read(server: &Server) {
    let settings = [
        ("session_limit.max_wait", "0"),
        ("session_limit.sweep_interval", "1s"),
    ];
    let mut cluster = Cluster::start(server, &settings);
    cluster.sql(&[
        "CREATE ROLE alice LOGIN",
        r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"max": 1}'"#,
    ]);
    let file = cluster
        .superuser()
        .value("SELECT pg_relation_filepath('pg_shseclabel')");
    cluster.stop(Stop::Fast);
    let path = cluster.dir.join("data").join(file);
    let page = OpenOptions::new()
        .write(true)
        .open(path)
        .expect("the labels");
    page.write_all_at(&[0xff; 64], 0).expect("break the page");
    cluster.start_again();

    // What is unreadable may have been meant to refuse alice. The cause is named, and a superuser gets in.
    let refusal = cluster.login_of("alice").login().err().expect("refused");
    assert_eq!(refusal.sqlstate(), "XX001", "{refusal:?}");
    assert!(refusal.message().contains("invalid page"), "{refusal:?}");
    let mut superuser = cluster.superuser();
    let worker = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'session_limit worker'";
    let pid = wait_for("the worker", || {
        Some(superuser.value(worker)).filter(|pid| !pid.is_empty())
    });

    // A dry run refuses nobody.
    cluster.set(&[("session_limit.enforcement", "log")]);
    let mut in_a_dry_run = [(); 3].map(|()| cluster.login_of("alice").login().expect("a dry run"));
    for session in &mut in_a_dry_run {
        assert_eq!(
            session.value("SELECT count(*) FROM pg_class WHERE oid = 'pg_class'::regclass"),
            "1"
        );
    }
    // Everybody finds it broken, and the log says so once a minute. The worker goes on.
    let complaints = || cluster.log().matches("could not read limits").count();
    wait_for("the complaint", || (complaints() > 0).then_some(()));
    assert_eq!(superuser.value("SELECT pg_sleep(3)"), "");
    assert_eq!(complaints(), 1);
    assert_eq!(superuser.value(worker), pid);
}

/// The worker waits for a lock: a shutdown does not wait for it.
fn labels_that_are_locked(server: &Server) {
    let settings = [("session_limit.sweep_interval", "1s")];
    let mut cluster = Cluster::start(server, &settings);
    let mut superuser = cluster.superuser();
    superuser.query("BEGIN");
    superuser.query("LOCK TABLE pg_shseclabel IN ACCESS EXCLUSIVE MODE");
    let waits = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                 WHERE backend_type = 'session_limit worker' AND NOT granted";
    wait_for("the worker to wait", || {
        (superuser.value(waits) == "1").then_some(())
    });
    // The session that holds the lock does not heed the shutdown: it is stopped.
    let holds = process(&superuser);
    stop(holds);
    let worker = cluster.processes("session_limit worker");
    cluster.signal(Signal::INT);
    wait_for("the worker to end", || {
        let left = cluster.processes("session_limit worker");
        left.iter().all(|pid| !worker.contains(pid)).then_some(())
    });
    go_on(holds);
    cluster.stop(Stop::Fast);
}

/// A label that limits nobody is set with a warning; a restore must work.
fn a_library_that_is_not_preloaded(server: &Server) {
    let cluster = Cluster::plain(server, &[("session_preload_libraries", "session_limit")]);
    cluster.sql(&["CREATE ROLE alice LOGIN"]);
    let mut superuser = cluster.superuser();
    superuser.query("CREATE EXTENSION session_limit");
    let warned = |what: &str| cluster.log().matches(what).count();
    let of_extension = "WARNING:  session_limit is not preloaded, so it limits nobody";
    wait_for("a warning", || (warned(of_extension) == 1).then_some(()));
    for max in 1..3 {
        superuser.query(&format!(
            r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{{"max": {max}}}'"#
        ));
    }
    let of_label = "WARNING:  session_limit is not preloaded, so its labels limit nobody";
    wait_for("a warning", || (warned(of_label) == 1).then_some(()));
    let error = superuser
        .try_query("SELECT session_limit.set_limit(2, role => 'alice')")
        .expect_err("it needs the library");
    assert_eq!(error.sqlstate(), "55000", "{error:?}");
    superuser.query("SECURITY LABEL FOR session_limit ON ROLE alice IS NULL");
    superuser.query("DROP EXTENSION session_limit");
}

/// What it refuses may have cost somebody's session.
fn a_library_that_decides_later(server: &Server) {
    let warning =
        "WARNING:  a library that is loaded after session_limit decides about logins, too";
    let orders = [
        ("session_limit, session_limit_probe", "replace_oldest", true),
        ("session_limit, session_limit_probe", "refuse", false),
        (
            "session_limit_probe, session_limit",
            "replace_oldest",
            false,
        ),
    ];
    for (libraries, on_excess, warns) in orders {
        let settings = [
            ("shared_preload_libraries", libraries),
            ("session_limit.on_excess", on_excess),
        ];
        let mut cluster = Cluster::plain(server, &settings);
        let worker = "SELECT count(*) FROM pg_stat_activity
                      WHERE backend_type = 'session_limit worker' AND wait_event = 'Extension'";
        let mut superuser = cluster.superuser();
        wait_until(&mut superuser, worker, "1");
        assert_eq!(cluster.log().contains(warning), warns, "{libraries}");
        if on_excess == "refuse" {
            // A label is enough.
            superuser.query("CREATE ROLE alice LOGIN");
            superuser.query(
                r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"max": 1, "on_excess": "replace_idle"}'"#,
            );
            drop(superuser);
            cluster.stop(Stop::Fast);
            cluster.start_again();
            wait_until(&mut cluster.superuser(), worker, "1");
            assert!(cluster.log().contains(warning));
        }
    }
}

/// `RUST_BACKTRACE` in the server's environment shows a client nothing of the sources.
fn a_backtrace_is_nobodys_business(server: &Server) {
    // The bench starts every server with RUST_BACKTRACE=1.
    let cluster = Cluster::start(server, &[]);
    cluster.sql(&["CREATE EXTENSION session_limit", "CREATE ROLE alice LOGIN"]);
    let mut superuser = cluster.superuser();
    for sql in [
        "SELECT session_limit.set_limit(-5, role => 'alice')",
        "SELECT * FROM session_limit.explain_login('nobody')",
        "SELECT session_limit.clear_limit(role => 'alice')",
        r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"max": "x"}'"#,
    ] {
        let error = superuser.try_query(sql).expect_err(sql);
        let said = format!("{error:?}").to_lowercase();
        assert!(!said.contains("backtrace"), "{said}");
        // It says where in the sources, as the server's own errors do.
        assert_ne!(error.fields[&'L'], "0", "{error:?}");
        assert!(error.fields[&'F'].ends_with(".rs"), "{error:?}");
        assert_eq!(error.fields[&'R'], "session_limit", "{error:?}");
    }
}

/// They wait for nothing: `max_wal_senders` is all there is for standbys.
fn waiting_walsenders_take_no_place(server: &Server) {
    let settings = [
        ("session_limit.exempt_replication", "off"),
        ("session_limit.max_wait", "10min"),
        ("authentication_timeout", "10min"),
    ];
    let cluster = Cluster::start(server, &settings);
    cluster.sql(&["CREATE ROLE alice LOGIN REPLICATION CONNECTION LIMIT 1"]);
    let _first = admitted(&cluster.login_of("alice"));
    let walsender = Target {
        database: None,
        ..cluster.login_of("alice")
    };
    assert_eq!(refused(&walsender).sqlstate(), "53300");
}
