//! What several servers count together is exact, in whatever order logins come, and whatever becomes of the roles; with a
//! real etcd.

use crate::scene::{admitted, refused, remove_label, set_label, wait_until};
use crate::servers::fleet_of;
use crate::storm::storm;
use pg_test::client::{Connection, Session, Target};
use pg_test::cluster::Cluster;
use pg_test::fleet::{Fleet, Servers};
use pg_test::server::Server;
use pg_test::{run, wait_for};
use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

tests![
    a_storm_on_three_primaries_admits_exactly_the_limit,
    a_storm_on_a_primary_and_its_standbys_admits_exactly_the_limit,
    who_ends_a_session_is_let_in_again_on_that_server,
    a_place_goes_to_another_server_soon_after_its_session,
    a_burst_with_room_waits_for_etcd_beyond_max_waiters,
    a_burst_that_waits_for_etcd_leaves_reserved_connections_free,
    without_max_wait_an_old_answer_refuses_nobody,
    a_group_has_its_places_on_all_servers,
    a_database_has_its_places_on_all_servers,
    an_address_has_its_places_on_all_servers,
    sessions_of_a_renamed_role_go_with_it,
    sessions_of_a_dropped_role_hold_no_place_of_its_namesake,
    a_label_that_is_set_again_counts_who_is_in,
    a_storm_of_two_roles_under_three_limits_fills_them,
    nobody_who_needs_several_places_is_stuck,
    whoever_gives_up_leaves_no_key_in_etcd,
];

/// So many storms are there of each kind. `SESSION_LIMIT_STORM_ROUNDS` makes it more, or fewer.
fn rounds() -> usize {
    let rounds = std::env::var("SESSION_LIMIT_STORM_ROUNDS").ok();
    rounds.and_then(|rounds| rounds.parse().ok()).unwrap_or(4)
}

/// On a machine with much to do, too, no server goes by its own count because etcd or its worker took too long.
const PATIENT: [(&str, &str); 2] = [
    ("session_limit.etcd_timeout", "30s"),
    ("session_limit.server_timeout", "5min"),
];

fn patient_fleet(server: &Server, number: usize, settings: &[(&str, &str)]) -> Option<Fleet> {
    let settings = [&PATIENT, settings].concat();
    fleet_of(server, 1, Servers::Primaries(number), &settings)
}

/// What the servers have written to etcd of their counters, each kind of key with the sum of its values: `p` for places
/// that are held, `w` for places that are waited for.
fn written(fleet: &Fleet) -> String {
    let prefix = "/session_limit/v1/c/";
    let text = run(fleet.etcd.ctl().args(["get", "--prefix", prefix]));
    let lines: Vec<&str> = text.lines().collect();
    let mut sums = BTreeMap::<&str, u32>::new();
    for row in lines.chunks_exact(2) {
        let key = row[0].strip_prefix(prefix);
        let (kind, _server) = key.and_then(|key| key.rsplit_once('/')).expect("a key");
        *sums.entry(kind).or_default() += row[1].parse::<u32>().expect("a number");
    }
    let sums = sums.iter().map(|(kind, sum)| format!("{kind} {sum}"));
    sums.collect::<Vec<_>>().join(", ")
}

fn wait_until_written(fleet: &Fleet, expected: &str) {
    let mut found = String::new();
    wait_for(&format!("\"{expected}\" in etcd"), || {
        found = written(fleet);
        if found != expected {
            thread::sleep(Duration::from_millis(20));
        }
        (found == expected).then_some(())
    });
}

fn is_full(targets: &[&Target]) {
    for target in targets {
        let refusal = refused(target);
        assert_eq!(refusal.sqlstate(), "53300", "{target:?}: {refusal:?}");
    }
}

fn a_storm_on_three_primaries_admits_exactly_the_limit(server: &Server) {
    storms(server, 3, Servers::Primaries(3));
}

fn a_storm_on_a_primary_and_its_standbys_admits_exactly_the_limit(server: &Server) {
    storms(server, 1, Servers::Standbys(2));
}

fn storms(server: &Server, members: usize, servers: Servers) {
    let Some(fleet) = fleet_of(server, members, servers, &PATIENT) else {
        return;
    };
    let kinds = [(1, "0"), (5, "0"), (1, "100ms"), (5, "100ms")];
    let role = |(max, max_wait): (usize, &str)| format!("at_most_{max}_after_{max_wait}");
    fleet.sql(&["CREATE EXTENSION session_limit"]);
    for kind in kinds {
        let (max, max_wait) = kind;
        let limit = format!(r#"{{"max": {max}, "across": "servers", "max_wait": "{max_wait}"}}"#);
        let label = set_label(&format!("ROLE {}", role(kind)), &limit);
        fleet.sql(&[&format!("CREATE ROLE {} LOGIN", role(kind)), &label]);
    }
    for cluster in &fleet.clusters {
        let mut session = cluster.superuser();
        let labels = "SELECT count(*) FROM pg_seclabels WHERE provider = 'session_limit'";
        wait_until(&mut session, labels, "4");
        session.end();
    }
    for round in 0..2 * rounds() {
        let kind = kinds[round % kinds.len()];
        let role = role(kind);
        let targets = fleet.clusters.iter().map(|cluster| cluster.login_of(&role));
        let targets: Vec<Target> = targets.cycle().take(20 * fleet.clusters.len()).collect();
        let sessions = storm(&targets);
        let admitted = sessions.iter().flatten().count();
        assert_eq!(admitted, kind.0, "{role}, round {round}");
        drop(sessions);
        for cluster in &fleet.clusters {
            cluster.wait_until_gone(&role);
        }
    }
    wait_until_written(&fleet, "");
}

/// Once its backend is gone, there is no need to wait; a backend that is still leaving is waited for, however long it takes.
fn who_ends_a_session_is_let_in_again_on_that_server(server: &Server) {
    const CLIENTS: usize = 4;
    let Some(fleet) = patient_fleet(server, 2, &[]) else {
        return;
    };
    let leaving = [("0", Session::end as fn(Session)), ("30s", Session::close)];
    for (index, (max_wait, leave)) in leaving.into_iter().enumerate() {
        let role = format!("app{index}");
        let limit =
            format!(r#"{{"max": {CLIENTS}, "across": "servers", "max_wait": "{max_wait}"}}"#);
        let label = set_label(&format!("ROLE {role}"), &limit);
        fleet.sql(&[&format!("CREATE ROLE {role} LOGIN"), &label]);
        let target = fleet.clusters[0].login_of(&role);
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| (0..50).for_each(|_| leave(admitted(&target))));
            }
        });
    }
    wait_until_written(&fleet, "");
}

/// The place stays with its server for 50 ms. A default `max_wait` of 100 ms is for that, and for a machine that is not busy
/// with hundreds of tests. So here a login waits for longer, and what is measured is how long: as most do, not all.
fn a_place_goes_to_another_server_soon_after_its_session(server: &Server) {
    let settings = [("session_limit.max_wait", "30s")];
    let Some(fleet) = patient_fleet(server, 3, &settings) else {
        return;
    };
    let label = set_label("ROLE alice", r#"{"max": 1, "across": "servers"}"#);
    fleet.sql(&["CREATE ROLE alice LOGIN", &label]);
    let targets = fleet
        .clusters
        .iter()
        .map(|cluster| cluster.login_of("alice"));
    let targets: Vec<Target> = targets.collect();
    let mut session = admitted(&targets[0]);
    let mut changes = Vec::new();
    for target in targets.iter().cycle().skip(1).take(30) {
        session.close();
        let began = Instant::now();
        session = admitted(target);
        changes.push(began.elapsed());
    }
    changes.sort();
    let median = changes[changes.len() / 2];
    assert!(median < Duration::from_secs(2), "{changes:?}");
    session.end();
    wait_until_written(&fleet, "");
}

fn begin_login(target: &Target) -> Connection {
    let mut connection = target.connect();
    connection.send_startup(target);
    connection
}

/// Servers that count together, and hold no place.
fn burst_fleet(server: &Server, settings: &[(&str, &str)]) -> Option<Fleet> {
    let fleet = patient_fleet(server, 2, settings)?;
    let label = set_label("ROLE app", r#"{"max": 30, "across": "servers"}"#);
    fleet.sql(&["CREATE ROLE app LOGIN", &label]);
    // When they have let somebody in they have joined.
    for cluster in &fleet.clusters {
        admitted(&cluster.login_of("app")).end();
    }
    wait_until_written(&fleet, "");
    Some(fleet)
}

const WAITING: &str = "authentication waiting for room";

/// Waiting for an answer is not waiting for room: neither `max_wait`, which is 0 here, nor `max_waiters` is about it.
fn a_burst_with_room_waits_for_etcd_beyond_max_waiters(server: &Server) {
    let Some(mut fleet) = burst_fleet(server, &[]) else {
        return;
    };
    let app = fleet.clusters[0].login_of("app");
    fleet.etcd.stop(0);
    let logins: Vec<Connection> = (0..30).map(|_| begin_login(&app)).collect();
    fleet.clusters[0].wait_for_processes(WAITING, 30);
    fleet.etcd.go_on(0);
    let sessions = logins.into_iter().map(Connection::outcome);
    let sessions: Result<Vec<Session>, _> = sessions.collect();
    let sessions = sessions.expect("room for all");
    is_full(&[&app, &fleet.clusters[1].login_of("app")]);
    sessions.into_iter().for_each(Session::end);
    wait_until_written(&fleet, "");
}

fn a_burst_that_waits_for_etcd_leaves_reserved_connections_free(server: &Server) {
    let settings = [
        ("max_connections", "20"),
        ("superuser_reserved_connections", "3"),
    ];
    let Some(mut fleet) = burst_fleet(server, &settings) else {
        return;
    };
    let cluster = &fleet.clusters[0];
    let app = cluster.login_of("app");
    fleet.etcd.stop(0);
    // One after the other, as each is decided by what is free at that moment.
    let login = |number| {
        let login = begin_login(&app);
        cluster.wait_for_processes(WAITING, number);
        login
    };
    let logins: Vec<Connection> = (1..=17).map(login).collect();
    assert_eq!(refused(&app).sqlstate(), "53300");
    cluster.wait_for_processes(" authentication", 17);
    let superusers = [(); 3].map(|()| cluster.superuser());
    superusers.into_iter().for_each(Session::end);
    fleet.etcd.go_on(0);
    for login in logins {
        login.outcome().expect("room for all who waited").close();
    }
    wait_until_written(&fleet, "");
}

/// What this server knows of the others is from when it refused a login: all places were theirs.
fn without_max_wait_an_old_answer_refuses_nobody(server: &Server) {
    let Some(fleet) = patient_fleet(server, 2, &[]) else {
        return;
    };
    let label = set_label("ROLE alice", r#"{"max": 1, "across": "servers"}"#);
    fleet.sql(&["CREATE ROLE alice LOGIN", &label]);
    let [one, other] = [0, 1].map(|index| fleet.clusters[index].login_of("alice"));
    for (here, there) in [(&one, &other), (&other, &one)].repeat(3) {
        let session = admitted(here);
        is_full(&[there]);
        session.end();
        wait_until_written(&fleet, "");
        admitted(there).end();
        wait_until_written(&fleet, "");
    }
}

/// Two places for those who count, whoever of them comes, and wherever. `counted`: two on each server. `others` do not count.
fn two_places_go_around(fleet: &Fleet, counted: [[Target; 2]; 2], others: &[Target]) {
    let [[a, b], [c, d]] = &counted;
    let full = || {
        is_full(&[a, b, c, d]);
        others.iter().for_each(|other| admitted(other).end());
    };
    for _ in 0..2 {
        let first = admitted(a);
        let second = admitted(d);
        full();
        first.end();
        let third = wait_for("the place", || c.login().ok());
        full();
        second.end();
        let fourth = wait_for("the place", || b.login().ok());
        full();
        third.end();
        fourth.end();
        wait_until_written(fleet, "");
    }
}

fn on_both(fleet: &Fleet, targets: impl Fn(&Cluster) -> [Target; 2]) -> [[Target; 2]; 2] {
    [0, 1].map(|index| targets(&fleet.clusters[index]))
}

fn a_group_has_its_places_on_all_servers(server: &Server) {
    let Some(fleet) = patient_fleet(server, 2, &[]) else {
        return;
    };
    let limit = r#"{"max": 2, "per": "group", "across": "servers"}"#;
    fleet.sql(&[
        "CREATE ROLE team",
        "CREATE ROLE alice LOGIN IN ROLE team",
        "CREATE ROLE bob LOGIN IN ROLE team",
        "CREATE ROLE carol LOGIN",
        &set_label("ROLE team", limit),
    ]);
    let members = |cluster: &Cluster| ["alice", "bob"].map(|role| cluster.login_of(role));
    let others = fleet.clusters[1].login_of("carol");
    two_places_go_around(&fleet, on_both(&fleet, members), &[others]);
}

fn a_database_has_its_places_on_all_servers(server: &Server) {
    let Some(fleet) = patient_fleet(server, 2, &[]) else {
        return;
    };
    fleet.sql(&[
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
        "CREATE DATABASE app",
        &set_label("DATABASE app", r#"{"max": 2, "across": "servers"}"#),
    ]);
    let to_app = |cluster: &Cluster| ["alice", "bob"].map(|role| cluster.login_of(role).to("app"));
    let others = fleet.clusters[1].login_of("alice");
    two_places_go_around(&fleet, on_both(&fleet, to_app), &[others]);
}

fn an_address_has_its_places_on_all_servers(server: &Server) {
    let limits = r#"{"max": 2, "per": "address", "across": "servers"}"#;
    let settings = [("session_limit.cluster_limits", limits)];
    let Some(fleet) = patient_fleet(server, 2, &settings) else {
        return;
    };
    fleet.sql(&["CREATE ROLE alice LOGIN", "CREATE ROLE bob LOGIN"]);
    let from_desk =
        |cluster: &Cluster| ["alice", "bob"].map(|role| cluster.login_from(role, "127.0.0.2"));
    let others = [
        fleet.clusters[0].login_of("alice"),
        fleet.clusters[1].login_from("alice", "127.0.0.3"),
    ];
    two_places_go_around(&fleet, on_both(&fleet, from_desk), &others);
}

fn sessions_of_a_renamed_role_go_with_it(server: &Server) {
    let Some(fleet) = patient_fleet(server, 2, &[]) else {
        return;
    };
    let limit = r#"{"max": 1, "across": "servers"}"#;
    let label = set_label("ROLE alice", limit);
    fleet.sql(&["CREATE ROLE alice LOGIN", &label]);
    let session = admitted(&fleet.clusters[0].login_of("alice"));
    assert_eq!(written(&fleet), "role=alice/p 1");
    fleet.sql(&["ALTER ROLE alice RENAME TO alicia"]);
    wait_until_written(&fleet, "role=alicia/p 1");
    let [one, other] = [0, 1].map(|index| fleet.clusters[index].login_of("alicia"));
    is_full(&[&one, &other]);
    fleet.sql(&["CREATE ROLE alice LOGIN", &label]);
    let namesake = admitted(&fleet.clusters[1].login_of("alice"));
    is_full(&[&fleet.clusters[0].login_of("alice")]);
    session.end();
    let session = wait_for("the place", || other.login().ok());
    is_full(&[&one, &other]);
    session.end();
    namesake.end();
    wait_until_written(&fleet, "");
}

/// They live on, and no limit counts them any more.
fn sessions_of_a_dropped_role_hold_no_place_of_its_namesake(server: &Server) {
    let Some(fleet) = patient_fleet(server, 2, &[]) else {
        return;
    };
    let label = set_label("ROLE alice", r#"{"max": 1, "across": "servers"}"#);
    fleet.sql(&["CREATE ROLE alice LOGIN", &label]);
    let [one, other] = [0, 1].map(|index| fleet.clusters[index].login_of("alice"));
    let mut session = admitted(&one);
    assert_eq!(written(&fleet), "role=alice/p 1");
    fleet.sql(&["DROP ROLE alice", "CREATE ROLE alice LOGIN", &label]);
    wait_until_written(&fleet, "");
    assert!(session.is_alive());
    let namesake = admitted(&other);
    is_full(&[&one, &other]);
    namesake.end();
    let namesake = wait_for("the place", || one.login().ok());
    session.end();
    is_full(&[&one, &other]);
    namesake.end();
    wait_until_written(&fleet, "");
}

fn a_label_that_is_set_again_counts_who_is_in(server: &Server) {
    let Some(fleet) = patient_fleet(server, 2, &[]) else {
        return;
    };
    let label = set_label("ROLE alice", r#"{"max": 2, "across": "servers"}"#);
    fleet.sql(&["CREATE ROLE alice LOGIN", &label]);
    let [one, other] = [0, 1].map(|index| fleet.clusters[index].login_of("alice"));
    let [first, second] = [&one, &other].map(admitted);
    assert_eq!(written(&fleet), "role=alice/p 2");
    fleet.sql(&[&remove_label("ROLE alice")]);
    wait_until_written(&fleet, "");
    let third = admitted(&other);
    fleet.sql(&[&label]);
    wait_until_written(&fleet, "role=alice/p 3");
    is_full(&[&one, &other]);
    first.end();
    wait_until_written(&fleet, "role=alice/p 2");
    is_full(&[&one, &other]);
    second.end();
    let fourth = wait_for("the place", || one.login().ok());
    is_full(&[&one, &other]);
    [third, fourth].into_iter().for_each(Session::end);
    wait_until_written(&fleet, "");
}

/// For the database `app`: three sessions of each role, five in the database, four on all servers together.
fn three_limits(server: &Server) -> Option<Fleet> {
    let limits = r#"{"max": 4, "per": "cluster", "across": "servers"}"#;
    let settings = [
        ("session_limit.cluster_limits", limits),
        ("session_limit.max_waiters", "200"),
    ];
    let fleet = patient_fleet(server, 2, &settings)?;
    let of_role = r#"{"max": 3, "across": "servers"}"#;
    fleet.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE DATABASE app",
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
        &set_label("DATABASE app", r#"{"max": 5, "across": "servers"}"#),
        &set_label("ROLE alice", of_role),
        &set_label("ROLE bob", of_role),
    ]);
    Some(fleet)
}

/// Ten logins of each role on each server.
fn logins_of_both(fleet: &Fleet) -> Vec<Target> {
    let logins = on_both(fleet, |cluster| {
        ["alice", "bob"].map(|role| cluster.login_of(role).to("app"))
    });
    logins.concat().into_iter().cycle().take(40).collect()
}

fn a_storm_of_two_roles_under_three_limits_fills_them(server: &Server) {
    let Some(fleet) = three_limits(server) else {
        return;
    };
    let logins = logins_of_both(&fleet);
    for round in 0..rounds() {
        let sessions = storm(&logins);
        let of = |role: &str| {
            let logins = logins.iter().zip(&sessions);
            logins
                .filter(|(login, session)| login.user == role && session.is_some())
                .count()
        };
        let (alice, bob) = (of("alice"), of("bob"));
        assert!(
            alice <= 3 && bob <= 3 && alice + bob == 4,
            "round {round}: {alice} and {bob}"
        );
        drop(sessions);
        for cluster in &fleet.clusters {
            cluster.wait_until_gone("alice");
            cluster.wait_until_gone("bob");
        }
    }
    wait_until_written(&fleet, "");
}

/// Two logins could each have half of what both need.
fn nobody_who_needs_several_places_is_stuck(server: &Server) {
    let Some(fleet) = three_limits(server) else {
        return;
    };
    for cluster in &fleet.clusters {
        cluster.set(&[("session_limit.max_wait", "30s")]);
    }
    let logins = logins_of_both(&fleet);
    thread::scope(|scope| {
        for login in &logins {
            scope.spawn(|| admitted(login).end());
        }
    });
    wait_until_written(&fleet, "");
}

fn whoever_gives_up_leaves_no_key_in_etcd(server: &Server) {
    let settings = [("session_limit.max_wait", "30s")];
    let Some(fleet) = patient_fleet(server, 2, &settings) else {
        return;
    };
    let label = set_label("ROLE alice", r#"{"max": 1, "across": "servers"}"#);
    fleet.sql(&["CREATE ROLE alice LOGIN", &label]);
    let [one, other] = [0, 1].map(|index| fleet.clusters[index].login_of("alice"));
    let session = admitted(&one);
    let waits = begin_login(&other);
    wait_until_written(&fleet, "role=alice/p 1, role=alice/w 1");
    drop(waits);
    wait_until_written(&fleet, "role=alice/p 1");
    let waits = begin_login(&other);
    wait_until_written(&fleet, "role=alice/p 1, role=alice/w 1");
    session.end();
    let session = waits.outcome().expect("the place");
    wait_until_written(&fleet, "role=alice/p 1");
    drop(session);
    wait_until_written(&fleet, "");
}
