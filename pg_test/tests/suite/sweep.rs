//! Limits that are lowered, or set, after the sessions came.

use crate::scene::{go_on, process, stop, told, wait_until_left};
use pg_test::client::{Session, Target};
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use pg_test::wait_for;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};

tests![
    a_lowered_limit_ends_the_excess,
    every_kind_of_limit,
    a_change_counts_from_its_commit_on,
    a_grant_is_followed_within_an_interval,
    the_longest_idle_end_first_and_none_in_a_transaction,
    whoever_a_limit_does_not_hold_stays,
    whoever_is_exempt_pushes_nobody_out,
    log_says_what_is_over_once,
    off_does_nothing,
    what_is_only_tried_out_ends_nobody,
    a_session_is_told_once,
    a_session_is_told_in_its_clients_characters,
    logins_meanwhile,
    the_next_worker_goes_on,
    a_standby_follows,
    the_sessions_of_a_dropped_role_are_excess,
    the_owner_of_a_database_ends_nobody,
    whoever_gets_admin_on_a_labelled_group_is_logged_once,
];

const TERMINATE: (&str, &str) = ("session_limit.sweep", "terminate");

/// So that nothing but a change makes it run.
const NOT_SOON: (&str, &str) = ("session_limit.sweep_interval", "1h");
const SOON: (&str, &str) = ("session_limit.sweep_interval", "1s");

fn cluster(server: &Server, settings: &[(&str, &str)]) -> Cluster {
    let cluster = Cluster::start(server, settings);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
        "CREATE ROLE carol LOGIN",
        "CREATE ROLE team",
        "CREATE DATABASE app",
    ]);
    wait_for_worker(&cluster, None);
    cluster
}

/// Waits until there is a worker, another than `not`, that has swept, and waits for something to do.
fn wait_for_worker(cluster: &Cluster, not: Option<Pid>) -> Pid {
    let mut session = cluster.superuser();
    let sql = "SELECT pid FROM pg_stat_activity
        WHERE backend_type = 'session_limit worker' AND datname IS NULL AND wait_event = 'Extension'";
    let worker = wait_for("the worker", || {
        let rows = session.query(sql);
        let pid = rows.first()?[0].parse().ok().and_then(Pid::from_raw);
        pid.filter(|pid| Some(*pid) != not)
    });
    session.end();
    worker
}

/// Returns when it has done what it was woken for: a sweep that goes on may end who comes meanwhile, for
/// a limit as it was. DROP DATABASE waits until each process has taken notice, which this one does before
/// it sweeps, or as it does; if the latter, the second time is after.
fn settle(cluster: &Cluster) {
    for _ in 0..2 {
        cluster.sql(&["CREATE DATABASE passing", "DROP DATABASE passing"]);
        wait_for_worker(cluster, None);
    }
}

fn logins<const N: usize>(target: &Target) -> [Session; N] {
    std::array::from_fn(|_| target.login().expect("no limit yet"))
}

fn alive(sessions: &mut [Session]) -> Vec<bool> {
    sessions.iter_mut().map(Session::is_alive).collect()
}

/// What was logged of sweeps.
fn events(cluster: &Cluster) -> Vec<Value> {
    let log = cluster.log();
    let lines = log.lines();
    let events = lines.filter_map(|line| Some(line.split_once("LOG:  session_limit: ")?.1));
    let events = events.map(|event| serde_json::from_str(event).expect("JSON"));
    events
        .filter(|event: &Value| event["event"] == "swept")
        .collect()
}

/// Makes it sweep, and returns when it has: `carol` has no other part in these tests.
fn sweep_once(cluster: &Cluster, log: bool) {
    let carols: [Session; 2] = logins(&cluster.login_of("carol"));
    let before = events(cluster).len();
    cluster.sql(&["ALTER ROLE carol CONNECTION LIMIT 1"]);
    let about_carol = || {
        let events = events(cluster).split_off(before);
        events
            .iter()
            .any(|event| event["subject"] == "carol")
            .then_some(())
    };
    wait_for("carol to be found", about_carol);
    if !log {
        wait_until_left(cluster, "carol", 1);
    }
    drop(carols);
    cluster.wait_until_gone("carol");
    cluster.sql(&["ALTER ROLE carol CONNECTION LIMIT -1"]);
}

fn a_lowered_limit_ends_the_excess(server: &Server) {
    let cluster = cluster(server, &[TERMINATE, NOT_SOON]);
    let mut sessions: [Session; 3] = logins(&cluster.tcp_login_of("alice"));
    cluster.sql(&["ALTER ROLE alice CONNECTION LIMIT 3"]);
    sweep_once(&cluster, false);
    assert_eq!(alive(&mut sessions), [true; 3], "as many as there are");

    cluster.sql(&["ALTER ROLE alice CONNECTION LIMIT 1"]);
    wait_until_left(&cluster, "alice", 1);
    for session in &mut sessions[..2] {
        assert_eq!(
            told(session).detail(),
            "There are 3 sessions under a limit of 1 (CONNECTION LIMIT of role alice)."
        );
    }
    assert!(sessions[2].is_alive());
    let about_alice = || {
        let mut events = events(&cluster);
        events.retain(|event| event["subject"] == "alice");
        (events.len() == 2).then_some(events)
    };
    let events = wait_for("the events", about_alice);
    let event = |pid| {
        json!({
            "event": "swept", "action": "terminate", "role": "alice", "database": "postgres",
            "client_addr": "127.0.0.1", "pid": pid, "source": "CONNECTION LIMIT of role alice",
            "per": "role", "subject": "alice", "in_use": 3, "max": 1,
        })
    };
    assert_eq!(events, [event(sessions[0].pid), event(sessions[1].pid)]);
    sweep_once(&cluster, false);
    assert!(sessions[2].is_alive());
}

/// Each is met at once.
fn every_kind_of_limit(server: &Server) {
    let cluster = cluster(server, &[TERMINATE, NOT_SOON]);
    cluster.sql(&["GRANT team TO alice", "GRANT team TO bob"]);
    let label = |object: &str, limit: &str| {
        format!("SECURITY LABEL FOR session_limit ON {object} IS '{{\"limits\": [{limit}]}}'")
    };
    let set =
        |name: &str, value: &str| format!("ALTER SYSTEM SET session_limit.{name} = '{value}'");
    let per_address = r#"{"limits": [{"max": 1, "per": "address"}]}"#;
    let per_cluster = r#"{"limits": [{"max": 1, "per": "cluster", "network": "127.0.0.2/32"}]}"#;
    let cases = [
        (label("ROLE alice", r#"{"max": 1}"#), "label on role alice"),
        (
            label("ROLE alice", r#"{"max": 1, "per": "address"}"#),
            "label on role alice",
        ),
        (
            label("ROLE alice", r#"{"max": 1, "database": "app"}"#),
            "label on role alice",
        ),
        (
            label("ROLE alice", r#"{"max": 1, "network": "127.0.0.0/8"}"#),
            "label on role alice",
        ),
        (
            label("ROLE team", r#"{"max": 1, "per": "role"}"#),
            "label on a role that alice is a member of",
        ),
        (
            label("ROLE team", r#"{"max": 1, "per": "group"}"#),
            "label on a role that alice is a member of",
        ),
        (
            label("DATABASE app", r#"{"max": 1}"#),
            "label on database app",
        ),
        (
            label("DATABASE app", r#"{"max": 1, "per": "role"}"#),
            "label on database app",
        ),
        (
            "ALTER DATABASE app CONNECTION LIMIT 1".to_string(),
            "CONNECTION LIMIT of database app",
        ),
        (
            set("max_sessions_per_role", "1"),
            "session_limit.max_sessions_per_role",
        ),
        (
            set("cluster_limits", per_address),
            "session_limit.cluster_limits",
        ),
        (
            set("cluster_limits", per_cluster),
            "session_limit.cluster_limits",
        ),
    ];
    for (change, place) in cases {
        let mut sessions: [Session; 2] =
            logins(&cluster.login_from("alice", "127.0.0.2").to("app"));
        cluster.sql(&[&change]);
        if change.starts_with("ALTER SYSTEM") {
            cluster.reload();
        }
        wait_until_left(&cluster, "alice", 1);
        assert_eq!(
            told(&mut sessions[0]).detail(),
            format!("There are 2 sessions under a limit of 1 ({place})."),
            "{change}"
        );
        assert!(sessions[1].is_alive(), "{change}");
        drop(sessions);
        cluster.wait_until_gone("alice");
        cluster.sql(&[
            "SECURITY LABEL FOR session_limit ON ROLE alice IS NULL",
            "SECURITY LABEL FOR session_limit ON ROLE team IS NULL",
            "SECURITY LABEL FOR session_limit ON DATABASE app IS NULL",
            "ALTER DATABASE app CONNECTION LIMIT -1",
            "ALTER SYSTEM RESET ALL",
            "ALTER SYSTEM SET session_limit.sweep = 'terminate'",
        ]);
        cluster.reload();
        settle(&cluster);
    }
}

/// A grant alone does not make it run.
fn a_change_counts_from_its_commit_on(server: &Server) {
    let cluster = cluster(server, &[TERMINATE, NOT_SOON]);
    cluster
        .sql(&[r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"max": 1, "per": "group"}'"#]);
    let mut sessions: [Session; 2] = logins(&cluster.login_of("alice"));
    settle(&cluster);
    let mut superuser = cluster.superuser();
    superuser.query("GRANT team TO alice");
    for undo in ["ROLLBACK", "ABORT"] {
        superuser.query("BEGIN");
        superuser.query("ALTER ROLE bob CONNECTION LIMIT 7");
        superuser.query(r#"SECURITY LABEL FOR session_limit ON ROLE bob IS '{"max": 7}'"#);
        superuser.query(undo);
        for _ in 0..20 {
            assert_eq!(alive(&mut sessions), [true; 2], "{undo}");
        }
    }
    superuser.query("BEGIN");
    superuser.query("ALTER ROLE bob CONNECTION LIMIT 7");
    for _ in 0..20 {
        assert_eq!(alive(&mut sessions), [true; 2], "before the commit");
    }
    superuser.query("COMMIT");
    wait_until_left(&cluster, "alice", 1);
}

fn a_grant_is_followed_within_an_interval(server: &Server) {
    let cluster = cluster(server, &[TERMINATE, SOON]);
    cluster.sql(&[
        r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"max": 2, "per": "group"}'"#,
        "GRANT team TO alice",
    ]);
    let [mut alice, mut bob] = ["alice", "bob"].map(|user| logins::<2>(&cluster.login_of(user)));
    cluster.sql(&["GRANT team TO bob"]);
    wait_for("two to end", || (events(&cluster).len() == 2).then_some(()));
    wait_until_left(&cluster, "alice", 0);
    assert_eq!(alive(&mut alice), [false; 2], "idle for longer");
    assert_eq!(alive(&mut bob), [true; 2]);
}

fn the_longest_idle_end_first_and_none_in_a_transaction(server: &Server) {
    let cluster = cluster(server, &[TERMINATE, NOT_SOON]);
    let prepare = || {
        let mut sessions: [Session; 4] = logins(&cluster.login_of("alice"));
        sessions[0].query("SELECT 1");
        sessions[1].query("BEGIN");
        sessions
    };
    let orders = [
        ("refuse", [2, 3, 0]),
        ("replace_idle", [2, 3, 0]),
        ("replace_oldest", [0, 2, 3]),
    ];
    for (on_excess, order) in orders {
        let mut sessions = prepare();
        let mut expected = [true; 4];
        for (left, ends) in [3, 2, 1].into_iter().zip(order) {
            cluster.sql(&[&format!(
                r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{{"max": {left}, "on_excess": "{on_excess}"}}'"#
            )]);
            wait_until_left(&cluster, "alice", left);
            expected[ends] = false;
            let mut superuser = cluster.superuser();
            let pids =
                superuser.query("SELECT pid FROM session_limit.sessions WHERE usename = 'alice'");
            superuser.end();
            let is_left = |session: &Session| pids.contains(&vec![session.pid.to_string()]);
            // To ask them would end their idleness.
            let found: Vec<bool> = sessions.iter().map(is_left).collect();
            assert_eq!(found, expected, "{on_excess}, {left}");
        }
        sessions[1].query("COMMIT");
        sessions[1].query("BEGIN");
        cluster.sql(&[r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"max": 0}'"#]);
        wait_until_left(&cluster, "alice", 0);
        assert_eq!(
            told(&mut sessions[1]).detail(),
            "There is 1 session under a limit of 0 (label on role alice)."
        );
        cluster.sql(&["SECURITY LABEL FOR session_limit ON ROLE alice IS NULL"]);
        settle(&cluster);
    }
}

fn whoever_a_limit_does_not_hold_stays(server: &Server) {
    let cluster = cluster(server, &[TERMINATE, NOT_SOON]);
    cluster.sql(&[
        r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"max": 5, "per": "address"}'"#,
        r#"SECURITY LABEL FOR session_limit ON ROLE carol IS '{"exempt": true}'"#,
    ]);
    let here = |user| cluster.login_from(user, "127.0.0.2").to("app");
    let mut nearer: [Session; 2] = logins(&here("alice"));
    let mut exempt: [Session; 2] = logins(&here("carol"));
    let mut superusers: [Session; 2] = logins(&here("postgres"));
    let mut elsewhere: [Session; 2] = logins(&cluster.login_from("bob", "127.0.0.3"));
    let mut held: [Session; 3] = logins(&here("bob"));
    cluster.set(&[(
        "session_limit.cluster_limits",
        r#"{"limits": [{"max": 8, "per": "address"}]}"#,
    )]);
    wait_until_left(&cluster, "bob", 4);
    assert_eq!(
        told(&mut held[0]).detail(),
        "There are 9 sessions under a limit of 8 (session_limit.cluster_limits)."
    );
    cluster.set(&[(
        "session_limit.cluster_limits",
        r#"{"limits": [{"max": 2, "per": "address"}]}"#,
    )]);
    wait_until_left(&cluster, "bob", 2);
    assert_eq!(alive(&mut held), [false; 3]);
    for others in [&mut nearer, &mut exempt, &mut superusers, &mut elsewhere] {
        assert_eq!(alive(others), [true; 2]);
    }
    // As the catalogs say now.
    cluster.sql(&["SECURITY LABEL FOR session_limit ON ROLE carol IS NULL"]);
    wait_until_left(&cluster, "carol", 0);
    assert_eq!(alive(&mut exempt), [false; 2]);
    assert_eq!(alive(&mut superusers), [true; 2]);
}

fn whoever_is_exempt_pushes_nobody_out(server: &Server) {
    let limits = r#"{"limits": [{"max": 2, "per": "address"}]}"#;
    let settings = [TERMINATE, ("session_limit.cluster_limits", limits)];
    let cluster = cluster(server, &settings);
    let mut held: [Session; 2] = logins(&cluster.login_from("bob", "127.0.0.2"));
    let mut superusers: [Session; 2] = logins(&cluster.login_from("postgres", "127.0.0.2"));
    sweep_once(&cluster, false);
    assert_eq!(alive(&mut held), [true; 2], "no limit was lowered");
    assert_eq!(alive(&mut superusers), [true; 2]);
    let about_bob = |event: &Value| event["source"] == "session_limit.cluster_limits";
    assert!(!events(&cluster).iter().any(about_bob));
}

fn log_says_what_is_over_once(server: &Server) {
    let cluster = cluster(server, &[NOT_SOON]);
    let mut sessions: [Session; 3] = logins(&cluster.login_of("alice"));
    let about_alice = |number| {
        let found = || {
            let mut events = events(&cluster);
            events.retain(|event| event["subject"] == "alice");
            (events.len() >= number).then_some(events)
        };
        let events = wait_for("the event", found);
        assert_eq!(events.len(), number);
        events.last().expect("an event").clone()
    };
    let event = |in_use, max| {
        json!({
            "event": "swept", "role": null, "database": null, "client_addr": null, "pid": null,
            "action": "log", "source": "CONNECTION LIMIT of role alice", "per": "role", "subject": "alice", "in_use": in_use, "max": max,
        })
    };
    cluster.sql(&["ALTER ROLE alice CONNECTION LIMIT 1"]);
    assert_eq!(about_alice(1), event(3, 1));
    for _ in 0..3 {
        sweep_once(&cluster, true);
        assert_eq!(about_alice(1), event(3, 1), "nothing has changed");
    }
    assert_eq!(alive(&mut sessions), [true; 3]);
    // It is not to see some of them leave.
    settle(&cluster);
    drop(sessions);
    wait_until_left(&cluster, "alice", 0);
    let sessions: [Session; 1] = logins(&cluster.login_of("alice"));
    cluster.sql(&["ALTER ROLE alice CONNECTION LIMIT 0"]);
    assert_eq!(about_alice(2), event(1, 0));
    sweep_once(&cluster, true);
    assert_eq!(about_alice(2), event(1, 0));
    drop(sessions);
    wait_until_left(&cluster, "alice", 0);
    sweep_once(&cluster, true);
    cluster.sql(&["ALTER ROLE alice CONNECTION LIMIT -1"]);
    let _session = cluster.login_of("alice").login().expect("no limit");
    cluster.sql(&["ALTER ROLE alice CONNECTION LIMIT 0"]);
    assert_eq!(about_alice(3), event(1, 0), "anew");
}

fn off_does_nothing(server: &Server) {
    let cluster = cluster(server, &[("session_limit.sweep", "off"), SOON]);
    let mut sessions: [Session; 2] = logins(&cluster.login_of("alice"));
    cluster.sql(&["ALTER ROLE alice CONNECTION LIMIT 1"]);
    settle(&cluster);
    assert_eq!(alive(&mut sessions), [true; 2]);
    assert_eq!(events(&cluster), [] as [Value; 0]);
    cluster.set(&[TERMINATE, ("session_limit.enforcement", "off")]);
    settle(&cluster);
    assert_eq!(alive(&mut sessions), [true; 2]);
    assert_eq!(events(&cluster), [] as [Value; 0]);
    cluster.set(&[("session_limit.enforcement", "on")]);
    wait_until_left(&cluster, "alice", 1);
}

fn what_is_only_tried_out_ends_nobody(server: &Server) {
    let cluster = cluster(server, &[TERMINATE, NOT_SOON]);
    let mut sessions: [Session; 2] = logins(&cluster.login_of("alice"));
    let said = |number| {
        let found = wait_for("the event", || {
            Some(events(&cluster)).filter(|events| events.len() == number)
        });
        let event = found.last().expect("an event");
        assert_eq!(
            (&event["action"], &event["max"]),
            (&json!("log"), &json!(1))
        );
    };
    cluster.sql(&[
        r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"max": 1, "enforcement": "log"}'"#,
    ]);
    said(1);
    assert_eq!(alive(&mut sessions), [true; 2]);
    cluster.set(&[("session_limit.enforcement", "log")]);
    cluster.sql(&[
        "SECURITY LABEL FOR session_limit ON ROLE alice IS NULL",
        "ALTER ROLE alice CONNECTION LIMIT 1",
    ]);
    said(2);
    assert_eq!(alive(&mut sessions), [true; 2]);
    cluster.set(&[("session_limit.enforcement", "on")]);
    wait_until_left(&cluster, "alice", 1);
}

fn a_session_is_told_once(server: &Server) {
    let cluster = cluster(server, &[TERMINATE, NOT_SOON]);
    let mut sessions: [Session; 3] = logins(&cluster.login_of("alice"));
    let stopped = process(&sessions[0]);
    stop(stopped);
    cluster.sql(&["ALTER ROLE alice CONNECTION LIMIT 2"]);
    for _ in 0..3 {
        sweep_once(&cluster, false);
    }
    assert_eq!(
        alive(&mut sessions[1..]),
        [true; 2],
        "nobody else ends for it"
    );
    let about_alice = |events: Vec<Value>| {
        let about = events.iter().filter(|event| event["subject"] == "alice");
        about.count()
    };
    assert_eq!(about_alice(events(&cluster)), 1);
    go_on(stopped);
    wait_until_left(&cluster, "alice", 2);
    told(&mut sessions[0]);
    assert_eq!(about_alice(events(&cluster)), 1);
}

fn a_session_is_told_in_its_clients_characters(server: &Server) {
    let policy = [
        ("session_limit.on_excess", "replace_oldest"),
        ("session_limit.replace_min_age", "0"),
        ("session_limit.max_wait", "0"),
    ];
    let cluster = cluster(server, &[&policy[..], &[TERMINATE, NOT_SOON]].concat());
    cluster.sql(&[
        r#"CREATE ROLE "łukasz" LOGIN"#,
        r#"CREATE DATABASE "łódź" ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0"#,
    ]);
    let mut superuser = cluster.superuser();
    let role = superuser.value("SELECT oid FROM pg_roles WHERE rolname = 'łukasz'");
    let database = superuser.value("SELECT oid FROM pg_database WHERE datname = 'łódź'");
    let target = cluster.login_of("łukasz").to("łódź");
    for (encoding, role, database) in [("UTF8", "łukasz", "łódź"), ("LATIN1", &role, &database)]
    {
        let set = format!("SET client_encoding = '{encoding}'");
        let mut swept = target.login().expect("no limit yet");
        swept.query(&set);
        cluster.sql(&[r#"ALTER DATABASE "łódź" CONNECTION LIMIT 0"#]);
        wait_until_left(&cluster, "łukasz", 0);
        assert_eq!(
            told(&mut swept).detail(),
            format!(
                "There is 1 session under a limit of 0 (CONNECTION LIMIT of database {database})."
            )
        );
        cluster.sql(&[
            r#"ALTER DATABASE "łódź" CONNECTION LIMIT -1"#,
            r#"ALTER ROLE "łukasz" CONNECTION LIMIT 1"#,
        ]);
        settle(&cluster);
        let mut replaced = target.login().expect("the only one");
        replaced.query(&set);
        let newer = target.login().expect("in its place");
        assert_eq!(
            told(&mut replaced).detail(),
            format!(
                r#"This session was replaced by a newer session of role "{role}" from a local socket."#
            )
        );
        newer.end();
        cluster.sql(&[r#"ALTER ROLE "łukasz" CONNECTION LIMIT -1"#]);
    }
}

/// Whoever logs in while limits change, in the end there are no more than allowed, and no fewer.
fn logins_meanwhile(server: &Server) {
    let settings = [
        TERMINATE,
        SOON,
        ("session_limit.max_wait", "0"),
        ("session_limit.replace_min_age", "0"),
    ];
    let cluster = cluster(server, &settings);
    for on_excess in ["refuse", "replace_oldest"] {
        cluster.set(&[("session_limit.on_excess", on_excess)]);
        let mut sessions = while_limits_change(&cluster);
        settle(&cluster);
        // Some may have been told to end and be still there.
        wait_for("three to be in", || {
            sessions.extend(cluster.login_of("alice").login().ok());
            sessions.retain_mut(Session::is_alive);
            assert!(sessions.len() <= 3, "{on_excess}");
            (sessions.len() == 3).then_some(())
        });
        drop(sessions);
        cluster.wait_until_gone("alice");
    }
}

fn while_limits_change(cluster: &Cluster) -> Vec<Session> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let come = || {
            let mut sessions: Vec<Session> = Vec::new();
            while !done.load(Ordering::Relaxed) {
                sessions.extend(cluster.login_of("alice").login().ok());
                sessions.retain_mut(Session::is_alive);
            }
            sessions
        };
        let clients: Vec<_> = (0..3).map(|_| scope.spawn(come)).collect();
        for _ in 0..5 {
            for limit in [4, 1, 3] {
                cluster.sql(&[&format!("ALTER ROLE alice CONNECTION LIMIT {limit}")]);
                wait_until_left(cluster, "alice", limit);
            }
        }
        done.store(true, Ordering::Relaxed);
        let sessions = clients.into_iter().map(|client| client.join());
        sessions
            .flat_map(|sessions| sessions.expect("a client"))
            .collect()
    })
}

fn the_next_worker_goes_on(server: &Server) {
    let cluster = cluster(server, &[TERMINATE, NOT_SOON]);
    let first = wait_for_worker(&cluster, None);
    let mut sessions: [Session; 3] = logins(&cluster.login_of("alice"));
    stop(first);
    kill_process(first, Signal::TERM).expect("end the worker");
    // There is none, or it does not listen.
    cluster.sql(&["ALTER ROLE alice CONNECTION LIMIT 2"]);
    assert_eq!(alive(&mut sessions), [true; 3]);
    go_on(first);
    wait_until_left(&cluster, "alice", 2);
    wait_for_worker(&cluster, Some(first));
    cluster.sql(&["ALTER ROLE alice CONNECTION LIMIT 1"]);
    wait_until_left(&cluster, "alice", 1);
}

fn a_standby_follows(server: &Server) {
    let cluster = cluster(server, &[TERMINATE, SOON, ("wal_keep_size", "64MB")]);
    let standby = Cluster::standby_of(&cluster);
    let mut sessions: [Session; 2] = logins(&standby.login_of("alice"));
    cluster.sql(&["ALTER ROLE alice CONNECTION LIMIT 1"]);
    wait_until_left(&standby, "alice", 1);
    assert_eq!(
        told(&mut sessions[0]).detail(),
        "There are 2 sessions under a limit of 1 (CONNECTION LIMIT of role alice)."
    );
    assert!(sessions[1].is_alive());
}

/// As Vault does at the end of each lease: no limit counts the sessions of a role that is gone.
fn the_sessions_of_a_dropped_role_are_excess(server: &Server) {
    let cluster = cluster(server, &[SOON]);
    let mut alices = [(); 2].map(|()| cluster.login_of("alice").login().expect("alice"));
    let _bob = cluster.login_of("bob").login().expect("bob");
    let mut superuser = cluster.superuser();
    superuser.query("DROP ROLE alice");
    let said = "SELECT string_agg(concat_ws(' ', detail->>'action', detail->>'in_use', pid), ', ' ORDER BY detail->>'action', pid)
                FROM session_limit.events WHERE event = 'swept' AND detail ? 'role_oid'";
    let said = said.replace("detail ? ", "detail::jsonb ? ");
    wait_for("the log", || {
        (superuser.value(&said) == "log 2").then_some(())
    });
    assert!(alices.iter_mut().all(Session::is_alive));
    cluster.set(&[TERMINATE]);
    let pids = [alices[0].pid, alices[1].pid];
    let left = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE pid IN ({}, {})",
        pids[0], pids[1]
    );
    wait_for("alice's sessions to end", || {
        (superuser.value(&left) == "0").then_some(())
    });
    for session in &mut alices {
        let why = "The role of this session was dropped.";
        assert_eq!(told(session).detail(), why);
    }
    let ends = format!(
        "terminate 2 {}, terminate 2 {}",
        pids[0].min(pids[1]),
        pids[0].max(pids[1])
    );
    wait_for("the events", || {
        let said = superuser.value(&said);
        (said == format!("log 2, {ends}")).then_some(())
    });
    let left = "SELECT count(*) FROM session_limit.sessions WHERE usename = 'bob'";
    assert_eq!(superuser.value(left), "1");
}

/// Whoever owns a database can refuse others there, but not end their sessions.
fn the_owner_of_a_database_ends_nobody(server: &Server) {
    let cluster = cluster(server, &[TERMINATE, NOT_SOON]);
    cluster.sql(&[
        "ALTER DATABASE app OWNER TO bob",
        "GRANT ALL ON DATABASE app TO alice",
    ]);
    let to_app = |role| cluster.login_of(role).to("app");
    let mut alice = to_app("alice").login().expect("alice");
    let mut bob = to_app("bob").login().expect("bob");
    let said = "SELECT count(*) FROM session_limit.events
                WHERE event = 'swept' AND detail->>'action' = 'log' AND detail->>'source' = 'label on database app'";
    bob.query(r#"SECURITY LABEL FOR session_limit ON DATABASE app IS '{"max": 0}'"#);
    wait_for("the log", || {
        (cluster.superuser().value(said) == "1").then_some(())
    });
    assert!(alice.is_alive() && bob.is_alive());
    // A superuser's database is another matter.
    cluster.sql(&[
        "ALTER DATABASE app OWNER TO postgres",
        r#"SECURITY LABEL FOR session_limit ON DATABASE app IS '{"max": 0, "max_wait": 0}'"#,
    ]);
    for session in [&mut alice, &mut bob] {
        wait_for("the session to end", || (!session.is_alive()).then_some(()));
    }
}

/// No hook is told of a GRANT, so the worker looks.
fn whoever_gets_admin_on_a_labelled_group_is_logged_once(server: &Server) {
    let cluster = cluster(server, &[SOON]);
    cluster.sql(&[
        "CREATE ROLE other",
        r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"max": 9, "per": "group"}'"#,
        r#"SECURITY LABEL FOR session_limit ON ROLE other IS '{"exempt": true}'"#,
    ]);
    let logged = |number| {
        let lines = wait_for("the warning", || {
            let log = cluster.log();
            let lines = log
                .lines()
                .filter_map(|line| line.split_once(" can make anyone a member of role "));
            let lines: Vec<String> = lines.map(|(_, line)| line.to_string()).collect();
            (lines.len() >= number).then_some(lines)
        });
        assert_eq!(lines.len(), number, "{lines:?}");
        lines.last().cloned().unwrap_or_default()
    };
    let of_team = r#""team", which has a session_limit label: "#;
    logged(0);
    cluster.sql(&["GRANT team TO alice WITH ADMIN OPTION"]);
    assert_eq!(logged(1), format!("{of_team}alice"));
    sweep_once(&cluster, true);
    sweep_once(&cluster, true);
    logged(1);
    // Also where nothing is swept.
    cluster.set(&[("session_limit.sweep", "off")]);
    cluster.sql(&["GRANT team TO bob WITH ADMIN OPTION"]);
    assert_eq!(logged(2), format!("{of_team}alice, bob"));
    cluster.sql(&[
        "REVOKE team FROM alice",
        "GRANT other TO alice WITH ADMIN OPTION",
    ]);
    assert_eq!(
        logged(3),
        r#""other", which has a session_limit label: alice"#
    );
    // Whoever gets it again is as new.
    cluster.sql(&["GRANT team TO alice WITH ADMIN OPTION"]);
    assert_eq!(logged(4), format!("{of_team}alice, bob"));
}
