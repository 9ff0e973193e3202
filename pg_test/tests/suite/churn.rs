//! Clients that close and log in again at once: their old backends are still leaving.

use crate::scene::{admitted, go_on, process, refused, stop};
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use rustix::process::Pid;
use std::thread;

tests![
    who_closes_first_is_let_in_again,
    a_backend_that_is_still_leaving_is_waited_for
];

const CLIENTS: usize = 4;
const LOGINS: usize = 1000;
const ROLE: &str = "CREATE ROLE alice LOGIN CONNECTION LIMIT 4";

/// A machine may take its time to end a process.
const PATIENT: (&str, &str) = ("session_limit.max_wait", "60s");

fn who_closes_first_is_let_in_again(server: &Server) {
    for reserved in ["3", "0"] {
        let settings = [PATIENT, ("superuser_reserved_connections", reserved)];
        let cluster = Cluster::start(server, &settings);
        cluster.sql(&[ROLE]);
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    for _ in 0..LOGINS / CLIENTS {
                        admitted(&cluster.login_of("alice")).close();
                    }
                });
            }
        });
    }
}

/// What it takes the wait for: the server alone refuses who comes before it is gone.
fn a_backend_that_is_still_leaving_is_waited_for(server: &Server) {
    let plain = Cluster::plain(server, &[]);
    let leaving = stopped_while_it_leaves(&plain);
    assert_eq!(refused(&plain.login_of("alice")).sqlstate(), "53300");
    go_on(leaving);

    let ours = Cluster::start(server, &[PATIENT]);
    let leaving = stopped_while_it_leaves(&ours);
    let alice = ours.login_of("alice");
    let mut new = alice.connect();
    new.send_startup(&alice);
    ours.wait_for_processes(" authentication", 1);
    go_on(leaving);
    new.outcome().expect("the old backend is gone");
}

/// The backend of alice, who may have one session and has closed it.
fn stopped_while_it_leaves(cluster: &Cluster) -> Pid {
    cluster.sql(&["CREATE ROLE alice LOGIN CONNECTION LIMIT 1"]);
    let session = admitted(&cluster.login_of("alice"));
    let leaving = process(&session);
    stop(leaving);
    session.close();
    leaving
}
