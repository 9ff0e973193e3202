//! One limit for a primary and its standby, counted in an etcd.

use crate::{Psql, expect, psql, title};
use pg_test::cluster::{Cluster, Stop};
use pg_test::etcd::{Etcd, Security};
use pg_test::server::Server;
use pg_test::{say, wait_for};

pub fn show(server: &Server) {
    say("starting an etcd");
    let mut etcd = Etcd::try_start(1, Security::Open).unwrap_or_else(|why| panic!("{why}"));
    say("starting a primary and a standby");
    let endpoints = etcd.endpoints().join(",");
    let primary = Cluster::start(
        server,
        &[
            ("session_limit.etcd_endpoints", &endpoints),
            ("session_limit.server_name", "primary"),
        ],
    );
    primary.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
    ]);
    let mut standby = Cluster::standby_of(&primary);
    standby.append("postgresql.conf", "session_limit.server_name = 'standby'\n");
    standby.stop(Stop::Fast);
    standby.start_again();

    title("An administrator lets alice have one session, wherever she connects");
    let label =
        r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"max": 1, "across": "servers"}'"#;
    expect(!psql(&primary, "postgres", label).contains("ERROR"));
    let limits = "SELECT count(*) FROM session_limit.limits";
    wait_for("the label on the standby", || {
        (standby.psql("postgres", limits).contains(" 1")).then_some(())
    });

    title("On the primary she is let in, and stays");
    let first = Psql::start(&primary, "alice");

    title("On the standby she is refused");
    let refusal = psql(&standby, "alice", "SELECT 'never seen'");
    expect(refusal.contains(r#"FATAL:  too many connections for role "alice""#));
    expect(refusal.contains("1 is in use: 1 on server primary."));

    title("Everyone sees which servers count together");
    let servers = psql(
        &standby,
        "postgres",
        "SELECT name, this FROM session_limit.servers ORDER BY name",
    );
    expect(servers.contains("primary") && servers.contains("standby"));
    title("She leaves the primary, and the standby lets her in");
    first.quit();
    enters(&standby, "SELECT 'in' AS alice");

    title(
        "etcd is stopped: each server goes on by itself, and bob, who has no such limit, notices nothing",
    );
    etcd.kill(0);
    expect(psql(&primary, "bob", "SELECT 'in' AS bob").contains("in"));
    let first = Psql::start(&primary, "alice");
    wait_for("the standby to be alone", || {
        standby
            .log()
            .contains(r#""event":"unreachable""#)
            .then_some(())
    });
    expect(psql(&standby, "alice", "SELECT 'in' AS alice").contains("in"));
    first.quit();

    title("Where licences are counted, nobody is let in then");
    let refuse = "ALTER SYSTEM SET session_limit.on_unreachable = 'refuse'";
    expect(!psql(&standby, "postgres", refuse).contains("ERROR"));
    println!("$ psql -U postgres -c \"SELECT pg_reload_conf()\"");
    standby.reload();
    shown_when(&standby, "SELECT 'never seen'", |printed| {
        printed.contains("without etcd")
    });

    title("etcd is back, and so is alice");
    etcd.restart(&[0]);
    enters(&standby, "SELECT 'in again' AS alice");
}

/// alice is let in before long.
fn enters(cluster: &Cluster, sql: &str) {
    shown_when(cluster, sql, |printed| !printed.contains("FATAL"));
}

/// Runs a query of alice's until this is so of what psql prints, and shows both.
fn shown_when(cluster: &Cluster, sql: &str, is_so: impl Fn(&str) -> bool) {
    let printed = wait_for("what was said", || {
        let printed = cluster.psql("alice", sql);
        is_so(&printed).then_some(printed)
    });
    println!("$ psql -U alice -c \"{sql}\"\n{}", printed.trim_end());
}
