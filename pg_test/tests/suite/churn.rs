//! Clients that close and log in again at once: their old backends are still leaving.

use pg_test::cluster::Cluster;
use pg_test::server::Server;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

tests![who_closes_first_is_let_in_again];

const CLIENTS: usize = 4;
const LOGINS: usize = 1000;
const ROLE: &str = "CREATE ROLE alice LOGIN CONNECTION LIMIT 4";

fn who_closes_first_is_let_in_again(server: &Server) {
    let ours = Cluster::start(server, &[]);
    ours.sql(&[ROLE]);
    assert_eq!(refused(&ours), 0);
    let ours = Cluster::start(server, &[("superuser_reserved_connections", "0")]);
    ours.sql(&[ROLE]);
    assert_eq!(refused(&ours), 0);

    // What it takes the wait for: the server alone refuses some.
    let plain = Cluster::plain(server, &[]);
    plain.sql(&[ROLE]);
    assert!(
        (0..10).any(|_| refused(&plain) > 0),
        "10,000 such logins, and the server alone refused none"
    );
}

fn refused(cluster: &Cluster) -> usize {
    let refused = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                for _ in 0..LOGINS / CLIENTS {
                    match cluster.login_of("alice").login() {
                        Ok(session) => session.close(),
                        Err(_) => _ = refused.fetch_add(1, Ordering::Relaxed),
                    }
                }
            });
        }
    });
    refused.into_inner()
}
