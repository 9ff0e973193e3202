//! Limits that count over several servers, with a real etcd.

use crate::scene::{admitted, go_on, refused, set_label, stop, wait_until};
use pg_test::client::Session;
use pg_test::cluster::{Cluster, Stop};
use pg_test::fleet::{Fleet, Servers};
use pg_test::server::Server;
use pg_test::{run, say, wait_for};
use std::thread;
use std::time::Duration;

tests![
    only_superusers_set_limits_across_servers,
    where_there_is_no_room_for_a_count_the_setting_says_what_happens,
    alice_has_one_session_wherever_she_connects,
    without_etcd_the_setting_says_what_happens,
    the_view_shows_the_servers_that_count_together,
    sessions_that_were_in_before_count_after_a_sweep,
    a_server_that_stops_gives_its_places_back_at_once,
    a_primary_with_a_standby_gives_its_places_back_too,
    a_login_that_waited_for_something_else_asks_then,
    several_limits_across_servers_hold_together,
    a_server_that_is_cut_off_is_gone_and_comes_back,
    a_session_that_opens_others_elsewhere_counts_once_by_its_network,
];

/// So many primaries; none, and a word, where there is no etcd to be had.
pub fn fleet(server: &Server, number: usize, settings: &[(&str, &str)]) -> Option<Fleet> {
    fleet_of(server, 1, Servers::Primaries(number), settings)
}

/// The same, with so many members of etcd.
pub fn fleet_of(
    server: &Server,
    members: usize,
    servers: Servers,
    settings: &[(&str, &str)],
) -> Option<Fleet> {
    let fleet = Fleet::try_start(server, members, servers, settings);
    fleet
        .inspect_err(|why| say(format_args!("skipped, for there is no etcd: {why}")))
        .ok()
}

fn alice_has_one_session_wherever_she_connects(server: &Server) {
    let Some(fleet) = fleet(server, 2, &[]) else {
        return;
    };
    let label = set_label("ROLE alice", r#"{"max": 1, "across": "servers"}"#);
    fleet.sql(&["CREATE ROLE alice LOGIN", &label]);
    let [one, other] = [0, 1].map(|index| fleet.clusters[index].login_of("alice"));
    for _ in 0..3 {
        let session = admitted(&one);
        let refusal = refused(&other);
        assert_eq!(refusal.sqlstate(), "53300");
        let detail = refusal.detail();
        let is_on_one = "The limit is 1 session across 2 servers (label on role alice); 1 is in use: 1 on server one.";
        assert!(detail.starts_with(is_on_one), "{detail}");
        assert_eq!(refused(&one).sqlstate(), "53300");
        session.end();
        let session = wait_for("the place", || other.login().ok());
        assert_eq!(refused(&one).sqlstate(), "53300");
        session.end();
        wait_for("the place", || one.login().ok()).end();
    }
}

fn only_superusers_set_limits_across_servers(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE manager LOGIN CREATEROLE",
        "CREATE ROLE owner LOGIN",
        "CREATE DATABASE hers OWNER owner",
        "GRANT USAGE ON SCHEMA session_limit TO PUBLIC",
    ]);
    let mut manager = cluster.login_of("manager").login().expect("a login");
    manager.query("CREATE ROLE alice LOGIN");
    let mut owner = cluster.login_of("owner").login().expect("a login");
    let limit = r#"{"max": 1, "across": "servers"}"#;
    let set = "SELECT session_limit.set_limit(1, role => 'alice', across => 'servers')";
    for refusal in [
        manager.try_query(&set_label("ROLE alice", limit)),
        manager.try_query(set),
        owner.try_query(&set_label("DATABASE hers", limit)),
    ] {
        let refusal = refusal.expect_err("a refusal");
        let message = "must be superuser to set a limit across servers";
        assert_eq!((refusal.sqlstate(), refusal.message()), ("42501", message));
    }
    manager.query(&set_label("ROLE alice", r#"{"max": 1}"#));
    let said = cluster.psql("postgres", &set_label("ROLE alice", limit));
    assert!(said.contains("counts on this server alone"), "{said}");
}

/// A login has 8 counts at most, and the table twice as many as there can be backends.
fn where_there_is_no_room_for_a_count_the_setting_says_what_happens(server: &Server) {
    let settings = [
        ("max_connections", "40"),
        ("autovacuum_max_workers", "1"),
        ("max_worker_processes", "4"),
        ("max_wal_senders", "0"),
        ("session_limit.on_unreachable", "refuse"),
    ];
    let Some(fleet) = fleet(server, 1, &settings) else {
        return;
    };
    let cluster = &fleet.clusters[0];
    let limits = (8..16)
        .map(|bits| format!(r#"{{"max": 5, "across": "servers", "network": "127.0.0.0/{bits}"}}"#));
    let many = format!(
        r#"{{"limits": [{}]}}"#,
        limits.collect::<Vec<_>>().join(", ")
    );
    let label = set_label(
        "ROLE alice",
        r#"{"max": 1, "across": "servers", "max_wait": "10min"}"#,
    );
    cluster.sql(&["CREATE ROLE alice LOGIN", &label]);
    let log = |text: &str| cluster.log().matches(text).count();
    let no_room = "there is no room for another count across servers";
    let one = r#"{"max": 1, "across": "servers"}"#;
    let mut sessions = Vec::new();
    // Counts come by eight, then the last ones alone.
    for label in [many.as_str(), one] {
        loop {
            let role = format!("r{}", sessions.len());
            let label = set_label(&format!("ROLE {role}"), label);
            cluster.sql(&[&format!("CREATE ROLE {role} LOGIN"), &label]);
            // The first ones may come before the server has joined.
            let login = wait_for("a login, or no room", || {
                let login = cluster.login_from(&role, "127.0.0.2").login();
                (login.is_ok() || log(no_room) > 0).then_some(login)
            });
            match login {
                Ok(session) => sessions.push(session),
                Err(refusal) => {
                    assert_eq!(refusal.sqlstate(), "57P03", "{refusal:?}");
                    cluster.sql(&[&format!("DROP ROLE {role}")]);
                    break;
                }
            }
        }
    }
    let alice = cluster.login_of("alice");
    assert_eq!(refused(&alice).sqlstate(), "57P03");
    cluster.set(&[("session_limit.on_unreachable", "local")]);
    let session = wait_for("alice", || alice.login().ok());
    session.end();
    assert_eq!(log(no_room), 1, "once a minute");
    cluster.set(&[("session_limit.on_unreachable", "refuse")]);
    sessions.into_iter().for_each(|it| it.end());
    wait_for("room", || alice.login().ok()).end();
}

fn without_etcd_the_setting_says_what_happens(server: &Server) {
    let settings = [("session_limit.etcd_timeout", "300ms")];
    let Some(mut fleet) = fleet(server, 1, &settings) else {
        return;
    };
    let label = set_label("ROLE alice", r#"{"max": 1, "across": "servers"}"#);
    let waits = r#"{"max": 1, "across": "servers", "max_wait": "10min"}"#;
    fleet.sql(&[
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
        "CREATE ROLE carol LOGIN",
        &label,
        &set_label("ROLE carol", waits),
    ]);
    let alice = fleet.clusters[0].login_of("alice");
    admitted(&alice).end();
    fleet.etcd.kill(0);
    let session = wait_for("a session without etcd", || alice.login().ok());
    wait_for("a refusal without etcd", || {
        let refusal = refused(&alice);
        assert_eq!(refusal.sqlstate(), "53300");
        let is_alone = refusal.detail().contains("etcd cannot be reached");
        is_alone.then_some(())
    });
    session.end();
    fleet.clusters[0].set(&[("session_limit.on_unreachable", "refuse")]);
    let refusal = wait_for("a refusal without etcd", || alice.login().err());
    assert_eq!(refusal.sqlstate(), "57P03", "{refusal:?}");
    let carol = fleet.clusters[0].login_of("carol");
    assert_eq!(refused(&carol).sqlstate(), "57P03", "she waits for nothing");
    admitted(&fleet.clusters[0].login_of("bob")).end();
    fleet.etcd.restart(&[0]);
    wait_for("a session with etcd", || alice.login().ok()).end();
}

fn the_view_shows_the_servers_that_count_together(server: &Server) {
    let Some(fleet) = fleet(server, 2, &[]) else {
        return;
    };
    let label = set_label("ROLE alice", r#"{"max": 3, "across": "servers"}"#);
    let extension = "CREATE EXTENSION session_limit";
    fleet.sql(&[extension, "CREATE ROLE alice LOGIN", &label]);
    let _session = admitted(&fleet.clusters[0].login_of("alice"));
    let mut other = fleet.clusters[1].superuser();
    // A server writes how many places it holds with each sign of life.
    let seen = "SELECT string_agg(concat_ws(' ', name, places, this), ', ' ORDER BY name) FROM session_limit.servers";
    wait_until(&mut other, seen, "one 1 f, two 0 t");
    let is_recent = "SELECT bool_and(last_seen > now() - interval '1 minute' AND since < now()) FROM session_limit.servers";
    assert_eq!(other.value(is_recent), "t");
    let mut alice = admitted(&fleet.clusters[1].login_of("alice"));
    let unseen = "SELECT count(places) FROM session_limit.servers";
    assert_eq!(alice.value(unseen), "0");
    let usage = "SELECT concat_ws(' ', across, in_use, elsewhere) FROM session_limit.usage WHERE rolname = 'alice'";
    wait_until(&mut alice, usage, "servers 1 1");
    let explained = "SELECT concat_ws(' ', across, in_use, elsewhere, fits) FROM session_limit.explain_login('alice', 'postgres')";
    assert_eq!(alice.value(explained), "servers 1 1 t");
}

fn sessions_that_were_in_before_count_after_a_sweep(server: &Server) {
    let settings = [("session_limit.sweep_interval", "1s")];
    let Some(fleet) = fleet(server, 2, &settings) else {
        return;
    };
    fleet.sql(&["CREATE ROLE alice LOGIN"]);
    let [one, other] = [0, 1].map(|index| fleet.clusters[index].login_of("alice"));
    let _session = admitted(&one);
    let label = set_label("ROLE alice", r#"{"max": 1, "across": "servers"}"#);
    fleet.sql(&[&label]);
    let refusal = wait_for("a refusal", || other.login().err());
    assert_eq!(refusal.sqlstate(), "53300", "{refusal:?}");
    assert_eq!(refused(&one).sqlstate(), "53300");
}

fn a_server_that_stops_gives_its_places_back_at_once(server: &Server) {
    let settings = [("session_limit.server_timeout", "10min")];
    let Some(mut fleet) = fleet(server, 2, &settings) else {
        return;
    };
    let label = set_label("ROLE alice", r#"{"max": 1, "across": "servers"}"#);
    fleet.sql(&["CREATE ROLE alice LOGIN", &label]);
    let [one, other] = [0, 1].map(|index| fleet.clusters[index].login_of("alice"));
    let session = admitted(&one);
    assert_eq!(refused(&other).sqlstate(), "53300");
    fleet.clusters[0].stop(Stop::Fast);
    drop(session);
    wait_for("the place", || other.login().ok()).end();
    // After a crash the server ends its life before itself.
    fleet.clusters[1].stop(Stop::Immediate);
    fleet.clusters[1].start_again();
    fleet.clusters[0].start_again();
    wait_for("the place", || one.login().ok()).end();
}

/// Its walsender ends later than the worker.
fn a_primary_with_a_standby_gives_its_places_back_too(server: &Server) {
    let settings = [("session_limit.server_timeout", "10min")];
    let Some(mut fleet) = fleet_of(server, 1, Servers::Standbys(1), &settings) else {
        return;
    };
    let label = set_label("ROLE alice", r#"{"max": 1, "across": "servers"}"#);
    fleet.sql(&["CREATE ROLE alice LOGIN", &label]);
    let [primary, standby] = [0, 1].map(|index| fleet.clusters[index].login_of("alice"));
    let session = admitted(&primary);
    wait_for("the label", || standby.login().err());
    fleet.clusters[0].stop(Stop::Fast);
    drop(session);
    let mut ctl = fleet.etcd.ctl();
    let living = ["get", "--prefix", "--keys-only", "/session_limit/v1/m/"];
    let living = run(ctl.args(living));
    assert_eq!(living.split_whitespace().count(), 1, "{living}");
    wait_for("the place", || standby.login().ok()).end();
}

/// For longer than it would wait for etcd.
fn a_login_that_waited_for_something_else_asks_then(server: &Server) {
    let settings = [("session_limit.etcd_timeout", "300ms")];
    let Some(fleet) = fleet(server, 2, &settings) else {
        return;
    };
    let label = set_label("ROLE alice", r#"{"max": 1, "across": "servers"}"#);
    fleet.sql(&["CREATE ROLE alice LOGIN", "CREATE ROLE bob LOGIN", &label]);
    let one_in_all = r#"{"limits": [{"per": "cluster", "max": 1, "max_wait": "1min"}]}"#;
    fleet.clusters[0].set(&[("session_limit.cluster_limits", one_in_all)]);
    let [here, there] = [0, 1].map(|index| fleet.clusters[index].login_of("alice"));
    let bob = admitted(&fleet.clusters[0].login_of("bob"));
    let outcome = thread::scope(|scope| {
        let waiting = scope.spawn(|| here.login());
        let title = "authentication waiting for room";
        wait_for("alice to wait", || {
            fleet.clusters[0].processes(title).first().copied()
        });
        let _alice = admitted(&there);
        thread::sleep(Duration::from_millis(500));
        bob.end();
        waiting.join().expect("a login").map(Session::end)
    });
    let refusal = outcome.expect_err("she is in on the other server");
    assert_eq!(refusal.sqlstate(), "53300");
    assert!(refusal.detail().contains("across 2 servers"), "{refusal:?}");
}

fn several_limits_across_servers_hold_together(server: &Server) {
    let Some(fleet) = fleet(server, 2, &[]) else {
        return;
    };
    let cluster_limits = r#"{"limits": [{"per": "cluster", "max": 2, "across": "servers"}]}"#;
    for cluster in &fleet.clusters {
        cluster.set(&[("session_limit.cluster_limits", cluster_limits)]);
    }
    let label = set_label("ROLE alice", r#"{"max": 1, "across": "servers"}"#);
    fleet.sql(&["CREATE ROLE alice LOGIN", "CREATE ROLE bob LOGIN", &label]);
    let login = |index: usize, role| fleet.clusters[index].login_of(role);
    let alice = wait_for("alice", || login(0, "alice").login().ok());
    assert_eq!(refused(&login(1, "alice")).sqlstate(), "53300");
    let bob = wait_for("bob", || login(1, "bob").login().ok());
    let refusal = refused(&login(0, "bob"));
    assert_eq!(refusal.message(), "too many connections for the cluster");
    alice.end();
    wait_for("bob again", || login(0, "bob").login().ok()).end();
    bob.end();
}

/// postgres_fdw logs in as the same role on other servers.
fn a_session_that_opens_others_elsewhere_counts_once_by_its_network(server: &Server) {
    if !server.has_library("postgres_fdw") {
        return say(format_args!("no postgres_fdw: no session opened others"));
    }
    let Some(fleet) = fleet(server, 3, &[]) else {
        return;
    };
    let everywhere = set_label("ROLE alice", r#"{"max": 1, "across": "servers"}"#);
    fleet.sql(&[
        "CREATE ROLE alice LOGIN",
        "CREATE TABLE here AS SELECT inet_server_port() AS port",
        "GRANT SELECT ON here TO alice",
        &everywhere,
    ]);
    let [coordinator, workers @ ..] = fleet.clusters.as_slice() else {
        unreachable!("there are three");
    };
    coordinator.sql(&["CREATE EXTENSION postgres_fdw"]);
    for (number, worker) in workers.iter().enumerate() {
        let port = worker.port;
        coordinator.sql(&[
            &format!(
                "CREATE SERVER worker{number} FOREIGN DATA WRAPPER postgres_fdw
                OPTIONS (host '127.0.0.1', port '{port}', dbname 'postgres')"
            ),
            &format!(
                "CREATE USER MAPPING FOR alice SERVER worker{number} OPTIONS (user 'alice', password_required 'false')"
            ),
            &format!(
                "CREATE FOREIGN TABLE there{number} (port int) SERVER worker{number} OPTIONS (table_name 'here')"
            ),
            &format!("GRANT SELECT ON there{number} TO alice"),
        ]);
    }
    let from_desk = |cluster: &Cluster| cluster.login_from("alice", "127.0.0.2");
    let everything = "SELECT count(*) FROM (TABLE there0 UNION ALL TABLE there1) AS there";
    let mut alice = wait_for("alice", || from_desk(coordinator).login().ok());
    let refusal = alice.try_query(everything).expect_err("a refusal");
    // What a connection of postgres_fdw meets.
    assert_eq!(refusal.sqlstate(), "08001", "{refusal:?}");
    alice.end();
    let from_clients = r#"{"max": 1, "across": "servers", "network": "127.0.0.2/32"}"#;
    fleet.sql(&[&set_label("ROLE alice", from_clients)]);
    let mut alice = wait_for("alice", || from_desk(coordinator).login().ok());
    assert_eq!(alice.value(everything), "2");
    assert_eq!(refused(&from_desk(&workers[0])).sqlstate(), "53300");
    alice.end();
}

fn a_server_that_is_cut_off_is_gone_and_comes_back(server: &Server) {
    let settings = [
        ("session_limit.server_timeout", "3s"),
        ("session_limit.sweep", "terminate"),
        ("session_limit.sweep_interval", "1s"),
    ];
    let Some(mut fleet) = fleet(server, 2, &settings) else {
        return;
    };
    let label = set_label("ROLE alice", r#"{"max": 1, "across": "servers"}"#);
    fleet.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN",
        &label,
    ]);
    let [one, other] = [0, 1].map(|index| fleet.clusters[index].login_of("alice"));
    let mut session = wait_for("alice", || one.login().ok());
    // Its worker stands still, so that it gives no sign of life.
    let worker = fleet.clusters[0].processes("session_limit servers");
    stop(worker[0]);
    let second = wait_for("the place of a server that is gone", || other.login().ok());
    let line = |index: usize, event: &str| {
        wait_for(event, || {
            let lines = crate::events::logged_as(&fleet.clusters[index], event);
            lines.into_iter().next()
        })
    };
    assert_eq!(line(1, "server_gone")["server"], "one");
    // Its session lives on, and it lets nobody in on what it held.
    go_on(worker[0]);
    assert_eq!(line(0, "rejoined")["places"], 1);
    // The sweep says that there are too many, and ends nobody.
    let swept = line(0, "swept");
    let counted = ["in_use", "elsewhere", "max"].map(|field| swept[field].as_u64());
    assert_eq!(counted, [Some(1); 3], "{swept}");
    assert_eq!(swept["action"], "log");
    assert!(session.is_alive());
    session.end();
    assert_eq!(refused(&one).sqlstate(), "53300");
    second.end();
    wait_for("the place", || one.login().ok()).end();
    let mut superuser = fleet.clusters[0].superuser();
    let reachable = "SELECT etcd_reachable FROM session_limit.status";
    wait_until(&mut superuser, reachable, "t");
    fleet.etcd.kill(0);
    let line = |event: &str| line(0, event);
    let endpoint = fleet.etcd.endpoint(0);
    assert_eq!(line("unreachable")["endpoint"], endpoint);
    wait_until(&mut superuser, reachable, "f");
    fleet.etcd.restart(&[0]);
    line("reachable");
}
