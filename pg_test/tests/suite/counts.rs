//! Limits that count roles or client addresses instead of sessions.

use crate::scene::{admitted, go_on, process, refused, set_label, stop, told, wait_until};
use pg_test::client::{Connection, Session, Target};
use pg_test::cluster::Cluster;
use pg_test::server::Server;
use pg_test::wait_for;
use serde_json::json;
use std::collections::BTreeSet;

tests![
    one_desk_with_any_number_of_windows,
    so_many_users,
    a_refusal_says_what_is_in_the_way,
    whoever_changes_desks_takes_the_place_along,
    a_place_is_replaced_as_a_whole_or_not,
    a_place_with_a_session_that_stays,
    all_windows_at_a_new_desk_get_in,
    whoever_waits_needs_a_place,
    members_join_and_leave,
    a_dry_run,
    a_lowered_count_ends_whole_places,
    views,
    storms_with_old_and_new_kinds,
];

const HERE: &str = "127.0.0.1";
const THERE: &str = "127.0.0.2";
const ELSEWHERE: &str = "127.0.0.3";
const AT_ONCE: (&str, &str) = ("session_limit.max_wait", "0");
const ANY_AGE: (&str, &str) = ("session_limit.replace_min_age", "0");

fn start(server: &Server, settings: &[(&str, &str)]) -> Cluster {
    let cluster = Cluster::start(server, settings);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE team",
        "CREATE ROLE alice LOGIN IN ROLE team",
        "CREATE ROLE bob LOGIN IN ROLE team",
        "CREATE ROLE carol LOGIN",
        "CREATE DATABASE app",
    ]);
    cluster
}

fn one_desk() -> String {
    set_label("ROLE alice", r#"{"max": 1, "count": "addresses"}"#)
}

fn message(target: &Target) -> String {
    let refusal = refused(target);
    assert_eq!(refusal.sqlstate(), "53300", "{refusal:?}");
    refusal.message().to_string()
}

/// Whether `explain_login` says that such a login fits; none: over the socket.
fn fits(session: &mut Session, role: &str, database: &str, address: Option<&str>) -> bool {
    let address = address.map_or("NULL".to_string(), |address| format!("'{address}'"));
    let sql = format!(
        "SELECT coalesce(bool_and(fits), true) FROM session_limit.explain_login('{role}', '{database}', {address})"
    );
    session.value(&sql) == "t"
}

const TOO_MANY_DESKS: &str = r#"too many client addresses for role "alice""#;

fn one_desk_with_any_number_of_windows(server: &Server) {
    let cluster = start(server, &[AT_ONCE]);
    cluster.sql(&[&one_desk()]);
    let mut superuser = cluster.superuser();
    let [here, there] = [HERE, THERE].map(|address| cluster.login_from("alice", address));
    let socket = cluster.login_of("alice");
    for (first, others) in [(&here, [&there, &socket]), (&socket, [&here, &there])] {
        assert!(fits(&mut superuser, "alice", "app", Some(THERE)));
        let windows = [
            admitted(first),
            admitted(first),
            admitted(&first.clone().to("app")),
        ];
        for other in others {
            assert_eq!(message(other), TOO_MANY_DESKS);
        }
        let at_socket = std::ptr::eq(first, &socket);
        assert!(!fits(&mut superuser, "alice", "app", Some(THERE)));
        assert_eq!(fits(&mut superuser, "alice", "app", Some(HERE)), !at_socket);
        assert_eq!(fits(&mut superuser, "alice", "app", None), at_socket);
        drop(windows);
        cluster.wait_until_gone("alice");
    }
    // For others, too: each role, in one database, from a network.
    cluster.sql(&["SECURITY LABEL FOR session_limit ON ROLE alice IS NULL"]);
    let limit = r#"{"max": 1, "per": ["role", "database"], "count": "addresses", "network": "127.0.0.0/8"}"#;
    cluster.set(&[("session_limit.cluster_limits", limit)]);
    let _alices = [
        admitted(&here),
        admitted(&socket),
        admitted(&there.to("app")),
    ];
    assert!(
        message(&cluster.login_from("alice", THERE))
            .ends_with(r#"in database "postgres" from network 127.0.0.0/8"#)
    );
    admitted(&cluster.login_from("bob", THERE)).end();
    // All members together.
    cluster.set(&[("session_limit.cluster_limits", "")]);
    cluster.sql(&[&set_label(
        "ROLE team",
        r#"{"max": 3, "per": "group", "count": "addresses"}"#,
    )]);
    let elsewhere = cluster.login_from("bob", ELSEWHERE);
    assert_eq!(
        message(&elsewhere),
        r#"too many client addresses for members of role "team""#
    );
    admitted(&cluster.login_from("bob", THERE)).end();
}

fn so_many_users(server: &Server) {
    let cluster = start(server, &[AT_ONCE]);
    let mut superuser = cluster.superuser();
    let two = r#"{"max": 2, "per": "cluster", "network": "127.0.0.0/8", "count": "roles"}"#;
    cluster.set(&[("session_limit.cluster_limits", two)]);
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|role| cluster.login_from(role, HERE));
    let (first, _second) = (admitted(&alice), admitted(&alice));
    let bobs = admitted(&bob);
    assert_eq!(message(&carol), "too many users from network 127.0.0.0/8");
    assert!(!fits(&mut superuser, "carol", "app", Some(HERE)));
    assert!(fits(&mut superuser, "bob", "app", Some(HERE)));
    admitted(&cluster.login_from("bob", THERE)).end();
    // Alice has another session, bob has none.
    first.end();
    assert_eq!(message(&carol), "too many users from network 127.0.0.0/8");
    bobs.end();
    wait_for("a place", || carol.login().ok()).end();
    cluster.set(&[("session_limit.cluster_limits", "")]);
    cluster.sql(&[&set_label(
        "DATABASE app",
        r#"{"max": 1, "count": "roles"}"#,
    )]);
    let _in_app = admitted(&alice.clone().to("app"));
    assert_eq!(
        message(&cluster.login_of("bob").to("app")),
        r#"too many users for database "app""#
    );
    admitted(&cluster.login_of("alice").to("app")).end();
    admitted(&cluster.login_of("bob")).end();
    // Nobody is replaced.
    let replaces = set_label(
        "DATABASE app",
        r#"{"max": 1, "count": "roles", "on_excess": "replace_oldest"}"#,
    );
    let error = superuser.try_query(&replaces).expect_err("an error");
    assert_eq!(error.sqlstate(), "22023");
    assert!(
        error.detail().contains("only \"refuse\" is allowed"),
        "{error:?}"
    );
    cluster.set(&[("session_limit.on_excess", "replace_oldest"), ANY_AGE]);
    assert_eq!(
        message(&cluster.login_of("bob").to("app")),
        r#"too many users for database "app""#
    );
}

fn a_refusal_says_what_is_in_the_way(server: &Server) {
    let cluster = start(server, &[AT_ONCE]);
    cluster.sql(&[
        &one_desk(),
        &set_label("DATABASE app", r#"{"max": 1, "count": "roles"}"#),
    ]);
    let windows = [
        admitted(&cluster.login_from("alice", HERE)),
        admitted(&cluster.login_from("alice", HERE).to("app")),
    ];
    let refusal = refused(&cluster.login_from("alice", THERE));
    let detail = refusal.detail();
    let [one, two] = windows.each_ref().map(|window| window.pid);
    assert!(detail.starts_with(&format!("The limit is 1 client address (label on role alice); 1 is in use, with 2 sessions of this role: pid {one} from 127.0.0.1 since ")), "{detail}");
    assert!(
        detail.contains(&format!(", pid {two} from 127.0.0.1 since ")),
        "{detail}"
    );
    assert!(
        refusal
            .hint()
            .starts_with("Close all sessions from one of these addresses")
    );
    let refusal = refused(&cluster.login_of("bob").to("app"));
    assert_eq!(
        refusal.detail(),
        "The limit is 1 user (label on database app); 1 is in use."
    );
}

fn whoever_changes_desks_takes_the_place_along(server: &Server) {
    let oldest = ("session_limit.on_excess", "replace_oldest");
    let cluster = start(server, &[AT_ONCE, ANY_AGE, oldest]);
    cluster.sql(&[&set_label(
        "ROLE alice",
        r#"{"max": 2, "count": "addresses"}"#,
    )]);
    let (here, there) = (
        cluster.login_from("alice", HERE),
        cluster.login_from("alice", THERE),
    );
    let mut first = [admitted(&here)];
    let mut second = [admitted(&there), admitted(&there)];
    let mut windows = [admitted(&here), admitted(&here)];
    // HERE came first, though two of its windows are the latest.
    let mut third = admitted(&cluster.login_from("alice", ELSEWHERE));
    for window in first.iter_mut().chain(&mut windows) {
        assert!(told(window).detail().ends_with("from 127.0.0.3."));
    }
    assert!(second.iter_mut().all(Session::is_alive) && third.is_alive());
    let _over_the_socket = admitted(&cluster.login_of("alice"));
    for window in &mut second {
        assert!(told(window).detail().ends_with("from a local socket."));
    }
    assert!(third.is_alive());
}

fn a_place_is_replaced_as_a_whole_or_not(server: &Server) {
    let idle = ("session_limit.replace_idle_after", "0");
    let cluster = start(server, &[AT_ONCE, idle]);
    let label = |policy| {
        set_label(
            "ROLE alice",
            &format!(r#"{{"max": 1, "count": "addresses", "on_excess": "{policy}"}}"#),
        )
    };
    cluster.sql(&[&label("replace_oldest")]);
    let (here, there) = (
        cluster.login_from("alice", HERE),
        cluster.login_from("alice", THERE),
    );
    let mut windows = [admitted(&here), admitted(&here), admitted(&here)];
    cluster.set(&[("session_limit.replace_min_age", "1h")]);
    assert_eq!(message(&there), TOO_MANY_DESKS);
    cluster.set(&[ANY_AGE]);
    // One of them is at work.
    cluster.sql(&[&label("replace_idle")]);
    windows[1].query("BEGIN");
    let refusal = refused(&there);
    assert!(
        refusal
            .detail()
            .ends_with("None of these sessions may be replaced now.")
    );
    assert!(windows.iter_mut().all(Session::is_alive));
    windows[1].query("COMMIT");
    let mut moved = wait_for("all to be idle", || there.login().ok());
    for window in &mut windows {
        told(window);
    }
    // Whoever is there already replaces nobody.
    let _another = admitted(&there);
    assert!(moved.is_alive());
    // Of an address from which somebody else comes nobody makes room.
    cluster.sql(&[
        "SECURITY LABEL FOR session_limit ON ROLE alice IS NULL",
        &set_label(
            "ROLE team",
            r#"{"max": 1, "per": "group", "count": "addresses", "on_excess": "replace_oldest"}"#,
        ),
    ]);
    let _bobs = admitted(&cluster.login_from("bob", THERE));
    assert_eq!(
        message(&here),
        r#"too many client addresses for members of role "team""#
    );
    assert!(moved.is_alive());
}

/// Two of three have ended by then.
fn a_place_with_a_session_that_stays(server: &Server) {
    let oldest = ("session_limit.on_excess", "replace_oldest");
    let cluster = start(server, &[AT_ONCE, ANY_AGE, oldest]);
    cluster.sql(&[&one_desk()]);
    let (here, there) = (
        cluster.login_from("alice", HERE),
        cluster.login_from("alice", THERE),
    );
    let stopped = admitted(&here);
    let mut windows = [admitted(&here), admitted(&here)];
    stop(process(&stopped));
    let mut connection = there.connect();
    connection.send_startup(&there);
    for window in &mut windows {
        let end = wait_for("the end", || window.try_query("SELECT 1").err());
        assert!(
            end.detail().contains("was replaced by a newer session"),
            "{end:?}"
        );
    }
    // As long as it is open who has the place, nobody else gets in, from neither address.
    cluster.set(&[("session_limit.on_excess", "refuse")]);
    for login in [&here, &there, &cluster.login_of("alice")] {
        assert_eq!(message(login), TOO_MANY_DESKS);
    }
    let refusal = connection.outcome().err().expect("it stays");
    let stays = format!(
        "The session of pid {} was told to end for this one, and has not ended.",
        stopped.pid
    );
    assert!(refusal.detail().ends_with(&stays), "{refusal:?}");
    // The place is the old address's again.
    wait_for("the place to fall back", || here.login().ok()).end();
    assert_eq!(message(&there), TOO_MANY_DESKS);
    go_on(process(&stopped));
    wait_for("room", || there.login().ok()).end();
}

/// The first of them ends the sessions at the old desk; the others wait for that, and end nobody.
fn all_windows_at_a_new_desk_get_in(server: &Server) {
    let oldest = ("session_limit.on_excess", "replace_oldest");
    let cluster = start(server, &[ANY_AGE, oldest]);
    cluster.sql(&[&one_desk()]);
    let (here, there) = (
        cluster.login_from("alice", HERE),
        cluster.login_from("alice", THERE),
    );
    for _ in 0..5 {
        let old = [admitted(&here), admitted(&here), admitted(&here)];
        let windows: Vec<_> = there
            .storm(4)
            .into_iter()
            .collect::<Result<_, _>>()
            .expect("in");
        for mut session in old {
            wait_for("the end", || session.try_query("SELECT 1").err());
        }
        assert_eq!(windows.len(), 4);
        windows
            .into_iter()
            .for_each(|mut window| assert!(window.is_alive()));
        cluster.wait_until_gone("alice");
    }
}

/// Sends a login that must wait, and returns when it does.
fn waits(superuser: &mut Session, target: &Target, number: usize) -> Connection {
    let mut connection = target.connect();
    connection.send_startup(target);
    let waiting = "SELECT waiting FROM session_limit.status";
    wait_until(superuser, waiting, &number.to_string());
    connection
}

fn whoever_waits_needs_a_place(server: &Server) {
    let cluster = start(
        server,
        &[
            ("session_limit.max_wait", "10min"),
            ("authentication_timeout", "10min"),
        ],
    );
    let two = r#"{"max": 2, "per": "cluster", "network": "127.0.0.0/8", "count": "roles"}"#;
    cluster.set(&[("session_limit.cluster_limits", two)]);
    cluster.sql(&["CREATE ROLE dave LOGIN"]);
    let mut superuser = cluster.superuser();
    let [alice, bob, carol, dave] =
        ["alice", "bob", "carol", "dave"].map(|role| cluster.login_from(role, HERE));
    let (alices, _bobs) = (admitted(&alice), admitted(&bob));
    let first = waits(&mut superuser, &carol, 1);
    let second = waits(&mut superuser, &dave, 2);
    let third = waits(&mut superuser, &carol, 3);
    // Whoever is counted already takes no place from those who wait.
    let alices_second = admitted(&alice);
    alices.end();
    wait_until(
        &mut superuser,
        "SELECT waiting FROM session_limit.status",
        "3",
    );
    alices_second.end();
    // Carol gets the place, and so both of her logins do.
    let carols = [first, third].map(|waiter| waiter.outcome().expect("a place"));
    wait_until(
        &mut superuser,
        "SELECT waiting FROM session_limit.status",
        "1",
    );
    assert!(!fits(&mut superuser, "alice", "app", Some(HERE)));
    assert!(fits(&mut superuser, "carol", "app", Some(HERE)));
    drop(carols);
    second.outcome().expect("a place").end();
}

fn members_join_and_leave(server: &Server) {
    let cluster = start(server, &[AT_ONCE]);
    cluster.sql(&[&set_label(
        "ROLE team",
        r#"{"max": 1, "per": "group", "count": "roles"}"#,
    )]);
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|role| cluster.login_of(role));
    let (_alices, carols) = (admitted(&alice), admitted(&carol));
    let too_many = r#"too many users for members of role "team""#;
    assert_eq!(message(&bob), too_many);
    cluster.sql(&["REVOKE team FROM bob"]);
    let bobs = admitted(&bob);
    cluster.sql(&["GRANT team TO carol"]);
    // She came before she was a member, and counts now, so that her next login fits.
    admitted(&carol).end();
    admitted(&alice).end();
    cluster.sql(&["GRANT team TO bob"]);
    admitted(&bob).end();
    carols.end();
    bobs.end();
    cluster.wait_until_gone("bob");
    cluster.wait_until_gone("carol");
    assert_eq!(message(&bob), too_many);
    assert_eq!(message(&carol), too_many);
    admitted(&alice).end();
}

fn a_dry_run(server: &Server) {
    let cluster = start(server, &[AT_ONCE]);
    let tried = r#"{"max": 1, "count": "addresses", "enforcement": "log"}"#;
    cluster.sql(&[&set_label("ROLE alice", tried)]);
    let _first = admitted(&cluster.login_from("alice", HERE));
    let _second = admitted(&cluster.login_from("alice", HERE));
    assert!(!cluster.log().contains("would_refuse"));
    let third = admitted(&cluster.login_from("alice", THERE));
    let events = crate::events::logged_as(&cluster, "would_refuse");
    let expected = json!({
        "event": "would_refuse", "role": "alice", "database": "postgres", "client_addr": THERE, "pid": third.pid,
        "source": "label on role alice", "per": "role", "count": "addresses", "subject": "alice", "in_use": 1, "max": 1,
    });
    assert_eq!(events, [expected]);
}

fn a_lowered_count_ends_whole_places(server: &Server) {
    let settings = [
        ("session_limit.sweep", "terminate"),
        ("session_limit.sweep_interval", "1s"),
    ];
    let cluster = start(server, &settings);
    let [here, there] = [HERE, THERE].map(|address| cluster.login_from("alice", address));
    let mut gone = [admitted(&here), admitted(&here)];
    let mut stay = [admitted(&there), admitted(&there)];
    stay[1].query("BEGIN");
    cluster.sql(&[&one_desk()]);
    for session in &mut gone {
        let detail = "There are 2 client addresses under a limit of 1 (label on role alice).";
        assert_eq!(
            wait_for("the sweep", || session.try_query("SELECT 1").err()).detail(),
            detail
        );
    }
    assert!(stay.iter_mut().all(Session::is_alive));
    let swept = crate::events::logged_as(&cluster, "swept");
    assert_eq!(swept.len(), 2, "{swept:?}");
    assert_eq!(
        (&swept[0]["count"], &swept[0]["in_use"]),
        (&json!("addresses"), &json!(2))
    );
}

fn views(server: &Server) {
    let cluster = start(server, &[AT_ONCE]);
    let mut superuser = cluster.superuser();
    let mut label = |call: &str| {
        let label = superuser.value(&format!("SELECT session_limit.{call}"));
        serde_json::from_str::<serde_json::Value>(&label).expect("JSON")
    };
    let one = json!({"max": 1, "count": "addresses"});
    let set = "set_limit(role => 'alice', max => 1, count => 'addresses')";
    assert_eq!(label(set), json!({"limits": [one]}));
    // With another count it is another limit.
    let both = json!({"limits": [one, {"max": 7}]});
    assert_eq!(label("set_limit(role => 'alice', max => 7)"), both);
    let limits = "SELECT string_agg(concat_ws(' ', per, count, max), ', ' ORDER BY max) FROM session_limit.limits";
    assert_eq!(superuser.value(limits), "role addresses 1, role sessions 7");
    let _windows = [HERE, HERE, HERE].map(|here| admitted(&cluster.login_from("alice", here)));
    let usage = "SELECT string_agg(concat_ws(' ', count, in_use, max, free), ', ' ORDER BY max) FROM session_limit.usage";
    assert_eq!(superuser.value(usage), "addresses 1 1 0, sessions 3 7 4");
    let explained = "SELECT string_agg(concat_ws(' ', count, in_use, fits), ', ' ORDER BY max) FROM session_limit.explain_login('alice', 'app', '127.0.0.2')";
    assert_eq!(superuser.value(explained), "addresses 1 f, sessions 3 t");
    assert_eq!(
        superuser.value("SELECT max FROM session_limit.role_limits WHERE usename = 'alice'"),
        "7"
    );
    superuser.query("SELECT session_limit.clear_limit(role => 'alice', count => 'addresses')");
    assert_eq!(superuser.value(limits), "role sessions 7");
    // From how many addresses others come is not told.
    let team = r#"{"limits": [{"max": 5, "per": "group", "count": "addresses"},
        {"max": 6, "per": "group", "count": "roles"}]}"#;
    superuser.query(&set_label("ROLE team", team));
    let mut bob = admitted(&cluster.login_of("bob"));
    let usage = "SELECT string_agg(concat_ws(' ', max, in_use, fits), ', ' ORDER BY max) FROM (
            SELECT max, in_use, NULL::boolean AS fits FROM session_limit.usage
            UNION ALL SELECT max + 10, in_use, fits FROM session_limit.explain_login('bob', 'app', '127.0.0.1')
        ) AS both_of_them";
    assert_eq!(bob.value(usage), "5, 6 2, 15, 16 2");
    let error = superuser
        .try_query("SELECT session_limit.set_limit(role => 'alice', max => 1, count => 'hosts')");
    let error = error.expect_err("no such count");
    assert_eq!(error.sqlstate(), "22023");
    assert!(
        error.detail().contains(r#"count": unknown value "hosts""#),
        "{error:?}"
    );
}

/// A limit of the storm: which logins it covers, as whose count, what it counts, and its `max`.
type Kind = (
    fn(&Target) -> Option<String>,
    fn(&Target) -> Option<String>,
    usize,
);

fn place(target: &Target) -> String {
    format!("{:?}", target.endpoint)
}

fn in_team(target: &Target) -> bool {
    ["r0", "r1", "r2", "r3"].contains(&target.user.as_str())
}

/// 4 of the 8 roles are in the team.
const KINDS: [Kind; 6] = [
    (|it| Some(it.user.clone()), |_| None, 4),
    (
        |it| Some(format!("{} {:?}", place(it), it.database)),
        |_| None,
        12,
    ),
    (
        |it| Some(format!("{} {:?}", it.user, it.database)),
        |_| None,
        3,
    ),
    (|it| Some(it.user.clone()), |it| Some(place(it)), 2),
    (|_| Some(String::new()), |it| Some(it.user.clone()), 6),
    (
        |it| in_team(it).then(String::new),
        |it| Some(it.user.clone()),
        3,
    ),
];

/// Whoever is in stays, so that at the end each refused login must find a limit that is full for it.
fn storms_with_old_and_new_kinds(server: &Server) {
    let cluster = Cluster::start(server, &[("max_connections", "150")]);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE team",
        "CREATE DATABASE app",
        &set_label(
            "ROLE team",
            r#"{"max": 3, "per": "group", "count": "roles"}"#,
        ),
    ]);
    for role in 0..8 {
        let team = if role < 4 { "IN ROLE team" } else { "" };
        cluster.sql(&[&format!("CREATE ROLE r{role} LOGIN {team}")]);
    }
    let limits = r#"{"limits": [{"max": 4, "per": "role"}, {"max": 12, "per": ["database", "address"]},
        {"max": 3, "per": ["role", "database"]}, {"max": 2, "per": "role", "count": "addresses"},
        {"max": 6, "per": "cluster", "network": "127.0.0.0/8", "count": "roles"}]}"#;
    let (mut in_all, mut refused_in_all) = (0, 0);
    for (round, max_wait) in (0..20).zip(["0", "100ms"].into_iter().cycle()) {
        cluster.set(&[
            ("session_limit.cluster_limits", &limits.replace('\n', " ")),
            ("session_limit.max_wait", max_wait),
        ]);
        let login = |login: usize| {
            let number = (login * 7 + round) % 64;
            let address = format!("127.0.0.{}", 1 + number / 8 % 4);
            let target = cluster.login_from(&format!("r{}", number % 8), &address);
            target.to(["postgres", "app"][number / 32])
        };
        let targets: Vec<Target> = (0..64).map(login).collect();
        let sessions = crate::storm::storm(&targets);
        let all = || targets.iter().zip(&sessions);
        let admitted: Vec<&Target> = all().filter(|it| it.1.is_some()).map(|it| it.0).collect();
        for (target, session) in all() {
            let mut full = false;
            for (whose, what, max) in KINDS.iter().filter(|(whose, ..)| whose(target).is_some()) {
                let covered = admitted.iter().filter(|it| whose(it) == whose(target));
                let counted = covered.enumerate();
                let counted = counted.map(|(number, it)| what(it).unwrap_or(number.to_string()));
                let counted: BTreeSet<String> = counted.collect();
                assert!(
                    counted.len() <= *max,
                    "round {round}: {target:?} {counted:?}"
                );
                let is_in = what(target).is_some_and(|it| counted.contains(&it));
                full |= counted.len() == *max && !is_in;
            }
            assert!(
                session.is_some() || full,
                "round {round}: refused, with room: {target:?}"
            );
        }
        in_all += admitted.len();
        refused_in_all += targets.len() - admitted.len();
        drop(sessions);
        (0..8).for_each(|role| cluster.wait_until_gone(&format!("r{role}")));
    }
    assert!(
        in_all > 200 && refused_in_all > 200,
        "{in_all} {refused_in_all}"
    );
}
