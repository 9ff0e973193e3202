//! Seats: of one key at most so many are held at any moment.

use crate::scene::{crash, go_on, stop, wait_until};
use pg_test::client::{Refusal, Session};
use pg_test::cluster::{Cluster, Stop};
use pg_test::pooler::Pooler;
use pg_test::server::Server;
use pg_test::wait_for;
use rustix::process::{Pid, test_kill_process};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};

tests![
    a_storm_takes_exactly_as_many,
    churn_refuses_nobody_without_need,
    who_waits_goes_in_by_arrival,
    who_does_not_fit_is_overtaken,
    a_wait_ends_early,
    a_shutdown_ends_a_wait,
    a_seat_ends_with_its_session,
    a_rollback_keeps_a_seat,
    a_lease_ends_unless_it_is_renewed,
    leases_pass_on_in_order,
    a_waiter_is_terminated_with_its_seat,
    setting_the_clock_moves_no_lease,
    only_the_own_roles_seats_are_replaced,
    the_name_is_the_right,
    who_may_call_and_who_sees_what,
    no_seat_is_left,
    ten_thousand_keys,
    a_key_belongs_to_its_database,
    a_dropped_database_leaves_no_seat,
    through_a_transaction_pooler,
    a_restart_ends_all,
    on_a_standby_and_after_its_promotion,
    what_is_wrong_is_named,
    what_is_kept,
    keys_of_other_encodings,
];

/// With roles `app` and `other`, which may do all.
fn cluster(server: &Server, settings: &[(&str, &str)]) -> Cluster {
    let mut all = vec![("session_limit.max_wait", "0"), ("max_connections", "80")];
    all.extend(settings);
    let cluster = Cluster::start(server, &all);
    prepare(&cluster);
    cluster
}

fn prepare(cluster: &Cluster) {
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE app LOGIN",
        "CREATE ROLE other LOGIN",
        GRANT,
    ]);
}

const GRANT: &str = "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA session_limit TO app, other";
const COUNT: &str = "SELECT count(*) FROM session_limit.seats";

fn app(cluster: &Cluster) -> Session {
    cluster.login_of("app").login().expect("a session")
}

fn in_database(cluster: &Cluster, database: &str) -> Session {
    let superuser = cluster.login_of("postgres").to(database);
    superuser.login().expect("a superuser's session")
}

fn take(session: &mut Session, arguments: &str) -> String {
    session.value(&format!("SELECT session_limit.take_seat({arguments})"))
}

/// The seat's name; empty if there was none.
fn try_take(session: &mut Session, arguments: &str) -> String {
    session.value(&format!("SELECT session_limit.try_take_seat({arguments})"))
}

fn refusal(session: &mut Session, arguments: &str) -> Refusal {
    let sql = format!("SELECT session_limit.take_seat({arguments})");
    session.try_query(&sql).expect_err(arguments)
}

fn renew(session: &mut Session, seat: &str) -> String {
    session.value(&format!("SELECT session_limit.renew_seat('{seat}')"))
}

fn release(session: &mut Session, seat: &str) -> String {
    session.value(&format!("SELECT session_limit.release_seat('{seat}')"))
}

type Outcome = (Session, Result<String, Refusal>);

/// Asks for a seat in another thread, and returns once that waits.
fn start_waiting(cluster: &Cluster, arguments: &str) -> (i32, JoinHandle<Outcome>) {
    let mut session = app(cluster);
    let pid = session.pid;
    let sql = format!("SELECT session_limit.take_seat({arguments}), clock_timestamp()");
    let call = thread::spawn(move || {
        let outcome = session.try_query(&sql);
        (session, outcome.map(|mut rows| rows.remove(0).join(",")))
    });
    let event = match cluster.server.major {
        15 | 16 => "Extension",
        _ => "SessionLimitSeat",
    };
    let waits = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = '{event}'"
    );
    let mut superuser = cluster.superuser();
    wait_until(&mut superuser, &waits, "1");
    superuser.end();
    (pid, call)
}

fn outcome((_, call): (i32, JoinHandle<Outcome>)) -> Outcome {
    call.join().expect("the thread")
}

fn got((pid, call): (i32, JoinHandle<Outcome>)) -> (Session, String) {
    let (session, outcome) = outcome((pid, call));
    (
        session,
        outcome.unwrap_or_else(|refusal| panic!("{refusal:?}")),
    )
}

/// Every session runs the statement, all at the same moment.
fn at_once(sessions: Vec<Session>, sql: &str) -> Vec<Outcome> {
    let barrier = Arc::new(Barrier::new(sessions.len()));
    let call = |mut session: Session| {
        let (barrier, sql) = (barrier.clone(), sql.to_string());
        thread::spawn(move || {
            barrier.wait();
            let outcome = session.try_query(&sql);
            (session, outcome.map(|mut rows| rows.remove(0).remove(0)))
        })
    };
    let calls: Vec<_> = sessions.into_iter().map(call).collect();
    calls
        .into_iter()
        .map(|call| call.join().expect("the thread"))
        .collect()
}

fn a_storm_takes_exactly_as_many(server: &Server) {
    let cluster = cluster(server, &[]);
    let mut superuser = cluster.superuser();
    for (max, ttl) in [(1, "NULL"), (5, "NULL"), (1, "'1h'"), (5, "'1h'")] {
        let mut sessions: Vec<Session> = (0..50).map(|_| app(&cluster)).collect();
        for _ in 0..3 {
            let sql = format!("SELECT session_limit.take_seat('bob', {max}, {ttl})");
            let outcomes = at_once(sessions, &sql);
            let taken = outcomes.iter().filter(|(_, outcome)| outcome.is_ok());
            assert_eq!(taken.count(), max);
            assert_eq!(superuser.value(COUNT), max.to_string());
            let told = |(session, outcome): Outcome| {
                if let Err(refusal) = outcome {
                    assert_eq!(refusal.sqlstate(), "53300");
                }
                session
            };
            sessions = outcomes.into_iter().map(told).collect();
            let evicted = superuser.value("SELECT session_limit.evict_seats('bob')");
            assert_eq!(evicted, max.to_string());
        }
        sessions.into_iter().for_each(Session::end);
    }
}

fn churn_refuses_nobody_without_need(server: &Server) {
    let cluster = cluster(server, &[]);
    let churn = |number: usize| {
        let mut session = app(&cluster);
        let sql = "SELECT session_limit.release_seat(session_limit.take_seat('bob', 8))";
        thread::spawn(move || {
            for _ in 0..100 {
                assert_eq!(session.value(sql), "t", "{number}");
            }
            session.end();
        })
    };
    let all: Vec<_> = (0..8).map(churn).collect();
    all.into_iter()
        .for_each(|one| one.join().expect("nobody refused"));
    // Of one seat, whoever finds it taken waits for its turn.
    let waits = |_| {
        let mut session = app(&cluster);
        let sql = "SELECT session_limit.release_seat(session_limit.take_seat('bob', max_wait => '10min'))";
        thread::spawn(move || {
            for _ in 0..50 {
                assert_eq!(session.value(sql), "t");
            }
        })
    };
    let all: Vec<_> = (0..20).map(waits).collect();
    all.into_iter()
        .for_each(|one| one.join().expect("nobody refused"));
    assert_eq!(cluster.superuser().value(COUNT), "0");
}

fn who_waits_goes_in_by_arrival(server: &Server) {
    let cluster = cluster(server, &[("session_limit.max_wait", "10min")]);
    for _ in 0..3 {
        let mut holder = app(&cluster);
        take(&mut holder, "'bob'");
        let waiters: Vec<_> = (0..4).map(|_| start_waiting(&cluster, "'bob'")).collect();
        let mut superuser = cluster.superuser();
        for (pid, waiter) in waiters {
            holder.end();
            (holder, _) = got((pid, waiter));
            let pids = superuser.value("SELECT pid FROM session_limit.seats");
            assert_eq!(pids, pid.to_string());
        }
        holder.end();
        superuser.end();
    }
}

fn who_does_not_fit_is_overtaken(server: &Server) {
    let cluster = cluster(server, &[]);
    let mut holder = app(&cluster);
    let (one, two) = (take(&mut holder, "'bob', 3"), take(&mut holder, "'bob', 3"));
    let first = start_waiting(&cluster, "'bob', 1, max_wait => '10min'");
    let second = start_waiting(&cluster, "'bob', 2, max_wait => '10min'");
    // Whoever may hold three is in nobody's way.
    let three = take(&mut holder, "'bob', 3");
    assert_eq!(release(&mut holder, &three), "t");
    assert_eq!(release(&mut holder, &one), "t");
    let (second, _) = got(second);
    let holders = "SELECT array_agg(pid ORDER BY taken_at) FROM session_limit.seats";
    let both = format!("{{{},{}}}", holder.pid, second.pid);
    assert_eq!(holder.value(holders), both);
    assert_eq!(release(&mut holder, &two), "t");
    assert_eq!(holder.value(holders), format!("{{{}}}", second.pid));
    second.end();
    let (first, _) = got(first);
    assert_eq!(holder.value(holders), format!("{{{}}}", first.pid));
}

fn a_wait_ends_early(server: &Server) {
    let cluster = cluster(server, &[("session_limit.max_wait", "10min")]);
    let mut holder = app(&cluster);
    let seat = take(&mut holder, "'bob'");
    let mut superuser = cluster.superuser();
    let mut tell = |function: &str, pid: i32| {
        assert_eq!(superuser.value(&format!("SELECT {function}({pid})")), "t");
    };

    let cancelled = start_waiting(&cluster, "'bob'");
    tell("pg_cancel_backend", cancelled.0);
    let (mut session, told) = outcome(cancelled);
    assert_eq!(told.expect_err("cancelled").sqlstate(), "57014");
    assert!(session.is_alive());

    session.query("SET statement_timeout = '50ms'");
    assert_eq!(refusal(&mut session, "'bob'").sqlstate(), "57014");
    session.query("SET statement_timeout = 0");
    let told = refusal(&mut session, "'bob', max_wait => '200ms'");
    assert_eq!(told.sqlstate(), "53300");
    assert!(told.detail().contains(" The call waited "), "{told:?}");

    let terminated = start_waiting(&cluster, "'bob'");
    tell("pg_terminate_backend", terminated.0);
    let told = outcome(terminated).1.expect_err("terminated");
    assert_eq!(told.sqlstate(), "57P01");

    let mut gone = cluster.login_of("app").login().expect("a session");
    let pid = Pid::from_raw(gone.pid).expect("a process ID");
    gone.send("SELECT session_limit.take_seat('bob')");
    drop(gone);
    wait_for("the backend to notice", || {
        test_kill_process(pid).is_err().then_some(())
    });

    // None of them is in the way.
    let last = start_waiting(&cluster, "'bob'");
    assert_eq!(release(&mut holder, &seat), "t");
    got(last);
}

fn a_shutdown_ends_a_wait(server: &Server) {
    let mut cluster = cluster(server, &[("session_limit.max_wait", "10min")]);
    let mut holder = app(&cluster);
    take(&mut holder, "'bob'");
    let waiter = start_waiting(&cluster, "'bob'");
    cluster.stop(Stop::Fast);
    let told = outcome(waiter).1.expect_err("the server is down");
    assert_eq!(told.sqlstate(), "57P01");
}

fn a_seat_ends_with_its_session(server: &Server) {
    let cluster = cluster(server, &[("restart_after_crash", "on")]);
    let mut superuser = cluster.superuser();
    let hold = || {
        let mut session = app(&cluster);
        take(&mut session, "'bob', 2");
        take(&mut session, "'bob', 2");
        session
    };
    hold().end();
    assert_eq!(superuser.value(COUNT), "0");
    // The client vanishes.
    drop(hold());
    wait_until(&mut superuser, COUNT, "0");
    let session = hold();
    superuser.value(&format!("SELECT pg_terminate_backend({})", session.pid));
    wait_until(&mut superuser, COUNT, "0");
    // A cancelled or failed statement ends no seat.
    let mut session = hold();
    assert!(session.try_query("SELECT 1 / 0").is_err());
    assert_eq!(superuser.value(COUNT), "2");
    crash(&cluster, &session);
    assert_eq!(cluster.superuser().value(COUNT), "0");
}

fn a_rollback_keeps_a_seat(server: &Server) {
    let cluster = cluster(server, &[]);
    let mut session = app(&cluster);
    session.query("BEGIN");
    let seat = take(&mut session, "'bob'");
    session.query("ROLLBACK");
    assert_eq!(session.value(COUNT), "1");
    session.query("BEGIN");
    assert_eq!(release(&mut session, &seat), "t");
    session.query("ROLLBACK");
    assert_eq!(session.value(COUNT), "0");
}

fn a_lease_ends_unless_it_is_renewed(server: &Server) {
    let cluster = cluster(server, &[]);
    let mut session = app(&cluster);
    let seat = take(&mut session, "'bob', ttl => '1h'");
    // It outlives its session.
    session.end();
    let mut session = app(&cluster);
    assert_eq!(renew(&mut session, &seat), "t");
    let left = "SELECT expires_at - now() > interval '59min' FROM session_limit.seats";
    assert_eq!(session.value(left), "t");
    let renew_for = |ttl| format!("SELECT session_limit.renew_seat('{seat}', '{ttl}')");
    assert_eq!(session.value(&renew_for("30min")), "t");
    // The next one is for as long.
    assert_eq!(renew(&mut session, &seat), "t");
    assert_eq!(session.value(left), "f");
    assert_eq!(session.value(&renew_for("200ms")), "t");
    assert!(try_take(&mut session, "'alice'").len() == 36);
    let next = wait_for("the lease to end", || {
        let seat = try_take(&mut session, "'bob'");
        (!seat.is_empty()).then_some(seat)
    });
    assert_eq!(renew(&mut session, &seat), "f");
    assert_eq!(release(&mut session, &seat), "f");
    assert_eq!(renew(&mut session, &next), "t");
    // Nothing shows what has ended, though nobody has called since.
    take(&mut session, "'carol', ttl => '100ms'");
    let carol = "SELECT count(*) FROM session_limit.seats WHERE key = 'carol'";
    wait_until(&mut session, carol, "0");
}

fn leases_pass_on_in_order(server: &Server) {
    let cluster = cluster(server, &[("session_limit.max_wait", "10min")]);
    let mut holder = app(&cluster);
    let mut superuser = cluster.superuser();
    let seat = take(&mut holder, "'bob', ttl => '1h'");
    let waiters: Vec<_> = (0..3)
        .map(|_| start_waiting(&cluster, "'bob', ttl => '1s'"))
        .collect();
    let shorter = format!("SELECT session_limit.renew_seat('{seat}', '1s')");
    assert_eq!(holder.value(&shorter), "t");
    // Nobody calls any more: each waiter wakes when the lease before its own has ended, and says when it got its own.
    let mut before = String::new();
    for (pid, waiter) in waiters {
        let (_, seat_and_time) = got((pid, waiter));
        let (_, time) = seat_and_time.split_once(',').expect("two columns");
        assert!(before.as_str() < time, "{before} before {time}");
        before = time.to_string();
    }
    wait_until(&mut superuser, COUNT, "0");

    // A lease that is renewed is kept while hundreds of others end, more than in one hold of the lock.
    let keeper = take(&mut holder, "'carol', 1, '1h'");
    let many =
        "SELECT count(session_limit.take_seat('dave', 1000, '500ms')) FROM generate_series(1, 500)";
    assert_eq!(holder.value(many), "500");
    wait_for("room again", || {
        assert_eq!(renew(&mut holder, &keeper), "t");
        (!try_take(&mut superuser, "'dave', 1").is_empty()).then_some(())
    });
    let dave = "SELECT count(*) FROM session_limit.seats WHERE key = 'dave'";
    assert_eq!(superuser.value(dave), "1");
    let expired = "SELECT seats_expired FROM session_limit.stats WHERE usename = 'app'";
    assert_eq!(superuser.value(expired), "504");
}

/// What a waiter was given and has not seen goes with it.
fn a_waiter_is_terminated_with_its_seat(server: &Server) {
    let cluster = cluster(server, &[]);
    let mut holder = app(&cluster);
    let mut superuser = cluster.superuser();
    let seat = take(&mut holder, "'bob'");
    let waiter = start_waiting(&cluster, "'bob', ttl => '1h', max_wait => '10min'");
    let process = Pid::from_raw(waiter.0).expect("a process ID");
    stop(process);
    assert_eq!(release(&mut holder, &seat), "t");
    let pid = superuser.value("SELECT pid FROM session_limit.seats");
    assert_eq!(pid, waiter.0.to_string());
    superuser.value(&format!("SELECT pg_terminate_backend({pid})"));
    go_on(process);
    assert!(outcome(waiter).1.is_err());
    wait_until(&mut superuser, COUNT, "0");
}

fn setting_the_clock_moves_no_lease(server: &Server) {
    let cluster = Cluster::on_stage(server, &[("session_limit.max_wait", "0")]);
    prepare(&cluster);
    let mut session = app(&cluster);
    let long = take(&mut session, "'bob', ttl => '30min'");
    let hour = session.value("SELECT date_trunc('hour', clock_timestamp())");
    cluster.direct(3600, false);
    assert_ne!(
        session.value("SELECT date_trunc('hour', clock_timestamp())"),
        hour
    );
    assert_eq!(renew(&mut session, &long), "t");
    assert_eq!(try_take(&mut session, "'bob'"), "");
    let short = take(&mut session, "'carol', ttl => '200ms'");
    cluster.direct(-3600, false);
    let carol = "SELECT count(*) FROM session_limit.seats WHERE key = 'carol'";
    wait_until(&mut session, carol, "0");
    assert_eq!(renew(&mut session, &short), "f");
}

fn only_the_own_roles_seats_are_replaced(server: &Server) {
    let cluster = cluster(server, &[]);
    let (mut one, mut two) = (app(&cluster), app(&cluster));
    let first = take(&mut one, "'bob', 2");
    let second = take(&mut one, "'bob', 2, '1h'");
    let third = take(&mut two, "'bob', 2, on_excess => 'replace_oldest'");
    assert_eq!(renew(&mut one, &first), "f");
    assert_eq!(renew(&mut one, &second), "t");
    // Under a smaller max more have to go.
    let fourth = take(&mut two, "'bob', 1, on_excess => 'replace_oldest'");
    assert_eq!(renew(&mut one, &second), "f");
    assert_eq!(renew(&mut one, &third), "f");
    assert_eq!(two.value(COUNT), "1");
    let mut other = cluster.login_of("other").login().expect("a session");
    let told = refusal(&mut other, "'bob', 1, on_excess => 'replace_oldest'");
    assert_eq!(told.sqlstate(), "53300");
    assert_eq!(renew(&mut two, &fourth), "t");
    // It is replaced when the waiting is over.
    let told = "'bob', 1, on_excess => 'replace_oldest', max_wait => '50ms'";
    let fifth = take(&mut one, told);
    assert_eq!(renew(&mut two, &fourth), "f");
    assert_eq!(renew(&mut two, &fifth), "t");
}

fn the_name_is_the_right(server: &Server) {
    let cluster = cluster(server, &[]);
    cluster.sql(&[
        "CREATE ROLE boss LOGIN IN ROLE app",
        "CREATE DATABASE elsewhere",
    ]);
    let mut elsewhere = in_database(&cluster, "elsewhere");
    elsewhere.query("CREATE EXTENSION session_limit");
    let (mut holder, mut friend) = (app(&cluster), app(&cluster));
    let seat = take(&mut holder, "'bob'");
    // Of version 4, and never the same.
    assert_eq!((&seat[14..15], seat.len()), ("4", 36));
    let mut other = cluster.login_of("other").login().expect("a session");
    for stranger in [&mut other, &mut elsewhere] {
        assert_eq!(renew(stranger, &seat), "f");
        assert_eq!(release(stranger, &seat), "f");
    }
    let nobodys = "00000000-0000-4000-8000-000000000000";
    assert_eq!(renew(&mut holder, nobodys), "f");
    assert_eq!(renew(&mut friend, &seat), "t");
    let mut boss = cluster.login_of("boss").login().expect("a session");
    assert_eq!(renew(&mut boss, &seat), "t");
    assert_eq!(release(&mut boss, &seat), "t");
    assert_eq!(release(&mut holder, &seat), "f");
    // A seat of a session ends with that, whoever renews it.
    let sql = format!(
        "SELECT session_limit.renew_seat('{}', '1h')",
        take(&mut holder, "'bob'")
    );
    assert_eq!(
        holder.try_query(&sql).expect_err("no lease").sqlstate(),
        "22023"
    );
}

fn who_may_call_and_who_sees_what(server: &Server) {
    let cluster = cluster(server, &[]);
    cluster.sql(&[
        "CREATE ROLE nobody_special LOGIN",
        "CREATE ROLE monitor LOGIN IN ROLE pg_read_all_stats",
    ]);
    let login = |role| cluster.login_of(role).login().expect("a session");
    let mut holder = app(&cluster);
    let seat = take(&mut holder, "'bob', ttl => '1h'");
    let mut special = login("nobody_special");
    for call in [
        "take_seat('bob')",
        "try_take_seat('bob')",
        "renew_seat(gen_random_uuid())",
        "release_seat(gen_random_uuid())",
        "evict_seats('bob')",
    ] {
        let refused = special.try_query(&format!("SELECT session_limit.{call}"));
        assert_eq!(refused.expect_err(call).sqlstate(), "42501", "{call}");
    }
    let rows = "SELECT key, usename, datname, max, pid, client_addr, expires_at > taken_at, seat FROM session_limit.seats";
    assert!(special.query(rows).is_empty());
    assert!(login("other").query(rows).is_empty());
    let pid = holder.pid.to_string();
    let row = |seat: &str| {
        let row = ["bob", "app", "postgres", "1", &pid, "", "t", seat];
        vec![row.map(str::to_string).to_vec()]
    };
    assert_eq!(holder.query(rows), row(&seat));
    assert_eq!(app(&cluster).query(rows), row(""), "another session");
    assert_eq!(login("monitor").query(rows), row(""));
    // Of a seat of another role whoever is refused learns nothing but that it is there.
    let told = refusal(&mut login("other"), "'bob'");
    assert_eq!(told.message(), "too many seats for key \"bob\"");
    assert_eq!(told.detail(), "The limit is 1 seat; 1 is in use.");
    let told = refusal(&mut app(&cluster), "'bob'");
    let who = format!("The limit is 1 seat; 1 is in use: pid {pid} from a local socket since 2");
    assert!(told.detail().starts_with(&who), "{told:?}");
    // It belongs to the role whose privileges the call has.
    holder.query("RESET ROLE");
    let mut superuser = cluster.superuser();
    superuser.query("SET ROLE other");
    take(&mut superuser, "'carol'");
    superuser.query("RESET ROLE");
    let of = "SELECT usename FROM session_limit.seats WHERE key = 'carol'";
    assert_eq!(superuser.value(of), "other");
}

fn no_seat_is_left(server: &Server) {
    let cluster = cluster(server, &[("session_limit.max_seats", "3")]);
    let mut session = app(&cluster);
    let first = take(&mut session, "'a', 3");
    take(&mut session, "'a', 3");
    take(&mut session, "'b'");
    for call in ["'c'", "'a', 3"] {
        let told = refusal(&mut session, call);
        assert_eq!(
            (told.sqlstate(), told.message()),
            ("53400", "no seat is left")
        );
        assert!(told.detail().contains("session_limit.max_seats is 3"));
    }
    assert_eq!(release(&mut session, &first), "t");
    take(&mut session, "'c'");
    assert_eq!(session.value(COUNT), "3");
    session.end();

    let mut cluster = cluster;
    cluster.stop(Stop::Fast);
    cluster.append("postgresql.conf", "session_limit.max_seats = 0\n");
    cluster.start_again();
    let mut session = app(&cluster);
    let told = refusal(&mut session, "'c'");
    assert_eq!(
        (told.sqlstate(), told.message()),
        ("53400", "seats are switched off")
    );
    assert_eq!(renew(&mut session, &first), "f");
    assert_eq!(session.value(COUNT), "0");
    assert_eq!(session.value("SELECT session_limit.evict_seats('a')"), "0");
}

fn ten_thousand_keys(server: &Server) {
    let cluster = cluster(server, &[("session_limit.max_seats", "10000")]);
    let mut session = app(&cluster);
    let take_all = "SELECT count(DISTINCT session_limit.take_seat('key ' || i)) FROM generate_series(1, 10000) i";
    assert_eq!(session.value(take_all), "10000");
    assert_eq!(refusal(&mut session, "'one more'").sqlstate(), "53400");
    assert_eq!(
        session.value("SELECT count(DISTINCT key) FROM session_limit.seats"),
        "10000"
    );
    let sql = "SELECT count(*) FILTER (WHERE session_limit.release_seat(seat)) FROM session_limit.seats WHERE key LIKE '%7'";
    assert_eq!(session.value(sql), "1000");
    assert_eq!(session.value(COUNT), "9000");
    // All of one key, as many.
    session.end();
    let mut session = app(&cluster);
    let take_all = "SELECT count(DISTINCT session_limit.take_seat('bob', 10000, '1h')) FROM generate_series(1, 10000)";
    assert_eq!(session.value(take_all), "10000");
    assert_eq!(
        session.value("SELECT session_limit.evict_seats('bob')"),
        "10000"
    );
    assert_eq!(session.value(COUNT), "0");
    take(&mut session, "'bob'");
}

fn a_key_belongs_to_its_database(server: &Server) {
    let cluster = cluster(server, &[]);
    cluster.sql(&["CREATE DATABASE elsewhere"]);
    let mut elsewhere = in_database(&cluster, "elsewhere");
    elsewhere.query("CREATE EXTENSION session_limit");
    let mut here = app(&cluster);
    take(&mut here, "'bob'");
    take(&mut elsewhere, "'bob'");
    assert_eq!(try_take(&mut here, "'bob'"), "");
    assert_eq!(
        elsewhere.value("SELECT session_limit.evict_seats('bob')"),
        "1"
    );
    let left = "SELECT string_agg(datname, ' ') FROM session_limit.seats";
    assert_eq!(elsewhere.value(left), "postgres");
}

fn a_dropped_database_leaves_no_seat(server: &Server) {
    let cluster = cluster(server, &[]);
    cluster.sql(&["CREATE DATABASE elsewhere"]);
    let mut elsewhere = in_database(&cluster, "elsewhere");
    elsewhere.query("CREATE EXTENSION session_limit");
    take(&mut elsewhere, "'bob', ttl => '1h'");
    elsewhere.end();
    let mut here = app(&cluster);
    take(&mut here, "'bob', ttl => '1h'");
    cluster.sql(&["DROP DATABASE elsewhere"]);
    let mut superuser = cluster.superuser();
    wait_until(&mut superuser, COUNT, "1");
    assert_eq!(here.value(COUNT), "1");
}

fn through_a_transaction_pooler(server: &Server) {
    let cluster = cluster(server, &[]);
    let pooler = Pooler::start(&cluster, "app", "transaction", 3);
    let clients = |number: usize| -> Vec<Session> {
        (0..number)
            .map(|_| pooler.target.login().expect("a client"))
            .collect()
    };
    let outcomes = at_once(
        clients(50),
        "SELECT session_limit.take_seat('bob', 5, '1h')",
    );
    let (taken, refused): (Vec<_>, Vec<_>) = outcomes
        .into_iter()
        .partition(|(_, outcome)| outcome.is_ok());
    assert_eq!((taken.len(), refused.len()), (5, 45));
    // Each by its name, over whichever connection.
    let mut client = pooler.target.login().expect("a client");
    for (_, seat) in &taken {
        let seat = seat.as_ref().expect("taken");
        assert_eq!(renew(&mut client, seat), "t");
    }
    drop((taken, refused));
    assert_eq!(client.value(COUNT), "5", "whose clients are gone");
}

fn a_restart_ends_all(server: &Server) {
    let mut cluster = cluster(server, &[]);
    for stop in [Stop::Immediate, Stop::Fast] {
        let mut session = app(&cluster);
        let seat = take(&mut session, "'bob', ttl => '1h'");
        cluster.stop(stop);
        cluster.start_again();
        let mut session = app(&cluster);
        assert_eq!(renew(&mut session, &seat), "f");
        assert_eq!(session.value(COUNT), "0");
        take(&mut session, "'bob'");
    }
}

fn on_a_standby_and_after_its_promotion(server: &Server) {
    let primary = cluster(server, &[]);
    let standby = Cluster::standby_of(&primary);
    let mut session = wait_for("the standby", || standby.login_of("app").login().ok());
    let lease = take(&mut session, "'bob', 2, '1h'");
    let own = take(&mut session, "'bob', 2");
    assert_eq!(refusal(&mut session, "'bob', 2").sqlstate(), "53300");
    assert_eq!(
        primary.superuser().value(COUNT),
        "0",
        "each server has its own"
    );
    assert_eq!(standby.superuser().value("SELECT pg_promote()"), "t");
    assert_eq!(renew(&mut session, &lease), "t");
    assert_eq!(release(&mut session, &own), "t");
    take(&mut session, "'bob', 2");
}

fn what_is_wrong_is_named(server: &Server) {
    let cluster = cluster(server, &[]);
    let mut session = app(&cluster);
    let long = format!("'{}'", "x".repeat(256));
    for (arguments, sqlstate, named) in [
        ("''", "22023", "key"),
        (&long, "22023", "key"),
        ("NULL", "22004", "key"),
        ("'bob', -1", "22023", "max"),
        ("'bob', NULL", "22004", "max"),
        ("'bob', 1, '0'", "22023", "ttl"),
        ("'bob', 1, '-1s'", "22023", "ttl"),
        ("'bob', 1, '1000 years'", "22023", "ttl"),
        ("'bob', max_wait => '-1ms'", "22023", "max_wait"),
        ("'bob', max_wait => '2 days'", "22023", "max_wait"),
        ("'bob', on_excess => 'replace'", "22023", "on_excess"),
        ("'bob', on_excess => NULL", "22004", "on_excess"),
    ] {
        let told = refusal(&mut session, arguments);
        assert_eq!(told.sqlstate(), sqlstate, "{arguments}: {told:?}");
        assert!(told.message().contains(named), "{arguments}: {told:?}");
    }
    let told = refusal(&mut session, "'bob', max_wait => '2 days'");
    assert_eq!(
        told.message(),
        "max_wait must be at least 0 and at most 1 day"
    );
    let mut fails = |sql: &str| {
        let told = session.try_query(&format!("SELECT session_limit.{sql}"));
        let told = told.expect_err(sql);
        (told.sqlstate().to_string(), told.message().to_string())
    };
    assert_eq!(fails("renew_seat('no uuid')").0, "22P02");
    let unknown = "gen_random_uuid()";
    assert_eq!(fails(&format!("renew_seat({unknown}, '-1s')")).0, "22023");
    for sql in [
        "renew_seat(NULL)",
        "release_seat(NULL)",
        "evict_seats(NULL)",
    ] {
        let (sqlstate, message) = fails(sql);
        assert_eq!(sqlstate, "22004", "{sql}");
        assert!(message.ends_with("must not be null"));
    }
    assert_eq!(fails("evict_seats('')").0, "22023");
    assert_eq!(session.value(COUNT), "0");
    // Nobody fits, so nobody waits.
    let told = refusal(&mut session, "'bob', 0, max_wait => '1h'");
    assert_eq!(told.sqlstate(), "53300");
    let just = format!("'{}'", "x".repeat(255));
    take(&mut session, &just);
}

fn what_is_kept(server: &Server) {
    let cluster = cluster(server, &[("session_limit.log_events", "all")]);
    let mut session = app(&cluster);
    take(&mut session, "'bob', 1, '100ms'");
    wait_for("the lease to end", || {
        (!try_take(&mut session, "'bob'").is_empty()).then_some(())
    });
    refusal(&mut session, "'bob', max_wait => '200ms'");
    take(&mut session, "'bob', on_excess => 'replace_oldest'");
    assert_eq!(
        session.value("SELECT session_limit.evict_seats('bob')"),
        "1"
    );
    take(&mut session, "'carol'");
    let waiter = start_waiting(&cluster, "'carol', max_wait => '10min'");
    session.end();
    let (mut session, _) = got(waiter);
    let stats = "SELECT seats_taken, seats_waited, seats_replaced, seats_expired, seats_evicted FROM session_limit.stats WHERE usename = 'app'";
    let numbers = ["5", "2", "1", "1", "1"].map(str::to_string).to_vec();
    assert_eq!(session.query(stats), [numbers]);
    let refused = "SELECT seats_refused >= 1 FROM session_limit.stats WHERE usename = 'app'";
    assert_eq!(session.value(refused), "t");
    for (event, key, number) in [
        ("seat_taken", "bob", "3"),
        ("seat_expired", "bob", "1"),
        ("seat_replaced", "bob", "1"),
        ("seat_evicted", "bob", "1"),
        ("seat_waited", "carol", "1"),
    ] {
        let count = format!(
            "SELECT count(*) FROM session_limit.events WHERE event = '{event}' AND usename = 'app' AND datname = 'postgres' AND detail->>'key' = '{key}' AND (detail->>'max')::int = 1"
        );
        assert_eq!(session.value(&count), number, "{event}");
        let line = format!(r#"session_limit: {{"event":"{event}","role":"app""#);
        assert!(cluster.log().contains(&line), "{line}");
    }
    let waited = "SELECT (detail->>'waited_ms')::int >= 0 AND (detail->>'in_use')::int = 1 FROM session_limit.events WHERE event = 'seat_refused' ORDER BY event_time DESC LIMIT 1";
    assert_eq!(session.value(waited), "t");
}

fn keys_of_other_encodings(server: &Server) {
    let cluster = cluster(server, &[]);
    cluster.sql(&["CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"]);
    let mut latin = in_database(&cluster, "latin");
    latin.query("CREATE EXTENSION session_limit");
    latin.query("SET client_encoding = 'UTF8'");
    take(&mut latin, "'café'");
    assert_eq!(latin.value("SELECT key FROM session_limit.seats"), "café");
    let told = refusal(&mut latin, "'café'");
    assert_eq!(told.message(), "too many seats for key \"café\"");
    let mut superuser = cluster.superuser();
    assert_eq!(
        superuser.value("SELECT key FROM session_limit.seats"),
        r"caf\xe9"
    );
    take(&mut superuser, "'café'");
    let keys = latin.value("SELECT string_agg(key, ' ' ORDER BY datname) FROM session_limit.seats");
    assert!(keys.starts_with("café "), "{keys}");
}
