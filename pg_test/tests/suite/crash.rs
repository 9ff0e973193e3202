//! Sessions that end in other ways than by their client's goodbye: the slots always equal the live
//! client backends.

use crate::scene::{crash, wait_until, wait_until_left};
use pg_test::client::Session;
use pg_test::cluster::{Cluster, Stop};
use pg_test::server::Server;

tests![
    a_backend_is_killed,
    a_backend_is_terminated,
    the_server_is_restarted,
    the_connections_are_used_up
];

const CREATE: &[&str] = &[
    "CREATE ROLE alice LOGIN CONNECTION LIMIT 5",
    "CREATE EXTENSION session_limit",
];

fn cluster(server: &Server) -> Cluster {
    let cluster = Cluster::start(
        server,
        &[("max_connections", "20"), ("restart_after_crash", "on")],
    );
    cluster.sql(CREATE);
    cluster
}

fn five(cluster: &Cluster) -> Vec<Session> {
    (0..5)
        .map(|_| cluster.login_of("alice").login().expect("room for five"))
        .collect()
}

/// Who is coming or leaving is for a moment in only one of them.
fn wait_until_slots_and_backends_agree(cluster: &Cluster) {
    let differing = "SELECT count(*) FROM
        (SELECT pid FROM session_limit.sessions) s
        FULL JOIN (SELECT pid FROM pg_stat_activity WHERE backend_type IN ('client backend', 'walsender')) a USING (pid)
        WHERE s.pid IS NULL OR a.pid IS NULL";
    let mut superuser = cluster.superuser();
    wait_until(&mut superuser, differing, "0");
    superuser.end();
}

/// The slots are the client backends, and of a storm exactly five are let in.
fn check(cluster: &Cluster) {
    wait_until_slots_and_backends_agree(cluster);
    cluster.wait_until_gone("alice");
    let outcomes = cluster.login_of("alice").storm(12);
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 5);
    wait_until_slots_and_backends_agree(cluster);
    drop(outcomes);
    cluster.wait_until_gone("alice");
    wait_until_slots_and_backends_agree(cluster);
}

fn a_backend_is_killed(server: &Server) {
    let cluster = cluster(server);
    let sessions = five(&cluster);
    crash(&cluster, &sessions[2]);
    check(&cluster);
}

fn a_backend_is_terminated(server: &Server) {
    let cluster = cluster(server);
    let sessions = five(&cluster);
    let mut superuser = cluster.superuser();
    for session in &sessions[..3] {
        assert_eq!(
            superuser.value(&format!("SELECT pg_terminate_backend({})", session.pid)),
            "t"
        );
    }
    superuser.end();
    wait_until_left(&cluster, "alice", 2);
    cluster.wait_for_processes("postgres: alice ", 2);
    let outcomes = cluster.login_of("alice").storm(12);
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 3);
    drop((sessions, outcomes));
    check(&cluster);
}

fn the_server_is_restarted(server: &Server) {
    let mut cluster = cluster(server);
    for stop in [Stop::Immediate, Stop::Fast] {
        let sessions = five(&cluster);
        cluster.stop(stop);
        cluster.start_again();
        check(&cluster);
        drop(sessions);
    }
}

fn the_connections_are_used_up(server: &Server) {
    let cluster = cluster(server);
    cluster.sql(&["CREATE ROLE bob LOGIN"]);
    let alice = five(&cluster);
    let bob: Vec<_> = (0..40)
        .map_while(|_| cluster.login_of("bob").login().ok())
        .collect();
    assert!(bob.len() < 20, "max_connections was not reached");
    let refusals = cluster.login_of("bob").storm(30);
    assert!(refusals.iter().all(|outcome| {
        outcome
            .as_ref()
            .is_err_and(|refusal| refusal.sqlstate() == "53300")
    }));
    // Who was refused for want of a connection may hold one that a superuser needs.
    cluster.wait_for_processes("postgres: bob ", bob.len());
    drop((alice, bob));
    cluster.wait_until_gone("bob");
    check(&cluster);
}
