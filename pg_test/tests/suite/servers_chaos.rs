//! What is promised of limits across servers when servers cannot reach etcd: a short chaos run, and the bound of each fault.

use crate::events::logged_as;
use crate::scene::{admitted, refused, set_label};
use pg_test::chaos_servers;
use pg_test::client::{Session, Target};
use pg_test::fleet::{Fleet, Servers};
use pg_test::link::{Flow, Link};
use pg_test::server::Server;
use pg_test::{say, wait_for};
use std::thread::sleep;
use std::time::{Duration, Instant};

tests![
    no_limit_is_exceeded_whatever_fails,
    a_server_that_is_cut_off_has_a_limit_of_its_own_with_local,
    a_server_that_is_cut_off_lets_nobody_in_with_refuse,
    a_server_that_is_cut_off_for_a_moment_keeps_its_places,
    nobody_is_taken_for_gone_because_etcd_was_down,
    a_request_that_comes_late_takes_no_place_for_good,
    sessions_of_a_standby_that_is_promoted_still_count,
];

/// The plan is the same each time; who comes first is not.
const SEED: u64 = 1;

fn no_limit_is_exceeded_whatever_fails(server: &Server) {
    let outcome = chaos_servers::run(server, SEED, Duration::from_secs(10));
    let Some(outcome) = unless_skipped(outcome) else {
        return;
    };
    assert_eq!(outcome.violations, 0, "each was printed");
    assert!(outcome.counts.are_enough(), "{:?}", outcome.counts);
}

/// Those of one limit on two servers, the first of which can be cut off.
struct Stage {
    fleet: Fleet,
    links: Vec<Link>,
    one: Target,
    other: Target,
}

fn stage(
    server: &Server,
    servers: Servers,
    max: usize,
    settings: &[(&str, &str)],
) -> Option<Stage> {
    let mut all = vec![("session_limit.etcd_timeout", "300ms")];
    all.extend(settings);
    let (fleet, links) = unless_skipped(Fleet::try_start_linked(server, 1, servers, &all))?;
    let label = format!(r#"{{"max": {max}, "across": "servers"}}"#);
    fleet.sql(&["CREATE ROLE app LOGIN", &set_label("ROLE app", &label)]);
    let login = |index: usize| fleet.clusters[index].login_of("app");
    let (one, other) = (login(0), login(1));
    // Labels are replicated a moment later, and servers count together when they have joined.
    for target in [&other, &one] {
        wait_for("the limit", || {
            let sessions: Vec<_> = (0..=max).map_while(|_| target.login().ok()).collect();
            let number = sessions.len();
            sessions.into_iter().for_each(Session::end);
            (number == max).then_some(())
        });
    }
    Some(Stage {
        fleet,
        links,
        one,
        other,
    })
}

/// None, and a word, where there is no etcd to be had.
fn unless_skipped<T>(result: Result<T, String>) -> Option<T> {
    result
        .inspect_err(|why| say(format_args!("skipped, for there is no etcd: {why}")))
        .ok()
}

impl Stage {
    fn is_full(&self) {
        for target in [&self.one, &self.other] {
            assert_eq!(refused(target).sqlstate(), "53300");
        }
    }

    fn events(&self, index: usize, event: &str) -> usize {
        logged_as(&self.fleet.clusters[index], event).len()
    }
}

fn in_soon(target: &Target) -> Session {
    wait_for("a place", || target.login().ok())
}

fn a_server_that_is_cut_off_has_a_limit_of_its_own_with_local(server: &Server) {
    let settings = [("session_limit.server_timeout", "3s")];
    let Some(stage) = stage(server, Servers::Primaries(2), 2, &settings) else {
        return;
    };
    let mut here = vec![in_soon(&stage.one), in_soon(&stage.one)];
    stage.is_full();
    stage.links[0].set(Flow::Closed);
    // On a busy machine the other could be out of touch for a moment, and let in alone.
    wait_for("the server to be gone", || {
        (stage.events(1, "server_gone") > 0).then_some(())
    });
    let mut there = vec![in_soon(&stage.other), in_soon(&stage.other)];
    // Twice as many as the limit, and not one more.
    stage.is_full();
    here.remove(0).end();
    here.push(admitted(&stage.one));
    stage.is_full();
    stage.links[0].set(Flow::Passes);
    wait_for("to be back", || {
        let rejoined = logged_as(&stage.fleet.clusters[0], "rejoined");
        rejoined.first().map(|event| assert_eq!(event["places"], 2))
    });
    stage.fleet.clusters[1].sql(&["CREATE EXTENSION session_limit"]);
    let mut superuser = stage.fleet.clusters[1].superuser();
    wait_for("the other one to have heard of that", || {
        stage.is_full();
        let elsewhere = "SELECT elsewhere FROM session_limit.usage WHERE rolname = 'app'";
        (superuser.value(elsewhere) == "2").then_some(())
    });
    there.remove(0).end();
    stage.is_full();
    here.remove(0).end();
    stage.is_full();
    there.remove(0).end();
    let _second = in_soon(&stage.other);
    stage.is_full();
}

fn a_server_that_is_cut_off_lets_nobody_in_with_refuse(server: &Server) {
    let settings = [
        ("session_limit.server_timeout", "3s"),
        ("session_limit.on_unreachable", "refuse"),
    ];
    let Some(stage) = stage(server, Servers::Primaries(2), 2, &settings) else {
        return;
    };
    let here = in_soon(&stage.one);
    stage.links[0].set(Flow::Closed);
    let there = [in_soon(&stage.other), in_soon(&stage.other)];
    // As many as the limit, and the one that was in.
    assert_eq!(refused(&stage.other).sqlstate(), "53300");
    assert_eq!(refused(&stage.one).sqlstate(), "57P03");
    here.end();
    assert_eq!(refused(&stage.one).sqlstate(), "57P03");
    stage.links[0].set(Flow::Passes);
    wait_for("an answer of etcd", || {
        let refusal = refused(&stage.one);
        (refusal.sqlstate() == "53300").then_some(())
    });
    there.into_iter().for_each(Session::end);
    let _sessions = [in_soon(&stage.one), in_soon(&stage.one)];
    stage.is_full();
}

fn a_server_that_is_cut_off_for_a_moment_keeps_its_places(server: &Server) {
    let settings = [
        ("session_limit.server_timeout", "5min"),
        ("session_limit.on_unreachable", "refuse"),
    ];
    let Some(stage) = stage(server, Servers::Primaries(2), 2, &settings) else {
        return;
    };
    let here = in_soon(&stage.one);
    for flow in [Flow::Closed, Flow::RequestsWait, Flow::AnswersWait] {
        // The place that is free is not kept by the one that is cut off.
        in_soon(&stage.other).end();
        stage.links[0].set(flow);
        let there = in_soon(&stage.other);
        assert_eq!(refused(&stage.other).sqlstate(), "53300");
        let told = refused(&stage.one);
        assert!(["53300", "57P03"].contains(&told.sqlstate()), "{told:?}");
        stage.links[0].set(Flow::Passes);
        wait_for("an answer of etcd", || {
            (refused(&stage.one).sqlstate() == "53300").then_some(())
        });
        assert_eq!(refused(&stage.other).sqlstate(), "53300");
        there.end();
    }
    here.end();
    let _sessions = [in_soon(&stage.one), in_soon(&stage.other)];
    stage.is_full();
    assert_eq!(stage.events(0, "rejoined"), 0);
    assert_eq!(stage.events(1, "server_gone"), 0);
}

/// Whoever reaches etcd first has heard nothing of the others for long, as nobody could say anything.
fn nobody_is_taken_for_gone_because_etcd_was_down(server: &Server) {
    let settings = [
        ("session_limit.server_timeout", "3s"),
        ("session_limit.on_unreachable", "refuse"),
    ];
    let Some(mut stage) = stage(server, Servers::Primaries(2), 2, &settings) else {
        return;
    };
    let _sessions = [in_soon(&stage.one), in_soon(&stage.one)];
    // The other one is sure to be first.
    stage.links[0].set(Flow::Closed);
    stage.fleet.etcd.kill(0);
    sleep(Duration::from_secs(4));
    stage.fleet.etcd.restart(&[0]);
    wait_for("an answer of etcd", || {
        (refused(&stage.other).sqlstate() == "53300").then_some(())
    });
    stage.links[0].set(Flow::Passes);
    let back = Instant::now();
    while back.elapsed() < Duration::from_secs(3) {
        refused(&stage.other);
    }
    wait_for("an answer of etcd", || {
        (refused(&stage.one).sqlstate() == "53300").then_some(())
    });
    assert_eq!(stage.events(1, "server_gone"), 0);
}

/// A request may arrive when who sent it has given up, and looked whether it was done.
fn a_request_that_comes_late_takes_no_place_for_good(server: &Server) {
    let settings = [
        ("session_limit.server_timeout", "5min"),
        ("session_limit.on_unreachable", "refuse"),
    ];
    let Some(stage) = stage(server, Servers::Primaries(2), 1, &settings) else {
        return;
    };
    for _ in 0..3 {
        in_soon(&stage.other).end();
        stage.links[0].set(Flow::RequestsWait);
        assert_eq!(refused(&stage.one).sqlstate(), "57P03");
        stage.links[0].set(Flow::Passes);
        sleep(Duration::from_secs(1));
    }
    in_soon(&stage.other).end();
}

fn sessions_of_a_standby_that_is_promoted_still_count(server: &Server) {
    let Some(stage) = stage(server, Servers::Standbys(1), 2, &[]) else {
        return;
    };
    let sessions = [in_soon(&stage.one), in_soon(&stage.other)];
    stage.is_full();
    stage.fleet.clusters[1].sql(&["SELECT pg_promote()"]);
    stage.is_full();
    let [here, mut there] = sessions;
    assert!(there.is_alive());
    there.end();
    let again = in_soon(&stage.one);
    stage.is_full();
    here.end();
    again.end();
    let _sessions = [in_soon(&stage.other), in_soon(&stage.other)];
    stage.is_full();
    assert_eq!(stage.events(1, "rejoined"), 0);
}
