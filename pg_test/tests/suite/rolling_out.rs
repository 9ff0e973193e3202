//! docs/howto/rolling_out.md, step by step, with the statements of the page.

use crate::page::Page;
use crate::scene::{refused, wait_until};
use pg_test::client::Session;
use pg_test::cluster::Cluster;
use pg_test::server::Server;

tests![from_a_dry_run_to_the_sweep];

/// Runs the SQL of a step, and returns the rows of each statement.
fn step(number: usize, superuser: &mut Session) -> Vec<Vec<Vec<String>>> {
    let page = Page::read("howto/rolling_out.md");
    let statements = page.section(&format!("{number}.")).statements();
    assert!(!statements.is_empty(), "step {number}");
    statements
        .iter()
        .map(|statement| superuser.query(statement))
        .collect()
}

fn from_a_dry_run_to_the_sweep(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.enforcement", "log")]);
    let mut superuser = cluster.superuser();
    superuser.query("CREATE ROLE alice LOGIN");
    let alice = cluster.tcp_login_of("alice");
    let mut sessions = vec![
        alice.login().expect("no limit"),
        alice.login().expect("no limit"),
    ];

    let found = step(2, &mut superuser);
    assert_eq!(
        found[1][0][..3],
        ["alice", "postgres", "2"].map(String::from),
        "the peak"
    );
    assert_eq!(found[2][0], ["alice", "2"]);

    let found = step(3, &mut superuser);
    let limit = [
        "label on role alice",
        "role",
        "alice",
        "2",
        "1",
        "f",
        "log",
        "sessions",
        "server",
        "",
    ];
    assert_eq!(found[3], [limit.map(String::from).to_vec()]);
    assert!(
        found[4].is_empty() && found[5].is_empty(),
        "nobody came yet"
    );
    sessions.push(alice.login().expect("a dry run"));
    let found = step(3, &mut superuser);
    assert_eq!(
        found[4],
        [["alice", "postgres", "1", "0"].map(String::from).to_vec()]
    );
    assert_eq!(
        found[5][0][1..4],
        ["would_refuse", "alice", "127.0.0.1"].map(String::from)
    );
    let peak = ["label on role alice", "role", "sessions", "alice", "1", "3"];
    assert_eq!(found[6][0][..6], peak.map(String::from));
    assert_eq!(found[6][0][7], "1", "would be refused");

    step(4, &mut superuser);
    wait_until(&mut superuser, "SHOW session_limit.enforcement", "on");
    assert_eq!(refused(&alice).sqlstate(), "53300");
    assert!(
        sessions.iter_mut().all(Session::is_alive),
        "who is in stays in"
    );
    cluster.superuser().end();

    step(5, &mut superuser);
    let alive = "SELECT count(*) FROM session_limit.sessions WHERE usename = 'alice'";
    wait_until(&mut superuser, alive, "1");
    let mut ended = sessions
        .iter_mut()
        .filter_map(|session| session.try_query("SELECT 1").err());
    let why = ended.next().expect("an ended session");
    assert_eq!(why.sqlstate(), "57P01");
    assert!(!why.detail().is_empty(), "{why:?}");
    assert_eq!(ended.count(), 1, "one of three is left");

    let found = step(6, &mut superuser);
    let of_alice = found[2].iter().find(|row| row[0] == "alice");
    let expected = ["alice", "1", "CONNECTION LIMIT of role alice", "f"];
    assert_eq!(of_alice, Some(&expected.map(String::from).to_vec()));
}
