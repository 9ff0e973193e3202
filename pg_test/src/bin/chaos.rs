//! `cargo chaos -- [--servers] [--seed N] [--seconds N]`: the chaos run on each of `PG_MAJORS`; what it does and what must
//! hold, `pg_test::chaos` says, and over several servers `pg_test::chaos_servers`. Ends with 1 if something did not hold.

use pg_test::bench::{self, Table};
use pg_test::server::{self, Server};
use pg_test::{chaos, chaos_servers, say};
use std::process::exit;
use std::time::{Duration, SystemTime};

fn main() {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO);
    let (mut seed, mut seconds, mut over_servers) = (since.as_secs() % 1_000_000, 60, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        if option == "--servers" {
            over_servers = true;
            continue;
        }
        let number = arguments.next().and_then(|number| number.parse().ok());
        match (option.as_str(), number) {
            ("--seed", Some(number)) => seed = number,
            ("--seconds", Some(number)) => seconds = number,
            _ => {
                eprintln!("usage: cargo chaos -- [--servers] [--seed N] [--seconds N]");
                exit(2);
            }
        }
    }
    let run = match over_servers {
        true => run_servers,
        false => run_one,
    };
    let mut violations = 0;
    for server in server::servers() {
        say(format_args!(
            "PostgreSQL {}: seed {seed}, {seconds} s, or as long as once through everything takes",
            server.major
        ));
        violations += run(&server, seed, Duration::from_secs(seconds));
    }
    if violations > 0 {
        say(format_args!("{violations} violations, see above"));
        exit(1);
    }
}

fn run_one(server: &Server, seed: u64, at_least: Duration) -> usize {
    let outcome = chaos::run(server, seed, at_least);
    let (phases, took) = (outcome.phases, outcome.took.as_secs());
    let measured = format!("Seed {seed}, {phases} phases in {took} s");
    report("chaos", server, measured, outcome.table(server));
    outcome.violations
}

fn run_servers(server: &Server, seed: u64, at_least: Duration) -> usize {
    let outcome = chaos_servers::run(server, seed, at_least).unwrap_or_else(|why| {
        say(format_args!("there is no etcd: {why}"));
        exit(2);
    });
    let measured = format!("Seed {seed}, {} s", outcome.took.as_secs());
    report("chaos-servers", server, measured, outcome.table(server));
    outcome.violations
}

fn report(name: &str, server: &Server, measured: String, table: Table) {
    bench::report(name, server, measured, vec![table]);
}
