//! Events: each decision as one JSON object in the server log, and as a row of the view.

use crate::scene::{go_on, refused, set_label, stop, wait_until};
use pg_test::client::Session;
use pg_test::cluster::{Cluster, Stop};
use pg_test::server::Server;
use pg_test::wait_for;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

tests![
    each_event,
    any_name_is_one_line_of_json,
    log_events,
    what_is_usual_is_logged_however_often,
    a_storm_does_not_flood_the_log,
    nothing_is_left_unsaid_at_a_shutdown,
    the_view_keeps_the_latest,
    the_view_is_whole_in_a_storm,
    no_view,
    whose_events_one_sees,
    an_immediate_restart
];

/// A cluster whose worker sweeps nothing: that would be events, too.
fn quiet(server: &Server, settings: &[(&str, &str)]) -> Cluster {
    let mut all = vec![("session_limit.sweep", "off")];
    all.extend(settings);
    Cluster::start(server, &all)
}

/// Every line of ours in the log; each must be JSON, and as its schema says.
pub fn logged(cluster: &Cluster) -> Vec<Value> {
    let parse = |json: &str| {
        let line = serde_json::from_str(json).unwrap_or_else(|e| panic!("{json}: {e}"));
        crate::schema::fits(&line);
        line
    };
    let log = cluster.log();
    let ours = log
        .lines()
        .filter_map(|line| line.split_once("LOG:  session_limit: "));
    ours.map(|(_, json)| parse(json)).collect()
}

/// Those lines of this event.
pub fn logged_as(cluster: &Cluster, event: &str) -> Vec<Value> {
    let mut lines = logged(cluster);
    lines.retain(|line| line["event"] == event);
    lines
}

/// The view's rows, put together as they are in the log.
fn viewed(session: &mut Session) -> Vec<Value> {
    let sql = "SELECT row_to_json(e) FROM (
        SELECT event, usename AS role, datname AS database, host(client_addr) AS client_addr, pid, detail
        FROM session_limit.events) e";
    let rows = session.query(sql).into_iter();
    let merge = |row: Vec<String>| {
        let mut event: Value = serde_json::from_str(&row[0]).expect(&row[0]);
        let fields = event.as_object_mut().expect("an object");
        let detail = fields.remove("detail").expect("a detail");
        fields.extend(detail.as_object().expect("an object").clone());
        event
    };
    rows.map(merge).collect()
}

fn words(events: &[Value]) -> Vec<&str> {
    let words = events.iter().map(|event| event["event"].as_str());
    words.map(|word| word.expect("a word")).collect()
}

/// Without what depends on time, which must be there and in reason.
fn waited_at_least(mut event: Value, ms: u64) -> Value {
    let fields = event.as_object_mut().expect("an object");
    let waited = fields.remove("waited_ms").and_then(|ms| ms.as_u64());
    assert!(
        waited.is_some_and(|waited| (ms..60_000).contains(&waited)),
        "{waited:?}"
    );
    event
}

/// What the server says of alice's, or whoever's, processes that it refused.
fn pid_of(events: &[Value]) -> Value {
    events.last().expect("an event")["pid"].clone()
}

fn each_event(server: &Server) {
    let settings = [
        ("session_limit.log_events", "all"),
        ("session_limit.max_wait", "0"),
    ];
    let cluster = quiet(server, &settings);
    let mut superuser = cluster.superuser();
    superuser.query("CREATE EXTENSION session_limit");
    superuser.query("CREATE ROLE alice LOGIN");
    superuser.query(&set_label("ROLE alice", r#"{"max": 1}"#));
    let before = logged(&cluster).len();
    let alice = cluster.tcp_login_of("alice");
    let event = |event: &str, pid: Value| json!({"event": event, "role": "alice", "database": "postgres", "client_addr": "127.0.0.1", "pid": pid});
    let over = |word: &str, pid: Value, in_use: u32, max: u32| {
        let mut event = event(word, pid);
        let more = json!({"source": "label on role alice", "per": "role", "subject": "alice", "in_use": in_use, "max": max});
        let fields = event.as_object_mut().expect("an object");
        fields.extend(more.as_object().expect("an object").clone());
        event
    };
    let last = || logged(&cluster).pop().expect("an event");

    let first = alice.login().expect("the first");
    assert_eq!(last(), event("admitted", first.pid.into()));

    refused(&alice);
    assert_eq!(last(), over("refused", pid_of(&[last()]), 1, 1));
    assert_ne!(last()["pid"], first.pid);

    superuser.query(&set_label(
        "ROLE alice",
        r#"{"max": 1, "max_wait": "50ms"}"#,
    ));
    refused(&alice);
    let refused = waited_at_least(last(), 40);
    assert_eq!(refused, over("refused", refused["pid"].clone(), 1, 1));

    superuser.query(&set_label("ROLE alice", r#"{"max": 1, "max_wait": "60s"}"#));
    let second = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| alice.login());
        let waiting = "SELECT coalesce(sum(waiting), 0) FROM session_limit.usage";
        wait_until(&mut superuser, waiting, "1");
        first.close();
        waiter.join().expect("alice").expect("let in")
    });
    let waited = waited_at_least(last(), 0);
    assert_eq!(waited, event("waited", second.pid.into()));

    superuser.query(&set_label(
        "ROLE alice",
        r#"{"max": 1, "enforcement": "log"}"#,
    ));
    let third = alice.login().expect("it is only tried out");
    assert_eq!(last(), over("would_refuse", third.pid.into(), 1, 1));

    // From elsewhere: an event more. A socket is no address.
    superuser.query(&set_label("ROLE alice", r#"{"max": 9}"#));
    second.end();
    let fourth = cluster.login_from("alice", "127.0.0.2").login();
    let fourth = fourth.expect("from elsewhere");
    let expected = json!({"event": "concurrent_addresses", "role": "alice", "database": "postgres", "client_addr": "127.0.0.2",
        "pid": fourth.pid, "other_addr": "127.0.0.1", "other_pid": third.pid});
    assert_eq!(last(), expected);
    let _fifth = cluster.login_of("alice").login().expect("over a socket");
    assert_eq!(last()["event"], "admitted");
    assert_eq!(last()["client_addr"], Value::Null);

    let events = logged(&cluster).split_off(before);
    let expected = [
        "admitted",
        "refused",
        "refused",
        "waited",
        "would_refuse",
        "admitted",
        "concurrent_addresses",
        "admitted",
    ];
    assert_eq!(words(&events), expected);
    assert_eq!(viewed(&mut superuser).split_off(before), events);
    let times = "SELECT count(*) FROM session_limit.events e WHERE event_time > now() - interval '1h' AND event_time <= clock_timestamp()";
    assert_eq!(superuser.value(times), (before + 8).to_string());
}

/// Names as bad as they can be; a walsender's lack of a database; a detail that is too long for its
/// record; a database with an encoding that has none of the characters.
fn any_name_is_one_line_of_json(server: &Server) {
    let settings = [
        ("session_limit.log_events", "all"),
        ("session_limit.max_wait", "0"),
    ];
    let cluster = quiet(server, &settings);
    let mut superuser = cluster.superuser();
    superuser.query("CREATE EXTENSION session_limit");
    let long = "\u{1}".repeat(63);
    let odd = [
        "we\"ird'\\ro\nl\te\u{7f}\u{85}\u{2028}ü€😀",
        "da\\ta\"b\r\nase日本",
    ];
    // From 19 on no name has a line break.
    let odd = odd.map(|name| match server.major {
        ..19 => name.to_string(),
        19.. => name.replace(['\r', '\n'], ""),
    });
    let names = [
        (odd[0].as_str(), odd[1].as_str()),
        (long.as_str(), long.as_str()),
    ];
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    for (role, database) in names {
        superuser.query(&format!("CREATE ROLE {} LOGIN", quoted(role)));
        superuser.query(&format!("CREATE DATABASE {}", quoted(database)));
        let label = format!(
            r#"SECURITY LABEL FOR session_limit ON DATABASE {} IS '{{"max": 1, "per": "role"}}'"#,
            quoted(database)
        );
        superuser.query(&label);
        let login = cluster.login_of(role).to(database);
        let _first = login.login().expect("the first");
        refused(&login);
        let events = logged(&cluster);
        let event = events.last().expect("an event");
        let expected = json!({"event": "refused", "role": role, "database": database, "client_addr": null, "pid": event["pid"],
            "source": format!("label on database {database}"), "per": "role", "subject": format!("{role} in {database}"),
            "in_use": 1, "max": 1});
        assert_eq!(*event, expected);
        let mut viewed = viewed(&mut superuser);
        if role == long {
            let mut expected = expected;
            let fields = expected.as_object_mut().expect("an object");
            for key in ["source", "per", "subject", "in_use", "max"] {
                fields.remove(key);
            }
            fields.insert("truncated".to_string(), true.into());
            assert_eq!(viewed.pop(), Some(expected));
        } else {
            assert_eq!(viewed, events);
        }
    }
    superuser.query("CREATE ROLE standby LOGIN REPLICATION");
    let walsender = pg_test::client::Target {
        database: None,
        ..cluster.login_of("standby")
    };
    let walsender = walsender.login().expect("a walsender");
    let expected = json!({"event": "admitted", "role": "standby", "database": null, "client_addr": null, "pid": walsender.pid});
    assert_eq!(logged(&cluster).pop(), Some(expected.clone()));
    assert_eq!(viewed(&mut superuser).pop(), Some(expected));

    let events = superuser.value("SELECT count(*) FROM session_limit.events");
    superuser.query("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0");
    let mut latin = cluster.login_of("postgres").to("latin").login();
    let latin = latin.as_mut().expect("a superuser");
    latin.query("CREATE EXTENSION session_limit");
    let rows = latin.query("SELECT * FROM session_limit.events");
    // This login was one, too.
    assert_eq!(rows.len(), events.parse::<usize>().expect("a number") + 1);
    let ascii = "SELECT bool_and(detail::text ~ '^[ -~]*$') FROM session_limit.events";
    assert_eq!(latin.value(ascii), "t");
}

fn log_events(server: &Server) {
    let cluster = quiet(server, &[("session_limit.max_wait", "0")]);
    cluster.sql(&[
        "CREATE ROLE alice LOGIN CONNECTION LIMIT 2",
        "CREATE EXTENSION session_limit",
    ]);
    // Two admissions, one of them from elsewhere, and a refusal.
    let three_logins = || {
        let before = (
            logged(&cluster).len(),
            viewed(&mut cluster.superuser()).len(),
        );
        let _first = cluster.tcp_login_of("alice").login().expect("the first");
        let _second = cluster.login_from("alice", "127.0.0.2").login();
        refused(&cluster.tcp_login_of("alice"));
        let logged = logged(&cluster).split_off(before.0);
        let mut superuser = cluster.superuser();
        let viewed = viewed(&mut superuser).split_off(before.1);
        let of_alice = |events: Vec<Value>| {
            let alice = events.into_iter().filter(|event| event["role"] == "alice");
            let words = alice.map(|event| event["event"].as_str().expect("a word").to_string());
            words.collect::<Vec<_>>().join(" ")
        };
        drop(_first);
        drop(_second);
        cluster.wait_until_gone("alice");
        (of_alice(logged), of_alice(viewed))
    };
    let pair = |logged: &str, viewed: &str| (logged.to_string(), viewed.to_string());
    let all = "admitted admitted concurrent_addresses refused";
    assert_eq!(three_logins(), pair("refused", "refused"), "excess");
    cluster.set(&[("session_limit.log_events", "none")]);
    assert_eq!(three_logins(), pair("", "refused"), "none");
    cluster.set(&[("session_limit.log_events", "all")]);
    assert_eq!(three_logins(), pair(all, all), "all");
    cluster.set(&[("session_limit.log_events", "excess")]);
    assert_eq!(three_logins(), pair("refused", "refused"), "excess again");
    cluster.set(&[("session_limit.log_events", "excess, concurrent_addresses")]);
    let audited = "concurrent_addresses refused";
    assert_eq!(three_logins(), pair(audited, audited), "a list");
    cluster.set(&[("session_limit.log_events", "Waited")]);
    assert_eq!(three_logins(), pair("", "refused"), "another");

    let mut superuser = cluster.superuser();
    superuser.query("ALTER SYSTEM SET session_limit.log_events = refused, swept");
    let wrong = "ALTER SYSTEM SET session_limit.log_events = refused, left_out";
    let error = superuser.try_query(wrong).expect_err("no event");
    assert_eq!(error.sqlstate(), "22023");
    assert_eq!(error.detail(), r#""left_out" is not an event."#);
    assert!(
        error.hint().contains("would_refuse, would_replace"),
        "{error:?}"
    );
}

fn what_is_usual_is_logged_however_often(server: &Server) {
    let cluster = quiet(server, &[("session_limit.log_events", "all")]);
    cluster.sql(&["CREATE ROLE alice LOGIN"]);
    let here = cluster
        .login_from("alice", "127.0.0.2")
        .login()
        .expect("in");
    for outcome in cluster.tcp_login_of("alice").storm(40) {
        outcome.expect("no limit");
    }
    drop(here);
    let of_alice = |event: &str| {
        let mut events = logged_as(&cluster, event);
        events.retain(|event| event["role"] == "alice");
        events.len()
    };
    assert_eq!(of_alice("admitted"), 41);
    assert_eq!(of_alice("concurrent_addresses"), 40);
    assert_eq!(of_alice("left_out"), 0);
}

const LINES_A_SECOND: usize = 10;

/// The lines of these refusals, and how many are said to have been left out.
fn refusals(cluster: &Cluster) -> (Vec<Value>, u64) {
    let left_out = logged_as(cluster, "left_out");
    for line in &left_out {
        let expected = json!({"event": "left_out", "of": "refused", "role": "alice",
            "source": "CONNECTION LIMIT of role alice", "number": line["number"]});
        assert_eq!(*line, expected);
    }
    let numbers = left_out.iter().map(|line| line["number"].as_u64());
    let number = numbers.map(|number| number.expect("a number")).sum();
    (logged_as(cluster, "refused"), number)
}

const STORM: usize = 60;

/// Each is refused for the sake of the limit, and none for want of a connection.
fn refuse_a_storm(cluster: &Cluster) {
    for outcome in cluster.login_of("alice").storm(STORM) {
        let refusal = outcome.err().expect("no room");
        assert!(refusal.detail().starts_with("The limit is "), "{refusal:?}");
    }
    cluster.wait_for_processes(" authentication", 0);
}

/// Storms until one was faster than so many lines a second, as these lines and the number left out show.
/// Returns how many logins were refused.
fn refuse_until(cluster: &Cluster, shown: impl Fn(usize, usize, usize) -> bool) -> usize {
    let mut refused = 0;
    wait_for("storms that are fast enough", || {
        refuse_a_storm(cluster);
        refused += STORM;
        let (lines, left_out) = refusals(cluster);
        shown(refused, lines.len(), left_out as usize).then_some(refused)
    })
}

fn a_storm_does_not_flood_the_log(server: &Server) {
    let settings = [
        ("session_limit.max_wait", "0"),
        ("session_limit.max_events", "100000"),
    ];
    let cluster = quiet(server, &settings);
    cluster.sql(&[
        "CREATE ROLE alice LOGIN CONNECTION LIMIT 1",
        "CREATE EXTENSION session_limit",
    ]);
    let mut superuser = cluster.superuser();
    let _alice = cluster.login_of("alice").login().expect("the first");
    let too_fast = |refused, lines, _| refused >= 3 * STORM && lines < refused;
    let refused = refuse_until(&cluster, too_fast);
    let lines = wait_for("all to be accounted for", || {
        let (lines, left_out) = refusals(&cluster);
        (lines.len() + left_out as usize == refused).then_some(lines)
    });
    // The view has each, with its time in microseconds.
    let sql = "SELECT pid, (extract(epoch FROM event_time) * 1000000)::bigint FROM session_limit.events WHERE event = 'refused'";
    let times: BTreeMap<String, i64> = superuser
        .query(sql)
        .into_iter()
        .map(|row| (row[0].clone(), row[1].parse().expect("a number")))
        .collect();
    assert_eq!(times.len(), refused);
    let logged: BTreeSet<String> = lines.iter().map(|line| line["pid"].to_string()).collect();
    // The seconds of the throttle are of another clock: it is not known when one begins, but it is with some event.
    let holds = |begin: &i64| {
        let mut seconds: BTreeMap<i64, (usize, usize)> = BTreeMap::new();
        for (pid, time) in &times {
            let second = seconds.entry((time - begin).div_euclid(1_000_000));
            let (events, lines) = second.or_default();
            *events += 1;
            *lines += usize::from(logged.contains(pid));
        }
        let as_allowed = |(events, lines): &(usize, usize)| *lines == LINES_A_SECOND.min(*events);
        seconds.values().all(as_allowed)
    };
    assert!(times.values().any(holds), "{times:?}, logged {logged:?}");
}

fn nothing_is_left_unsaid_at_a_shutdown(server: &Server) {
    let mut cluster = quiet(server, &[("session_limit.max_wait", "0")]);
    cluster.sql(&["CREATE ROLE alice LOGIN CONNECTION LIMIT 1"]);
    let _alice = cluster.login_of("alice").login().expect("the first");
    // The worker would say it within a second.
    let worker = wait_for("the worker", || {
        let workers = cluster.processes("postgres: session_limit worker");
        workers.first().copied()
    });
    stop(worker);
    let unsaid = |refused, lines, left_out| lines + left_out < refused;
    let refused = refuse_until(&cluster, unsaid);
    cluster.signal(Signal::INT);
    wait_for("the shutdown", || {
        let log = cluster.log();
        log.contains("received fast shutdown request").then_some(())
    });
    go_on(worker);
    cluster.stop(Stop::Fast);
    let (lines, left_out) = refusals(&cluster);
    assert_eq!(lines.len() + left_out as usize, refused);
}

fn the_view_keeps_the_latest(server: &Server) {
    let settings = [
        ("session_limit.max_events", "5"),
        ("session_limit.max_wait", "0"),
    ];
    let cluster = quiet(server, &settings);
    cluster.sql(&["CREATE EXTENSION session_limit"]);
    let mut superuser = cluster.superuser();
    for number in 1..=12 {
        superuser.query(&format!(
            "CREATE ROLE role{number} LOGIN CONNECTION LIMIT 0"
        ));
        refused(&cluster.login_of(&format!("role{number}")));
        let oldest = (number - 4).max(1);
        let kept: Vec<String> = (oldest..=number).map(|n| format!("role{n}")).collect();
        // In the order of the view.
        let roles = "SELECT string_agg(usename, ' ') FROM session_limit.events";
        assert_eq!(superuser.value(roles), kept.join(" "));
        let sorted =
            "SELECT string_agg(usename, ' ' ORDER BY event_time) FROM session_limit.events";
        assert_eq!(superuser.value(sorted), kept.join(" "));
    }
}

fn the_view_is_whole_in_a_storm(server: &Server) {
    let settings = [
        ("session_limit.max_events", "7"),
        ("session_limit.max_wait", "0"),
        ("session_limit.log_events", "none"),
    ];
    let cluster = quiet(server, &settings);
    cluster.sql(&["CREATE EXTENSION session_limit"]);
    let roles = ["a", "bbbbbbbb", "cccccccccccccccccccccccccccc"];
    for role in roles {
        cluster.sql(&[&format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 0")]);
    }
    let mut superuser = cluster.superuser();
    std::thread::scope(|scope| {
        let storms = roles.map(|role| {
            let login = cluster.login_of(role);
            scope.spawn(move || {
                for _ in 0..10 {
                    assert!(login.storm(15).iter().all(Result::is_err));
                }
            })
        });
        while !storms.iter().all(|storm| storm.is_finished()) {
            let events = viewed(&mut superuser);
            assert!(events.len() <= 7);
            for event in events {
                let role = event["role"].as_str().expect("a role");
                let expected = json!({"event": "refused", "role": role, "database": "postgres", "client_addr": null, "pid": event["pid"],
                    "source": format!("CONNECTION LIMIT of role {role}"), "per": "role", "subject": role, "in_use": 0, "max": 0});
                assert_eq!(event, expected);
            }
        }
    });
    assert_eq!(viewed(&mut superuser).len(), 7);
    assert_eq!(logged(&cluster), Vec::<Value>::new());
}

fn no_view(server: &Server) {
    let settings = [
        ("session_limit.max_events", "0"),
        ("session_limit.max_wait", "0"),
    ];
    let cluster = quiet(server, &settings);
    cluster.sql(&[
        "CREATE ROLE alice LOGIN CONNECTION LIMIT 0",
        "CREATE EXTENSION session_limit",
    ]);
    refuse_a_storm(&cluster);
    assert_eq!(viewed(&mut cluster.superuser()), Vec::<Value>::new());
    wait_for("the log to be none the worse", || {
        let (lines, left_out) = refusals(&cluster);
        (lines.len() + left_out as usize == STORM).then_some(())
    });
}

fn whose_events_one_sees(server: &Server) {
    let cluster = quiet(server, &[("session_limit.max_wait", "0")]);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
        "CREATE ROLE boss LOGIN IN ROLE bob",
        "CREATE ROLE monitor LOGIN IN ROLE pg_monitor",
        "CREATE ROLE dropped LOGIN",
        "CREATE DATABASE app CONNECTION LIMIT 0",
    ]);
    for role in ["alice", "bob", "boss", "dropped", "bob"] {
        refused(&cluster.login_of(role).to("app"));
    }
    cluster.sql(&["DROP ROLE dropped", "ALTER ROLE bob RENAME TO robert"]);
    let sees = |role| {
        let mut session = cluster.login_of(role).login().expect("in");
        session.value("SELECT coalesce(string_agg(usename, ' '), '') FROM session_limit.events")
    };
    assert_eq!(sees("alice"), "alice");
    assert_eq!(sees("robert"), "bob bob", "as it was called then");
    assert_eq!(sees("boss"), "bob boss bob", "as a member of bob");
    assert_eq!(sees("monitor"), "alice bob boss dropped bob");
    let mut alice = cluster.login_of("alice").login().expect("in");
    assert_eq!(
        alice.value("SELECT count(*) FROM session_limit.recent_events()"),
        "1",
        "the function under the view tells no more"
    );
}

fn an_immediate_restart(server: &Server) {
    let mut cluster = quiet(server, &[("session_limit.max_wait", "0")]);
    cluster.sql(&[
        "CREATE ROLE alice LOGIN CONNECTION LIMIT 0",
        "CREATE EXTENSION session_limit",
        "CHECKPOINT",
    ]);
    for _ in 0..2 {
        assert_eq!(viewed(&mut cluster.superuser()), Vec::<Value>::new());
        refused(&cluster.login_of("alice"));
        let events = viewed(&mut cluster.superuser());
        assert_eq!(events, [logged(&cluster).pop().expect("a line")]);
        cluster.stop(Stop::Immediate);
        cluster.start_again();
    }
}
