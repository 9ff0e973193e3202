//! `cargo bench-pool`: the same clients on the same number of server sessions, queued by PgBouncer and
//! queued by `max_wait`.
//!
//! Each variant is a server of its own; they take turns in random order. A turn is some seconds in which
//! each client makes its request again and again: it logs in, queries and closes, or, where it stays
//! connected, only queries. After that, the server sessions are held by a few clients while all others
//! wait: what does that cost?

use pg_test::bench::{self, Best, Figures, Table};
use pg_test::client::{Session, Target};
use pg_test::cluster::{self, Cluster};
use pg_test::pooler::{self, Pooler};
use pg_test::say;
use pg_test::server::{self, Server};
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const CLIENTS: usize = 500;
const SESSIONS: usize = 20;
/// Short ones, of which the machine can do fewer than the sessions could; and longer ones, of which the
/// sessions can do fewer, so that everyone else waits for one.
const QUERIES: [&str; 2] = ["SELECT pg_sleep(0.005)", "SELECT pg_sleep(0.1)"];
const WARM_UP: Duration = Duration::from_secs(5);
const TURN: Duration = Duration::from_secs(10);
const STILL: Duration = Duration::from_secs(5);
const FINDS_ROOM: &str = "session_limit, 20 clients that find room";
const STACK: usize = 128 * 1024;

struct Variant {
    name: &'static str,
    /// Ends before its server does.
    pooler: Option<Pooler>,
    cluster: Cluster,
    target: Target,
    /// Whether clients stay connected.
    stay: bool,
    clients: usize,
    /// For each query.
    busy: [Busy; QUERIES.len()],
    memory_of_waiters: Figures,
    cpu_of_waiters: Figures,
}

#[derive(Default)]
struct Busy {
    a_second: Figures,
    median: Figures,
    slow: Figures,
    slowest: Figures,
    unfairness: Figures,
    cpu: Figures,
    refused: Figures,
}

fn main() {
    let rounds = bench::rounds(5, 1);
    for server in server::servers() {
        let mut variants = variants(&server);
        say(format_args!(
            "PostgreSQL {}: {rounds} rounds, {CLIENTS} clients on {SESSIONS} server sessions",
            server.major
        ));
        for round in 1..=rounds {
            for (query, sql) in QUERIES.iter().enumerate() {
                for turn in bench::shuffled(variants.len()) {
                    variants[turn].take_a_turn(query);
                    say(format_args!(
                        "{round} of {rounds}, {sql}, {}: {:.0} requests a second",
                        variants[turn].name,
                        variants[turn].busy[query].a_second.last()
                    ));
                }
            }
            for turn in bench::shuffled(variants.len()) {
                variants[turn].wait_still();
            }
            say(format_args!("{round} of {rounds}"));
        }
        report(&server, rounds, &variants);
    }
}

/// The first is the baseline.
fn variants(server: &Server) -> Vec<Variant> {
    let pooled = |mode| {
        // The pool's sessions, and a superuser's.
        let cluster = Cluster::plain(server, &[]);
        cluster.sql(&["CREATE ROLE alice LOGIN"]);
        let pooler = Pooler::start(&cluster, "alice", mode, SESSIONS);
        (pooler.target.clone(), Some(pooler), cluster)
    };
    let ours = |limit| {
        let cluster = Cluster::start(
            server,
            &[
                ("max_connections", "600"),
                ("authentication_timeout", "600s"),
                ("session_limit.max_wait", "600s"),
                ("session_limit.max_waiters", "2000"),
            ],
        );
        let role = format!("CREATE ROLE alice LOGIN CONNECTION LIMIT {limit}");
        cluster.sql(&[&role]);
        (cluster.login_of("alice"), None, cluster)
    };
    let all = [
        ("PgBouncer, pool_mode = session", false, pooled("session")),
        (
            "PgBouncer, pool_mode = transaction",
            false,
            pooled("transaction"),
        ),
        (
            "pool_mode = transaction, clients stay connected",
            true,
            pooled("transaction"),
        ),
        ("session_limit, max_wait", false, ours(SESSIONS)),
        // As many clients as sessions, and room for those that are still leaving: what a login costs that does not wait.
        (FINDS_ROOM, false, ours(2 * SESSIONS)),
    ];
    let variants = all
        .into_iter()
        .map(|(name, stay, (target, pooler, cluster))| Variant {
            clients: if name == FINDS_ROOM {
                SESSIONS
            } else {
                CLIENTS
            },
            name,
            pooler,
            cluster,
            target,
            stay,
            busy: Default::default(),
            memory_of_waiters: Figures::default(),
            cpu_of_waiters: Figures::default(),
        });
    variants.collect()
}

/// From when to when a request took.
type Request = (Instant, Instant);

impl Variant {
    fn take_a_turn(&mut self, query: usize) {
        let (over, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (mut requests, mut window, mut cpu) = (Vec::new(), None, 0.0);
        thread::scope(|scope| {
            let client = || client(self, QUERIES[query], &over, &refused);
            let clients: Vec<_> = (0..self.clients)
                .map(|_| {
                    let thread = thread::Builder::new().stack_size(STACK);
                    thread.spawn_scoped(scope, client).expect("a thread")
                })
                .collect();
            thread::sleep(WARM_UP);
            let (start, before) = (Instant::now(), self.cpu());
            thread::sleep(TURN);
            window = Some(start..Instant::now());
            cpu = self.cpu() - before;
            over.store(true, Ordering::Relaxed);
            for client in clients {
                requests.extend(client.join().expect("a client"));
            }
        });
        let window = window.expect("a window");
        let answered = requests.iter().filter(|(_, end)| window.contains(end));
        let answered = answered.count() as f64;
        // Of those that began in it: the slowest ended after it.
        let began = requests.iter().filter(|(start, _)| window.contains(start));
        let times: Figures = began
            .map(|(start, end)| (*end - *start).as_secs_f64() * 1000.0)
            .collect();
        let seconds = (window.end - window.start).as_secs_f64();
        let busy = &mut self.busy[query];
        busy.a_second.push(answered / seconds);
        busy.median.push(times.median());
        busy.slow.push(times.part(99));
        busy.slowest.push(times.max());
        busy.unfairness.push(times.max() / times.median());
        busy.cpu.push(cpu * 1000.0 / answered);
        busy.refused.push(refused.into_inner() as f64);
    }

    /// Some clients hold all server sessions, the others wait.
    fn wait_still(&mut self) {
        if self.clients <= SESSIONS {
            self.memory_of_waiters.push(0.0);
            self.cpu_of_waiters.push(0.0);
            return;
        }
        let hold = |_| {
            let mut session = self.target.login().expect("room");
            session.query("BEGIN");
            session
        };
        let holders: Vec<Session> = (0..SESSIONS).map(hold).collect();
        let before = self.memory();
        let waiters = (CLIENTS - SESSIONS) as f64;
        let (mut memory, mut cpu) = (0.0, 0.0);
        thread::scope(|scope| {
            for _ in SESSIONS..CLIENTS {
                let thread = thread::Builder::new().stack_size(STACK);
                let waiter = || {
                    _ = self
                        .target
                        .login()
                        .map(|mut session| session.query("SELECT 1"))
                };
                thread.spawn_scoped(scope, waiter).expect("a thread");
            }
            thread::sleep(WARM_UP);
            let (start, used) = (Instant::now(), self.cpu());
            thread::sleep(STILL);
            cpu = (self.cpu() - used) / start.elapsed().as_secs_f64();
            memory = self.memory() - before;
            drop(holders);
        });
        self.memory_of_waiters.push(memory / waiters);
        self.cpu_of_waiters.push(cpu * 100.0);
    }

    /// Seconds of CPU that the server has used, and the pooler.
    fn cpu(&self) -> f64 {
        let pooler = self
            .pooler
            .iter()
            .map(|pooler| cluster::cpu(pooler.process.pid));
        self.cluster.cpu() + pooler.sum::<f64>()
    }

    /// What the server and the pooler have in memory, kB; what processes share is counted once.
    fn memory(&self) -> f64 {
        let pooler = self.pooler.iter().map(|pooler| pooler.process.pid);
        let processes = self.cluster.processes("").into_iter().chain(pooler);
        let memory = |pid: rustix::process::Pid| {
            let file = format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero());
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
            line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok())
        };
        processes.filter_map(memory).sum()
    }
}

/// Makes its request until it is over.
fn client(of: &Variant, query: &str, over: &AtomicBool, refused: &AtomicUsize) -> Vec<Request> {
    let mut requests = Vec::new();
    let mut connected = of.stay.then(|| of.target.login().expect("room"));
    while !over.load(Ordering::Relaxed) {
        let start = Instant::now();
        let session = connected.take().map_or_else(|| of.target.login(), Ok);
        let Ok(mut session) = session else {
            refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        session.query(query);
        requests.push((start, Instant::now()));
        match of.stay {
            true => connected = Some(session),
            false => session.close(),
        }
    }
    requests
}

fn busy_table(query: usize, variants: &[Variant]) -> Table {
    let all = |figures: fn(&Busy) -> &Figures| {
        variants
            .iter()
            .map(move |it| figures(&it.busy[query]).clone())
    };
    let mut table = Table::new(
        format!(
            "{CLIENTS} clients on {SESSIONS} server sessions, {}",
            QUERIES[query]
        ),
        variants.iter().map(|variant| variant.name),
    );
    table
        .column(
            "requests a second",
            0,
            Best::Highest,
            all(|it| &it.a_second),
        )
        .picture();
    let first = &variants[0].busy[query].a_second;
    let ratios = variants
        .iter()
        .map(|it| it.busy[query].a_second.over(first));
    table.column("ratio", 2, Best::None, ratios);
    table.column(
        "to the result: median, ms",
        0,
        Best::Lowest,
        all(|it| &it.median),
    );
    table
        .column("99 %, ms", 0, Best::Lowest, all(|it| &it.slow))
        .picture();
    table.column("longest, ms", 0, Best::Lowest, all(|it| &it.slowest));
    table
        .column(
            "longest ÷ median",
            1,
            Best::Lowest,
            all(|it| &it.unfairness),
        )
        .picture();
    table.column("CPU a request, ms", 2, Best::Lowest, all(|it| &it.cpu));
    table.column("refused", 0, Best::Lowest, all(|it| &it.refused));
    table
}

fn report(server: &Server, rounds: usize, variants: &[Variant]) {
    let names = variants.iter().map(|variant| variant.name);
    let all =
        |figures: fn(&Variant) -> &Figures| variants.iter().map(move |it| figures(it).clone());
    let mut still = Table::new(
        format!("{} clients wait, and nobody leaves", CLIENTS - SESSIONS),
        names,
    );
    still
        .column(
            "memory a waiter, kB",
            0,
            Best::Lowest,
            all(|it| &it.memory_of_waiters),
        )
        .picture();
    still
        .column(
            "CPU of all, % of a core",
            1,
            Best::Lowest,
            all(|it| &it.cpu_of_waiters),
        )
        .picture();
    let measured = format!(
        "{rounds} rounds of {} s for each variant and query; {}",
        TURN.as_secs(),
        pooler::version()
    );
    let busy = (0..QUERIES.len()).map(|query| busy_table(query, variants));
    let tables = busy.chain([still]).collect();
    bench::report("pool", server, measured, tables);
}
