//! docs/howto/: the statements and commands of each page as they stand there, and whether logins then end as it says.

use crate::drivers::available;
use crate::page::Page;
use crate::scene::{admitted, refused, set_label, told, wait_until};
use pg_test::client::{Refusal, Session, Target};
use pg_test::cluster::{Cluster, Stop};
use pg_test::pooler::Pooler;
use pg_test::server::Server;
use pg_test::{packages, place, wait_for};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

tests![
    every_page_is_tested,
    one_session_per_user,
    one_login_per_application_user,
    licences_per_group,
    limits_per_address,
    auditing,
    poolers,
    haproxy,
    standbys,
    login_triggers,
    pgbouncer_limits,
    locked_out,
    several_sessions,
    health_probes,
    replication_roles,
    short_lived_roles,
];

/// By a test here, or by a module of its own, that has the page's name; and an example by a page that includes it.
fn every_page_is_tested(_: &Server) {
    let here = TESTS.iter().map(|(name, _)| *name);
    let modules = crate::MODULES.iter().map(|(name, _)| *name);
    let tested: Vec<&str> = here.chain(modules).collect();
    let mut text = String::new();
    for page in packages::walk(&place::checkout().join("docs/howto")) {
        let name = page.file_stem().unwrap_or_default().to_string_lossy();
        assert!(tested.contains(&&*name), "{} has no test", page.display());
        text += &fs::read_to_string(&page).expect("read a page");
    }
    for example in packages::walk(&place::checkout().join("examples")) {
        let name = example.file_name().unwrap_or_default().to_string_lossy();
        let included = text.contains(&format!("{{{{#include ../../examples/{name}}}}}"));
        assert!(included, "no page includes {}", example.display());
    }
}

type Rows = Vec<Vec<String>>;

/// A page that is followed section by section.
struct HowTo {
    page: Page,
    cluster: Cluster,
    /// Where the statements run.
    database: &'static str,
    /// The sections that were not followed yet.
    left: Vec<String>,
}

impl HowTo {
    /// On a server with these settings, after these statements.
    fn start(server: &Server, page: &str, settings: &[(&str, &str)], before: &[&str]) -> HowTo {
        let page = Page::read(&format!("howto/{page}.md"));
        let cluster = Cluster::start(server, settings);
        cluster.sql(&["CREATE EXTENSION session_limit"]);
        cluster.sql(before);
        HowTo {
            left: page.headings(),
            page,
            cluster,
            database: "postgres",
        }
    }

    fn section(&mut self, heading: &str) -> Page {
        self.left.retain(|left| !left.starts_with(heading));
        self.page.section(heading)
    }

    /// Runs the statements of a section, and returns the rows of each.
    fn run(&mut self, heading: &str) -> Vec<Rows> {
        let statements = self.section(heading).statements();
        run(&self.cluster, self.database, &statements)
    }

    /// Runs the commands of a section's fence, and returns how they end, and what they print.
    fn shell(&mut self, heading: &str, fence: usize) -> (Option<i32>, String) {
        let section = self.section(heading);
        let commands = section.fences("sh")[fence];
        shell(&self.cluster, commands)
    }

    /// Whether a refusal is the one that the section shows.
    fn shows(&self, heading: &str, refusal: &Refusal) {
        let line = format!("{}:  {}", refusal.fields[&'V'], refusal.message());
        let text = self.page.section(heading).text;
        assert!(text.contains(&line), "\"{heading}\" does not show {line}");
        let shown = format!("`{}`", refusal.sqlstate());
        assert!(self.page.text.contains(&shown), "no {shown}");
    }

    /// That all that can be run was.
    fn finish(self) {
        let runs = |page: &Page| !page.statements().is_empty() || !page.fences("sh").is_empty();
        let before = self.page.text.split("\n## ").next().unwrap_or_default();
        let before = Page {
            text: before.to_string(),
        };
        assert!(!runs(&before), "code before the first section");
        for left in &self.left {
            assert!(!runs(&self.page.section(left)), "\"{left}\" was not run");
        }
    }
}

fn run(cluster: &Cluster, database: &str, statements: &[String]) -> Vec<Rows> {
    assert!(!statements.is_empty());
    let before = cluster.load_time();
    let mut superuser = admitted(&cluster.login_of("postgres").to(database));
    // The page has the port that servers usually have.
    let port = format!("'{}'", cluster.port);
    let rows = statements
        .iter()
        .map(|statement| superuser.query(&statement.replace("'5432'", &port)))
        .collect();
    superuser.end();
    if statements.iter().any(|it| it.contains("pg_reload_conf")) {
        cluster.wait_for_reload(&before);
    }
    rows
}

/// Runs commands as the user that runs the server, with its programs.
fn shell(cluster: &Cluster, commands: &str) -> (Option<i32>, String) {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = cluster
        .client("/bin/sh")
        .args(["-c", commands])
        .env("PATH", format!("{}:{path}", cluster.server.bin.display()))
        .env("PGDATA", cluster.dir.join("data"))
        .env("BACKUP", cluster.dir.join("backup"))
        .output()
        .expect("run sh");
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    (output.status.code(), printed)
}

fn sqlstate_of(target: &Target) -> String {
    refused(target).sqlstate().to_string()
}

const ANY_AGE: (&str, &str) = ("session_limit.replace_min_age", "0");

fn one_session_per_user(server: &Server) {
    let roles = ["alice", "bob", "app"].map(|role| format!("CREATE ROLE {role} LOGIN"));
    let mut howto = HowTo::start(
        server,
        "one_session_per_user",
        &[ANY_AGE],
        &roles.each_ref().map(String::as_str),
    );
    let login = |howto: &HowTo, role| howto.cluster.tcp_login_of(role);
    howto.run("One user");
    let mut alice = admitted(&login(&howto, "alice"));
    let refusal = refused(&login(&howto, "alice"));
    howto.shows("One user", &refusal);
    assert!(
        refusal
            .detail()
            .contains("CONNECTION LIMIT of role alice); 1 is in use"),
        "{refusal:?}"
    );

    howto.run("Every user");
    let mut first = admitted(&login(&howto, "bob"));
    let mut second = admitted(&login(&howto, "bob"));
    let why = told(&mut first);
    howto.shows("Every user", &why);
    assert_eq!(
        why.detail(),
        r#"This session was replaced by a newer session of role "bob" from 127.0.0.1."#
    );
    assert!(second.is_alive());
    let _newer = admitted(&login(&howto, "alice"));
    told(&mut alice);
    let mut pool = [
        admitted(&login(&howto, "app")),
        admitted(&login(&howto, "app")),
    ];
    assert!(pool.iter_mut().all(Session::is_alive));

    howto.run("Take it back");
    let _third = admitted(&login(&howto, "bob"));
    assert!(second.is_alive());
    let _another = admitted(&login(&howto, "alice"));
    howto.finish();
}

/// Through a pool of one session, which two clients of the application share.
fn one_login_per_application_user(server: &Server) {
    if available(packages::pgbouncer).is_none() {
        return;
    }
    let page = "one_login_per_application_user";
    let before = ["CREATE ROLE app LOGIN", "CREATE ROLE support LOGIN"];
    let mut howto = HowTo::start(server, page, &[], &before);
    let mut statement = |heading: &str| howto.section(heading).statements().remove(0);
    let login = statement("At login");
    let replacing = statement("Or the newer login wins");
    let (request, logout) = (statement("On each request"), statement("At logout"));
    let alone = statement("Without a pooler");
    // The page has an example of a UUID.
    let of = |statement: &str, seat: &str| {
        let example = statement.split('\'').nth(1).expect("a UUID");
        statement.replace(example, seat)
    };
    let app = howto.cluster.login_of("app");
    let denied = admitted(&app).try_query(&login).expect_err("no EXECUTE");
    assert_eq!(denied.sqlstate(), "42501");
    howto.run("Prepare it");
    let mode = configured(&howto.page, "Prepare it", "pool_mode");
    let pooler = Pooler::start(&howto.cluster, "app", &mode, 1);
    let [mut first, mut second] = [(); 2].map(|()| admitted(&pooler.target));

    let older = first.value(&login);
    let refusal = second.try_query(&login).expect_err("a second login");
    howto.shows("At login", &refusal);
    let (start, end) = ("The limit is 1 seat; 1 is in use: pid ", " ms for a seat.");
    let detail = refusal.detail();
    assert!(
        detail.starts_with(start) && detail.ends_with(end),
        "{detail}"
    );
    let newer = second.value(&replacing);
    assert_eq!(first.value(&of(&request, &older)), "f", "was replaced");
    assert_eq!(first.value(&of(&request, &newer)), "t", "by any connection");
    second.query("BEGIN");
    let other = second.value(&login.replace("'42'", "'43'"));
    second.query("ROLLBACK");
    assert_eq!(first.value(&of(&request, &other)), "t", "was rolled back");
    assert_eq!(first.value(&of(&logout, &newer)), "t");
    assert_eq!(first.value(&of(&logout, &newer)), "f");

    let seat = first.value(&login);
    let help = howto.section("Help a user").statements();
    let mut support = admitted(&howto.cluster.login_of("support"));
    let seen = support.query(&help[0]).remove(0);
    assert_eq!([&seen[0], &seen[1], &seen[4]], ["42", "app", "1"]);
    assert_eq!(support.value(&help[1]), "1");
    assert_eq!(second.value(&of(&request, &seat)), "f", "was evicted");

    let rows = howto.run("What to watch");
    assert_eq!(rows[0], [["1", "1000"]]);
    assert_eq!(rows[1], [["app", "postgres", "4", "1", "1", "1", "0", "1"]]);
    let events: Vec<&str> = rows[2].iter().map(|row| row[1].as_str()).collect();
    assert_eq!(events, ["seat_refused", "seat_replaced", "seat_evicted"]);

    let [mut holder, mut direct] = [(); 2].map(|()| admitted(&app));
    holder.query(&alone);
    holder.query("DISCARD ALL");
    let refusal = direct.try_query(&alone).expect_err("a second program");
    assert_eq!(refusal.sqlstate(), "53300");
    holder.end();
    direct.query(&alone);

    let restart = howto.section("After a restart").statements();
    let started = direct.value(&restart[0]);
    howto.cluster.stop(Stop::Fast);
    howto.cluster.start_again();
    let mut app = admitted(&app);
    assert_eq!(app.value(&of(&request, &other)), "f", "is gone");
    assert_ne!(app.value(&restart[0]), started);
    assert_eq!(app.value(&restart[1]).len(), other.len(), "a UUID");
    assert_eq!(app.value(&restart[1]), "", "NULL");
    assert_eq!(app.value("SHOW session_limit.max_seats"), "5000");

    howto.run("Take it back");
    let denied = app.try_query(&login).expect_err("no EXECUTE");
    assert_eq!(denied.sqlstate(), "42501");
    howto.finish();
}

fn licences_per_group(server: &Server) {
    let roles = [
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
        "CREATE ROLE carol LOGIN",
    ];
    let mut howto = HowTo::start(server, "licences_per_group", &[], &roles);
    howto.run("Set it");
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|role| howto.cluster.login_of(role));
    let mut _seats = vec![admitted(&alice), admitted(&alice)];
    let refusal = refused(&alice);
    howto.shows("Set it", &refusal);
    assert!(refusal.message().ends_with(r#"role "alice""#));
    _seats.extend([admitted(&bob), admitted(&bob), admitted(&carol)]);
    let refusal = refused(&carol);
    howto.shows("Set it", &refusal);
    assert!(
        refusal
            .message()
            .ends_with(r#"members of role "crm_users""#)
    );

    let rows = howto.run("Who has the seats");
    assert_eq!(
        rows[0],
        [["crm_users", "5", "5", "0"].map(String::from).to_vec()]
    );
    let users: Vec<&str> = rows[1].iter().map(|row| row[0].as_str()).collect();
    assert_eq!(users, ["alice", "alice", "bob", "bob", "carol"]);

    howto.run("More seats");
    _seats.push(admitted(&carol));
    assert_eq!(sqlstate_of(&carol), "53300");

    _seats.drain(..).for_each(Session::end);
    let person = "A seat is a person";
    let statements = howto.section(person).statements();
    run(&howto.cluster, "postgres", &statements[..1]);
    _seats.extend([(); 3].map(|()| admitted(&alice)));
    _seats.push(admitted(&bob));
    howto.shows(person, &refused(&carol));
    run(&howto.cluster, "postgres", &statements[1..]);
    _seats.push(admitted(&carol));
    assert_eq!(sqlstate_of(&alice), "53300", "each has three sessions");

    howto.run("Take it back");
    _seats.push(admitted(&alice));
    howto.finish();
}

fn limits_per_address(server: &Server) {
    let before = [
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
        "CREATE ROLE kiosk LOGIN",
        "CREATE DATABASE app",
    ];
    let mut howto = HowTo::start(server, "limits_per_address", &[ANY_AGE], &before);
    let from = |howto: &HowTo, role, address| howto.cluster.login_from(role, address);
    howto.run("Every address");
    let mut _sessions: Vec<Session> = ["alice", "bob", "alice"]
        .map(|role| admitted(&from(&howto, role, "127.0.0.2")))
        .into();
    let refusal = refused(&from(&howto, "bob", "127.0.0.2"));
    howto.shows("Every address", &refusal);
    _sessions.extend([(); 4].map(|()| admitted(&from(&howto, "alice", "127.0.2.1"))));
    _sessions.push(admitted(&howto.cluster.login_of("bob")));

    howto.run("One role");
    _sessions.push(admitted(&from(&howto, "kiosk", "127.0.0.3")));
    let refusal = refused(&from(&howto, "kiosk", "127.0.0.3"));
    howto.shows("One role", &refusal);
    _sessions.push(admitted(&from(&howto, "kiosk", "127.0.0.5")));

    howto.run("A whole network");
    for address in ["127.0.4.1", "127.0.4.2"] {
        _sessions.push(admitted(&from(&howto, "alice", address).to("app")));
    }
    let full = from(&howto, "alice", "127.0.4.3").to("app");
    assert_eq!(sqlstate_of(&full), "53300");
    _sessions.push(admitted(&from(&howto, "alice", "127.0.5.1").to("app")));

    howto.run("One desk");
    let seen = howto.run("See it").remove(0);
    let of = |subject: &str| {
        let row = seen.iter().find(|row| row[1] == subject);
        row.expect(subject)[2..].join(" ")
    };
    assert_eq!(of("127.0.0.2"), "3 3 sessions");
    assert_eq!(of("127.0.2.1"), "4 50 sessions");
    assert_eq!(of("kiosk from 127.0.0.3"), "1 1 sessions");
    assert_eq!(of("alice"), "5 1 addresses");

    howto.run("Take it back");
    for (role, address) in [("bob", "127.0.0.2"), ("kiosk", "127.0.0.3")] {
        _sessions.push(admitted(&from(&howto, role, address)));
    }
    _sessions.push(admitted(&full));

    howto.run("One desk");
    let mut first = _sessions.remove(0);
    let desk = from(&howto, "alice", "127.0.0.9");
    let _windows = [admitted(&desk), admitted(&desk)];
    told(&mut first);
    let refusing = howto.page.section("One desk").statements()[0]
        .replace(r#", "on_excess": "replace_oldest""#, "");
    howto.cluster.sql(&[&refusing]);
    howto.shows("One desk", &refused(&full));
    howto.finish();
}

fn auditing(server: &Server) {
    let before = ["CREATE ROLE alice LOGIN", "CREATE ROLE bob LOGIN"];
    let mut howto = HowTo::start(server, "auditing", &[], &before);
    howto.run("Set it");
    let from = |howto: &HowTo, address| howto.cluster.login_from("alice", address);
    let mut _sessions = vec![
        admitted(&from(&howto, "127.0.0.2")),
        admitted(&from(&howto, "127.0.0.3")),
    ];
    assert_eq!(sqlstate_of(&from(&howto, "127.0.0.2")), "53300");

    let rows = howto.run("Show it");
    let shown = howto.page.section("Show it");
    let tables: Vec<Rows> = shown.fences("text").into_iter().map(table).collect();
    assert_eq!(rows[0], tables[0]);
    assert_eq!(rows[1], [["bob"]]);
    assert_eq!(rows[2], [["on"]]);
    assert_eq!(rows[3], tables[1]);

    howto.run("Take it back");
    _sessions.push(admitted(&from(&howto, "127.0.0.4")));
    howto.finish();
}

/// The rows of a table as psql prints it.
fn table(printed: &str) -> Rows {
    let rows = printed.lines().skip(2);
    let cells = |row: &str| row.split('|').map(|cell| cell.trim().to_string()).collect();
    rows.map(cells).collect()
}

/// What a section of a page sets in another program's configuration.
fn configured(page: &Page, heading: &str, name: &str) -> String {
    let section = page.section(heading);
    let lines = section.fences("cfg");
    let mut lines = lines.iter().flat_map(|fence| fence.lines());
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
    value.expect(name).to_string()
}

fn poolers(server: &Server) {
    if available(packages::pgbouncer).is_none() {
        return;
    }
    let before = ["CREATE ROLE app LOGIN"];
    let mut howto = HowTo::start(server, "poolers", &[], &before);
    howto.run("PgBouncer");
    let number = configured(&howto.page, "PgBouncer", "default_pool_size");
    let number: usize = number.parse().expect("a number");
    let mode = configured(&howto.page, "PgBouncer", "pool_mode");
    let direct = howto.cluster.login_of("app");
    {
        let pooler = Pooler::start(&howto.cluster, "app", &mode, number);
        let mut clients: Vec<Session> = (0..5).map(|_| admitted(&pooler.target)).collect();
        for client in &mut clients {
            client.query("SELECT 1");
        }
        // The pool has all of its sessions only when so many clients are busy at once.
        for client in &mut clients[..number] {
            client.query("BEGIN");
        }
        let _direct = admitted(&direct);
        assert_eq!(sqlstate_of(&direct), "53300");
        clients[0].query("COMMIT");
        clients[number].query("SELECT 1");
    }
    howto.cluster.wait_until_gone("app");
    {
        let pooler = Pooler::start(&howto.cluster, "app", "session", number);
        let mut clients: Vec<Session> = (0..number).map(|_| admitted(&pooler.target)).collect();
        // The first query is what needs a session.
        assert!(clients.iter_mut().all(Session::is_alive));
        let _direct = admitted(&direct);
        assert_eq!(sqlstate_of(&direct), "53300");
        clients.into_iter().for_each(Session::close);
        let mut superuser = howto.cluster.superuser();
        let idle = "SELECT count(*) FROM session_limit.sessions WHERE usename = 'app'";
        assert_eq!(superuser.value(idle), "3", "PgBouncer keeps them");
        admitted(&pooler.target).query("SELECT 1");
    }
    howto.run("HAProxy");
    howto.run("Take it back");
    howto.finish();
}

/// A program, and the folder of its libraries.
type Program = (PathBuf, PathBuf);

/// Ends with the test, however that ends.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The section of poolers.md on it.
fn haproxy(server: &Server) {
    let Some(haproxy) = available(packages::haproxy) else {
        return;
    };
    let settings = [("log_connections", "on"), ANY_AGE];
    let howto = HowTo::start(server, "poolers", &settings, &["CREATE ROLE alice LOGIN"]);
    run(
        &howto.cluster,
        "postgres",
        &howto.page.section("HAProxy").statements(),
    );
    let section = howto.page.section("HAProxy");
    let check = section.fences("cfg")[0];
    let (mut proxy, port) = start_haproxy(&howto.cluster, &haproxy, check);
    let through = Target {
        endpoint: pg_test::client::Endpoint::Tcp(port),
        ..howto.cluster.tcp_login_of("alice")
    };
    let mut superuser = howto.cluster.superuser();

    // Whoever comes through it comes from its address.
    superuser.query(&set_label("ROLE alice", r#"{"max": 1, "per": "address"}"#));
    let session = wait_for("HAProxy", || through.login().ok());
    let refusal = refused(&through);
    assert_eq!(
        refusal.message(),
        r#"too many connections for role "alice" from address 127.0.0.1"#
    );
    assert!(!refusal.detail().is_empty());
    session.end();

    // The check asks for a database that is called like its role.
    let checks = || {
        howto
            .cluster
            .log()
            .matches(r#"database "probe" does not exist"#)
            .count()
    };
    wait_for("a check", || (checks() > 0).then_some(()));
    drop(proxy);
    superuser.query("CREATE DATABASE alice");
    superuser.query(&set_label(
        "ROLE alice",
        r#"{"max": 1, "on_excess": "replace_oldest"}"#,
    ));
    let mut session = admitted(&howto.cluster.login_of("alice"));
    proxy = start_haproxy(&howto.cluster, &haproxy, "option pgsql-check user alice").0;
    let ended = "SELECT count(*) FROM session_limit.events WHERE event = 'replaced'";
    wait_until(&mut superuser, ended, "1");
    told(&mut session);
    drop(proxy);

    // A check that waits too long takes the server for down.
    superuser.query(&set_label("ROLE alice", r#"{"max": 1, "max_wait": "30s"}"#));
    howto.cluster.wait_until_gone("alice");
    let _session = admitted(&howto.cluster.login_of("alice"));
    let (_proxy, port) = start_haproxy(&howto.cluster, &haproxy, "option pgsql-check user alice");
    let bob = Target {
        endpoint: pg_test::client::Endpoint::Tcp(port),
        ..howto.cluster.tcp_login_of("postgres")
    };
    wait_for("HAProxy to let nobody in", || {
        bob.login()
            .err()
            .filter(|refusal| refusal.fields.is_empty())
    });
}

/// With so short an interval that its checks are soon over; returns its port, too.
fn start_haproxy(cluster: &Cluster, haproxy: &Program, check: &str) -> (Proxy, u16) {
    let (program, libraries) = haproxy;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("its port").port();
    drop(listener);
    let configuration = format!(
        "defaults\nmode tcp\ntimeout connect 5s\ntimeout client 1m\ntimeout server 1m\n\
        listen postgres\nbind 127.0.0.1:{port}\n{check}\n\
        server one 127.0.0.1:{} check inter 200ms\n",
        cluster.port
    );
    let file = cluster.dir.join("haproxy.cfg");
    fs::write(&file, configuration).expect("write haproxy.cfg");
    let mut command = Command::new(program);
    command.args(["-db", "-f"]).arg(file);
    command.env("LD_LIBRARY_PATH", libraries);
    let running = place::as_server_user(&mut command)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let proxy = Proxy(running.expect("run haproxy"));
    wait_for("HAProxy to accept connections", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });
    (proxy, port)
}

fn standbys(server: &Server) {
    let before = [
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
        "CREATE ROLE carol LOGIN",
    ];
    let mut howto = HowTo::start(server, "standbys", &[], &before);
    let standby = Cluster::standby_of(&howto.cluster);
    howto.run("What a standby does");
    let mut there = standby.superuser();
    wait_until(
        &mut there,
        "SELECT count(*) FROM session_limit.limits WHERE source LIKE '% role %'",
        "2",
    );
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|role| standby.login_of(role));
    let _primary = [(); 2].map(|()| admitted(&howto.cluster.login_of("alice")));
    let mut sessions = vec![admitted(&alice), admitted(&alice), admitted(&bob)];
    assert_eq!(sqlstate_of(&alice), "53300");
    assert_eq!(sqlstate_of(&howto.cluster.login_of("alice")), "53300");
    assert_eq!(sqlstate_of(&bob), "53300");

    let section = howto.page.section("What a standby does");
    standby.append("postgresql.conf", section.fences("ini")[0]);
    standby.append("postgresql.conf", "\n");
    standby.reload();
    sessions.push(admitted(&carol));
    assert_eq!(sqlstate_of(&carol), "53300");
    let _primary = [(); 2].map(|()| admitted(&howto.cluster.login_of("carol")));

    let failover = howto.section("Failover").statements();
    let rows = run(&standby, "postgres", &failover);
    assert_eq!(rows[0], [["t"]]);
    let alices = ["alice", "2", "2"].map(String::from).to_vec();
    assert!(rows[1].contains(&alices), "{rows:?}");
    assert!(rows[2].contains(&alices[..2].to_vec()), "{rows:?}");
    assert!(sessions.iter_mut().all(Session::is_alive));
    for login in [&alice, &bob, &carol] {
        assert_eq!(sqlstate_of(login), "53300");
    }
    howto.run("Take it back");
    let _another = admitted(&howto.cluster.login_of("alice"));
    howto.finish();
}

fn login_triggers(server: &Server) {
    let more = set_label("ROLE bob", r#"{"max": 50}"#);
    let before = [
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
        &more,
        "CREATE DATABASE app",
    ];
    let mut howto = HowTo::start(server, "login_triggers", &[], &before);
    howto.database = "app";
    let alice = howto.cluster.login_of("alice").to("app");
    if server.major < 17 {
        // There are none before.
        howto.run("In one database");
        let _first = admitted(&alice);
        howto.shows("In one database", &refused(&alice));
        return;
    }
    howto.run("What you have");
    let mut _sessions = vec![admitted(&alice)];
    assert_eq!(sqlstate_of(&alice), "P0001");
    howto.run("In one database");
    howto.shows("In one database", &refused(&alice));
    let bob = howto.cluster.login_of("bob");
    _sessions.push(admitted(&bob.clone().to("app")));
    assert_eq!(sqlstate_of(&bob.clone().to("app")), "53300");
    howto.run("Or in all databases together");
    assert_eq!(sqlstate_of(&howto.cluster.login_of("alice")), "53300");
    _sessions.push(admitted(&bob));
    howto.run("Drop the trigger");
    assert_eq!(sqlstate_of(&alice), "53300");
    howto.run("Take it back");
    _sessions.push(admitted(&alice));
    howto.finish();
}

fn pgbouncer_limits(server: &Server) {
    if available(packages::pgbouncer).is_none() {
        return;
    }
    let before = ["CREATE ROLE app LOGIN", "CREATE DATABASE app"];
    let mut howto = HowTo::start(server, "pgbouncer_limits", &[], &before);
    howto.run("What becomes what");
    let number = configured(&howto.page, "What becomes what", "default_pool_size");
    let number: usize = number.parse().expect("a number");
    let pooler = Pooler::start(&howto.cluster, "app", "session", number);
    let mut clients: Vec<Session> = (0..number).map(|_| admitted(&pooler.target)).collect();
    assert!(clients.iter_mut().all(Session::is_alive));
    let direct = howto.cluster.login_of("app");
    let mut _sessions = vec![admitted(&direct)];
    howto.shows("What becomes what", &refused(&direct));

    let rows = howto.run("What is in use");
    let full = ["CONNECTION LIMIT of role app", "3", "3", "0"].map(String::from);
    assert!(rows[0].contains(&full.to_vec()), "{rows:?}");
    assert_eq!(
        [&rows[1][0][2], &rows[1][0][4]],
        ["3", "1"],
        "peak and refused"
    );
    howto.run("Take it back");
    _sessions.push(admitted(&direct));
    howto.finish();
}

fn locked_out(server: &Server) {
    let before = [
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE team",
        "CREATE DATABASE app",
    ];
    let mut howto = HowTo::start(server, "locked_out", &[], &before);
    let nobody = r#"{"max": 0, "per": "cluster"}"#;
    howto
        .cluster
        .set(&[("session_limit.cluster_limits", nobody)]);
    let alice = howto.cluster.login_of("alice");
    let superuser = howto.cluster.login_of("postgres");
    assert_eq!(sqlstate_of(&alice), "53300");
    let socket = "As a superuser over the socket";
    let (code, printed) = howto.shell(socket, 0);
    assert_eq!(code, Some(0), "{printed}");
    assert!(
        printed.contains("session_limit.cluster_limits"),
        "{printed}"
    );
    howto.run(socket);
    admitted(&alice).end();
    for (source, remedy) in remedies(&howto.page.section(socket)) {
        lifts(&howto.cluster, &source, &remedy);
    }

    // Nobody gets in, not even a superuser.
    let lock = [
        "ALTER SYSTEM SET session_limit.exempt_superusers = off".to_string(),
        "ALTER SYSTEM SET session_limit.enforcement = on".to_string(),
        format!("ALTER SYSTEM SET session_limit.cluster_limits = '{nobody}'"),
        "SELECT pg_reload_conf()".to_string(),
    ];
    let mut session = admitted(&superuser);
    for statement in &lock {
        session.query(statement);
    }
    session.end();
    wait_for("the lock", || superuser.login().err());
    let (code, printed) = howto.shell("Switch it off by a file", 0);
    assert_eq!(code, Some(0), "{printed}");
    wait_for("the way in", || superuser.login().ok()).end();
    admitted(&alice).end();

    let cluster = &mut howto.cluster;
    cluster.append("postgresql.conf", "session_limit.enforcement = on\n");
    cluster.stop(Stop::Fast);
    cluster.start_again();
    assert_eq!(sqlstate_of(&superuser), "53300");
    howto.cluster.stop(Stop::Fast);
    let (code, printed) = howto.shell("In single-user mode", 0);
    assert_eq!(code, Some(0), "{printed}");
    howto.cluster.start_again();
    admitted(&superuser).end();
    admitted(&alice).end();

    // What ALTER SYSTEM says would come after postgresql.conf.
    howto
        .cluster
        .sql(&["ALTER SYSTEM RESET session_limit.cluster_limits"]);
    let table = howto.page.section("If the server does not start");
    for (line, shown) in [
        (
            "session_limit.cluster_limits = '{\"max\": 5}'\n",
            "invalid value for parameter \"session_limit.cluster_limits\"",
        ),
        (
            "session_limit.cluster_limits = ''\nshared_preload_libraries = 'session_limit_gone'\n",
            "could not access file \"session_limit_gone\": No such file or directory",
        ),
    ] {
        howto.cluster.stop(Stop::Fast);
        howto.cluster.append("postgresql.conf", line);
        assert!(!howto.cluster.starts());
        let log = howto.cluster.log();
        assert!(log.contains(&format!("FATAL:  {shown}")), "{log}");
        let shown = shown.replace("_gone", "");
        assert!(table.text.contains(&shown), "{shown}");
    }
    howto.finish();
}

/// The rows of its table: where a limit is set, and the statement that lifts it.
fn remedies(section: &Page) -> Vec<(String, String)> {
    let rows = section
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("| `"));
    let cells = |row: &str| {
        let (source, rest) = row.split_once('`')?;
        let statement = rest.split('`').nth(1)?;
        Some((source.to_string(), statement.to_string()))
    };
    rows.map(|row| cells(row).expect(row)).collect()
}

/// That a limit of 0 which is set there keeps alice out of app until the remedy.
fn lifts(cluster: &Cluster, source: &str, remedy: &str) {
    let set = match source {
        "session_limit.max_sessions_per_role" => {
            "ALTER SYSTEM SET session_limit.max_sessions_per_role = 0".to_string()
        }
        "session_limit.cluster_limits" => {
            r#"ALTER SYSTEM SET session_limit.cluster_limits = '{"max": 0, "per": "cluster"}'"#
                .to_string()
        }
        "CONNECTION LIMIT of role alice" => "ALTER ROLE alice CONNECTION LIMIT 0".to_string(),
        "CONNECTION LIMIT of database app" => "ALTER DATABASE app CONNECTION LIMIT 0".to_string(),
        "label on role alice" => set_label("ROLE alice", r#"{"max": 0}"#),
        "label on role team" => set_label("ROLE team", r#"{"max": 0, "per": "group"}"#),
        "label on database app" => set_label("DATABASE app", r#"{"max": 0}"#),
        _ => panic!("an unknown place: {source}"),
    };
    let alice = cluster.login_of("alice").to("app");
    cluster.sql(&["GRANT team TO alice", &set]);
    cluster.reload();
    let refusal = refused(&alice);
    assert!(refusal.detail().contains(source), "{source}: {refusal:?}");
    cluster.sql(&[remedy]);
    cluster.reload();
    admitted(&alice).end();
}

fn several_sessions(server: &Server) {
    let before = [
        "CREATE ROLE alice LOGIN",
        "CREATE DATABASE app",
        // A link needs a password.
        "SET password_encryption = 'scram-sha-256'",
    ];
    let settings = [ANY_AGE, ("session_limit.max_wait", "0")];
    let mut howto = HowTo::start(server, "several_sessions", &settings, &before);
    howto.database = "app";
    let mut superuser = admitted(&howto.cluster.login_of("postgres").to("app"));
    for statement in [
        "CREATE EXTENSION session_limit",
        "CREATE TABLE t AS SELECT 7 AS seven",
        // So that a dump is not done before all of its workers have come.
        "CREATE UNLOGGED TABLE large AS SELECT generate_series(1, 500000)",
    ] {
        superuser.query(statement);
    }
    let alice = howto.cluster.login_of("alice").to("app");

    howto.run("Dumps");
    let (code, printed) = howto.shell("Dumps", 0);
    assert_eq!(code, Some(0), "{printed}");
    howto.cluster.wait_until_gone("dumper");
    let section = howto.page.section("Dumps");
    let more = section.fences("sh")[0].replace("-j 4", "-j 5");
    let (code, printed) = shell(&howto.cluster, &more.replace("BACKUP\"", "BACKUP.2\""));
    assert_ne!(code, Some(0));
    let shown = section.fences("text")[0].trim();
    assert!(printed.contains(shown), "{printed}");

    howto.run("People with IDEs");
    let mut sessions: Vec<Session> = [(); 5].map(|()| admitted(&alice)).into();
    assert_eq!(sqlstate_of(&alice), "53300");
    let counted = howto.run("Count them").remove(0);
    let alices = ["alice", "", "5"].map(String::from).to_vec();
    assert!(counted.contains(&alices), "{counted:?}");
    sessions.drain(1..).for_each(Session::end);

    let links =
        "SELECT count(*) FROM pg_available_extensions WHERE name IN ('dblink', 'postgres_fdw')";
    if superuser.value(links) != "2" {
        println!("skipped: links, because this server comes without dblink and postgres_fdw");
        for section in ["Links back", "Take it back"] {
            howto.section(section);
        }
        return howto.finish();
    }
    superuser.query("CREATE EXTENSION dblink");
    superuser.query("GRANT EXECUTE ON FUNCTION dblink_connect_u(text) TO alice");
    // A link as the own role ends the session that links.
    superuser.query(&set_label(
        "ROLE alice",
        r#"{"max": 1, "on_excess": "replace_oldest"}"#,
    ));
    let mut session = sessions.remove(0);
    let link = format!(
        "SELECT dblink_connect_u('host=127.0.0.1 port={} dbname=app user=alice')",
        howto.cluster.port
    );
    let told = session.try_query(&link).expect_err("an ended session");
    // Before 16 a session that connects does not end before it is told that it may not.
    let expected = if server.major < 16 { "08001" } else { "57P01" };
    assert_eq!(told.sqlstate(), expected, "{told:?}");
    assert!(!session.is_alive());
    howto.cluster.wait_until_gone("alice");

    let hba = "local all all trust\nhost all link all scram-sha-256\nhost all all all trust\n";
    howto.cluster.write("pg_hba.conf", hba);
    howto.cluster.reload();
    howto.run("Links back to the same server");
    superuser.query("CREATE FOREIGN TABLE far (seven int) SERVER here OPTIONS (table_name 't')");
    superuser.query("GRANT SELECT ON far TO alice");
    let mut session = admitted(&alice);
    assert_eq!(session.value("SELECT seven FROM far"), "7");
    assert!(session.is_alive());
    howto.run("Take it back");
    admitted(&alice).end();
    assert!(session.is_alive());
    howto.finish();
}

fn health_probes(server: &Server) {
    let before = ["CREATE ROLE alice LOGIN CONNECTION LIMIT 1"];
    let mut howto = HowTo::start(server, "health_probes", &[ANY_AGE], &before);
    let exempt = "Give probes an exempt role";
    howto.run(exempt);
    let nobody = r#"{"max": 0, "per": "cluster"}"#;
    howto
        .cluster
        .set(&[("session_limit.cluster_limits", nobody)]);
    assert_eq!(sqlstate_of(&howto.cluster.login_of("alice")), "53300");
    let (code, printed) = howto.shell(exempt, 0);
    let shown = howto.page.section(exempt).fences("text")[0].to_string();
    let shown = shown.replace("5432", &howto.cluster.port.to_string());
    assert_eq!((code, printed.trim()), (Some(0), shown.trim()));
    let (code, printed) = howto.shell(exempt, 1);
    assert_eq!((code, printed.as_str()), (Some(0), "1\n"));
    howto.cluster.set(&[("session_limit.cluster_limits", "")]);

    // As alice, whose limit is full.
    let mut session = admitted(&howto.cluster.login_of("alice"));
    let mut superuser = howto.cluster.superuser();
    let probe = |howto: &HowTo, role: &str| {
        let command = format!("pg_isready -h 127.0.0.1 -d postgres -t 1 -U {role}");
        shell(&howto.cluster, &command)
    };
    let number = |event: &str| {
        format!(
            "SELECT count(*) FROM session_limit.events WHERE usename = 'alice' AND event = '{event}'"
        )
    };
    let refusals = superuser.value(&number("refused")).parse::<u32>();
    let (code, printed) = probe(&howto, "alice");
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("accepting connections"), "{printed}");
    let more = refusals.expect("a number") + 1;
    wait_until(&mut superuser, &number("refused"), &more.to_string());

    howto.cluster.set(&[("session_limit.max_wait", "10s")]);
    let (code, printed) = probe(&howto, "alice");
    assert_eq!(code, Some(2), "{printed}");
    assert!(printed.contains("no response"), "{printed}");
    wait_until(&mut superuser, &number("abandoned"), "1");
    assert!(session.is_alive());

    let (code, printed) = probe(&howto, "nobody_here");
    assert_eq!(code, Some(0), "{printed}");

    howto.cluster.set(&[
        ("session_limit.max_wait", "0"),
        ("session_limit.on_excess", "replace_oldest"),
    ]);
    let (code, printed) = probe(&howto, "alice");
    assert_eq!(code, Some(0), "{printed}");
    told(&mut session);

    howto.run("Take it back");
    assert_eq!(sqlstate_of(&howto.cluster.login_of("probe")), "28000");
    howto.finish();
}

fn replication_roles(server: &Server) {
    let before = [
        "CREATE ROLE alice LOGIN REPLICATION",
        "CREATE ROLE standby LOGIN REPLICATION",
    ];
    let mut howto = HowTo::start(server, "replication_roles", &[], &before);
    let rows = howto.run("The gap");
    assert_eq!(rows[1], [["alice"], ["standby"]]);
    let _session = admitted(&howto.cluster.login_of("alice"));
    assert_eq!(sqlstate_of(&howto.cluster.login_of("alice")), "53300");
    let (code, printed) = howto.shell("The gap", 0);
    assert_eq!((code, printed.as_str()), (Some(0), "in as alice\n"));

    howto.run("Close it");
    let (code, _) = howto.shell("The gap", 0);
    assert_eq!(code, Some(2));
    let mut walsender = howto.cluster.login_of("alice");
    let option = ("replication".to_string(), "database".to_string());
    walsender.options.push(option);
    let refusal = refused(&walsender);
    assert_eq!(refusal.sqlstate(), "42501");
    if server.major >= 16 {
        let section = howto.page.section("Close it").text;
        assert!(section.contains(refusal.message()), "{refusal:?}");
    }

    howto.run("Or: count WAL senders");
    howto.shows("Or: count WAL senders", &refused(&walsender));
    let standby = Target {
        database: None,
        ..howto.cluster.login_of("standby")
    };
    let mut superuser = howto.cluster.superuser();
    superuser.query("ALTER ROLE standby CONNECTION LIMIT 1");
    let _standbys = [(); 3].map(|()| admitted(&standby));
    howto.run("Take it back");
    let _another = admitted(&walsender);
    howto.finish();
}

fn short_lived_roles(server: &Server) {
    let settings = [("session_limit.sweep_interval", "1s")];
    let mut howto = HowTo::start(server, "short_lived_roles", &settings, &[]);
    howto.run("Set it");
    let [one, two] = ["v_app_1", "v_app_2"].map(|role| howto.cluster.login_of(role));
    let mut sessions = [admitted(&one), admitted(&one)];
    assert!(refused(&one).message().ends_with(r#"role "v_app_1""#));
    let mut stays = admitted(&two);
    howto.shows("Set it", &refused(&two));

    howto.run("When a role is dropped");
    let event = howto.page.section("When a role is dropped").statements()[1].clone();
    wait_for("both sessions to be swept", || {
        let rows = run(&howto.cluster, "postgres", std::slice::from_ref(&event)).remove(0);
        (rows.len() == 2).then_some(())
    });
    for session in &mut sessions {
        told(session);
    }
    assert!(stays.is_alive());
    let _another = admitted(&two);

    howto.run("Take it back");
    let _third = admitted(&two);
    howto.finish();
}
