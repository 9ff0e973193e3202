//! Whoever owns a database, or administers roles, and is no superuser lets logins wait only so that others can, too.

use crate::scene::{admitted, refused, remove_label, set_label, wait_until};
use pg_test::client::{Refusal, Session, Target};
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

tests![
    an_owner_cannot_fill_the_queue,
    nor_can_who_administers_roles,
    nor_can_who_changes_labels_meanwhile,
    half_of_the_connections_stay_free,
    who_may_not_connect_does_not_wait,
    a_label_may_ask_for_so_long_a_wait,
];

const ROLES: [&str; 4] = ["r1", "r2", "r3", "r4"];

/// Room for 12 waiters: on one account 5 (of the first nine as many as are left), of one role 3.
fn start(server: &Server, settings: &[(&str, &str)]) -> Cluster {
    let mut all = vec![
        ("max_connections", "60"),
        ("authentication_timeout", "10min"),
        ("session_limit.max_wait", "5min"),
        ("session_limit.max_label_wait", "-1"),
        ("session_limit.max_waiters", "12"),
    ];
    all.extend(settings);
    let cluster = Cluster::start(server, &all);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE tenant LOGIN CREATEROLE",
        "CREATE ROLE other LOGIN",
        "CREATE ROLE bob LOGIN CONNECTION LIMIT 1",
    ]);
    cluster
}

type Outcomes = Receiver<Result<Session, Refusal>>;

/// All of them log in at once.
fn storm(targets: Vec<Target>) -> Outcomes {
    let (sender, outcomes) = channel();
    for target in targets {
        let sender = sender.clone();
        thread::spawn(move || sender.send(target.login()));
    }
    outcomes
}

/// Three logins of each of the roles, to these databases in turn.
fn twelve_logins(cluster: &Cluster, databases: &[&str]) -> Vec<Target> {
    let turns = databases.iter().cycle();
    let roles = ROLES.iter().cycle().take(12);
    roles
        .zip(turns)
        .map(|(role, database)| cluster.login_of(role).to(database))
        .collect()
}

/// As many logins are refused, each without having waited, and for this reason; no other.
fn must_be_refused(cluster: &Cluster, outcomes: &Outcomes, number: usize, why: &str, word: &str) {
    for _ in 0..number {
        let refusal = outcomes.recv().expect("an outcome").err().expect("no room");
        assert_eq!(refusal.sqlstate(), "53300", "{refusal:?}");
        let detail = format!("The login did not wait: {why} now, so that others can");
        assert!(refusal.detail().contains(&detail), "{refusal:?}");
        assert!(refusal.hint().contains("max_waiters"), "{refusal:?}");
    }
    let words = "SELECT string_agg(DISTINCT detail->>'not_waited', ' ') FROM session_limit.events WHERE event = 'refused'";
    assert_eq!(cluster.superuser().value(words), word);
    assert!(outcomes.try_recv().is_err(), "the others wait");
}

/// Another one waits, and is let in when the first session of its role has ended.
fn others_wait(cluster: &Cluster, target: &Target, waiting: usize) {
    let first = admitted(target);
    let second = storm(vec![target.clone()]);
    cluster.wait_for_processes(" authentication", waiting + 1);
    drop(first);
    second.recv().expect("an outcome").expect("room").close();
    cluster.wait_until_gone(&target.user);
}

/// Each of them is let in, one after the other.
fn all_are_let_in(outcomes: &Outcomes, number: usize) {
    for _ in 0..number {
        let outcome = outcomes.recv().expect("an outcome");
        outcome.expect("in its turn").close();
    }
}

const OF_OWNER: &str = "no more logins under limits on databases of this owner may wait";
const OF_ROLES: &str = "no more logins may wait longer by the label on their role";

/// Several limits, on several databases of one owner, and several roles.
fn an_owner_cannot_fill_the_queue(server: &Server) {
    let cluster = start(server, &[]);
    cluster.sql(&[
        "CREATE DATABASE app OWNER tenant",
        "CREATE DATABASE web OWNER tenant",
        "CREATE DATABASE others OWNER other",
        "SET ROLE tenant",
        &set_label("DATABASE app", r#"{"max": 1, "max_wait": "10min"}"#),
        "ALTER DATABASE web CONNECTION LIMIT 1",
        "SET ROLE other",
        &set_label("DATABASE others", r#"{"max": 1, "max_wait": "10min"}"#),
        "RESET ROLE",
    ]);
    let roles = ROLES.map(|role| format!("CREATE ROLE {role} LOGIN"));
    cluster.sql(&roles.each_ref().map(String::as_str));
    let tenant = |database| admitted(&cluster.login_of("tenant").to(database));
    let sessions = [tenant("app"), tenant("web")];
    let outcomes = storm(twelve_logins(&cluster, &["app", "web", "web", "app"]));
    must_be_refused(&cluster, &outcomes, 7, OF_OWNER, "owner_queue_full");
    others_wait(&cluster, &cluster.login_of("bob"), 5);
    others_wait(&cluster, &cluster.login_of("other").to("others"), 5);
    drop(sessions);
    all_are_let_in(&outcomes, 5);
}

/// As many roles, labels and limits as they like.
fn nor_can_who_administers_roles(server: &Server) {
    let cluster = start(server, &[]);
    let mut tenant = admitted(&cluster.login_of("tenant").to("postgres"));
    for role in ROLES {
        tenant.query(&format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 1"));
        tenant.query(&set_label(
            &format!("ROLE {role}"),
            r#"{"max_wait": "10min"}"#,
        ));
    }
    let sessions = ROLES.map(|role| admitted(&cluster.login_of(role)));
    let outcomes = storm(twelve_logins(&cluster, &["postgres"]));
    must_be_refused(&cluster, &outcomes, 7, OF_ROLES, "role_labels_queue_full");
    others_wait(&cluster, &cluster.login_of("bob"), 5);
    drop(sessions);
    all_are_let_in(&outcomes, 5);
}

/// Twelve wait as long as everyone may. Then the labels of their roles let them wait longer.
fn nor_can_who_changes_labels_meanwhile(server: &Server) {
    let cluster = start(server, &[]);
    let roles = ROLES.map(|role| format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 1"));
    cluster.sql(&roles.each_ref().map(String::as_str));
    let sessions = ROLES.map(|role| admitted(&cluster.login_of(role)));
    let outcomes = storm(twelve_logins(&cluster, &["postgres"]));
    let waiting = "SELECT sum(waiting) FROM session_limit.usage";
    wait_until(&mut cluster.superuser(), waiting, "12");
    let labels = ROLES.map(|role| set_label(&format!("ROLE {role}"), r#"{"max_wait": "10min"}"#));
    // One transaction, so that the labels hold at once.
    cluster.superuser().query(&labels.join("; "));
    for _ in 0..7 {
        let refusal = outcomes.recv().expect("an outcome").err().expect("no room");
        assert_eq!(refusal.sqlstate(), "53300", "{refusal:?}");
    }
    others_wait(&cluster, &cluster.login_of("bob"), 5);
    drop(sessions);
    all_are_let_in(&outcomes, 5);
}

/// There are places for all, but not connections.
fn half_of_the_connections_stay_free(server: &Server) {
    let settings = [
        ("max_connections", "16"),
        ("superuser_reserved_connections", "3"),
        ("session_limit.max_waiters", "100"),
    ];
    let cluster = start(server, &settings);
    cluster.sql(&[
        "CREATE DATABASE app OWNER tenant",
        &set_label("DATABASE app", r#"{"max": 1}"#),
    ]);
    let mut superuser = cluster.superuser();
    let target = cluster.login_of("tenant").to("app");
    let session = admitted(&target);
    // Of 16 connections two are used and three reserved: of eleven the owner's get six. One comes after the other, as
    // each is decided by what is free at that moment.
    let waiting = "SELECT coalesce(max(waiting), 0) FROM session_limit.usage WHERE subject = 'app'";
    let mut waiters = Vec::new();
    for number in 1..=6 {
        waiters.push(storm(vec![target.clone()]));
        wait_until(&mut superuser, waiting, &number.to_string());
    }
    let refusal = refused(&target);
    assert!(refusal.detail().contains(OF_OWNER), "{refusal:?}");
    cluster.wait_for_processes(" authentication", 6);
    let others = [(); 5].map(|()| admitted(&cluster.login_of("other").to("postgres")));
    drop((others, session));
    waiters
        .iter()
        .for_each(|outcome| all_are_let_in(outcome, 1));
}

/// Else it would take the place of one that may.
fn who_may_not_connect_does_not_wait(server: &Server) {
    let cluster = start(server, &[("session_limit.max_wait", "3s")]);
    cluster.sql(&[
        "CREATE DATABASE app OWNER tenant",
        "REVOKE CONNECT ON DATABASE app FROM PUBLIC",
        &set_label("DATABASE app", r#"{"max": 1}"#),
    ]);
    let session = admitted(&cluster.login_of("tenant").to("app"));
    let refusal = refused(&cluster.login_of("other").to("app"));
    assert_eq!(refusal.sqlstate(), "42501", "{refusal:?}");
    assert_eq!(
        refusal.message(),
        "permission denied for database \"app\"",
        "{refusal:?}"
    );
    cluster.set(&[("session_limit.enforcement", "log")]);
    let refusal = refused(&cluster.login_of("other").to("app"));
    assert_eq!(refusal.sqlstate(), "42501", "the server's own: {refusal:?}");
    session.close();
}

fn a_label_may_ask_for_so_long_a_wait(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE tenant LOGIN CREATEROLE",
        "CREATE DATABASE app OWNER tenant",
    ]);
    let mut tenant = admitted(&cluster.login_of("tenant").to("postgres"));
    tenant.query("CREATE ROLE alice LOGIN");
    let mut superuser = cluster.superuser();
    let labels = "SELECT coalesce(string_agg(label, ' '), 'none') FROM pg_shseclabel";
    let json = |wait: &str| {
        [
            format!(r#"{{"max_wait": {wait}}}"#),
            format!(
                r#"{{"limits": [{{"max": 1}}, {{"max": 2, "per": "address", "max_wait": {wait}}}], "max_wait": 0}}"#
            ),
        ]
    };
    let set = |wait: &str| {
        let objects = ["ROLE alice", "DATABASE app"].into_iter();
        let label = |object| json(wait).map(|json| set_label(object, &json));
        objects.flat_map(label).collect::<Vec<_>>()
    };
    let mut too_long = |tenant: &mut Session, wait: &str, allowed: &str| {
        let call = format!(
            "SELECT session_limit.set_limit(role => 'alice', max => 1, max_wait => '{wait} ms')"
        );
        for sql in set(wait).iter().chain([&call]) {
            let error = tenant.try_query(sql).expect_err(sql);
            assert_eq!(error.sqlstate(), "42501", "{error:?}");
            let detail = format!(
                "\"max_wait\" is {wait} ms; session_limit.max_label_wait and session_limit.max_wait allow {allowed} ms"
            );
            assert!(error.detail().contains(&detail), "{error:?}");
            assert!(
                error.hint().contains("session_limit.max_label_wait"),
                "{error:?}"
            );
            assert_eq!(superuser.value(labels), "none", "{sql}");
        }
    };
    let clear = |tenant: &mut Session| {
        for object in ["ROLE alice", "DATABASE app"] {
            tenant.query(&remove_label(object));
        }
    };
    let allowed = |session: &mut Session, wait: &str| {
        set(wait).iter().for_each(|sql| {
            session.query(sql);
        });
    };
    too_long(&mut tenant, "5001", "5000");
    allowed(&mut tenant, "5000");
    clear(&mut tenant);
    // A superuser may set any; so a dump can be restored.
    allowed(&mut cluster.superuser(), "600000");
    clear(&mut tenant);
    // What everyone may wait is nothing special.
    cluster.set(&[("session_limit.max_wait", "7s")]);
    too_long(&mut tenant, "7001", "7000");
    allowed(&mut tenant, "7000");
    clear(&mut tenant);
    cluster.set(&[("session_limit.max_label_wait", "-1")]);
    allowed(&mut tenant, "600000");
    let by_tenant = tenant.try_query("ALTER SYSTEM SET session_limit.max_label_wait = -1");
    assert!(by_tenant.is_err());
}
