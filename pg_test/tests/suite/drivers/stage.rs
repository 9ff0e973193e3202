//! A server with one place, a driver that is told what to do there, and what it shows.

use super::Shows;
use pg_test::client::{Refusal, Session};
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use pg_test::{PATIENCE, wait_for};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write, pipe};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

/// A cluster with a role alice, who may have one session.
pub struct Stage {
    pub cluster: Cluster,
}

impl Stage {
    pub fn new(server: &Server) -> Stage {
        let settings = [
            ("session_limit.replace_min_age", "0"),
            ("log_connections", "on"),
        ];
        let cluster = Cluster::start(server, &settings);
        cluster.sql(&["CREATE EXTENSION session_limit", "CREATE ROLE alice LOGIN"]);
        Stage { cluster }
    }

    pub fn check(&self, mut driver: Driver, shows: &Shows) {
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
        assert!(waited.contains("The login waited "), "{waited}");
    }

    pub fn refused(&self, driver: &mut Driver) -> Outcome {
        let _holder = self.holder(r#"{"max": 1, "max_wait": 0}"#);
        self.outcome(driver, "login", |_| ())
    }

    pub fn let_in(&self, driver: &mut Driver) -> Outcome {
        let holder = self.holder(r#"{"max": 1, "max_wait": "5min"}"#);
        self.outcome(driver, "login", |_| {
            self.wait_until("SELECT coalesce(sum(waiting), 0) = 1 FROM session_limit.usage WHERE per = 'role' AND subject = 'alice'");
            holder.close();
        })
    }

    pub fn refused_late(&self, driver: &mut Driver) -> Outcome {
        let _holder = self.holder(r#"{"max": 1, "max_wait": "300ms"}"#);
        self.outcome(driver, "login", |_| ())
    }

    pub fn replaced_idle(&self, driver: &mut Driver) -> Outcome {
        self.outcome(driver, "idle", |driver| {
            assert_eq!(driver.line().as_deref(), Some("in"));
            let newer = self.replace();
            driver.say("go on");
            newer
        })
    }

    pub fn replaced_busy(&self, driver: &mut Driver) -> Outcome {
        self.outcome(driver, "busy", |_| {
            self.wait_until("SELECT count(*) = 1 FROM pg_stat_activity WHERE usename = 'alice' AND state = 'active' AND wait_event = 'PgSleep'");
            self.replace()
        })
    }

    /// Lets a driver do something, and something happen meanwhile.
    pub fn outcome<T>(
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
        // It is another each time.
        let line = line.replace(&self.cluster.port.to_string(), "PORT");
        let errors = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        drop(kept);
        Outcome {
            logins: self.logins() - before,
            errors,
        }
    }

    /// A session of alice's under this label, when all others are gone.
    pub fn holder(&self, label: &str) -> Session {
        self.wait_until("SELECT count(*) = 0 FROM session_limit.sessions WHERE usename = 'alice'");
        self.cluster.sql(&[&set_label(label)]);
        let holder = self.cluster.login_of("alice").login();
        holder.unwrap_or_else(|refusal: Refusal| panic!("{refusal:?}"))
    }

    /// A newer session of alice's, from another address, in the place of the one that is there.
    pub fn replace(&self) -> Session {
        let label = r#"{"max": 1, "max_wait": 0, "on_excess": "replace_oldest"}"#;
        self.cluster.sql(&[&set_label(label)]);
        let newer = self.cluster.login_from("alice", "127.0.0.2").login();
        newer.unwrap_or_else(|refusal| panic!("{refusal:?}"))
    }

    pub fn wait_until(&self, sql: &str) {
        let mut superuser = self.cluster.superuser();
        wait_for(sql, || (superuser.value(sql) == "t").then_some(()));
        superuser.end();
    }

    /// How often the driver has connected: nobody else comes from its address.
    pub fn logins(&self) -> usize {
        let log = self.cluster.log();
        log.matches("connection received: host=127.0.0.1 ").count()
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(self.cluster.dir.join("driver")).unwrap_or_default()
    }
}

fn set_label(json: &str) -> String {
    format!("SECURITY LABEL FOR session_limit ON ROLE alice IS '{json}'")
}

/// A program that is told on a line what to do, and answers with one; see pg_test/tests/drivers.
pub struct Driver {
    input: Option<Box<dyn Write>>,
    lines: Receiver<String>,
    pub child: Option<Child>,
}

impl Driver {
    /// To this port, or ports and hosts, as the script takes them.
    pub fn process(mut script: Command, stage: &Stage, port: impl ToString) -> Driver {
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
    pub fn thread(port: u16, run: fn(u16, PipeReader, PipeWriter)) -> Driver {
        let (its_input, input) = pipe().expect("a pipe");
        let (output, its_output) = pipe().expect("a pipe");
        thread::spawn(move || run(port, its_input, its_output));
        Driver {
            input: Some(Box::new(input)),
            lines: lines(BufReader::new(output)),
            child: None,
        }
    }

    pub fn say(&mut self, line: &str) {
        let input = self.input.as_mut().expect("its input");
        writeln!(input, "{line}").expect("tell the driver");
    }

    /// None: it has ended.
    pub fn line(&self) -> Option<String> {
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

pub struct Outcome {
    pub logins: usize,
    pub errors: Vec<Error>,
}

impl Outcome {
    /// The errors, and how often the driver has logged in, if not once.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.errors.iter().map(Error::line).collect();
        if self.logins != 1 {
            lines.push(format!("{} logins", self.logins));
        }
        lines
    }

    pub fn text(&self) -> String {
        let texts = self.errors.iter().map(|error| {
            let detail = error.detail.as_deref();
            format!("{} {}\n", error.message, detail.unwrap_or_default())
        });
        texts.collect()
    }
}

/// An error as a driver shows it.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Error {
    /// login, query, event: by what it came.
    pub at: String,
    pub class: String,
    pub sqlstate: Option<String>,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl Error {
    /// In one line: `at CLASS SQLSTATE: first line of the message`, with short names for the server's messages, and
    /// whether the program gets DETAIL and HINT as fields, or only can read them in the message.
    pub fn line(&self) -> String {
        let message = self.message.lines().next().unwrap_or_default();
        let message = message
            .replace(r#"too many connections for role "alice""#, "FULL")
            .replace(
                "terminating connection due to administrator command",
                "ENDED",
            );
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
