//! PostgreSQL's own regression tests, on a server without the library and on one with it and limits.
//!
//! The tests are not ours to keep. A server's installation may have them; else they come in PostgreSQL's
//! source from Debian's archive, of another minor perhaps, so that a server fails some of them alone.
//! `pg_regress` and `isolationtester` are the server's own.

use crate::cluster::Cluster;
use crate::packages::{self, fresh};
use crate::server::Server;
use crate::{place, run, say, wait_for};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One of PostgreSQL's two suites that need only a running server.
pub struct Suite {
    /// Of its folder, among the tests as among the programs.
    pub name: &'static str,
    program: &'static str,
    /// The other program that this one runs.
    tester: &'static str,
    schedule: &'static str,
    /// Some of the tests know its name.
    database: &'static str,
}

pub const REGRESS: Suite = Suite {
    name: "regress",
    program: "pg_regress",
    tester: "pg_regress",
    schedule: "parallel_schedule",
    database: "regression",
};

pub const ISOLATION: Suite = Suite {
    name: "isolation",
    program: "pg_isolation_regress",
    tester: "isolationtester",
    schedule: "isolation_schedule",
    database: "isolation_regression",
};

/// Tests that are about a server without any library like this one, and why.
const OTHERWISE: [(&str, &str); 1] = [(
    "security_label",
    "it expects that no security label provider is loaded",
)];

/// The tests for one server.
pub struct Tests {
    /// Holds all that is made here.
    work: PathBuf,
    /// Where they are from.
    pub origin: String,
}

/// The tests of a run, and whether each passed.
pub type Verdicts = BTreeMap<String, bool>;

/// What came out without the library and with it.
pub struct Compared {
    /// Those in which the server without the library crashes, because it lacks the fix that one tests, and those that ended at
    /// the same moment. They are not counted.
    crashing: BTreeSet<String>,
    pub alone: Verdicts,
    pub preloaded: Verdicts,
    /// Those that printed the same in both, as they should or not.
    pub alike: BTreeSet<String>,
    /// What those that failed with the library printed, and should have.
    pub diffs: PathBuf,
    pub logins: Logins,
}

/// What the library made of the tests' logins.
pub struct Logins {
    pub admitted: usize,
    pub refused: usize,
    /// So many sessions at once.
    pub peak: usize,
}

impl Tests {
    /// Where a server's installation has them: beside its programs, or where a package of tests puts them.
    pub fn shipped(server: &Server) -> Option<PathBuf> {
        let of_package = PathBuf::from(server.config("--pkglibdir")).join("test");
        let places = [programs(server), of_package];
        places.into_iter().find(|dir| has_tests(dir))
    }

    /// Those of a folder, else of the server's installation, else of Debian's archive; copied to `work`.
    pub fn get(server: &Server, chosen: Option<&Path>, work: &Path) -> Option<Tests> {
        let (found, origin) = match (chosen, Tests::shipped(server)) {
            (Some(dir), _) => {
                let places = [dir.to_path_buf(), dir.join("src/test")];
                let found = places.into_iter().find(|dir| has_tests(dir));
                let found = found.unwrap_or_else(|| {
                    panic!("no regress/parallel_schedule below {}", dir.display())
                });
                let origin = format!("the tests of {}", found.display());
                (found, origin)
            }
            (None, Some(found)) => (found, "its installation's own tests".to_string()),
            (None, None) => {
                let (found, source) = packages::regression_tests(server.major)?;
                (found, format!("the tests of Debian's {source}"))
            }
        };
        let work = fresh(work);
        for from in ["regress", "isolation", "spi", "../../contrib/spi"] {
            let from = found.join(from);
            if from.exists() {
                run(Command::new("cp").arg("-rL").arg(from).arg(&work));
            }
        }
        run(Command::new("chmod").args(["-R", "a+rX"]).arg(&work));
        let tests = Tests { work, origin };
        tests.compile(server);
        Some(tests)
    }

    /// The libraries whose functions the tests call, where only their source is there.
    fn compile(&self, server: &Server) {
        for source in ["regress/regress.c", "spi/refint.c", "spi/autoinc.c"] {
            let source = self.work.join(source);
            let name = source.file_stem().unwrap_or_default();
            let library = self.work.join("regress").join(name).with_extension("so");
            if source.exists() && !library.exists() {
                // That of 15 lacks one that only 15's other headers bring.
                server.compile(&source, &library, &["postgres.h", "utils/array.h"]);
            }
        }
    }

    pub fn has(&self, suite: &Suite) -> bool {
        self.work.join(suite.name).join(suite.schedule).exists()
    }

    /// Runs a suite on a server without the library and then on one with it: all of it, or so many groups
    /// of tests that run together, from its beginning.
    pub fn compare(&self, server: &Server, suite: &Suite, groups: Option<usize>) -> Compared {
        let database = format!("CREATE DATABASE {} TEMPLATE template0", suite.database);
        let mut crashing = BTreeSet::new();
        let alone = loop {
            self.shorten(suite, groups.unwrap_or(usize::MAX), &crashing);
            let cluster = Cluster::plain(server, SETTINGS);
            cluster.sql(&[&database]);
            let alone = self.run(suite, &cluster, "alone");
            let failed = alone.iter().filter(|(_, passed)| !**passed);
            let crashed = failed.map(|(name, _)| name).filter(|name| {
                let output = self.printed(suite, "alone", name);
                let output = String::from_utf8_lossy(&output);
                output.contains("server closed the connection unexpectedly")
                    && !output.contains("because of crash of another server process")
            });
            let before = crashing.len();
            crashing.extend(crashed.cloned());
            if crashing.len() == before {
                break alone;
            }
            say("a test crashes the server without the library: once more without that test");
        };
        let cluster = Cluster::start(server, &[SETTINGS, LIMITS].concat());
        cluster.sql(&[&database]);
        label(&cluster, suite.database);
        let preloaded = self.run(suite, &cluster, "preloaded");
        let logins = logins(&cluster, suite.database);
        let alike = |name: &&String| {
            self.printed(suite, "alone", name) == self.printed(suite, "preloaded", name)
        };
        Compared {
            crashing,
            alike: alone.keys().filter(alike).cloned().collect(),
            diffs: self.output(suite, "preloaded").join("regression.diffs"),
            alone,
            preloaded,
            logins,
        }
    }

    /// Makes the schedule: so many groups, without the tests that may fail, and without these.
    fn shorten(&self, suite: &Suite, groups: usize, without: &BTreeSet<String>) {
        let dir = self.work.join(suite.name);
        let schedule = fs::read_to_string(dir.join(suite.schedule)).expect("read a schedule");
        let lines_of = |keyword| {
            let lines = schedule.lines();
            lines.filter_map(move |line| line.strip_prefix(keyword))
        };
        let ignored: Vec<&str> = lines_of("ignore:").map(str::trim).collect();
        let left = |test: &&str| !ignored.contains(test) && !without.contains(*test);
        let schedule: String = lines_of("test:")
            .take(groups)
            .map(|tests| tests.split_whitespace().filter(left).collect::<Vec<_>>())
            .filter(|tests| !tests.is_empty())
            .map(|tests| format!("test: {}\n", tests.join(" ")))
            .collect();
        fs::write(dir.join(SCHEDULE), schedule).expect("write a schedule");
    }

    /// What a test printed in a run.
    fn printed(&self, suite: &Suite, run: &str, test: &str) -> Vec<u8> {
        let results = self.output(suite, run).join("results");
        fs::read(results.join(test).with_extension("out")).unwrap_or_default()
    }

    fn output(&self, suite: &Suite, run: &str) -> PathBuf {
        self.work.join(format!("{}-{run}", suite.name))
    }

    fn run(&self, suite: &Suite, cluster: &Cluster, name: &str) -> Verdicts {
        let output = self.output(suite, name);
        place::server_dir(&fresh(&output));
        let programs = programs(&cluster.server).join(suite.name);
        for program in [suite.program, suite.tester] {
            // Those of a wheel have lost it.
            let executable = fs::Permissions::from_mode(0o755);
            fs::set_permissions(programs.join(program), executable).expect("chmod");
        }
        let mut regress = cluster.client(&programs.join(suite.program).to_string_lossy());
        // It takes tests and what they should print from here.
        regress.current_dir(self.work.join(suite.name));
        let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
        regress
            .args([
                "--use-existing",
                "--user=postgres",
                "--max-concurrent-tests=20",
            ])
            .arg(format!("--dbname={}", suite.database))
            .arg(format!("--port={}", cluster.port))
            .arg(option("host", &cluster.dir))
            .arg(option("bindir", &cluster.server.bin))
            .arg(option("dlpath", &self.work.join("regress")))
            .arg(option("outputdir", &output))
            .arg(format!("--schedule={SCHEDULE}"));
        let errors = output.join("errors");
        let mut child = regress
            .stdout(Stdio::piped())
            .stderr(File::create(&errors).expect("create a file"))
            .spawn()
            .expect("run pg_regress");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut verdicts = Verdicts::new();
        let mut printed = String::new();
        for line in lines {
            let line = line.expect("its output");
            if let Some((test, passed)) = verdict(&line) {
                verdicts.insert(test.to_string(), passed);
                if verdicts.len().is_multiple_of(50) {
                    say(format_args!(
                        "{} {name}: {} tests",
                        suite.name,
                        verdicts.len()
                    ));
                }
            }
            printed.push_str(&line);
            printed.push('\n');
        }
        // 1: a test failed; anything else: it gave up.
        let status = child.wait().expect("wait for pg_regress");
        let errors = fs::read_to_string(errors).unwrap_or_default();
        assert!(
            matches!(status.code(), Some(0 | 1)),
            "{regress:?}: {status}\n{printed}{errors}"
        );
        verdicts
    }
}

impl Compared {
    /// The tests that fail for no other reason than the library.
    pub fn broken(&self) -> Vec<&str> {
        let passed = self.alone.iter().filter(|(_, passed)| **passed);
        let names = passed.map(|(name, _)| name.as_str());
        names
            .filter(|name| self.preloaded.get(*name) != Some(&true))
            .filter(|name| OTHERWISE.iter().all(|(known, _)| known != name))
            .collect()
    }

    /// What came out, in numbers.
    pub fn summary(&self) -> String {
        let number = |alone, preloaded| {
            let both = |(name, passed): &(&String, &bool)| {
                **passed == alone && self.preloaded.get(*name) == Some(&preloaded)
            };
            self.alone
                .iter()
                .filter(both)
                .map(|(name, _)| name)
                .collect::<Vec<_>>()
        };
        let failed = number(false, false);
        let alike = failed.iter().filter(|name| self.alike.contains(**name));
        let mut lines = vec![
            format!(
                "{} tests; {} logins were admitted, {} refused; at most {} sessions at once",
                self.alone.len(),
                self.logins.admitted,
                self.logins.refused,
                self.logins.peak
            ),
            format!(
                "{} pass without the library and with it",
                number(true, true).len()
            ),
            format!(
                "{} fail without it and with it, {} of them with the same output",
                failed.len(),
                alike.count()
            ),
            format!("{} fail only without it", number(false, true).len()),
        ];
        if !self.crashing.is_empty() {
            let names: Vec<&str> = self.crashing.iter().map(String::as_str).collect();
            lines.push(format!(
                "{} left out, because the server crashes without it in one or more of them: {}",
                names.len(),
                names.join(", ")
            ));
        }
        for (name, why) in OTHERWISE {
            if self.alone.get(name) == Some(&true) && self.preloaded.get(name) == Some(&false) {
                lines.push(format!("1 fails with it as it must: {name}: {why}"));
            }
        }
        let broken = self.broken();
        lines.push(format!("{} fail only with it", broken.len()));
        if !broken.is_empty() {
            let names = broken.join(", ");
            lines.push(format!("{names}: see {}", self.diffs.display()));
        }
        lines.join("\n")
    }
}

/// Of the tests that are run.
const SCHEDULE: &str = "chosen_schedule";

/// Some plans depend on it.
const SETTINGS: &[(&str, &str)] = &[("shared_buffers", "128MB")];

/// With room for all that the tests do at once: each of their logins is decided, and none is to be refused.
const LIMITS: &[(&str, &str)] = &[
    ("session_limit.exempt_superusers", "off"),
    ("session_limit.max_sessions_per_role", "60"),
    (
        "session_limit.cluster_limits",
        r#"{"limits": [{"max": 70, "per": "cluster"}, {"max": 60, "per": "database"}]}"#,
    ),
];

/// Labels with room, too.
fn label(cluster: &Cluster, database: &str) {
    let label = |object: &str, limits: &str| {
        format!(
            "SECURITY LABEL FOR session_limit ON {object} IS '{{\"limits\": [{{\"max\": 55, {limits}}}]}}'"
        )
    };
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE team",
        "GRANT team TO postgres",
        &label("ROLE team", r#""per": "group""#),
        &label("ROLE postgres", &format!(r#""database": "{database}""#)),
        &label(&format!("DATABASE {database}"), r#""per": "role""#),
    ]);
}

/// What became of the tests' logins.
fn logins(cluster: &Cluster, database: &str) -> Logins {
    // A test may have crashed it.
    let mut session = wait_for("the server", || cluster.login_of("postgres").login().ok());
    let mut number = |column: &str| {
        let sql = format!("SELECT {column} FROM session_limit.stats WHERE datname = '{database}'");
        let number = session.value(&sql).parse();
        number.expect("a number")
    };
    let logins = Logins {
        admitted: number("sum(admitted)"),
        refused: number("sum(refused)"),
        peak: number("max(peak)"),
    };
    session.end();
    logins
}

/// Where a server has `pg_regress` and the like, in a folder for each suite.
fn programs(server: &Server) -> PathBuf {
    let makefiles = PathBuf::from(server.config("--pgxs"));
    let makefiles = makefiles.parent().expect("the folder of pgxs.mk");
    makefiles.with_file_name("test")
}

fn has_tests(dir: &Path) -> bool {
    dir.join("regress/parallel_schedule").exists()
}

/// The test that a line of `pg_regress` is about, and whether it passed: `not ok 7  + boolean  27 ms`, and before
/// 16 `boolean ... FAILED 27 ms`.
fn verdict(line: &str) -> Option<(&str, bool)> {
    if let Some((name, verdict)) = line.split_once(" ... ") {
        let name = name.trim().trim_start_matches("test ");
        return Some((name, verdict.trim_start().starts_with("ok")));
    }
    let (passed, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    Some((rest.split_whitespace().nth(2)?, passed))
}

#[cfg(test)]
mod tests {
    use super::verdict;

    #[test]
    fn a_line_of_pg_regress() {
        for (line, found) in [
            (
                "test tablespace                   ... ok          250 ms",
                Some(("tablespace", true)),
            ),
            (
                "     boolean                      ... FAILED       27 ms",
                Some(("boolean", false)),
            ),
            ("parallel group (2 tests):  char name", None),
            (
                "ok 1         - test_setup                      123 ms",
                Some(("test_setup", true)),
            ),
            (
                "not ok 7     + boolean                          27 ms",
                Some(("boolean", false)),
            ),
            ("# parallel group (2 tests):  char name", None),
            ("1..222", None),
        ] {
            assert_eq!(verdict(line), found, "{line}");
        }
    }
}
