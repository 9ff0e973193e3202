//! Many clients of several roles and databases that do what clients do, while one who looks only at
//! `pg_stat_activity` watches that no limit is ever exceeded.

use pg_test::client::{Session, Target};
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use pg_test::wait_for;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

tests![no_limit_is_ever_exceeded];

const CLIENTS: u64 = 8;
const ACTIONS: usize = 150;

/// Each role is named for its limit. All of them are limited to 4 in the database `app`.
const CREATE: &[&str] = &[
    "CREATE EXTENSION session_limit",
    "CREATE ROLE r1 LOGIN CONNECTION LIMIT 1",
    "CREATE ROLE r2 LOGIN CONNECTION LIMIT 2",
    "CREATE ROLE r3 LOGIN CONNECTION LIMIT 3",
    "CREATE DATABASE app CONNECTION LIMIT 4",
];

fn no_limit_is_ever_exceeded(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.max_wait", "20ms")]);
    cluster.sql(CREATE);
    let (done, admitted) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (cluster, admitted) = (&cluster, &admitted);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(cluster, &done));
        let clients: Vec<_> = (1..=CLIENTS)
            .map(|seed| scope.spawn(move || client(cluster, seed, admitted)))
            .collect();
        let outcomes: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        done.store(true, Ordering::Relaxed);
        assert!(
            watcher.join().expect("the watcher") > 10,
            "it hardly looked"
        );
        assert!(outcomes.iter().all(Result::is_ok));
    });
    assert!(
        admitted.load(Ordering::Relaxed) > 100,
        "hardly anyone got in"
    );

    // When all is quiet, nothing is left behind, and the limits are as exact as ever.
    let mut superuser = cluster.superuser();
    let slots = "SELECT count(*) FROM session_limit.sessions";
    wait_for("all to be gone", || {
        (superuser.value(slots) == "1").then_some(())
    });
    assert_eq!(
        superuser.value("SELECT coalesce(sum(waiting), 0) FROM session_limit.usage"),
        "0"
    );
    for limit in [1, 2, 3] {
        let outcomes = cluster.login_of(&format!("r{limit}")).storm(10);
        assert_eq!(
            outcomes.iter().filter(|outcome| outcome.is_ok()).count(),
            limit
        );
    }
}

/// Looks until it is done; returns how often it has.
fn watch(cluster: &Cluster, done: &AtomicBool) -> usize {
    let mut superuser = cluster.superuser();
    let sql =
        "SELECT usename, count(*), count(*) FILTER (WHERE datname = 'app') FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND usename LIKE 'r_' GROUP BY usename";
    let mut looks = 0;
    while !done.load(Ordering::Relaxed) {
        let rows = superuser.query(sql);
        let number = |text: &str| text.parse::<usize>().expect("a number");
        for row in &rows {
            assert!(number(&row[1]) <= number(&row[0][1..]), "{rows:?}");
        }
        let in_app: usize = rows.iter().map(|row| number(&row[2])).sum();
        assert!(in_app <= 4, "{rows:?}");
        looks += 1;
    }
    looks
}

/// Logs in again and again, each time to do one of the things that clients do.
fn client(cluster: &Cluster, seed: u64, admitted: &AtomicUsize) {
    let mut random = Random(seed);
    for _ in 0..ACTIONS {
        let role = format!("r{}", 1 + random.below(3));
        let database = if random.below(2) == 0 {
            "app"
        } else {
            "postgres"
        };
        let target = Target {
            database: Some(database.to_string()),
            ..cluster.login_of(&role)
        };
        if random.below(10) == 0 {
            // Gone before it is decided.
            let mut connection = target.connect();
            connection.send_startup(&target);
            continue;
        }
        match target.login() {
            Ok(session) => {
                admitted.fetch_add(1, Ordering::Relaxed);
                end(cluster, session, random.below(6));
            }
            Err(refusal) => assert_eq!(refusal.sqlstate(), "53300", "{refusal:?}"),
        }
    }
}

fn end(cluster: &Cluster, mut session: Session, way: u64) {
    match way {
        0 => drop(session),
        1 => _ = session.query("SELECT pg_sleep(0.005)"),
        2 => {
            let terminate = format!("SELECT pg_terminate_backend({})", session.pid);
            cluster.superuser().query(&terminate);
        }
        3 => {
            let error = session
                .try_query("SELECT 1/0")
                .expect_err("a division by zero");
            assert_eq!(error.sqlstate(), "22012");
        }
        _ => session.close(),
    }
}

/// The same for the same seed: a linear congruential generator (Knuth's constants).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}
