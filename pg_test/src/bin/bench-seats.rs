//! `cargo bench-seats`: what it costs to take a seat and release it, beside an advisory lock, with none and with many held
//! by others; and what a login costs beside clients that take seats all the time.
//!
//! Each variant is a server of its own; they take turns in random order. A turn is some calls of one client, of two at
//! once, each with keys of its own, and a loop of calls in one statement. A client's calls are a statement each, over a
//! Unix-domain socket; the figure of a turn is their median. Of the loop it is the CPU time of the server's process: a
//! loop that lasts for longer than the kernel's time slices would be charged for whoever else runs.

use pg_test::bench::{self, Best, Figures, Table};
use pg_test::client::{Session, Target};
use pg_test::cluster::{self, Cluster};
use pg_test::say;
use pg_test::server::{self, Server};
use rustix::process::Pid;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// By another session, in the variants with many.
const HELD: usize = 10_000;
/// Of calls, in a turn of a client; what comes before is not counted.
const PAIRS: usize = 300;
const WARM_UP: usize = 50;
/// Of calls, in one statement.
const LOOP: usize = 5_000;
/// In a turn.
const LOGINS: usize = 20;

const SETTINGS: [(&str, &str); 3] = [
    ("session_limit.max_seats", "20000"),
    // The server's lock table has room for that many for each of 80 connections.
    ("max_locks_per_transaction", "256"),
    ("autovacuum", "off"),
];

/// What is taken and given back. All make a number or a seat of the same key.
#[derive(Clone, Copy, PartialEq)]
enum What {
    /// Nothing: the rest of what the statements do.
    Nothing,
    Lock,
    Seat,
    Lease,
}

struct Variant {
    name: &'static str,
    what: What,
    /// Whoever holds the many.
    holder: Option<Session>,
    cluster: Cluster,
    /// Both calls of a pair, and each, µs: of one client, and of two at once.
    alone: Calls,
    two: Calls,
    /// A pair in the loop, µs of CPU.
    inside: Figures,
}

#[derive(Default)]
struct Calls {
    both: Figures,
    take: Figures,
    release: Figures,
}

/// A login while two clients do this again and again.
struct Beside {
    name: &'static str,
    what: Option<What>,
    /// By the client's clock, ms.
    login: Figures,
    slow: Figures,
    /// By that of `session_limit.stats`, µs.
    hook: Figures,
}

fn main() {
    let rounds = bench::rounds(30, 2);
    for server in server::servers() {
        let mut variants = variants(&server);
        let mut besides = besides();
        let cluster = Cluster::start(&server, &SETTINGS);
        cluster.sql(&[
            "CREATE EXTENSION session_limit",
            "CREATE ROLE alice LOGIN CONNECTION LIMIT 1000",
        ]);
        cluster.login_of("alice").login().expect("room").end();
        say(format_args!("PostgreSQL {}: {rounds} rounds", server.major));
        for round in 1..=rounds {
            for turn in bench::shuffled(variants.len()) {
                variants[turn].take_a_turn();
            }
            for turn in bench::shuffled(besides.len()) {
                besides[turn].take_a_turn(&cluster);
            }
            say(format_args!("{round} of {rounds}"));
        }
        report(&server, rounds, &variants, &besides);
    }
}

/// The first is the baseline, the second is no other: its ratio is noise.
fn variants(server: &Server) -> Vec<Variant> {
    let all = [
        ("advisory lock", What::Lock, 0),
        ("advisory lock, the same again", What::Lock, 0),
        ("seat", What::Seat, 0),
        ("seat with a ttl", What::Lease, 0),
        ("advisory lock, 10,000 held", What::Lock, HELD),
        ("seat, 10,000 held", What::Seat, HELD),
        ("seat with a ttl, 10,000 held", What::Lease, HELD),
        ("the same statements with neither", What::Nothing, 0),
    ];
    let variants = all.into_iter().map(|(name, what, held)| {
        let cluster = Cluster::start(server, &SETTINGS);
        cluster.sql(&["CREATE EXTENSION session_limit"]);
        let holder = (held > 0).then(|| {
            let mut holder = cluster.superuser();
            let taken = holder.value(&what.hold(held));
            assert_eq!(taken, held.to_string(), "{name}");
            holder
        });
        Variant {
            name,
            what,
            holder,
            cluster,
            alone: Calls::default(),
            two: Calls::default(),
            inside: Figures::default(),
        }
    });
    variants.collect()
}

impl What {
    /// Takes so many.
    fn hold(self, number: usize) -> String {
        let take = self.take("'held ' || i", "1 day");
        format!("SELECT count({take}) FROM generate_series(1, {number}) i")
    }

    /// The call that takes one; `key` is SQL.
    fn take(self, key: &str, ttl: &str) -> String {
        match self {
            What::Nothing => format!("hashtext({key}) IS NOT NULL"),
            What::Lock => format!("pg_try_advisory_lock(hashtext({key}))"),
            What::Seat => format!("session_limit.take_seat({key})"),
            What::Lease => format!("session_limit.take_seat({key}, ttl => '{ttl}')"),
        }
    }

    /// The call that gives it back; `taken` is what the other one has returned.
    fn release(self, key: &str, taken: &str) -> String {
        match self {
            What::Nothing => self.take(key, ""),
            What::Lock => format!("pg_advisory_unlock(hashtext({key}))"),
            What::Seat | What::Lease => format!("session_limit.release_seat({taken})"),
        }
    }

    /// A statement that takes so many one after the other, gives each back at once, and says how many it gave back.
    fn in_a_loop(self, number: usize) -> String {
        let key = "'k' || i";
        let pair = match self {
            What::Seat | What::Lease => self.release(key, &self.take(key, "1 min")),
            What::Lock | What::Nothing => {
                format!("{} AND {}", self.take(key, ""), self.release(key, ""))
            }
        };
        format!("SELECT count(nullif({pair}, false)) FROM generate_series(1, {number}) i")
    }

    /// Takes one and gives it back, in a statement each; how long each took.
    fn pair(self, session: &mut Session, key: &str) -> [Duration; 2] {
        let key = format!("'{key}'");
        let sql = format!("SELECT {}", self.take(&key, "1 min"));
        let start = Instant::now();
        let taken = session.value(&sql);
        let take = start.elapsed();
        let sql = format!("SELECT {}", self.release(&key, &format!("'{taken}'")));
        let start = Instant::now();
        let released = session.value(&sql);
        let release = start.elapsed();
        assert_eq!(released, "t", "{sql}");
        [take, release]
    }

    fn pairs(self, target: &Target, client: usize, start: &Barrier) -> Vec<[Duration; 2]> {
        let mut session = target.login().expect("room");
        let mut pair = |number| self.pair(&mut session, &format!("client {client}, {number}"));
        (0..WARM_UP).for_each(|number| _ = pair(number));
        start.wait();
        let pairs = (0..PAIRS).map(pair).collect();
        session.end();
        pairs
    }
}

impl Variant {
    fn take_a_turn(&mut self) {
        let target = self.cluster.login_of("postgres");
        let clients = |number| {
            let start = Barrier::new(number);
            thread::scope(|scope| {
                let (start, target, what) = (&start, &target, self.what);
                let client = |client| scope.spawn(move || what.pairs(target, client, start));
                let clients: Vec<_> = (0..number).map(client).collect();
                let pairs = clients.into_iter().map(|it| it.join().expect("a client"));
                pairs.flatten().collect::<Vec<_>>()
            })
        };
        let (alone, two) = (clients(1), clients(2));
        self.alone.push(&alone);
        self.two.push(&two);
        let mut session = self.cluster.superuser();
        session.value(&self.what.in_a_loop(WARM_UP));
        let backend = Pid::from_raw(session.pid).expect("a process ID");
        let before = cluster::cpu(backend);
        let number = session.value(&self.what.in_a_loop(LOOP));
        let used = cluster::cpu(backend) - before;
        self.inside.push(used * 1e6 / LOOP as f64);
        assert_eq!(number, LOOP.to_string(), "{}", self.name);
        session.end();
    }
}

impl Calls {
    fn push(&mut self, pairs: &[[Duration; 2]]) {
        let median = |time: fn(&[Duration; 2]) -> Duration| {
            let times = pairs.iter().map(|pair| micros(time(pair)));
            times.collect::<Figures>().median()
        };
        self.both.push(median(|[take, release]| *take + *release));
        self.take.push(median(|[take, _]| *take));
        self.release.push(median(|[_, release]| *release));
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The first is the baseline.
fn besides() -> Vec<Beside> {
    let all = [
        ("alone", None),
        ("beside 2 clients with neither", Some(What::Nothing)),
        ("beside 2 clients with advisory locks", Some(What::Lock)),
        ("beside 2 clients with seats", Some(What::Seat)),
        ("beside 2 clients with seats with a ttl", Some(What::Lease)),
    ];
    let besides = all.into_iter().map(|(name, what)| Beside {
        name,
        what,
        login: Figures::default(),
        slow: Figures::default(),
        hook: Figures::default(),
    });
    besides.collect()
}

impl Beside {
    fn take_a_turn(&mut self, cluster: &Cluster) {
        let over = AtomicBool::new(false);
        let mut superuser = cluster.superuser();
        let mut in_hook = || {
            let sql = "SELECT decision_us FROM session_limit.stats WHERE usename = 'alice'";
            superuser.value(sql).parse::<f64>().expect("a number")
        };
        let mut times = Figures::default();
        thread::scope(|scope| {
            if let Some(what) = self.what {
                let sessions = [cluster.superuser(), cluster.superuser()];
                for (client, mut session) in sessions.into_iter().enumerate() {
                    let over = &over;
                    scope.spawn(move || {
                        for number in 0.. {
                            if over.load(Ordering::Relaxed) {
                                break;
                            }
                            what.pair(&mut session, &format!("client {client}, {number}"));
                        }
                        session.end();
                    });
                }
            }
            let (target, before) = (cluster.login_of("alice"), in_hook());
            for _ in 0..LOGINS {
                let start = Instant::now();
                let session = target.login().expect("room");
                times.push(micros(start.elapsed()) / 1000.0);
                session.end();
            }
            self.hook.push((in_hook() - before) / LOGINS as f64);
            over.store(true, Ordering::Relaxed);
        });
        superuser.end();
        self.login.push(times.median());
        self.slow.push(times.part(95));
    }
}

fn report(server: &Server, rounds: usize, variants: &[Variant], besides: &[Beside]) {
    let mut tables = vec![
        calls_table(
            "a client that takes one and gives it back",
            variants,
            |it| &it.alone,
        ),
        calls_table(
            "2 clients at once, each with its own keys",
            variants,
            |it| &it.two,
        ),
    ];
    let mut inside = table("in a loop in one statement", variants);
    let figures = variants.iter().map(|it| it.inside.clone());
    inside.column("CPU of both, µs", 2, Best::None, figures);
    ratios(&mut inside, variants, |it| &it.inside);
    tables.push(inside);

    let mut logins = Table::new("a login", besides.iter().map(|it| it.name));
    let all = |figures: fn(&Beside) -> &Figures| besides.iter().map(move |it| figures(it).clone());
    logins
        .column("ms", 2, Best::None, all(|it| &it.login))
        .picture();
    let over = besides.iter().map(|it| it.login.over(&besides[0].login));
    logins.column("ratio", 2, Best::None, over);
    logins.column("95 %, ms", 2, Best::None, all(|it| &it.slow));
    logins.column("in the hook, µs", 0, Best::None, all(|it| &it.hook));
    tables.push(logins);
    let measured = format!(
        "{rounds} rounds, in each {PAIRS} pairs of calls for each client, {LOOP} in one statement, and {LOGINS} logins"
    );
    bench::report("seats", server, measured, tables);
}

fn table(title: &str, variants: &[Variant]) -> Table {
    let mut table = Table::new(title, variants.iter().map(|it| it.name));
    table.noise = Some(1);
    table
}

fn calls_table(title: &str, variants: &[Variant], calls: fn(&Variant) -> &Calls) -> Table {
    let mut table = table(title, variants);
    let all =
        |figures: fn(&Calls) -> &Figures| variants.iter().map(move |it| figures(calls(it)).clone());
    table.column("both, µs", 1, Best::None, all(|it| &it.both));
    table.column("taking, µs", 1, Best::None, all(|it| &it.take));
    table.column("giving back, µs", 1, Best::None, all(|it| &it.release));
    ratios(&mut table, variants, |it| &calls(it).both);
    table
}

/// To the advisory lock with as many held, and to the same thing with none held.
fn ratios<'a>(
    table: &mut Table,
    variants: &'a [Variant],
    figures: impl Fn(&'a Variant) -> &'a Figures,
) {
    let is_many = |it: &Variant| it.holder.is_some();
    let like = |what, many| {
        let mut variants = variants.iter();
        let found = variants.find(|it| it.what == what && is_many(it) == many);
        figures(found.expect("a variant"))
    };
    let to_lock = variants
        .iter()
        .map(|it| figures(it).over(like(What::Lock, is_many(it))));
    let to_none = variants
        .iter()
        .map(|it| figures(it).over(like(it.what, false)));
    table
        .column("ratio to the lock", 2, Best::None, to_lock)
        .picture();
    table.column("ratio to none held", 2, Best::None, to_none);
}
