//! docs/reference/ says of the code what is true, and all of it: settings, views, functions, labels, events, errors.

use crate::page::Page;
use crate::scene::{admitted, refused, set_label, wait_until};
use crate::schema::{event_of, lines, schema};
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use pg_test::{place, wait_for};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

tests![
    settings,
    views_and_functions,
    label_fields,
    label_statements,
    events,
    each_event_fits_the_schema,
    errors,
];

fn read(path: &str) -> String {
    fs::read_to_string(place::checkout().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A heading of a page, and what stands below it up to the next one.
struct Section {
    heading: String,
    tables: Vec<Table>,
}

/// Its first row is the head.
type Table = Vec<Vec<String>>;

fn sections(page: &str) -> Vec<Section> {
    let mut sections = Vec::new();
    let (mut is_code, mut is_table) = (false, false);
    for line in read(&format!("docs/reference/{page}")).lines() {
        is_code ^= line.starts_with("```");
        if line.starts_with('#') && !is_code {
            let heading = line.trim_start_matches('#').trim().to_string();
            let tables = Vec::new();
            sections.push(Section { heading, tables });
        }
        let was_table = is_table;
        is_table = line.starts_with("| ") && !is_code;
        if let Some(section) = sections.last_mut().filter(|_| is_table) {
            if !was_table {
                section.tables.push(Table::new());
            }
            let table = section.tables.last_mut().expect("a table");
            let cells = line.trim_matches('|').split(" |");
            let row: Vec<String> = cells.map(|cell| cell.trim().to_string()).collect();
            if !row[0].starts_with("---") {
                table.push(row);
            }
        }
    }
    sections
}

fn section(page: &str, heading: &str) -> Section {
    let mut sections = sections(page).into_iter();
    let found = sections.find(|section| section.heading == heading);
    found.unwrap_or_else(|| panic!("{page}: {heading}"))
}

impl Section {
    /// The rows of its table whose first column has this head, without the head.
    fn rows(&self, head: &str) -> &[Vec<String>] {
        let table = self.tables.iter().find(|table| table[0][0] == head);
        table.map_or(&[], |table| &table[1..])
    }

    /// The names in the first column of that table.
    fn names(&self, head: &str) -> BTreeSet<String> {
        let rows = self.rows(head).iter();
        rows.flat_map(|row| codes(&row[0])).collect()
    }
}

/// What stands in code in a cell.
fn codes(cell: &str) -> Vec<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(String::from)
        .collect()
}

fn code(cell: &str) -> String {
    codes(cell).into_iter().next().unwrap_or_default()
}

/// Each with its values if these are words, its default, and what it takes to change it.
fn settings(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    let sql = "SELECT name,
            CASE vartype WHEN 'enum' THEN array_to_string(enumvals, ' ') WHEN 'bool' THEN 'on off' ELSE '' END,
            coalesce(nullif(current_setting(name), ''), 'empty'),
            CASE context WHEN 'sighup' THEN 'reload' WHEN 'postmaster' THEN 'restart' ELSE context END
        FROM pg_settings WHERE name LIKE 'session\\_limit.%' ORDER BY name";
    let there = cluster.superuser().query(sql);
    assert!(!there.is_empty());

    let has_words = |name: &str| there.iter().any(|row| row[0] == name && !row[1].is_empty());
    let page = section("settings.md", "Settings");
    let mut said: Vec<Vec<String>> = page
        .rows("setting")
        .iter()
        .map(|row| {
            let name = code(&row[0]);
            let values = match has_words(&name) {
                true => codes(&row[1]).join(" "),
                false => String::new(),
            };
            vec![name, values, row[2].replace('`', ""), row[3].clone()]
        })
        .collect();
    said.sort();
    assert_eq!(said, there);
    let headings: BTreeSet<String> = sections("settings.md")
        .into_iter()
        .map(|section| section.heading)
        .filter(|heading| heading.contains('.'))
        .collect();
    let names = there.into_iter().map(|row| row[0].clone()).collect();
    assert_eq!(headings, names, "each has a section");
}

/// What the reference says of a view or function, or the catalogs do: arguments and columns, each with its type, an
/// argument also with whether it has a default.
#[derive(Debug, Default, PartialEq)]
struct Object {
    arguments: Vec<(String, String, bool)>,
    columns: Vec<(String, String)>,
}

fn views_and_functions(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    let mut superuser = cluster.superuser();
    superuser.query("CREATE EXTENSION session_limit");
    let mut there: BTreeMap<String, Object> = BTreeMap::new();
    let columns = "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'session_limit'::regnamespace AND c.relkind <> 'c' AND a.attnum > 0 AND NOT a.attisdropped
        ORDER BY c.relname, a.attnum";
    for row in superuser.query(columns) {
        let object = there.entry(row[0].clone()).or_default();
        object.columns.push((row[1].clone(), row[2].clone()));
    }
    // The others say of themselves what to use instead.
    let functions = "SELECT p.proname, coalesce(a.name, ''), coalesce(format_type(a.type, NULL), ''),
            coalesce(a.mode IN ('o', 't'), false), a.number > p.pronargs - p.pronargdefaults
        FROM pg_proc p LEFT JOIN LATERAL unnest(proargnames, coalesce(proallargtypes, proargtypes), proargmodes)
            WITH ORDINALITY AS a(name, type, mode, number) ON true
        WHERE pronamespace = 'session_limit'::regnamespace AND obj_description(p.oid, 'pg_proc') NOT LIKE '%; use %'
        ORDER BY p.proname, a.number";
    for row in superuser.query(functions) {
        let object = there.entry(row[0].clone()).or_default();
        let (name, kind) = (row[1].clone(), row[2].clone());
        match (name.is_empty(), row[3] == "t") {
            (true, _) => {}
            (_, true) => object.columns.push((name, kind)),
            (_, false) => object.arguments.push((name, kind, row[4] == "t")),
        }
    }
    assert!(there.contains_key("usage") && there.contains_key("reset_stats"));

    let is_name = |section: &Section| {
        let mut chars = section.heading.chars();
        chars.all(|char| char.is_ascii_lowercase() || char == '_')
    };
    let pages = ["views.md", "labels.md"].into_iter().flat_map(sections);
    let said = pages.filter(is_name).map(|section| {
        let argument = |row: &Vec<String>| (code(&row[0]), code(&row[1]), !row[2].is_empty());
        let column = |row: &Vec<String>| (code(&row[0]), code(&row[1]));
        let object = Object {
            arguments: section.rows("argument").iter().map(argument).collect(),
            columns: section.rows("column").iter().map(column).collect(),
        };
        (section.heading, object)
    });
    assert_eq!(said.collect::<BTreeMap<_, _>>(), there);
}

/// The model's own fields, read off its source.
fn label_fields(_server: &Server) {
    let source = read("model/src/label.rs");
    let fields = ["pub struct LabelLimit {", "struct Written {"].map(|head| {
        let (_, body) = source.split_once(head).expect(head);
        let body = body.split("\n}").next().expect("the end of the struct");
        let lines = body
            .lines()
            .map(|line| line.trim().trim_start_matches("pub "));
        let named = lines.filter_map(|line| line.split_once(": ").map(|(name, _)| name));
        let is_field = |name: &&str| {
            name.chars()
                .all(|char| char.is_ascii_lowercase() || char == '_')
        };
        named.filter(is_field).map(String::from).collect::<Vec<_>>()
    });
    let mut there: BTreeSet<String> = fields.into_iter().flatten().collect();
    assert!(there.remove("unknown"));
    assert_eq!(section("labels.md", "Fields").names("field"), there);
}

/// As they stand there, one after the other.
fn label_statements(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    cluster.sql(&[
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE team NOLOGIN",
        "CREATE DATABASE app",
        "CREATE EXTENSION session_limit",
    ]);
    let mut superuser = cluster.superuser();
    let statements = Page::read("reference/labels.md").statements();
    assert!(statements.len() >= 12, "{statements:?}");
    for statement in &statements {
        let outcome = superuser.try_query(statement);
        outcome.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    let label =
        "SELECT label FROM pg_seclabels WHERE provider = 'session_limit' AND objname = 'team'";
    let label = superuser.value(label);
    assert!(
        label.contains("\"per\""),
        "the last ones took effect: {label}"
    );
}

fn properties(line: &Value) -> impl Iterator<Item = &String> {
    line["properties"].as_object().expect("an object").keys()
}

/// The server names its events in a hint.
fn events(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    let wrong = "ALTER SYSTEM SET session_limit.log_events = 'no_event'";
    let hint = cluster.superuser().try_query(wrong).expect_err("no event");
    let (_, list) = hint.hint().split_once("some of ").expect("a hint");
    let there = list.trim_end_matches('.').split(", ").map(String::from);
    let there: BTreeSet<String> = there.chain(["left_out".to_string()]).collect();
    assert_eq!(section("events.md", "The events").names("event"), there);
    let in_schema: BTreeSet<String> = lines().map(|line| event_of(line).to_string()).collect();
    assert_eq!(in_schema, there);

    let known: BTreeSet<String> = lines().flat_map(properties).cloned().collect();
    let page = section("events.md", "The keys");
    assert_eq!(page.names("key"), known);
    let words = schema()["$defs"]["not_waited"]["enum"]
        .as_array()
        .expect("a list");
    let words: BTreeSet<String> = words
        .iter()
        .map(|word| word.as_str().expect("a word").into())
        .collect();
    assert_eq!(page.names("word"), words);
    let source = read("model/src/verdict.rs");
    let (_, source) = source.split_once("pub fn word(").expect("a function");
    let source = source.split("\n    }").next().expect("its end");
    let in_source = source.split('"').skip(1).step_by(2).map(String::from);
    assert_eq!(in_source.collect::<BTreeSet<String>>(), words);
}

/// Every event but those that tests of the worker and of several servers have: [`crate::events::logged`] compares each line
/// with the schema.
fn each_event_fits_the_schema(server: &Server) {
    let settings = [
        ("session_limit.log_events", "all"),
        ("session_limit.max_wait", "0"),
        ("session_limit.replace_min_age", "0"),
        ("session_limit.sweep_interval", "1s"),
    ];
    let cluster = Cluster::start(server, &settings);
    let mut superuser = cluster.superuser();
    superuser.query("CREATE EXTENSION session_limit");
    for role in ["alice", "bob", "carol", "dave"] {
        superuser.query(&format!("CREATE ROLE {role} LOGIN"));
    }
    let label = |json: &str| set_label("ROLE alice", json);
    let alice = cluster.tcp_login_of("alice");
    superuser.query(&label(r#"{"max": 1}"#));
    let first = admitted(&alice);
    // More than 10 in a second, on however busy a machine.
    wait_for("lines to be left out", || {
        let storm = alice.storm(30);
        assert!(storm.iter().all(Result::is_err));
        let left_out = crate::events::logged_as(&cluster, "left_out");
        (!left_out.is_empty()).then_some(())
    });
    // Waits, and is let in; waits, and goes away; waits in vain.
    superuser.query(&label(r#"{"max": 1, "max_wait": "60s"}"#));
    let waiting = "SELECT coalesce(sum(waiting), 0) FROM session_limit.usage";
    let mut second = alice.connect();
    second.send_startup(&alice);
    wait_until(&mut superuser, waiting, "1");
    let mut third = alice.connect();
    third.send_startup(&alice);
    wait_until(&mut superuser, waiting, "2");
    drop(third);
    wait_until(&mut superuser, waiting, "1");
    first.end();
    let _second = second.outcome().expect("room");
    superuser.query(&label(r#"{"max": 1, "max_wait": "10ms"}"#));
    refused(&alice);
    // Tried out, then replaced in earnest; from elsewhere.
    superuser.query(&label(r#"{"max": 1, "enforcement": "log"}"#));
    let elsewhere = cluster.login_from("alice", "127.0.0.2");
    admitted(&elsewhere).end();
    let tried = r#"{"limits": [{"max": 1, "enforcement": "log"}], "on_excess": "replace_oldest"}"#;
    superuser.query(&label(tried));
    admitted(&alice).end();
    superuser.query(&label(r#"{"max": 1, "on_excess": "replace_oldest"}"#));
    let _fourth = admitted(&alice);
    // Two of bob's are too many, then one must end; carol is dropped.
    let bob = cluster.login_of("bob");
    let _bob = [admitted(&bob), admitted(&bob)];
    superuser.query("ALTER ROLE bob CONNECTION LIMIT 1");
    let _carol = admitted(&cluster.login_of("carol"));
    superuser.query("DROP ROLE carol");
    let has = |event: &str, keys: &[(&str, &str)]| {
        wait_for(event, || {
            let lines = crate::events::logged_as(&cluster, event);
            let fits = |line: &Value| keys.iter().all(|(key, value)| has_key(line, key, value));
            lines.iter().any(fits).then_some(())
        });
    };
    has("swept", &[("action", "log"), ("max", "")]);
    has("swept", &[("action", "log"), ("role_oid", "")]);
    cluster.set(&[("session_limit.sweep", "terminate")]);
    has("swept", &[("action", "terminate"), ("max", "")]);
    has("swept", &[("action", "terminate"), ("role_oid", "")]);
    // Seats: one is taken, refuses another, is replaced, evicted; one is waited for until it has expired.
    for call in [
        "take_seat('42', ttl => '1 h')",
        "try_take_seat('42', max_wait => '10 ms')",
        "take_seat('42', on_excess => 'replace_oldest')",
        "evict_seats('42')",
    ] {
        superuser.query(&format!("SELECT session_limit.{call}"));
    }
    wait_for("a call to wait", || {
        superuser.query("SELECT session_limit.take_seat('43', ttl => '100 ms')");
        let next = "session_limit.take_seat('43', max_wait => '1 h')";
        superuser.query(&format!("SELECT session_limit.release_seat({next})"));
        let waited = crate::events::logged_as(&cluster, "seat_waited");
        (!waited.is_empty()).then_some(())
    });
    // A limit without a subject, under which one can wait.
    let settings = [
        ("session_limit.max_waiters", "1"),
        (
            "session_limit.cluster_limits",
            r#"{"max": 1, "per": "cluster", "max_wait": "60s"}"#,
        ),
    ];
    cluster.set(&settings);
    let dave = cluster.login_of("dave");
    let mut waiter = dave.connect();
    waiter.send_startup(&dave);
    wait_until(&mut superuser, waiting, "1");
    refused(&dave);
    has("refused", &[("not_waited", "queue_full"), ("role", "dave")]);
    drop(waiter);
    let logged = crate::events::logged(&cluster);
    let logged: BTreeSet<&str> = logged
        .iter()
        .filter_map(|line| line["event"].as_str())
        .collect();
    let elsewhere = [
        "reclaimed",
        "unreachable",
        "reachable",
        "rejoined",
        "server_gone",
    ];
    let all: BTreeSet<&str> = lines()
        .map(event_of)
        .filter(|event| !elsewhere.contains(event))
        .collect();
    assert_eq!(logged, all);
}

/// Whether the line has a key, with this value unless that is empty.
fn has_key(line: &Value, key: &str, value: &str) -> bool {
    line.get(key)
        .is_some_and(|it| value.is_empty() || it == value)
}

/// Rust sources below a folder.
fn sources(folder: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => all.push_str(&sources(&path)),
            false => all.push_str(&fs::read_to_string(&path).expect("a source")),
        }
    }
    all
}

/// A heading for each code that the library raises, with its SQLSTATE as the server has it.
fn errors(server: &Server) {
    let sources = sources(&place::checkout().join("src"));
    let codes = sources.split("ERRCODE_").skip(1).map(|rest| {
        let end = rest.find(|char: char| !char.is_ascii_uppercase() && char != '_');
        rest[..end.unwrap_or(rest.len())].to_lowercase()
    });
    let raised: BTreeSet<String> = codes.collect();
    let page = sections("errors.md").into_iter();
    let headings = page.filter_map(|section| {
        let (state, name) = section.heading.split_once(' ')?;
        let is_state = state.len() == 5
            && state
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
        is_state.then(|| (name.to_string(), state.to_string()))
    });
    let said: BTreeMap<String, String> = headings.collect();
    assert_eq!(said.keys().cloned().collect::<BTreeSet<_>>(), raised);
    let listed = section("errors.md", "Errors").names("SQLSTATE");
    assert_eq!(listed, said.values().cloned().collect());

    let cluster = Cluster::start(server, &[]);
    let mut superuser = cluster.superuser();
    for (name, state) in said {
        let server_says = match name.as_str() {
            // No errors: PL/pgSQL does not know their names.
            "successful_completion" => "00000".to_string(),
            "warning" => "01000".to_string(),
            name => {
                let raise = format!("DO $$ BEGIN RAISE {name}; END $$");
                let error = superuser.try_query(&raise).expect_err(name);
                error.sqlstate().to_string()
            }
        };
        assert_eq!(state, server_says, "{name}");
    }
}
