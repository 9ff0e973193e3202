//! What programs see of a refused and of a replaced session through their drivers, and that no driver logs in again
//! behind a program's back. docs/clients.md has it in words. A driver that cannot be had here is skipped.

use pg_test::client::{Refusal, Session};
use pg_test::cluster::Cluster;
use pg_test::pooler::{self, Pooler};
use pg_test::server::Server;
use pg_test::{PATIENCE, packages, place, say, try_run, wait_for};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write, pipe};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

tests![
    psycopg2,
    psycopg_3,
    pgbouncer,
    asyncpg,
    node_postgres,
    node_postgres_without_a_listener,
    postgres_js,
    pgjdbc,
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
            "login OperationalError -: connection to server at \"127.0.0.1\", port PORT failed: FATAL:  too many connections for role \"alice\", DETAIL in the message, HINT in the message",
        ],
        idle: &["query OperationalError -: server closed the connection unexpectedly"],
        busy: &["query OperationalError -: server closed the connection unexpectedly"],
    };
    check(server, script, &shows);
}

fn psycopg_3(server: &Server) {
    let shows = Shows {
        refused: &[
            "login OperationalError -: connection failed: connection to server at \"127.0.0.1\", port PORT failed: FATAL:  too many connections for role \"alice\", DETAIL in the message, HINT in the message",
        ],
        idle: &[
            "query AdminShutdown 57P01: terminating connection due to administrator command, DETAIL",
        ],
        busy: &[
            "query AdminShutdown 57P01: terminating connection due to administrator command, DETAIL",
        ],
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
    const REPLACED: &str =
        "query AdminShutdown 57P01: terminating connection due to administrator command, DETAIL";
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
        let fresh = pooler();
        script.arg(&stage.cluster.dir);
        let mut driver = Driver::process(script, &stage, fresh.port);
        // In a pool that has had a server session, who is refused one waits for the next.
        let refused = stage.refused(&mut driver);
        drop(fresh);
        let _pooler = pooler();
        let shown = [
            refused,
            stage.replaced_idle(&mut driver),
            stage.replaced_busy(&mut driver),
        ];
        let shown = shown.map(|outcome| outcome.errors.iter().map(Error::line).collect::<Vec<_>>());
        let refused = "login OperationalError -: connection failed: connection to server on socket \"DIR/.s.PGSQL.PORT\" failed: FATAL:  too many connections for role \"alice\"";
        assert_eq!(shown, [&[refused], idle, &[REPLACED]], "{mode}");
    }
}

fn asyncpg(server: &Server) {
    let script = || {
        let folder = packages::try_wheel("asyncpg-0.32.0", "asyncpg==0.32.0", &[])?;
        Ok(python("with_asyncpg.py", &[&folder], &[]))
    };
    let shows = Shows {
        refused: &[
            "login TooManyConnectionsError 53300: too many connections for role \"alice\", DETAIL, HINT",
        ],
        idle: &["query InterfaceError -: connection is closed"],
        busy: &[
            "query ConnectionDoesNotExistError 08003: connection was closed in the middle of operation: terminating connection due to administrator command",
            "its cause AdminShutdownError 57P01: terminating connection due to administrator command, DETAIL",
        ],
    };
    check(server, script, &shows);
}

fn node_postgres(server: &Server) {
    let shows = Shows {
        refused: &[
            "login DatabaseError 53300: too many connections for role \"alice\", DETAIL, HINT",
        ],
        idle: &[
            "event DatabaseError 57P01: terminating connection due to administrator command, DETAIL",
            "event Error -: Connection terminated unexpectedly",
            "query Error -: Client has encountered a connection error and is not queryable",
        ],
        busy: &[
            "query DatabaseError 57P01: terminating connection due to administrator command, DETAIL",
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
        refused: &[
            "login PostgresError 53300: too many connections for role \"alice\", DETAIL, HINT",
        ],
        idle: &["2 logins"],
        busy: &[
            "query Error CONNECTION_CLOSED: write CONNECTION_CLOSED 127.0.0.1:PORT",
            "next query PostgresError 57P01: terminating connection due to administrator command, DETAIL",
            "2 logins",
        ],
    };
    check(server, || node("with_postgres_js.mjs"), &shows);
}

fn pgjdbc(server: &Server) {
    let script = || {
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
    };
    let shows = Shows {
        refused: &[
            "login PSQLException 53300: FATAL: too many connections for role \"alice\", DETAIL, HINT",
        ],
        idle: &[
            "query PSQLException 57P01: FATAL: terminating connection due to administrator command, DETAIL",
        ],
        busy: &[
            "query PSQLException 57P01: FATAL: terminating connection due to administrator command, DETAIL",
        ],
    };
    check(server, script, &shows);
}

fn tokio_postgres(server: &Server) {
    let shows = Shows {
        refused: &[
            "login Error with a DbError 53300: db error: FATAL: too many connections for role \"alice\", DETAIL, HINT",
        ],
        idle: &[
            "connection Error with a DbError 57P01: db error: FATAL: terminating connection due to administrator command, DETAIL",
            "query Error -: connection closed",
        ],
        busy: &[
            "connection Error -: connection closed",
            "query Error with a DbError 57P01: db error: FATAL: terminating connection due to administrator command, DETAIL",
        ],
    };
    let stage = Stage::new(server);
    let driver = Driver::thread(stage.cluster.port, rust::run);
    stage.check(driver, &shows);
}

fn scripts() -> std::path::PathBuf {
    place::checkout().join("pg_test/tests/drivers")
}

fn python(script: &str, folders: &[&Path], arguments: &[&str]) -> Command {
    let mut python = Command::new("python3");
    let path = std::env::join_paths(folders).expect("folders of packages");
    python.env("PYTHONPATH", path);
    python.arg(scripts().join(script)).args(arguments);
    python
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

/// A driver's command, or a line that says why there is none.
fn available(script: impl FnOnce() -> Result<Command, String>) -> Option<Command> {
    let _lock = packages::lock();
    script().map_err(|why| skip(&why)).ok()
}

fn skip(why: &str) {
    say(format_args!(
        "skipped: {}",
        why.lines().last().unwrap_or(why)
    ));
}

/// A cluster with a role alice, who may have one session.
struct Stage {
    cluster: Cluster,
}

impl Stage {
    fn new(server: &Server) -> Stage {
        let settings = [
            ("session_limit.replace_min_age", "0"),
            ("log_connections", "on"),
        ];
        let cluster = Cluster::start(server, &settings);
        cluster.sql(&["CREATE EXTENSION session_limit", "CREATE ROLE alice LOGIN"]);
        Stage { cluster }
    }

    fn check(&self, mut driver: Driver, shows: &Shows) {
        let driver = &mut driver;
        let refused = self.refused(driver);
        let let_in = self.let_in(driver);
        let late = self.refused_late(driver);
        let idle = self.replaced_idle(driver);
        let busy = self.replaced_busy(driver);
        let expected = [
            ("refused", &refused, shows.refused),
            ("refused after it has waited", &late, shows.refused),
            ("let in after it has waited", &let_in, &[]),
            ("replaced while idle", &idle, shows.idle),
            ("replaced while busy", &busy, shows.busy),
        ];
        let differs = expected
            .iter()
            .filter(|(_, shown, lines)| shown.lines() != *lines);
        let differs = differs.map(|(state, shown, _)| (state, shown.lines()));
        let differs: Vec<_> = differs.collect();
        assert!(differs.is_empty(), "not what is expected: {differs:#?}");
        let waited = late.text();
        assert!(waited.contains("The login waited 3"), "{waited}");
    }

    fn refused(&self, driver: &mut Driver) -> Outcome {
        let _holder = self.holder(r#"{"max": 1, "max_wait": 0}"#);
        self.outcome(driver, "login", |_| ())
    }

    fn let_in(&self, driver: &mut Driver) -> Outcome {
        let holder = self.holder(r#"{"max": 1, "max_wait": "5min"}"#);
        self.outcome(driver, "login", |_| {
            self.wait_until("SELECT coalesce(sum(waiting), 0) = 1 FROM session_limit.usage WHERE per = 'role' AND subject = 'alice'");
            holder.close();
        })
    }

    fn refused_late(&self, driver: &mut Driver) -> Outcome {
        let _holder = self.holder(r#"{"max": 1, "max_wait": "300ms"}"#);
        self.outcome(driver, "login", |_| ())
    }

    fn replaced_idle(&self, driver: &mut Driver) -> Outcome {
        self.outcome(driver, "idle", |driver| {
            assert_eq!(driver.line().as_deref(), Some("in"));
            let newer = self.replace();
            driver.say("go on");
            newer
        })
    }

    fn replaced_busy(&self, driver: &mut Driver) -> Outcome {
        self.outcome(driver, "busy", |_| {
            self.wait_until("SELECT count(*) = 1 FROM pg_stat_activity WHERE usename = 'alice' AND state = 'active' AND wait_event = 'PgSleep'");
            self.replace()
        })
    }

    /// Lets a driver do something, and something happen meanwhile.
    fn outcome<T>(
        &self,
        driver: &mut Driver,
        what: &str,
        meanwhile: impl FnOnce(&mut Driver) -> T,
    ) -> Outcome {
        let before = self.logins();
        driver.say(what);
        let kept = meanwhile(driver);
        let line = driver.line();
        let line =
            line.unwrap_or_else(|| panic!("{what}: the driver has ended:\n{}", self.stderr()));
        // What is another each time.
        let line = [self.cluster.port, self.cluster.port ^ 1]
            .iter()
            .fold(line, |line, port| line.replace(&port.to_string(), "PORT"))
            .replace(&self.cluster.dir.display().to_string(), "DIR");
        let errors = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        drop(kept);
        Outcome {
            logins: self.logins() - before,
            errors,
        }
    }

    /// A session of alice's under this label, when all others are gone.
    fn holder(&self, label: &str) -> Session {
        self.wait_until("SELECT count(*) = 0 FROM session_limit.sessions WHERE usename = 'alice'");
        self.cluster.sql(&[&set_label(label)]);
        let holder = self.cluster.login_of("alice").login();
        holder.unwrap_or_else(|refusal: Refusal| panic!("{refusal:?}"))
    }

    /// A newer session of alice's, from another address, in the place of the one that is there.
    fn replace(&self) -> Session {
        let label = r#"{"max": 1, "max_wait": 0, "on_excess": "replace_oldest"}"#;
        self.cluster.sql(&[&set_label(label)]);
        let newer = self.cluster.login_from("alice", "127.0.0.2").login();
        newer.unwrap_or_else(|refusal| panic!("{refusal:?}"))
    }

    fn wait_until(&self, sql: &str) {
        let mut superuser = self.cluster.superuser();
        wait_for(sql, || (superuser.value(sql) == "t").then_some(()));
        superuser.end();
    }

    /// How often the driver has connected: nobody else comes from its address.
    fn logins(&self) -> usize {
        let log = self.cluster.log();
        log.matches("connection received: host=127.0.0.1 ").count()
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.cluster.dir.join("driver")).unwrap_or_default()
    }
}

fn set_label(json: &str) -> String {
    format!("SECURITY LABEL FOR session_limit ON ROLE alice IS '{json}'")
}

/// A program that is told on a line what to do, and answers with one; see pg_test/tests/drivers.
struct Driver {
    input: Option<Box<dyn Write>>,
    lines: Receiver<String>,
    child: Option<Child>,
}

impl Driver {
    fn process(mut script: Command, stage: &Stage, port: u16) -> Driver {
        let errors = File::create(stage.cluster.dir.join("driver")).expect("a file for errors");
        script.arg(port.to_string());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                script.env_remove(name);
            }
        }
        script
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors);
        let mut child = script.spawn().expect("run a driver");
        let input = child.stdin.take().expect("its input");
        let output = child.stdout.take().expect("its output");
        Driver {
            input: Some(Box::new(input)),
            lines: lines(BufReader::new(output)),
            child: Some(child),
        }
    }

    /// One that is in this process.
    fn thread(port: u16, run: fn(u16, PipeReader, PipeWriter)) -> Driver {
        let (its_input, input) = pipe().expect("a pipe");
        let (output, its_output) = pipe().expect("a pipe");
        thread::spawn(move || run(port, its_input, its_output));
        Driver {
            input: Some(Box::new(input)),
            lines: lines(BufReader::new(output)),
            child: None,
        }
    }

    fn say(&mut self, line: &str) {
        let input = self.input.as_mut().expect("its input");
        writeln!(input, "{line}").expect("tell the driver");
    }

    /// None: it has ended.
    fn line(&self) -> Option<String> {
        use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
        // A busy machine takes long to start Java and to compile.
        match self.lines.recv_timeout(4 * PATIENCE) {
            Ok(line) => Some(line),
            Err(Disconnected) => None,
            Err(Timeout) => panic!("the driver does not answer"),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.input = None;
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn lines(output: impl BufRead + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    lines
}

struct Outcome {
    logins: usize,
    errors: Vec<Error>,
}

impl Outcome {
    /// The errors, and how often the driver has logged in, if not once.
    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.errors.iter().map(Error::line).collect();
        if self.logins != 1 {
            lines.push(format!("{} logins", self.logins));
        }
        lines
    }

    fn text(&self) -> String {
        let texts = self.errors.iter().map(|error| {
            let detail = error.detail.as_deref();
            format!("{} {}\n", error.message, detail.unwrap_or_default())
        });
        texts.collect()
    }
}

/// An error as a driver shows it.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Error {
    /// login, query, event: by what it came.
    at: String,
    class: String,
    sqlstate: Option<String>,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

impl Error {
    /// In one line: `at CLASS SQLSTATE: first line of the message`, and whether the program gets DETAIL and HINT as
    /// fields, or only can read them in the message.
    fn line(&self) -> String {
        let message = self.message.lines().next().unwrap_or_default();
        let mut line = format!(
            "{} {} {}: {message}",
            self.at,
            self.class,
            self.sqlstate.as_deref().unwrap_or("-"),
        );
        let parts = [
            (
                "DETAIL",
                &self.detail,
                [
                    "The limit is 1 session (label on role alice); 1 is in use: pid ",
                    "This session was replaced by a newer session of role \"alice\" from 127.0.0.2.",
                ],
            ),
            ("HINT", &self.hint, ["Close one of these sessions", "-"]),
        ];
        for (name, field, starts) in parts {
            let ours = |text: &str| starts.iter().any(|start| text.contains(start));
            if field.as_deref().is_some_and(ours) {
                line += &format!(", {name}");
            } else if ours(&self.message) {
                line += &format!(", {name} in the message");
            }
        }
        line
    }
}

/// tokio-postgres as a client, in this process: like the programs in pg_test/tests/drivers.
mod rust {
    use super::Error;
    use std::error::Error as _;
    use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};
    use std::time::Duration;
    use tokio_postgres::NoTls;

    pub fn run(port: u16, input: PipeReader, mut output: PipeWriter) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        let mut lines = BufReader::new(input).lines().map_while(Result::ok);
        while let Some(what) = lines.next() {
            let mut wait = || {
                writeln!(output, "in").expect("answer");
                lines.next();
            };
            let shown = runtime.block_on(shown(port, &what, &mut wait));
            let line = serde_json::to_string(&shown).expect("JSON");
            writeln!(output, "{line}").expect("answer");
        }
    }

    async fn shown(port: u16, what: &str, wait: &mut impl FnMut()) -> Vec<Error> {
        let target = format!("host=127.0.0.1 port={port} user=alice dbname=postgres");
        let (client, connection) = match tokio_postgres::connect(&target, NoTls).await {
            Ok(session) => session,
            Err(error) => return vec![seen("login", &error)],
        };
        let connection = tokio::spawn(connection);
        let query = match what {
            "idle" => {
                client.batch_execute("SELECT 1").await.expect("a session");
                wait();
                while !client.is_closed() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                "SELECT 2"
            }
            "busy" => "SELECT pg_sleep(60)",
            _ => "SELECT 1",
        };
        let outcome = client.batch_execute(query).await;
        drop(client);
        let ended = connection.await.expect("the connection's task");
        let ended = ended.err().map(|error| seen("connection", &error));
        let failed = outcome.err().map(|error| seen("query", &error));
        ended.into_iter().chain(failed).collect()
    }

    fn seen(at: &str, error: &tokio_postgres::Error) -> Error {
        let server = error.as_db_error();
        Error {
            at: at.to_string(),
            class: if server.is_some() {
                "Error with a DbError"
            } else {
                "Error"
            }
            .to_string(),
            sqlstate: error.code().map(|code| code.code().to_string()),
            message: match error.source() {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            },
            detail: server.and_then(|it| it.detail()).map(String::from),
            hint: server.and_then(|it| it.hint()).map(String::from),
        }
    }
}
