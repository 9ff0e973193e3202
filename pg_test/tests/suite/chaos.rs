//! Many clients of several roles and databases that do what clients do, and keep books of who is in:
//! no limit is ever exceeded. (`pg_stat_activity` is no witness: it is read row by row, while one
//! session ends and the next begins.)

use pg_test::client::{Session, Target};
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use pg_test::wait_for;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

tests![no_limit_is_ever_exceeded];

const CLIENTS: u64 = 8;
const ACTIONS: usize = 150;

/// Each role is named for its limit. All of them are limited to 4 in the database `app`, r2 and r3
/// together to 4, and each client address to 3.
const CREATE: &[&str] = &[
    "CREATE EXTENSION session_limit",
    "CREATE ROLE r1 LOGIN CONNECTION LIMIT 1",
    "CREATE ROLE r2 LOGIN CONNECTION LIMIT 2",
    "CREATE ROLE r3 LOGIN CONNECTION LIMIT 3",
    "CREATE DATABASE app CONNECTION LIMIT 4",
    "CREATE ROLE team ROLE r2, r3",
    r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"max": 4, "per": "group"}'"#,
];

const PER_ADDRESS: &str = r#"{"max": 3, "per": "address"}"#;

fn no_limit_is_ever_exceeded(server: &Server) {
    let settings = [
        ("session_limit.max_wait", "20ms"),
        ("session_limit.cluster_limits", PER_ADDRESS),
    ];
    let cluster = Cluster::start(server, &settings);
    cluster.sql(CREATE);
    let books = Books::default();
    thread::scope(|scope| {
        for seed in 1..=CLIENTS {
            let (cluster, books) = (&cluster, &books);
            scope.spawn(move || client(cluster, books, seed));
        }
    });
    let admitted = books.admitted.into_inner();
    assert!(
        admitted > 100,
        "{admitted} of {} got in",
        CLIENTS as usize * ACTIONS
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

/// How many are in, from a moment after each was let in to a moment before it goes.
#[derive(Default)]
struct Books {
    /// By the role's limit.
    roles: [AtomicUsize; 4],
    app: AtomicUsize,
    team: AtomicUsize,
    /// By their last number; none over the socket.
    addresses: [AtomicUsize; 3],
    admitted: AtomicUsize,
}

impl Books {
    fn counts(&self, login: Login) -> impl Iterator<Item = (&AtomicUsize, usize)> {
        let Login {
            limit,
            in_app,
            address,
        } = login;
        let app = in_app.then_some((&self.app, 4));
        let team = (limit > 1).then_some((&self.team, 4));
        let address = (address > 0).then(|| (&self.addresses[address], 3));
        [(&self.roles[limit], limit)]
            .into_iter()
            .chain(app)
            .chain(team)
            .chain(address)
    }

    fn enter(&self, login: Login) {
        self.admitted.fetch_add(1, Ordering::SeqCst);
        for (count, max) in self.counts(login) {
            let others = count.fetch_add(1, Ordering::SeqCst);
            assert!(
                others < max,
                "{others} were in, of {max}, and one more was let in: {login:?}"
            );
        }
    }

    fn leave(&self, login: Login) {
        for (count, _) in self.counts(login) {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// The role's limit, whether to `app`, and 127.0.0.1 or 127.0.0.2; 0: over the socket.
#[derive(Clone, Copy, Debug)]
struct Login {
    limit: usize,
    in_app: bool,
    address: usize,
}

impl Login {
    fn target(self, cluster: &Cluster) -> Target {
        let role = format!("r{}", self.limit);
        let target = match self.address {
            0 => cluster.login_of(&role),
            address => cluster.login_from(&role, &format!("127.0.0.{address}")),
        };
        let database = if self.in_app { "app" } else { "postgres" };
        target.to(database)
    }
}

/// Logs in again and again, each time to do one of the things that clients do.
fn client(cluster: &Cluster, books: &Books, seed: u64) {
    let mut random = Random(seed);
    for _ in 0..ACTIONS {
        let login = Login {
            limit: 1 + random.below(3) as usize,
            in_app: random.below(2) == 0,
            address: random.below(3) as usize,
        };
        let target = login.target(cluster);
        if random.below(10) == 0 {
            // Gone before it is decided.
            let mut connection = target.connect();
            connection.send_startup(&target);
            continue;
        }
        match target.login() {
            Ok(session) => {
                books.enter(login);
                let session = work(session, random.below(3));
                books.leave(login);
                end(cluster, session, random.below(3));
            }
            Err(refusal) => assert_eq!(refusal.sqlstate(), "53300", "{refusal:?}"),
        }
    }
}

fn work(mut session: Session, what: u64) -> Session {
    match what {
        0 => _ = session.query("SELECT pg_sleep(0.005)"),
        1 => {
            let error = session
                .try_query("SELECT 1/0")
                .expect_err("a division by zero");
            assert_eq!(error.sqlstate(), "22012");
        }
        _ => {}
    }
    session
}

fn end(cluster: &Cluster, session: Session, way: u64) {
    match way {
        0 => drop(session),
        1 => {
            let terminate = format!("SELECT pg_terminate_backend({})", session.pid);
            cluster.superuser().query(&terminate);
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
