//! `cargo bench-wait`: how soon a waiting login is let in when a session ends, beside a login that
//! finds room.
//!
//! Both are measured by the client, in random order: from the moment at which it sends the other
//! session's goodbye, or its own startup packet, to ReadyForQuery. The first thus includes the end
//! of the other session's process, the second a fork.

use pg_test::bench::{self, Best, Figures, Table};
use pg_test::cluster::Cluster;
use pg_test::{say, server, wait_for};
use std::thread;
use std::time::{Duration, Instant};

type Login = fn(&Cluster) -> Duration;

const LOGINS: [(&str, Login); 2] = [
    ("a login that finds room", login_with_room),
    (
        "a waiting login, from the end of a session",
        login_that_waits,
    ),
];

fn main() {
    let rounds = bench::rounds(500, 20);
    for server in server::servers() {
        let cluster = Cluster::start(&server, &[("session_limit.max_wait", "60s")]);
        cluster.sql(&[
            "CREATE EXTENSION session_limit",
            "CREATE ROLE alice LOGIN CONNECTION LIMIT 1",
        ]);
        say(format_args!("PostgreSQL {}: {rounds} rounds", server.major));
        let mut times = [Figures::default(), Figures::default()];
        for round in 1..=rounds {
            for turn in bench::shuffled(LOGINS.len()) {
                let time = LOGINS[turn].1(&cluster);
                times[turn].push(time.as_secs_f64() * 1000.0);
            }
            if round % 100 == 0 || round == rounds {
                say(format_args!("{round} of {rounds}"));
            }
        }
        let names = LOGINS.map(|(name, _)| name);
        let mut table = Table::new("until it is let in", names);
        let slow = times.each_ref().map(|it| Figures::from_iter([it.part(99)]));
        table.column("ms", 2, Best::Lowest, times).picture();
        table.column("99 %, ms", 2, Best::Lowest, slow);
        let measured = format!("{rounds} rounds");
        bench::report("wait", &server, measured, vec![table]);
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
