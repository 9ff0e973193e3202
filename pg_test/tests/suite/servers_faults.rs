//! Limits across servers where etcd, or what leads to it, is broken: such limits hold as `session_limit.on_unreachable` says, the log
//! says once what is wrong, and nobody else notices.

use crate::scene::{admitted, crash, refused, set_label, wait_until};
use pg_test::client::{Session, Target};
use pg_test::cluster::{Cluster, Stop, cpu, printed};
use pg_test::etcd::{Etcd, PASSWORD, Security, USER};
use pg_test::fleet::Fleet;
use pg_test::server::Server;
use pg_test::{place, say, wait_for};
use relay::Relay;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

#[path = "servers_faults/relay.rs"]
mod relay;

tests![
    who_needs_no_place_logs_in_as_fast_without_etcd,
    after_one_timeout_nobody_waits,
    nothing_waits_for_a_call_that_hangs,
    tls_and_users,
    endpoints_that_are_none,
    a_full_etcd,
    a_large_etcd,
    libpq_goes_on_to_a_server_that_reaches_etcd,
    without_endpoints_nothing_is_there,
    a_library_that_is_missing,
    wrong_settings,
];

const REFUSE: (&str, &str) = ("session_limit.on_unreachable", "refuse");
/// What is held is soon good for nothing.
const SHORT_LIFE: (&str, &str) = ("session_limit.server_timeout", "3s");
/// An endpoint at which nobody listens.
const NOBODY: &str = "http://127.0.0.1:1";
/// Far longer than anything takes here: who waits for etcd fails the test.
const LONG: (&str, &str) = ("session_limit.etcd_timeout", "60s");
const FAR_BELOW: Duration = Duration::from_secs(20);

/// None, and a word, where there is no etcd to be had.
fn etcd(security: Security, options: &'static [&'static str]) -> Option<Etcd> {
    let etcd = Etcd::try_start_with(1, security, options);
    etcd.inspect_err(|why| say(format_args!("skipped, for there is no etcd: {why}")))
        .ok()
}

/// A server with these endpoints: alice may have one session on all servers, carol one on each, bob any number, and eve is exempt.
fn cluster(server: &Server, endpoints: &str, settings: &[(&str, &str)]) -> Cluster {
    let mut all = vec![
        ("session_limit.etcd_endpoints", endpoints),
        ("session_limit.max_wait", "0"),
    ];
    all.extend(settings);
    let cluster = Cluster::start(server, &all);
    let across = r#"{"max": 1, "across": "servers"}"#;
    let exempt = r#"{"max": 1, "across": "servers", "exempt": true}"#;
    cluster.sql(&[
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
        "CREATE ROLE carol LOGIN",
        "CREATE ROLE eve LOGIN",
        &set_label("ROLE alice", across),
        &set_label("ROLE carol", r#"{"max": 1}"#),
        &set_label("ROLE eve", exempt),
    ]);
    cluster
}

/// Logins under a limit across servers are refused, as `refuse` says; all others go on.
fn only_alice_is_out(cluster: &Cluster, when: &str) {
    let alice = cluster.login_of("alice");
    // A place that the server still holds is good for a while, and nobody has taken it when she is refused.
    wait_for(&format!("alice to be refused: {when}"), || {
        match alice.login() {
            Ok(session) => {
                session.end();
                None
            }
            Err(refusal) => (refusal.sqlstate() == "57P03").then_some(()),
        }
    });
    let refusal = refused(&alice);
    assert_eq!(refusal.sqlstate(), "57P03", "{when}: {refusal:?}");
    assert!(!refusal.authenticated, "{when}");
    for role in ["bob", "eve", "postgres"] {
        admitted(&cluster.login_of(role)).end();
    }
    let carol = admitted(&cluster.login_of("carol"));
    assert_eq!(refused(&cluster.login_of("carol")).sqlstate(), "53300");
    carol.end();
}

/// The limit across servers is decided with etcd.
fn alice_is_in(cluster: &Cluster) -> Session {
    let alice = cluster.login_of("alice");
    wait_for("alice", || alice.login().ok())
}

/// Waits until no server holds a place.
fn places_are_given_back(etcd: &Etcd) {
    let keys = ["get", "--prefix", "--keys-only", "/session_limit/v1/c/"];
    wait_for("places to be given back", || {
        let left = pg_test::run(etcd.ctl().args(keys));
        left.trim().is_empty().then_some(())
    });
}

fn count(cluster: &Cluster, words: &str) -> usize {
    cluster.log().matches(words).count()
}

fn events(cluster: &Cluster, event: &str) -> usize {
    crate::events::logged_as(cluster, event).len()
}

/// The shortest of a few: the machine may be busy.
fn fastest(target: &Target) -> Duration {
    let logins = (0..5).map(|_| {
        let began = Instant::now();
        let outcome = target.login();
        let took = began.elapsed();
        drop(outcome);
        took
    });
    logins.min().unwrap_or_default()
}

/// Returns while it waits for etcd. Its connection is to be kept.
fn login_that_waits(cluster: &Cluster) -> pg_test::client::Connection {
    let alice = cluster.login_of("alice");
    let mut connection = alice.connect();
    connection.send_startup(&alice);
    cluster.wait_for_processes("authentication waiting", 1);
    connection
}

fn worker(cluster: &Cluster) -> Pid {
    let one = || cluster.processes("session_limit servers").pop();
    wait_for("the worker", one)
}

fn who_needs_no_place_logs_in_as_fast_without_etcd(server: &Server) {
    let Some(mut etcd) = etcd(Security::Open, &[]) else {
        return;
    };
    let cluster = cluster(server, &etcd.endpoint(0), &[LONG]);
    alice_is_in(&cluster).end();
    let nobody_waits = |when: &str| {
        for role in ["postgres", "eve", "bob"] {
            let took = fastest(&cluster.login_of(role));
            assert!(took < FAR_BELOW, "{when}: {role} waits for {took:?}");
        }
    };
    for on_unreachable in ["local", "refuse"] {
        cluster.set(&[("session_limit.on_unreachable", on_unreachable)]);
        etcd.kill(0);
        nobody_waits(&format!("killed, {on_unreachable}"));
        etcd.restart(&[0]);
        alice_is_in(&cluster).end();
        places_are_given_back(&etcd);
        etcd.stop(0);
        let waits = login_that_waits(&cluster);
        nobody_waits(&format!("stopped, {on_unreachable}"));
        etcd.go_on(0);
        let session = waits.outcome().expect("alice is in: etcd has answered");
        session.end();
    }
}

fn after_one_timeout_nobody_waits(server: &Server) {
    let timeout = ("session_limit.etcd_timeout", "4s");
    let Some(mut fleet) = crate::servers::fleet(server, 2, &[timeout]) else {
        return;
    };
    let label = set_label("ROLE alice", r#"{"max": 1, "across": "servers"}"#);
    fleet.sql(&["CREATE ROLE alice LOGIN", &label]);
    let [one, other] = [0, 1].map(|index| fleet.clusters[index].login_of("alice"));
    is_exact(&one, &other);
    for on_unreachable in ["local", "refuse"] {
        for cluster in &fleet.clusters {
            cluster.set(&[("session_limit.on_unreachable", on_unreachable)]);
        }
        places_are_given_back(&fleet.etcd);
        let before = outages(&fleet);
        fleet.etcd.stop(0);
        let outcomes = [&one, &other].map(Target::login);
        wait_for("both to say so", || {
            let now = outages(&fleet);
            (now.0 == [before.0[0] + 1, before.0[1] + 1]).then_some(())
        });
        for (alice, first) in [&one, &other].into_iter().zip(&outcomes) {
            let is_in = first.is_ok();
            assert_eq!(
                is_in,
                on_unreachable == "local",
                "{first:?}",
                first = first.as_ref().err()
            );
            let sqlstate = if is_in { "53300" } else { "57P03" };
            assert_eq!(refused(alice).sqlstate(), sqlstate);
            let took = fastest(alice);
            assert!(took < Duration::from_secs(2), "waits for {took:?}");
        }
        outcomes.into_iter().flatten().for_each(Session::end);
        fleet.etcd.go_on(0);
        wait_for("both to say that it answers", || {
            (outages(&fleet).1 == [before.1[0] + 1, before.1[1] + 1]).then_some(())
        });
        is_exact(&one, &other);
    }
}

/// How often each server has said that etcd cannot be reached, and that it can.
fn outages(fleet: &Fleet) -> ([usize; 2], [usize; 2]) {
    let of = |event| [0, 1].map(|index| events(&fleet.clusters[index], event));
    (of("unreachable"), of("reachable"))
}

/// With etcd one session is in, on whichever server.
fn is_exact(one: &Target, other: &Target) {
    for (here, there) in [(one, other), (other, one)] {
        let session = wait_for("alice", || here.login().ok());
        let refusal = refused(there);
        assert_eq!(refusal.sqlstate(), "53300", "{refusal:?}");
        let detail = refusal.detail();
        assert!(detail.contains("across 2 servers"), "{detail}");
        session.end();
    }
}

fn nothing_waits_for_a_call_that_hangs(server: &Server) {
    let Some(mut etcd) = etcd(Security::Open, &[]) else {
        return;
    };
    // Without a login the worker calls nobody.
    let settings = [LONG, ("session_limit.server_timeout", "10min")];
    let mut cluster = cluster(server, &etcd.endpoint(0), &settings);
    alice_is_in(&cluster).end();
    let soon = |what: &str, began: Instant| {
        let took = began.elapsed();
        assert!(took < FAR_BELOW, "{what} took {took:?}");
    };

    places_are_given_back(&etcd);
    etcd.stop(0);
    let waits = login_that_waits(&cluster);
    let began = Instant::now();
    cluster.sql(&["CREATE DATABASE app", "DROP DATABASE app"]);
    soon("CREATE and DROP DATABASE", began);

    let bob = admitted(&cluster.login_of("bob"));
    let began = Instant::now();
    crash(&cluster, &bob);
    soon("the restart after a crash", began);
    drop(waits);

    let waits = login_that_waits(&cluster);
    let began = Instant::now();
    cluster.stop(Stop::Fast);
    soon("a fast shutdown", began);
    drop(waits);
    cluster.start_again();
    let waits = login_that_waits(&cluster);
    let began = Instant::now();
    cluster.stop(Stop::Immediate);
    soon("an immediate shutdown", began);
    drop(waits);

    // Nor does the worker of a server whose postmaster is no more: the next one could not start.
    cluster.start_again();
    let waits = login_that_waits(&cluster);
    let left = worker(&cluster);
    let began = Instant::now();
    cluster.signal(Signal::KILL);
    wait_for("the worker to end", || {
        test_kill_process(left).is_err().then_some(())
    });
    soon("the end of the worker", began);
    drop(waits);
    cluster.stop(Stop::Fast);
    // It says that the server is ready.
    fs::remove_file(cluster.dir.join("data/postmaster.pid")).expect("remove a file");

    // A call that says goodbye hangs, too.
    etcd.go_on(0);
    cluster.start_again();
    alice_is_in(&cluster).end();
    places_are_given_back(&etcd);
    etcd.stop(0);
    let began = Instant::now();
    cluster.stop(Stop::Fast);
    soon("a fast shutdown with nothing to ask", began);
    let ends = events(&cluster, "unreachable");
    assert_eq!(ends, 0, "a stop is no outage:\n{}", cluster.log());
}

/// What is wrong, as the log has it: a reason of the event `unreachable`, or a detail of the warning about a setting.
enum Said {
    Event(&'static str),
    Setting(&'static str),
}

fn tls_and_users(server: &Server) {
    let Some(mut etcd) = etcd(Security::ClientCertificates, &[]) else {
        return;
    };
    etcd.require_users("/session_limit/");
    let file = |name: &str| readable(&etcd, name);
    let right = [
        ("session_limit.etcd_ca_file", file("ca.pem")),
        ("session_limit.etcd_cert_file", file("client.pem")),
        ("session_limit.etcd_key_file", file("client.key")),
        ("session_limit.etcd_user", USER.to_string()),
        ("session_limit.etcd_password_file", "password".to_string()),
    ];
    let right = right
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let mut settings = right.to_vec();
    settings.extend([REFUSE, SHORT_LIFE]);
    let cluster = cluster(server, &etcd.endpoint(0), &settings);
    cluster.write_secret("wrong", "wrong\n");
    cluster.write_secret("closed", PASSWORD);
    let closed = cluster.dir.join("data/closed");
    fs::set_permissions(closed, fs::Permissions::from_mode(0o000)).expect("close it");
    let missing = || {
        count(
            &cluster,
            "session_limit.etcd_password_file: could not read file \"password\"",
        )
    };
    wait_for("a line about the password's file", || {
        (missing() > 0).then_some(())
    });
    only_alice_is_out(&cluster, "no password");
    cluster.write_secret("password", &format!("{PASSWORD}\n"));
    cluster.reload();
    alice_is_in(&cluster).end();
    assert_eq!(missing(), 1);
    assert_eq!(events(&cluster, "reachable"), 1);

    pg_test::run(etcd.ctl().args(["user", "add", "nobody:secret"]));
    let (named, named_key) = (file("named.pem"), file("named.key"));
    use Said::{Event, Setting};
    let cases: [(&[(&str, &str)], Said); 12] = [
        (
            &[("cert_file", &named), ("key_file", &named_key)],
            Event("CommonName"),
        ),
        (&[("cert_file", ""), ("key_file", "")], Event("ertificate")),
        (&[("user", "nobody")], Event("permission denied")),
        (
            &[("password_file", "wrong")],
            Event("invalid user ID or password"),
        ),
        (
            &[("password_file", "closed")],
            Setting("password_file: could not read file \"closed\""),
        ),
        (
            &[("password_file", "base")],
            Setting("password_file: could not read file \"base\": it is no regular file"),
        ),
        (
            &[("password_file", "")],
            Setting("password_file: must be set, as etcd_user is"),
        ),
        (
            &[("ca_file", "")],
            Setting("needs a file of certificates to be verified by"),
        ),
        (
            &[("ca_file", "nowhere")],
            Setting("ca_file: could not read file \"nowhere\""),
        ),
        (
            &[("ca_file", "PG_VERSION")],
            Setting("ca_file: no certificate in file \"PG_VERSION\""),
        ),
        (&[("key_file", &named_key)], Setting("does not go with")),
        (&[("user", "")], Setting("user: must be set")),
    ];
    for (number, (wrong, said)) in (2..).zip(&cases) {
        let wrong = wrong
            .iter()
            .map(|(end, value)| (format!("session_limit.etcd_{end}"), *value));
        let wrong: Vec<_> = wrong.collect();
        let wrong: Vec<_> = wrong
            .iter()
            .map(|(name, value)| (name.as_str(), *value))
            .collect();
        cluster.set(&wrong);
        let words = match said {
            Event(words) | Setting(words) => *words,
        };
        let lines = || lines_that_say(&cluster, said);
        wait_for(&format!("a line: {words}"), || (lines() > 0).then_some(()));
        only_alice_is_out(&cluster, words);
        cluster.set(&right);
        alice_is_in(&cluster).end();
        assert_eq!(lines(), 1, "{words}:\n{}", cluster.log());
        assert_eq!(events(&cluster, "reachable"), number, "{words}");
    }

    // Who makes users makes all tokens worthless.
    let lines = events(&cluster, "unreachable");
    pg_test::run(etcd.ctl().args(["user", "add", "another:secret"]));
    for _ in 0..5 {
        admitted(&cluster.login_of("alice")).end();
    }
    assert_eq!(events(&cluster, "unreachable"), lines);
    // So does etcd's restart.
    etcd.kill(0);
    only_alice_is_out(&cluster, "a restart of etcd");
    etcd.restart(&[0]);
    alice_is_in(&cluster).end();
}

/// So many lines of the log say this.
fn lines_that_say(cluster: &Cluster, said: &Said) -> usize {
    match said {
        Said::Event(words) => {
            let events = crate::events::logged_as(cluster, "unreachable");
            let says = |event: &&serde_json::Value| {
                event["reason"]
                    .as_str()
                    .is_some_and(|reason| reason.contains(words))
            };
            events.iter().filter(says).count()
        }
        Said::Setting(words) => {
            let log = cluster.log();
            let details = log
                .lines()
                .filter(|line| line.contains("DETAIL:  session_limit.etcd_"));
            details.filter(|line| line.contains(words)).count()
        }
    }
}

/// A file of etcd's, which the server's user can read.
fn readable(etcd: &Etcd, name: &str) -> String {
    let file = etcd.file(name);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("open a file");
    file
}

fn endpoints_that_are_none(server: &Server) {
    let Some(etcd) = etcd(Security::Tls, &[]) else {
        return;
    };
    let right = etcd.endpoint(0);
    let ca = readable(&etcd, "ca.pem");
    let unknown = format!("http://{}:2379", "a".repeat(70));
    let without_tls = right.replace("https", "http");
    let other_address = right.replace("127.0.0.1", "127.0.0.2");
    use Said::{Event, Setting};
    let cases = [
        (
            "etcd1, etcd2",
            Setting("endpoints: \"etcd1\": must be like https://"),
        ),
        ("http://127.0.0.1:1/v3", Setting("must have no path")),
        (NOBODY, Event("Connection refused")),
        (&unknown, Event("")),
        (&without_tls, Event("")),
        (&other_address, Event("Connection refused")),
        // Two, each with a reason of its own: one line says the last.
        (&format!("{NOBODY},{without_tls}"), Event("")),
    ];
    let settings = [REFUSE, ("session_limit.etcd_ca_file", ca.as_str())];
    let mut cluster = cluster(server, cases[0].0, &settings);
    for (endpoints, said) in &cases {
        cluster.sql(&[&format!(
            "ALTER SYSTEM SET session_limit.etcd_endpoints = '{endpoints}'"
        )]);
        cluster.stop(Stop::Fast);
        fs::write(cluster.dir.join("log"), "").expect("empty the log");
        cluster.start_again();
        wait_for(&format!("a line about {endpoints}"), || {
            (lines_that_say(&cluster, said) > 0).then_some(())
        });
        only_alice_is_out(&cluster, endpoints);
        // Twenty calls.
        cluster.sql(&["SELECT pg_sleep(1)"]);
        assert_eq!(lines_that_say(&cluster, said), 1, "{}", cluster.log());
    }
    cluster.sql(&[&format!(
        "ALTER SYSTEM SET session_limit.etcd_endpoints = '{right}'"
    )]);
    cluster.stop(Stop::Fast);
    cluster.start_again();
    alice_is_in(&cluster).end();
}

/// What docs/several_servers.md has about etcd's size, to be run.
fn documented_compaction() -> String {
    let page = place::checkout().join("docs/several_servers.md");
    let page = fs::read_to_string(page).expect("the page");
    let blocks = page.split("```").skip(1).step_by(2);
    let mut blocks = blocks.filter(|block| block.contains("etcdctl compact"));
    let block = blocks.next().expect("a block with etcdctl compact");
    assert!(page.contains("`etcdctl alarm disarm`") && page.contains("`etcdctl alarm list`"));
    block.to_string()
}

fn a_full_etcd(server: &Server) {
    let Some(etcd) = etcd(Security::Open, &["--quota-backend-bytes", "1048576"]) else {
        return;
    };
    let cluster = cluster(server, &etcd.endpoint(0), &[REFUSE, SHORT_LIFE]);
    alice_is_in(&cluster).end();
    let value = "x".repeat(100_000);
    wait_for("etcd to be full", || {
        let put = printed(etcd.ctl().args(["put", "somebody's", &value]));
        put.contains("database space exceeded").then_some(())
    });
    only_alice_is_out(&cluster, "full");
    let full = Said::Event("database space exceeded");
    assert_eq!(lines_that_say(&cluster, &full), 1, "{}", cluster.log());
    assert!(etcd.shell("etcdctl alarm list").contains("NOSPACE"));
    etcd.shell(&documented_compaction());
    etcd.shell("etcdctl alarm disarm");
    alice_is_in(&cluster).end();
    assert_eq!(events(&cluster, "reachable"), 1);
}

fn a_large_etcd(server: &Server) {
    let Some(etcd) = etcd(Security::Open, &[]) else {
        return;
    };
    let relay = Relay::start(&etcd.endpoint(0));
    relay.say_that_it_is_large(true);
    let cluster = cluster(server, &relay.endpoint, &[REFUSE, SHORT_LIFE]);
    let warning = "WARNING:  session_limit: etcd is too large to be written to";
    wait_for("a warning", || (count(&cluster, warning) > 0).then_some(()));
    only_alice_is_out(&cluster, "large");
    assert_eq!(relay.transactions(), 0, "nothing is written");
    assert_eq!(count(&cluster, warning), 1);
    assert_eq!(count(&cluster, "It has 1024 MB;"), 1);
    // Looked at again, and said again, at each reload.
    cluster.reload();
    wait_for("a warning", || (count(&cluster, warning) > 1).then_some(()));
    assert_eq!(relay.transactions(), 0, "nothing is written");
    relay.say_that_it_is_large(false);
    cluster.reload();
    alice_is_in(&cluster).end();
    assert!(relay.transactions() > 0);
    assert_eq!(events(&cluster, "reachable"), 1);
    // It grows.
    relay.say_that_it_is_large(true);
    cluster.reload();
    wait_for("a warning", || (count(&cluster, warning) > 2).then_some(()));
    let before = relay.transactions();
    only_alice_is_out(&cluster, "large again");
    assert_eq!(relay.transactions(), before, "nothing is written");
    a_waiter_sleeps(&cluster);
}

/// It waits for room on this server, and for nothing of etcd.
fn a_waiter_sleeps(cluster: &Cluster) {
    cluster.set(&[
        ("session_limit.on_unreachable", "local"),
        ("session_limit.max_wait", "3s"),
    ]);
    let _session = admitted(&cluster.login_of("alice"));
    let worker = worker(cluster);
    let before = cpu(worker);
    assert_eq!(refused(&cluster.login_of("alice")).sqlstate(), "53300");
    let used = cpu(worker) - before;
    assert!(used < 0.2, "the worker used {used} s");
}

/// Of two servers the first does not reach etcd, and refuses alice; the second lets her in.
pub fn cut_off_and_in_touch(server: &Server) -> Option<(Etcd, Cluster, Cluster)> {
    let etcd = etcd(Security::Open, &[])?;
    let cut_off = cluster(server, NOBODY, &[REFUSE]);
    let in_touch = cluster(server, &etcd.endpoint(0), &[REFUSE]);
    only_alice_is_out(&cut_off, "nobody listens");
    alice_is_in(&in_touch).end();
    places_are_given_back(&etcd);
    Some((etcd, cut_off, in_touch))
}

/// With 57P03 it does, with 53300 it does not.
fn libpq_goes_on_to_a_server_that_reaches_etcd(server: &Server) {
    let Some((_etcd, cut_off, in_touch)) = cut_off_and_in_touch(server) else {
        return;
    };
    let login = |first: &Cluster, second: &Cluster| {
        let (first, second) = (first.port, second.port);
        let target =
            format!("host=127.0.0.1,127.0.0.1 port={first},{second} user=alice dbname=postgres");
        let mut psql = in_touch.client("psql");
        printed(psql.args(["-X", "-A", "-t", "-c", "SELECT inet_server_port()", &target]))
    };
    wait_for("the place", || {
        let shown = login(&cut_off, &in_touch);
        let port = in_touch.port.to_string();
        if shown.trim() != port {
            assert!(shown.contains("too many connections"), "{shown}");
        }
        (shown.trim() == port).then_some(())
    });
    let alice = alice_is_in(&in_touch);
    cut_off.set(&[("session_limit.on_unreachable", "local")]);
    let full = login(&in_touch, &cut_off);
    assert!(
        full.contains("too many connections for role \"alice\""),
        "{full}"
    );
    assert!(!full.contains(&cut_off.port.to_string()), "{full}");
    alice.end();
    alice_is_in(&cut_off).end();
}

/// The library that speaks with etcd is only where it is needed.
fn without_endpoints_nothing_is_there(server: &Server) {
    let places = "SELECT coalesce(sum(allocated_size), 0) FROM pg_shmem_allocations WHERE name IN
        ('session_limit places', 'session_limit counters', 'session_limit slots'' places', 'session_limit servers')";
    let loaded = |cluster: &Cluster| {
        let _session = admitted(&cluster.login_of("bob"));
        let all = cluster.processes("").into_iter().chain([cluster.pid()]);
        let maps = |pid: &Pid| {
            let maps = fs::read_to_string(format!("/proc/{}/maps", pid.as_raw_nonzero()));
            let maps = maps.unwrap_or_default();
            assert!(maps.contains("/session_limit.so"), "{maps}");
            maps.contains("session_limit_servers.so")
        };
        all.filter(maps).collect::<Vec<Pid>>()
    };
    let alone = Cluster::start(server, &[]);
    alone.sql(&["CREATE ROLE bob LOGIN"]);
    alone.wait_for_processes("session_limit worker", 1);
    assert_eq!(alone.processes("session_limit servers"), []);
    assert_eq!(loaded(&alone), []);
    assert_eq!(alone.superuser().value(places), "0");

    let Some(etcd) = etcd(Security::Open, &[]) else {
        return;
    };
    let shared = cluster(server, &etcd.endpoint(0), &[]);
    alice_is_in(&shared).end();
    assert_eq!(loaded(&shared), [worker(&shared)]);
    let size = shared.superuser().value(places);
    assert!(size.parse::<u64>().expect("bytes") > 10_000, "{size}");
}

fn a_library_that_is_missing(server: &Server) {
    let Some(etcd) = etcd(Security::Open, &[]) else {
        return;
    };
    // The library is looked for where session_limit itself is.
    let folder = etcd.dir.join("libraries");
    place::server_dir(&folder);
    let copy = |name: &str| fs::copy(server.library(name), folder.join(name).with_extension("so"));
    copy("session_limit").expect("copy a library");
    let path = folder.display().to_string();
    let settings = [REFUSE, ("dynamic_library_path", path.as_str())];
    let cluster = cluster(server, &etcd.endpoint(0), &settings);
    let warning = "WARNING:  could not open the library \"session_limit_servers\"";
    wait_for("a warning", || (count(&cluster, warning) > 0).then_some(()));
    only_alice_is_out(&cluster, "no library");
    let took = fastest(&cluster.login_of("alice"));
    assert!(took < FAR_BELOW, "alice waits for {took:?}");
    assert_eq!(count(&cluster, "No such file or directory"), 1);
    assert_eq!(count(&cluster, "HINT:  Install it beside session_limit"), 1);
    let first = worker(&cluster);
    cluster.set(&[("session_limit.on_unreachable", "local")]);
    wait_for("a warning", || (count(&cluster, warning) > 1).then_some(()));
    let alice = alice_is_in(&cluster);
    assert_eq!(refused(&cluster.login_of("alice")).sqlstate(), "53300");
    alice.end();
    cluster.set(&[REFUSE]);

    let broken = folder.join("session_limit_servers.so");
    fs::write(&broken, "no library").expect("write a file");
    let reason = || count(&cluster, "session_limit_servers.so: ");
    let before = reason();
    cluster.reload();
    wait_for("a warning", || (reason() > before).then_some(()));
    only_alice_is_out(&cluster, "a broken library");
    // Once for each reload, and not each second.
    cluster.sql(&["SELECT pg_sleep(2)"]);
    assert_eq!(count(&cluster, warning), 4, "{}", cluster.log());
    assert_eq!(worker(&cluster), first);

    fs::remove_file(&broken).expect("remove a file");
    copy("session_limit_servers").expect("copy a library");
    cluster.reload();
    alice_is_in(&cluster).end();
    assert_eq!(events(&cluster, "reachable"), 1);
    kill_process(first, Signal::KILL).expect("end a worker");
    alice_is_in(&cluster).end();
}

fn wrong_settings(server: &Server) {
    let mut cluster = Cluster::start(server, &[("cluster_name", "batman")]);
    // PostgreSQL 15 to 17 say the range without units.
    let range = |value, name, least| {
        format!(
            "{value} ms is outside the valid range for parameter \"session_limit.{name}\" ({least} "
        )
    };
    let never = "invalid value for parameter \"session_limit.on_unreachable\": \"never\"";
    let misspelt = "invalid configuration parameter name \"session_limit.etcd_endpoint\"";
    let wrong = [
        vec![
            ("etcd_timeout", "5ms", range(5, "etcd_timeout", 10)),
            ("server_timeout", "2s", range(2000, "server_timeout", 3000)),
            ("on_unreachable", "never", never.to_string()),
            ("etcd_endpoint", "http://etcd1", misspelt.to_string()),
        ],
        vec![
            ("etcd_timeout", "61s", range(61_000, "etcd_timeout", 10)),
            (
                "server_timeout",
                "11min",
                range(660_000, "server_timeout", 3000),
            ),
        ],
    ];
    let defaults = [
        ("etcd_timeout", "1s"),
        ("server_timeout", "10s"),
        ("on_unreachable", "local"),
    ];
    let configuration = fs::read_to_string(cluster.dir.join("data/postgresql.conf"));
    let configuration = configuration.expect("the configuration");
    for lines in wrong {
        cluster.stop(Stop::Fast);
        let wrong = lines
            .iter()
            .map(|(name, value, _)| format!("session_limit.{name} = '{value}'\n"));
        let wrong = configuration.clone() + &wrong.collect::<String>();
        cluster.write("postgresql.conf", &wrong);
        cluster.start_again();
        for (_, _, said) in &lines {
            assert!(cluster.log().contains(said), "{said}:\n{}", cluster.log());
        }
        for (name, default) in defaults {
            let shown = cluster
                .superuser()
                .value(&format!("SHOW session_limit.{name}"));
            assert_eq!(shown, default, "{name}");
        }
    }
    cluster.stop(Stop::Fast);
    let Some(etcd) = etcd(Security::Open, &[]) else {
        return;
    };
    let endpoint = etcd.endpoint(0);
    cluster.write(
        "postgresql.conf",
        &format!("{configuration}session_limit.etcd_endpoints = '{endpoint}'\n"),
    );
    cluster.start_again();
    cluster.sql(&["CREATE EXTENSION session_limit", "CREATE ROLE alice LOGIN"]);
    // What is there without a name of its own.
    let name = "SELECT string_agg(name, ',') FROM session_limit.servers";
    wait_until(&mut cluster.superuser(), name, "batman");
    let mut alice = admitted(&cluster.login_of("alice"));
    for name in ["endpoints", "user", "password_file", "ca_file"] {
        let shown = alice.try_query(&format!("SHOW session_limit.etcd_{name}"));
        assert_eq!(shown.expect_err("an error").sqlstate(), "42501", "{name}");
    }
    assert_eq!(alice.value("SHOW session_limit.etcd_timeout"), "1s");
    // The restart that a change needs is said.
    cluster.append("postgresql.conf", "session_limit.etcd_prefix = '/other/'\n");
    cluster.reload();
    let needs =
        "parameter \"session_limit.etcd_prefix\" cannot be changed without restarting the server";
    wait_for("a line", || (count(&cluster, needs) > 0).then_some(()));
}
