//! The background worker.

use crate::scene::{go_on, stop, wait_until};
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use pg_test::wait_for;
use rustix::process::{Pid, Signal, kill_process};

tests![
    reclaims_what_a_vanished_process_left,
    survives,
    none_is_shown,
    keeps_no_database_from_being_dropped
];

fn worker(cluster: &Cluster) -> Option<Pid> {
    let workers = cluster.processes("postgres: session_limit worker");
    assert!(workers.len() <= 1, "one worker, not {workers:?}");
    workers.first().copied()
}

fn reclaims_what_a_vanished_process_left(server: &Server) {
    let cluster = Cluster::start(
        server,
        &[
            ("session_limit.sweep", "off"),
            ("session_limit.max_wait", "0"),
        ],
    );
    cluster.sql(&[
        "CREATE ROLE alice LOGIN CONNECTION LIMIT 1",
        "CREATE EXTENSION session_limit",
        "CREATE FUNCTION vanish() RETURNS void LANGUAGE c AS 'session_limit_probe', 'probe_vanish'",
    ]);
    let the_worker = wait_for("the worker", || worker(&cluster));
    let mut superuser = cluster.superuser();
    let role: u32 = superuser
        .value("SELECT oid FROM pg_roles WHERE rolname = 'alice'")
        .parse()
        .expect("an OID");
    let mut alice = cluster.login_of("alice").login().expect("the first");
    let pid = alice.pid;
    // The slot is to be seen before it is reclaimed.
    stop(the_worker);
    alice.query("SELECT vanish()");
    drop(alice);
    // No login meanwhile: it could be handed the same PGPROC, and with it the slot.
    let there = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
    wait_until(&mut superuser, &there, "0");
    assert_eq!(
        superuser.value("SELECT count(*) FROM session_limit.sessions WHERE NOT exempt"),
        "1"
    );
    go_on(the_worker);
    let event = wait_for("the worker to reclaim the slot", || {
        crate::events::logged(&cluster).pop()
    });
    let expected = serde_json::json!({"event": "reclaimed", "role": null, "database": null, "client_addr": null, "pid": pid, "role_oid": role});
    assert_eq!(event, expected);
    let row = superuser.query("SELECT event, usename, pid, detail FROM session_limit.events");
    let detail = format!(r#"{{"role_oid":{role}}}"#);
    assert_eq!(row, [["reclaimed", "", &pid.to_string(), &detail]]);
    assert_eq!(
        superuser.value("SELECT count(*) FROM session_limit.sessions WHERE NOT exempt"),
        "0"
    );
    cluster.login_of("alice").login().expect("room");
}

const SHOWN: &str = "SELECT worker_pid FROM session_limit.status";

/// The server has no room for one, and starts all the same.
fn none_is_shown(server: &Server) {
    let cluster = Cluster::start(server, &[("max_worker_processes", "0")]);
    cluster.sql(&["CREATE EXTENSION session_limit", "CREATE ROLE alice LOGIN"]);
    let mut alice = cluster.login_of("alice").login().expect("alice");
    assert_eq!(alice.query(SHOWN), [[""]]);
}

fn survives(server: &Server) {
    let mut cluster = Cluster::start(server, &[]);
    cluster.sql(&["CREATE EXTENSION session_limit"]);
    let first = wait_for("the worker", || worker(&cluster));
    cluster.reload();
    assert_eq!(worker(&cluster), Some(first), "a reload");
    let again = |cluster: &Cluster, before| {
        wait_for("the next worker", || {
            worker(cluster).filter(|pid| *pid != before)
        })
    };
    kill_process(first, Signal::TERM).expect("end the worker");
    let second = again(&cluster, first);
    let shown = second.as_raw_nonzero().to_string();
    wait_until(&mut cluster.superuser(), SHOWN, &shown);
    kill_process(second, Signal::KILL).expect("kill the worker");
    again(&cluster, second);
    cluster.stop(pg_test::cluster::Stop::Fast);
    assert!(
        cluster
            .log()
            .trim_end()
            .ends_with("database system is shut down")
    );
}

fn keeps_no_database_from_being_dropped(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    cluster.sql(&["CREATE DATABASE app", "CREATE DATABASE web"]);
    wait_for("the worker", || worker(&cluster));
    let mut superuser = cluster.superuser();
    let sql = "SELECT datname FROM pg_stat_activity WHERE backend_type = 'session_limit worker'";
    let in_none = || (superuser.query(sql) == [[String::new()]]).then_some(());
    wait_for("it to be connected", in_none);
    cluster.sql(&[
        "CREATE DATABASE copy TEMPLATE app",
        "DROP DATABASE app",
        "ALTER DATABASE web RENAME TO www",
        "DROP DATABASE www",
    ]);
}
