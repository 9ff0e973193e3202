//! The views and the function that show limits: `limits`, `usage` of every kind, `role_limits`,
//! `explain_login`.

use crate::scene::{admitted, refused, set_label, wait_until};
use pg_test::client::{Session, Target};
use pg_test::cluster::Cluster;
use pg_test::server::Server;

tests![
    every_limit_that_is_set,
    usage_of_every_kind,
    across_servers,
    the_limit_of_each_role,
    explained_with_names_and_numbers,
    what_cannot_be_explained,
    explained_to_an_ordinary_role,
    what_others_may_see,
    counts_from_the_commit
];

fn start(server: &Server) -> (Cluster, Session) {
    let cluster = Cluster::start(server, &[("session_limit.max_wait", "0")]);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE team",
        "CREATE ROLE alice LOGIN CONNECTION LIMIT 7 IN ROLE team",
        "CREATE ROLE bob LOGIN",
        "CREATE DATABASE app CONNECTION LIMIT 90",
        r#"SECURITY LABEL FOR session_limit ON ROLE alice IS
            '{"limits": [{"max": 2, "database": "app"}, {"max": 1, "database": "gone", "on_excess": "refuse"}], "max_wait": "3s"}'"#,
        r#"SECURITY LABEL FOR session_limit ON ROLE team IS
            '{"limits": [{"max": 5, "per": "group"}, {"max": 3, "per": "address", "network": "127.0.0.0/8", "enforcement": "log"}], "on_excess": "replace_oldest"}'"#,
        r#"SECURITY LABEL FOR session_limit ON DATABASE app IS '{"max": 4, "per": "role"}'"#,
    ]);
    cluster.set(&[
        (
            "session_limit.cluster_limits",
            r#"{"limits": [{"max": 50, "per": "cluster"}, {"max": -1, "per": "database"}]}"#,
        ),
        ("session_limit.max_sessions_per_role", "9"),
    ]);
    let superuser = cluster.superuser();
    (cluster, superuser)
}

/// Rows as `psql` would align them, without the blanks.
fn lines(rows: Vec<Vec<String>>) -> Vec<String> {
    rows.iter().map(|row| row.join("|")).collect()
}

fn every_limit_that_is_set(server: &Server) {
    let (cluster, mut superuser) = start(server);
    let sql = "SELECT source, per, subject, database, network, max, on_excess, max_wait, enforcement, unmatched
        FROM session_limit.limits ORDER BY source COLLATE \"C\", per, database";
    let expected = [
        "CONNECTION LIMIT of database app|database|app|||90|refuse|00:00:00|on|f",
        "CONNECTION LIMIT of role alice|role|alice|||7|replace_oldest|00:00:03|on|f",
        "label on database app|role|app|||4|refuse|00:00:00|on|f",
        "label on role alice|role|alice|app||2|refuse|00:00:03|on|f",
        "label on role alice|role|alice|gone||1|refuse|00:00:03|on|t",
        "label on role team|address|team||127.0.0.0/8|3|replace_oldest|00:00:00|log|f",
        "label on role team|group|team|||5|replace_oldest|00:00:00|on|f",
        "session_limit.cluster_limits|cluster||||50|refuse|00:00:00|on|f",
        "session_limit.cluster_limits|database||||-1|refuse|00:00:00|on|f",
        "session_limit.max_sessions_per_role|role||||9|refuse|00:00:00|on|f",
    ];
    assert_eq!(lines(superuser.query(sql)), expected);
    // A database of that name is what the limit waits for, and a rename is not followed.
    superuser.query("CREATE DATABASE gone");
    let unmatched = "SELECT string_agg(database, ' ') FROM session_limit.limits WHERE unmatched";
    assert_eq!(superuser.value(unmatched), "");
    superuser.query("ALTER DATABASE app RENAME TO web");
    assert_eq!(superuser.value(unmatched), "app");
    for (enforcement, shown) in [("log", "log"), ("off", "off")] {
        cluster.set(&[("session_limit.enforcement", enforcement)]);
        assert_eq!(
            cluster
                .superuser()
                .value("SELECT DISTINCT enforcement FROM session_limit.limits"),
            shown
        );
    }
}

fn usage_of_every_kind(server: &Server) {
    let (cluster, mut superuser) = start(server);
    let to_app = |target: Target| target.to("app");
    let _sessions = [
        to_app(cluster.login_from("alice", "127.0.0.2"))
            .login()
            .expect("alice"),
        to_app(cluster.login_of("bob")).login().expect("bob"),
        cluster.login_of("alice").login().expect("alice"),
    ];
    let sql = "SELECT source, per, subject, in_use, max, free, waiting FROM session_limit.usage ORDER BY source COLLATE \"C\", subject";
    let expected = [
        "CONNECTION LIMIT of database app|database|app|2|90|88|0",
        "CONNECTION LIMIT of role alice|role|alice|2|7|5|0",
        "label on database app|role|alice in app|1|4|3|0",
        "label on database app|role|bob in app|1|4|3|0",
        "label on role alice|role|alice in app|1|2|1|0",
        "label on role team|address|alice from 127.0.0.2|1|3|2|0",
        "label on role team|group|team|2|5|3|0",
        "session_limit.cluster_limits|cluster||4|50|46|0",
        "session_limit.max_sessions_per_role|role|bob|1|9|8|0",
    ];
    assert_eq!(lines(superuser.query(sql)), expected);
    // The subject in parts.
    superuser.query(&set_label(
        "DATABASE app",
        r#"{"max": 9, "network": "127.0.0.0/8"}"#,
    ));
    let sql = "SELECT per, rolname, datname, client_addr, network FROM session_limit.usage
        ORDER BY per, rolname, datname, network";
    let expected = [
        "address|alice||127.0.0.2|",
        "cluster||||",
        "database||app||127.0.0.0/8",
        "database||app||",
        "group|team|||",
        "role|alice|app||",
        "role|alice|||",
        "role|bob|||",
    ];
    assert_eq!(lines(superuser.query(sql)), expected);
}

/// A limit across servers beside the same on this server: each has its own row everywhere, and both hold.
fn across_servers(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.max_wait", "0")]);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
        r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"limits": [{"max": 3, "across": "servers"}, {"max": 2}]}'"#,
    ]);
    let limits = r#"{"limits": [{"max": 9, "per": "cluster", "across": "servers"}, {"max": 4, "per": "role", "across": "servers"}]}"#;
    cluster.set(&[("session_limit.cluster_limits", limits)]);
    let mut superuser = cluster.superuser();
    let sql = "SELECT source, per, max, across FROM session_limit.limits ORDER BY source COLLATE \"C\", max";
    let expected = [
        "label on role alice|role|2|server",
        "label on role alice|role|3|servers",
        "session_limit.cluster_limits|role|4|servers",
        "session_limit.cluster_limits|cluster|9|servers",
    ];
    assert_eq!(lines(superuser.query(sql)), expected);
    let sql = "SELECT usename, max, source FROM session_limit.role_limits ORDER BY usename LIMIT 2";
    let expected = [
        "alice|2|label on role alice",
        "bob|4|session_limit.cluster_limits",
    ];
    assert_eq!(lines(superuser.query(sql)), expected);

    let alice = cluster.login_of("alice");
    let _sessions = [admitted(&alice), admitted(&alice)];
    let usage = "SELECT per, subject, in_use, max, free, across, elsewhere FROM session_limit.usage ORDER BY max, subject";
    let expected = [
        "role|alice|2|2|0|server|",
        "role|alice|2|3|1|servers|",
        "cluster||3|9|6|servers|",
    ];
    assert_eq!(lines(superuser.query(usage)), expected);
    let explain = "SELECT per, in_use, max, fits, count, across, elsewhere FROM session_limit.explain_login('alice') ORDER BY max";
    let expected = [
        "role|2|2|f|sessions|server|",
        "role|2|3|t|sessions|servers|",
        "cluster|3|9|t|sessions|servers|",
    ];
    assert_eq!(lines(superuser.query(explain)), expected);
    let refusal = refused(&alice);
    assert_eq!(refusal.sqlstate(), "53300", "{refusal:?}");
    let limit = "The limit is 2 sessions (label on role alice)";
    assert!(refusal.detail().starts_with(limit), "{refusal:?}");

    // Now the one across servers is the smaller.
    superuser
        .query("SELECT session_limit.set_limit(role => 'alice', max => 2, across => 'servers')");
    superuser.query("SELECT session_limit.set_limit(role => 'alice', max => 5)");
    assert_eq!(refused(&alice).sqlstate(), "53300");
    let sql = "SELECT detail->>'max', detail->>'across' FROM session_limit.events WHERE event = 'refused' ORDER BY event_time";
    assert_eq!(lines(superuser.query(sql)), ["2|", "2|servers"]);
    let refusals = crate::events::logged_as(&cluster, "refused");
    assert_eq!(
        refusals.last().map(|it| &it["across"]),
        Some(&"servers".into())
    );
    let sql =
        "SELECT per, across, subject, max, admitted, refused_no_room FROM session_limit.limit_stats
        WHERE per = 'role' ORDER BY across";
    let expected = ["role|server|alice|2|2|1", "role|servers|alice|2|2|1"];
    assert_eq!(lines(superuser.query(sql)), expected);
    superuser.query(&set_label(
        "ROLE alice",
        r#"{"limits": [{"max": 2, "across": "servers", "max_wait": "10min"}, {"max": 2, "max_wait": "10min"}]}"#,
    ));
    let mut waiter = alice.connect();
    waiter.send_startup(&alice);
    let sql = "SELECT string_agg(it->>'across', ' ' ORDER BY it->>'across')
        FROM session_limit.waiters, json_array_elements(limits) it";
    wait_until(&mut superuser, sql, "server servers");
}

fn the_limit_of_each_role(server: &Server) {
    let (cluster, mut superuser) = start(server);
    for sql in [
        "CREATE ROLE carol LOGIN IN ROLE team",
        r#"SECURITY LABEL FOR session_limit ON ROLE carol IS '{"max": 1, "max_wait": 0}'"#,
        "CREATE ROLE dave LOGIN",
        r#"SECURITY LABEL FOR session_limit ON ROLE dave IS '{"max": -1}'"#,
        "CREATE ROLE eve LOGIN",
        r#"SECURITY LABEL FOR session_limit ON ROLE eve IS '{"max": 1, "exempt": true}'"#,
    ] {
        superuser.query(sql);
    }
    let sql = "SELECT usename, max, source, exempt, connection_limit, stig_finding FROM session_limit.role_limits ORDER BY usename";
    let expected = [
        "alice|7|CONNECTION LIMIT of role alice|f|7|f",
        "bob|9|session_limit.max_sessions_per_role|f|-1|t",
        "carol|1|label on role carol|f|-1|t",
        "dave|-1||f|-1|t",
        "eve|-1||t|-1|t",
        "postgres|-1||t|-1|t",
    ];
    assert_eq!(lines(superuser.query(sql)), expected);
    // It says how many sessions a role may have, whether that is enforced yet or not.
    cluster.set(&[
        ("session_limit.enforcement", "log"),
        ("session_limit.exempt_superusers", "local"),
    ]);
    let postgres = "postgres|9|session_limit.max_sessions_per_role|f|-1|t";
    let rows = lines(cluster.superuser().query(sql));
    assert_eq!((&rows[0][..], &rows[5][..]), (expected[0], postgres));
}

fn explained_with_names_and_numbers(server: &Server) {
    let (cluster, mut superuser) = start(server);
    let _alice = [0, 1].map(|_| {
        cluster
            .login_from("alice", "127.0.0.2")
            .login()
            .expect("alice")
    });
    let explain = |superuser: &mut Session, login: &str| {
        let sql = format!(
            "SELECT source, per, subject, in_use, max, fits, enforcement FROM session_limit.explain_login({login}) ORDER BY source COLLATE \"C\", per"
        );
        lines(superuser.query(&sql))
    };
    let of_alice = [
        "CONNECTION LIMIT of database app|database|app|0|90|t|on",
        "CONNECTION LIMIT of role alice|role|alice|2|7|t|on",
        "label on database app|role|alice in app|0|4|t|on",
        "label on role alice|role|alice in app|0|2|t|on",
        "label on role team|group|team|2|5|t|on",
        "session_limit.cluster_limits|cluster||3|50|t|on",
    ];
    assert_eq!(explain(&mut superuser, "'alice', 'app'"), of_alice);
    let from = explain(&mut superuser, "'alice', 'app', '127.0.0.2'");
    assert_eq!(
        from[4],
        "label on role team|address|alice from 127.0.0.2|2|3|t|log"
    );
    assert_eq!(
        explain(
            &mut superuser,
            "role => 'alice', database => 'app', address => '::ffff:127.0.0.2'"
        ),
        from
    );
    superuser.query("ALTER ROLE alice CONNECTION LIMIT 2");
    assert_eq!(
        explain(&mut superuser, "'alice'")[0],
        "CONNECTION LIMIT of role alice|role|alice|2|2|f|on"
    );
    // Nothing applies to the exempt, nor where nothing is decided.
    assert_eq!(explain(&mut superuser, "'postgres'"), [""; 0]);
    cluster.set(&[("session_limit.enforcement", "off")]);
    assert_eq!(explain(&mut cluster.superuser(), "'alice'"), [""; 0]);
}

fn what_cannot_be_explained(server: &Server) {
    let (cluster, mut superuser) = start(server);
    superuser.query("CREATE DATABASE closed ALLOW_CONNECTIONS false");
    let cases = [
        (
            "'nobody', 'app'",
            "42704",
            r#"role "nobody" does not exist"#,
        ),
        (
            "'team', 'app'",
            "28000",
            r#"role "team" is not permitted to log in"#,
        ),
        (
            "'bob', 'missing'",
            "3D000",
            r#"database "missing" does not exist"#,
        ),
        (
            "'bob', 'closed'",
            "55000",
            r#"database "closed" is not currently accepting connections"#,
        ),
    ];
    for (login, sqlstate, message) in cases {
        let sql = format!("SELECT * FROM session_limit.explain_login({login})");
        let error = superuser.try_query(&sql).expect_err(login);
        assert_eq!((error.sqlstate(), error.message()), (sqlstate, message));
    }
    let mut bob = cluster.login_of("bob").login().expect("bob");
    let error = bob
        .try_query("SELECT * FROM session_limit.explain_login('alice')")
        .expect_err("not bob's");
    assert_eq!(
        (error.sqlstate(), error.message()),
        (
            "42501",
            r#"permission denied to explain a login of role "alice""#
        )
    );
    assert_eq!(
        bob.value("SELECT count(*) FROM session_limit.explain_login('bob')"),
        "2"
    );
    superuser.query("GRANT pg_read_all_stats TO bob");
    assert_eq!(
        bob.value("SELECT count(*) FROM session_limit.explain_login('alice')"),
        "3"
    );
}

fn what_others_may_see(server: &Server) {
    let (cluster, _superuser) = start(server);
    let mut bob = cluster.login_of("bob").login().expect("bob");
    let mut alice = cluster.login_of("alice").login().expect("alice");
    let limits = "SELECT string_agg(source, ', ' ORDER BY source COLLATE \"C\") FROM (SELECT DISTINCT source FROM session_limit.limits) l";
    let of_all = "CONNECTION LIMIT of database app, label on database app, session_limit.cluster_limits, session_limit.max_sessions_per_role";
    assert_eq!(bob.value(limits), of_all);
    let of_alice = "CONNECTION LIMIT of database app, CONNECTION LIMIT of role alice, label on database app, label on role alice, label on role team, session_limit.cluster_limits, session_limit.max_sessions_per_role";
    assert_eq!(alice.value(limits), of_alice);
    let roles = "SELECT string_agg(usename, ' ') FROM session_limit.role_limits";
    assert_eq!(bob.value(roles) + &alice.value(roles), "bobalice");
    let usage =
        "SELECT string_agg(source, ', ' ORDER BY source COLLATE \"C\") FROM session_limit.usage";
    assert_eq!(
        bob.value(usage),
        "CONNECTION LIMIT of database app, session_limit.cluster_limits, session_limit.max_sessions_per_role"
    );
}

/// A label that is not committed is nobody's yet; then it is the next login's.
fn counts_from_the_commit(server: &Server) {
    let (cluster, mut superuser) = start(server);
    let bob = cluster.login_of("bob");
    for (sql, limits) in [
        (
            r#"SECURITY LABEL FOR session_limit ON ROLE bob IS '{"max": 0}'"#,
            true,
        ),
        (
            "SECURITY LABEL FOR session_limit ON ROLE bob IS NULL",
            false,
        ),
        (
            r#"SECURITY LABEL FOR session_limit ON DATABASE postgres IS '{"max": 0, "per": "role"}'"#,
            true,
        ),
        (
            "SECURITY LABEL FOR session_limit ON DATABASE postgres IS NULL",
            false,
        ),
    ] {
        superuser.query("BEGIN");
        superuser.query(sql);
        assert_eq!(bob.login().is_err(), !limits, "not committed: {sql}");
        superuser.query("ROLLBACK");
        assert_eq!(bob.login().is_err(), !limits, "rolled back: {sql}");
        superuser.query(sql);
        assert_eq!(bob.login().is_err(), limits, "committed: {sql}");
    }
    cluster.set(&[(
        "session_limit.cluster_limits",
        r#"{"max": 0, "per": "role"}"#,
    )]);
    assert!(bob.login().is_err());
    cluster.set(&[("session_limit.cluster_limits", "")]);
    assert!(bob.login().is_ok());
}

/// From where others come, and whether they wait, is theirs and their superiors' to know: `pg_stat_activity` shows no more
/// than how many sessions there are.
fn explained_to_an_ordinary_role(server: &Server) {
    let cluster = Cluster::start(
        server,
        &[(
            "session_limit.cluster_limits",
            r#"{"limits": [{"max": 5, "per": "role"}, {"max": 2, "per": "address"}, {"max": 9, "per": "database"}]}"#,
        )],
    );
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
        "CREATE ROLE auditor LOGIN IN ROLE pg_read_all_stats",
    ]);
    let _bob = cluster.login_from("bob", "127.0.0.2").login().expect("bob");
    let explained = "SELECT string_agg(concat_ws(' ', per, in_use, max, fits), ', ' ORDER BY per)
                     FROM session_limit.explain_login('alice', 'postgres', '127.0.0.2')";
    let mut alice = cluster.login_of("alice").login().expect("alice");
    let of_alice = "address 2, database 2 9, role 1 5 t";
    assert_eq!(alice.value(explained), of_alice);
    let usage =
        "SELECT string_agg(concat_ws(' ', per, in_use, max, free, waiting), ', ' ORDER BY per)
                 FROM session_limit.usage WHERE in_use > 0 OR in_use IS NULL";
    assert_eq!(alice.value(usage), "database 2 9 7, role 1 5 4 0");
    let _alice = cluster
        .login_from("alice", "127.0.0.2")
        .login()
        .expect("alice");
    let seen = "address 2, database 3 9 6, role 2 5 3 0";
    assert_eq!(
        alice.value(usage),
        seen,
        "nothing of whether bob is there, too"
    );
    let mut auditor = cluster.login_of("auditor").login().expect("auditor");
    assert!(
        auditor
            .value(explained)
            .starts_with("address 2 2 f, database 4 9 t")
    );
    assert!(
        auditor
            .value(usage)
            .starts_with("address 2 2 0 0, database 4 9 5 0")
    );
}
