//! Sessions that end for a newer one of their role.

use crate::scene::{
    TERMINATED, admitted, go_on, process, refused, set_label, status, stop, told, wait_until,
};
use pg_test::client::{Connection, Refusal, Session, Target};
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use pg_test::wait_for;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

tests![
    the_oldest,
    the_longest_idle,
    the_policy_is_a_limits_a_labels_or_the_settings,
    a_place_that_becomes_free_in_time_ends_nobody,
    who_waits_replaces_before_the_server_ends_the_login,
    one_limit_that_refuses_is_enough,
    each_limit_is_given_room,
    under_a_lowered_limit_several_end,
    the_young_and_those_of_other_roles_are_spared,
    a_storm_leaves_one,
    a_storm_replaces_nobody_young,
    two_clients_that_come_back_whenever_they_are_replaced,
    a_waiter_does_not_get_the_place,
    whatever_a_session_does_it_is_told,
    names_with_odd_characters,
    the_log_may_say_more_or_less,
    a_terminated_session_is_told_nothing_of_it,
    a_session_that_stays,
    a_login_that_goes_while_it_replaces,
    a_login_about_to_fail_ends_nobody,
    a_flood_that_fails_ends_nobody,
    whoever_may_not_connect_ends_nobody,
    reserved_connections,
    an_exempt_session_is_spared,
    on_a_standby,
    what_psql_shows,
    psql_that_connects_anew,
];

const AT_ONCE: (&str, &str) = ("session_limit.max_wait", "0");
const ANY_AGE: (&str, &str) = ("session_limit.replace_min_age", "0");
const OLDEST: (&str, &str) = ("session_limit.on_excess", "replace_oldest");
const IDLE: (&str, &str) = ("session_limit.on_excess", "replace_idle");

/// Whoever was refused holds one for a moment longer.
const CONNECTIONS: (&str, &str) = ("max_connections", "300");

/// A login may wait for as long as its limit says.
const PATIENT_SERVER: (&str, &str) = ("authentication_timeout", "10min");

/// Alice may have one session; another takes its place at once.
fn one_of_alice(server: &Server) -> Cluster {
    let settings = [AT_ONCE, ANY_AGE, OLDEST, CONNECTIONS, PATIENT_SERVER];
    let cluster = Cluster::start(server, &settings);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN CONNECTION LIMIT 1",
    ]);
    cluster
}

/// It was told that it ended for a session of this role, from there.
fn assert_replaced(why: &Refusal, role: &str, from: &str) {
    assert_eq!((why.sqlstate(), why.message()), ("57P01", TERMINATED));
    let detail =
        format!(r#"This session was replaced by a newer session of role "{role}" from {from}."#);
    assert_eq!(why.detail(), detail);
}

const SOCKET: &str = "a local socket";

fn was_replaced(mut session: Session) {
    assert_replaced(&told(&mut session), "alice", SOCKET);
}

/// How many of alice's sessions count.
fn in_use(superuser: &mut Session) -> String {
    let sql = "SELECT coalesce(max(in_use), 0) FROM session_limit.usage WHERE subject = 'alice'";
    superuser.value(sql)
}

fn the_oldest(server: &Server) {
    let cluster = Cluster::start(server, &[AT_ONCE, ANY_AGE, OLDEST]);
    cluster.sql(&["CREATE ROLE alice LOGIN CONNECTION LIMIT 2"]);
    let mut first = admitted(&cluster.login_of("alice"));
    let mut second = admitted(&cluster.login_of("alice"));
    let mut third = admitted(&cluster.tcp_login_of("alice"));
    assert_replaced(&told(&mut first), "alice", "127.0.0.1");
    assert!(second.is_alive() && third.is_alive());
}

fn the_longest_idle(server: &Server) {
    let any_idle = ("session_limit.replace_idle_after", "0");
    let cluster = Cluster::start(server, &[AT_ONCE, ANY_AGE, IDLE, any_idle]);
    cluster.sql(&["CREATE ROLE alice LOGIN CONNECTION LIMIT 4"]);
    let alice = cluster.login_of("alice");
    let mut sessions: Vec<Session> = (0..4).map(|_| admitted(&alice)).collect();
    sessions[0].query("BEGIN");
    // Whoever has been idle longest is neither the oldest nor the last.
    for session in [2, 1, 3] {
        sessions[session].query("SELECT 1");
    }
    let mut busy = sessions.remove(1);
    let at_work = thread::spawn(move || {
        let slept = busy.try_query("SELECT pg_sleep(600)");
        (busy, slept)
    });
    let mut superuser = cluster.superuser();
    let active =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'alice' AND state = 'active'";
    wait_until(&mut superuser, active, "1");
    // Left: in a transaction, two that are idle.
    let _fifth = admitted(&alice);
    was_replaced(sessions.remove(1));
    assert!(sessions[0].is_alive() && sessions[1].is_alive());
    // None has been idle for so long, or is known to be.
    cluster.set(&[("session_limit.replace_idle_after", "5min")]);
    assert_eq!(refused(&alice).sqlstate(), "53300");
    cluster.set(&[("session_limit.replace_idle_after", "0")]);
    cluster.set(&[("track_activities", "off")]);
    let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'alice'";
    superuser.query(others);
    let (_, slept) = at_work.join().expect("the thread");
    assert_eq!(slept.expect_err("terminated").detail(), "");
    let _unknown: Vec<Session> = wait_for("the others to be gone", || {
        let sessions: Option<Vec<Session>> = (0..4).map(|_| alice.login().ok()).collect();
        sessions
    });
    assert_eq!(refused(&alice).sqlstate(), "53300");
}

fn the_policy_is_a_limits_a_labels_or_the_settings(server: &Server) {
    let cluster = Cluster::start(server, &[AT_ONCE, ANY_AGE]);
    let alice = cluster.login_of("alice");
    cluster.sql(&[
        "CREATE ROLE team",
        "CREATE ROLE alice LOGIN CONNECTION LIMIT 1",
    ]);
    let mut session = admitted(&alice);
    let mut expect = |replaces: bool, sql: &[&str]| {
        cluster.sql(sql);
        if replaces {
            was_replaced(std::mem::replace(&mut session, admitted(&alice)));
        } else {
            assert_eq!(refused(&alice).sqlstate(), "53300", "{sql:?}");
            assert!(session.is_alive());
        }
    };
    let of_alice = |json| set_label("ROLE alice", json);
    expect(false, &[]);
    expect(true, &[&of_alice(r#"{"on_excess": "replace_oldest"}"#)]);
    expect(
        false,
        &["SECURITY LABEL FOR session_limit ON ROLE alice IS NULL"],
    );
    let of_team = set_label("ROLE team", r#"{"on_excess": "replace_oldest"}"#);
    expect(true, &[&of_team, "GRANT team TO alice"]);
    expect(false, &[&of_alice(r#"{"on_excess": "refuse"}"#)]);
    expect(
        false,
        &[
            "ALTER ROLE alice CONNECTION LIMIT -1",
            "DROP ROLE team",
            &of_alice(r#"{"max": 1}"#),
        ],
    );
    expect(
        true,
        &[&of_alice(
            r#"{"limits": [{"max": 1, "on_excess": "replace_oldest"}]}"#,
        )],
    );
    expect(
        false,
        &[&of_alice(
            r#"{"limits": [{"max": 1, "on_excess": "refuse"}], "on_excess": "replace_oldest"}"#,
        )],
    );
    cluster.set(&[OLDEST]);
    expect(false, &[]);
    expect(true, &[&of_alice(r#"{"max": 1}"#)]);
    expect(
        false,
        &[&of_alice(r#"{"max": 1, "on_excess": "replace_idle"}"#)],
    );
}

fn a_place_that_becomes_free_in_time_ends_nobody(server: &Server) {
    let long = ("session_limit.max_wait", "60s");
    let cluster = Cluster::start(server, &[long, ANY_AGE, OLDEST]);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN CONNECTION LIMIT 2",
    ]);
    let alice = cluster.login_of("alice");
    let (mut first, second) = (admitted(&alice), admitted(&alice));
    let waiter = thread::spawn({
        let alice = alice.clone();
        move || alice.login()
    });
    let mut superuser = cluster.superuser();
    let waiting = "SELECT max(waiting) FROM session_limit.usage";
    wait_until(&mut superuser, waiting, "1");
    second.end();
    let mut third = waiter.join().expect("the thread").expect("room");
    assert!(first.is_alive() && third.is_alive());
    // Without room it ends one, and its client learns nothing of how long that took.
    cluster.set(&[("session_limit.max_wait", "50ms")]);
    let _fourth = admitted(&alice);
    was_replaced(first);
    assert!(third.is_alive());
}

fn one_limit_that_refuses_is_enough(server: &Server) {
    let cluster = one_of_alice(server);
    cluster.sql(&[&set_label(
        "DATABASE postgres",
        r#"{"max": 2, "per": "role", "on_excess": "refuse"}"#,
    )]);
    cluster.sql(&["ALTER ROLE alice CONNECTION LIMIT 2"]);
    let alice = cluster.login_of("alice");
    let mut both = [admitted(&alice), admitted(&alice)];
    let refusal = refused(&alice);
    assert_eq!(
        refusal.message(),
        r#"too many connections for role "alice" in database "postgres""#
    );
    assert!(!refusal.detail().contains("told to end"), "{refusal:?}");
    assert!(both.iter_mut().all(Session::is_alive));
    cluster.sql(&[&set_label(
        "DATABASE postgres",
        r#"{"max": 3, "per": "role", "on_excess": "refuse"}"#,
    )]);
    admitted(&alice).end();
    let [first, mut second] = both;
    was_replaced(first);
    assert!(second.is_alive());
}

fn who_waits_replaces_before_the_server_ends_the_login(server: &Server) {
    let cluster = one_of_alice(server);
    cluster.set(&[
        ("session_limit.max_wait", "10min"),
        ("authentication_timeout", "3s"),
    ]);
    let alice = cluster.login_of("alice");
    // A machine may stand still for longer than the login leaves itself: another time it does not.
    wait_for("a login in time", || {
        let mut first = alice.login().ok()?;
        let mut second = alice.login().ok()?;
        assert_replaced(&told(&mut first), "alice", SOCKET);
        assert!(second.is_alive());
        Some(())
    });
}

/// One session is in the way of alice's total, another of her number in the database.
fn each_limit_is_given_room(server: &Server) {
    let cluster = one_of_alice(server);
    cluster.sql(&[
        "CREATE DATABASE app",
        "ALTER ROLE alice CONNECTION LIMIT -1",
    ]);
    let json = r#"{"limits": [{"max": 1, "database": "app"}, {"max": 1, "per": "address"}]}"#;
    cluster.sql(&[&set_label("ROLE alice", json)]);
    let in_app = admitted(&cluster.login_of("alice").to("app"));
    let from_there = admitted(&cluster.login_from("alice", "127.0.0.2"));
    let mut from_here = admitted(&cluster.login_from("alice", "127.0.0.3"));
    let _new = admitted(&cluster.login_from("alice", "127.0.0.2").to("app"));
    for mut ended in [in_app, from_there] {
        assert_replaced(&told(&mut ended), "alice", "127.0.0.2");
    }
    assert!(from_here.is_alive());
}

fn under_a_lowered_limit_several_end(server: &Server) {
    let cluster = one_of_alice(server);
    cluster.sql(&["ALTER ROLE alice CONNECTION LIMIT 8"]);
    let mut sessions: Vec<Session> = (0..8)
        .map(|_| admitted(&cluster.login_of("alice")))
        .collect();
    cluster.sql(&["ALTER ROLE alice CONNECTION LIMIT 2"]);
    let mut new = admitted(&cluster.login_of("alice"));
    let mut last = sessions.pop().expect("the eighth");
    sessions.into_iter().for_each(was_replaced);
    assert!(last.is_alive() && new.is_alive());
}

fn the_young_and_those_of_other_roles_are_spared(server: &Server) {
    let cluster = Cluster::start(server, &[AT_ONCE, OLDEST]);
    cluster.set(&[("session_limit.replace_min_age", "1h")]);
    cluster.sql(&[
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
        "CREATE ROLE team ROLE alice, bob",
    ]);
    cluster.sql(&[&set_label("ROLE team", r#"{"max": 2, "per": "group"}"#)]);
    let mut alice = admitted(&cluster.login_of("alice"));
    let mut bob = admitted(&cluster.login_of("bob"));
    let refusal = refused(&cluster.login_of("bob"));
    assert_eq!(refusal.sqlstate(), "53300");
    let why = " None of these sessions may be replaced now.";
    assert!(refusal.detail().ends_with(why), "{refusal:?}");
    cluster.set(&[ANY_AGE]);
    let mut bobs = admitted(&cluster.login_of("bob"));
    assert_replaced(&told(&mut bob), "bob", SOCKET);
    assert!(alice.is_alive() && bobs.is_alive());
}

/// Thirty logins at once, fifty times, each time after the one that was left over is gone.
fn a_storm_leaves_one(server: &Server) {
    let cluster = one_of_alice(server);
    let mut superuser = cluster.superuser();
    let mut soon = 0;
    for max_wait in ["0", "100ms"] {
        cluster.set(&[("session_limit.max_wait", max_wait)]);
        for _ in 0..25 {
            let (mut sessions, refusals) = storm(&cluster, &mut superuser, &mut soon);
            let mut alive: Vec<Session> = Vec::new();
            while let Some(mut session) = sessions.pop() {
                match session.try_query("SELECT 1") {
                    Ok(_) => alive.push(session),
                    Err(why) => assert_replaced(&why, "alice", SOCKET),
                }
            }
            assert_eq!(alive.len(), 1);
            for refusal in refusals {
                match refusal.sqlstate() {
                    // Replaced before it was told that it is in.
                    "57P01" => assert_replaced(&refusal, "alice", SOCKET),
                    // The server's own would have none.
                    _ => assert!(refusal.detail().starts_with("The limit is "), "{refusal:?}"),
                }
            }
            alive.into_iter().for_each(Session::end);
        }
    }
    assert!(soon > 0, "no storm settled within a second");
}

/// By default nobody is replaced who is younger than a second. Here nobody is older than young, however
/// long the machine takes: the first wins.
fn a_storm_replaces_nobody_young(server: &Server) {
    let cluster = Cluster::start(server, &[OLDEST, CONNECTIONS]);
    let min_age = "session_limit.replace_min_age";
    let default = cluster.superuser().value(&format!("SHOW {min_age}"));
    assert_eq!(default, "1s");
    cluster.set(&[(min_age, "1h")]);
    cluster.sql(&["CREATE ROLE alice LOGIN CONNECTION LIMIT 1"]);
    let (mut superuser, mut soon) = (cluster.superuser(), 0);
    for _ in 0..50 {
        let (mut sessions, refusals) = storm(&cluster, &mut superuser, &mut soon);
        for refusal in refusals {
            assert!(refusal.detail().starts_with("The limit is "), "{refusal:?}");
        }
        assert_eq!(sessions.len(), 1);
        assert!(sessions[0].is_alive());
        sessions.into_iter().for_each(Session::end);
    }
    assert!(soon > 0, "no storm settled within a second");
}

/// Who was let in, and who was not, when only one session is left; counts if that took less than a second.
fn storm(
    cluster: &Cluster,
    superuser: &mut Session,
    soon: &mut u32,
) -> (Vec<Session>, Vec<Refusal>) {
    let (mut sessions, mut refusals) = (Vec::new(), Vec::new());
    for outcome in cluster.login_of("alice").storm(30) {
        match outcome {
            Ok(session) => sessions.push(session),
            Err(refusal) => refusals.push(refusal),
        }
    }
    let decided = Instant::now();
    let there = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'alice'";
    wait_until(superuser, there, "1");
    *soon += u32::from(decided.elapsed() < Duration::from_secs(1));
    cluster.wait_for_processes(" authentication", 0);
    (sessions, refusals)
}

/// Whoever is in holds a lock, which is given up when a session ends: never are two in. (Nor would the
/// server let them, and its own refusal has no DETAIL.)
fn two_clients_that_come_back_whenever_they_are_replaced(server: &Server) {
    let cluster = one_of_alice(server);
    for (min_age, times) in [("0", 25), ("100ms", 5)] {
        cluster.set(&[("session_limit.replace_min_age", min_age)]);
        let been_in = [0, 1].map(|_| AtomicUsize::new(0));
        let done = || {
            been_in
                .iter()
                .all(|number| number.load(Ordering::SeqCst) >= times)
        };
        thread::scope(|scope| {
            for number in &been_in {
                scope.spawn(|| {
                    while !done() {
                        come_back(&cluster, number);
                    }
                });
            }
        });
        cluster.wait_until_gone("alice");
    }
}

fn come_back(cluster: &Cluster, been_in: &AtomicUsize) {
    let mut session = match cluster.login_of("alice").login() {
        Ok(session) => session,
        Err(refusal) if refusal.sqlstate() == "53300" => {
            assert!(refusal.detail().starts_with("The limit is "), "{refusal:?}");
            return;
        }
        Err(refusal) => return assert_replaced(&refusal, "alice", SOCKET),
    };
    let mut locks = session.try_query("SELECT pg_try_advisory_lock(1)");
    if let Ok(rows) = &locks {
        assert_eq!(rows[0][0], "t", "two are in");
        been_in.fetch_add(1, Ordering::SeqCst);
        // Until the other comes, or has come often enough.
        for _ in 0..100 {
            locks = session.try_query("SELECT pg_sleep(0.005)");
            if locks.is_err() {
                break;
            }
        }
    }
    if let Err(why) = locks {
        assert_replaced(&why, "alice", SOCKET);
    }
}

/// Bob waits for the team's only place, and came before the login to which it is handed on.
fn a_waiter_does_not_get_the_place(server: &Server) {
    let cluster = one_of_alice(server);
    cluster.sql(&["CREATE ROLE bob LOGIN", "CREATE ROLE team ROLE alice, bob"]);
    let json = r#"{"max": 1, "per": "group", "max_wait": "10min", "on_excess": "replace_oldest"}"#;
    cluster.sql(&[
        &set_label("ROLE team", json),
        &set_label("ROLE alice", r#"{"max_wait": 0}"#),
    ]);
    let mut alice = admitted(&cluster.login_of("alice"));
    let bob = cluster.login_of("bob");
    let waiter = thread::spawn(move || bob.login());
    let mut superuser = cluster.superuser();
    let waiting = "SELECT waiting FROM session_limit.usage WHERE per = 'group'";
    wait_until(&mut superuser, waiting, "1");
    for _ in 0..50 {
        was_replaced(std::mem::replace(
            &mut alice,
            admitted(&cluster.login_of("alice")),
        ));
        assert!(!waiter.is_finished());
        assert_eq!(superuser.value(waiting), "1");
    }
    assert!(alice.is_alive());
    drop(alice);
    waiter.join().expect("the thread").expect("room for bob");
}

fn whatever_a_session_does_it_is_told(server: &Server) {
    let cluster = one_of_alice(server);
    let (local, tcp) = (cluster.login_of("alice"), cluster.tcp_login_of("alice"));
    let elsewhere = cluster.login_from("alice", "127.0.0.9");
    for (victim, heir, from) in [
        (&local, &tcp, "127.0.0.1"),
        (&tcp, &local, SOCKET),
        (&tcp, &elsewhere, "127.0.0.9"),
    ] {
        for doing in ["", "BEGIN", "BEGIN; SELECT 1/0"] {
            let mut session = admitted(victim);
            let _ = session.try_query(doing);
            let new = admitted(heir);
            assert_replaced(&told(&mut session), "alice", from);
            new.end();
        }
        for doing in ["SELECT pg_sleep(600)", "BEGIN; SELECT pg_sleep(600)"] {
            let mut session = admitted(victim);
            let pid = session.pid;
            let working = thread::spawn(move || session.try_query(doing));
            wait_for_sleep(&cluster, pid);
            admitted(heir).end();
            let why = working.join().expect("the thread").expect_err(doing);
            assert_replaced(&why, "alice", from);
        }
    }
}

fn wait_for_sleep(cluster: &Cluster, pid: i32) {
    let sql = format!("SELECT wait_event FROM pg_stat_activity WHERE pid = {pid}");
    let mut superuser = cluster.superuser();
    wait_until(&mut superuser, &sql, "PgSleep");
    superuser.end();
}

fn names_with_odd_characters(server: &Server) {
    let cluster = Cluster::start(server, &[AT_ONCE, ANY_AGE, OLDEST]);
    for name in [r#"al"ice's"#, "100 %s %n %%", "Zoë \\", "a\tb"] {
        let quoted = name.replace('"', "\"\"");
        cluster.sql(&[&format!(
            "CREATE ROLE \"{quoted}\" LOGIN CONNECTION LIMIT 1"
        )]);
        let mut session = admitted(&cluster.login_of(name));
        let _new = admitted(&cluster.login_of(name));
        assert_replaced(&told(&mut session), name, SOCKET);
    }
}

/// The DETAIL is added to what the server is about to log: what it does not log has none.
fn the_log_may_say_more_or_less(server: &Server) {
    let cluster = one_of_alice(server);
    let replaced = || {
        let mut session = admitted(&cluster.login_of("alice"));
        let new = admitted(&cluster.login_of("alice"));
        let why = told(&mut session);
        new.end();
        why
    };
    for level in ["fatal", "log", "error", "debug5"] {
        cluster.set(&[("log_min_messages", level)]);
        assert_replaced(&replaced(), "alice", SOCKET);
    }
    cluster.set(&[("log_error_verbosity", "terse")]);
    assert_replaced(&replaced(), "alice", SOCKET);
    cluster.set(&[("log_min_messages", "panic")]);
    let why = replaced();
    assert_eq!(
        (why.sqlstate(), why.message(), why.detail()),
        ("57P01", TERMINATED, "")
    );
}

fn a_terminated_session_is_told_nothing_of_it(server: &Server) {
    let cluster = one_of_alice(server);
    // In a slot, too, whose last session was replaced.
    for _ in 0..10 {
        let old = admitted(&cluster.login_of("alice"));
        let mut session = admitted(&cluster.login_of("alice"));
        was_replaced(old);
        cluster.sql(&[&format!("SELECT pg_terminate_backend({})", session.pid)]);
        let why = told(&mut session);
        assert_eq!(
            (why.sqlstate(), why.message(), why.detail()),
            ("57P01", TERMINATED, "")
        );
        cluster.wait_until_gone("alice");
    }
}

fn a_session_that_stays(server: &Server) {
    let cluster = one_of_alice(server);
    let mut superuser = cluster.superuser();
    let session = admitted(&cluster.login_of("alice"));
    stop(process(&session));
    for _ in 0..2 {
        let refusal = refused(&cluster.login_of("alice"));
        assert_eq!(refusal.sqlstate(), "53300");
        assert_eq!(
            refusal.message(),
            r#"too many connections for role "alice""#
        );
        let stays = format!(
            " The session of pid {} was told to end for this one, and has not ended.",
            session.pid
        );
        assert!(refusal.detail().ends_with(&stays), "{refusal:?}");
        wait_for("its place to fall back", || {
            let slots = "SELECT array_agg(pid) FROM session_limit.sessions WHERE usename = 'alice'";
            (superuser.value(slots) == format!("{{{}}}", session.pid)).then_some(())
        });
        assert_eq!(in_use(&mut superuser), "1");
    }
    go_on(process(&session));
    was_replaced(session);
    cluster.wait_until_gone("alice");
    let mut next = admitted(&cluster.login_of("alice"));
    assert_eq!(in_use(&mut superuser), "1");
    let last = admitted(&cluster.login_of("alice"));
    was_replaced(next);
    assert_eq!(in_use(&mut superuser), "1");
    next = last;
    assert!(next.is_alive());
}

/// Connects as alice, whose only session is stopped, and returns once that has been told to end.
fn start_replacing(cluster: &Cluster, target: &Target, session: &Session) -> (Connection, Pid) {
    let mut connection = target.connect();
    connection.send_startup(target);
    wait_for("SIGTERM to be pending", || {
        let status = status(process(session));
        let mut pending = status.lines().filter_map(|line| {
            let mask = line
                .strip_prefix("ShdPnd:")
                .or(line.strip_prefix("SigPnd:"))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        });
        let term = 1 << (Signal::TERM.as_raw() - 1);
        pending.any(|mask| mask & term != 0).then_some(())
    });
    let logins = cluster.processes(" authentication");
    assert_eq!(logins.len(), 1, "logins that wait");
    (connection, logins[0])
}

fn a_login_that_goes_while_it_replaces(server: &Server) {
    let cluster = one_of_alice(server);
    let mut superuser = cluster.superuser();
    let ways: [fn(Connection, Pid); 3] = [
        |connection, login| {
            kill_process(login, Signal::TERM).expect("terminate a login");
            let refusal = connection.outcome().err().expect("a refusal");
            let expected = ("57P01", TERMINATED, "");
            assert_eq!(
                (refusal.sqlstate(), refusal.message(), refusal.detail()),
                expected
            );
        },
        |connection, login| {
            kill_process(login, Signal::INT).expect("cancel a login");
            let refusal = connection.outcome().err().expect("a refusal");
            assert_eq!(refusal.sqlstate(), "53300");
            assert!(
                refusal.detail().ends_with(" and has not ended."),
                "{refusal:?}"
            );
        },
        |connection, _| drop(connection),
    ];
    for target in [cluster.login_of("alice"), cluster.tcp_login_of("alice")] {
        for goes in ways {
            let mut session = admitted(&cluster.login_of("alice"));
            stop(process(&session));
            let (connection, login) = start_replacing(&cluster, &target, &session);
            assert_eq!(in_use(&mut superuser), "1");
            goes(connection, login);
            cluster.wait_for_processes(" authentication", 0);
            let slots = "SELECT array_agg(pid) FROM session_limit.sessions WHERE usename = 'alice'";
            assert_eq!(superuser.value(slots), format!("{{{}}}", session.pid));
            assert_eq!(in_use(&mut superuser), "1");
            // It ends all the same, as it was told to, and its place is free.
            go_on(process(&session));
            assert_eq!(told(&mut session).sqlstate(), "57P01");
            cluster.wait_until_gone("alice");
            admitted(&cluster.login_of("alice")).end();
        }
    }
}

/// Logins of alice, whose session is in the way, that the server refuses, and the SQLSTATE.
fn failing(cluster: &Cluster) -> Vec<(Target, &'static str)> {
    cluster.sql(&[
        "CREATE DATABASE closed ALLOW_CONNECTIONS false",
        "CREATE DATABASE forbidden",
        "REVOKE CONNECT ON DATABASE forbidden FROM PUBLIC",
    ]);
    let alice = || cluster.login_of("alice");
    let walsender = Target {
        database: None,
        ..alice()
    };
    let database_walsender = Target {
        options: vec![("replication".to_string(), "database".to_string())],
        ..alice()
    };
    vec![
        (alice().to("nowhere"), "3D000"),
        (alice().to("closed"), "55000"),
        (alice().to("forbidden"), "42501"),
        (walsender, "42501"),
        (database_walsender, "42501"),
    ]
}

fn a_login_about_to_fail_ends_nobody(server: &Server) {
    let cluster = one_of_alice(server);
    cluster.set(&[("session_limit.exempt_replication", "off")]);
    let mut session = admitted(&cluster.login_of("alice"));
    for (target, sqlstate) in failing(&cluster) {
        assert_eq!(refused(&target).sqlstate(), sqlstate, "{target:?}");
        assert!(session.is_alive(), "{target:?}");
    }
    cluster.sql(&["ALTER ROLE alice NOLOGIN"]);
    assert_eq!(refused(&cluster.login_of("alice")).sqlstate(), "28000");
    assert!(session.is_alive());
    assert_eq!(refused(&cluster.login_of("nobody")).sqlstate(), "28000");
    cluster.sql(&["ALTER ROLE alice LOGIN"]);
    let _new = admitted(&cluster.login_of("alice"));
    was_replaced(session);
}

fn a_flood_that_fails_ends_nobody(server: &Server) {
    let cluster = one_of_alice(server);
    let mut session = admitted(&cluster.login_of("alice"));
    for (target, sqlstate) in failing(&cluster) {
        for outcome in target.storm(50) {
            let refusal = outcome.err().expect("a refusal");
            // The one that would replace, or one that finds its place spoken for.
            let known = [sqlstate, "53300"].contains(&refusal.sqlstate());
            assert!(known, "{target:?}: {refusal:?}");
        }
        assert!(session.is_alive(), "{target:?}");
    }
    let mut superuser = cluster.superuser();
    wait_for("one to be left", || {
        (in_use(&mut superuser) == "1").then_some(())
    });
    let _new = admitted(&cluster.login_of("alice"));
    was_replaced(session);
}

/// Compared with what the server says when alice has no session yet, and with its own functions.
fn whoever_may_not_connect_ends_nobody(server: &Server) {
    let cluster = one_of_alice(server);
    let alice = cluster.login_of("alice");
    cluster.sql(&[
        "CREATE ROLE inner_team",
        "CREATE ROLE team",
        "CREATE DATABASE app",
        "REVOKE CONNECT ON DATABASE app FROM PUBLIC",
    ]);
    let with_grants = [
        "GRANT team TO alice WITH INHERIT FALSE",
        "GRANT team TO alice WITH INHERIT TRUE",
    ];
    let steps = [
        "",
        "GRANT CONNECT ON DATABASE app TO alice",
        "REVOKE CONNECT ON DATABASE app FROM alice",
        "GRANT CONNECT ON DATABASE app TO team",
        "GRANT team TO alice",
        "ALTER ROLE alice NOINHERIT",
        "REVOKE team FROM alice",
        "GRANT team TO alice",
        "ALTER ROLE alice INHERIT",
        with_grants[0],
        with_grants[1],
        "REVOKE team FROM alice",
        "GRANT team TO inner_team",
        "GRANT inner_team TO alice",
        "ALTER ROLE inner_team NOINHERIT",
        "ALTER ROLE inner_team INHERIT",
        "REVOKE CONNECT ON DATABASE app FROM team",
        "GRANT CREATE, TEMP ON DATABASE app TO alice",
        "ALTER DATABASE app OWNER TO alice",
        "REVOKE CONNECT ON DATABASE app FROM alice",
        "GRANT CONNECT ON DATABASE app TO pg_database_owner",
        "ALTER ROLE alice NOINHERIT",
        "ALTER DATABASE app OWNER TO team",
        "ALTER ROLE alice INHERIT",
        "ALTER ROLE team NOINHERIT",
        "ALTER DATABASE app OWNER TO postgres",
        "REVOKE ALL ON DATABASE app FROM PUBLIC, alice, pg_database_owner, postgres, team",
        "ALTER ROLE alice SUPERUSER",
    ];
    for sql in steps {
        if server.major == 15 && with_grants.contains(&sql) {
            continue;
        }
        cluster.sql(&[sql]);
        // By itself: the server's own answer.
        let answer = alice.clone().to("app").login().map(Session::end);
        let mut in_app = admitted(&cluster.login_of("postgres").to("app"));
        let may = in_app.value("SELECT has_database_privilege('alice', 'app', 'CONNECT')") == "t";
        in_app.end();
        assert_eq!(answer.is_ok(), may, "{sql}");
        // Whom the server refused may still have a place.
        cluster.wait_until_gone("alice");
        if sql == "ALTER ROLE alice SUPERUSER" {
            cluster.set(&[("session_limit.exempt_superusers", "off")]);
        }
        let mut session = admitted(&alice);
        match (alice.clone().to("app").login(), answer) {
            (Ok(new), Ok(())) => {
                was_replaced(session);
                new.end();
            }
            (Err(ours), Err(servers)) => {
                let said = |refusal: &Refusal| {
                    ['S', 'C', 'M', 'D'].map(|field| refusal.fields.get(&field).cloned())
                };
                assert_eq!(said(&ours), said(&servers), "{sql}");
                assert!(session.is_alive(), "{sql}");
                session.end();
            }
            (ours, _) => panic!("{sql}: {:?}", ours.err()),
        }
    }
}

/// The server lets nobody in who would use the reserved connections.
fn reserved_connections(server: &Server) {
    let connections = [
        ("max_connections", "6"),
        ("superuser_reserved_connections", "3"),
    ];
    let settings = [&[AT_ONCE, ANY_AGE, OLDEST][..], &connections].concat();
    let cluster = Cluster::start(server, &settings);
    cluster.sql(&[
        "CREATE ROLE alice LOGIN CONNECTION LIMIT 1",
        "CREATE ROLE bob LOGIN",
    ]);
    let mut session = admitted(&cluster.login_of("alice"));
    let others = [
        admitted(&cluster.login_of("bob")),
        admitted(&cluster.login_of("bob")),
    ];
    assert_eq!(
        refused(&cluster.login_of("bob")).sqlstate(),
        "53300",
        "the server's"
    );
    // Else it may be one connection more that is missing.
    cluster.wait_for_processes(" [local] ", 3);
    let refusal = refused(&cluster.login_of("alice"));
    assert_eq!(refusal.sqlstate(), "53300");
    assert!(!refusal.detail().contains("told to end"), "{refusal:?}");
    assert!(session.is_alive());
    others.into_iter().for_each(Session::end);
    cluster.wait_for_processes(" [local] ", 1);
    let _new = admitted(&cluster.login_of("alice"));
    was_replaced(session);
}

fn an_exempt_session_is_spared(server: &Server) {
    let local = ("session_limit.exempt_superusers", "local");
    let cluster = Cluster::start(server, &[AT_ONCE, ANY_AGE, OLDEST, local]);
    cluster.sql(&["CREATE ROLE root LOGIN SUPERUSER"]);
    cluster.sql(&[&set_label("ROLE root", r#"{"max": 2}"#)]);
    let mut exempt = admitted(&cluster.login_of("root"));
    let mut first = admitted(&cluster.tcp_login_of("root"));
    let mut second = admitted(&cluster.tcp_login_of("root"));
    assert_replaced(&told(&mut first), "root", "127.0.0.1");
    // And nobody ends for an exempt one.
    let mut other = admitted(&cluster.login_of("root"));
    assert!(exempt.is_alive() && second.is_alive() && other.is_alive());
}

fn on_a_standby(server: &Server) {
    let cluster = one_of_alice(server);
    let standby = Cluster::standby_of(&cluster);
    let mut here = admitted(&cluster.login_of("alice"));
    let there = admitted(&standby.login_of("alice"));
    let mut new = admitted(&standby.login_of("alice"));
    was_replaced(there);
    assert!(here.is_alive() && new.is_alive());
}

/// The server's message with its DETAIL, at the next command.
fn what_psql_shows(server: &Server) {
    let cluster = one_of_alice(server);
    let mut psql = cluster.client("psql");
    psql.env("PGUSER", "alice").args(["-X", "-A", "-t"]);
    psql.stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut psql = psql.spawn().expect("run psql");
    let mut input = psql.stdin.take().expect("psql's input");
    input.write_all(b"SELECT 'in';\n").expect("write to psql");
    let mut output = [0; 3];
    let mut printed = psql.stdout.take().expect("psql's output");
    printed.read_exact(&mut output).expect("read from psql");
    assert_eq!(&output, b"in\n");
    let _new = admitted(&cluster.tcp_login_of("alice"));
    input
        .write_all(b"SELECT 'still in';\n")
        .expect("write to psql");
    drop(input);
    let ended = psql.wait_with_output().expect("wait for psql");
    let errors = String::from_utf8_lossy(&ended.stderr);
    let expected = "FATAL:  terminating connection due to administrator command\n\
        DETAIL:  This session was replaced by a newer session of role \"alice\" from 127.0.0.1.\n\
        server closed the connection unexpectedly\n";
    assert!(errors.contains(expected), "{errors}");
    assert_eq!(ended.status.code(), Some(2));
}

/// It opens the new connection before it closes the old one: here, its own is what it replaces.
fn psql_that_connects_anew(server: &Server) {
    let cluster = one_of_alice(server);
    let mut psql = cluster.client("psql");
    psql.env("PGUSER", "alice").args(["-X", "-q", "-A", "-t"]);
    let output = psql.args(["-c", "\\c", "-c", "SELECT 'in'"]).output();
    let output = output.expect("run psql");
    let printed =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert_eq!(printed, ["in\n", ""]);
    assert_eq!(
        cluster
            .log()
            .matches("was replaced by a newer session")
            .count(),
        1
    );
}
