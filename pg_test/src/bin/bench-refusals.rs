//! `cargo bench-refusals`: what it costs to refuse, beside the server's own `CONNECTION LIMIT`; and what
//! a storm of refused clients costs a session that is in.
//!
//! The variants take turns in random order. A turn of the first kind is so many refused logins, one after
//! the other; one of the second, queries one after the other while many clients try again and again.

use pg_test::bench::{self, Best, Figures, Table};
use pg_test::client::Session;
use pg_test::cluster::Cluster;
use pg_test::server::{self, Server};
use pg_test::{say, wait_for};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const LOGINS: usize = 300;
const CLIENTS: usize = 200;
const STORM: Duration = Duration::from_secs(3);

struct Variant {
    name: &'static str,
    cluster: Cluster,
    alice: Session,
    time: Figures,
    cpu: Figures,
    latency: Figures,
    slowest: Figures,
    refusals: Figures,
}

fn main() {
    let rounds = bench::rounds(15, 2);
    for server in server::servers() {
        let mut variants = variants(&server);
        say(format_args!(
            "PostgreSQL {}: {rounds} rounds of {LOGINS} refusals, and of {} s of queries beside {CLIENTS} clients",
            server.major,
            STORM.as_secs()
        ));
        for round in 1..=rounds {
            for turn in bench::shuffled(variants.len()) {
                variants[turn].refuse();
            }
            for turn in bench::shuffled(variants.len()) {
                variants[turn].query_in_a_storm();
            }
            say(format_args!("{round} of {rounds}"));
        }
        report(&server, rounds, &variants);
    }
}

/// The first is the baseline.
fn variants(server: &Server) -> Vec<Variant> {
    let common = [("max_connections", "300"), ("session_limit.max_wait", "0")];
    let quiet = [common[0], common[1], ("session_limit.log_events", "none")];
    let all = [
        ("the server's own", Cluster::plain(server, &common[..1])),
        ("session_limit", Cluster::start(server, &common)),
        (
            "session_limit, log_events = none",
            Cluster::start(server, &quiet),
        ),
    ];
    let variants = all.into_iter().map(|(name, cluster)| {
        cluster.sql(&["CREATE ROLE alice LOGIN CONNECTION LIMIT 1"]);
        Variant {
            name,
            alice: cluster.login_of("alice").login().expect("room"),
            cluster,
            time: Figures::default(),
            cpu: Figures::default(),
            latency: Figures::default(),
            slowest: Figures::default(),
            refusals: Figures::default(),
        }
    });
    variants.collect()
}

impl Variant {
    fn refuse(&mut self) {
        let target = self.cluster.login_of("alice");
        let (cpu, start) = (self.cluster.cpu_of_children(), Instant::now());
        for _ in 0..LOGINS {
            let refusal = target.login().err().expect("no room");
            assert_eq!(refusal.sqlstate(), "53300");
        }
        let time = start.elapsed();
        self.wait_for_quiet();
        let per_login = 1000.0 / LOGINS as f64;
        self.time.push(time.as_secs_f64() * per_login);
        self.cpu
            .push((self.cluster.cpu_of_children() - cpu) * per_login);
    }

    fn query_in_a_storm(&mut self) {
        let target = self.cluster.login_of("alice");
        let (over, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
        let alice = &mut self.alice;
        let (mut latencies, mut seconds) = (Figures::default(), 0.0);
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        target.login().err().expect("no room");
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            while refused.load(Ordering::Relaxed) < CLIENTS {
                thread::yield_now();
            }
            let (start, before) = (Instant::now(), refused.load(Ordering::Relaxed));
            while start.elapsed() < STORM {
                let start = Instant::now();
                alice.query("SELECT 1");
                latencies.push(start.elapsed().as_secs_f64() * 1000.0);
            }
            seconds = start.elapsed().as_secs_f64();
            over.store(true, Ordering::Relaxed);
            refused.fetch_sub(before, Ordering::Relaxed);
        });
        self.wait_for_quiet();
        self.latency.push(latencies.median());
        self.slowest.push(latencies.part(99));
        self.refusals.push(refused.into_inner() as f64 / seconds);
    }

    fn wait_for_quiet(&self) {
        wait_for("the refused backends to end", || {
            (self.cluster.processes("postgres: alice").len() == 1).then_some(())
        });
    }
}

fn report(server: &Server, rounds: usize, variants: &[Variant]) {
    let names = || variants.iter().map(|variant| variant.name);
    let all =
        |figures: fn(&Variant) -> &Figures| variants.iter().map(move |it| figures(it).clone());
    let over = |figures: fn(&Variant) -> &Figures| {
        let ratio = move |it| figures(it).over(figures(&variants[0]));
        variants.iter().map(ratio)
    };
    let mut refusal = Table::new("a refusal", names());
    refusal.column("CPU, ms", 3, Best::None, all(|it| &it.cpu));
    refusal
        .column("CPU, ratio", 3, Best::None, over(|it| &it.cpu))
        .picture();
    refusal.column("time, ms", 3, Best::None, all(|it| &it.time));
    refusal.column("time, ratio", 3, Best::None, over(|it| &it.time));
    let mut query = Table::new(
        format!("a query beside {CLIENTS} clients that are refused again and again"),
        names(),
    );
    query.column("median, ms", 3, Best::None, all(|it| &it.latency));
    query
        .column("median, ratio", 3, Best::None, over(|it| &it.latency))
        .picture();
    query.column("99 %, ms", 2, Best::None, all(|it| &it.slowest));
    query.column("refusals a second", 0, Best::None, all(|it| &it.refusals));
    bench::report(
        "refusals",
        server,
        format!(
            "{rounds} rounds of {LOGINS} refusals and of {} s of queries for each variant",
            STORM.as_secs()
        ),
        vec![refusal, query],
    );
}
