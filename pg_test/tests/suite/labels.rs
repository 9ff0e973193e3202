//! What a label, or the setting `cluster_limits`, may say; who may set one; and what a login meets
//! where one is broken all the same.

use crate::scene::{admitted, refused, remove_label, set_label, wait_until};
use pg_test::client::{Refusal, Session, Target};
use pg_test::cluster::{Cluster, Stop};
use pg_test::server::Server;
use pg_test::wait_for;

tests![
    what_has_no_effect_is_noticed,
    a_bad_label_is_refused_by_its_field,
    a_label_has_at_most_1000_bytes,
    other_objects_have_no_label,
    a_label_is_stored_to_the_letter,
    who_may_label_what,
    larger_than_the_connection_limit,
    without_preloading,
    bad_cluster_limits_are_refused,
    bad_cluster_limits_on_reload,
    bad_cluster_limits_at_start,
    a_broken_label_refuses_whom_it_covers,
    a_broken_label_in_a_dry_run,
    a_broken_label_does_not_refuse_the_exempt,
    what_a_login_does_not_know_is_passed_over,
    the_first_label_holds_from_its_commit_on,
    the_first_label_holds_on_a_standby,
    while_labels_cannot_be_read_logins_fail,
];

/// Every label that there is, of any object.
fn stored(superuser: &mut Session) -> Vec<Vec<String>> {
    superuser.query(
        "SELECT classoid, objoid, provider, label FROM pg_shseclabel
         UNION ALL SELECT classoid, objoid, provider, label FROM pg_seclabel ORDER BY 1, 2, 3",
    )
}

/// The error of a statement, which changed no label.
fn error_of(by: &mut Session, superuser: &mut Session, sql: &str) -> Refusal {
    let before = stored(superuser);
    let error = by.try_query(sql).expect_err(sql);
    assert_eq!(stored(superuser), before, "{sql}");
    error
}

/// The example that a HINT gives.
fn example(hint: &str) -> &str {
    let example = hint.strip_prefix("Example: ");
    example.unwrap_or_else(|| panic!("no example: {hint}"))
}

/// A role, a group and a database, each with a label.
fn labelled(superuser: &mut Session) {
    for sql in [
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE team",
        "CREATE DATABASE app",
        &set_label("ROLE alice", r#"{"max": 7}"#),
        &set_label("ROLE team", r#"{"max": 8, "per": "role"}"#),
        &set_label("DATABASE app", r#"{"max": 9}"#),
    ] {
        superuser.query(sql);
    }
}

/// An object, a label that it cannot have, and how the error's DETAIL begins.
const BAD: &[(&str, &str, &str)] = &[
    ("ROLE alice", "", "End of the text in a value"),
    ("ROLE alice", "one", "Expected value"),
    (
        "ROLE alice",
        r#"{"max": 1"#,
        "End of the text in an object at character 9",
    ),
    ("ROLE alice", r#"{"max": 1} 2"#, "Trailing characters"),
    (
        "ROLE alice",
        r#"{"max": 1, "max": 1}"#,
        r#"Duplicate field "max""#,
    ),
    (
        "ROLE alice",
        r#"{"limits": [{"max": }]}"#,
        r#"Field "limits[0].max": expected value at character 21"#,
    ),
    ("ROLE alice", "[]", "It is an array; expected a label"),
    (
        "ROLE alice",
        r#"{"maximum": 1}"#,
        r#"Unknown field "maximum""#,
    ),
    (
        "ROLE alice",
        r#"{"limits": [{"max": 1, "color": 2}]}"#,
        r#"Unknown field "limits[0].color""#,
    ),
    ("ROLE alice", r#"{"max": "1"}"#, r#"Field "max": "#),
    ("ROLE alice", r#"{"max": null}"#, r#"Field "max": "#),
    ("ROLE alice", r#"{"max": 1.5}"#, r#"Field "max": "#),
    ("ROLE alice", r#"{"max": -2}"#, r#"Field "max": "#),
    ("ROLE alice", r#"{"max": 262144}"#, r#"Field "max": "#),
    (
        "ROLE alice",
        r#"{"max": 99999999999999999999}"#,
        r#"Field "max": "#,
    ),
    ("ROLE alice", r#"{"limits": 1}"#, r#"Field "limits": "#),
    ("ROLE alice", r#"{"limits": [1]}"#, r#"Field "limits[0]": "#),
    (
        "ROLE alice",
        r#"{"limits": [{"per": "role"}]}"#,
        r#"Field "limits[0]": missing field "max""#,
    ),
    (
        "ROLE alice",
        r#"{"max": 1, "limits": []}"#,
        r#"Field "max": "#,
    ),
    ("ROLE alice", r#"{"per": "role"}"#, r#"Field "per": "#),
    (
        "ROLE alice",
        r#"{"max": 1, "per": "group"}"#,
        r#"Field "per": "#,
    ),
    (
        "ROLE alice",
        r#"{"max": 1, "per": "week"}"#,
        r#"Field "per": "#,
    ),
    (
        "ROLE alice",
        r#"{"max": 1, "database": 5}"#,
        r#"Field "database": "#,
    ),
    (
        "ROLE alice",
        r#"{"max": 1, "network": "10.0.0.0/33"}"#,
        r#"Field "network": "#,
    ),
    (
        "ROLE alice",
        r#"{"limits": [{"max": 1, "network": "10.0.0.1/8"}]}"#,
        r#"Field "limits[0].network": "#,
    ),
    (
        "ROLE alice",
        r#"{"max": 1, "max_wait": "5 weeks"}"#,
        r#"Field "max_wait": "#,
    ),
    (
        "ROLE alice",
        r#"{"max_wait": "11min"}"#,
        r#"Field "max_wait": "#,
    ),
    (
        "ROLE alice",
        r#"{"on_excess": "replace"}"#,
        r#"Field "on_excess": "#,
    ),
    (
        "ROLE alice",
        r#"{"max": 1, "enforcement": "off"}"#,
        r#"Field "enforcement": "#,
    ),
    (
        "ROLE alice",
        r#"{"max": 1, "across": "cluster"}"#,
        r#"Field "across": unknown value "cluster""#,
    ),
    (
        "ROLE alice",
        r#"{"max": 1, "across": "servers", "count": "addresses"}"#,
        r#"Field "across": "servers" is not allowed with "count": "addresses""#,
    ),
    (
        "ROLE team",
        r#"{"limits": [{"max": 1, "per": "role", "across": "servers", "enforcement": "log"}]}"#,
        r#"Field "limits[0].across": "servers" is not allowed with "enforcement": "log""#,
    ),
    ("ROLE alice", r#"{"exempt": 1}"#, r#"Field "exempt": "#),
    (
        "ROLE alice",
        r#"{"limits": [{"max": 1}, {"max": 2, "per": "role"}]}"#,
        r#"Field "limits[1]": same "per""#,
    ),
    (
        "ROLE team",
        r#"{"max": 1}"#,
        r#"Field "per": must be given"#,
    ),
    (
        "ROLE team",
        r#"{"max": 1, "per": "database"}"#,
        r#"Field "per": "#,
    ),
    (
        "DATABASE app",
        r#"{"max": 1, "per": "group"}"#,
        r#"Field "per": "#,
    ),
    (
        "DATABASE app",
        r#"{"max": 1, "database": "app"}"#,
        r#"Field "database": "#,
    ),
    ("DATABASE app", r#"{"exempt": true}"#, r#"Field "exempt": "#),
];

fn a_bad_label_is_refused_by_its_field(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    let (mut superuser, mut other) = (cluster.superuser(), cluster.superuser());
    labelled(&mut superuser);
    for (object, json, named) in BAD {
        let error = error_of(&mut other, &mut superuser, &set_label(object, json));
        assert_eq!(error.sqlstate(), "22023", "{json}: {error:?}");
        assert_eq!(error.message(), "invalid session_limit label");
        assert!(error.detail().starts_with(named), "{json}: {error:?}");
        superuser.query("BEGIN");
        superuser.query(&set_label(object, example(error.hint())));
        superuser.query("ROLLBACK");
    }
}

fn a_label_has_at_most_1000_bytes(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    let (mut superuser, mut other) = (cluster.superuser(), cluster.superuser());
    labelled(&mut superuser);
    // Two bytes for each letter.
    let limit = |number| format!(r#"{{"max": 1, "database": "{}{number}"}}"#, "ö".repeat(30));
    let limits = |number| (0..number).map(limit).collect::<Vec<_>>().join(", ");
    let label = |number| format!(r#"{{"limits": [{}]}}"#, limits(number));
    let longest = format!("{:1$}", label(10), 1000 - 10 * 30);
    assert_eq!(longest.len(), 1000);
    superuser.query(&set_label("ROLE alice", &longest));
    for too_long in [longest + " ", label(500)] {
        let sql = set_label("ROLE alice", &too_long);
        let error = error_of(&mut other, &mut superuser, &sql);
        assert_eq!(error.sqlstate(), "22023", "{error:?}");
        let detail = format!(
            "The label has {} bytes; a login can read 1000.",
            too_long.len()
        );
        assert_eq!(error.detail(), detail);
        assert!(!error.hint().is_empty());
    }
    // A login does read the longest.
    let _first = cluster.login_of("alice").login().expect("no such database");
    let mut limits = cluster.superuser();
    limits.query("CREATE EXTENSION session_limit");
    let names = "SELECT count(*) FROM session_limit.limits WHERE length(database) = 31";
    assert_eq!(limits.value(names), "10");
}

fn other_objects_have_no_label(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    let (mut superuser, mut other) = (cluster.superuser(), cluster.superuser());
    for sql in [
        "CREATE TABLE thing (id int)",
        "CREATE VIEW look AS SELECT 1 AS id",
        "CREATE SEQUENCE numbers",
        "CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
        "CREATE PUBLICATION news",
    ] {
        superuser.query(sql);
    }
    let objects = [
        "TABLE thing",
        "COLUMN thing.id",
        "VIEW look",
        "SEQUENCE numbers",
        "FUNCTION one()",
        "DOMAIN positive",
        "TYPE positive",
        "SCHEMA public",
        "LANGUAGE plpgsql",
        "PUBLICATION news",
        "TABLESPACE pg_default",
    ];
    for object in objects {
        for sql in [set_label(object, r#"{"max": 1}"#), remove_label(object)] {
            let error = error_of(&mut other, &mut superuser, &sql);
            assert_eq!(error.sqlstate(), "22023", "{sql}: {error:?}");
            let message = "session_limit labels are for roles and databases only";
            assert_eq!(error.message(), message);
            assert!(error.hint().contains("ON ROLE"), "{error:?}");
        }
    }
    assert_eq!(stored(&mut superuser), [[""; 0]; 0]);
}

fn a_label_is_stored_to_the_letter(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    let mut superuser = cluster.superuser();
    labelled(&mut superuser);
    let good = [
        ("ROLE alice", "{}"),
        ("ROLE alice", "\n{ \"max\"\t:  1,\"per\":\"role\" } "),
        ("ROLE alice", r#"{"max_wait": "1 min", "max": -1}"#),
        (
            "ROLE alice",
            r#"{"exempt": true, "on_excess": "replace_idle"}"#,
        ),
        (
            "ROLE alice",
            r#"{"max": 1, "database": "it's \u00fcber", "network": "::1"}"#,
        ),
        (
            "ROLE team",
            r#"{"limits": [{"per": "group", "max": 0}, {"max": 9, "per": "address", "enforcement": "log"}], "exempt": false}"#,
        ),
        (
            "DATABASE app",
            r#"{"max": 262143, "network": "10.0.0.0/8", "max_wait": 0}"#,
        ),
        (
            "DATABASE app",
            r#"{"limits": [{"across": "servers", "max": 300}, {"max": 120, "across":"server"}]}"#,
        ),
    ];
    for (object, json) in good {
        superuser.query(&set_label(object, json));
        let name = object.split(' ').next_back().unwrap_or_default();
        let label = format!(
            "SELECT label FROM pg_seclabels WHERE provider = 'session_limit' AND objname = '{name}'"
        );
        assert_eq!(superuser.value(&label), json);
    }
    // There is no other provider: it need not be named.
    superuser.query("SECURITY LABEL ON ROLE alice IS NULL");
    superuser.query(&remove_label("ROLE team"));
    superuser.query(&remove_label("DATABASE app"));
    assert_eq!(stored(&mut superuser), [[""; 0]; 0]);
}

fn who_may_label_what(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    cluster.sql(&[
        "CREATE ROLE admin LOGIN CREATEROLE",
        "CREATE ROLE owner LOGIN",
        "CREATE DATABASE app OWNER owner",
    ]);
    let limit = r#"{"max": 5, "exempt": false}"#;
    let exempt = r#"{"max": 5, "exempt": true}"#;
    let total = r#"{"max": 5, "per": "group"}"#;
    let allowed = [
        // From 16 on whoever created a role has it with ADMIN.
        ("admin", "CREATE ROLE alice LOGIN".to_string()),
        ("admin", "CREATE ROLE team".to_string()),
        ("admin", set_label("ROLE alice", limit)),
        ("admin", remove_label("ROLE alice")),
        ("admin", set_label("ROLE alice", limit)),
        ("owner", set_label("DATABASE app", r#"{"max": 6}"#)),
        ("owner", remove_label("DATABASE app")),
        ("owner", set_label("DATABASE app", r#"{"max": 5}"#)),
        ("postgres", set_label("ROLE team", total)),
        ("postgres", set_label("ROLE owner", exempt)),
    ];
    for (by, sql) in allowed {
        cluster.login_of(by).login().expect(by).query(&sql);
    }

    let group = "must be superuser to set the session_limit label of a role without LOGIN";
    let refused = [
        (
            "admin",
            set_label("ROLE alice", exempt),
            "must be superuser to exempt a role from limits",
        ),
        ("admin", set_label("ROLE team", total), group),
        ("admin", set_label("ROLE team", "{}"), group),
        ("admin", remove_label("ROLE team"), group),
        // The rest is the server's.
        ("admin", set_label("ROLE postgres", limit), ""),
        ("owner", set_label("ROLE owner", limit), ""),
        ("owner", remove_label("ROLE owner"), ""),
        ("alice", set_label("ROLE alice", r#"{"max": -1}"#), ""),
        ("alice", set_label("ROLE alice", "no JSON"), ""),
        ("alice", remove_label("ROLE alice"), ""),
        ("alice", remove_label("ROLE team"), ""),
        (
            "alice",
            remove_label("DATABASE app"),
            "must be owner of database app",
        ),
    ];
    let mut superuser = cluster.superuser();
    for (by, sql, message) in refused {
        let mut session = cluster.login_of(by).login().expect(by);
        let error = error_of(&mut session, &mut superuser, &sql);
        assert_eq!(error.sqlstate(), "42501", "{by}: {sql}: {error:?}");
        assert!(error.message().contains(message), "{by}: {sql}: {error:?}");
        if message.contains("superuser to") {
            assert!(!error.detail().is_empty() && !error.hint().is_empty());
        }
    }
}

fn larger_than_the_connection_limit(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    cluster.sql(&[
        "CREATE ROLE alice LOGIN CONNECTION LIMIT 2",
        "CREATE ROLE bob LOGIN",
        "CREATE DATABASE app CONNECTION LIMIT 2",
    ]);
    let of_role = "WARNING:  the role's CONNECTION LIMIT, 2, is smaller than the label's limit";
    let of_database = of_role.replace("role", "database");
    let cases = [
        ("ROLE alice", r#"{"max": 3}"#, of_role),
        ("ROLE alice", r#"{"max": -1}"#, of_role),
        (
            "ROLE alice",
            r#"{"limits": [{"max": 9, "per": "role"}]}"#,
            of_role,
        ),
        ("ROLE alice", r#"{"max": 2}"#, ""),
        ("ROLE alice", r#"{"max": 3, "per": "address"}"#, ""),
        ("ROLE alice", r#"{"max": 3, "database": "app"}"#, ""),
        ("ROLE bob", r#"{"max": 3}"#, ""),
        ("DATABASE app", r#"{"max": 3}"#, &of_database),
        ("DATABASE app", r#"{"max": 2}"#, ""),
        ("DATABASE app", r#"{"max": 3, "per": "role"}"#, ""),
    ];
    for (object, json, warning) in cases {
        let printed = cluster.psql("postgres", &set_label(object, json));
        let expected = match warning {
            "" => "SECURITY LABEL\n".to_string(),
            _ => format!("{warning}\nDETAIL:  The smaller one applies.\nSECURITY LABEL\n"),
        };
        assert_eq!(printed, expected, "{object} {json}");
    }
    let across = set_label("ROLE alice", r#"{"max": 3, "across": "servers"}"#);
    let alone = "NOTICE:  the limit counts on this server alone, because session_limit.etcd_endpoints is empty\n";
    assert_eq!(
        cluster.psql("postgres", &across),
        format!("{alone}SECURITY LABEL\n")
    );
    let stored = "SELECT count(*) FROM pg_shseclabel";
    assert_eq!(cluster.superuser().value(stored), "3");
}

fn without_preloading(server: &Server) {
    let cluster = Cluster::plain(server, &[]);
    let (mut superuser, mut loaded) = (cluster.superuser(), cluster.superuser());
    loaded.query("LOAD 'session_limit'");
    labelled(&mut loaded);
    for (object, json) in [
        ("ROLE alice", r#"{"max": 5}"#),
        ("ROLE team", r#"{"max": 6, "per": "group"}"#),
        ("DATABASE app", r#"{"max": 7}"#),
    ] {
        for sql in [set_label(object, json), remove_label(object)] {
            let error = error_of(&mut superuser, &mut loaded, &sql);
            assert_eq!(error.sqlstate(), "22023", "{error:?}");
            let message = r#"security label provider "session_limit" is not loaded"#;
            assert_eq!(error.message(), message);
        }
        let bad = set_label(object, r#"{"maximum": 1}"#);
        let error = error_of(&mut loaded, &mut superuser, &bad);
        assert_eq!(error.detail(), r#"Unknown field "maximum"."#, "{error:?}");
        loaded.query(&set_label(object, json));
        let label = format!("SELECT count(*) FROM pg_shseclabel WHERE label = '{json}'");
        assert_eq!(superuser.value(&label), "1");
        loaded.query(&remove_label(object));
        assert_eq!(superuser.value(&label), "0");
    }
    assert_eq!(stored(&mut superuser), [[""; 0]; 0]);
}

/// A bad value of `cluster_limits`, and how the error's DETAIL begins.
const BAD_CLUSTER_LIMITS: &[(&str, &str)] = &[
    ("one", "Expected value"),
    (r#"{"max": 1}"#, r#"Field "per": must be given"#),
    (r#"{"max": 1, "per": "group"}"#, r#"Field "per": "#),
    (
        r#"{"max": 1, "per": "role", "color": 2}"#,
        r#"Unknown field "color""#,
    ),
    (
        r#"{"limits": [{"max": 1, "per": "address", "network": "ten"}]}"#,
        r#"Field "limits[0].network": "#,
    ),
    (
        r#"{"max": 1, "per": "cluster", "across": "servers", "enforcement": "log"}"#,
        r#"Field "across": "servers" is not allowed with "enforcement": "log""#,
    ),
    (r#"{"exempt": true}"#, r#"Field "exempt": "#),
];

const NAME: &str = "session_limit.cluster_limits";

fn bad_cluster_limits_are_refused(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    let mut superuser = cluster.superuser();
    let good = r#"{"max": 9, "per": "role"}"#;
    cluster.set(&[(NAME, good)]);
    for (json, named) in BAD_CLUSTER_LIMITS {
        let error = superuser
            .try_query(&format!("ALTER SYSTEM SET {NAME} = '{json}'"))
            .expect_err(json);
        assert_eq!(error.sqlstate(), "22023", "{error:?}");
        let message = format!("invalid value for parameter \"{NAME}\": \"{json}\"");
        assert_eq!(error.message(), message);
        assert!(error.detail().starts_with(named), "{error:?}");
        let in_file =
            "SELECT setting FROM pg_file_settings WHERE name = 'session_limit.cluster_limits'";
        assert_eq!(superuser.value(in_file), good);
        let example = example(error.hint()).to_string();
        cluster.set(&[(NAME, &example)]);
        let value = cluster.superuser().value(&format!("SHOW {NAME}"));
        assert_eq!(value, example);
        cluster.set(&[(NAME, good)]);
    }
}

fn bad_cluster_limits_on_reload(server: &Server) {
    let one = r#"{"max": 1, "per": "role"}"#;
    let cluster = Cluster::start(server, &[(NAME, one), ("session_limit.max_wait", "0")]);
    cluster.sql(&["CREATE ROLE alice LOGIN"]);
    let mut alice = cluster.login_of("alice").login().expect("the first");
    for (json, named) in BAD_CLUSTER_LIMITS {
        let logged = cluster.log().len();
        cluster.append("postgresql.conf", &format!("{NAME} = '{json}'\n"));
        cluster.reload();
        let complaint = format!("LOG:  invalid value for parameter \"{NAME}\": \"{json}\"");
        let log = cluster.log().split_off(logged);
        assert!(log.contains(&complaint), "{log}");
        assert!(log.contains(&format!("DETAIL:  {named}")), "{log}");
        assert!(log.contains("HINT:  Example: "), "{log}");
        assert_eq!(refused(&cluster.login_of("alice")).sqlstate(), "53300");
        assert_eq!(cluster.superuser().value(&format!("SHOW {NAME}")), one);
        assert!(alice.is_alive());
    }
    let two = r#"{"max": 2, "per": "role"}"#;
    cluster.append("postgresql.conf", &format!("{NAME} = '{two}'\n"));
    cluster.reload();
    let _second = cluster.login_of("alice").login().expect("a right value");
}

/// A server without the limits that it was told to have would let everyone in.
fn bad_cluster_limits_at_start(server: &Server) {
    let mut cluster = Cluster::start(server, &[]);
    for (json, named) in BAD_CLUSTER_LIMITS {
        cluster.stop(Stop::Fast);
        let logged = cluster.log().len();
        cluster.append("postgresql.conf", &format!("{NAME} = '{json}'\n"));
        assert!(!cluster.starts(), "{json}");
        let log = cluster.log().split_off(logged);
        let complaint = format!("FATAL:  invalid value for parameter \"{NAME}\": \"{json}\"");
        assert!(log.contains(&complaint), "{log}");
        assert!(log.contains(&format!("DETAIL:  {named}")), "{log}");
        assert!(log.contains("HINT:  Example: "), "{log}");
    }
    cluster.stop(Stop::Fast);
    cluster.append("postgresql.conf", &format!("{NAME} = ''\n"));
    cluster.start_again();
}

/// What carries a label, whom it covers, and whom it does not.
struct Labelled {
    name: &'static str,
    oid: &'static str,
    covered: Target,
    other: Target,
}

fn each_carrier(cluster: &Cluster) -> [Labelled; 3] {
    let mut superuser = cluster.superuser();
    labelled(&mut superuser);
    superuser.query("CREATE ROLE bob LOGIN");
    superuser.query("GRANT team TO alice");
    let to_app = cluster.login_of("bob").to("app");
    let (alice, bob) = (cluster.login_of("alice"), cluster.login_of("bob"));
    let labelled = |name, oid, covered: &Target, other: &Target| Labelled {
        name,
        oid,
        covered: covered.clone(),
        other: other.clone(),
    };
    [
        labelled("role alice", "'alice'::regrole", &alice, &to_app),
        labelled("role team", "'team'::regrole", &alice, &to_app),
        labelled(
            "database app",
            "(SELECT oid FROM pg_database WHERE datname = 'app')",
            &to_app,
            &bob,
        ),
    ]
}

impl Labelled {
    fn label(&self, superuser: &mut Session) -> String {
        let oid = self.oid;
        superuser.value(&format!(
            "SELECT label FROM pg_shseclabel WHERE objoid = {oid}"
        ))
    }

    /// Makes the label what no check has passed.
    fn becomes(&self, superuser: &mut Session, expression: &str) {
        superuser.query("SET allow_system_table_mods = on");
        let oid = self.oid;
        superuser.query(&format!(
            "UPDATE pg_shseclabel SET label = {expression} WHERE objoid = {oid}"
        ));
    }
}

/// Labels that no login can read, and how DETAIL begins.
const BROKEN: &[(&str, &str)] = &[
    ("'none'", "Expected"),
    (
        r#"'{"max": 9, "per": "role", "network": "ten"}'"#,
        r#"Field "network": "ten" is not a network"#,
    ),
    // Not counted across servers, but not taken for a limit on this server, either.
    (
        r#"'{"max": 9, "per": "role", "across": "servers", "enforcement": "log"}'"#,
        r#"Field "across": "servers" is not allowed with "enforcement": "log""#,
    ),
    (COMPRESSED, "It is too long to be read at login."),
    (ELSEWHERE, "It is too long to be read at login."),
];

/// JSON that is compressed where it stands, and such that is not even there but in another table.
const COMPRESSED: &str = r#"'{"max": 9, "per": "role"}' || repeat(' ', 5000)"#;
const ELSEWHERE: &str = r#"(SELECT '{"max": 9, "per": "role", "database": "'
    || string_agg(md5(i::text), '') || '"}' FROM generate_series(1, 400) AS i)"#;

fn a_broken_label_refuses_whom_it_covers(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    let carriers = each_carrier(&cluster);
    let mut superuser = cluster.superuser();
    for carrier in &carriers {
        let good = carrier.label(&mut superuser);
        for (broken, detail) in BROKEN {
            carrier.becomes(&mut superuser, broken);
            let refusal = refused(&carrier.covered);
            assert_eq!(refusal.sqlstate(), "22023", "{refusal:?}");
            let message = format!("invalid session_limit label on {}", carrier.name);
            assert_eq!(refusal.message(), message);
            assert_eq!(refusal.fields.get(&'V').map(String::as_str), Some("FATAL"));
            assert!(refusal.detail().starts_with(detail), "{refusal:?}");
            assert!(refusal.hint().contains("superuser"), "{refusal:?}");
            assert!(refusal.authenticated, "libpq would try again without TLS");
            admitted(&carrier.other).end();
            let superuser = Target {
                user: "postgres".to_string(),
                ..carrier.covered.clone()
            };
            admitted(&superuser).end();
        }
        carrier.becomes(&mut superuser, &format!("'{good}'"));
        admitted(&carrier.covered).end();
    }
}

fn a_broken_label_in_a_dry_run(server: &Server) {
    // The worker would say it, too.
    let settings = [
        ("session_limit.enforcement", "log"),
        ("session_limit.sweep", "off"),
    ];
    let cluster = Cluster::start(server, &settings);
    let carriers = each_carrier(&cluster);
    let mut superuser = cluster.superuser();
    let complaint = |carrier: &Labelled| {
        let name = carrier.name;
        format!("LOG:  session_limit: label on {name} is invalid: expected ident")
    };
    for carrier in &carriers {
        carrier.becomes(&mut superuser, "'none'");
        assert!(!cluster.log().contains(&complaint(carrier)));
        carrier.covered.login().expect("log: passed over");
        assert!(cluster.log().contains(&complaint(carrier)));
    }
    cluster.set(&[("session_limit.enforcement", "off")]);
    let logged = cluster.log().len();
    for carrier in &carriers {
        carrier.covered.login().expect("off: not even read");
    }
    let log = cluster.log().split_off(logged);
    assert!(!log.contains("label on"), "{log}");
}

fn a_broken_label_does_not_refuse_the_exempt(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    let [alice, team, app] = each_carrier(&cluster);
    let mut superuser = cluster.superuser();
    superuser.query(&set_label("ROLE alice", r#"{"exempt": true}"#));
    team.becomes(&mut superuser, "'none'");
    app.becomes(&mut superuser, "'none'");
    let to_app = alice.covered.to("app");
    to_app.login().expect("exempt by the own label");
    let log = cluster.log();
    assert!(log.contains("label on role team is invalid"), "{log}");
    assert!(log.contains("label on database app is invalid"), "{log}");
    superuser.query(&remove_label("ROLE alice"));
    assert_eq!(refused(&to_app).sqlstate(), "22023");
}

/// Such as a label that a later version has checked.
fn what_a_login_does_not_know_is_passed_over(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.max_wait", "0")]);
    let carriers = each_carrier(&cluster);
    let mut superuser = cluster.superuser();
    let labels = [
        (r#"{"max": 1, "color": "red"}"#, "color"),
        (
            r#"{"limits": [{"max": 1, "per": "group", "color": {"max": 9}}]}"#,
            "limits[0].color",
        ),
        (r#"{"max": 1, "color": 0, "sound": []}"#, "color, sound"),
    ];
    for (carrier, (json, fields)) in carriers.iter().zip(labels) {
        let good = carrier.label(&mut superuser);
        carrier.becomes(&mut superuser, &format!("'{json}'"));
        // The one before may still be leaving.
        let _first = wait_for("room", || carrier.covered.login().ok());
        let refusal = refused(&carrier.covered);
        assert_eq!(refusal.sqlstate(), "53300", "{refusal:?}");
        let source = format!("The limit is 1 session (label on {})", carrier.name);
        assert!(refusal.detail().starts_with(&source), "{refusal:?}");
        let line = format!("label on {} has unknown fields: {fields}\n", carrier.name);
        let log = cluster.log();
        assert!(
            log.contains(&format!("LOG:  session_limit: {line}")),
            "{log}"
        );
        carrier.becomes(&mut superuser, &format!("'{good}'"));
    }
}

const NOBODY: &str = r#"{"max": 0}"#;

/// Twice: the second login need not look for labels, if the first saw that there was none.
fn has_no_limit(target: &Target) {
    for _ in 0..2 {
        admitted(target).end();
    }
}

fn the_first_label_holds_from_its_commit_on(server: &Server) {
    let mut cluster = Cluster::start(server, &[("max_prepared_transactions", "1")]);
    cluster.sql(&["CREATE ROLE alice LOGIN"]);
    let alice = cluster.login_of("alice");
    let label = set_label("ROLE alice", NOBODY);
    let nothing_is_left = |superuser: &mut Session| {
        superuser.query(&remove_label("ROLE alice"));
        wait_for("the labels' pages to be given back", || {
            superuser.query("VACUUM pg_shseclabel");
            let size = superuser.value("SELECT pg_relation_size('pg_shseclabel')");
            (size == "0").then_some(())
        });
        has_no_limit(&alice);
    };

    let mut superuser = cluster.superuser();
    has_no_limit(&alice);
    for ended in ["COMMIT", "ROLLBACK", "COMMIT"] {
        superuser.query("BEGIN");
        superuser.query(&label);
        has_no_limit(&alice);
        superuser.query(ended);
        match ended {
            "COMMIT" => assert_eq!(refused(&alice).sqlstate(), "53300"),
            _ => has_no_limit(&alice),
        }
        nothing_is_left(&mut superuser);
    }
    for restart in [false, true] {
        superuser.query("BEGIN");
        superuser.query(&label);
        superuser.query("PREPARE TRANSACTION 'label'");
        has_no_limit(&alice);
        if restart {
            superuser.end();
            cluster.stop(Stop::Fast);
            cluster.start_again();
            superuser = cluster.superuser();
            has_no_limit(&alice);
        }
        // The session has had other transactions in between, or is another one.
        superuser.query("COMMIT PREPARED 'label'");
        assert_eq!(refused(&alice).sqlstate(), "53300");
        nothing_is_left(&mut superuser);
    }

    let mut other = cluster.superuser();
    other.query("BEGIN");
    other.query(&label);
    superuser.query(&format!("SELECT pg_terminate_backend({})", other.pid));
    let is_there = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = {}",
        other.pid
    );
    wait_until(&mut superuser, &is_there, "0");
    nothing_is_left(&mut superuser);
    superuser.query(&label);
    assert_eq!(refused(&alice).sqlstate(), "53300");
}

fn the_first_label_holds_on_a_standby(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    cluster.sql(&["CREATE ROLE alice LOGIN"]);
    let standby = Cluster::standby_of(&cluster);
    let there = standby.login_of("alice");
    has_no_limit(&there);
    cluster.sql(&[&set_label("ROLE alice", NOBODY)]);
    let mut superuser = standby.superuser();
    wait_until(&mut superuser, "SELECT count(*) FROM pg_shseclabel", "1");
    assert_eq!(refused(&there).sqlstate(), "53300");
}

/// Nothing else that a login reads is locked, so the error is one that the hook meets.
fn while_labels_cannot_be_read_logins_fail(server: &Server) {
    let cluster = Cluster::start(server, &[("lock_timeout", "100ms")]);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN",
        &set_label("ROLE alice", r#"{"max": 1}"#),
    ]);
    let alice = cluster.login_of("alice");
    let (mut superuser, mut other) = (cluster.superuser(), cluster.superuser());
    // The worker may just be reading them.
    superuser.query("SET lock_timeout = 0");
    superuser.query("BEGIN; LOCK pg_shseclabel");
    for _ in 0..3 {
        assert_eq!(refused(&alice).sqlstate(), "55P03");
        let error = other.try_query("SELECT * FROM session_limit.limits");
        assert_eq!(error.expect_err("locked").sqlstate(), "55P03");
    }
    superuser.query("COMMIT");
    let only = alice.login().expect("nobody is in");
    assert_eq!(refused(&alice).sqlstate(), "53300");
    only.end();
    cluster.wait_until_gone("alice");
    alice.login().expect("nobody is in").end();
    assert!(other.is_alive(), "the server has not restarted");
}

/// What limits nobody as things are is set all the same, and says so.
fn what_has_no_effect_is_noticed(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE boss LOGIN SUPERUSER",
        "CREATE ROLE team CONNECTION LIMIT 3",
    ]);
    let said = |object: &str, label: &str| cluster.psql("postgres", &set_label(object, label));
    let nothing = "NOTICE:  ";
    for (object, label, notice) in [
        ("ROLE alice", "{}", "the session_limit label is empty"),
        ("ROLE boss", r#"{"max": 1}"#, "the role is exempt"),
        (
            "ROLE alice",
            r#"{"max": 1, "exempt": true}"#,
            "the role is exempt",
        ),
        (
            "ROLE alice",
            r#"{"max": 1, "database": "app"}"#,
            r#"database "app" does not exist"#,
        ),
    ] {
        let said = said(object, label);
        assert!(
            said.contains(&format!("{nothing}{notice}")),
            "{label}: {said}"
        );
    }
    cluster.sql(&["CREATE DATABASE app"]);
    for label in [r#"{"max": 1, "database": "app"}"#, r#"{"max_wait": "1s"}"#] {
        let said = said("ROLE alice", label);
        assert!(!said.contains(nothing), "{label}: {said}");
    }
    // The CONNECTION LIMIT of a role without LOGIN limits nobody.
    let limit = "SELECT concat_ws(' ', max, unmatched) FROM session_limit.limits
                 WHERE source = 'CONNECTION LIMIT of role team'";
    assert_eq!(cluster.superuser().value(limit), "3 t");
}
