//! What is broken, or cannot be read: it locks nobody out, and lets nobody slip by.

use pg_test::cluster::{Cluster, Stop};
use pg_test::server::Server;
use pg_test::wait_for;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

tests![privileges_that_cannot_be_read, labels_that_cannot_be_read];

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
