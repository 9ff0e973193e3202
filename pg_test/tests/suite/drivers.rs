//! What programs see of a refused and of a replaced session through their drivers, and that no driver logs in again
//! behind a program's back. docs/clients.md has it in words. A driver that cannot be had here is skipped.

use pg_test::pooler::{self, Pooler};
use pg_test::server::Server;
use pg_test::{packages, place, say, try_run};
use stage::{Driver, Error, Stage};
use std::path::{Path, PathBuf};
use std::process::Command;

mod stage;
#[path = "../drivers/with_tokio_postgres.rs"]
mod with_tokio_postgres;

tests![
    psycopg2,
    psycopg_3,
    pgbouncer,
    asyncpg,
    node_postgres,
    node_postgres_without_a_listener,
    postgres_js,
    pgjdbc,
    pgjdbc_goes_on_to_a_server_that_reaches_etcd,
    tokio_postgres,
];

/// What a driver shows of each state: the errors, as [`Error::line`] has them, and more logins than one.
struct Shows {
    refused: &'static [&'static str],
    /// Of a session that was replaced while it was idle, from then to the end of its next queries.
    idle: &'static [&'static str],
    /// Of one that was replaced in its query.
    busy: &'static [&'static str],
}

fn psycopg2(server: &Server) {
    let script = || {
        let folder = packages::psycopg2()?;
        let arguments = ["psycopg2", "127.0.0.1"];
        Ok(python("with_psycopg.py", &[&folder], &arguments))
    };
    let shows = Shows {
        refused: &[
            "login OperationalError -: connection to server at \"127.0.0.1\", port PORT failed: FATAL:  FULL, DETAIL in the message, HINT in the message",
        ],
        idle: &["query OperationalError -: server closed the connection unexpectedly"],
        busy: &["query OperationalError -: server closed the connection unexpectedly"],
    };
    check(server, script, &shows);
}

fn psycopg_3(server: &Server) {
    let shows = Shows {
        refused: &[
            "login OperationalError -: connection failed: connection to server at \"127.0.0.1\", port PORT failed: FATAL:  FULL, DETAIL in the message, HINT in the message",
        ],
        idle: &["query AdminShutdown 57P01: ENDED, DETAIL"],
        busy: &["query AdminShutdown 57P01: ENDED, DETAIL"],
    };
    let script = || {
        let mut script = psycopg()?;
        script.arg("127.0.0.1");
        Ok(script)
    };
    check(server, script, &shows);
}

/// psycopg 3 through PgBouncer. A client that has a server session sees what becomes of it; another does not. A refusal
/// is PgBouncer's: the server's message, and nothing else of the server's.
fn pgbouncer(server: &Server) {
    const REPLACED: &str = "query AdminShutdown 57P01: ENDED, DETAIL";
    for (mode, idle) in [("session", &[REPLACED][..]), ("transaction", &[])] {
        let script = || {
            packages::pgbouncer()?;
            psycopg()
        };
        let Some(mut script) = available(script) else {
            return;
        };
        let version = pooler::version();
        if version != "PgBouncer 1.18.0" {
            return skip(&format!("this system has {version}"));
        }
        let stage = Stage::new(server);
        let pooler = || Pooler::start(&stage.cluster, "alice", mode, 1);

        // In a pool that has had a server session, who is refused one waits for the next.
        let fresh = pooler();
        let holder = stage.holder(r#"{"max": 1, "max_wait": 0}"#);
        let refusal = fresh.target.login().err().expect("a refusal");
        let shown = (refusal.sqlstate(), refusal.message(), refusal.detail());
        assert_eq!(
            shown,
            ("08P01", r#"too many connections for role "alice""#, "")
        );
        drop((holder, fresh));

        let pooler = pooler();
        script.arg(&stage.cluster.dir);
        let mut driver = Driver::process(script, &stage, pooler.port);
        let shown = [
            stage.replaced_idle(&mut driver),
            stage.replaced_busy(&mut driver),
        ];
        let shown = shown.map(|outcome| outcome.errors.iter().map(Error::line).collect::<Vec<_>>());
        assert_eq!(shown, [idle, &[REPLACED]], "{mode}");
    }
}

fn asyncpg(server: &Server) {
    let script = || {
        let folder = packages::try_wheel("asyncpg-0.32.0", "asyncpg==0.32.0", &[])?;
        Ok(python("with_asyncpg.py", &[&folder], &[]))
    };
    let shows = Shows {
        refused: &["login TooManyConnectionsError 53300: FULL, DETAIL, HINT"],
        idle: &["query InterfaceError -: connection is closed"],
        busy: &[
            "query ConnectionDoesNotExistError 08003: connection was closed in the middle of operation: ENDED",
            "its cause AdminShutdownError 57P01: ENDED, DETAIL",
        ],
    };
    check(server, script, &shows);
}

fn node_postgres(server: &Server) {
    let shows = Shows {
        refused: &["login DatabaseError 53300: FULL, DETAIL, HINT"],
        idle: &[
            "event DatabaseError 57P01: ENDED, DETAIL",
            "event Error -: Connection terminated unexpectedly",
            "query Error -: Client has encountered a connection error and is not queryable",
        ],
        busy: &[
            "query DatabaseError 57P01: ENDED, DETAIL",
            "event Error -: Connection terminated unexpectedly",
        ],
    };
    check(server, || node("with_pg.mjs"), &shows);
}

/// An `error` event that nobody listens to ends a program of Node.js.
fn node_postgres_without_a_listener(server: &Server) {
    let script = || {
        let mut node = node("with_pg.mjs")?;
        node.env("LISTENER", "none");
        Ok(node)
    };
    let Some((stage, mut driver)) = stage(server, script) else {
        return;
    };
    driver.say("idle");
    assert_eq!(driver.line().as_deref(), Some("in"));
    let _newer = stage.replace();
    assert_eq!(driver.line(), None, "the program goes on");
    let status = driver.child.as_mut().map(|child| child.wait());
    let status = status.expect("a process").expect("its end");
    assert_eq!(status.code(), Some(1));
    let printed = stage.stderr();
    assert!(printed.contains("Unhandled 'error' event"), "{printed}");
    assert!(printed.contains("code: '57P01'"), "{printed}");
}

fn postgres_js(server: &Server) {
    let shows = Shows {
        refused: &["login PostgresError 53300: FULL, DETAIL, HINT"],
        idle: &["2 logins"],
        busy: &[
            "query Error CONNECTION_CLOSED: write CONNECTION_CLOSED 127.0.0.1:PORT",
            "next query PostgresError 57P01: ENDED, DETAIL",
            "2 logins",
        ],
    };
    check(server, || node("with_postgres_js.mjs"), &shows);
}

fn pgjdbc(server: &Server) {
    let shows = Shows {
        refused: &["login PSQLException 53300: FATAL: FULL, DETAIL, HINT"],
        idle: &["query PSQLException 57P01: FATAL: ENDED, DETAIL"],
        busy: &["query PSQLException 57P01: FATAL: ENDED, DETAIL"],
    };
    check(server, java, &shows);
}

fn pgjdbc_goes_on_to_a_server_that_reaches_etcd(server: &Server) {
    let Some(script) = available(java) else {
        return;
    };
    let servers = crate::servers_faults::cut_off_and_in_touch(server);
    let Some((_etcd, cluster, in_touch)) = servers else {
        return;
    };
    let stage = Stage { cluster };
    let hosts = format!("{},127.0.0.1:{}", stage.cluster.port, in_touch.port);
    let mut driver = Driver::process(script, &stage, hosts);
    driver.say("login");
    // Nothing has failed.
    assert_eq!(driver.line().as_deref(), Some("[]"), "{}", stage.stderr());
}

fn tokio_postgres(server: &Server) {
    let shows = Shows {
        refused: &["login Error with a DbError 53300: db error: FATAL: FULL, DETAIL, HINT"],
        idle: &[
            "connection Error with a DbError 57P01: db error: FATAL: ENDED, DETAIL",
            "query Error -: connection closed",
        ],
        busy: &[
            "connection Error -: connection closed",
            "query Error with a DbError 57P01: db error: FATAL: ENDED, DETAIL",
        ],
    };
    let stage = Stage::new(server);
    let driver = Driver::thread(stage.cluster.port, with_tokio_postgres::run);
    stage.check(driver, &shows);
}

fn scripts() -> PathBuf {
    place::checkout().join("pg_test/tests/drivers")
}

fn python(script: &str, folders: &[&Path], arguments: &[&str]) -> Command {
    let mut python = Command::new("python3");
    let path = std::env::join_paths(folders).expect("folders of packages");
    python.env("PYTHONPATH", path);
    python.arg(scripts().join(script)).args(arguments);
    python
}

fn java() -> Result<Command, String> {
    // A program in one file is compiled as it starts.
    let modules = try_run(Command::new("java").arg("--list-modules"));
    if !modules.is_ok_and(|modules| modules.contains("jdk.compiler")) {
        return Err("no java with its compiler".to_string());
    }
    let mut java = Command::new("java");
    java.arg("-cp")
        .arg(packages::pgjdbc()?)
        .arg(scripts().join("WithPgjdbc.java"));
    Ok(java)
}

/// psycopg 3, told where to log in by what is appended.
fn psycopg() -> Result<Command, String> {
    let folders = [
        packages::try_wheel("psycopg-3.3.9", "psycopg==3.3.9", &[])?,
        packages::try_wheel("psycopg-binary-3.3.9", "psycopg-binary==3.3.9", &[])?,
        packages::try_wheel("typing-extensions-4.16.0", "typing_extensions==4.16.0", &[])?,
    ];
    let folders = folders.each_ref().map(|folder| folder.as_path());
    Ok(python("with_psycopg.py", &folders, &["psycopg"]))
}

fn node(script: &str) -> Result<Command, String> {
    let wanted = ["pg@8.23.1", "pg-protocol@1.16.1", "postgres@3.4.9"];
    let modules = packages::node_modules("node-pg-8.23.1-postgres-3.4.9", &wanted)?;
    // Older ones do not know all of the language that the drivers are written in.
    let old = "if (parseInt(process.versions.node) < 18) throw process.version";
    try_run(Command::new("node").args(["-e", old]))
        .map_err(|why| format!("{why}\nno Node.js of 18 or later"))?;
    let mut node = Command::new("node");
    node.env("NODE_MODULES", modules.join("node_modules/"));
    node.arg(scripts().join(script));
    Ok(node)
}

fn check(server: &Server, script: impl FnOnce() -> Result<Command, String>, shows: &Shows) {
    if let Some((stage, driver)) = stage(server, script) {
        stage.check(driver, shows);
    }
}

/// A stage and the driver on it, or a line that says why there is none.
fn stage(
    server: &Server,
    script: impl FnOnce() -> Result<Command, String>,
) -> Option<(Stage, Driver)> {
    let script = available(script)?;
    let stage = Stage::new(server);
    let driver = Driver::process(script, &stage, stage.cluster.port);
    Some((stage, driver))
}

/// A driver's command, or another program, or a line that says why there is none.
pub fn available<T>(program: impl FnOnce() -> Result<T, String>) -> Option<T> {
    let _lock = packages::lock();
    program().map_err(|why| skip(&why)).ok()
}

fn skip(why: &str) {
    say(format_args!(
        "skipped: {}",
        why.lines().last().unwrap_or(why)
    ));
}
