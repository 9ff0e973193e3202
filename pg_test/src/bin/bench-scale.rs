//! `cargo bench-scale`: how long a decision takes, by how many sessions there are and how many limits a login has
//! to meet: in new backends of a server, and on the table alone.
//!
//! In a server it is what a login adds to `decision_us`, so all of the hook. What grows with the sessions is
//! the time under the lock; it cannot be seen alone, because the library has no clock there. In each round
//! the numbers of sessions take turns in random order, and so do the logins that have to meet one limit, 4 and
//! 16. On the table alone (`cargo bench-lock`) criterion measures, one variant after the other.

use pg_test::bench::{self, Best, Figures, Table};
use pg_test::client::{Session, Target};
use pg_test::cluster::Cluster;
use pg_test::server::{self, Server};
use pg_test::{place, say};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

const SESSIONS: [usize; 4] = [10, 100, 1_000, 2_000];

/// The roles, by how many limits they have to meet.
const ROLES: [&str; 3] = ["one", "four", "sixteen"];
const LOGINS: usize = 20;

fn main() {
    let rounds = bench::rounds(10, 1);
    let alone = on_the_table_alone(rounds == 1);
    for server in server::servers() {
        let mut crowd = Crowd::new(&server);
        let mut figures = vec![[const { Vec::new() }; ROLES.len()]; SESSIONS.len()];
        for round in 1..=rounds {
            for turn in bench::shuffled(SESSIONS.len()) {
                crowd.become_of(SESSIONS[turn]);
                for _ in 0..LOGINS {
                    for role in bench::shuffled(ROLES.len()) {
                        figures[turn][role].push(crowd.decision(ROLES[role]));
                    }
                }
            }
            say(format_args!(
                "PostgreSQL {}: {round} of {rounds}",
                server.major
            ));
        }
        report(&server, rounds, &figures, &alone);
    }
}

/// A server with sessions in it.
struct Crowd {
    superuser: Session,
    sessions: Vec<Session>,
    cluster: Cluster,
}

impl Crowd {
    fn new(server: &Server) -> Crowd {
        let cluster = Cluster::start(server, &[("max_connections", "2100")]);
        // One limit for each of the networks around 127.0.0.1.
        let networks =
            (8..20).map(|prefix| format!(r#", {{"max": 9999, "network": "127.0.0.0/{prefix}"}}"#));
        let limits = r#"{"max": 9999}, {"max": 9999, "per": "address"}"#;
        let label = |role: &str, limits: &str| {
            format!(
                r#"SECURITY LABEL FOR session_limit ON ROLE {role} IS '{{"limits": [{limits}]}}'"#
            )
        };
        let sixteen = format!("{limits}{}", networks.collect::<String>());
        cluster.sql(&[
            "CREATE DATABASE app",
            r#"SECURITY LABEL FOR session_limit ON DATABASE app IS '{"max": 9999}'"#,
            "CREATE ROLE team",
            r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"max": 9999, "per": "group"}'"#,
            "CREATE ROLE one LOGIN",
            "CREATE ROLE four LOGIN IN ROLE team",
            "CREATE ROLE sixteen LOGIN IN ROLE team",
            "CREATE ROLE crowd LOGIN IN ROLE team",
            "CREATE EXTENSION session_limit",
            &label("one", r#"{"max": 9999}"#),
            &label("four", limits),
            &label("sixteen", &sixteen),
        ]);
        let superuser = cluster.superuser();
        let mut crowd = Crowd {
            superuser,
            sessions: Vec::new(),
            cluster,
        };
        for (role, limits) in ROLES.into_iter().zip([1, 4, 16]) {
            crowd.decision(role);
            let database = database(role);
            let sql = format!(
                "SELECT count(*) FROM session_limit.explain_login('{role}', '{database}', '127.0.0.1')"
            );
            assert_eq!(crowd.superuser.value(&sql), limits.to_string(), "{role}");
        }
        crowd
    }

    /// Opens sessions, or closes some.
    fn become_of(&mut self, number: usize) {
        while self.sessions.len() > number {
            self.sessions.pop().expect("a session").end();
        }
        let target = self.cluster.login_of("crowd").to("app");
        while self.sessions.len() < number {
            self.sessions.push(target.login().expect("room"));
        }
    }

    /// How long it takes to decide on a login of this role, in microseconds.
    fn decision(&mut self, role: &str) -> f64 {
        let before = self.microseconds(role);
        let target: Target = self.cluster.tcp_login_of(role).to(database(role));
        target.login().expect("room").end();
        self.microseconds(role) - before
    }

    fn microseconds(&mut self, role: &str) -> f64 {
        let sql = format!(
            "SELECT coalesce(sum(decision_us), 0) FROM session_limit.stats WHERE usename = '{role}'"
        );
        self.superuser.value(&sql).parse().expect("a number")
    }
}

/// The first role has to meet no limit of the database.
fn database(role: &str) -> &'static str {
    if role == "one" { "postgres" } else { "app" }
}

/// What criterion found of one variant.
#[derive(Deserialize)]
struct Sample {
    iters: Vec<f64>,
    times: Vec<f64>,
}

/// Microseconds by number of sessions, of each variant.
type Alone = BTreeMap<String, BTreeMap<usize, Figures>>;

fn on_the_table_alone(quick: bool) -> Alone {
    let results = place::checkout().join("target/criterion");
    // What is no variant any more is not to stay.
    let _ = fs::remove_dir_all(&results);
    let mut bench = Command::new("cargo");
    bench.arg("bench-lock").current_dir(place::checkout());
    if quick {
        bench.args(["--", "--quick"]);
    }
    assert!(bench.status().expect("run cargo").success());
    let mut alone = Alone::new();
    for variant in fs::read_dir(&results).expect("read the figures").flatten() {
        let sizes = fs::read_dir(variant.path()).into_iter().flatten().flatten();
        for size in sizes {
            let name = |path: &Path| path.file_name().map(|it| it.to_string_lossy().into_owned());
            let number = name(&size.path()).and_then(|name| name.parse().ok());
            if let (Some(variant), Some(number)) = (name(&variant.path()), number) {
                let figures = sample(&size.path().join("new/sample.json"));
                alone.entry(variant).or_default().insert(number, figures);
            }
        }
    }
    alone
}

fn sample(file: &Path) -> Figures {
    let json = fs::read(file).expect("read the figures");
    let sample: Sample = serde_json::from_slice(&json).expect("a sample");
    let nanoseconds = sample.times.iter().zip(&sample.iters);
    nanoseconds
        .map(|(time, iterations)| time / iterations / 1000.0)
        .collect()
}

fn report(server: &Server, rounds: usize, figures: &[[Vec<f64>; ROLES.len()]], alone: &Alone) {
    let rows = SESSIONS.map(|sessions| format!("{sessions} sessions"));
    let mut table = Table::new("a login in the hook", rows.iter().map(String::as_str));
    for (role, name) in ["1 limit, µs", "4 limits, µs", "16 limits, µs"]
        .into_iter()
        .enumerate()
    {
        let column = figures.iter().map(|of_sessions| {
            let logins = of_sessions[role].iter().copied();
            logins.collect::<Figures>()
        });
        let column = table.column(name, 0, Best::None, column);
        if name.starts_with("4 ") {
            column.picture();
        }
    }
    let mut tables = vec![table];
    for limits in ["1 limit", "4 limits", "16 limits"] {
        let suffix = format!(", {limits}");
        let rows = alone
            .iter()
            .filter_map(|(name, figures)| Some((name.strip_suffix(&suffix)?.to_string(), figures)));
        tables.push(table_alone(&format!("a decision alone, {limits}"), rows));
    }
    let outcomes = alone.iter().filter(|(name, _)| !name.contains(" limit"));
    let rows = outcomes.map(|(name, figures)| (name.clone(), figures));
    tables.push(table_alone(
        "a decision alone, 4 limits of different kinds",
        rows,
    ));
    let measured = format!(
        "{} logins for each number of sessions and of limits; on the table alone what criterion makes of a few tenths of a second",
        rounds * LOGINS
    );
    bench::report("scale", server, measured, tables);
}

fn table_alone<'a>(
    title: &str,
    rows: impl Iterator<Item = (String, &'a BTreeMap<usize, Figures>)>,
) -> Table {
    let rows: Vec<_> = rows.collect();
    let mut table = Table::new(title, rows.iter().map(|(name, _)| name.as_str()));
    let numbers: Vec<usize> = rows.iter().flat_map(|(_, it)| it.keys().copied()).collect();
    let largest = numbers.iter().max().copied();
    let numbers: BTreeSet<usize> = numbers.into_iter().collect();
    for number in numbers {
        let cells = rows.iter().map(|(_, figures)| {
            let figures = figures.get(&number);
            figures.cloned().unwrap_or_default()
        });
        let name = format!("{number} sessions, µs");
        let column = table.column(&name, 2, Best::None, cells);
        if Some(number) == largest && title.contains(" 4 ") {
            column.picture();
        }
    }
    table
}
