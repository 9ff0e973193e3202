//! docs/howto/connection_limits.md: what a row says of connection_limits, on its left, is what the
//! statements on its right do. The left side is read by a model of connection_limits, and real
//! logins tell whether it is so.

use crate::page::Page;
use crate::scene::wait_until;
use pg_test::client::{Session, Target};
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

tests![
    rules,
    defaults_and_overrides,
    every_rule_form_and_setting_has_a_row,
    the_view,
];

/// A row of the page.
struct Row {
    there: There,
    statements: Vec<String>,
    /// For whoever reads a failure.
    text: String,
}

/// What is set in connection_limits.
#[derive(Default)]
struct There {
    rules: Vec<Rule>,
    /// For each database, user, address that has no rule.
    defaults: [Option<usize>; 3],
}

#[derive(Debug)]
struct Rule {
    database: Option<String>,
    user: Option<String>,
    network: Option<Network>,
    limit: usize,
}

#[derive(Debug)]
struct Network {
    address: Ipv4Addr,
    mask: Ipv4Addr,
}

/// A session or a login.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Client {
    database: &'static str,
    user: &'static str,
    /// None: over the Unix-domain socket.
    address: Option<&'static str>,
}

/// Counted, never refused.
const SUPERUSERS: [&str; 2] = ["boss", "postgres"];

/// What the test itself is connected as.
const CONTROL: Client = Client {
    database: "postgres",
    user: "postgres",
    address: None,
};

const BOSS: Client = Client {
    database: "foodb",
    user: "boss",
    address: Some("127.0.1.1"),
};

fn rules(server: &Server) {
    compare(server, &rows("Rules"));
}

fn defaults_and_overrides(server: &Server) {
    compare(server, &rows("Defaults"));
}

fn every_rule_form_and_setting_has_a_row(_: &Server) {
    let rules = rows("Rules");
    let forms: BTreeSet<[bool; 3]> = rules
        .iter()
        .filter(|row| row.there.rules.len() == 1)
        .map(|row| row.there.rules[0].given())
        .collect();
    assert_eq!(forms.len(), 8, "{forms:?}");
    // By itself, and with a rule that overrides it.
    let defaults = rows("Defaults");
    for (field, setting) in SETTINGS.iter().enumerate() {
        let only = |row: &&Row| {
            let set = row.there.defaults.iter().map(Option::is_some);
            set.eq((0..3).map(|other| other == field))
        };
        let has = |rules| {
            let mut rows = defaults.iter().filter(only);
            rows.any(|row| row.there.rules.len() == rules)
        };
        assert!(has(0) && has(1), "{setting}");
    }
}

fn the_view(server: &Server) {
    let cluster = cluster(server);
    let row = rows("Rules")
        .into_iter()
        .find(|row| row.text.starts_with("| `foodb foouser all 2`"))
        .expect("the row");
    let queries = page().section("The view").statements();
    let mut control = cluster.superuser();
    control.query(&row.statements[0]);
    let client = Client {
        database: "foodb",
        user: "foouser",
        address: None,
    };
    let _session = target(&cluster, client).login().expect("the first of two");
    let expected = ["label on role foouser", "foouser in foodb", "1", "2"];
    assert_eq!(control.query(&queries[0]), [expected]);
}

/// Whether real logins are admitted and refused as the left side of each row says.
fn compare(server: &Server, rows: &[Row]) {
    let cluster = cluster(server);
    let mut control = cluster.superuser();
    for row in rows {
        for statement in &row.statements {
            control.query(statement);
        }
        cluster.reload();
        wait_until_alone(&mut control);
        log_in(&cluster, row);
        reset(&mut control);
    }
}

/// Logs everyone in until each has been there three times, and a superuser before and after.
fn log_in(cluster: &Cluster, row: &Row) {
    let (mut clients, mut sessions) = (vec![CONTROL], Vec::new());
    let mut refused = Vec::new();
    let rounds = [everyone(), everyone(), everyone()].concat();
    for client in [vec![BOSS], rounds, vec![BOSS]].concat() {
        let expected = row.there.admits(client, &clients);
        let outcome = target(cluster, client).login();
        let says = |what| format!("{client:?} {what}, with {clients:?}\nunder {}", row.text);
        match outcome {
            Ok(session) => {
                assert!(expected, "{}", says("is admitted"));
                clients.push(client);
                sessions.push(session);
            }
            Err(refusal) => {
                assert!(!expected, "{}\n{refusal:?}", says("is refused"));
                assert_eq!(refusal.sqlstate(), "53300", "{refusal:?}");
                // The server's own refusal under a CONNECTION LIMIT has no detail.
                assert_ne!(refusal.detail(), "", "{refusal:?}");
                refused.push(client);
            }
        }
    }
    assert!(!refused.is_empty(), "nobody is refused under {}", row.text);
}

/// Each role in each database from each place.
fn everyone() -> Vec<Client> {
    let mut all = Vec::new();
    for user in ["foouser", "baruser"] {
        for database in ["foodb", "bardb"] {
            let places = [
                None,
                Some("127.0.0.1"),
                Some("127.0.1.1"),
                Some("127.0.1.2"),
            ];
            all.extend(places.map(|address| Client {
                database,
                user,
                address,
            }));
        }
    }
    all
}

fn target(cluster: &Cluster, client: Client) -> Target {
    let target = match client.address {
        Some(address) => cluster.login_from(client.user, address),
        None => cluster.login_of(client.user),
    };
    target.to(client.database)
}

fn cluster(server: &Server) -> Cluster {
    let cluster = Cluster::start(server, &[("session_limit.max_wait", "0")]);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE foouser LOGIN",
        "CREATE ROLE baruser LOGIN",
        "CREATE ROLE boss LOGIN SUPERUSER",
        "CREATE DATABASE foodb",
        "CREATE DATABASE bardb",
    ]);
    cluster
}

fn reset(control: &mut Session) {
    for object in ["ROLE foouser", "DATABASE foodb"] {
        control.query(&format!("ALTER {object} CONNECTION LIMIT -1"));
        control.query(&format!(
            "SECURITY LABEL FOR session_limit ON {object} IS NULL"
        ));
    }
    control.query("ALTER SYSTEM RESET ALL");
}

fn wait_until_alone(control: &mut Session) {
    let sessions = "SELECT count(*) FROM session_limit.sessions";
    wait_until(control, sessions, "1");
}

fn page() -> Page {
    Page::read("howto/connection_limits.md")
}

/// The rows of the table under this heading.
fn rows(heading: &str) -> Vec<Row> {
    let section = page().section(heading);
    // The row with dashes is the last of a table's head.
    let body = section
        .text
        .lines()
        .skip_while(|line| !line.starts_with("| ---"));
    let table = body.skip(1).take_while(|line| line.starts_with('|'));
    let rows: Vec<Row> = table.map(row).collect();
    assert!(!rows.is_empty(), "no rows under {heading}");
    rows
}

fn row(line: &str) -> Row {
    let cells: Vec<&str> = line.trim_matches(['|', ' ']).split(" | ").collect();
    let code = |cell: &str| -> Vec<String> {
        let spans = cell.split('`').skip(1).step_by(2);
        spans.map(String::from).collect()
    };
    let mut there = There::default();
    for line in code(cells[0]) {
        there.read(&line);
    }
    let statements = code(cells[1]);
    assert!(!statements.is_empty(), "no statement in {line}");
    Row {
        there,
        statements,
        text: line.to_string(),
    }
}

const SETTINGS: [&str; 3] = [
    "connection_limits.per_database",
    "connection_limits.per_user",
    "connection_limits.per_ip",
];

impl There {
    /// Reads a line of `postgresql.conf` or `pg_limits.conf`.
    fn read(&mut self, line: &str) {
        let Some((name, value)) = line.split_once(" = ") else {
            self.rules.push(Rule::read(line));
            return;
        };
        let field = SETTINGS.iter().position(|setting| *setting == name);
        self.defaults[field.expect(line)] = Some(value.parse().expect(line));
    }

    /// Every rule that is about the login must have room, and so must every default that no rule
    /// about the same field alone replaces.
    fn admits(&self, login: Client, sessions: &[Client]) -> bool {
        let rules = || self.rules.iter().filter(|rule| rule.counts(login));
        let rules_fit = rules().all(|rule| {
            let counted = sessions.iter().filter(|session| rule.counts(**session));
            counted.count() < rule.limit
        });
        let defaults_fit = (0..3).all(|field| {
            let mut alone = [false; 3];
            alone[field] = true;
            let replaced = rules().any(|rule| rule.given() == alone);
            let value = login.fields()[field];
            let same = |session: &&Client| session.fields()[field] == value;
            let fits = |max| sessions.iter().filter(same).count() < max;
            replaced || value.is_none() || self.defaults[field].is_none_or(fits)
        });
        SUPERUSERS.contains(&login.user) || (rules_fit && defaults_fit)
    }
}

impl Rule {
    fn read(line: &str) -> Rule {
        let words: Vec<&str> = line.split(' ').collect();
        let (&[database, user, address, .., limit], mask) = (&words[..], words.get(3)) else {
            panic!("{line} is no rule");
        };
        let mask = mask.filter(|_| words.len() == 5).copied();
        let given = |word: &str| (word != "all").then(|| word.to_string());
        Rule {
            database: given(database),
            user: given(user),
            network: given(address).map(|address| Network::read(&address, mask)),
            limit: limit.parse().expect(line),
        }
    }

    /// Which of database, user and address it is about.
    fn given(&self) -> [bool; 3] {
        [
            self.database.is_some(),
            self.user.is_some(),
            self.network.is_some(),
        ]
    }

    fn counts(&self, client: Client) -> bool {
        let is = |given: &Option<String>, name| given.as_deref().is_none_or(|given| given == name);
        let network = self.network.as_ref();
        is(&self.database, client.database)
            && is(&self.user, client.user)
            && network.is_none_or(|network| network.contains(client.address))
    }
}

impl Network {
    fn read(address: &str, mask: Option<&str>) -> Network {
        let (address, prefix) = address.split_once('/').unwrap_or((address, "32"));
        let ones = |prefix: u32| u32::MAX << (32 - prefix);
        let prefix = || Ipv4Addr::from(ones(prefix.parse().expect("a prefix")));
        let address = if address == "localhost" {
            Ipv4Addr::LOCALHOST
        } else {
            address.parse().expect("an address")
        };
        let mask = mask.map(|mask| mask.parse().expect("a mask"));
        Network {
            address,
            mask: mask.unwrap_or_else(prefix),
        }
    }

    fn contains(&self, address: Option<&str>) -> bool {
        let address = address.map(|address| address.parse::<Ipv4Addr>().expect("an address"));
        address.is_some_and(|address| address & self.mask == self.address & self.mask)
    }
}

impl Client {
    fn fields(self) -> [Option<&'static str>; 3] {
        [Some(self.database), Some(self.user), self.address]
    }
}
