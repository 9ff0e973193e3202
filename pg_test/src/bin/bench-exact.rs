//! `cargo bench-exact`: how many of the logins that arrive together get in under a limit, and how many are
//! refused though there is room, because an old session is still leaving; with session_limit, and with the
//! other ways to limit sessions.
//!
//! Each variant is a server of its own; they take turns in random order. A turn is one storm: so many
//! logins at the same moment, of which those that get in stay until the last is decided; or one churn:
//! as many clients as the limit allows log in, close and log in again at once.

use pg_test::bench::{self, Best, Figures, Table};
use pg_test::client::{Session, Target};
use pg_test::cluster::Cluster;
use pg_test::server::{self, Server};
use pg_test::{say, wait_for};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// So many logins at once, and the limit. The first two are shown in pictures, too.
const STORMS: [(usize, usize); 5] = [(2, 1), (20, 1), (30, 1), (20, 5), (30, 5)];
const CLIENTS: usize = 4;
const LOGINS: usize = 1000;

const SCRIPT_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Ours,
    OursBySetting,
    ServerAlone,
    Trigger,
    Script,
}

struct Variant {
    way: Way,
    /// Ends before its server does.
    script: Option<Script>,
    cluster: Cluster,
    /// For each kind of storm, of each round: how many were in at once.
    admitted: [Figures; STORMS.len()],
    /// Of the rounds with too many: for how long, ms.
    over: [Figures; STORMS.len()],
    refused: Figures,
}

fn main() {
    let (storms, churns) = (bench::rounds(100, 3), bench::rounds(10, 1));
    for server in server::servers() {
        let mut variants: Vec<Variant> = ways(&server)
            .into_iter()
            .map(|way| Variant::new(&server, way))
            .collect();
        for (kind, (logins, limit)) in STORMS.into_iter().enumerate() {
            say(format_args!(
                "PostgreSQL {}: {storms} storms of {logins} logins under a limit of {limit}",
                server.major
            ));
            variants.iter().for_each(|variant| variant.limit(limit));
            for round in 1..=storms {
                for turn in bench::shuffled(variants.len()) {
                    variants[turn].storm(kind);
                }
                if round % 20 == 0 || round == storms {
                    say(format_args!("{round} of {storms}"));
                }
            }
        }
        say(format_args!(
            "PostgreSQL {}: {churns} rounds of {LOGINS} logins by {CLIENTS} clients under a limit of {CLIENTS}",
            server.major
        ));
        variants.iter().for_each(|variant| variant.limit(CLIENTS));
        for round in 1..=churns {
            for turn in bench::shuffled(variants.len()) {
                variants[turn].churn();
            }
            say(format_args!("{round} of {churns}"));
        }
        report(&server, storms, churns, &variants);
    }
}

fn ways(server: &Server) -> Vec<Way> {
    let mut ways = vec![Way::ServerAlone, Way::Ours, Way::OursBySetting, Way::Script];
    if server.major >= 17 {
        ways.push(Way::Trigger);
    }
    ways
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Ours => "session_limit, CONNECTION LIMIT",
            Way::OursBySetting => "session_limit, max_sessions_per_role",
            Way::ServerAlone => "CONNECTION LIMIT alone",
            Way::Trigger => "a login trigger that counts",
            Way::Script => "a script that looks every 100 ms",
        }
    }
}

impl Variant {
    fn new(server: &Server, way: Way) -> Variant {
        let cluster = match way {
            Way::Ours | Way::OursBySetting => Cluster::start(server, &[]),
            _ => Cluster::plain(server, &[]),
        };
        cluster.sql(&["CREATE ROLE alice LOGIN"]);
        let script = (way == Way::Script).then(|| Script::start(&cluster));
        let variant = Variant {
            way,
            cluster,
            script,
            admitted: Default::default(),
            over: Default::default(),
            refused: Figures::default(),
        };
        if way == Way::Trigger {
            variant.limit(CLIENTS);
            let sql =
                "CREATE EVENT TRIGGER count_sessions ON login EXECUTE FUNCTION count_sessions()";
            variant.cluster.sql(&[sql]);
        }
        variant
    }

    fn limit(&self, limit: usize) {
        let connection_limit = format!("ALTER ROLE alice CONNECTION LIMIT {limit}");
        let trigger = format!(
            "CREATE OR REPLACE FUNCTION count_sessions() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
                IF session_user = 'alice' AND (SELECT count(*) FROM pg_stat_activity WHERE usename = session_user) > {limit} THEN
                    RAISE EXCEPTION 'too many connections';
                END IF; END $$"
        );
        match (self.way, &self.script) {
            (Way::Ours | Way::ServerAlone, _) => self.cluster.sql(&[&connection_limit]),
            (Way::OursBySetting, _) => {
                let setting = ("session_limit.max_sessions_per_role", &*limit.to_string());
                self.cluster.set(&[setting]);
            }
            (Way::Trigger, _) => self.cluster.sql(&[&trigger]),
            (Way::Script, script) => {
                let script = script.as_ref().expect("a script");
                script.shared.limit.store(limit, Ordering::Relaxed);
            }
        }
    }

    fn storm(&mut self, kind: usize) {
        let (logins, limit) = STORMS[kind];
        let target = self.cluster.login_of("alice");
        let admitted = match &self.script {
            Some(_) => {
                let (most, over) = watched_storm(&self.cluster, &target, logins, limit);
                if most > limit {
                    self.over[kind].push(over.as_secs_f64() * 1000.0);
                }
                most
            }
            None => {
                let admitted = target.storm(logins).into_iter().filter_map(Result::ok);
                admitted.collect::<Vec<Session>>().len()
            }
        };
        self.admitted[kind].push(admitted as f64);
        self.wait_for_quiet();
    }

    fn churn(&mut self) {
        let target = self.cluster.login_of("alice");
        let ended = || {
            let script = self.script.as_ref();
            script.map(|script| script.shared.ended.load(Ordering::Relaxed))
        };
        let before = ended();
        let refused = churn(&target);
        self.wait_for_quiet();
        // Whom the script ends, it may end before or after the login is done.
        let refused = match (before, ended()) {
            (Some(before), Some(after)) => after - before,
            _ => refused,
        };
        self.refused.push(refused as f64);
    }

    fn wait_for_quiet(&self) {
        wait_for("the backends to end", || {
            self.cluster
                .processes("postgres: alice")
                .is_empty()
                .then_some(())
        });
    }
}

/// A storm whose sessions stay until the script has ended those that are too many: how many were in at
/// once, and for how long too many.
fn watched_storm(
    cluster: &Cluster,
    target: &Target,
    logins: usize,
    limit: usize,
) -> (usize, Duration) {
    let (mut watcher, decided) = (cluster.superuser(), AtomicBool::new(false));
    let (mut most, mut since, mut over) = (0, None, Duration::ZERO);
    thread::scope(|scope| {
        let storm = scope.spawn(|| {
            let outcomes = target.storm(logins);
            decided.store(true, Ordering::Relaxed);
            outcomes
        });
        wait_for("the script to end whom it must", || {
            let decided = decided.load(Ordering::Relaxed);
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'alice'";
            let number: usize = watcher.value(sql).parse().expect("a number");
            most = most.max(number);
            if number > limit {
                over = since.get_or_insert_with(Instant::now).elapsed();
            }
            (decided && number <= limit).then_some(())
        });
        drop(storm.join());
    });
    watcher.end();
    (most, over)
}

/// How many of the logins are refused, of clients that close and log in again at once.
fn churn(target: &Target) -> usize {
    let refused = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                for _ in 0..LOGINS / CLIENTS {
                    match target.login() {
                        Ok(session) => session.close(),
                        Err(_) => _ = refused.fetch_add(1, Ordering::Relaxed),
                    }
                }
            });
        }
    });
    refused.into_inner()
}

/// A superuser's session that again and again ends the youngest sessions over a limit.
struct Script {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    limit: AtomicUsize,
    ended: AtomicUsize,
    over: AtomicBool,
}

impl Script {
    fn start(cluster: &Cluster) -> Script {
        let (shared, mut session) = (Arc::new(Shared::default()), cluster.superuser());
        let of_thread = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            while !of_thread.over.load(Ordering::Relaxed) {
                let limit = of_thread.limit.load(Ordering::Relaxed);
                let ended = session.query(&format!(
                    "SELECT pg_terminate_backend(pid) FROM
                        (SELECT pid, row_number() OVER (ORDER BY backend_start, pid) FROM pg_stat_activity WHERE usename = 'alice') AS sessions
                    WHERE row_number > {limit}"
                ));
                let ended = ended.iter().filter(|row| row[0] == "t").count();
                of_thread.ended.fetch_add(ended, Ordering::Relaxed);
                thread::sleep(SCRIPT_INTERVAL);
            }
        });
        Script {
            shared,
            thread: Some(thread),
        }
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|ended| ended.is_ok()) || thread::panicking());
    }
}

fn report(server: &Server, storms: usize, churns: usize, variants: &[Variant]) {
    let names = || variants.iter().map(|variant| variant.way.name());
    let mut tables = Vec::new();
    for (kind, (logins, limit)) in STORMS.into_iter().enumerate() {
        let title = format!("{logins} logins at once under a limit of {limit}");
        let mut table = Table::new(title, names());
        let limit = limit as f64;
        let rounds = |such: fn(f64, f64) -> bool| {
            let part = move |it: &Variant| it.admitted[kind].percent(|in_| such(in_, limit));
            variants.iter().map(part)
        };
        let inexact = table.column("not exact, %", 1, Best::Lowest, rounds(|it, max| it != max));
        if kind < 2 {
            inexact.picture();
        }
        let admitted = variants.iter().map(|it| it.admitted[kind].clone());
        table.column("admitted a round", 0, Best::None, admitted);
        table.column("nobody in, %", 1, Best::None, rounds(|it, _| it == 0.0));
        table.column("fewer, %", 1, Best::None, rounds(|it, limit| it < limit));
        table.column("more, %", 1, Best::None, rounds(|it, limit| it > limit));
        let most = variants.iter().map(|it| it.admitted[kind].max());
        let most = most.map(|most| Figures::from_iter([most]));
        table.column("most in at once", 0, Best::None, most);
        let over = variants.iter().map(|it| it.over[kind].clone());
        table.column("too many for, ms", 0, Best::None, over);
        tables.push(table);
    }
    let title = format!("{CLIENTS} clients under a limit of {CLIENTS}: of {LOGINS} logins");
    let mut table = Table::new(title, names());
    let refused = variants.iter().map(|it| it.refused.clone());
    let name = "refused or ended without need";
    table.column(name, 0, Best::Lowest, refused).picture();
    let most = variants
        .iter()
        .map(|it| Figures::from_iter([it.refused.max()]));
    table.column("most in a round", 0, Best::Lowest, most);
    tables.push(table);
    let trigger = match server.major {
        ..17 => format!("; PostgreSQL {} has no login triggers", server.major),
        _ => String::new(),
    };
    let measured = format!(
        "{storms} rounds of each storm and {churns} of the clients that log in again at once, for each variant{trigger}"
    );
    bench::report("exact", server, measured, tables);
}
