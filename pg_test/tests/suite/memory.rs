//! A process that gets no more memory ends one login or one statement, with 53200, and never the server.

use crate::scene::{admitted, process, set_label, status};
use pg_test::client::{Refusal, Session};
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use pg_test::{place, run, wait_for};
use rustix::process::{Pid, Signal};
use std::collections::BTreeSet;
use std::process::Command;

tests![
    statements_without_memory,
    a_session_fills_its_memory,
    logins_without_memory,
    settings_without_memory,
];

const STATEMENTS: [&str; 14] = [
    "SELECT count(*) FROM session_limit.sessions",
    "SELECT count(*) FROM session_limit.usage",
    "SELECT count(*) FROM session_limit.limits",
    "SELECT count(*) FROM session_limit.role_limits",
    "SELECT count(*) FROM session_limit.events",
    "SELECT count(*) FROM session_limit.stats",
    "SELECT count(*) FROM session_limit.status",
    "SELECT count(*) FROM session_limit.waiters",
    "SELECT count(*) FROM session_limit.explain_login('alice', 'postgres', '10.0.0.1')",
    "SELECT count(*) FROM session_limit.seats",
    "SELECT session_limit.set_limit(5, role => 'alice', database => 'postgres')",
    r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"max": 3}'"#,
    "ALTER ROLE alice CONNECTION LIMIT 7",
    "ALTER ROLE alice LOGIN",
];

/// These keep some memory in reserve.
const SEATS: [&str; 3] = [
    "SELECT session_limit.release_seat(session_limit.take_seat('bob', 1000))",
    "SELECT session_limit.try_take_seat('bob', 0)",
    "SELECT session_limit.evict_seats('carol')",
];

fn start(server: &Server) -> Cluster {
    let settings = [
        ("session_limit.max_wait", "0"),
        ("session_limit.log_events", "all"),
    ];
    let cluster = Cluster::start(server, &settings);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN",
        &set_label("ROLE alice", r#"{"max": 3}"#),
    ]);
    cluster
}

/// From now on the process gets so many more bytes; None: as many as there are.
fn leave(process: Pid, bytes: Option<u64>) {
    let limit = bytes.map_or("unlimited".to_string(), |bytes| {
        let status = status(process);
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
        let size = size.and_then(|size| size.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        (size.expect("a size in kB") * 1024 + bytes).to_string()
    });
    let mut prlimit = Command::new("prlimit");
    // The hard limit stays.
    prlimit.arg(format!("--as={limit}:"));
    prlimit.arg(format!("--pid={}", process.as_raw_nonzero()));
    run(place::as_server_user(&mut prlimit));
}

/// From nothing to more than is needed, in bytes.
fn steps() -> impl Iterator<Item = u64> {
    let fine = (0..128).map(|step| step * 8 * 1024);
    fine.chain((16..64).map(|step| step * 64 * 1024))
}

/// Whether it was session_limit that asked: for memory to spare, which nothing else asks for in one piece.
fn asked_first(refusal: &Refusal) -> bool {
    refusal.sqlstate() == "53200"
        && refusal.detail().starts_with("Failed on request of size")
        && !refusal.detail().contains("memory context")
}

fn try_in(session: &mut Session, statement: &'static str, refused: &mut BTreeSet<&str>) {
    if let Err(refusal) = session.try_query(statement) {
        assert_eq!(refusal.sqlstate(), "53200", "{statement}: {refusal:?}");
        refused.extend(asked_first(&refusal).then_some(statement));
    }
}

fn statements_without_memory(server: &Server) {
    let cluster = start(server);
    let mut witness = cluster.superuser();
    let mut session = cluster.superuser();
    let mut refused = BTreeSet::new();
    for statement in STATEMENTS {
        session.query(statement);
    }
    for bytes in steps() {
        leave(process(&session), Some(bytes));
        for statement in STATEMENTS {
            try_in(&mut session, statement, &mut refused);
        }
    }
    assert_eq!(refused.len(), STATEMENTS.len(), "{refused:?}");
    leave(process(&session), None);
    for statement in STATEMENTS {
        session.query(statement);
    }
    // With a reserve and without.
    for reserve in [true, false] {
        session.end();
        session = cluster.superuser();
        if reserve {
            for statement in SEATS {
                session.query(statement);
            }
        }
        let mut refused = BTreeSet::new();
        for bytes in steps() {
            leave(process(&session), Some(bytes));
            for statement in SEATS {
                try_in(&mut session, statement, &mut refused);
            }
        }
        assert!(reserve || !refused.is_empty());
        leave(process(&session), None);
        for statement in SEATS {
            session.query(statement);
        }
    }
    assert!(witness.is_alive());
}

/// An ordinary user keeps as much memory as there is, and calls functions that everyone may call.
fn a_session_fills_its_memory(server: &Server) {
    let cluster = start(server);
    let mut witness = cluster.superuser();
    let mut session = admitted(&cluster.login_of("alice"));
    let mut refused = BTreeSet::new();
    for rest in [1_000_000, 300_000, 100_000, 30_000, 10_000] {
        session.query("SELECT count(*) FROM session_limit.usage");
        leave(process(&session), Some(64 << 20));
        session.query(&format!(
            "DO $$
             DECLARE
                 size int := 8000000;
             BEGIN
                 FOR i IN 1..1000 LOOP
                     BEGIN
                         PERFORM set_config('held.piece_' || i, repeat('x', size), false);
                     EXCEPTION WHEN out_of_memory THEN
                         size := size / 2;
                         EXIT WHEN size < {rest};
                     END;
                 END LOOP;
             END $$"
        ));
        for statement in STATEMENTS
            .iter()
            .filter(|it| it.starts_with("SELECT count"))
        {
            try_in(&mut session, statement, &mut refused);
        }
        leave(process(&session), None);
        session.query("RESET ALL");
    }
    assert_eq!(refused.len(), 10, "{refused:?}");
    assert!(session.is_alive() && witness.is_alive());
}

/// The postmaster's children have no more than it.
fn logins_without_memory(server: &Server) {
    for enforcement in ["on", "log"] {
        let cluster = start(server);
        cluster.set(&[("session_limit.enforcement", enforcement)]);
        let mut witness = cluster.superuser();
        let alice = cluster.login_of("alice");
        admitted(&alice).end();
        let mut refused = 0;
        for bytes in steps() {
            leave(cluster.pid(), Some(bytes));
            match alice.login() {
                Ok(session) => session.end(),
                // The server itself may find no memory to start a process, or to say so.
                Err(refusal) => refused += usize::from(asked_first(&refusal)),
            }
        }
        assert_eq!(refused > 0, enforcement == "on", "{enforcement}: {refused}");
        leave(cluster.pid(), None);
        wait_for("a login", || alice.login().ok()).end();
        assert!(witness.is_alive());
    }
}

/// The postmaster reads a label when it is told to reload: it keeps the old one.
fn settings_without_memory(server: &Server) {
    let cluster = start(server);
    let mut witness = cluster.superuser();
    leave(cluster.pid(), Some(512 * 1024));
    let limit = r#"{"per": "role", "max": 2}"#;
    cluster.append(
        "postgresql.conf",
        &format!("session_limit.cluster_limits = '{limit}'\n"),
    );
    cluster.signal(Signal::HUP);
    wait_for("the reload", || {
        let refused = cluster
            .log()
            .contains("invalid value for parameter \"session_limit.cluster_limits\"");
        refused.then_some(())
    });
    assert!(cluster.log().contains("Out of memory."));
    leave(cluster.pid(), None);
    cluster.reload();
    // A role without a label of its own.
    cluster.sql(&["CREATE ROLE bob LOGIN"]);
    let bob = cluster.login_of("bob");
    let _sessions = [admitted(&bob), admitted(&bob)];
    wait_for("the limit", || bob.login().err());
    assert!(witness.is_alive());
}
