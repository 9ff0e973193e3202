//! `session_limit.stats`: what is counted, for whom, and what is left of it after a stop of each kind.

use crate::scene::{admitted, crash, refused, wait_until};
use pg_test::client::{Session, Target};
use pg_test::cluster::{Cluster, Stop};
use pg_test::server::Server;
use pg_test::wait_for;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::thread;

tests![
    each_counter,
    a_storm_is_counted_exactly,
    each_role_and_database_has_its_own,
    more_than_there_is_room_for,
    no_two_rows_have_the_same_key,
    whose_rows_one_sees,
    only_superusers_reset_them,
    a_clean_restart_keeps_them,
    a_failed_start_keeps_them,
    an_immediate_stop_loses_them,
    a_crash_loses_them,
    a_damaged_file_loses_them,
    a_file_that_cannot_be_written_loses_them,
];

const COUNTERS: &str =
    "admitted, waited, refused, replaced, would_refuse, would_replace, peak, decisions";

/// Alice may have one session, unless a test says otherwise.
fn cluster(server: &Server, settings: &[(&str, &str)]) -> Cluster {
    let mut all = vec![("session_limit.max_sessions_per_role", "1")];
    all.extend(settings);
    let cluster = Cluster::start(server, &all);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
    ]);
    cluster
}

fn of_alice(superuser: &mut Session, columns: &str) -> Vec<String> {
    let sql = format!("SELECT {columns} FROM session_limit.stats WHERE usename = 'alice'");
    let mut rows = superuser.query(&sql);
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.remove(0)
}

fn counters_of_alice(superuser: &mut Session) -> [u64; 8] {
    let values = of_alice(superuser, COUNTERS);
    let values: Vec<u64> = values
        .iter()
        .map(|value| value.parse().expect(value))
        .collect();
    values.try_into().expect("eight counters")
}

/// Everything about all but the superuser, who comes to look.
fn all(cluster: &Cluster) -> Vec<Vec<String>> {
    let mut superuser = cluster.superuser();
    superuser.query(
        "SELECT * FROM session_limit.stats WHERE usename IS DISTINCT FROM 'postgres' ORDER BY usename, datname",
    )
}

fn each_counter(server: &Server) {
    let cluster = cluster(server, &[]);
    let mut superuser = cluster.superuser();
    let login = || cluster.login_of("alice").login();
    let now = |superuser: &mut Session| superuser.value("SELECT clock_timestamp()");
    let is_after = |superuser: &mut Session, column: &str, time: &str| {
        of_alice(superuser, &format!("{column} > '{time}'")) == ["t"]
    };

    let start = now(&mut superuser);
    let first = login().expect("the first");
    assert_eq!(counters_of_alice(&mut superuser), [1, 0, 0, 0, 0, 0, 1, 1]);
    assert_eq!(
        of_alice(&mut superuser, "wait_time, last_refused, others"),
        ["00:00:00", "", "f"]
    );
    assert!(is_after(&mut superuser, "peak_at", &start));
    let after_first = now(&mut superuser);
    let deciding = |superuser: &mut Session| -> u64 {
        of_alice(superuser, "decision_us")[0]
            .parse()
            .expect("a number")
    };
    let by_first = deciding(&mut superuser);
    assert!(by_first > 0);

    // It waits, and is refused.
    refused(&cluster.login_of("alice"));
    assert_eq!(counters_of_alice(&mut superuser), [1, 1, 1, 0, 0, 0, 1, 2]);
    assert!(is_after(&mut superuser, "last_refused", &after_first));
    assert!(!is_after(&mut superuser, "peak_at", &after_first));
    assert_eq!(
        of_alice(&mut superuser, "wait_time >= '90ms'"),
        ["t"],
        "of 100 ms"
    );
    assert!(deciding(&mut superuser) > by_first);
    // It is refused at once.
    cluster.set(&[("session_limit.max_wait", "0")]);
    refused(&cluster.login_of("alice"));
    assert_eq!(counters_of_alice(&mut superuser), [1, 1, 2, 0, 0, 0, 1, 3]);

    // It waits, and is admitted.
    cluster.set(&[("session_limit.max_wait", "60s")]);
    let waiter = thread::spawn({
        let target = cluster.login_of("alice");
        move || target.login()
    });
    let waiting = "SELECT waiting FROM session_limit.usage WHERE subject = 'alice'";
    wait_until(&mut superuser, waiting, "1");
    drop(first);
    let second = waiter.join().expect("the thread").expect("room");
    assert_eq!(counters_of_alice(&mut superuser), [2, 2, 2, 0, 0, 0, 1, 4]);

    cluster.set(&[("session_limit.enforcement", "log")]);
    let after_second = now(&mut superuser);
    let third = login().expect("a dry run");
    assert_eq!(counters_of_alice(&mut superuser), [3, 2, 2, 0, 1, 0, 2, 5]);
    assert!(is_after(&mut superuser, "peak_at", &after_second));
    assert!(!is_after(&mut superuser, "last_refused", &after_second));
    cluster.set(&[("session_limit.enforcement", "off")]);
    let fourth = login().expect("only counted");
    assert_eq!(counters_of_alice(&mut superuser), [4, 2, 2, 0, 1, 0, 3, 6]);
    drop((second, third, fourth));

    // The peak stays.
    cluster.wait_until_gone("alice");
    login().expect("one").end();
    assert_eq!(counters_of_alice(&mut superuser), [5, 2, 2, 0, 1, 0, 3, 7]);
    assert_eq!(of_alice(&mut superuser, "stats_reset < peak_at"), ["t"]);
}

fn a_storm_is_counted_exactly(server: &Server) {
    let settings = [("session_limit.max_sessions_per_role", "7")];
    let cluster = cluster(server, &settings);
    let mut superuser = cluster.superuser();
    let mut expected = [0; 8];
    for max_wait in ["0", "100ms", "0"] {
        cluster.set(&[("session_limit.max_wait", max_wait)]);
        let outcomes = cluster.login_of("alice").storm(50);
        let in_now = outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64;
        expected[0] += in_now;
        expected[2] += 50 - in_now;
        let found = counters_of_alice(&mut superuser);
        expected[1] = found[1];
        (expected[6], expected[7]) = (7, expected[7] + 50);
        assert_eq!(found, expected);
        assert_eq!(in_now, 7);
        drop(outcomes);
        cluster.wait_until_gone("alice");
    }
    let waited = expected[1];
    assert!((1..=50).contains(&waited), "{waited} waited, of a storm");
}

fn each_role_and_database_has_its_own(server: &Server) {
    let settings = [("session_limit.exempt_superusers", "on")];
    let cluster = cluster(server, &settings);
    cluster.sql(&[
        "CREATE DATABASE app",
        "CREATE ROLE standby LOGIN REPLICATION",
    ]);
    let walsender = Target {
        database: None,
        ..cluster.login_of("standby")
    };
    let replicating = Target {
        options: vec![("replication".to_string(), "database".to_string())],
        ..cluster.login_of("standby").to("app")
    };
    for target in [
        cluster.login_of("alice"),
        cluster.login_of("alice").to("app"),
        cluster.login_of("bob").to("app"),
        walsender,
        replicating,
    ] {
        target.login().expect("room").end();
    }
    let own = |cluster: &Cluster| -> Vec<String> {
        let mut superuser = cluster.superuser();
        let sql =
            "SELECT concat_ws(' ', coalesce(usename, '?'), coalesce(datname, '?'), admitted, peak)
            FROM session_limit.stats WHERE usename IS DISTINCT FROM 'postgres' ORDER BY 1";
        superuser.query(sql).concat()
    };
    assert_eq!(
        own(&cluster),
        [
            "alice app 1 1",
            "alice postgres 1 1",
            "bob app 1 1",
            "standby ? 1 1",
            "standby app 1 1"
        ]
    );
    // An exempt superuser is counted like others.
    let mut superusers = [cluster.superuser(), cluster.superuser()];
    let peak = "SELECT peak >= 2 AND admitted = decisions FROM session_limit.stats WHERE usename = 'postgres' AND datname = 'postgres'";
    assert_eq!(superusers[0].value(peak), "t");
    // Who is refused by the server has not been decided by a limit.
    refused(&cluster.login_of("nobody"));
    refused(&cluster.login_of("bob").to("nowhere"));
    assert_eq!(own(&cluster).len(), 5);
    // What is dropped stays, without its name.
    cluster.sql(&["DROP DATABASE app", "DROP ROLE alice"]);
    assert_eq!(
        own(&cluster),
        [
            "? ? 1 1",
            "? postgres 1 1",
            "bob ? 1 1",
            "standby ? 1 1",
            "standby ? 1 1"
        ]
    );
}

/// For 1,000 pairs.
fn more_than_there_is_room_for(server: &Server) {
    let mut cluster = cluster(server, &[]);
    let mut superuser = cluster.superuser();
    superuser.query(
        "DO $$ BEGIN FOR i IN 1..1005 LOOP EXECUTE format('CREATE ROLE r%s LOGIN', i); END LOOP; END $$",
    );
    // The superuser has a row as well.
    for role in 1..=1005 {
        cluster
            .login_of(&format!("r{role}"))
            .login()
            .expect("room")
            .end();
    }
    let sql = "SELECT count(*), sum(admitted), sum(decisions) FROM session_limit.stats WHERE NOT others AND usename LIKE 'r%'";
    assert_eq!(superuser.query(sql), [["999", "999", "999"]]);
    let others =
        "SELECT usename, datname, admitted, decisions, peak FROM session_limit.stats WHERE others";
    let row = |logins: &str| vec![["", "", logins, logins, "1"].map(String::from).to_vec()];
    assert_eq!(superuser.query(others), row("6"));
    cluster.login_of("r1005").login().expect("room").end();
    let mut known = cluster.login_of("r1").login().expect("room");
    assert_eq!(superuser.query(others), row("7"));
    let seen = "SELECT string_agg(coalesce(usename, '?'), ' ') FROM session_limit.stats";
    assert_eq!(known.value(seen), "r1", "and not that of the others");
    known.end();
    superuser.end();
    let before = all(&cluster);
    assert_eq!(before.len(), 1000);
    cluster.stop(Stop::Fast);
    cluster.start_again();
    assert_eq!(all(&cluster), before);
    dropped_ones_make_room(&cluster);
    let mut superuser = cluster.superuser();
    superuser.query("SELECT session_limit.reset_stats()");
    assert_eq!(
        superuser.value("SELECT count(*) FROM session_limit.stats"),
        "0"
    );
    cluster.login_of("r1005").login().expect("room").end();
    assert_eq!(
        superuser.value("SELECT usename FROM session_limit.stats WHERE NOT others"),
        "r1005"
    );
}

/// Of 1,000 roles with a row only `r1` and the superuser stay.
fn dropped_ones_make_room(cluster: &Cluster) {
    let mut superuser = cluster.superuser();
    let counted = "SELECT sum(admitted), sum(decisions), max(peak) FROM session_limit.stats";
    let before = superuser.query(counted);
    superuser.query(
        "DO $$ BEGIN FOR i IN 2..1004 LOOP EXECUTE format('DROP ROLE r%s', i); END LOOP; END $$",
    );
    let own = "SELECT string_agg(usename, ' ' ORDER BY usename), count(*) FROM session_limit.stats WHERE NOT others";
    let left = [["postgres r1", "2"]];
    wait_for("the worker to make room", || {
        (superuser.query(own) == left).then_some(())
    });
    assert_eq!(superuser.query(counted), before, "none is lost");
    cluster.login_of("r1005").login().expect("room").end();
    let left = [["postgres r1 r1005", "3"]];
    assert_eq!(superuser.query(own), left, "a new one has its own row");
}

/// Also where names are gone.
fn no_two_rows_have_the_same_key(server: &Server) {
    let cluster = cluster(server, &[]);
    cluster.sql(&["CREATE DATABASE app", "CREATE DATABASE web"]);
    for role in ["alice", "bob"] {
        for database in ["postgres", "app", "web"] {
            admitted(&cluster.login_of(role).to(database)).end();
            cluster.wait_until_gone(role);
        }
    }
    let mut superuser = cluster.superuser();
    let keys = "SELECT count(DISTINCT (usesysid, datid, others)) FROM session_limit.stats";
    let of_two = format!("{keys} WHERE usename IS DISTINCT FROM 'postgres'");
    let known = format!(
        "{keys} JOIN pg_roles r ON r.oid = usesysid JOIN pg_database d ON d.oid = datid
        WHERE r.rolname = usename AND d.datname = stats.datname AND usename <> 'postgres'"
    );
    assert_eq!(superuser.value(&known), "6");
    for sql in [
        "DROP DATABASE app",
        "DROP DATABASE web",
        "DROP ROLE alice",
        "DROP ROLE bob",
    ] {
        superuser.query(sql);
    }
    assert_eq!(superuser.value(&of_two), "6");
}

fn whose_rows_one_sees(server: &Server) {
    let cluster = cluster(server, &[]);
    cluster.sql(&[
        "CREATE ROLE boss LOGIN IN ROLE bob",
        "CREATE ROLE monitor LOGIN IN ROLE pg_monitor",
        "CREATE ROLE gone LOGIN",
    ]);
    cluster.login_of("gone").login().expect("room").end();
    cluster.sql(&["DROP ROLE gone"]);
    let mut logins =
        ["alice", "bob", "boss", "monitor"].map(|role| cluster.login_of(role).login().expect("in"));
    let [alice, bob, boss, monitor] = &mut logins;
    for source in [
        "session_limit.stats",
        "session_limit.current_stats() s LEFT JOIN pg_roles ON oid = usesysid CROSS JOIN LATERAL (SELECT rolname AS usename) u",
    ] {
        let names = format!(
            "SELECT string_agg(coalesce(usename, '?'), ' ' ORDER BY usename) FROM {source}"
        );
        assert_eq!(alice.value(&names), "alice");
        assert_eq!(bob.value(&names), "bob");
        assert_eq!(boss.value(&names), "bob boss", "as a member of bob");
        assert_eq!(monitor.value(&names), "alice bob boss monitor postgres ?");
    }
}

fn only_superusers_reset_them(server: &Server) {
    let cluster = cluster(server, &[]);
    let mut alice = cluster.login_of("alice").login().expect("alice");
    let reset = "SELECT session_limit.reset_stats()";
    let error = alice.try_query(reset).expect_err("not for alice");
    assert_eq!(error.sqlstate(), "42501", "{error:?}");
    let mut superuser = cluster.superuser();
    let before = of_alice(&mut superuser, "stats_reset").remove(0);
    superuser.query(reset);
    assert_eq!(
        superuser.value("SELECT count(*) FROM session_limit.stats"),
        "0"
    );
    let since = superuser.value("SELECT clock_timestamp()");
    alice.query("SELECT 1");
    drop(alice);
    cluster.wait_until_gone("alice");
    let mut alice = cluster.login_of("alice").login().expect("alice");
    let times = format!("stats_reset > '{before}', stats_reset < '{since}', peak_at > '{since}'");
    assert_eq!(of_alice(&mut superuser, &times), ["t", "t", "t"]);
    assert_eq!(counters_of_alice(&mut superuser), [1, 0, 0, 0, 0, 0, 1, 1]);
    superuser.query("GRANT EXECUTE ON FUNCTION session_limit.reset_stats() TO alice");
    alice.query(reset);
    assert_eq!(
        superuser.value("SELECT count(*) FROM session_limit.stats"),
        "0"
    );
}

/// Something to keep: an admitted and a refused login.
fn count_something(cluster: &Cluster) -> Vec<Vec<String>> {
    cluster.set(&[("session_limit.max_wait", "0")]);
    let first = cluster.login_of("alice").login().expect("room");
    refused(&cluster.login_of("alice"));
    cluster.login_of("bob").login().expect("room").end();
    first.end();
    let found = all(cluster);
    assert_eq!(found.len(), 2);
    found
}

fn file(cluster: &Cluster) -> PathBuf {
    cluster.dir.join("data/pg_stat/session_limit.stat")
}

/// What the view `status` says.
fn are_lost(cluster: &Cluster) -> bool {
    let mut superuser = cluster.superuser();
    superuser.value("SELECT stats_lost FROM session_limit.status") == "t"
}

const LOST: &str =
    r#"LOG:  session_limit: could not read "pg_stat/session_limit.stat", statistics begin anew: "#;

fn a_clean_restart_keeps_them(server: &Server) {
    let mut cluster = cluster(server, &[]);
    let before = count_something(&cluster);
    for _ in 0..2 {
        cluster.stop(Stop::Fast);
        assert!(file(&cluster).is_file());
        cluster.start_again();
        assert!(!file(&cluster).exists(), "only while the server is down");
        assert_eq!(all(&cluster), before);
    }
    // And go on from there.
    cluster.login_of("alice").login().expect("room").end();
    assert_eq!(
        counters_of_alice(&mut cluster.superuser()),
        [2, 0, 1, 0, 0, 0, 1, 3]
    );
    assert!(!cluster.log().contains(LOST), "nothing was wrong");
    assert!(!are_lost(&cluster));
    let left = fs::read_dir(cluster.dir.join("data/pg_stat"))
        .expect("pg_stat")
        .count();
    assert_eq!(left, 0);
}

fn a_failed_start_keeps_them(server: &Server) {
    let mut cluster = cluster(server, &[]);
    let before = count_something(&cluster);
    cluster.stop(Stop::Fast);
    let hba = fs::read_to_string(cluster.dir.join("data/pg_hba.conf")).expect("pg_hba.conf");
    cluster.write("pg_hba.conf", "nonsense\n");
    assert!(!cluster.starts());
    cluster.stop(Stop::Fast);
    cluster.write("pg_hba.conf", &hba);
    cluster.start_again();
    assert_eq!(all(&cluster), before);
}

fn an_immediate_stop_loses_them(server: &Server) {
    let mut cluster = cluster(server, &[]);
    count_something(&cluster);
    cluster.stop(Stop::Fast);
    cluster.start_again();
    cluster.stop(Stop::Immediate);
    assert!(!file(&cluster).exists());
    cluster.start_again();
    assert_eq!(all(&cluster), Vec::<Vec<String>>::new());
    assert!(!cluster.log().contains(LOST), "that is no error");
    // They are counted, and kept, again.
    let before = count_something(&cluster);
    cluster.stop(Stop::Fast);
    cluster.start_again();
    assert_eq!(all(&cluster), before);
    assert!(are_lost(&cluster), "those from before");
    cluster.sql(&["SELECT session_limit.reset_stats()"]);
    assert!(!are_lost(&cluster), "nobody misses them");
}

fn a_crash_loses_them(server: &Server) {
    let mut cluster = cluster(server, &[("restart_after_crash", "on")]);
    count_something(&cluster);
    cluster.stop(Stop::Fast);
    cluster.start_again();
    let alice = cluster.login_of("alice").login().expect("room");
    assert!(!are_lost(&cluster));
    crash(&cluster, &alice);
    assert_eq!(all(&cluster), Vec::<Vec<String>>::new());
    assert!(are_lost(&cluster));
    let before = count_something(&cluster);
    cluster.stop(Stop::Fast);
    cluster.start_again();
    assert_eq!(all(&cluster), before);
    assert!(!cluster.log().contains(LOST));
}

fn a_damaged_file_loses_them(server: &Server) {
    let mut cluster = cluster(server, &[]);
    let mut since = String::new();
    type Damage = fn(&PathBuf);
    fn edit(file: &PathBuf, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(file).expect("the file");
        edit(&mut bytes);
        fs::write(file, bytes).expect("damage the file");
    }
    let damages: [(Damage, &str); 10] = [
        (
            |file| edit(file, |bytes| bytes[60] ^= 1),
            "its checksum is wrong",
        ),
        (
            |file| edit(file, |bytes| *bytes.last_mut().expect("a byte") ^= 128),
            "its checksum is wrong",
        ),
        (
            |file| edit(file, |bytes| bytes.truncate(100)),
            "its checksum is wrong",
        ),
        (
            |file| edit(file, |bytes| bytes["session_limit statistics ".len()] += 1),
            "another version wrote it",
        ),
        (|file| edit(file, Vec::clear), "it is too short"),
        (
            |file| edit(file, |bytes| bytes.fill(b'x')),
            "it has no statistics of session_limit",
        ),
        (
            |file| edit(file, |bytes| bytes.extend([0; 8])),
            "its checksum is wrong",
        ),
        (
            // More than there is memory.
            |file| {
                fs::File::options()
                    .write(true)
                    .open(file)
                    .and_then(|file| file.set_len(1 << 40))
                    .expect("a huge file")
            },
            "its checksum is wrong",
        ),
        (
            |file| {
                fs::set_permissions(file, fs::Permissions::from_mode(0o000))
                    .expect("close the file")
            },
            "Permission denied",
        ),
        (
            |file| {
                fs::remove_file(file).expect("remove the file");
                fs::create_dir(file).expect("a directory");
            },
            "it is not a regular file",
        ),
    ];
    for (damage, why) in damages {
        count_something(&cluster);
        let counted_since = cluster
            .superuser()
            .value("SELECT max(stats_reset) FROM session_limit.stats");
        assert_ne!(counted_since, since);
        since = counted_since;
        cluster.stop(Stop::Fast);
        damage(&file(&cluster));
        let logged = cluster.log().len();
        cluster.start_again();
        assert_eq!(all(&cluster), Vec::<Vec<String>>::new(), "{why}");
        assert!(are_lost(&cluster), "{why}");
        cluster.sql(&["SELECT session_limit.reset_stats()"]);
        let log = cluster.log().split_off(logged);
        assert_eq!(log.matches("statistics begin anew").count(), 1, "{log}");
        assert!(log.contains(&format!("{LOST}{why}")), "{log}");
    }
    fs::remove_dir(file(&cluster)).expect("the directory");
    let before = count_something(&cluster);
    cluster.stop(Stop::Fast);
    cluster.start_again();
    assert_eq!(all(&cluster), before);
}

fn a_file_that_cannot_be_written_loses_them(server: &Server) {
    let mut cluster = cluster(server, &[]);
    count_something(&cluster);
    fs::create_dir(file(&cluster)).expect("a directory");
    cluster.stop(Stop::Fast);
    let log = cluster.log();
    let complaint = r#"LOG:  session_limit: could not write "pg_stat/session_limit.stat", statistics are not kept: "#;
    assert!(log.contains(complaint), "{log}");
    assert!(log.contains("database system is shut down"), "{log}");
    fs::remove_dir(file(&cluster)).expect("the directory");
    cluster.start_again();
    assert_eq!(all(&cluster), Vec::<Vec<String>>::new());
    // It goes nowhere, and a pipe would stop the postmaster.
    let before = count_something(&cluster);
    symlink("nowhere/at/all", file(&cluster).with_extension("stat.tmp")).expect("a link");
    cluster.stop(Stop::Fast);
    cluster.start_again();
    assert_eq!(all(&cluster), before);
}
