//! The folder monitoring/, run for real, as docs/howto/monitoring.md says: exporters, alerts, dashboard, pgBadger. Skipped where
//! Debian's archive does not have the programs.

use crate::scene::{admitted, refused, set_label, told};
use pg_test::client::Session;
use pg_test::cluster::{self, Cluster};
use pg_test::kept::{self, Kept};
use pg_test::server::Server;
use pg_test::{packages, place, say, try_run, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{panicking, sleep};
use std::time::Duration;

tests![
    exporters_give_the_same_metrics,
    alerts_are_tested,
    a_line_for_watch,
    what_pgbadger_shows,
];

const EXPORTERS: [&str; 2] = ["postgres_exporter", "sql_exporter"];

fn exporters_give_the_same_metrics(server: &Server) {
    let Some(programs) = programs() else {
        return;
    };
    let cluster = Cluster::start(server, &[("session_limit.replace_min_age", "0")]);
    let mut superuser = cluster.superuser();
    run_sql(&mut superuser, &fence("The role", "sql\n"));
    let mut roles = String::from("CREATE ROLE team;");
    for role in ["alice", "bob", "carol", "dave", "eve", "frank"] {
        roles += &format!("CREATE ROLE {role} LOGIN IN ROLE team;");
    }
    roles += "CREATE ROLE member LOGIN IN ROLE team";
    superuser.query(&roles);
    for (object, label) in [
        ("ROLE alice", r#"{"max": 1, "max_wait": 0}"#),
        ("ROLE bob", r#"{"max": 1, "max_wait": "1min"}"#),
        (
            "ROLE carol",
            r#"{"max": 1, "max_wait": 0, "on_excess": "replace_oldest"}"#,
        ),
        ("ROLE dave", r#"{"limits": [{"max": 4, "per": "address"}]}"#),
        (
            "ROLE eve",
            r#"{"limits": [{"max": 5, "across": "servers"}, {"max": 3, "count": "addresses"}]}"#,
        ),
        ("ROLE team", r#"{"max": 20, "per": "group"}"#),
    ] {
        superuser.query(&set_label(object, label));
    }
    let metrics = Metrics::of(&cluster, &programs);
    metrics.wait_for(r#"session_limit_status_worker_running"#, 1.0);
    metrics.wait_for(r#"session_limit_status_stats_lost"#, 0.0);
    metrics.wait_for(r#"session_limit_status_versions_differ"#, 0.0);
    metrics.wait_for(r#"session_limit_status_etcd_unreachable"#, 0.0);
    metrics.wait_for(r#"session_limit_enforcement_active{mode="on"}"#, 1.0);
    metrics.wait_for(r#"session_limit_enforcement_active{mode="log"}"#, 0.0);
    metrics.wait_for(r#"session_limit_usage_max{across="servers"}"#, 5.0);
    metrics.wait_for(r#"session_limit_usage_max{count="addresses"}"#, 3.0);
    // Nobody is in.
    let team =
        r#"{source="label on role team",per="group",rolname="team",datname="",enforcement="on"}"#;
    metrics.wait_for(&format!("session_limit_usage_sessions{team}"), 0.0);
    metrics.wait_for(&format!("session_limit_usage_max{team}"), 20.0);

    let alice = cluster.login_of("alice");
    let _alice = admitted(&alice);
    refused(&alice);
    let refusals = r#"session_limit_limit_refused_total{source="label on role alice",rolname="alice",reason="no_room"}"#;
    metrics.wait_for(refusals, 1.0);
    metrics.wait_for(
        r#"session_limit_logins_refused_total{rolname="alice",datname="postgres"}"#,
        1.0,
    );
    metrics.wait_for(r#"session_limit_usage_ratio{rolname="alice"}"#, 1.0);

    let bob = cluster.login_of("bob");
    let first = admitted(&bob);
    let mut second = bob.connect();
    second.send_startup(&bob);
    metrics.wait_for(r#"session_limit_usage_waiting{rolname="bob"}"#, 1.0);
    metrics.wait_for("session_limit_status_waiting", 1.0);
    metrics.wait_for(
        r#"session_limit_usage_longest_wait_seconds{rolname="bob"} > bool 0.1"#,
        1.0,
    );
    first.end();
    let _second = second.outcome().expect("room");
    metrics.wait_for(r#"session_limit_logins_waited_total{rolname="bob"}"#, 1.0);
    metrics.wait_for(
        r#"session_limit_logins_wait_seconds_total{rolname="bob"} > bool 0.1"#,
        1.0,
    );

    let carol = cluster.login_of("carol");
    let mut older = admitted(&carol);
    let _newer = admitted(&carol);
    told(&mut older);
    metrics.wait_for(
        r#"session_limit_limit_replaced_total{rolname="carol"}"#,
        1.0,
    );

    // The fullest address counts.
    let dave = |address| admitted(&cluster.login_from("dave", address));
    let _daves = ["127.0.0.2", "127.0.0.3", "127.0.0.3"].map(dave);
    metrics.wait_for(r#"session_limit_usage_sessions{per="address"}"#, 2.0);
    metrics.wait_for(
        r#"session_limit_limit_admitted_total{per="address",rolname="dave"}"#,
        3.0,
    );

    names_do_not_matter(&cluster, &mut superuser, &metrics);
    metrics.are_the_same();
    what_is_shown_is_there(&metrics);

    for _ in 0..12 {
        refused(&alice);
    }
    metrics.wait_for(refusals, 13.0);
    let alert = |name: &str, state: &str, exporter: &str| {
        let labels = format!(r#"alertname="{name}",alertstate="{state}",job="{exporter}""#);
        format!("ALERTS{{{labels}}}")
    };
    for exporter in EXPORTERS {
        metrics.wait_for_one(&alert("SessionLimitRefusals", "firing", exporter));
    }
    superuser.query("DROP EXTENSION session_limit CASCADE");
    for exporter in EXPORTERS {
        metrics.wait_for_one(&alert("SessionLimitNotRead", "pending", exporter));
    }
    metrics.wait_for_one("pg_up == 1");
}

/// Of two roles that were dropped no row is the same as another's, and a role may be called like the OID of one. A name that is not UTF-8
/// would end postgres_exporter.
fn names_do_not_matter(cluster: &Cluster, superuser: &mut Session, metrics: &Metrics) {
    superuser.query(&set_label("ROLE eve", r#"{"max": 7}"#));
    superuser.query(&set_label("ROLE frank", r#"{"max": 7}"#));
    for role in ["eve", "frank"] {
        admitted(&cluster.login_of(role)).end();
    }
    let oid = superuser.value("SELECT oid FROM pg_roles WHERE rolname = 'eve'");
    superuser.query("DROP ROLE eve, frank");
    superuser.query(&format!(r#"CREATE ROLE "{oid}" LOGIN"#));
    superuser.query(&set_label(&format!(r#"ROLE "{oid}""#), r#"{"max": 7}"#));
    admitted(&cluster.login_of(&oid)).end();
    metrics.wait_for(
        &format!(r#"session_limit_logins_admitted_total{{rolname="{oid}"}}"#),
        1.0,
    );

    superuser.query("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    let mut latin = admitted(&cluster.login_of("postgres").to("latin"));
    latin.query("SET client_encoding = 'UTF8'");
    latin.query(r#"CREATE ROLE "josé" LOGIN CONNECTION LIMIT 3"#);
    superuser.query(r#"CREATE ROLE "müller" LOGIN CONNECTION LIMIT 4"#);
    let max = |name| format!(r#"session_limit_usage_max{{rolname="{name}"}}"#);
    metrics.wait_for(&max(r"jos\\351"), 3.0);
    metrics.wait_for(&max("müller"), 4.0);
    metrics.wait_for_one("pg_up == 1");
    metrics.wait_for("up", 1.0);
}

/// Whatever an alert or a panel asks for is there, and every rule and panel can be computed.
fn what_is_shown_is_there(metrics: &Metrics) {
    let names = metrics.names();
    let dashboard = read("grafana.json");
    for file in [&read("alerts.yml"), &dashboard] {
        let named = words(file).filter(|word| word.starts_with("session_limit_"));
        let named: BTreeSet<String> = named.map(String::from).collect();
        assert!(named.len() > 5, "{named:?}");
        let unknown: Vec<&String> = named.difference(&names).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
    metrics.wait("the rules to be computed", || {
        let rules = metrics.get("rules")["groups"][0]["rules"].take();
        let rules = rules.as_array().expect("rules");
        let failed = rules.iter().find(|rule| rule["health"] == "err");
        assert_eq!(failed, None);
        let computed = rules.iter().all(|rule| rule["health"] == "ok");
        (computed && !rules.is_empty()).then_some(())
    });
    let dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
    assert_eq!(dashboard["templating"]["list"][0]["type"], "datasource");
    let mut expressions = 0;
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        for target in panel["targets"].as_array().expect("targets") {
            let expression = target["expr"].as_str().expect("an expression");
            let expression = expression.replace("$server", ".*");
            let expression = expression.replace("$__rate_interval", "1m");
            metrics.wait(&expression, || {
                (!metrics.query(&expression).is_empty()).then_some(())
            });
            expressions += 1;
        }
    }
    assert!(expressions > 20, "{expressions}");
}

/// Both exporters of a cluster, and a Prometheus that scrapes them.
struct Metrics {
    port: u16,
    logs: Vec<PathBuf>,
    _processes: [Kept; 3],
}

impl Metrics {
    fn of(cluster: &Cluster, programs: &Path) -> Metrics {
        let dir = cluster.dir.join("monitoring");
        fs::create_dir(&dir).expect("create a folder");
        let port = |number| cluster::free_port(10_000 + 4 * usize::from(cluster.port) + number);
        let [prometheus, postgres_exporter, sql_exporter] = [0, 1, 2].map(port);
        let address = |port: u16| format!("127.0.0.1:{port}");
        let write = |file: &str, changes: &[(&str, &str)]| {
            let mut text = read(file);
            for (from, to) in changes {
                assert!(text.contains(from), "{file}: {from}");
                text = text.replace(from, to);
            }
            fs::write(dir.join(file), text).expect("write a file");
        };
        write("alerts.yml", &[]);
        write("postgres_exporter.yml", &[]);
        let server = format!("@{}", address(cluster.port));
        let changes = [
            ("@localhost:5432", server.as_str()),
            ("interval: '30s'", "interval: '1s'"),
        ];
        write("sql_exporter.yml", &changes);
        let changes = [
            ("localhost:9187", address(postgres_exporter)),
            ("localhost:9237", address(sql_exporter)),
        ];
        let [one, other] = changes.each_ref().map(|(from, to)| (*from, to.as_str()));
        let often = "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files:";
        write("prometheus.yml", &[one, other, ("rule_files:", often)]);

        let logs = ["postgres_exporter", "sql_exporter", "prometheus"];
        let logs = logs.map(|name| dir.join(format!("{name}.log")));
        let start = |log: &Path, program: &str, arguments: &[&str]| {
            let mut keeper = kept::keeper(&log.to_string_lossy());
            keeper
                .arg(programs.join(program))
                .args(arguments)
                .current_dir(&dir);
            let path = std::env::var_os("PATH").unwrap_or_default();
            keeper.env_clear().env("PATH", path);
            let source = format!("postgresql://monitor{server}/postgres?sslmode=disable");
            keeper.env("DATA_SOURCE_NAME", source);
            Kept::start(&mut keeper)
        };
        let listen = |option: &str, port| format!("{option}={}", address(port));
        let processes = [
            start(
                &logs[0],
                "prometheus-postgres-exporter",
                &[
                    "--extend.query-path=postgres_exporter.yml",
                    "--no-collector.bgwriter",
                    &listen("--web.listen-address", postgres_exporter),
                ],
            ),
            start(
                &logs[1],
                "prometheus-sql-exporter",
                &[
                    "-config.file=sql_exporter.yml",
                    &listen("-web.listen-address", sql_exporter),
                ],
            ),
            start(
                &logs[2],
                "prometheus",
                &[
                    "--config.file=prometheus.yml",
                    "--storage.tsdb.path=data",
                    &listen("--web.listen-address", prometheus),
                ],
            ),
        ];
        let metrics = Metrics {
            port: prometheus,
            logs: logs.to_vec(),
            _processes: processes,
        };
        metrics.wait("Prometheus", || {
            http(prometheus, "/-/ready").map(|_answer| ())
        });
        metrics
    }

    /// What Prometheus says.
    fn get(&self, what: &str) -> Value {
        let path = format!("/api/v1/{what}");
        let answer = http(self.port, &path).unwrap_or_else(|| panic!("no answer to {path}"));
        let mut answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].take()
    }

    fn query(&self, expression: &str) -> Vec<Value> {
        let data = self.get(&format!("query?query={}", escaped(expression)));
        data["result"].as_array().expect("a vector").clone()
    }

    /// Waits until both exporters give this value, and no other of the same name.
    fn wait_for(&self, expression: &str, value: f64) {
        self.wait(&format!("{expression} = {value}"), || {
            let found = self.query(expression);
            let jobs = found.iter().filter_map(|it| it["metric"]["job"].as_str());
            let mut jobs: Vec<&str> = jobs.collect();
            jobs.sort();
            let same = found.iter().all(|it| number(it) == Some(value));
            (jobs == EXPORTERS && same).then_some(())
        });
    }

    fn wait_for_one(&self, expression: &str) {
        self.wait(expression, || {
            (self.query(expression).len() == 1).then_some(())
        });
    }

    /// Looks as often as it is worth while.
    fn wait(&self, what: &str, mut found: impl FnMut() -> Option<()>) {
        wait_for(what, || {
            let found = found();
            if found.is_none() {
                sleep(Duration::from_millis(100));
            }
            found
        });
    }

    /// Names and labels.
    fn are_the_same(&self) {
        self.wait("the same metrics of both", || {
            let of = |exporter: &str| {
                let all = format!(r#"{{__name__=~"session_limit_.*",job="{exporter}"}}"#);
                let found = self.query(&all).into_iter();
                let labels = found.map(|mut metric| {
                    let labels = metric["metric"].as_object_mut().expect("labels");
                    labels.retain(|name, _| name != "job" && name != "instance");
                    Value::Object(labels.clone()).to_string()
                });
                labels.collect::<BTreeSet<String>>()
            };
            let [one, other] = EXPORTERS.map(of);
            (one.len() > 100 && one == other).then_some(())
        });
    }

    fn names(&self) -> BTreeSet<String> {
        let names = self.get("label/__name__/values");
        let names = names.as_array().expect("names").iter();
        names
            .filter_map(|name| name.as_str().map(String::from))
            .collect()
    }
}

/// What they have logged last, if the test fails.
impl Drop for Metrics {
    fn drop(&mut self) {
        for log in self.logs.iter().filter(|_| panicking()) {
            let text = fs::read_to_string(log).unwrap_or_default();
            let last: Vec<&str> = text.lines().rev().take(5).collect();
            eprintln!("{}: {last:#?}", log.display());
        }
    }
}

fn number(found: &Value) -> Option<f64> {
    found["value"][1].as_str()?.parse().ok()
}

/// What is there by HTTP; None unless it is found.
fn http(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let found = head.split_whitespace().nth(1) == Some("200");
    found.then(|| body.to_string())
}

/// As in a URL.
fn escaped(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// Each has a test in which it fires, and one in which it does not, and is in the manual.
fn alerts_are_tested(_server: &Server) {
    let Some(programs) = programs() else {
        return;
    };
    let promtool = |arguments: &[&str]| {
        let mut promtool = Command::new(programs.join("promtool"));
        try_run(
            promtool
                .args(arguments)
                .current_dir(place::checkout().join("monitoring")),
        )
        .unwrap_or_else(|why| panic!("{why}"));
    };
    promtool(&["check", "config", "prometheus.yml"]);
    promtool(&["check", "rules", "alerts.yml"]);
    promtool(&["test", "rules", "alerts_test.yml"]);
    let (alerts, tests, page) = (read("alerts.yml"), read("alerts_test.yml"), page());
    let names: Vec<&str> = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(names.len() > 8, "{names:?}");
    for name in names {
        assert!(tests.contains(&format!("- alertname: {name}\n")), "{name}");
        assert!(
            tests.contains(&format!("- {{alertname: {name}, ")),
            "{name}"
        );
        assert!(page.contains(&format!("`{name}`")), "{name}");
    }
}

fn a_line_for_watch(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    let mut superuser = cluster.superuser();
    run_sql(&mut superuser, &fence("The role", "sql\n"));
    superuser.query("CREATE ROLE alice LOGIN CONNECTION LIMIT 3");
    let _alice = admitted(&cluster.login_of("alice"));
    let line = fence("Without any of that", "\n");
    let line = line.replace(r"\watch 2", r"\watch 0.1");
    let mut psql = cluster
        .client("psql")
        .env("PGUSER", "monitor")
        .args(["-X", "-A"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run psql");
    let mut input = psql.stdin.take().expect("psql's input");
    writeln!(input, "{line}").expect("write to psql");
    drop(input);
    let output = BufReader::new(psql.stdout.take().expect("psql's output"));
    let lines = output.lines().map_while(Result::ok).take(20);
    let row = "CONNECTION LIMIT of role alice|alice|1|3|0|";
    assert_eq!(lines.filter(|line| line == row).take(2).count(), 2);
    psql.kill().expect("end psql");
    psql.wait().expect("psql's end");
}

fn what_pgbadger_shows(server: &Server) {
    let Some(programs) = programs() else {
        return;
    };
    if let Err(why) = try_run(Command::new("perl").arg("-v")) {
        return skip(&why);
    }
    let command = fence("pgBadger", "\n");
    let prefix = command.split('\'').nth(1).expect("a prefix");
    let cluster = Cluster::start(
        server,
        &[
            ("log_line_prefix", prefix),
            ("session_limit.replace_min_age", "0"),
        ],
    );
    cluster.sql(&[
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
        &set_label("ROLE alice", r#"{"max": 1}"#),
        &set_label("ROLE bob", r#"{"max": 1, "on_excess": "replace_oldest"}"#),
    ]);
    let [alice, bob] = ["alice", "bob"].map(|role| cluster.login_of(role));
    let _alice = admitted(&alice);
    let (mut older, refusals) = (admitted(&bob), [refused(&alice), refused(&alice)]);
    let _newer = admitted(&bob);
    told(&mut older);
    wait_for("the events in the log", || {
        let log = cluster.log();
        let events = [r#"{"event":"refused""#, r#"{"event":"replaced""#];
        events.iter().all(|event| log.contains(event)).then_some(())
    });

    let mut pgbadger = Command::new("perl");
    pgbadger
        .arg(programs.join("pgbadger"))
        .args(["-q", "-f", "stderr", "-p", prefix]);
    pgbadger
        .args(["-x", "text", "-o", "-"])
        .arg(cluster.dir.join("log"));
    let report = try_run(&mut pgbadger).unwrap_or_else(|why| panic!("{why}"));
    let (_, events) = report
        .split_once("- Most frequent events")
        .unwrap_or_else(|| panic!("{report}"));
    for shown in [
        r#"2 - FATAL:  too many connections for role "...""#,
        &format!("Detail: {}", refusals[0].detail()),
        "1 - FATAL:  terminating connection due to administrator command",
        r#"Detail: This session was replaced by a newer session of role "bob""#,
    ] {
        assert!(events.contains(shown), "{shown}: {events}");
    }
    assert!(!report.contains(r#"{"event""#), "{report}");
}

/// Where the programs are, or a line that says why they are not.
fn programs() -> Option<PathBuf> {
    let _lock = packages::lock();
    packages::monitoring().map_err(|why| skip(&why)).ok()
}

fn skip(why: &str) {
    let last = why.lines().last().unwrap_or(why);
    say(format_args!("skipped: {last}"));
}

fn read(file: &str) -> String {
    let path = place::checkout().join("monitoring").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn page() -> String {
    let page = place::checkout().join("docs/howto/monitoring.md");
    fs::read_to_string(page).expect("docs/howto/monitoring.md")
}

/// The first block below a heading of the page whose fence begins so.
fn fence(heading: &str, begin: &str) -> String {
    let page = page();
    let (_, section) = page
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("no {heading}"));
    let fence = section.split(&format!("\n```{begin}")).nth(1);
    let text = fence.and_then(|fence| fence.split("```").next());
    text.expect("a fence").to_string()
}

fn run_sql(session: &mut Session, sql: &str) {
    for statement in sql
        .split(";\n")
        .filter(|statement| !statement.trim().is_empty())
    {
        session.query(statement);
    }
}

/// The names in a text.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_')
}
