//! The views: what they show, to whom, and when the library is not there.

use crate::scene::{admitted, refused, wait_until};
use pg_test::client::Target;
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use std::thread;

tests![
    sessions,
    usage,
    waiters,
    status,
    whose_rows_one_sees,
    dropped_and_created_again,
    not_preloaded,
    everything_has_a_comment,
    no_function_minds_nulls,
    the_server_shows_its_name_and_version
];

fn sessions(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    cluster.sql(&["CREATE ROLE alice LOGIN", "CREATE EXTENSION session_limit"]);
    let named = Target {
        options: vec![("application_name".to_string(), "payroll".to_string())],
        ..cluster.tcp_login_of("alice")
    };
    let alice = named.login().expect("alice");
    let mut superuser = cluster.superuser();
    let sql = "SELECT s.pid, s.usename, s.datname, s.client_addr, s.application_name, s.backend_start = a.backend_start, s.exempt
        FROM session_limit.sessions s JOIN pg_stat_activity a USING (pid) ORDER BY s.usename";
    let row = |values: [&str; 7]| values.map(String::from).to_vec();
    let expected = [
        row([
            &alice.pid.to_string(),
            "alice",
            "postgres",
            "127.0.0.1",
            "payroll",
            "t",
            "f",
        ]),
        row([
            &superuser.pid.to_string(),
            "postgres",
            "postgres",
            "",
            "",
            "t",
            "t",
        ]),
    ];
    assert_eq!(superuser.query(sql), expected);
    assert_eq!(
        superuser.value("SELECT count(*) FROM session_limit.sessions WHERE client_addr IS NULL"),
        "1"
    );
}

fn usage(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.max_sessions_per_role", "4")]);
    let mut superuser = cluster.superuser();
    for sql in [
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN CONNECTION LIMIT 2",
        "CREATE ROLE carol LOGIN",
        "CREATE DATABASE app CONNECTION LIMIT 9",
        "CREATE EXTENSION session_limit",
    ] {
        superuser.query(sql);
    }
    let to_app = |role| cluster.login_of(role).to("app");
    let _alice = [
        to_app("alice").login().expect("alice"),
        cluster.login_of("alice").login().expect("alice"),
    ];
    let _bob = to_app("bob").login().expect("bob");
    let sql = "SELECT source, per, subject, in_use, max, free, waiting FROM session_limit.usage ORDER BY per, subject";
    let row = |values: [&str; 7]| values.map(String::from).to_vec();
    let expected = [
        row([
            "CONNECTION LIMIT of database app",
            "database",
            "app",
            "2",
            "9",
            "7",
            "0",
        ]),
        row([
            "session_limit.max_sessions_per_role",
            "role",
            "alice",
            "2",
            "4",
            "2",
            "0",
        ]),
        row([
            "CONNECTION LIMIT of role bob",
            "role",
            "bob",
            "1",
            "2",
            "1",
            "0",
        ]),
    ];
    assert_eq!(superuser.query(sql), expected);
    // Superusers are counted under a database's limit, and have none of their own.
    let to_app = cluster.login_of("postgres").to("app");
    let _superuser = to_app.login().expect("a superuser");
    let in_use = "SELECT string_agg(subject || ' ' || in_use, ', ' ORDER BY per, subject)
        FROM session_limit.usage";
    assert_eq!(superuser.value(in_use), "app 3, alice 2, bob 1");
    // A limit that was lowered since has no room, and not less than none.
    superuser.query("ALTER ROLE alice CONNECTION LIMIT 1");
    assert_eq!(
        superuser.value("SELECT free FROM session_limit.usage WHERE subject = 'alice'"),
        "0"
    );
}

/// Three limits cover alice's login; she waits for one of them.
fn waiters(server: &Server) {
    let cluster = Cluster::start(
        server,
        &[
            ("session_limit.max_wait", "10min"),
            ("authentication_timeout", "10min"),
            ("max_connections", "20"),
            (
                "session_limit.cluster_limits",
                r#"{"limits": [{"max": 9, "per": "cluster"}]}"#,
            ),
        ],
    );
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN CONNECTION LIMIT 1",
        "CREATE ROLE bob LOGIN",
        "CREATE DATABASE app CONNECTION LIMIT 5",
    ]);
    let mut superuser = cluster.superuser();
    let before = superuser.value("SELECT clock_timestamp()");
    let mut alice = admitted(&cluster.login_of("alice"));
    let mut bob = admitted(&cluster.login_of("bob"));
    let waiter = thread::spawn({
        let target = cluster.tcp_login_of("alice").to("app");
        move || admitted(&target)
    });
    let number = "SELECT count(*) FROM session_limit.waiters";
    wait_until(&mut superuser, number, "1");
    let sql = format!(
        "SELECT usename, datname, client_addr, waitstart BETWEEN '{before}' AND clock_timestamp(), limits
        FROM session_limit.waiters"
    );
    let limits = r#"[{"source" : "CONNECTION LIMIT of role alice", "per" : "role", "count" : "sessions", "across" : "server", "subject" : "alice"}]"#;
    let expected = [["alice", "app", "127.0.0.1", "t", limits]];
    assert_eq!(superuser.query(&sql), expected);
    let usage = "SELECT per, waiting, longest_wait BETWEEN '1 microsecond' AND '10 min'
        FROM session_limit.usage ORDER BY per";
    let expected = [
        ["cluster", "0", ""],
        ["database", "0", ""],
        ["role", "1", "t"],
    ];
    assert_eq!(superuser.query(usage), expected);
    // The server shows it, too.
    let pid = superuser.value("SELECT pid FROM session_limit.waiters");
    let title = cluster.processes("alice app 127.0.0.1");
    let title: Vec<String> = title
        .iter()
        .map(|it| it.as_raw_nonzero().to_string())
        .collect();
    assert_eq!(title, [&*pid]);
    assert_eq!(cluster.processes("waiting for room").len(), 1);
    let event = format!("SELECT wait_event FROM pg_stat_activity WHERE pid = {pid}");
    if server.major >= 18 {
        assert_eq!(superuser.value(&event), "SessionLimit");
    }
    assert_eq!(alice.value(number), "1");
    assert_eq!(bob.value(number), "0", "it is alice's");
    drop(alice);
    let second = waiter.join().expect("room");
    assert_eq!(second.pid.to_string(), pid);
    assert_eq!(superuser.value(number), "0");
    assert_eq!(cluster.processes("waiting for room").len(), 0);
}

fn status(server: &Server) {
    let cluster = Cluster::start(
        server,
        &[
            ("session_limit.max_wait", "10min"),
            ("authentication_timeout", "10min"),
        ],
    );
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN CONNECTION LIMIT 1",
    ]);
    let mut superuser = cluster.superuser();
    let versions = "SELECT library_version, extension_version FROM session_limit.status";
    let installed = superuser
        .value("SELECT default_version FROM pg_available_extensions WHERE name = 'session_limit'");
    assert_eq!(superuser.query(versions), [[&*installed, &*installed]]);
    let state = "SELECT enforcement, slots_in_use, slots >= current_setting('max_connections')::int, waiting, stats_lost
        FROM session_limit.status";
    let mut alice = admitted(&cluster.login_of("alice"));
    assert_eq!(superuser.query(state), [["on", "2", "t", "0", "f"]]);
    let waiter = thread::spawn({
        let target = cluster.login_of("alice");
        move || admitted(&target)
    });
    let servers = "SELECT etcd_reachable IS NULL FROM session_limit.status";
    assert_eq!(superuser.value(servers), "t", "there is no etcd");
    let waiting = "SELECT waiting FROM session_limit.status";
    wait_until(&mut superuser, waiting, "1");
    assert_eq!(superuser.query(state), [["on", "2", "t", "1", "f"]]);
    assert_eq!(alice.value(waiting), "", "who waits is not for everyone");
    drop(alice);
    waiter.join().expect("room");
    cluster.set(&[("session_limit.enforcement", "log")]);
    let enforcement = "SELECT enforcement FROM session_limit.status";
    wait_until(&mut superuser, enforcement, "log");
}

fn whose_rows_one_sees(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.max_sessions_per_role", "4")]);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
        "CREATE ROLE boss LOGIN IN ROLE bob",
        "CREATE ROLE monitor LOGIN IN ROLE pg_monitor",
        "CREATE DATABASE app CONNECTION LIMIT 9",
    ]);
    let mut logins =
        ["alice", "bob", "boss", "monitor"].map(|role| cluster.login_of(role).login().expect("in"));
    let _app = cluster.login_of("bob").to("app").login().expect("in");
    let [alice, bob, boss, monitor] = &mut logins;
    let all = "SELECT string_agg(usename, ' ' ORDER BY usename) FROM session_limit.sessions";
    assert_eq!(alice.value(all), "alice");
    assert_eq!(bob.value(all), "bob bob");
    assert_eq!(boss.value(all), "bob bob boss", "as a member of bob");
    assert_eq!(monitor.value(all), "alice bob bob boss monitor");
    let all = "SELECT string_agg(subject, ' ' ORDER BY subject) FROM session_limit.usage";
    assert_eq!(
        alice.value(all),
        "alice app",
        "what is set on a database is no secret"
    );
    assert_eq!(bob.value(all), "app bob");
    assert_eq!(boss.value(all), "app bob boss");
    assert_eq!(monitor.value(all), "alice app bob boss monitor");
    // The functions under the views tell no more.
    assert_eq!(
        alice.value("SELECT count(*) FROM session_limit.active_sessions()"),
        "1"
    );
    assert_eq!(
        alice.value("SELECT count(*) FROM session_limit.current_usage()"),
        "2"
    );
}

fn dropped_and_created_again(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.max_sessions_per_role", "1")]);
    cluster.sql(&["CREATE ROLE alice LOGIN"]);
    let _alice = cluster.login_of("alice").login().expect("the first");
    let mut superuser = cluster.superuser();
    for _ in 0..2 {
        superuser.query("CREATE EXTENSION session_limit");
        assert_eq!(
            superuser.value("SELECT count(*) FROM session_limit.sessions"),
            "2"
        );
        superuser.query("DROP EXTENSION session_limit");
        let left = "SELECT count(*) FROM pg_namespace WHERE nspname = 'session_limit'";
        assert_eq!(superuser.value(left), "0");
        // Enforcement needs none of it.
        assert_eq!(refused(&cluster.login_of("alice")).sqlstate(), "53300");
    }
}

fn not_preloaded(server: &Server) {
    let cluster = Cluster::plain(server, &[]);
    let mut superuser = cluster.superuser();
    superuser.query("CREATE EXTENSION session_limit");
    let objects = [
        "session_limit.sessions",
        "session_limit.usage",
        "session_limit.active_sessions()",
        "session_limit.current_usage()",
        "session_limit.events",
        "session_limit.recent_events()",
        "session_limit.limits",
        "session_limit.role_limits",
        "session_limit.stats",
        "session_limit.current_stats()",
        "session_limit.reset_stats()",
        "session_limit.limit_stats",
        "session_limit.current_limit_stats()",
        "session_limit.waiters",
        "session_limit.current_waiters()",
        "session_limit.status",
        "session_limit.current_status()",
        "session_limit.explain_login('postgres')",
        "session_limit.set_limit(role => 'postgres', max => 1)",
        "session_limit.clear_limit(role => 'postgres')",
    ];
    for object in objects {
        let error = superuser
            .try_query(&format!("SELECT * FROM {object}"))
            .expect_err("no shared memory");
        assert_eq!(error.sqlstate(), "55000", "{object}: {error:?}");
        assert_eq!(
            error.message(),
            r#"session_limit must be loaded via "shared_preload_libraries""#
        );
        assert_eq!(
            error.hint(),
            "Add session_limit to shared_preload_libraries in postgresql.conf and restart the server."
        );
    }
    superuser.query("LOAD 'session_limit'");
    assert!(superuser.is_alive());
    superuser.query("DROP EXTENSION session_limit");
}

fn everything_has_a_comment(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    let mut superuser = cluster.superuser();
    superuser.query("CREATE EXTENSION session_limit");
    let bare = "
        SELECT 'function ' || proname FROM pg_proc WHERE pronamespace = 'session_limit'::regnamespace
            AND obj_description(oid, 'pg_proc') IS NULL
        UNION ALL
        SELECT 'view ' || relname FROM pg_class WHERE relnamespace = 'session_limit'::regnamespace
            AND obj_description(oid, 'pg_class') IS NULL
        UNION ALL
        SELECT 'column ' || relname || '.' || attname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
            WHERE relnamespace = 'session_limit'::regnamespace AND attnum > 0 AND col_description(attrelid, attnum) IS NULL
        UNION ALL
        SELECT 'setting ' || name FROM pg_settings WHERE name LIKE 'session_limit.%' AND short_desc IS NULL";
    assert_eq!(superuser.query(bare), Vec::<Vec<String>>::new());
    assert_eq!(
        superuser.value("SELECT count(*) FROM pg_settings WHERE name LIKE 'session_limit.%'"),
        "29"
    );
}

/// Every function, with each of its arguments null, by someone with no rights at all.
fn no_function_minds_nulls(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN",
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA session_limit TO alice",
    ]);
    let mut alice = cluster.login_of("alice").login().expect("alice");
    let functions = alice.query(
        "SELECT oid::regproc, proargtypes::regtype[], pronargs FROM pg_proc
        WHERE pronamespace = 'session_limit'::regnamespace AND pronargs > 0",
    );
    assert!(functions.len() > 3, "{functions:?}");
    for function in functions {
        let types = function[1].trim_matches(|c: char| "[]{}0123456789:=".contains(c));
        let types: Vec<&str> = types.split(',').collect();
        for null in 0..=types.len() {
            let argument = |(index, of): (usize, &&str)| match *of {
                _ if index == null || null == types.len() => format!("NULL::{of}"),
                "integer" => "1".to_string(),
                "boolean" => "true".to_string(),
                "jsonb" => "'{}'".to_string(),
                "cidr" | "inet" => "'10.0.0.1'".to_string(),
                "interval" => "'1s'".to_string(),
                "uuid" => "gen_random_uuid()".to_string(),
                _ => "'alice'".to_string(),
            };
            let arguments: Vec<String> = types.iter().enumerate().map(argument).collect();
            let sql = format!("SELECT * FROM {}({})", function[0], arguments.join(", "));
            if let Err(error) = alice.try_query(&sql) {
                let expected = ["22004", "22023", "42501", "3D000", "42704"];
                assert!(expected.contains(&error.sqlstate()), "{sql}: {error:?}");
            }
        }
    }
    assert!(!cluster.log().contains("terminated by signal"));
}

/// From 18 on.
fn the_server_shows_its_name_and_version(server: &Server) {
    if server.major < 18 {
        return;
    }
    let cluster = Cluster::start(server, &[]);
    let mut superuser = cluster.superuser();
    superuser.query("CREATE EXTENSION session_limit");
    let sql = "SELECT l.module_name, l.version = e.extversion, l.file_name
        FROM pg_get_loaded_modules() l, pg_extension e
        WHERE l.file_name LIKE 'session_limit%' AND e.extname = 'session_limit'";
    assert_eq!(
        superuser.query(sql),
        [["session_limit", "t", "session_limit.so"]]
    );
}
