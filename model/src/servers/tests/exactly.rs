//! What a login meets when all is well, step by step.

use super::fake_etcd::Ignores;
use super::world::{ANSWER_WITHIN, TIMEOUT, World};
use crate::limit::tests::{in_database, of_role};
use crate::servers::counter::Counter;
use crate::servers::counter::tests::by_oid;
use crate::servers::place::{OnUnreachable, Wanted};
use crate::servers::transaction::Row;
use crate::session::Claim;
use crate::verdict::{Elsewhere, Verdict};
use std::time::Duration;

const ALICE: u32 = 1;
const BOB: u32 = 2;
const APP: u32 = super::world::APP;
const LINGER: u64 = 60_000;

/// Servers that have joined, under limits of so many sessions of each role, and so many in the database.
fn joined(servers: usize, of_each_role: u32, in_all: u32) -> World {
    let mut world = World::new(servers, of_each_role, in_all, Ignores::Nothing);
    world.rest();
    world
}

fn is_refused(verdict: Option<Verdict>) -> bool {
    matches!(verdict, Some(Verdict::Refused(_)))
}

fn is_waiting(verdict: Option<Verdict>) -> bool {
    matches!(verdict, Some(Verdict::Waiting))
}

#[test]
fn a_login_waits_for_the_answer_and_is_in_after_one_transaction() {
    let mut world = joined(2, 1, 9);
    assert!(is_waiting(world.log_in(0, 0, ALICE)));
    let before = world.etcd.done;
    world.rest();
    assert_eq!(world.etcd.done, before + 1);
    assert_eq!(world.sessions(0, of_role(ALICE)), 1);
    assert_eq!(world.held(0, of_role(ALICE)), Some((1, 1)));
}

#[test]
fn whoever_is_in_elsewhere_counts_until_its_session_ends() {
    let mut world = joined(2, 1, 9);
    world.log_in_and_rest(0, 0, ALICE);
    world.log_in(1, 0, ALICE);
    let verdicts = world.rest();
    assert!(
        matches!(verdicts[..], [(1, 0, Verdict::Refused(_))]),
        "{verdicts:?}"
    );
    // Another role is not concerned.
    world.log_in_and_rest(1, 1, BOB);
    assert_eq!(world.sessions(1, of_role(BOB)), 1);
    world.log_out(0, 0);
    world.now += LINGER;
    world.rest();
    world.now += LINGER;
    world.rest();
    world.log_in_and_rest(1, 0, ALICE);
    assert_eq!(world.sessions(1, of_role(ALICE)), 1);
}

#[test]
fn a_login_over_a_limit_that_this_server_has_used_up_is_refused_at_once() {
    let mut world = joined(2, 1, 9);
    world.log_in_and_rest(0, 0, ALICE);
    assert!(is_refused(world.log_in(0, 1, ALICE)));
}

#[test]
fn a_place_is_kept_for_a_moment_and_costs_nothing_then() {
    let mut world = joined(2, 1, 9);
    world.log_in_and_rest(0, 0, ALICE);
    for _ in 0..10 {
        world.log_out(0, 0);
        world.now += 10_000;
        world.rest();
        let before = world.etcd.done;
        let verdict = world.log_in(0, 0, ALICE);
        assert!(matches!(verdict, Some(Verdict::Admitted(_))), "{verdict:?}");
        world.rest();
        assert_eq!(world.etcd.done, before);
    }
}

#[test]
fn a_burst_gets_its_places_in_one_transaction() {
    let mut world = joined(2, 5, 9);
    for slot in 0..7 {
        world.log_in(0, slot, ALICE);
    }
    let before = world.etcd.done;
    world.send(0);
    world.deliver(0, true);
    world.wake_all(0);
    assert_eq!(world.etcd.done, before + 1);
    assert_eq!(world.sessions(0, of_role(ALICE)), 5);
    world.rest();
    assert_eq!(world.servers[0].waiting.len(), 0, "two were refused");
}

#[test]
fn nobody_holds_a_place_under_one_limit_while_another_is_full() {
    let mut world = joined(2, 5, 1);
    world.log_in_and_rest(0, 0, ALICE);
    world.max_wait = Duration::from_secs(1);
    world.log_in_and_rest(1, 0, BOB);
    assert!(
        world.servers[1].waiting.contains_key(&0),
        "the database is full"
    );
    assert_eq!(world.held(1, of_role(BOB)).map_or(0, |held| held.0), 0);
}

#[test]
fn of_two_logins_that_need_both_places_one_goes_in() {
    for turn in 0..2 {
        let mut world = joined(2, 1, 1);
        // Each has asked before the other's transaction was done.
        world.log_in(0, 0, ALICE);
        world.log_in(1, 0, ALICE);
        world.send(turn);
        world.send(1 - turn);
        world.deliver(0, true);
        world.deliver(0, true);
        world.rest();
        let sessions = [0, 1].map(|index| world.sessions(index, in_database(APP)));
        assert_eq!(sessions[turn], 1, "{sessions:?}");
        assert_eq!(sessions[1 - turn], 0, "{sessions:?}");
    }
}

#[test]
fn a_waiter_gets_the_place_that_becomes_free_elsewhere() {
    let mut world = joined(2, 1, 9);
    world.log_in_and_rest(0, 0, ALICE);
    world.max_wait = Duration::from_secs(1);
    world.log_in_and_rest(1, 0, ALICE);
    assert!(world.servers[1].waiting.contains_key(&0));
    world.log_out(0, 0);
    // The other server knows of the wish only when it looks.
    for _ in 0..10 {
        world.now += 10_000;
        world.rest();
    }
    assert_eq!(world.sessions(1, of_role(ALICE)), 1);
}

#[test]
fn a_waiter_stands_in_line_under_one_limit_whatever_is_free_under_another() {
    let mut world = joined(2, 2, 1);
    world.log_in_and_rest(0, 0, ALICE);
    world.max_wait = Duration::from_millis(500);
    world.log_in_and_rest(1, 0, ALICE);
    world.log_out(0, 0);
    for _ in 0..10 {
        world.now += 10_000;
        world.rest();
    }
    assert_eq!(world.sessions(1, of_role(ALICE)), 1);
}

#[test]
fn until_the_first_answer_nobody_is_let_in_alone() {
    let mut world = World::new(1, 1, 9, Ignores::Nothing);
    world.on_unreachable = OnUnreachable::Local;
    assert!(is_waiting(world.log_in(0, 0, ALICE)));
    world.rest();
    assert_eq!(world.sessions(0, of_role(ALICE)), 1);
    assert_eq!(world.held(0, of_role(ALICE)), Some((1, 1)));
}

#[test]
fn without_etcd_a_limit_is_that_of_this_server_or_lets_nobody_in() {
    for (policy, sessions) in [(OnUnreachable::Local, 1), (OnUnreachable::Refuse, 0)] {
        let mut world = joined(1, 1, 9);
        world.on_unreachable = policy;
        world.log_in(0, 0, ALICE);
        world.send(0);
        world.letters.clear();
        world.time_out(0);
        world.wake_all(0);
        assert_eq!(world.sessions(0, of_role(ALICE)), sessions, "{policy:?}");
        // Nobody waits from now on.
        let second = world.log_in(0, 1, ALICE);
        assert!(is_refused(second), "{policy:?}");
        let other = world.log_in(0, 2, BOB);
        assert_eq!(is_refused(other), policy == OnUnreachable::Refuse);
    }
}

#[test]
fn a_place_that_is_held_serves_until_others_may_take_this_server_for_gone() {
    let mut world = joined(1, 1, 9);
    world.log_in_and_rest(0, 0, ALICE);
    world.log_out(0, 0);
    world.send(0);
    world.time_out(0);
    world.now += 2_000_000;
    world.send(0);
    world.time_out(0);
    let verdict = world.log_in(0, 0, ALICE);
    assert!(matches!(verdict, Some(Verdict::Admitted(_))), "{verdict:?}");
    world.log_out(0, 0);
    world.now += TIMEOUT.as_micros() as u64;
    assert!(is_refused(world.log_in(0, 0, ALICE)));
}

#[test]
fn a_login_waits_for_an_answer_no_longer_than_it_may() {
    let mut world = joined(1, 1, 9);
    assert!(is_waiting(world.log_in(0, 0, ALICE)));
    world.now += ANSWER_WITHIN.as_micros() as u64 - 1;
    assert!(is_waiting(world.wake(0, 0)));
    world.now += 1;
    assert!(is_refused(world.wake(0, 0)));
}

#[test]
fn the_places_of_a_server_that_is_gone_become_free() {
    let mut world = joined(2, 1, 9);
    world.log_in_and_rest(0, 0, ALICE);
    let member = world.servers.remove(0);
    drop(member);
    for _ in 0..11 {
        world.now += TIMEOUT.as_micros() as u64 / 10;
        world.rest();
    }
    world.log_in_and_rest(0, 0, ALICE);
    assert_eq!(world.sessions(0, of_role(ALICE)), 1);
}

#[test]
fn a_server_that_was_taken_for_gone_joins_again_with_its_sessions() {
    let mut world = joined(2, 1, 9);
    world.log_in_and_rest(0, 0, ALICE);
    world.cut_off(0);
    world.log_in_and_rest(1, 0, ALICE);
    assert_eq!(world.sessions(1, of_role(ALICE)), 1, "the place was free");
    world.time_out(0);
    world.rest();
    assert_eq!(
        world.held(0, of_role(ALICE)),
        Some((1, 1)),
        "one more than allowed"
    );
    // What it holds beyond the limit serves nobody again.
    world.log_out(0, 0);
    assert!(is_refused(world.log_in(0, 0, ALICE)));
    world.rest();
    assert_eq!(world.held(0, of_role(ALICE)).map_or(0, |held| held.1), 0);
    assert!(is_refused(world.log_in(1, 1, ALICE)));
}

/// More keys than are read at once, of counters that nobody looks at.
#[test]
fn what_servers_leave_that_are_gone_is_deleted() {
    let mut world = joined(3, 1, 9);
    world.log_in(0, 0, ALICE);
    world.log_in_and_rest(1, 0, BOB);
    let [gone, living] = [0, 1].map(|index| world.servers[index].protocol.id());
    let [gone, living] = [gone, living].map(|id| id.expect("a life").to_string());
    for role in 0..350 {
        for id in [&gone, &living] {
            let key = format!("/x/v1/c/role=r{role}/p/{id}");
            let row = Row {
                key: key.clone(),
                value: "1".to_string(),
                created: 1,
                modified: 1,
            };
            world.etcd.keys.insert(key, row);
        }
    }
    let of = |world: &World, id: &str| {
        let keys = world.etcd.range("/x/v1/c/");
        keys.filter(|row| row.key.ends_with(id)).count()
    };
    let kept = of(&world, &living);
    assert!(of(&world, &gone) >= 350 && kept >= 350);
    world.cut_off(0);
    assert_eq!(of(&world, &gone), 0);
    assert_eq!(of(&world, &living), kept);
}

/// Of two limits with the same counter one place is enough.
#[test]
fn a_session_that_two_limits_count_alike_has_one_place() {
    let mut world = joined(1, 2, 9);
    world.log_in_and_rest(0, 0, ALICE);
    let counter = Counter::of(of_role(ALICE), &by_oid);
    let wanted = [0, 1].map(|limit| Wanted::new(limit, counter, 2)).to_vec();
    let claim = Claim::new(100, ALICE);
    let mut table = world.servers[0].memory.table();
    table.adopt_all(&[(0, claim, wanted)]);
    world.rest();
    assert_eq!(world.held(0, of_role(ALICE)), Some((1, 1)));
}

/// The server owed its place to another, and nobody knew that it had not been given back.
#[test]
fn a_lowering_that_was_lost_is_repeated_while_others_wait_here() {
    let mut world = joined(2, 1, 9);
    world.max_wait = Duration::from_secs(60);
    world.log_in_and_rest(0, 0, ALICE);
    world.log_in_and_rest(1, 0, ALICE);
    world.log_in(0, 1, ALICE);
    world.now += 10_000;
    world.rest();
    world.log_out(0, 0);
    assert!(world.send(0));
    world.letters.clear();
    world.time_out(0);
    for _ in 0..100 {
        world.now += 10_000;
        world.rest();
    }
    let sessions = [0, 1].map(|index| world.sessions(index, of_role(ALICE)));
    assert_eq!(sessions, [0, 1]);
}

/// Without a place nothing can be had from etcd.
#[test]
fn a_limit_without_room_for_its_place_is_as_if_etcd_could_not_be_reached() {
    for (on_unreachable, lets_in) in [(OnUnreachable::Local, true), (OnUnreachable::Refuse, false)]
    {
        let mut world = joined(1, 2, 9);
        world.on_unreachable = on_unreachable;
        // As many counters as there is room for.
        let mut table = world.servers[0].memory.table();
        for number in 0..table.places.room() as u32 {
            let counter = Counter::of(of_role(1000 + number), &by_oid);
            assert!(table.places.find(&Wanted::new(0, counter, 1)).is_some());
        }
        let verdict = world.log_in(0, 0, ALICE);
        assert_eq!(matches!(verdict, Some(Verdict::Admitted(_))), lets_in);
        if let Some(Verdict::Refused(excess)) = verdict {
            assert_eq!(excess.elsewhere, Some(Elsewhere::Unreachable));
        }
    }
}

/// The other server hears that one has more sessions than the limit allows, though it has nothing to ask.
#[test]
fn a_server_hears_of_sessions_that_were_let_in_without_etcd() {
    let mut world = joined(2, 2, 9);
    world.on_unreachable = OnUnreachable::Local;
    world.log_in_and_rest(0, 0, ALICE);
    world.log_in_and_rest(1, 0, ALICE);
    // For a moment one server is alone, and lets in one more.
    world.log_in(0, 1, ALICE);
    world.send(0);
    world.letters.clear();
    world.time_out(0);
    world.wake_all(0);
    assert_eq!(world.sessions(0, of_role(ALICE)), 2);
    world.rest();
    world.now += TIMEOUT.as_micros() as u64 / 4;
    world.rest();
    world.log_out(1, 0);
    let verdict = world.log_in(1, 0, ALICE);
    assert!(
        !matches!(verdict, Some(Verdict::Admitted(_))),
        "{verdict:?}"
    );
}

/// What the other server holds serves nobody as soon as it knows that another has come back with sessions.
#[test]
fn nobody_is_let_in_while_a_server_that_came_back_makes_it_too_many() {
    let mut world = joined(2, 1, 9);
    world.log_in_and_rest(0, 0, ALICE);
    world.cut_off(0);
    world.log_in_and_rest(1, 0, ALICE);
    world.time_out(0);
    world.rest();
    world.now += TIMEOUT.as_micros() as u64 / 4;
    world.rest();
    world.log_out(1, 0);
    assert!(!matches!(
        world.log_in(1, 0, ALICE),
        Some(Verdict::Admitted(_))
    ));
}

#[test]
fn nobody_is_taken_for_gone_because_etcd_was_down() {
    let mut world = joined(2, 1, 9);
    world.log_in_and_rest(0, 0, ALICE);
    world.now += 2 * TIMEOUT.as_micros() as u64;
    // The other server is first.
    for _ in 0..3 {
        if world.send(1) {
            world.deliver(0, true);
        }
    }
    world.rest();
    world.log_in_and_rest(1, 0, ALICE);
    assert_eq!(world.sessions(1, of_role(ALICE)), 0);
    assert_eq!(world.held(0, of_role(ALICE)), Some((1, 1)));
}

#[test]
fn a_place_that_was_taken_again_is_not_given_back_late() {
    let mut world = joined(2, 1, 9);
    world.log_in_and_rest(0, 0, ALICE);
    world.log_out(0, 0);
    world.rest();
    world.now += LINGER;
    assert!(world.send(0));
    world.time_out(0);
    let late = world.letters.remove(0);
    world.rest();
    world.log_in_and_rest(0, 0, ALICE);
    assert_eq!(world.held(0, of_role(ALICE)), Some((1, 1)));
    assert_eq!(world.sessions(0, of_role(ALICE)), 1);
    world.letters.push(late);
    world.deliver(0, false);
    assert_eq!(world.held(0, of_role(ALICE)), Some((1, 1)));
}

#[test]
fn a_request_that_comes_late_takes_no_place() {
    let mut world = joined(2, 1, 9);
    world.log_in(0, 0, ALICE);
    world.send(0);
    world.time_out(0);
    world.give_up(0, 0);
    let late = world.letters.remove(0);
    world.rest();
    world.letters.push(late);
    world.deliver(0, false);
    world.rest();
    world.log_in_and_rest(1, 0, ALICE);
    assert_eq!(world.sessions(1, of_role(ALICE)), 1);
}

/// Each server always has waiters, and each session is short.
#[test]
fn servers_that_always_wait_get_equal_shares() {
    let mut world = joined(3, 2, 9);
    world.max_wait = Duration::from_secs(1000);
    let mut served = [0; 3];
    for turn in 0..3000 {
        for index in 0..3 {
            for slot in 0..4 {
                world.log_in(index, slot, ALICE);
            }
        }
        world.now += 5_000;
        for index in [0, 1, 2].map(|index| (index + turn) % 3) {
            if world.send(index) {
                world.deliver(0, true);
            }
            world.wake_all(index);
            let slots: Vec<usize> = world.servers[index].sessions.keys().copied().collect();
            for slot in slots {
                served[index] += 1;
                world.log_out(index, slot);
            }
        }
    }
    let (least, most) = (served.iter().min(), served.iter().max());
    let (least, most) = (least.expect("three"), most.expect("three"));
    assert!(*least > 200 && least * 12 > most * 10, "{served:?}");
}

/// How many are in on all servers.
fn sessions_of(world: &World, role: u32) -> u32 {
    let servers = 0..world.servers.len();
    servers
        .map(|index| world.sessions(index, of_role(role)))
        .sum()
}

/// The same, with limits of roles only; without an answer of etcd a login goes in as if its server were alone.
fn joined_local(servers: usize, of_each_role: u32) -> World {
    let mut world = joined(servers, of_each_role, 99);
    world.limits.pop();
    world.on_unreachable = OnUnreachable::Local;
    world
}

#[test]
fn a_login_that_has_waited_for_something_else_asks_etcd_then() {
    let mut world = joined_local(2, 1);
    world.alone.push((in_database(APP), 1));
    world.log_in_and_rest(0, 0, BOB);
    assert!(is_waiting(world.log_in(0, 1, ALICE)));
    world.rest();
    world.log_in_and_rest(1, 0, ALICE);
    assert_eq!(sessions_of(&world, ALICE), 1);
    world.now += 3 * ANSWER_WITHIN.as_micros() as u64;
    world.rest();
    world.log_out(0, 0);
    let verdict = world.wake(0, 1);
    assert!(is_waiting(verdict), "it has asked nobody so far");
    world.rest();
    assert_eq!(sessions_of(&world, ALICE), 1);
    // Nor does it wait for ever.
    assert!(world.servers[0].waiting.is_empty());
}

#[test]
fn a_login_that_comes_to_be_decided_late_asks_all_the_same() {
    for on_unreachable in [OnUnreachable::Local, OnUnreachable::Refuse] {
        let mut world = joined(2, 1, 9);
        world.limits.pop();
        world.on_unreachable = on_unreachable;
        world.log_in_and_rest(1, 0, ALICE);
        let verdict = world.log_in_late(0, 0, ALICE, 2 * ANSWER_WITHIN);
        assert!(matches!(verdict, Verdict::Waiting), "{verdict:?}");
        let verdicts = world.rest();
        let [(0, 0, Verdict::Refused(excess))] = &verdicts[..] else {
            panic!("{verdicts:?}");
        };
        assert!(matches!(excess.elsewhere, Some(Elsewhere::Held(1, _))));
        assert_eq!(sessions_of(&world, ALICE), 1);
    }
}

#[test]
fn a_limit_that_changes_lets_nobody_in_unasked() {
    let mut world = joined_local(3, 2);
    world.max_wait = Duration::from_secs(60);
    for index in [0, 1] {
        world.log_in_and_rest(index, 0, ALICE);
    }
    for index in 0..3 {
        for slot in 1..4 {
            world.log_in(index, slot, ALICE);
        }
    }
    world.rest();
    world.now += 3 * ANSWER_WITHIN.as_micros() as u64;
    world.rest();
    // What is lowered ends nobody's session.
    for (max, most) in [(3, 3), (2, 3), (4, 4)] {
        world.limits[0].1 = max;
        for index in 0..3 {
            world.wake_all(index);
        }
        assert!(sessions_of(&world, ALICE) <= most, "nobody has asked");
        world.now += 1_000_000;
        world.rest();
        assert_eq!(sessions_of(&world, ALICE), most);
    }
}

#[test]
fn a_limit_that_is_set_while_somebody_waits_is_asked_for() {
    let mut world = joined_local(2, 1);
    world.max_wait = Duration::from_secs(60);
    world.log_in_and_rest(0, 0, ALICE);
    world.log_in_and_rest(0, 1, ALICE);
    world.now += 3 * ANSWER_WITHIN.as_micros() as u64;
    world.rest();
    world.limits.push((in_database(APP), 1));
    world.log_in(1, 0, BOB);
    world.send(1);
    world.deliver(0, true);
    world.wake(1, 0);
    assert_eq!(sessions_of(&world, BOB), 1);
    world.log_out(0, 0);
    let verdict = world.wake(0, 1);
    assert!(is_waiting(verdict), "it has not asked for the database");
}

#[test]
fn a_limit_that_is_raised_when_the_answer_is_there_lets_one_more_in() {
    let mut world = joined_local(2, 1);
    world.log_in_and_rest(0, 0, ALICE);
    world.log_in(1, 0, ALICE);
    world.send(1);
    world.deliver(0, true);
    world.limits[0].1 = 2;
    assert!(
        is_waiting(world.wake(1, 0)),
        "it was full under another limit"
    );
    world.rest();
    assert_eq!(sessions_of(&world, ALICE), 2);
}

#[test]
fn a_worker_that_stands_still_locks_nobody_out_whose_place_is_held() {
    let mut world = joined_local(1, 1);
    world.log_in_and_rest(0, 0, ALICE);
    world.log_out(0, 0);
    // Nothing is given back, and nothing counts any more.
    world.now += 3 * TIMEOUT.as_micros() as u64;
    assert!(is_waiting(world.log_in(0, 0, ALICE)));
    world.now += ANSWER_WITHIN.as_micros() as u64;
    world.wake(0, 0);
    assert_eq!(sessions_of(&world, ALICE), 1);
}

#[test]
fn a_moment_without_a_life_ends_nobodys_contact() {
    let mut world = joined_local(2, 1);
    world.alone.push((in_database(APP), 1));
    world.log_in_and_rest(0, 0, BOB);
    assert!(is_waiting(world.log_in(0, 1, ALICE)));
    world.now += 3 * ANSWER_WITHIN.as_micros() as u64;
    world.log_out(0, 0);
    world.servers[0].memory.table().places.reach.valid_until = 0;
    assert!(is_waiting(world.wake(0, 1)));
    assert!(world.servers[0].memory.table().places.reach.answers);
}

#[test]
fn whoever_was_answered_once_goes_in_alone_when_the_worker_stands_still() {
    let mut world = joined_local(2, 1);
    world.max_wait = Duration::from_secs(60);
    world.log_in_and_rest(0, 0, ALICE);
    world.log_in_and_rest(0, 1, ALICE);
    world.now += 3 * TIMEOUT.as_micros() as u64;
    world.log_out(0, 0);
    world.wake(0, 1);
    assert_eq!(world.sessions(0, of_role(ALICE)), 1);
}

#[test]
fn the_patience_begins_when_etcd_is_back() {
    let mut world = joined_local(2, 1);
    world.max_wait = Duration::from_secs(60);
    world.log_in_and_rest(0, 0, ALICE);
    world.servers[0].memory.table().places.reach.answers = false;
    assert!(is_waiting(world.log_in(0, 1, ALICE)));
    for _ in 0..5 {
        world.now += ANSWER_WITHIN.as_micros() as u64 / 2;
        assert!(is_waiting(world.wake(0, 1)));
    }
    // It joins anew.
    let reach = &mut *world.servers[0].memory.table().places.reach;
    (reach.answers, reach.valid_until) = (true, 0);
    assert!(is_waiting(world.wake(0, 1)));
    assert!(world.servers[0].memory.table().places.reach.answers);
}
