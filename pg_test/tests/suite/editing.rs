//! `set_limit` and `clear_limit`: they edit one limit of a label, by its key.

use crate::scene::{refused, set_label, wait_until};
use pg_test::client::{Refusal, Session, Target};
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use serde_json::{Value, json};

tests![
    limits_of_a_role,
    limits_of_a_group_and_of_a_database,
    on_this_server_and_across_servers,
    what_else_a_label_says_stays,
    policies,
    a_role_that_loses_login,
    a_broken_label,
    what_is_wrong_is_refused,
    whoever_may_not_label_may_not_edit,
    a_refused_edit_leaves_no_lock,
    two_edits_at_once,
    an_edit_holds_from_the_next_login_on,
    names_that_need_quotes,
    not_preloaded,
];

fn cluster(server: &Server) -> (Cluster, Session) {
    let cluster = Cluster::start(server, &[("session_limit.max_wait", "0")]);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE team",
        "CREATE DATABASE app",
    ]);
    let superuser = cluster.superuser();
    (cluster, superuser)
}

/// Makes the call, and returns the label that is there now, which the call has returned, too.
fn edit(session: &mut Session, object: &str, call: &str) -> Option<Value> {
    let returned = session.value(&format!("SELECT session_limit.{call}"));
    let label = label(session, object);
    assert_eq!(returned, label, "{call}");
    let parsed = |_| serde_json::from_str(&label).expect("JSON");
    (!label.is_empty()).then_some(()).map(parsed)
}

/// The label of a role or database, by its name as text; none: "".
fn label(session: &mut Session, object: &str) -> String {
    session.value(&format!(
        "SELECT max(label) FROM pg_seclabels WHERE provider = 'session_limit'
            AND objname = quote_ident($name${object}$name$)"
    ))
}

fn error_of(session: &mut Session, call: &str) -> Refusal {
    let sql = format!("SELECT session_limit.{call}");
    session.try_query(&sql).expect_err(call)
}

/// Makes the calls one after the other, each with the limits that it leaves.
fn edits(session: &mut Session, object: &str, steps: &[(&str, Value)]) {
    for (call, limits) in steps {
        let label = edit(session, object, call).map(|mut label| label["limits"].take());
        assert_eq!(label.unwrap_or_default(), *limits, "{call}");
    }
}

fn limits_of_a_role(server: &Server) {
    let (_cluster, mut superuser) = cluster(server);
    let whole = json!({"max": 3});
    let address = json!({"max": 1, "per": "address"});
    let in_app = json!({"max": 2, "database": "app"});
    let from_ten = json!({"max": 4, "network": "10.0.0.0/8"});
    let other = json!({"max": 5, "per": "role"});
    let steps = [
        ("set_limit(3, 'alice')", json!([whole])),
        (
            "set_limit(role => 'alice', per => 'address', max => 1)",
            json!([whole, address]),
        ),
        (
            "set_limit(role => 'alice', database => 'app', max => 2)",
            json!([whole, address, in_app]),
        ),
        (
            "set_limit(role => 'alice', network => '10.0.0.0/8', max => 9)",
            json!([whole, address, in_app, {"max": 9, "network": "10.0.0.0/8"}]),
        ),
        (
            "set_limit(role => 'alice', network => '10', max => 4)",
            json!([whole, address, in_app, from_ten]),
        ),
        (
            "set_limit(role => 'alice', per => 'role', max => 5)",
            json!([other, address, in_app, from_ten]),
        ),
        (
            "clear_limit(role => 'alice', per => 'address')",
            json!([other, in_app, from_ten]),
        ),
        ("clear_limit('alice')", json!([in_app, from_ten])),
        (
            "clear_limit(role => 'alice', network => '10.0.0.0/8')",
            json!([in_app]),
        ),
        (
            "clear_limit(role => 'alice', database => 'app')",
            Value::Null,
        ),
    ];
    edits(&mut superuser, "alice", &steps);
    // A database beside a role is the one that the role's limit is about.
    assert_eq!(label(&mut superuser, "app"), "");
    assert_eq!(superuser.value("SELECT count(*) FROM pg_shseclabel"), "0");
}

fn limits_of_a_group_and_of_a_database(server: &Server) {
    let (_cluster, mut superuser) = cluster(server);
    let (total, each) = (
        json!({"max": 9, "per": "group"}),
        json!({"max": 2, "per": "role"}),
    );
    let steps = [
        (
            "set_limit(role => 'team', per => 'group', max => 9)",
            json!([total]),
        ),
        (
            "set_limit(role => 'team', per => 'role', max => 2)",
            json!([total, each]),
        ),
        ("clear_limit(role => 'team', per => 'group')", json!([each])),
        (
            "set_limit(role => 'team', per => 'role, database', max => 3)",
            json!([each, {"max": 3, "per": ["role", "database"]}]),
        ),
        (
            "set_limit(role => 'team', per => 'database,role', max => 4)",
            json!([each, {"max": 4, "per": ["database", "role"]}]),
        ),
        (
            "clear_limit(role => 'team', per => ' role , database ')",
            json!([each]),
        ),
        ("clear_limit(role => 'team', per => 'role')", Value::Null),
    ];
    edits(&mut superuser, "team", &steps);
    let steps = [
        (
            "set_limit(database => 'app', max => 5)",
            json!([{"max": 5}]),
        ),
        (
            "set_limit(database => 'app', per => 'role', max => 2)",
            json!([{"max": 5}, each]),
        ),
        (
            "set_limit(database => 'app', per => 'database', max => -1)",
            json!([{"max": -1, "per": "database"}, each]),
        ),
        ("clear_limit(database => 'app')", json!([each])),
        ("clear_limit(database => 'app', per => 'role')", Value::Null),
    ];
    edits(&mut superuser, "app", &steps);
}

fn on_this_server_and_across_servers(server: &Server) {
    let (_cluster, mut superuser) = cluster(server);
    let here = json!({"max": 3});
    let everywhere = json!({"max": 1, "across": "servers"});
    let in_words = json!({"max": 4, "across": "server"});
    let steps = [
        (
            "set_limit(role => 'alice', max => 1, across => 'servers')",
            json!([everywhere]),
        ),
        ("set_limit(3, 'alice')", json!([everywhere, here])),
        (
            "set_limit(role => 'alice', max => 4, across => 'server')",
            json!([everywhere, in_words]),
        ),
        (
            "set_limit(role => 'alice', per => 'role', max => 2, across => 'servers')",
            json!([{"max": 2, "per": "role", "across": "servers"}, in_words]),
        ),
        (
            "set_limit(role => 'alice', max => 1, across => 'servers')",
            json!([everywhere, in_words]),
        ),
        ("clear_limit(role => 'alice')", json!([everywhere])),
        ("set_limit(3, 'alice')", json!([everywhere, here])),
        (
            "clear_limit(role => 'alice', across => 'servers')",
            json!([here]),
        ),
        (
            "clear_limit(role => 'alice', across => 'server')",
            Value::Null,
        ),
    ];
    edits(&mut superuser, "alice", &steps);
    // A label that is short for one limit.
    superuser.query(&set_label(
        "DATABASE app",
        r#"{"max": 1, "across": "servers", "max_wait": 7}"#,
    ));
    assert_eq!(
        edit(
            &mut superuser,
            "app",
            "set_limit(database => 'app', max => 3)"
        ),
        Some(json!({"limits": [everywhere, here], "max_wait": 7}))
    );
    assert_eq!(
        edit(
            &mut superuser,
            "app",
            "clear_limit(database => 'app', across => 'servers')"
        ),
        Some(json!({"limits": [here], "max_wait": 7}))
    );
}

fn what_else_a_label_says_stays(server: &Server) {
    let (_cluster, mut superuser) = cluster(server);
    let short = r#"{"max": 1, "enforcement": "log", "on_excess": "replace_idle", "max_wait": "2s", "exempt": true}"#;
    superuser.query(&set_label("ROLE alice", short));
    let mut alice = |call| edit(&mut superuser, "alice", call);
    let limits = |limits: Value| {
        Some(
            json!({"limits": limits, "on_excess": "replace_idle", "max_wait": "2s", "exempt": true}),
        )
    };
    assert_eq!(
        alice("set_limit(role => 'alice', per => 'address', max => 2)"),
        limits(json!([{"max": 1, "enforcement": "log"}, {"max": 2, "per": "address"}]))
    );
    assert_eq!(
        alice("clear_limit(role => 'alice')"),
        limits(json!([{"max": 2, "per": "address"}]))
    );
    let policy = json!({"on_excess": "replace_idle", "max_wait": "2s", "exempt": true});
    assert_eq!(
        alice("clear_limit(role => 'alice', per => 'address')"),
        Some(policy)
    );
    assert_eq!(
        alice("set_limit(role => 'alice', max => 3)"),
        limits(json!([{"max": 3}]))
    );
}

fn policies(server: &Server) {
    let (_cluster, mut superuser) = cluster(server);
    let call = "set_limit(role => 'alice', max => 1, on_excess => 'replace_oldest',
        max_wait => '5s', enforcement => 'log')";
    let limit =
        json!({"max": 1, "on_excess": "replace_oldest", "max_wait": 5000, "enforcement": "log"});
    edits(&mut superuser, "alice", &[(call, json!([limit]))]);
    let shown = "SELECT max, on_excess, extract(epoch FROM max_wait)::int, enforcement
        FROM session_limit.limits WHERE subject = 'alice'";
    assert_eq!(
        superuser.query(shown),
        [["1", "replace_oldest", "5", "log"].map(String::from)]
    );
    // The limit is set as a whole: what is not given is not kept.
    let steps = [
        (
            "set_limit(role => 'alice', max => 2, max_wait => '100 ms')",
            json!([{"max": 2, "max_wait": 100}]),
        ),
        (
            "set_limit(role => 'alice', max => 2, max_wait => '10 min')",
            json!([{"max": 2, "max_wait": 600_000}]),
        ),
        ("set_limit(role => 'alice', max => 2)", json!([{"max": 2}])),
    ];
    edits(&mut superuser, "alice", &steps);
}

/// Its label has a limit that a group cannot have, until that is removed.
fn a_role_that_loses_login(server: &Server) {
    let (_cluster, mut superuser) = cluster(server);
    let each = json!({"max": 2, "per": "address"});
    superuser.query(&set_label(
        "ROLE alice",
        r#"{"limits": [{"max": 1}, {"max": 2, "per": "address"}]}"#,
    ));
    superuser.query("ALTER ROLE alice NOLOGIN");
    let add = "set_limit(role => 'alice', per => 'group', max => 3)";
    let error = error_of(&mut superuser, add);
    assert_eq!(error.sqlstate(), "22023", "{error:?}");
    let detail = r#"Field "limits[0].per": must be given for a group"#;
    assert!(error.detail().starts_with(detail), "{error:?}");
    let steps = [
        ("clear_limit(role => 'alice')", json!([each])),
        (add, json!([each, {"max": 3, "per": "group"}])),
    ];
    edits(&mut superuser, "alice", &steps);
}

fn a_broken_label(server: &Server) {
    let (_cluster, mut superuser) = cluster(server);
    superuser.query(&set_label("ROLE alice", r#"{"max": 1}"#));
    superuser.query("SET allow_system_table_mods = on");
    for (broken, words) in [
        ("none", "Expected ident"),
        (&" ".repeat(5000), "It is too long to be read"),
        (r#"{"max": 1, "color": 2}"#, r#"Unknown field "color""#),
    ] {
        superuser.query(&format!("UPDATE pg_shseclabel SET label = '{broken}'"));
        for call in [
            "set_limit(2, role => 'alice', per => 'address')",
            "set_limit(2, role => 'alice')",
        ] {
            let error = error_of(&mut superuser, call);
            assert_eq!(error.sqlstate(), "22023", "{error:?}");
            assert!(error.detail().starts_with(words), "{error:?}");
        }
    }
}

/// A call, and the SQLSTATE and a part of the message or DETAIL of its error.
const WRONG: &[(&str, &str, &str)] = &[
    (
        "set_limit(1)",
        "22004",
        "role and database must not both be null",
    ),
    (
        "clear_limit()",
        "22004",
        "role and database must not both be null",
    ),
    (
        "set_limit(1, role => 'nobody')",
        "42704",
        r#"role "nobody" does not exist"#,
    ),
    (
        "clear_limit(role => 'nobody')",
        "42704",
        r#"role "nobody" does not exist"#,
    ),
    (
        "set_limit(1, database => 'nowhere')",
        "3D000",
        r#"database "nowhere" does not exist"#,
    ),
    (
        "clear_limit(database => 'nowhere')",
        "3D000",
        r#"database "nowhere" does not exist"#,
    ),
    (
        "clear_limit(role => 'alice', per => 'address')",
        "42704",
        "the label has no such limit",
    ),
    (
        "clear_limit(role => 'alice', database => 'app')",
        "42704",
        "the label has no such limit",
    ),
    (
        "clear_limit(role => 'alice', network => '10.0.0.0/8')",
        "42704",
        "the label has no such limit",
    ),
    (
        "clear_limit(database => 'app')",
        "42704",
        "the label has no such limit",
    ),
    (
        "set_limit(1, role => 'alice', per => 'week')",
        "22023",
        r#"per": unknown value "week""#,
    ),
    (
        "clear_limit(role => 'alice', per => 'week')",
        "22023",
        r#"per": unknown value "week"; use "role", "address", ["role", "database"]"#,
    ),
    (
        "set_limit(1, role => 'alice', per => 'database, address')",
        "22023",
        r#"per": ["database", "address"] is not allowed for a role; use "role", "address", ["role", "database"]"#,
    ),
    (
        "set_limit(1, role => 'alice', per => 'group')",
        "22023",
        r#"per": "group" is not allowed for"#,
    ),
    (
        "set_limit(1, role => 'team')",
        "22023",
        r#"per": must be given for a group"#,
    ),
    (
        "set_limit(1, database => 'app', per => 'group')",
        "22023",
        r#"per": "group" is not allowed for"#,
    ),
    (
        "set_limit(NULL, role => 'alice')",
        "22023",
        r#"missing field "max""#,
    ),
    (
        "set_limit(-2, role => 'alice')",
        "22023",
        r#"max": is -2; expected an integer from -1 to 262143"#,
    ),
    (
        "set_limit(1, role => 'alice', on_excess => 'replace')",
        "22023",
        r#"on_excess": unknown value"#,
    ),
    (
        "set_limit(1, role => 'alice', max_wait => '1 hour')",
        "22023",
        r#"max_wait": is 3600000; expected"#,
    ),
    (
        "set_limit(1, role => 'alice', max_wait => '-1 s')",
        "22023",
        r#"max_wait": is "#,
    ),
    (
        "set_limit(1, role => 'alice', enforcement => 'off')",
        "22023",
        r#"enforcement": unknown value"#,
    ),
    (
        "set_limit(1, role => 'alice', across => 'cluster')",
        "22023",
        r#"across": unknown value "cluster", expected "server" or "servers""#,
    ),
    (
        "set_limit(1, role => 'alice', across => 'servers', count => 'addresses')",
        "22023",
        r#"across": "servers" is not allowed with "count": "addresses""#,
    ),
    (
        "set_limit(1, role => 'team', per => 'group', across => 'servers', count => 'roles')",
        "22023",
        r#"across": "servers" is not allowed with "count": "roles""#,
    ),
    (
        "set_limit(1, role => 'alice', across => 'servers', enforcement => 'log')",
        "22023",
        r#"across": "servers" is not allowed with "enforcement": "log""#,
    ),
    (
        "clear_limit(role => 'alice', across => 'servers')",
        "42704",
        "the label has no such limit",
    ),
];

fn what_is_wrong_is_refused(server: &Server) {
    let (_cluster, mut superuser) = cluster(server);
    superuser.query(&set_label("ROLE alice", r#"{"max": 7}"#));
    superuser.query(&set_label("DATABASE app", r#"{"max_wait": 7}"#));
    for (call, sqlstate, words) in WRONG {
        let error = error_of(&mut superuser, call);
        assert_eq!(error.sqlstate(), *sqlstate, "{call}: {error:?}");
        let said = format!("{}\n{}", error.message(), error.detail());
        assert!(said.contains(words), "{call}: {error:?}");
        if *sqlstate == "22023" {
            assert!(error.detail().starts_with("Field \""), "{call}: {error:?}");
            assert!(error.hint().starts_with("Example: "), "{error:?}");
        }
        if *words == "the label has no such limit" {
            let key = r#""per", "database", "network", "count" and "across""#;
            assert!(error.hint().contains(key), "{error:?}");
        }
    }
    let labels = "SELECT string_agg(label, ' ' ORDER BY label) FROM pg_shseclabel";
    assert_eq!(superuser.value(labels), r#"{"max": 7} {"max_wait": 7}"#);
}

fn whoever_may_not_label_may_not_edit(server: &Server) {
    let (cluster, mut superuser) = cluster(server);
    superuser.query("CREATE ROLE admin LOGIN CREATEROLE");
    superuser.query("CREATE ROLE owner LOGIN");
    superuser.query("ALTER DATABASE app OWNER TO owner");
    superuser.query(&set_label("ROLE alice", r#"{"max": 7}"#));
    superuser.query(&set_label("ROLE team", r#"{"max": 7, "per": "group"}"#));
    let mut admin = cluster.login_of("admin").login().expect("admin");
    // From 16 on whoever created a role has it with ADMIN.
    admin.query("CREATE ROLE bob LOGIN");
    admin.query("CREATE ROLE crew");
    admin.query("SELECT session_limit.set_limit(1, role => 'bob')");
    admin.query("SELECT session_limit.clear_limit(role => 'bob')");
    let mut owner = cluster.login_of("owner").login().expect("owner");
    owner.query("SELECT session_limit.set_limit(7, database => 'app')");
    let mut alice = cluster.login_of("alice").login().expect("alice");
    let labels = "SELECT string_agg(label, ' ' ORDER BY label) FROM pg_shseclabel";
    let before = superuser.value(labels);
    for call in [
        "set_limit(-1, role => 'alice')",
        "set_limit(0, role => 'postgres')",
        "set_limit(-1, database => 'app')",
        "clear_limit(role => 'alice')",
        "clear_limit(role => 'team', per => 'group')",
        "clear_limit(database => 'app')",
        // Not even what is there is told.
        "clear_limit(role => 'team', per => 'role')",
    ] {
        assert_eq!(error_of(&mut alice, call).sqlstate(), "42501", "{call}");
    }
    let call = "set_limit(1, role => 'crew', per => 'group')";
    assert_eq!(error_of(&mut admin, call).sqlstate(), "42501");
    let call = "set_limit(1, role => 'admin', database => 'app')";
    assert_eq!(error_of(&mut owner, call).sqlstate(), "42501");
    assert_eq!(superuser.value(labels), before);
}

/// It takes none before it knows that it may, and waits for nobody's.
fn a_refused_edit_leaves_no_lock(server: &Server) {
    let (cluster, mut superuser) = cluster(server);
    superuser.query("CREATE ROLE bob LOGIN");
    let mut alice = cluster.login_of("alice").login().expect("alice");
    superuser.query("BEGIN");
    superuser.query("SELECT session_limit.set_limit(1, role => 'bob')");
    alice.query("SET lock_timeout = '5s'");
    alice.query("BEGIN");
    alice.query("SAVEPOINT before");
    let error = error_of(&mut alice, "set_limit(2, role => 'bob')");
    assert_eq!(error.sqlstate(), "42501", "{error:?}");
    alice.query("ROLLBACK TO before");
    superuser.query("COMMIT");
    superuser.query("SET lock_timeout = '5s'");
    superuser.query("DROP ROLE bob");
    alice.query("COMMIT");
    assert_eq!(superuser.value("SELECT count(*) FROM pg_shseclabel"), "0");
}

fn two_edits_at_once(server: &Server) {
    let (cluster, mut superuser) = cluster(server);
    for (object, named) in [("alice", "role => 'alice'"), ("app", "database => 'app'")] {
        let (mut first, mut second) = (cluster.superuser(), cluster.superuser());
        first.query("BEGIN");
        first.query(&format!("SELECT session_limit.set_limit(1, {named})"));
        // Its snapshot is older than the first's commit.
        second.query("BEGIN ISOLATION LEVEL REPEATABLE READ");
        second.query("SELECT count(*) FROM pg_shseclabel");
        let pid = second.pid;
        let call = format!("SELECT session_limit.set_limit(2, {named}, per => 'address')");
        let second = std::thread::spawn(move || {
            second.query(&call);
            second.query("COMMIT");
        });
        let waiting = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Lock'"
        );
        wait_until(&mut superuser, &waiting, "1");
        first.query("COMMIT");
        second.join().expect("the second");
        let label: Value = serde_json::from_str(&label(&mut superuser, object)).expect("JSON");
        let both = json!({"limits": [{"max": 1}, {"max": 2, "per": "address"}]});
        assert_eq!(label, both);
    }
}

fn an_edit_holds_from_the_next_login_on(server: &Server) {
    let (cluster, mut superuser) = cluster(server);
    superuser.query("GRANT team TO alice");
    let alice = cluster.login_of("alice");
    let mut first = alice.login().expect("no limit");
    for (set, clear) in [
        (
            "set_limit(1, role => 'alice')",
            "clear_limit(role => 'alice')",
        ),
        (
            "set_limit(1, role => 'team', per => 'group')",
            "clear_limit(role => 'team', per => 'group')",
        ),
        (
            "set_limit(1, database => 'postgres', per => 'role')",
            "clear_limit(database => 'postgres', per => 'role')",
        ),
    ] {
        superuser.query("BEGIN");
        superuser.query(&format!("SELECT session_limit.{set}"));
        drop(alice.login().expect("not committed yet"));
        superuser.query("COMMIT");
        let refusal = refused(&alice);
        assert_eq!(refusal.sqlstate(), "53300", "{set}: {refusal:?}");
        assert!(first.is_alive());
        superuser.query(&format!("SELECT session_limit.{clear}"));
        drop(alice.login().expect("no limit any more"));
    }
}

fn names_that_need_quotes(server: &Server) {
    let (cluster, mut superuser) = cluster(server);
    let odd = r#"Weird ""Name's %I \"#;
    superuser.query(&format!(r#"CREATE ROLE "{odd}" LOGIN"#));
    superuser.query(&format!(r#"CREATE DATABASE "{odd}""#));
    let (name, text) = (odd.replace(r#""""#, r#"""#), odd.replace(r#""""#, r#"""#));
    let text = text.replace('\'', "''");
    let call = format!("SELECT session_limit.set_limit(1, role => '{text}', database => '{text}')");
    superuser.query(&call);
    let call = format!("SELECT session_limit.set_limit(9, database => '{text}')");
    superuser.query(&call);
    let target = Target {
        database: Some(name.clone()),
        ..cluster.login_of(&name)
    };
    let _first = target.login().expect("the first");
    let refusal = refused(&target);
    let source = format!("The limit is 1 session (label on role {name})");
    assert!(refusal.detail().starts_with(&source), "{refusal:?}");
    for named in [
        format!("role => '{text}', database => '{text}'"),
        format!("database => '{text}'"),
    ] {
        let left = superuser.value(&format!("SELECT session_limit.clear_limit({named})"));
        assert_eq!(left, "");
    }
    assert_eq!(superuser.value("SELECT count(*) FROM pg_shseclabel"), "0");
}

fn not_preloaded(server: &Server) {
    let cluster = Cluster::plain(server, &[]);
    let mut superuser = cluster.superuser();
    superuser.query("CREATE EXTENSION session_limit");
    for call in [
        "set_limit(1, role => 'postgres')",
        "clear_limit(role => 'postgres')",
    ] {
        assert_eq!(error_of(&mut superuser, call).sqlstate(), "55000");
    }
}
