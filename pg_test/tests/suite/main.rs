//! The suite: real logins, through real clients, into throwaway clusters, on each major that
//! `PG_MAJORS` asks for. A test is listed as `pg18::module::name`.

use libtest_mimic::{Arguments, Trial};
use pg_test::server::{self, Server};

type Test = (&'static str, fn(&Server));

/// The tests of a module, by their functions' names.
macro_rules! tests {
    ($($test:ident),* $(,)?) => {
        pub const TESTS: &[crate::Test] = &[$((stringify!($test), $test)),*];
    };
}

mod changes;
mod chaos;
mod churn;
mod clients;
mod cold;
mod crash;
mod hooks;
mod refusal;
mod replication;
mod settings;
mod storm;
mod views;
mod waiting;
mod worker;

const MODULES: &[(&str, &[Test])] = &[
    ("changes", changes::TESTS),
    ("chaos", chaos::TESTS),
    ("churn", churn::TESTS),
    ("clients", clients::TESTS),
    ("cold", cold::TESTS),
    ("crash", crash::TESTS),
    ("hooks", hooks::TESTS),
    ("refusal", refusal::TESTS),
    ("replication", replication::TESTS),
    ("settings", settings::TESTS),
    ("storm", storm::TESTS),
    ("views", views::TESTS),
    ("waiting", waiting::TESTS),
    ("worker", worker::TESTS),
];

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for server in server::servers() {
        for (module, tests) in MODULES {
            for (name, test) in *tests {
                let (name, server, test) = (
                    format!("pg{}::{module}::{name}", server.major),
                    server.clone(),
                    *test,
                );
                trials.push(Trial::test(name, move || {
                    test(&server);
                    Ok(())
                }));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}
