//! `cargo chaos -- [--seed N] [--seconds N]`: the chaos run on each of `PG_MAJORS`; what it does and what must
//! hold, `pg_test::chaos` says. Ends with 1 if something did not hold.

use pg_test::{bench, chaos, say, server};
use std::process::exit;
use std::time::{Duration, SystemTime};

fn main() {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO);
    let (mut seed, mut seconds) = (since.as_secs() % 1_000_000, 60);
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let number = arguments.next().and_then(|number| number.parse().ok());
        match (option.as_str(), number) {
            ("--seed", Some(number)) => seed = number,
            ("--seconds", Some(number)) => seconds = number,
            _ => {
                eprintln!("usage: cargo chaos -- [--seed N] [--seconds N]");
                exit(2);
            }
        }
    }
    let mut violations = 0;
    for server in server::servers() {
        say(format_args!(
            "PostgreSQL {}: seed {seed}, {seconds} s, or as long as once through everything takes",
            server.major
        ));
        let outcome = chaos::run(&server, seed, Duration::from_secs(seconds));
        violations += outcome.violations;
        let measured = format!(
            "Seed {seed}, {} phases in {} s",
            outcome.phases,
            outcome.took.as_secs()
        );
        bench::report("chaos", &server, measured, vec![outcome.table(&server)]);
    }
    if violations > 0 {
        say(format_args!("{violations} violations, see above"));
        exit(1);
    }
}
