//! The wall clock is set, by an hour: nobody becomes older, younger or longer idle by that. And a session is idle until
//! the moment when it is told to end.

use crate::scene::{admitted, go_on, refused, status, told, wait_until};
use pg_test::client::Session;
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use pg_test::wait_for;
use rustix::process::Pid;
use std::thread;

tests![
    set_forward_nobody_is_old_or_idle,
    set_back_nobody_is_young,
    set_back_the_longest_idle_ends,
    set_forward_who_waits_goes_on,
    what_the_server_does_in_an_idle_session,
    a_session_that_wakes_is_spared,
];

const HOUR: i64 = 3600;
const MIN_AGE: &str = "session_limit.replace_min_age";
const IDLE_AFTER: &str = "session_limit.replace_idle_after";
const POLICY: &str = "session_limit.on_excess";

fn cluster(server: &Server, max: u32, settings: &[(&str, &str)]) -> Cluster {
    let mut all = vec![("session_limit.max_wait", "0")];
    all.extend(settings);
    let cluster = Cluster::on_stage(server, &all);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        &format!("CREATE ROLE alice LOGIN CONNECTION LIMIT {max}"),
    ]);
    cluster
}

fn hour_of(session: &mut Session) -> i64 {
    let hour = session.value("SELECT floor(extract(epoch FROM clock_timestamp()) / 3600)::int");
    hour.parse().expect("a number")
}

/// By how many hours the server's clock has been set, as the server sees it.
fn set(cluster: &Cluster, hours: i64) {
    let mut superuser = cluster.superuser();
    let before = hour_of(&mut superuser);
    cluster.direct(hours * HOUR, false);
    assert_ne!(hour_of(&mut superuser), before, "the clock is set");
    superuser.end();
}

fn set_forward_nobody_is_old_or_idle(server: &Server) {
    let young = [(POLICY, "replace_oldest"), (MIN_AGE, "30min")];
    let cluster = cluster(server, 1, &young);
    let alice = cluster.login_of("alice");
    let mut first = admitted(&alice);
    set(&cluster, 1);
    assert_eq!(refused(&alice).sqlstate(), "53300");
    cluster.set(&[
        (POLICY, "replace_idle"),
        (MIN_AGE, "0"),
        (IDLE_AFTER, "30min"),
    ]);
    assert_eq!(refused(&alice).sqlstate(), "53300");
    assert!(first.is_alive());
    cluster.set(&[(IDLE_AFTER, "10ms")]);
    let _second = wait_for("alice to be idle", || alice.login().ok());
    told(&mut first);
}

fn set_back_nobody_is_young(server: &Server) {
    let cluster = cluster(server, 1, &[(POLICY, "replace_oldest")]);
    let alice = cluster.login_of("alice");
    let mut first = admitted(&alice);
    set(&cluster, -1);
    // A second later it is old enough.
    let mut second = wait_for("the first to be old", || alice.login().ok());
    told(&mut first);
    cluster.set(&[(POLICY, "replace_idle"), (IDLE_AFTER, "1s")]);
    second.query("SELECT 1");
    set(&cluster, -2);
    let _third = wait_for("the second to be idle", || alice.login().ok());
    told(&mut second);
}

fn set_back_the_longest_idle_ends(server: &Server) {
    let policy = [(POLICY, "replace_idle"), (MIN_AGE, "0"), (IDLE_AFTER, "0")];
    let cluster = cluster(server, 2, &policy);
    let alice = cluster.login_of("alice");
    let (mut first, mut second) = (admitted(&alice), admitted(&alice));
    first.query("SELECT 'busy'");
    second.query("SELECT 'idle from now on'");
    set(&cluster, -1);
    // By the wall clock it has been idle for longer from now on.
    first.query("SELECT 'busy'");
    let _third = admitted(&alice);
    told(&mut second);
    assert!(first.is_alive());
}

fn set_forward_who_waits_goes_on(server: &Server) {
    let patient = [
        ("session_limit.max_wait", "10min"),
        ("authentication_timeout", "10min"),
    ];
    let cluster = cluster(server, 1, &patient);
    let alice = cluster.login_of("alice");
    let first = admitted(&alice);
    let waiter = thread::spawn(move || alice.login().map(|mut session| session.is_alive()));
    let mut superuser = cluster.superuser();
    let waiting = "SELECT max(waiting) FROM session_limit.usage";
    wait_until(&mut superuser, waiting, "1");
    cluster.direct(HOUR, false);
    // A waiter looks once a second whether it may go on.
    superuser.query("SELECT pg_sleep(3)");
    assert_eq!(superuser.value(waiting), "1");
    first.end();
    assert_eq!(waiter.join().expect("the thread"), Ok(true));
}

/// A session that listens is idle, also while the server reads for it what others have announced.
fn what_the_server_does_in_an_idle_session(server: &Server) {
    let policy = [(POLICY, "replace_idle"), (MIN_AGE, "0"), (IDLE_AFTER, "0")];
    let cluster = cluster(server, 2, &policy);
    let alice = cluster.login_of("alice");
    let (mut listens, mut other) = (admitted(&alice), admitted(&alice));
    listens.query("LISTEN news");
    other.query("SELECT 1");
    let mut superuser = cluster.superuser();
    superuser.query("NOTIFY news");
    superuser.query("SELECT pg_sleep(1)");
    let _third = admitted(&alice);
    told(&mut listens);
    assert!(other.is_alive());
}

/// It begins a transaction just when a login has decided to take its place.
fn a_session_that_wakes_is_spared(server: &Server) {
    let policy = [(POLICY, "replace_idle"), (MIN_AGE, "0"), (IDLE_AFTER, "0")];
    let cluster = cluster(server, 2, &policy);
    let alice = cluster.login_of("alice");
    let (mut first, mut second) = (admitted(&alice), admitted(&alice));
    first.query("BEGIN");
    // Decided on the second: it wakes, and so nobody is idle. Then the first becomes idle: it ends instead.
    for wakes_first in [false, true] {
        second.query("SELECT 1");
        cluster.direct(0, true);
        let login = thread::spawn({
            let alice = alice.clone();
            move || alice.login()
        });
        let stopped = wait_for("the login to stop", || {
            let logins = cluster.processes(" authentication");
            logins.into_iter().find(is_stopped)
        });
        cluster.direct(0, false);
        second.query("BEGIN");
        if wakes_first {
            first.query("COMMIT");
        }
        go_on(stopped);
        let outcome = login.join().expect("the thread");
        assert!(second.is_alive(), "it is in a transaction");
        second.query("COMMIT");
        match (wakes_first, outcome) {
            (false, Err(refusal)) => {
                assert_eq!(refusal.sqlstate(), "53300", "{refusal:?}");
                assert!(!refusal.detail().contains("told to end"), "{refusal:?}");
                assert!(first.is_alive());
            }
            (true, Ok(_)) => drop(told(&mut first)),
            (_, outcome) => panic!("{wakes_first}: {:?}", outcome.err()),
        }
    }
}

fn is_stopped(process: &Pid) -> bool {
    status(*process).contains("State:\tT")
}
