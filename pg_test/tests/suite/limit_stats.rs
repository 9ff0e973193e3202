//! `session_limit.limit_stats`, what is counted for each limit, and the limits in force in `session_limit.usage` that
//! nobody is under.

use crate::scene::{
    admitted, go_on, process, refused, remove_label, set_label, stop, wait_until, wait_until_left,
};
use pg_test::client::Session;
use pg_test::cluster::{Cluster, Stop};
use pg_test::server::Server;
use std::thread;

tests![
    each_reason_is_counted_for_its_limit,
    peaks_by_whatever_a_limit_is_about,
    a_storm_reaches_exactly_the_peak,
    the_sweep_is_counted,
    whose_rows_one_sees,
    limits_in_force_without_a_session,
];

fn cluster(server: &Server, settings: &[(&str, &str)]) -> Cluster {
    let cluster = Cluster::start(server, settings);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
        "CREATE ROLE team",
        "GRANT team TO alice, bob",
    ]);
    cluster
}

/// What is counted for the limits of one source and subject.
fn row(superuser: &mut Session, source: &str, columns: &str) -> Vec<String> {
    let sql = format!("SELECT {columns} FROM session_limit.limit_stats WHERE source = '{source}'");
    let mut rows = superuser.query(&sql);
    assert_eq!(rows.len(), 1, "{source}: {rows:?}");
    rows.remove(0)
}

const REFUSED: &str = "refused_no_room, refused_no_place_to_wait, refused_not_replaced, refused_unreadable_label, last_refused IS NOT NULL";

fn each_reason_is_counted_for_its_limit(server: &Server) {
    let cluster = cluster(
        server,
        &[
            ("session_limit.max_wait", "0"),
            ("session_limit.max_waiters", "4"),
            ("session_limit.replace_min_age", "0"),
            ("authentication_timeout", "10min"),
        ],
    );
    let mut superuser = cluster.superuser();
    let alice = cluster.login_of("alice");
    let limit = |superuser: &mut Session, json: &str| {
        superuser.query(&set_label("ROLE alice", json));
    };
    // No room.
    limit(&mut superuser, r#"{"max": 1}"#);
    let first = admitted(&alice);
    refused(&alice);
    refused(&alice);
    let source = "label on role alice";
    assert_eq!(
        row(&mut superuser, source, REFUSED),
        ["2", "0", "0", "0", "t"]
    );
    // One of the role waits, its share of four places: no place for another.
    limit(&mut superuser, r#"{"max": 1, "max_wait": "9min"}"#);
    let waiter = thread::spawn({
        let alice = alice.clone();
        move || alice.login()
    });
    wait_until(
        &mut superuser,
        "SELECT count(*) FROM session_limit.waiters",
        "1",
    );
    refused(&alice);
    assert_eq!(
        row(&mut superuser, source, REFUSED),
        ["2", "1", "0", "0", "t"]
    );
    first.end();
    let second = waiter.join().expect("the waiter").expect("room");
    // A session that is stopped does not end for the next one.
    limit(
        &mut superuser,
        r#"{"max": 1, "on_excess": "replace_oldest"}"#,
    );
    stop(process(&second));
    refused(&alice);
    assert_eq!(
        row(&mut superuser, source, REFUSED),
        ["2", "1", "1", "0", "t"]
    );
    go_on(process(&second));
    wait_until_left(&cluster, "alice", 0);
    let third = admitted(&alice);
    let fourth = admitted(&alice);
    let done = "admitted, replaced, would_refuse, would_replace, peak, max, enforcement, others";
    let expected = ["4", "1", "0", "0", "1", "1", "on", "f"];
    assert_eq!(row(&mut superuser, source, done), expected);
    // What is only tried out is counted apart.
    limit(
        &mut superuser,
        r#"{"limits": [{"max": 1, "enforcement": "log"}], "on_excess": "refuse"}"#,
    );
    let fifth = admitted(&alice);
    let of_log = "SELECT admitted, would_refuse, would_replace, peak FROM session_limit.limit_stats WHERE enforcement = 'log'";
    assert_eq!(superuser.query(of_log), [["1", "1", "0", "2"]]);
    limit(
        &mut superuser,
        r#"{"limits": [{"max": 1, "enforcement": "log"}], "on_excess": "replace_oldest"}"#,
    );
    let sixth = admitted(&alice);
    assert_eq!(superuser.query(of_log), [["2", "1", "1", "3"]]);
    drop([third, fourth, fifth, sixth]);
    // A label that nobody can read, as only a superuser can make it.
    superuser.query("SET allow_system_table_mods = on");
    superuser.query("UPDATE pg_shseclabel SET label = 'broken'");
    let bob = cluster.login_of("bob");
    admitted(&bob).end();
    assert_eq!(refused(&alice).sqlstate(), "22023");
    let sql = "SELECT source, per IS NULL, subject IS NULL, refused_unreadable_label FROM session_limit.limit_stats WHERE per IS NULL";
    assert_eq!(superuser.query(sql), [[source, "t", "t", "1"]]);
    // A restart keeps all of it, a reset nothing.
    let all = "SELECT count(*), sum(admitted), sum(refused_no_room), max(last_refused) FROM session_limit.limit_stats";
    let before = superuser.query(all);
    superuser.end();
    let mut cluster = cluster;
    cluster.stop(Stop::Fast);
    cluster.start_again();
    let mut superuser = cluster.superuser();
    assert_eq!(superuser.query(all), before);
    superuser.query("SELECT session_limit.reset_stats()");
    assert_eq!(
        superuser.value("SELECT count(*) FROM session_limit.limit_stats"),
        "0"
    );
}

fn peaks_by_whatever_a_limit_is_about(server: &Server) {
    let limits = r#"{"limits": [{"max": 90, "per": "cluster"}, {"max": 80, "per": "address"}, {"max": 70, "per": "cluster", "network": "127.0.0.0/8"}]}"#;
    let settings = [
        ("session_limit.max_sessions_per_role", "60"),
        ("session_limit.cluster_limits", limits),
    ];
    let cluster = cluster(server, &settings);
    cluster.sql(&[
        "CREATE DATABASE app CONNECTION LIMIT 50",
        &set_label("ROLE team", r#"{"limits": [{"max": 40, "per": "group"}]}"#),
    ]);
    let alice = cluster.login_of("alice");
    let bob = cluster.login_from("bob", "127.0.0.2");
    let sessions = [
        admitted(&alice),
        admitted(&cluster.login_from("alice", "127.0.0.1").to("app")),
        admitted(&bob.clone().to("app")),
        admitted(&bob),
    ];
    sessions.into_iter().for_each(Session::end);
    cluster.wait_until_gone("alice");
    cluster.wait_until_gone("bob");
    admitted(&alice).end();
    let mut superuser = cluster.superuser();
    let sql = "SELECT concat_ws(' ', per, subject, max, admitted, peak, rolname, datname, client_addr, network)
        FROM session_limit.limit_stats ORDER BY 1";
    let rows = superuser.query(sql).concat();
    let expected = [
        "address 127.0.0.1 80 1 1 127.0.0.1",
        "address 127.0.0.2 80 2 2 127.0.0.2",
        "cluster 127.0.0.0/8 70 3 3 127.0.0.0/8",
        "cluster 90 5 4",
        "database app 50 2 2 app",
        "group team 40 5 4 team",
        "role alice 60 3 2 alice",
        "role bob 60 2 2 bob",
    ];
    assert_eq!(rows, expected);
}

fn a_storm_reaches_exactly_the_peak(server: &Server) {
    let settings = [
        ("session_limit.max_sessions_per_role", "7"),
        ("session_limit.max_wait", "0"),
    ];
    let cluster = cluster(server, &settings);
    let outcomes = cluster.login_of("alice").storm(40);
    let refused = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    assert_eq!(refused, 33);
    let mut superuser = cluster.superuser();
    let columns = "admitted, refused_no_room, peak";
    let source = "session_limit.max_sessions_per_role";
    assert_eq!(row(&mut superuser, source, columns), ["7", "33", "7"]);
}

fn the_sweep_is_counted(server: &Server) {
    let cluster = cluster(server, &[("session_limit.sweep", "terminate")]);
    let _sessions = [(); 3].map(|()| admitted(&cluster.login_of("alice")));
    let mut superuser = cluster.superuser();
    superuser.query(&set_label("ROLE alice", r#"{"max": 1}"#));
    let swept =
        "SELECT sum(swept) FROM session_limit.limit_stats WHERE source = 'label on role alice'";
    wait_until(&mut superuser, swept, "2");
    wait_until_left(&cluster, "alice", 1);
}

fn whose_rows_one_sees(server: &Server) {
    let limits = r#"{"limits": [{"max": 90, "per": "cluster"}]}"#;
    let settings = [
        ("session_limit.max_sessions_per_role", "5"),
        ("session_limit.cluster_limits", limits),
    ];
    let cluster = cluster(server, &settings);
    let mut alice = admitted(&cluster.login_of("alice"));
    let _bob = admitted(&cluster.login_of("bob"));
    let mut superuser = cluster.superuser();
    let subjects =
        "SELECT string_agg(subject, ' ' ORDER BY subject) FROM session_limit.limit_stats";
    assert_eq!(alice.value(subjects), "alice");
    assert_eq!(superuser.value(subjects), "alice bob");
    assert_eq!(
        superuser.value("SELECT count(*) FROM session_limit.limit_stats"),
        "3"
    );
    superuser.query("GRANT pg_read_all_stats TO alice");
    assert_eq!(alice.value(subjects), "alice bob");
}

fn limits_in_force_without_a_session(server: &Server) {
    let limits = r#"{"limits": [{"max": 90, "per": "cluster"}, {"max": 9, "per": "address"}, {"max": 70, "per": "cluster", "network": "10.0.0.0/8"}]}"#;
    let settings = [("session_limit.cluster_limits", limits)];
    let cluster = cluster(server, &settings);
    cluster.sql(&[
        "CREATE DATABASE app CONNECTION LIMIT 50",
        &set_label("DATABASE app", r#"{"limits": [{"max": 6, "per": "role"}, {"max": 30}]}"#),
        "CREATE ROLE empty",
        &set_label("ROLE empty", r#"{"limits": [{"max": 3, "per": "group"}]}"#),
        &set_label(
            "ROLE team",
            r#"{"limits": [{"max": 40, "per": "group"}, {"max": 4, "per": "role"}, {"max": 2, "per": "group", "database": "app"}]}"#,
        ),
        "CREATE ROLE boss LOGIN SUPERUSER IN ROLE team CONNECTION LIMIT 8",
        "CREATE ROLE carol LOGIN CONNECTION LIMIT 3",
        &set_label(
            "ROLE carol",
            r#"{"limits": [{"max": 2}, {"max": 1, "database": "app"}, {"max": 1, "enforcement": "log", "network": "10.1.0.0/16"}]}"#,
        ),
        "ALTER ROLE empty CONNECTION LIMIT 5",
    ]);
    let mut superuser = cluster.superuser();
    let sql = "SELECT concat_ws(' ', per, subject, in_use, max, enforcement) FROM session_limit.usage ORDER BY 1";
    let mut expected = vec![
        "cluster 1 90 on",
        "cluster 10.0.0.0/8 0 70 on",
        "database app 0 30 on",
        "database app 0 50 on",
        "group team 0 40 on",
        "group team in app 0 2 on",
        "role carol 0 2 on",
        "role carol from 10.1.0.0/16 0 1 log",
        "role carol in app 0 1 on",
        "role carol in app 0 6 on",
    ];
    assert_eq!(superuser.query(sql).concat(), expected);
    // Whoever was in under a limit for each role keeps a row.
    let mut alice = admitted(&cluster.login_of("alice"));
    wait_until(
        &mut superuser,
        "SELECT in_use FROM session_limit.usage WHERE subject = 'alice'",
        "1",
    );
    let own = "SELECT string_agg(subject, ', ' ORDER BY subject) FROM session_limit.usage WHERE rolname IS NOT NULL";
    assert_eq!(alice.value(own), "alice, team, team in app");
    let others = "SELECT count(*) FROM session_limit.usage WHERE rolname IS NULL";
    assert_eq!(
        alice.value(others),
        "4",
        "the limits of databases and of the cluster are no secret"
    );
    alice.end();
    cluster.wait_until_gone("alice");
    expected.insert(6, "role alice 0 4 on");
    assert_eq!(superuser.query(sql).concat(), expected);
    // One member whom a label exempts hides no group.
    superuser.query(&set_label("ROLE alice", r#"{"exempt": true}"#));
    superuser.query(&set_label("ROLE bob", r#"{"exempt": true}"#));
    superuser.query("CREATE ROLE dave LOGIN IN ROLE team");
    let team = "SELECT in_use FROM session_limit.usage WHERE subject = 'team'";
    assert_eq!(superuser.value(team), "0");
    superuser.query(&remove_label("ROLE alice"));
    let of_alice =
        "SELECT string_agg(enforcement, ' ') FROM session_limit.usage WHERE subject = 'alice'";
    assert_eq!(superuser.value(of_alice), "on");
    cluster.set(&[("session_limit.enforcement", "off")]);
    wait_until(&mut superuser, of_alice, "off");
    cluster.set(&[("session_limit.enforcement", "on")]);
    wait_until(&mut superuser, of_alice, "on");
    superuser.query("ALTER ROLE alice NOLOGIN");
    assert_eq!(superuser.value(of_alice), "");
    superuser.query("ALTER ROLE alice LOGIN");
    assert_eq!(superuser.value(of_alice), "on");
    superuser.query("DROP ROLE alice");
    let rows =
        "SELECT count(*) FROM session_limit.usage WHERE per = 'role' AND subject NOT LIKE 'carol%'";
    assert_eq!(superuser.value(rows), "0", "nor one with an OID for a name");
    // What does not hold any more has no row.
    superuser.query(&remove_label("ROLE team"));
    superuser.query("ALTER ROLE carol CONNECTION LIMIT 1");
    superuser.query("DROP DATABASE app");
    let expected = [
        "cluster 1 90 on",
        "cluster 10.0.0.0/8 0 70 on",
        "role carol 0 1 on",
        "role carol from 10.1.0.0/16 0 1 log",
    ];
    assert_eq!(superuser.query(sql).concat(), expected);
}
