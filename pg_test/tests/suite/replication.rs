//! WAL senders: listed, and by default neither counted nor refused.

use crate::scene::refused;
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use pg_test::{run, wait_for};
use std::process::{Child, Command, Stdio};

tests![
    wal_senders_are_exempt,
    wal_senders_are_sessions_like_others,
    a_base_backup_enforces
];

fn cluster(server: &Server, settings: &[(&str, &str)]) -> Cluster {
    let mut all = vec![
        ("session_limit.max_sessions_per_role", "1"),
        ("session_limit.max_wait", "0"),
        ("wal_keep_size", "64MB"),
    ];
    all.extend(settings);
    let cluster = Cluster::start(server, &all);
    cluster.sql(&[
        "CREATE ROLE rep LOGIN REPLICATION",
        "CREATE EXTENSION session_limit",
    ]);
    cluster
}

fn receive_wal(cluster: &Cluster, name: &str) -> Command {
    let dir = cluster.dir.join(name);
    pg_test::place::server_dir(&dir);
    let mut command = cluster.client("pg_receivewal");
    command.args(["-U", "rep", "-n", "-D"]).arg(dir);
    command
}

/// Ends with the test, however that ends.
struct Receiver(Child);

impl Receiver {
    fn start(cluster: &Cluster, name: &str) -> Receiver {
        let mut command = receive_wal(cluster, name);
        let receiver = Receiver(
            command
                .stderr(Stdio::null())
                .spawn()
                .expect("run pg_receivewal"),
        );
        let sql = "SELECT 1 FROM session_limit.sessions WHERE usename = 'rep' AND datname IS NULL";
        let mut superuser = cluster.superuser();
        wait_for("the WAL sender", || {
            (!superuser.query(sql).is_empty()).then_some(())
        });
        superuser.end();
        receiver
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wal_senders_are_exempt(server: &Server) {
    let cluster = cluster(server, &[]);
    let _receiver = Receiver::start(&cluster, "wal");
    // Two connections at once, beside the one above.
    run(cluster
        .client("pg_basebackup")
        .args(["-U", "rep", "-X", "stream", "-c", "fast", "-D"])
        .arg(cluster.dir.join("backup")));
    let mut superuser = cluster.superuser();
    // Those of the backup may still be leaving.
    assert_eq!(
        superuser
            .value("SELECT bool_and(exempt) FROM session_limit.sessions WHERE usename = 'rep'"),
        "t"
    );
    assert_eq!(
        superuser.value("SELECT count(*) FROM session_limit.usage"),
        "0"
    );
    let _session = cluster
        .login_of("rep")
        .login()
        .expect("not counted beside a session");
    assert_eq!(
        superuser.value("SELECT in_use FROM session_limit.usage WHERE subject = 'rep'"),
        "1"
    );
    assert_eq!(refused(&cluster.login_of("rep")).sqlstate(), "53300");
}

fn wal_senders_are_sessions_like_others(server: &Server) {
    let cluster = cluster(server, &[("session_limit.exempt_replication", "off")]);
    let receiver = Receiver::start(&cluster, "wal");
    let refusal = refused(&cluster.login_of("rep"));
    assert_eq!(refusal.message(), r#"too many connections for role "rep""#);
    let output = receive_wal(&cluster, "second")
        .output()
        .expect("run pg_receivewal");
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(
        printed.contains(r#"too many connections for role "rep""#),
        "{printed}"
    );
    // Those that came before count, or do not, as the setting says now.
    cluster.set(&[("session_limit.exempt_replication", "on")]);
    cluster
        .login_of("rep")
        .login()
        .expect("the WAL sender does not count");
    drop(receiver);
}

/// The copy is a standby: it counts its own sessions, from the first login on.
fn a_base_backup_enforces(server: &Server) {
    let cluster = cluster(server, &[]);
    cluster.sql(&["CREATE ROLE alice LOGIN CONNECTION LIMIT 2"]);
    cluster.sql(&["CREATE EXTENSION IF NOT EXISTS session_limit"]);
    let standby = Cluster::standby_of(&cluster);
    let mut there = standby.superuser();
    assert_eq!(
        there.value("SELECT stats_lost FROM session_limit.status"),
        "f",
        "it had none"
    );
    there.end();
    let _here = [
        cluster.login_of("alice").login().expect("one"),
        cluster.login_of("alice").login().expect("two"),
    ];
    let _there = [
        standby.login_of("alice").login().expect("one"),
        standby.login_of("alice").login().expect("two"),
    ];
    assert_eq!(refused(&standby.login_of("alice")).sqlstate(), "53300");
    assert_eq!(
        standby
            .superuser()
            .value("SELECT count(*) FROM session_limit.sessions WHERE usename = 'alice'"),
        "2"
    );
}
