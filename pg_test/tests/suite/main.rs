//! The suite: real logins, through real clients, into throwaway clusters, on each major that `PG_MAJORS` asks for. A test is
//! listed as `pg18::module::name`.

use libtest_mimic::{Arguments, Trial};
use pg_test::server::{self, Server};

type Test = (&'static str, fn(&Server));

/// The tests of a module, by their functions' names.
macro_rules! tests {
    ($($test:ident),* $(,)?) => {
        pub const TESTS: &[crate::Test] = &[$((stringify!($test), $test)),*];
    };
}

macro_rules! modules {
    ($($module:ident),* $(,)?) => {
        $(mod $module;)*
        const MODULES: &[(&str, &[Test])] = &[$((stringify!($module), $module::TESTS)),*];
    };
}

modules!(storm, churn, cold, refusal, waiting, settings, changes, crash, hooks, clients, replication, views, worker);

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for server in server::servers() {
        for (module, tests) in MODULES {
            for (name, test) in *tests {
                let (name, server, test) = (format!("pg{}::{module}::{name}", server.major), server.clone(), *test);
                trials.push(Trial::test(name, move || {
                    test(&server);
                    Ok(())
                }));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}
