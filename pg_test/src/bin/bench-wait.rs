//! `cargo bench-wait`: how soon a waiting login is let in when a session ends, beside a login that
//! finds room.
//!
//! Both are measured by the client, alternating: from the moment at which it sends the other
//! session's goodbye, or its own startup packet, to ReadyForQuery. The first thus includes the end
//! of the other session's process, the second a fork.

use pg_test::cluster::Cluster;
use pg_test::{say, server, wait_for};
use std::thread;
use std::time::{Duration, Instant};

const ROUNDS: usize = 500;

fn main() {
    for server in server::servers() {
        let cluster = Cluster::start(&server, &[("session_limit.max_wait", "60s")]);
        cluster.sql(&[
            "CREATE EXTENSION session_limit",
            "CREATE ROLE alice LOGIN CONNECTION LIMIT 1",
        ]);
        say(format_args!("PostgreSQL {}: {ROUNDS} rounds", server.major));
        let (mut waited, mut at_once) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            at_once.push(login_with_room(&cluster));
            waited.push(login_that_waits(&cluster));
            if round % 100 == 0 {
                say(format_args!("{round} of {ROUNDS}"));
            }
        }
        println!(
            "PostgreSQL {}, {ROUNDS} rounds, ms{:>21}{:>10}{:>10}",
            server.major, "median", "90 %", "99 %"
        );
        for (what, times) in [
            ("a waiter, from the end of a session", waited),
            ("a login that finds room", at_once),
        ] {
            print_row(what, times);
        }
    }
}

fn login_with_room(cluster: &Cluster) -> Duration {
    let start = Instant::now();
    let session = cluster.login_of("alice").login().expect("room");
    let time = start.elapsed();
    session.close();
    cluster.wait_until_gone("alice");
    time
}

fn login_that_waits(cluster: &Cluster) -> Duration {
    let first = cluster.login_of("alice").login().expect("room");
    let target = cluster.login_of("alice");
    let waiter = thread::spawn(move || {
        let session = target.login().expect("room in the end");
        (Instant::now(), session)
    });
    let sql = "SELECT 1 FROM session_limit.usage WHERE waiting = 1";
    let mut superuser = cluster.superuser();
    wait_for("the waiter", || {
        (!superuser.query(sql).is_empty()).then_some(())
    });
    let start = Instant::now();
    first.close();
    let (end, session) = waiter.join().expect("the waiter's thread");
    session.close();
    cluster.wait_until_gone("alice");
    end - start
}

fn print_row(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let part =
        |of_hundred: usize| times[(times.len() - 1) * of_hundred / 100].as_secs_f64() * 1000.0;
    println!(
        "{what:<40}{:>12.2}{:>10.2}{:>10.2}",
        part(50),
        part(90),
        part(99)
    );
}
