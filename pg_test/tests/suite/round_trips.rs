//! Limits that leave the cluster where they were set: by a dump, by `pg_upgrade`, to a standby.

use crate::scene::refused;
use pg_test::client::{Session, Target};
use pg_test::cluster::{Cluster, Stop};
use pg_test::server::Server;
use pg_test::{run, wait_for};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

tests![
    a_dump_keeps_every_limit,
    a_dump_keeps_the_limits_of_postgres_only_with_clean,
    a_restore_without_the_library_fails_for_each_label,
    a_restore_can_load_the_library_by_itself,
    a_database_takes_its_limits_along,
    a_standby_enforces_from_its_first_login,
    a_label_reaches_a_standby,
    a_promoted_standby_goes_on
];

pub const UPGRADES: &[crate::Upgrade] = &[
    ("an_upgrade_keeps_every_limit", an_upgrade_keeps_every_limit),
    ("an_upgrade_is_never_refused", an_upgrade_is_never_refused),
    (
        "an_upgrade_without_the_library_fails",
        an_upgrade_without_the_library_fails,
    ),
];

const LIMITS: &[&str] = &[
    "CREATE EXTENSION session_limit",
    "CREATE ROLE alice LOGIN CONNECTION LIMIT 9",
    r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"max": 1}'"#,
    "CREATE ROLE bob LOGIN CONNECTION LIMIT 1",
    "CREATE ROLE team",
    r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"max": 1, "per": "group"}'"#,
    "CREATE ROLE carol LOGIN IN ROLE team",
    "CREATE ROLE dave LOGIN IN ROLE team",
    "CREATE ROLE erin LOGIN",
    "CREATE ROLE frank LOGIN",
    "CREATE ROLE seats",
    r#"SECURITY LABEL FOR session_limit ON ROLE seats IS '{"max": 1, "per": "group", "count": "roles"}'"#,
    "CREATE ROLE gina LOGIN IN ROLE seats",
    "CREATE ROLE hank LOGIN IN ROLE seats",
    "CREATE ROLE ivan LOGIN",
    r#"SECURITY LABEL FOR session_limit ON ROLE ivan IS '{"max": 1, "per": ["role", "database"]}'"#,
    "CREATE ROLE judy LOGIN",
    r#"SECURITY LABEL FOR session_limit ON ROLE judy IS '{"limits": [{"max": 1, "across": "servers"}, {"max": 2}]}'"#,
    "CREATE DATABASE app CONNECTION LIMIT 9",
    r#"SECURITY LABEL FOR session_limit ON DATABASE app IS '{"max": 1}'"#,
    "CREATE DATABASE web CONNECTION LIMIT 1",
    r#"CREATE ROLE "O'Neil ""\" LOGIN"#,
    r#"SECURITY LABEL FOR session_limit ON ROLE "O'Neil ""\" IS '{ "limits": [{"max": 3, "database": "it''s \"\\"}],  "max_wait": "5s" }'"#,
];

/// How many of them are labels.
const LABELS: usize = 7;

/// In a database, a login that takes the last place, one that is too many, and the limit's source.
const FULL: [(&str, [&str; 2], &str); 8] = [
    ("postgres", ["alice", "alice"], "label on role alice"),
    ("postgres", ["bob", "bob"], "CONNECTION LIMIT of role bob"),
    ("postgres", ["carol", "dave"], "label on role team"),
    ("postgres", ["gina", "hank"], "label on role seats"),
    ("postgres", ["ivan", "ivan"], "label on role ivan"),
    ("postgres", ["judy", "judy"], "label on role judy"),
    ("app", ["erin", "frank"], "label on database app"),
    ("web", ["erin", "frank"], "CONNECTION LIMIT of database web"),
];

fn labelled(server: &Server, settings: &[(&str, &str)]) -> Cluster {
    let cluster = Cluster::start(server, settings);
    cluster.sql(LIMITS);
    cluster
}

/// Every label and `CONNECTION LIMIT`, as the shared catalogs have them.
fn set(cluster: &Cluster) -> Vec<Vec<String>> {
    let sql = "
        SELECT classoid::regclass, coalesce(rolname, datname), label FROM pg_shseclabel
            LEFT JOIN pg_roles r ON classoid = 'pg_authid'::regclass AND r.oid = objoid
            LEFT JOIN pg_database d ON classoid = 'pg_database'::regclass AND d.oid = objoid
            WHERE provider = 'session_limit'
        UNION ALL
        SELECT 'pg_authid', rolname, rolconnlimit::text FROM pg_roles WHERE rolname !~ '^pg_'
        UNION ALL
        SELECT 'pg_database', datname, datconnlimit::text FROM pg_database
        ORDER BY 1, 2, 3";
    cluster.superuser().query(sql)
}

/// The same, and what the extension makes of them.
fn set_and_seen(cluster: &Cluster) -> [Vec<Vec<String>>; 2] {
    let seen = "SELECT * FROM session_limit.limits l ORDER BY l::text";
    [set(cluster), cluster.superuser().query(seen)]
}

fn assert_refused(login: &Target, source: &str) {
    let refusal = refused(login);
    assert_eq!(refusal.sqlstate(), "53300", "{refusal:?}");
    let detail = refusal.detail();
    assert!(
        detail.contains(&format!("({source})")),
        "{source}: {detail}"
    );
}

/// One logs in, and then the other is refused for the sake of this limit.
fn assert_full(first: &Target, second: &Target, source: &str) -> Session {
    let session = first.login();
    let mut session = session.unwrap_or_else(|refusal| panic!("{source}: {refusal:?}"));
    assert_refused(second, source);
    assert!(session.is_alive());
    session
}

fn assert_enforced(cluster: &Cluster) -> Vec<Session> {
    let full = FULL.iter().map(|(database, logins, source)| {
        let [first, second] = logins.map(|role| cluster.login_of(role).to(database));
        assert_full(&first, &second, source)
    });
    full.collect()
}

fn dump_all(cluster: &Cluster, options: &[&str]) -> PathBuf {
    let dump = cluster.dir.join("dump");
    let mut pg_dumpall = cluster.client("pg_dumpall");
    run(pg_dumpall.args(options).arg("-f").arg(&dump));
    dump
}

/// Restores a dump of all. Returns the errors, but for those that every such restore meets: it runs
/// as a role that it would drop or make.
fn restore(cluster: &Cluster, dump: &Path, options: &str) -> Vec<String> {
    let mut psql = cluster.client("psql");
    psql.env("PGOPTIONS", options)
        .args(["-X", "-q", "-f"])
        .arg(dump);
    let output = psql.output();
    let Output { status, stderr, .. } = output.expect("run psql");
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{stderr}");
    let usual = [
        r#"role "postgres" already exists"#,
        "current user cannot be dropped",
    ];
    let errors = stderr
        .lines()
        .filter_map(|line| Some(line.split_once("ERROR:  ")?.1));
    let errors = errors.filter(|error| !usual.contains(error));
    wait_until_nobody_is_in(cluster);
    errors.map(String::from).collect()
}

/// A client's last session, though a superuser's, takes a place in its database while it ends.
fn wait_until_nobody_is_in(cluster: &Cluster) {
    cluster.wait_for_processes(" [local] ", 0);
}

fn a_dump_keeps_every_limit(server: &Server) {
    let from = labelled(server, &[]);
    let restored = Cluster::start(server, &[]);
    assert_eq!(
        restore(&restored, &dump_all(&from, &[]), ""),
        Vec::<String>::new()
    );
    assert_eq!(set_and_seen(&restored), set_and_seen(&from));
    assert_enforced(&restored);
}

/// A dump neither makes `postgres` nor alters it, unless it is to drop it first.
fn a_dump_keeps_the_limits_of_postgres_only_with_clean(server: &Server) {
    let from = labelled(server, &[]);
    let before = set(&from);
    from.sql(&[
        "ALTER DATABASE postgres CONNECTION LIMIT 9",
        r#"SECURITY LABEL FOR session_limit ON DATABASE postgres IS '{"max": 8}'"#,
    ]);
    for (options, expected) in [(&[][..], before), (&["--clean", "--if-exists"], set(&from))] {
        let restored = Cluster::start(server, &[]);
        let errors = restore(&restored, &dump_all(&from, options), "");
        assert_eq!(errors, Vec::<String>::new());
        assert_eq!(set(&restored), expected, "{options:?}");
    }
}

fn a_restore_without_the_library_fails_for_each_label(server: &Server) {
    let from = labelled(server, &[]);
    let restored = Cluster::plain(server, &[]);
    let errors = restore(&restored, &dump_all(&from, &[]), "");
    let expected = r#"security label provider "session_limit" is not loaded"#;
    assert_eq!(errors, [expected; LABELS]);
    let labels = "SELECT count(*) FROM pg_shseclabel";
    assert_eq!(restored.superuser().value(labels), "0");
}

/// Each of the sessions that a restore opens must load it: `LOAD` would do for one.
fn a_restore_can_load_the_library_by_itself(server: &Server) {
    let from = labelled(server, &[]);
    let mut restored = Cluster::plain(server, &[]);
    let options = "-c session_preload_libraries=session_limit";
    assert_eq!(
        restore(&restored, &dump_all(&from, &[]), options),
        Vec::<String>::new()
    );
    restored.stop(Stop::Fast);
    restored.append(
        "postgresql.conf",
        "shared_preload_libraries = session_limit\n",
    );
    restored.start_again();
    assert_enforced(&restored);
    assert_eq!(set_and_seen(&restored), set_and_seen(&from));
}

fn a_database_takes_its_limits_along(server: &Server) {
    let from = labelled(server, &[]);
    let [plain, custom] = ["plain", "custom"].map(|format| {
        let dump = from.dir.join(format);
        let mut pg_dump = from.client("pg_dump");
        pg_dump.args(["--create", "-d", "app", "-F", format, "-f"]);
        run(pg_dump.arg(&dump));
        dump
    });
    let psql = ("psql", &["-X", "-v", "ON_ERROR_STOP=1", "-f"][..], plain);
    let pg_restore = ("pg_restore", &["--create", "-d", "postgres"][..], custom);
    for (program, options, dump) in [psql, pg_restore] {
        let there = Cluster::start(server, &[]);
        there.sql(&["CREATE ROLE erin LOGIN", "CREATE ROLE frank LOGIN"]);
        run(there.client(program).args(options).arg(dump));
        wait_until_nobody_is_in(&there);
        let of_app = |cluster| {
            let mut rows = set(cluster);
            rows.retain(|row| row[1] == "app");
            rows
        };
        assert_eq!(of_app(&there), of_app(&from), "{program}");
        assert_eq!(of_app(&there).len(), 2);
        let [erin, frank] = ["erin", "frank"].map(|role| there.login_of(role).to("app"));
        assert_full(&erin, &frank, "label on database app");
    }
}

/// Runs a program that starts servers on these two data directories, and ends it, and them, if the bench
/// is no more: then its input ends.
const UNTIL_THE_BENCH_ENDS: &str = r#"
trap '' INT HUP QUIT
exec 3<&0
old=$1 new=$2; shift 2
"$@" </dev/null 3<&- & program=$!
(
    read -r _ <&3
    kill -TERM $program
    for data in "$old" "$new"; do kill -INT "$(head -n 1 "$data/postmaster.pid")"; done
) >/dev/null 2>&1 & late=$!
wait $program; status=$?
kill $late
exit $status
"#;

/// Runs the new server's `pg_upgrade` on two stopped clusters.
fn upgrade(old: &Cluster, new: &Cluster) -> Output {
    if old.server.major < 18 && new.server.major >= 18 {
        // From 18 on initdb switches them on, and they must be as in the old cluster.
        let mut pg_checksums = new.server.command("pg_checksums");
        run(pg_checksums
            .args(["--disable", "-D"])
            .arg(new.dir.join("data")));
    }
    // The old server may need an environment to run in, and the new one's programs do not mind it.
    let mut pg_upgrade = old.server.command("/bin/sh");
    pg_upgrade.args(["-c", UNTIL_THE_BENCH_ENDS, "sh"]);
    pg_upgrade.args([old, new].map(|cluster| cluster.dir.join("data")));
    pg_upgrade.arg(new.server.bin.join("pg_upgrade"));
    pg_upgrade.args(["--no-sync", "--jobs=2", "-U", "postgres"]);
    for (cluster, bin, data, port) in [(old, "-b", "-d", "-p"), (new, "-B", "-D", "-P")] {
        pg_upgrade.arg(bin).arg(&cluster.server.bin);
        pg_upgrade.arg(data).arg(cluster.dir.join("data"));
        pg_upgrade.arg(port).arg(cluster.port.to_string());
    }
    pg_upgrade.current_dir(&new.dir).stdin(Stdio::piped());
    pg_upgrade.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pg_upgrade.spawn().expect("run sh");
    let _until_then = child.stdin.take();
    child.wait_with_output().expect("run pg_upgrade")
}

fn assert_upgrades(old: &Cluster, new: &Cluster) {
    let output = upgrade(old, new);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", upgrade_log(new));
}

fn stopped(mut cluster: Cluster) -> Cluster {
    cluster.stop(Stop::Fast);
    cluster
}

fn an_upgrade_keeps_every_limit(from: &Server, to: &Server) {
    let old = labelled(from, &[]);
    old.sql(&[
        r#"SECURITY LABEL FOR session_limit ON DATABASE postgres IS '{"max": 8}'"#,
        "CREATE ROLE locked LOGIN",
        r#"SECURITY LABEL FOR session_limit ON ROLE locked IS '{"max": 1}'"#,
        "ALTER ROLE locked NOLOGIN",
    ]);
    let before = set_and_seen(&old);
    let old = stopped(old);
    let mut new = stopped(Cluster::start(to, &[]));
    assert_upgrades(&old, &new);
    new.start_again();
    assert_enforced(&new);
    assert_eq!(set_and_seen(&new), before);
}

/// Not even where nobody may log in.
fn an_upgrade_is_never_refused(from: &Server, to: &Server) {
    let settings = [("session_limit.exempt_superusers", "off")];
    let old = Cluster::start(from, &settings);
    old.sql(&[r#"SECURITY LABEL FOR session_limit ON ROLE postgres IS '{"max": 0}'"#]);
    assert_refused(&old.login_of("postgres"), "label on role postgres");
    let old = stopped(old);
    let mut new = stopped(Cluster::start(to, &settings));
    assert_upgrades(&old, &new);
    new.start_again();
    assert_refused(&new.login_of("postgres"), "label on role postgres");
}

/// The old cluster is none the worse for it.
fn an_upgrade_without_the_library_fails(from: &Server, to: &Server) {
    let mut old = stopped(labelled(from, &[]));
    let new = stopped(Cluster::plain(to, &[]));
    let output = upgrade(&old, &new);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("pg_upgrade_utility.log"), "{said}");
    let log = upgrade_log(&new);
    let expected = r#"ERROR:  security label provider "session_limit" is not loaded"#;
    assert!(log.trim_end().ends_with(expected), "{log}");
    old.start_again();
    assert_enforced(&old);
}

fn upgrade_log(new: &Cluster) -> String {
    let runs = fs::read_dir(new.dir.join("data/pg_upgrade_output.d")).expect("pg_upgrade's output");
    let run = runs.last().expect("a run").expect("a run").path();
    fs::read_to_string(run.join("log/pg_upgrade_utility.log")).expect("its log")
}

/// The sessions of the primary, as many as may be, are none of its.
fn a_standby_enforces_from_its_first_login(server: &Server) {
    let cluster_limits = r#"{"max": 1, "per": "cluster", "network": "127.0.0.0/8"}"#;
    let primary = labelled(server, &[("session_limit.cluster_limits", cluster_limits)]);
    let standby = Cluster::standby_of(&primary);
    let mut sessions = Vec::new();
    for cluster in [&primary, &standby] {
        sessions.extend(assert_enforced(cluster));
        let [first, second] = ["erin", "frank"].map(|role| cluster.tcp_login_of(role));
        sessions.push(assert_full(&first, &second, "session_limit.cluster_limits"));
    }
}

fn a_label_reaches_a_standby(server: &Server) {
    let primary = Cluster::start(server, &[("session_limit.max_wait", "0")]);
    primary.sql(&["CREATE ROLE alice LOGIN"]);
    let standby = Cluster::standby_of(&primary);
    let alice = standby.login_of("alice");
    let _sessions = [
        alice.login().expect("no limit"),
        alice.login().expect("no limit"),
    ];
    primary.sql(&[r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"max": 2}'"#]);
    let refusal = wait_for("the label", || alice.login().err());
    assert_eq!(refusal.sqlstate(), "53300", "{refusal:?}");
    assert_refused(&alice, "label on role alice");
    primary.sql(&["SECURITY LABEL FOR session_limit ON ROLE alice IS NULL"]);
    wait_for("its end", || alice.login().ok());
}

fn a_promoted_standby_goes_on(server: &Server) {
    let primary = labelled(server, &[]);
    let standby = Cluster::standby_of(&primary);
    let mut sessions = assert_enforced(&standby);
    let mut superuser = standby.superuser();
    let label = r#"SECURITY LABEL FOR session_limit ON ROLE erin IS '{"max": 2}'"#;
    let error = superuser.try_query(label).expect_err("a standby");
    assert_eq!(error.sqlstate(), "25006", "{error:?}");
    assert_eq!(superuser.value("SELECT pg_promote()"), "t");
    for (database, [_, second], source) in FULL {
        assert_refused(&standby.login_of(second).to(database), source);
    }
    assert!(sessions.iter_mut().all(Session::is_alive));
    superuser.query(label);
    assert_refused(&standby.login_of("erin"), "label on role erin");
    // Their ends are noticed, too.
    sessions.clear();
    wait_for("room", || standby.login_of("alice").login().ok());
}
