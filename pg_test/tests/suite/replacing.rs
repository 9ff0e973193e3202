//! Sessions that end for a newer one of their role.

use pg_test::client::{Refusal, Session, Target};
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use pg_test::wait_for;
use rustix::process::{Pid, Signal, kill_process};

tests![the_oldest];

const AT_ONCE: (&str, &str) = ("session_limit.max_wait", "0");
const ANY_AGE: (&str, &str) = ("session_limit.replace_min_age", "0");
const OLDEST: (&str, &str) = ("session_limit.on_excess", "replace_oldest");

/// What a session is told that was ended.
fn told(session: &mut Session) -> Refusal {
    session
        .try_query("SELECT 1")
        .err()
        .expect("an ended session")
}

fn the_oldest(server: &Server) {
    let cluster = Cluster::start(server, &[AT_ONCE, ANY_AGE, OLDEST]);
    cluster.sql(&["CREATE ROLE alice LOGIN CONNECTION LIMIT 2"]);
    let mut first = cluster.login_of("alice").login().expect("one");
    let mut second = cluster.login_of("alice").login().expect("two");
    let mut third = cluster
        .tcp_login_of("alice")
        .login()
        .expect("for the first");
    let why = told(&mut first);
    assert_eq!(why.sqlstate(), "57P01");
    assert_eq!(
        why.message(),
        "terminating connection due to administrator command"
    );
    assert_eq!(
        why.detail(),
        r#"This session was replaced by a newer session of role "alice" from 127.0.0.1."#
    );
    assert!(second.is_alive() && third.is_alive());
}
