//! `cargo demo`: the main job, on a PostgreSQL of its own. `cargo demo -- --keep`: the same cluster
//! to play with. `cargo demo -- seats`: seats, through a PgBouncer. `cargo demo -- servers`: one limit for two servers.

mod seats;
mod servers;

use pg_test::client::Refusal;
use pg_test::cluster::Cluster;
use pg_test::server::{self, Server};
use pg_test::{say, wait_for};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio, exit};

const LOGINS: usize = 50;

const USAGE: &str = "usage:
  cargo demo              one session for each role
  cargo demo -- --keep    the same cluster to play with
  cargo demo -- seats     one login for each user of an application, through a PgBouncer in transaction mode
  cargo demo -- servers   one limit for a primary and its standby, counted in an etcd";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let server = || {
        say("getting PostgreSQL and the libraries ready: minutes, if they must be built");
        server::servers().remove(0)
    };
    match arguments.as_slice() {
        [] => show(&limited(&server())),
        ["--keep"] => stay(&limited(&server())),
        ["seats"] => seats::show(&server()),
        ["servers"] => servers::show(&server()),
        other => {
            eprintln!("{USAGE}\nnot {other:?}");
            exit(2);
        }
    }
}

/// A cluster with limits.
fn limited(server: &Server) -> Cluster {
    let limit = ("session_limit.max_sessions_per_role", "1");
    say(format_args!(
        "starting a cluster with {} = {}",
        limit.0, limit.1
    ));
    let cluster = Cluster::start(server, &[limit]);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
        "CREATE ROLE carol LOGIN CONNECTION LIMIT 3",
        "CREATE ROLE team",
        "CREATE ROLE dave LOGIN IN ROLE team",
        r#"SECURITY LABEL FOR session_limit ON ROLE dave IS '{"max": 10}'"#,
        r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"max": 2, "per": "group"}'"#,
    ]);
    cluster
}

fn show(cluster: &Cluster) {
    title("The first session of alice is let in, and stays open");
    let first = Psql::start(cluster, "alice");

    title("A second one is not");
    let refusal = psql(cluster, "alice", "SELECT 'never seen'");
    expect(refusal.contains(r#"FATAL:  too many connections for role "alice""#));

    title("It is, as soon as the first is closed");
    first.quit();
    expect(psql(cluster, "alice", "SELECT 'in again' AS alice").contains("in again"));

    title(&format!(
        "{LOGINS} logins of bob at the same moment: exactly 1 is let in"
    ));
    storm(cluster, "bob", 1);

    title(&format!(
        "{LOGINS} of carol, who has CONNECTION LIMIT 3: exactly 3 are let in"
    ));
    storm(cluster, "carol", 3);

    title(&format!(
        "{LOGINS} of dave, who may have 10, but whose team may have 2: exactly 2 are let in"
    ));
    storm(cluster, "dave", 2);
    let sql = "SELECT * FROM session_limit.explain_login('dave')";
    expect(psql(cluster, "postgres", sql).contains("label on role team"));

    title("A superuser gets in over the limit, too, and sees who is there");
    let _postgres = [
        Psql::start(cluster, "postgres"),
        Psql::start(cluster, "postgres"),
    ];
    let _alice = Psql::start(cluster, "alice");
    let _carol = [Psql::start(cluster, "carol"), Psql::start(cluster, "carol")];
    expect(
        psql(
            cluster,
            "postgres",
            "SELECT * FROM session_limit.sessions ORDER BY pid",
        )
        .contains("alice"),
    );
    expect(
        psql(
            cluster,
            "postgres",
            "SELECT * FROM session_limit.usage ORDER BY source",
        )
        .contains("CONNECTION LIMIT of role carol"),
    );

    println!("\nThe same cluster to play with: cargo demo -- --keep");
    println!("One login for each user of an application: cargo demo -- seats");
    println!("One limit for two servers: cargo demo -- servers");
}

fn stay(cluster: &Cluster) {
    println!(
        "\nRoles: alice and bob, under the setting's limit of 1; carol, with CONNECTION LIMIT 3; dave, whose team may have 2 sessions; postgres, a superuser."
    );
    println!("Log in from several terminals:\n");
    println!(
        "    {} -h {} -p {} -U alice postgres\n",
        cluster.server.bin.join("psql").display(),
        cluster.dir.display(),
        cluster.port
    );
    println!("Ctrl-C stops the server and removes it.");
    loop {
        std::thread::park();
    }
}

fn title(text: &str) {
    println!("\n--- {text}\n");
}

/// The demo is worth nothing if it does not show what it says.
fn expect(shown: bool) {
    if !shown {
        eprintln!("This is not what should have happened.");
        exit(1);
    }
}

/// Runs a query with psql and shows both.
fn psql(cluster: &Cluster, role: &str, sql: &str) -> String {
    println!("$ psql -U {role} -c \"{sql}\"");
    let printed = cluster.psql(role, sql);
    println!("{}", printed.trim_end());
    printed
}

fn storm(cluster: &Cluster, role: &str, expected: usize) {
    let outcomes = cluster.login_of(role).storm(LOGINS);
    let admitted = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    println!(
        "let in: {admitted}, refused: {}, for example:\n",
        LOGINS - admitted
    );
    if let Some(refusal) = outcomes.iter().find_map(|outcome| outcome.as_ref().err()) {
        print_error("FATAL", refusal);
    }
    expect(admitted == expected);
    drop(outcomes);
    cluster.wait_until_gone(role);
}

fn print_error(severity: &str, error: &Refusal) {
    println!(
        "SQLSTATE {}\n{severity}:  {}\nDETAIL:  {}\nHINT:  {}",
        error.sqlstate(),
        error.message(),
        error.detail(),
        error.hint()
    );
}

/// A psql that stays connected.
struct Psql(Child);

impl Psql {
    fn start(cluster: &Cluster, role: &str) -> Psql {
        let sql = "SELECT current_user AS user_name, pg_backend_pid() AS pid";
        println!("$ psql -U {role}\npostgres=> {sql};");
        let mut command = cluster.client("psql");
        command
            .env("PGUSER", role)
            .args(["-X", "-q"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("run psql");
        let input = child.stdin.as_mut().expect("psql's input");
        writeln!(input, "{sql};").expect("write to psql");
        let output = child.stdout.as_mut().expect("psql's output");
        let lines = BufReader::new(output).lines().map_while(Result::ok);
        let lines: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        println!("{}", lines.join("\n"));
        expect(lines.len() == 4);
        Psql(child)
    }

    fn quit(mut self) {
        println!("(the first psql ends)");
        drop(self.0.stdin.take());
        wait_for("psql to end", || self.0.try_wait().ok()?);
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
