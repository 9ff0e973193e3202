//! The suite: real logins, through real clients, into throwaway clusters, on each major that
//! `PG_MAJORS` asks for. A test is listed as `pg18::module::name`.

use libtest_mimic::{Arguments, Trial};
use pg_test::server::{self, Server};
use std::thread::available_parallelism;

type Test = (&'static str, fn(&Server));

/// From one server to another, which may be the same.
type Upgrade = (&'static str, fn(&Server, &Server));

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
mod clock;
mod cold;
mod connection_limits;
mod counts;
mod crash;
mod drivers;
mod editing;
mod encodings;
mod events;
mod faults;
mod groups;
mod hooks;
mod howtos;
mod install;
mod kinds;
mod labels;
mod limit_stats;
mod limits;
mod memory;
mod monitoring;
mod packages;
mod page;
mod reference;
mod refusal;
mod regress;
mod replacing;
mod replication;
mod rolling_out;
mod round_trips;
mod scene;
mod schema;
mod seats;
mod servers;
mod servers_chaos;
mod servers_faults;
mod servers_storms;
mod settings;
mod stats;
mod storm;
mod sweep;
mod tenants;
mod upgrades;
mod views;
mod waiting;
mod worker;

const MODULES: &[(&str, &[Test])] = &[
    ("changes", changes::TESTS),
    ("chaos", chaos::TESTS),
    ("churn", churn::TESTS),
    ("clients", clients::TESTS),
    ("clock", clock::TESTS),
    ("cold", cold::TESTS),
    ("connection_limits", connection_limits::TESTS),
    ("counts", counts::TESTS),
    ("crash", crash::TESTS),
    ("drivers", drivers::TESTS),
    ("editing", editing::TESTS),
    ("encodings", encodings::TESTS),
    ("events", events::TESTS),
    ("faults", faults::TESTS),
    ("groups", groups::TESTS),
    ("hooks", hooks::TESTS),
    ("install", install::TESTS),
    ("howtos", howtos::TESTS),
    ("kinds", kinds::TESTS),
    ("labels", labels::TESTS),
    ("limit_stats", limit_stats::TESTS),
    ("limits", limits::TESTS),
    ("memory", memory::TESTS),
    ("monitoring", monitoring::TESTS),
    ("packages", packages::TESTS),
    ("reference", reference::TESTS),
    ("refusal", refusal::TESTS),
    ("regress", regress::TESTS),
    ("replacing", replacing::TESTS),
    ("replication", replication::TESTS),
    ("rolling_out", rolling_out::TESTS),
    ("round_trips", round_trips::TESTS),
    ("seats", seats::TESTS),
    ("servers", servers::TESTS),
    ("servers_chaos", servers_chaos::TESTS),
    ("servers_faults", servers_faults::TESTS),
    ("servers_storms", servers_storms::TESTS),
    ("settings", settings::TESTS),
    ("stats", stats::TESTS),
    ("storm", storm::TESTS),
    ("sweep", sweep::TESTS),
    ("tenants", tenants::TESTS),
    ("upgrades", upgrades::TESTS),
    ("views", views::TESTS),
    ("waiting", waiting::TESTS),
    ("worker", worker::TESTS),
];

fn main() {
    let mut arguments = Arguments::from_args();
    // A test waits for more time than it computes.
    let threads = available_parallelism().map_or(1, usize::from);
    arguments.test_threads.get_or_insert(2 * threads);
    let servers = server::servers();
    let mut trials = Vec::new();
    for server in &servers {
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
    trials.extend(upgrades(servers));
    libtest_mimic::run(&arguments, trials).exit();
}

/// From the oldest server to the newest that can be upgraded to, which may be the same. A test is
/// listed as `pg15_to_18::module::name`.
fn upgrades(mut servers: Vec<Server>) -> Vec<Trial> {
    servers.sort_by_key(|server| server.major);
    let newest = servers.iter().rfind(|server| server.has_own_psql());
    let (Some(old), Some(new)) = (servers.first(), newest) else {
        return Vec::new();
    };
    let trial = |(name, test): &Upgrade| {
        let name = format!("pg{}_to_{}::round_trips::{name}", old.major, new.major);
        let (old, new, test) = (old.clone(), new.clone(), *test);
        Trial::test(name, move || {
            test(&old, &new);
            Ok(())
        })
    };
    round_trips::UPGRADES.iter().map(trial).collect()
}
