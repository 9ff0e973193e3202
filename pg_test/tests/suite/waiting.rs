//! Logins over a limit wait for room.

use crate::scene::{admitted, refused, wait_until};
use pg_test::client::{Refusal, Session, Target};
use pg_test::cluster::{Cluster, Stop};
use pg_test::server::Server;
use pg_test::wait_for;
use rustix::process::{Pid, Signal, kill_process};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

tests![
    room_lets_a_waiter_in,
    waiters_go_in_by_arrival,
    who_cannot_go_in_is_overtaken,
    an_arriving_login_takes_no_waiters_place,
    a_client_that_goes_away_is_noticed,
    a_refusal_comes_before_the_servers_timeouts,
    a_fast_shutdown_ends_waiters_at_once,
    a_terminated_waiter_is_told,
    a_cancelled_waiter_is_refused,
    a_flood_of_one_role_leaves_room_for_others,
    reserved_connections_stay_free,
    waiters_hold_no_snapshot,
    a_raised_limit_is_noticed,
    changed_settings_are_noticed,
    a_dropped_database_or_role_is_noticed,
];

type Outcome = Result<Session, Refusal>;

/// A cluster whose waiters wait as long as it takes.
fn patient(server: &Server, settings: &[(&str, &str)]) -> Cluster {
    let mut all = vec![
        ("session_limit.max_wait", "10min"),
        ("authentication_timeout", "10min"),
    ];
    all.extend(settings);
    let cluster = Cluster::start(server, &all);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN CONNECTION LIMIT 1",
        "CREATE ROLE bob LOGIN",
    ]);
    cluster
}

/// Logs in from another thread, and returns once the login waits, as the last of so many of its
/// role.
fn start_waiting(cluster: &Cluster, target: Target, last_of: usize) -> JoinHandle<Outcome> {
    let user = target.user.clone();
    let login = thread::spawn(move || target.login());
    wait_until_waiting(cluster, &user, last_of);
    login
}

fn wait_until_waiting(cluster: &Cluster, user: &str, number: usize) {
    let sql = format!(
        "SELECT coalesce(max(waiting), 0) FROM session_limit.usage WHERE per = 'role' AND subject = '{user}'"
    );
    let mut superuser = cluster.superuser();
    wait_until(&mut superuser, &sql, &number.to_string());
    superuser.end();
}

fn let_in(outcome: JoinHandle<Outcome>) -> Session {
    let outcome = outcome.join().expect("the thread");
    outcome.unwrap_or_else(|refusal| panic!("refused: {refusal:?}"))
}

fn sent_away(outcome: JoinHandle<Outcome>) -> Refusal {
    let outcome = outcome.join().expect("the thread");
    outcome.err().expect("a refusal")
}

fn room_lets_a_waiter_in(server: &Server) {
    let cluster = patient(server, &[]);
    let first = cluster.login_of("alice").login().expect("the first");
    let waiter = start_waiting(&cluster, cluster.login_of("alice"), 1);
    assert!(!waiter.is_finished());
    drop(first);
    let mut second = let_in(waiter);
    assert_eq!(
        second.value("SELECT count(*) FROM session_limit.sessions"),
        "1"
    );
    assert_eq!(second.value("SELECT waiting FROM session_limit.usage"), "0");
}

fn waiters_go_in_by_arrival(server: &Server) {
    let cluster = patient(server, &[]);
    for _ in 0..10 {
        let mut session = cluster.login_of("alice").login().expect("the first");
        let (sender, sessions) = mpsc::channel();
        for number in 0..5 {
            let (sender, target) = (sender.clone(), cluster.login_of("alice"));
            thread::spawn(move || sender.send((number, target.login())));
            wait_until_waiting(&cluster, "alice", number + 1);
        }
        for expected in 0..5 {
            drop(session);
            let (number, outcome) = sessions.recv().expect("a waiter's outcome");
            assert_eq!(number, expected);
            session = outcome.expect("room");
        }
        drop(session);
        cluster.wait_until_gone("alice");
    }
}

fn who_cannot_go_in_is_overtaken(server: &Server) {
    let cluster = patient(server, &[]);
    cluster.sql(&["CREATE DATABASE app CONNECTION LIMIT 2"]);
    let to_app = |role| cluster.login_of(role).to("app");
    let _alice = to_app("alice").login().expect("alice");
    let bob = to_app("bob").login().expect("bob");
    // alice waits for her own limit as well as for the database's, bob for the database's only.
    let second_alice = start_waiting(&cluster, to_app("alice"), 1);
    let second_bob = thread::spawn({
        let target = to_app("bob");
        move || target.login()
    });
    let sql = "SELECT waiting FROM session_limit.usage WHERE per = 'database' AND subject = 'app'";
    wait_until(&mut cluster.superuser(), sql, "2");
    drop(bob);
    let _bob = let_in(second_bob);
    assert!(!second_alice.is_finished());
    // Under a limit of 0 nobody ever fits: she is sent away at once.
    cluster.sql(&["ALTER ROLE alice CONNECTION LIMIT 0"]);
    assert_eq!(sent_away(second_alice).sqlstate(), "53300");
}

/// A place that becomes free while another login waits for it is not for whoever happens to come
/// by.
fn an_arriving_login_takes_no_waiters_place(server: &Server) {
    let cluster = patient(server, &[]);
    for _ in 0..20 {
        let first = cluster.login_of("alice").login().expect("the first");
        let waiter = start_waiting(&cluster, cluster.login_of("alice"), 1);
        let mut later: Vec<_> = (0..3)
            .map(|_| cluster.login_of("alice").connect())
            .collect();
        drop(first);
        for connection in &mut later {
            connection.send_startup(&cluster.login_of("alice"));
        }
        // The waiter is in, and holds its place, before any of the others is.
        let held = let_in(waiter);
        wait_until_waiting(&cluster, "alice", 3);
        drop(held);
        let later = later
            .into_iter()
            .map(|connection| thread::spawn(|| drop(connection.outcome().expect("in its turn"))));
        let later: Vec<_> = later.collect();
        later
            .into_iter()
            .for_each(|login| login.join().expect("the thread"));
        cluster.wait_until_gone("alice");
    }
}

fn a_client_that_goes_away_is_noticed(server: &Server) {
    let cluster = patient(server, &[]);
    let _first = cluster.login_of("alice").login().expect("the first");
    for target in [cluster.login_of("alice"), cluster.tcp_login_of("alice")] {
        let mut gone = target.connect();
        gone.send_startup(&target);
        wait_until_waiting(&cluster, "alice", 1);
        let process = waiting_process(&cluster);
        drop(gone);
        wait_until_waiting(&cluster, "alice", 0);
        wait_for("its backend to end", || {
            (!cluster.processes(" authentication").contains(&process)).then_some(())
        });
    }
    assert_eq!(
        cluster
            .log()
            .matches("FATAL:  connection to client lost")
            .count(),
        2
    );
    let mut superuser = cluster.superuser();
    let counted = "SELECT concat_ws(' ', abandoned, waited, wait_time > '0', refused) FROM session_limit.stats WHERE usename = 'alice'";
    assert_eq!(superuser.value(counted), "2 2 t 0");
    let events = "SELECT count(*) FROM session_limit.events
                  WHERE event = 'abandoned' AND usename = 'alice' AND (detail->>'waited_ms')::int >= 0";
    assert_eq!(superuser.value(events), "2");
}

/// The process of the only login that waits.
fn waiting_process(cluster: &Cluster) -> Pid {
    let waiting = cluster.processes(" authentication");
    assert_eq!(waiting.len(), 1, "logins that wait");
    waiting[0]
}

fn a_refusal_comes_before_the_servers_timeouts(server: &Server) {
    let cluster = patient(server, &[("authentication_timeout", "3s")]);
    let alice = cluster.login_of("alice");
    let _first = admitted(&alice);
    // The server says nothing. A machine may stand still for longer than the login leaves itself: another
    // time it does not.
    let in_time = |refusal: &dyn Fn() -> Refusal| {
        wait_for("a refusal in time", || {
            (refusal().sqlstate() == "53300").then_some(())
        });
    };
    in_time(&|| refused(&alice));
    if server.major >= 17 {
        cluster.set(&[("authentication_timeout", "10min")]);
        // Only the logins are to be held to it.
        cluster.sql(&["ALTER ROLE postgres SET transaction_timeout = 0"]);
        let set_while_it_waits = || {
            cluster.set(&[("transaction_timeout", "0")]);
            let waiter = start_waiting(&cluster, alice.clone(), 1);
            cluster.set(&[("transaction_timeout", "2s")]);
            sent_away(waiter)
        };
        in_time(&set_while_it_waits);
        in_time(&|| refused(&alice));
    }
}

fn a_fast_shutdown_ends_waiters_at_once(server: &Server) {
    let mut cluster = patient(server, &[]);
    let _first = cluster.login_of("alice").login().expect("the first");
    let waiters = [1, 2].map(|number| start_waiting(&cluster, cluster.login_of("alice"), number));
    cluster.stop(Stop::Fast);
    for waiter in waiters {
        assert_eq!(sent_away(waiter).sqlstate(), "57P01");
    }
}

fn a_terminated_waiter_is_told(server: &Server) {
    let cluster = patient(server, &[]);
    let _first = cluster.login_of("alice").login().expect("the first");
    let waiter = start_waiting(&cluster, cluster.login_of("alice"), 1);
    kill_process(waiting_process(&cluster), Signal::TERM).expect("signal the waiter");
    let refusal = sent_away(waiter);
    assert_eq!(refusal.sqlstate(), "57P01");
    assert_eq!(
        refusal.message(),
        "terminating connection due to administrator command"
    );
    assert!(refusal.authenticated);
    wait_until_waiting(&cluster, "alice", 0);
}

fn a_cancelled_waiter_is_refused(server: &Server) {
    let cluster = patient(server, &[]);
    let _first = cluster.login_of("alice").login().expect("the first");
    let waiter = start_waiting(&cluster, cluster.login_of("alice"), 1);
    kill_process(waiting_process(&cluster), Signal::INT).expect("signal the waiter");
    assert_eq!(sent_away(waiter).sqlstate(), "53300");
}

fn a_flood_of_one_role_leaves_room_for_others(server: &Server) {
    let cluster = patient(
        server,
        &[
            ("max_connections", "40"),
            ("session_limit.max_waiters", "12"),
        ],
    );
    cluster.sql(&["ALTER ROLE bob CONNECTION LIMIT 1"]);
    let first = cluster.login_of("alice").login().expect("the first");
    let target = cluster.login_of("alice");
    let mut flood: Vec<_> = (0..25).map(|_| target.connect()).collect();
    for connection in &mut flood {
        connection.send_startup(&target);
    }
    let (sender, outcomes) = mpsc::channel();
    for connection in flood {
        let sender = sender.clone();
        thread::spawn(move || sender.send(connection.outcome()));
    }
    // All but a quarter of the twelve are decided at once.
    for _ in 0..22 {
        let refusal = outcomes.recv().expect("an outcome").err().expect("no room");
        assert_eq!(refusal.sqlstate(), "53300", "{refusal:?}");
    }
    wait_until_waiting(&cluster, "alice", 3);
    // Others come in, and may wait.
    let bob = cluster.login_of("bob").login().expect("bob");
    let second_bob = start_waiting(&cluster, cluster.login_of("bob"), 1);
    drop(bob);
    let_in(second_bob);
    drop(first);
    for _ in 0..3 {
        outcomes
            .recv()
            .expect("an outcome")
            .expect("in its turn")
            .close();
    }
}

fn reserved_connections_stay_free(server: &Server) {
    let settings = [
        ("max_connections", "10"),
        ("superuser_reserved_connections", "3"),
        ("session_limit.max_waiters", "100"),
    ];
    let cluster = patient(server, &settings);
    let mut superuser = cluster.superuser();
    let target = cluster.login_of("alice");
    let first = target.login().expect("the first");
    // Of ten connections two are used and three reserved: five may wait. One comes after the other,
    // as each is decided by what is free at that moment.
    let sql = "SELECT coalesce(max(waiting), 0) FROM session_limit.usage WHERE subject = 'alice'";
    let (sender, outcomes) = mpsc::channel();
    for number in 1..=5 {
        let (sender, target) = (sender.clone(), target.clone());
        thread::spawn(move || sender.send(target.login()));
        wait_until(&mut superuser, sql, &number.to_string());
    }
    for _ in 0..3 {
        let refusal = refused(&target);
        assert_eq!(refusal.sqlstate(), "53300", "{refusal:?}");
        cluster.wait_for_processes(" authentication", 5);
    }
    assert_eq!(superuser.value(sql), "5");
    let superusers = [
        cluster.superuser(),
        cluster.superuser(),
        cluster.superuser(),
    ];
    assert_eq!(superuser.value(sql), "5", "using them sends nobody away");
    drop(superusers);
    let superusers = "SELECT count(*) FROM session_limit.sessions WHERE usename = 'postgres'";
    wait_until(&mut superuser, superusers, "1");
    drop(first);
    for _ in 0..5 {
        outcomes
            .recv()
            .expect("an outcome")
            .expect("in its turn")
            .close();
    }
}

fn waiters_hold_no_snapshot(server: &Server) {
    let cluster = patient(server, &[("autovacuum", "off")]);
    let first = cluster.login_of("alice").login().expect("the first");
    let waiter = start_waiting(&cluster, cluster.login_of("alice"), 1);
    let mut superuser = cluster.superuser();
    // A process without a database keeps dead rows of shared catalogs only.
    let size = "SELECT pg_relation_size('pg_shdescription')";
    let before = superuser.value(size);
    superuser.query(
        "DO $$ BEGIN FOR i IN 1..5000 LOOP EXECUTE format('COMMENT ON ROLE bob IS %L', i); END LOOP; END $$",
    );
    superuser.query("COMMENT ON ROLE bob IS NULL");
    assert_ne!(superuser.value(size), before);
    // Else something keeps the dead rows; others may do so for a moment.
    wait_for("the dead rows to go", || {
        superuser.query("VACUUM pg_shdescription");
        (superuser.value(size) == before).then_some(())
    });
    wait_until_waiting(&cluster, "alice", 1);
    drop(first);
    let_in(waiter);
}

fn a_raised_limit_is_noticed(server: &Server) {
    let cluster = patient(server, &[]);
    let _first = cluster.login_of("alice").login().expect("the first");
    let waiter = start_waiting(&cluster, cluster.login_of("alice"), 1);
    cluster.sql(&["ALTER ROLE alice CONNECTION LIMIT 2"]);
    let _second = let_in(waiter);
    let waiter = start_waiting(&cluster, cluster.login_of("alice"), 1);
    cluster.sql(&["ALTER ROLE alice SUPERUSER"]);
    let_in(waiter);
}

fn changed_settings_are_noticed(server: &Server) {
    let cluster = patient(server, &[("session_limit.max_sessions_per_role", "1")]);
    let _first = cluster.login_of("bob").login().expect("the first");
    let waiter = start_waiting(&cluster, cluster.login_of("bob"), 1);
    cluster.set(&[("session_limit.max_sessions_per_role", "2")]);
    let _second = let_in(waiter);
    let waiter = start_waiting(&cluster, cluster.login_of("bob"), 1);
    cluster.set(&[("session_limit.max_wait", "0")]);
    assert_eq!(sent_away(waiter).sqlstate(), "53300");
    cluster.set(&[("session_limit.max_wait", "10min")]);
    let waiter = start_waiting(&cluster, cluster.login_of("bob"), 1);
    cluster.set(&[("session_limit.enforcement", "off")]);
    let_in(waiter);
}

fn a_dropped_database_or_role_is_noticed(server: &Server) {
    let cluster = patient(server, &[]);
    cluster.sql(&["CREATE DATABASE app"]);
    let _first = cluster.login_of("alice").login().expect("the first");
    let to_app = cluster.login_of("alice").to("app");
    let waiter = start_waiting(&cluster, to_app, 1);
    cluster.sql(&["DROP DATABASE app"]);
    let refusal = sent_away(waiter);
    match refusal.sqlstate() {
        "3D000" => assert_eq!(refusal.message(), r#"database "app" does not exist"#),
        // DROP DATABASE marks it invalid before it removes it.
        _ => assert_eq!(
            refusal.message(),
            r#"cannot connect to invalid database "app""#
        ),
    }
    let waiter = start_waiting(&cluster, cluster.login_of("alice"), 1);
    cluster.sql(&["DROP ROLE alice"]);
    let refusal = sent_away(waiter);
    assert_eq!(
        (refusal.sqlstate(), refusal.message()),
        ("28000", r#"role "alice" does not exist"#)
    );
}
