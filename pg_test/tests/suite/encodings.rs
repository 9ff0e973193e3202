//! Databases that are not in UTF-8: names in labels and settings, and what errors cite.

use crate::scene::{admitted, set_label};
use pg_test::client::{Refusal, Session};
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

tests![
    a_limit_in_a_database_with_any_name,
    a_label_from_another_database,
    a_setting_from_another_database,
    every_error_cites_what_was_given,
    whoever_may_not_is_told_of_what,
];

/// A cluster with the role app and a database in this encoding, and the superuser's session there, as a client that
/// speaks UTF-8.
fn cluster(server: &Server, encoding: &str) -> (Cluster, Session) {
    let cluster = Cluster::start(server, &[("session_limit.max_wait", "0")]);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE app LOGIN",
        &create_database("home", encoding),
    ]);
    let mut superuser = session(&cluster, "postgres");
    superuser.query("CREATE EXTENSION session_limit");
    (cluster, superuser)
}

fn session(cluster: &Cluster, user: &str) -> Session {
    let mut session = admitted(&cluster.login_of(user).to("home"));
    session.query("SET client_encoding = 'UTF8'");
    session
}

fn create_database(name: &str, encoding: &str) -> String {
    format!("CREATE DATABASE \"{name}\" ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
}

/// What psql is told at a login of app to a database whose name has these bytes.
fn psql(cluster: &Cluster, database: &[u8]) -> Vec<u8> {
    let mut psql = cluster.client("psql");
    psql.env("PGUSER", "app")
        .env("PGDATABASE", OsStr::from_bytes(database));
    let output = psql.args(["-X", "-A", "-t", "-c", "SELECT 'in'"]).output();
    let output = output.expect("run psql");
    [output.stderr, output.stdout].concat()
}

fn is_refused(cluster: &Cluster, database: &[u8]) -> bool {
    let told = psql(cluster, database);
    let about = [b"for role \"app\" in database \"", database, b"\""].concat();
    let refused = told.windows(about.len()).any(|words| words == about);
    assert!(refused || told == b"in\n", "{}", told.escape_ascii());
    refused
}

fn label_of_app(session: &mut Session) -> Value {
    let label = session.value(
        "SELECT label FROM pg_seclabels WHERE provider = 'session_limit' AND objname = 'app'",
    );
    serde_json::from_str(&label).expect("JSON")
}

/// An encoding, a name, and the name's bytes.
const NAMES: [(&str, &str, &[u8]); 5] = [
    ("LATIN1", "dé", b"d\xe9"),
    ("WIN1252", "d€ \u{178}", b"d\x80 \x9f"),
    ("EUC_JP", "日本", b"\xc6\xfc\xcb\xdc"),
    ("SQL_ASCII", "dé", b"d\xc3\xa9"),
    ("UTF8", "dé", b"d\xc3\xa9"),
];

fn a_limit_in_a_database_with_any_name(server: &Server) {
    for (encoding, name, bytes) in NAMES {
        let (cluster, mut superuser) = cluster(server, encoding);
        superuser.query(&create_database(name, encoding));
        let limits = "SELECT database, max, unmatched FROM session_limit.limits";
        let row = |max: &str| [[name, max, "f"].map(String::from).to_vec()];
        assert!(!is_refused(&cluster, bytes), "{encoding}");

        let call = format!("session_limit.set_limit(0, role => 'app', database => '{name}')");
        let returned = superuser.value(&format!("SELECT {call}"));
        let label = json!({"limits": [{"max": 0, "database": name}]});
        assert_eq!(label_of_app(&mut superuser), label, "{encoding}");
        assert_eq!(
            serde_json::from_str::<Value>(&returned).expect("JSON"),
            label
        );
        assert_eq!(superuser.query(limits), row("0"), "{encoding}");
        let explained =
            format!("SELECT subject, fits FROM session_limit.explain_login('app', '{name}')");
        let subject = format!("app in {name}");
        assert_eq!(superuser.query(&explained), [[subject, "f".to_string()]]);
        assert!(is_refused(&cluster, bytes), "{encoding}");
        assert!(!is_refused(&cluster, b"home"), "{encoding}");
        let refused = format!(
            "SELECT count(*) FROM session_limit.events WHERE event = 'refused' AND datname = '{name}'"
        );
        assert_eq!(superuser.value(&refused), "1");

        let call = format!("session_limit.clear_limit(role => 'app', database => '{name}')");
        assert_eq!(superuser.value(&format!("SELECT {call}")), "");
        assert!(!is_refused(&cluster, bytes), "{encoding}");

        let label = format!(r#"{{"max": 0, "database": "{name}"}}"#);
        superuser.query(&set_label("ROLE app", &label));
        assert!(is_refused(&cluster, bytes), "{encoding}");
        let call = "session_limit.set_limit(5, role => 'app', per => 'address')";
        superuser.query(&format!("SELECT {call}"));
        let both = json!({"limits": [{"max": 0, "database": name}, {"max": 5, "per": "address"}]});
        assert_eq!(label_of_app(&mut superuser), both, "{encoding}");
        assert!(is_refused(&cluster, bytes), "{encoding}");
    }
}

/// A name has the bytes that it has in the catalogs, whatever the encoding of the database in which a label is read, or
/// edited.
fn a_label_from_another_database(server: &Server) {
    let (cluster, mut latin) = cluster(server, "LATIN1");
    latin.query(&create_database("dé", "LATIN1"));
    latin.query("SELECT session_limit.set_limit(0, role => 'app', database => 'dé')");
    let mut utf8 = cluster.superuser();
    let name = "SELECT encode(database::bytea, 'hex'), unmatched FROM session_limit.limits WHERE database IS NOT NULL";
    assert_eq!(utf8.query(name), [["64e9", "f"]]);
    utf8.query("SELECT session_limit.set_limit(0, role => 'app', database => 'dé')");
    utf8.query("SELECT session_limit.set_limit(7, role => 'app', per => 'address')");
    let names = "SELECT string_agg(encode(database::bytea, 'hex'), ' ' ORDER BY unmatched) FROM session_limit.limits";
    assert_eq!(utf8.value(names), "64e9 64c3a9");
    assert!(is_refused(&cluster, b"d\xe9"));
    utf8.query("SELECT session_limit.clear_limit(role => 'app', database => 'dé')");
    assert!(is_refused(&cluster, b"d\xe9"));
    latin.query("SELECT session_limit.clear_limit(role => 'app', database => 'dé')");
    assert!(!is_refused(&cluster, b"d\xe9"));
    assert_eq!(
        label_of_app(&mut utf8),
        json!({"limits": [{"max": 7, "per": "address"}]})
    );
}

fn a_setting_from_another_database(server: &Server) {
    let (cluster, mut latin) = cluster(server, "LATIN1");
    latin.query(&create_database("dé", "LATIN1"));
    for (setting, value, detail) in [
        ("cluster_limits", r#"{"é": 1}"#, r#"Unknown field "é"."#),
        (
            "cluster_limits",
            r#"{"max": "é", "per": "role"}"#,
            r#"Field "max": is "é"; expected an integer from -1 to 262143."#,
        ),
        ("log_events", "é", r#""é" is not an event."#),
    ] {
        let sql = format!("ALTER SYSTEM SET session_limit.{setting} = '{value}'");
        let error = latin.try_query(&sql).expect_err(&sql);
        assert_eq!((error.sqlstate(), error.detail()), ("22023", detail));
    }
    let limits = r#"{"max": 0, "per": "role", "database": "dé"}"#;
    latin.query(&format!(
        "ALTER SYSTEM SET session_limit.cluster_limits = '{limits}'"
    ));
    cluster.reload();
    assert!(is_refused(&cluster, b"d\xe9"));
    assert!(!is_refused(&cluster, b"home"));
}

/// What is called, and the SQLSTATE and the message, or DETAIL, of its error. `X` is what is not ASCII.
const WRONG: [(&str, &str, &str); 23] = [
    (
        "set_limit(1, role => 'X')",
        "42704",
        r#"role "X" does not exist"#,
    ),
    (
        "set_limit(1, database => 'X')",
        "3D000",
        r#"database "X" does not exist"#,
    ),
    (
        "set_limit(1, role => 'app', per => 'X')",
        "22023",
        r#"Field "limits[0].per": unknown value "X"; use "#,
    ),
    (
        "set_limit(1, role => 'app', network => 'X')",
        "22P02",
        r#"invalid input syntax for type cidr: "X""#,
    ),
    (
        "set_limit(1, role => 'app', on_excess => 'X')",
        "22023",
        r#"Field "limits[0].on_excess": unknown value "X", "#,
    ),
    (
        "set_limit(1, role => 'app', max_wait => 'X')",
        "22007",
        r#"invalid input syntax for type interval: "X""#,
    ),
    (
        "set_limit(1, role => 'app', enforcement => 'X')",
        "22023",
        r#"Field "limits[0].enforcement": unknown value "X", "#,
    ),
    (
        "set_limit(1, role => 'app', across => 'X')",
        "22023",
        r#"Field "limits[0].across": unknown value "X", "#,
    ),
    (
        "clear_limit(role => 'X')",
        "42704",
        r#"role "X" does not exist"#,
    ),
    (
        "clear_limit(database => 'X')",
        "3D000",
        r#"database "X" does not exist"#,
    ),
    (
        "clear_limit(role => 'app', database => 'X')",
        "42704",
        "the label has no such limit",
    ),
    (
        "clear_limit(role => 'app', per => 'X')",
        "22023",
        r#"Field "limits[0].per": unknown value "X"; use "#,
    ),
    (
        "clear_limit(role => 'app', network => 'X')",
        "22P02",
        r#"invalid input syntax for type cidr: "X""#,
    ),
    ("explain_login('X')", "42704", r#"role "X" does not exist"#),
    (
        "explain_login('app', 'X')",
        "3D000",
        r#"database "X" does not exist"#,
    ),
    (
        "explain_login('app', 'home', 'X')",
        "22P02",
        r#"invalid input syntax for type inet: "X""#,
    ),
    (
        "explain_login('group X')",
        "28000",
        r#"role "group X" is not permitted to log in"#,
    ),
    (
        "explain_login('app', 'closed X')",
        "55000",
        r#"database "closed X" is not currently accepting connections"#,
    ),
    (
        r#"edit_label('app', NULL, '{"max": "X"}', true)"#,
        "22023",
        r#"Field "limits[0].max": is "X"; expected an integer"#,
    ),
    (
        r#"edit_label('app', NULL, '{"max": 1, "X": "X"}', true)"#,
        "22023",
        r#"Unknown field "limits[0].X""#,
    ),
    (
        r#"edit_label('app', NULL, '{"max": 1, "max_wait": "X"}', true)"#,
        "22023",
        r#"Field "limits[0].max_wait": is "X"; expected an interval"#,
    ),
    (
        r#"edit_label('app', 'X', '{"max": 1, "network": "X"}', true)"#,
        "22023",
        r#"Field "limits[0].network": "X" is not a network such as"#,
    ),
    (
        "edited_label('app', NULL, 'X', true)",
        "22023",
        "Field \"limits[0]\": expected value at character 13",
    ),
];

/// A label, and the DETAIL of its error.
const WRONG_LABELS: [(&str, &str); 5] = [
    (r#"{"X": 1}"#, r#"Unknown field "X"."#),
    (
        r#"{"max": 1, "max_wait": "X\"\n"}"#,
        r#"Field "max_wait": is "X"\n"; expected an interval from 0 to 10min such as "5s" or "100ms"."#,
    ),
    (
        r#"{"exempt": "X"}"#,
        r#"Field "exempt": is "X"; expected true or false."#,
    ),
    ("X", "Expected value at character 1."),
    (
        r#"{"max": 1, "database": "\ud800"}"#,
        r#"Field "database": unexpected end of hex escape at character 31."#,
    ),
];

fn every_error_cites_what_was_given(server: &Server) {
    for (encoding, cited) in [("LATIN1", "é"), ("EUC_JP", "日本"), ("UTF8", "é\u{301}")] {
        let (_cluster, mut superuser) = cluster(server, encoding);
        let said = |text: &str| text.replace('X', cited);
        superuser.query(&said(r#"CREATE ROLE "group X""#));
        superuser.query(&create_database(&said("closed X"), encoding));
        superuser.query(&said(
            r#"ALTER DATABASE "closed X" ALLOW_CONNECTIONS false"#,
        ));
        for (call, sqlstate, words) in WRONG {
            let sql = said(&format!("SELECT * FROM session_limit.{call}"));
            let error = superuser.try_query(&sql).expect_err(&sql);
            assert_eq!(error.sqlstate(), sqlstate, "{encoding}: {sql}: {error:?}");
            assert!(cites(&error, &said(words)), "{encoding}: {sql}: {error:?}");
        }
        for (label, detail) in WRONG_LABELS {
            let sql = set_label("ROLE app", &said(label));
            let error = superuser.try_query(&sql).expect_err(&sql);
            assert_eq!(error.sqlstate(), "22023", "{encoding}: {error:?}");
            assert_eq!(error.detail(), said(detail), "{encoding}: {sql}");
        }
        // An error that is caught leaves nothing behind.
        let caught = format!(
            "DO $$ BEGIN
                PERFORM session_limit.explain_login('{cited}');
            EXCEPTION WHEN undefined_object THEN
                ASSERT SQLERRM = 'role \"{cited}\" does not exist';
            END $$"
        );
        superuser.query(&caught);
        assert_eq!(superuser.value("SELECT count(*) FROM pg_shseclabel"), "0");
    }
}

fn cites(error: &Refusal, words: &str) -> bool {
    error.message() == words || error.detail().starts_with(words)
}

/// The server's own errors come through, too.
fn whoever_may_not_is_told_of_what(server: &Server) {
    for (encoding, cited) in [("LATIN1", "é"), ("EUC_JP", "日本"), ("UTF8", "é")] {
        let (cluster, mut superuser) = cluster(server, encoding);
        superuser.query(&format!(r#"CREATE ROLE "{cited}" LOGIN"#));
        superuser.query(&create_database(&format!("of {cited}"), encoding));
        superuser.query("ALTER ROLE app CREATEROLE");
        let mut app = session(&cluster, "app");
        let sql = format!("SELECT session_limit.set_limit(1, database => 'of {cited}')");
        let error = app.try_query(&sql).expect_err(&sql);
        let message = format!("must be owner of database of {cited}");
        assert_eq!((error.sqlstate(), error.message()), ("42501", &*message));
        let sql = format!("SELECT session_limit.explain_login('{cited}')");
        let error = app.try_query(&sql).expect_err(&sql);
        let message = format!("permission denied to explain a login of role \"{cited}\"");
        assert_eq!((error.sqlstate(), error.message()), ("42501", &*message));
        if server.major >= 16 {
            let sql = format!("SELECT session_limit.set_limit(1, role => '{cited}')");
            let error = app.try_query(&sql).expect_err(&sql);
            assert_eq!(error.sqlstate(), "42501", "{error:?}");
            assert!(
                error.detail().contains(&format!("\"{cited}\"")),
                "{error:?}"
            );
        }
    }
}
