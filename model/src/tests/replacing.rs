//! Which sessions end so that a login finds room: whole decisions.

use crate::attempt::{Attempt, IsIdle, MayWait, Replacing, Rules};
use crate::count::SessionCounter;
use crate::decide::{
    self,
    tests::{WAIT, decided},
};
use crate::limit::tests::{at_most, in_database, of_role};
use crate::limit::{Limit, OnExcess, Scope, Unit, Who};
use crate::members::{Members, Missing, SessionFilter};
use crate::own_table::OwnTable;
use crate::per::Per;
use crate::replace::idle_victim_woke;
use crate::servers::place::AcrossRules;
use crate::session::{Claim, EndReason, Session};
use crate::table::Table;
use crate::table::tests::session;
use crate::verdict::{Admission, Ended, Excess, Verdict};
use std::cell::Cell;
use std::time::Duration;

const ALICE: u32 = 10;
const BOB: u32 = 11;
const CAROL: u32 = 12;
const APP: u32 = 5;
const WEB: u32 = 6;
/// In ticks.
const SECOND: u64 = 1_000_000;
const NOW: u64 = 100 * SECOND;
/// When a login arrives that sees young sessions.
const LATE: u64 = NOW + 9;

/// A table with 16 slots and no session.
fn table() -> Table<'static> {
    Box::leak(Box::new(OwnTable::new(16, 64))).table()
}

/// A session in `APP`. It is old enough to be replaced if its login arrived a second before `NOW`.
fn of(role: u32, arrival: u64) -> Session {
    Session {
        arrival,
        ..session(role, APP)
    }
}

/// Too young to be replaced.
fn young(role: u32) -> Session {
    of(role, NOW)
}

/// In the other database.
fn elsewhere(session: Session) -> Session {
    Session {
        database: WEB,
        ..session
    }
}

fn exempt(session: Session) -> Session {
    Session {
        exempt: true,
        ..session
    }
}

fn from(address: &str, session: Session) -> Session {
    Session {
        address: Some(address.parse().expect(address)),
        ..session
    }
}

fn from_network(network: &str) -> Scope {
    Scope {
        who: Who::Anyone,
        database: None,
        network: Some(network.parse().expect(network)),
    }
}

fn oldest(max: u32, scope: Scope) -> Limit {
    Limit {
        on_excess: OnExcess::ReplaceOldest,
        ..at_most(max, scope)
    }
}

fn longest_idle(max: u32, scope: Scope) -> Limit {
    Limit {
        on_excess: OnExcess::ReplaceIdle,
        ..at_most(max, scope)
    }
}

fn tried_out(limit: Limit) -> Limit {
    Limit {
        enforced: false,
        ..limit
    }
}

/// A login that has waited long enough.
fn login(slot: usize, session: Session, limits: impl Into<Vec<Limit>>) -> Attempt<'static> {
    let rules = Rules {
        count_walsenders: false,
        may_wait: Some(MayWait::NOT),
        tried: Duration::ZERO,
        max_waiters: 20,
        tally: false,
        replacing: Replacing {
            allowed: true,
            now: NOW,
            min_age: Duration::from_secs(1),
            idle_after: Duration::from_secs(5),
        },
        audit: false,
    };
    Attempt {
        slot,
        pid: 100 + slot as u32,
        session,
        limits: limits.into().leak(),
        members: Box::leak(Box::default()),
        is_idle: &|_, _| false,
        across: AcrossRules::NONE,
        rules,
    }
}

/// Such a login of alice's to `APP`.
fn alice(slot: usize, arrival: u64, limits: impl Into<Vec<Limit>>) -> Attempt<'static> {
    login(slot, of(ALICE, arrival), limits)
}

/// A login that may wait.
fn patient(mut login: Attempt) -> Attempt {
    login.rules.may_wait = Some(WAIT);
    login
}

/// Puts a session into a slot.
fn put(table: &mut Table, slot: usize, session: Session) {
    table.claim(slot, 100 + slot as u32, session);
}

/// Puts sessions of alice's into the first slots, in order of arrival.
fn put_alices(table: &mut Table, number: usize) {
    (0..number).for_each(|slot| put(table, slot, of(ALICE, slot as u64)));
}

fn verdict(table: &mut Table, login: &Attempt) -> Verdict {
    decided(table, login).expect("all is known")
}

fn is_admitted(table: &mut Table, login: &Attempt) -> bool {
    matches!(verdict(table, login), Verdict::Admitted(_))
}

fn waits(table: &mut Table, login: &Attempt) -> bool {
    verdict(table, login) == Verdict::Waiting
}

fn pids(ended: &Ended) -> Vec<u32> {
    ended.shown.iter().flatten().copied().collect()
}

fn victims(table: &Table, successor: usize) -> Vec<u32> {
    table.victims(successor).collect()
}

/// Decides on a login that replaces sessions, and returns their process IDs.
fn replaced(table: &mut Table, login: &Attempt) -> Vec<u32> {
    match verdict(table, login) {
        Verdict::Replacing(_, ended, _) => {
            assert_eq!(victims(table, login.slot), pids(&ended));
            pids(&ended)
        }
        other => panic!("not replacing but {other:?}"),
    }
}

/// Decides on a login that is refused and leaves no trace.
fn refused(table: &mut Table, login: &Attempt) -> Excess {
    let before = state(table);
    match verdict(table, login) {
        Verdict::Refused(excess) => {
            assert_eq!(state(table), before);
            excess
        }
        other => panic!("not refused but {other:?}"),
    }
}

/// The process IDs of the sessions, and of those that can be replaced.
fn state(table: &Table) -> (Vec<u32>, Vec<u32>) {
    let replaceable = (0..16).filter_map(|slot| table.replaceable(slot));
    (
        table.sessions().map(|(pid, _)| pid).collect(),
        replaceable.map(|(pid, _)| pid).collect(),
    )
}

fn count(table: &Table, scope: Scope) -> u32 {
    let members = Default::default();
    table.count(SessionFilter::new(scope, false, &members).expect("no group"))
}

fn leave(table: &Table, slot: usize, role: u32) {
    let claim = Claim::new(100 + slot as u32, role);
    assert!(table.shared.release(slot, claim));
}

#[test]
fn the_oldest_by_arrival_ends() {
    let mut table = table();
    // The oldest neither by slot nor by the wall clock, which was set back.
    put(&mut table, 0, of(ALICE, 5));
    let started = 9_000_000;
    put(
        &mut table,
        1,
        Session {
            started,
            ..of(ALICE, 3)
        },
    );
    put(&mut table, 2, of(ALICE, 4));
    let limit = oldest(3, of_role(ALICE));
    assert_eq!(replaced(&mut table, &alice(3, 9, [limit])), [101]);
    assert_eq!(replaced(&mut table, &alice(4, 10, [limit])), [102]);
    assert_eq!(count(&table, of_role(ALICE)), 3);
}

#[test]
fn a_session_that_was_told_and_is_still_there_ends_last() {
    let mut table = table();
    put(&mut table, 0, of(ALICE, 1));
    put(&mut table, 1, of(ALICE, 2));
    let limit = oldest(2, of_role(ALICE));
    assert_eq!(replaced(&mut table, &alice(2, 9, [limit])), [100]);
    table.tell_victims(2);
    table.roll_back(2);
    assert_eq!(replaced(&mut table, &alice(3, 10, [limit])), [101]);
    let victims = replaced(&mut table, &alice(4, 11, [limit]));
    assert_eq!(victims, [100], "if there is no other");
}

#[test]
fn only_sessions_of_the_logins_own_role_end() {
    let mut table = table();
    put(&mut table, 0, of(BOB, 1));
    put(&mut table, 1, of(ALICE, 2));
    let limit = oldest(2, in_database(APP));
    let carol = login(2, of(CAROL, 9), [limit]);
    assert_eq!(refused(&mut table, &carol).own, 0);
    assert_eq!(replaced(&mut table, &alice(2, 9, [limit])), [101]);
    // Nor does one that the limit does not count.
    put(&mut table, 3, elsewhere(of(BOB, 0)));
    let bob = login(4, of(BOB, 9), [limit]);
    assert_eq!(replaced(&mut table, &bob), [100]);
}

#[test]
fn only_sessions_that_arrived_before_the_login_end() {
    let mut table = table();
    put(&mut table, 0, of(ALICE, 7));
    let limit = oldest(1, of_role(ALICE));
    refused(&mut table, &alice(1, 6, [limit]));
    assert_eq!(replaced(&mut table, &alice(1, 8, [limit])), [100]);
}

#[test]
fn young_sessions_are_spared() {
    let mut table = table();
    let late = alice(1, LATE, [oldest(1, of_role(ALICE))]);
    // A login may have arrived, and been admitted, after another one read the clock.
    for arrival in [NOW - SECOND + 1, NOW, NOW + 5] {
        put(&mut table, 0, of(ALICE, arrival));
        refused(&mut table, &late);
    }
    put(&mut table, 0, of(ALICE, NOW - SECOND));
    assert_eq!(replaced(&mut table, &late), [100]);
}

/// It started in the future, or an hour ago: the wall clock has been set. Nothing but its arrival counts.
#[test]
fn the_wall_clock_makes_nobody_young_or_old() {
    let mut table = table();
    let late = alice(1, LATE, [oldest(1, of_role(ALICE))]);
    let hour = 3600 * SECOND as i64;
    for started in [NOW as i64 - hour, NOW as i64 + hour] {
        put(
            &mut table,
            0,
            Session {
                started,
                ..young(ALICE)
            },
        );
        refused(&mut table, &late);
        put(
            &mut table,
            0,
            Session {
                started,
                ..of(ALICE, 1)
            },
        );
        assert_eq!(replaced(&mut table, &late), [100]);
        table.roll_back(1);
    }
}

/// These sessions are idle: process ID, and since when.
fn idle(table: &Table, idle: &[(u32, u64)]) -> IsIdle<'static> {
    for (pid, since) in idle {
        table.shared.note_active(*pid as usize - 100, *since);
    }
    let pids: Vec<u32> = idle.iter().map(|(pid, _)| *pid).collect();
    Box::leak(Box::new(move |slot, pid| {
        assert_eq!(pid, 100 + slot as u32);
        pids.contains(&pid)
    }))
}

#[test]
fn under_replace_idle_the_longest_idle_session_ends() {
    let mut table = table();
    put_alices(&mut table, 5);
    put(&mut table, 5, of(BOB, 0));
    let limit = longest_idle(5, of_role(ALICE));
    // The first two are not idle; the third is, but for less than five seconds.
    let since = [
        (102, NOW - 5 * SECOND + 1),
        (103, NOW - 6 * SECOND),
        (104, NOW - 7 * SECOND),
        (105, NOW - 9 * SECOND),
    ];
    let is_idle = idle(&table, &since);
    let late = |slot| Attempt {
        is_idle,
        ..alice(slot, 9, [limit])
    };
    assert_eq!(replaced(&mut table, &late(6)), [104]);
    assert_eq!(replaced(&mut table, &late(7)), [103]);
    table.roll_back(6);
    leave(&table, 4, ALICE);
    put(&mut table, 6, of(ALICE, 10));
    assert_eq!(refused(&mut table, &late(4)).in_use, 5);
}

#[test]
fn a_wal_sender_is_never_idle() {
    let mut table = table();
    let walsender = Session {
        walsender: true,
        ..of(ALICE, 1)
    };
    put(&mut table, 0, walsender);
    let mut late = alice(1, 9, [longest_idle(1, of_role(ALICE))]);
    late.rules.count_walsenders = true;
    late.is_idle = idle(&table, &[(100, 1)]);
    refused(&mut table, &late);
    put(&mut table, 0, of(ALICE, 1));
    assert_eq!(replaced(&mut table, &late), [100]);
}

/// Each time one more of the answers is the last before the sessions wake: whenever they do, the login replaces them,
/// or is refused, and none is left half replaced.
#[test]
fn sessions_that_wake_while_the_decision_is_made() {
    let mut table = table();
    put_alices(&mut table, 4);
    put(&mut table, 4, elsewhere(of(ALICE, 5)));
    let limits = [
        longest_idle(2, of_role(ALICE)),
        longest_idle(1, in_database(APP)),
    ];
    let before = state(&table);
    let mut outcomes = [0, 0];
    for answers in 0..40 {
        let left = Cell::new(answers);
        let is_idle = |_, _| left.replace(left.get() - 1) > 0;
        let members = Members::default();
        let late = Attempt {
            is_idle: &is_idle,
            members: &members,
            limits: &limits,
            ..alice(5, 9, [])
        };
        let mut counter = SessionCounter::new(table.shared, &members, true, false);
        match decide::attempt(&mut table, &mut counter, &late) {
            Ok(Verdict::Replacing(_, ended, _)) => {
                outcomes[0] += 1;
                assert_eq!(counter.idle_victims.len(), ended.number as usize);
            }
            Ok(Verdict::Refused(_)) => {
                outcomes[1] += 1;
                assert_eq!(state(&table), before, "{answers}");
            }
            other => panic!("{other:?}"),
        }
        table.roll_back(5);
        assert_eq!(state(&table), before, "{answers}");
    }
    assert!(outcomes.iter().all(|number| *number > 0), "{outcomes:?}");
}

/// The look between the decision and the signal.
#[test]
fn a_victim_that_woke_since_it_was_chosen_is_noticed() {
    let mut table = table();
    put_alices(&mut table, 3);
    let limits = [longest_idle(2, of_role(ALICE)), oldest(2, in_database(APP))];
    let late = |limit: Limit| Attempt {
        is_idle: idle(&table, &[(101, 7), (102, 8)]),
        ..alice(3, 9, [limit])
    };
    let [idlest, oldest] = limits.map(late);
    let mut counter = SessionCounter::new(table.shared, oldest.members, true, false);
    let mut choose = |table: &mut Table, login: &Attempt| {
        let verdict = decide::attempt(table, &mut counter, login);
        assert!(matches!(verdict, Ok(Verdict::Replacing(..))));
        counter.idle_victims.clone()
    };
    assert!(choose(&mut table, &oldest).is_empty(), "whatever they do");
    table.roll_back(3);
    let chosen = choose(&mut table, &idlest);
    assert_eq!(chosen, [(1, 7), (2, 8)]);
    let woke = |table: &Table, is_idle| idle_victim_woke(table, 3, &chosen, is_idle);
    assert!(!woke(&table, idlest.is_idle));
    assert!(woke(&table, &|_, pid| pid == 101), "the other is at work");
    // It is idle again, but has not been all the time.
    table.shared.note_active(2, 9);
    assert!(woke(&table, idlest.is_idle));
    // It is gone, and then its slot is another's.
    leave(&table, 2, ALICE);
    assert!(!woke(&table, idlest.is_idle));
    table.vacate(2);
    put(&mut table, 2, of(BOB, 10));
    assert!(!woke(&table, idlest.is_idle));
}

#[test]
fn exempt_and_pending_sessions_and_victims_are_spared() {
    let mut table = table();
    put(&mut table, 0, exempt(of(ALICE, 1)));
    put(&mut table, 1, of(ALICE, 2));
    let limit = oldest(2, of_role(ALICE));
    assert_eq!(replaced(&mut table, &alice(2, 3, [limit])), [101]);
    let next = alice(3, 4, [limit]);
    assert_eq!(refused(&mut table, &next).in_use, 2);
    leave(&table, 1, ALICE);
    assert_eq!(refused(&mut table, &next).in_use, 2, "still pending");
    assert!(table.complete(2));
    assert_eq!(replaced(&mut table, &next), [102]);
}

#[test]
fn one_limit_that_refuses_is_enough() {
    let mut table = table();
    put(&mut table, 0, of(ALICE, 1));
    let replaces = oldest(1, of_role(ALICE));
    let refuses = at_most(1, in_database(APP));
    for limits in [[replaces, refuses], [refuses, replaces]] {
        assert_eq!(refused(&mut table, &alice(1, 9, limits)).limit, refuses);
    }
    // Unless it has room.
    let roomy = at_most(2, in_database(APP));
    assert_eq!(replaced(&mut table, &alice(1, 9, [replaces, roomy])), [100]);
}

#[test]
fn no_session_ends_for_a_login_that_would_fail() {
    let mut table = table();
    put(&mut table, 0, of(ALICE, 1));
    let mut fails = alice(1, 9, [oldest(1, of_role(ALICE))]);
    fails.rules.replacing.allowed = false;
    refused(&mut table, &fails);
}

#[test]
fn one_session_that_makes_room_under_several_limits_ends_alone() {
    let mut table = table();
    put(&mut table, 0, elsewhere(of(ALICE, 1)));
    put(&mut table, 1, of(ALICE, 2));
    // The first of these by itself would end the session in the other database.
    let limits = [oldest(2, of_role(ALICE)), oldest(1, in_database(APP))];
    assert_eq!(replaced(&mut table, &alice(2, 9, limits)), [101]);
}

#[test]
fn each_limit_gets_room_or_no_session_ends() {
    let mut table = table();
    let there = from("10.0.0.2", elsewhere(of(ALICE, 1)));
    put(&mut table, 0, there);
    put(&mut table, 1, of(ALICE, 2));
    let net = oldest(1, from_network("10.0.0.0/8"));
    let app = oldest(1, in_database(APP));
    let both = login(2, from("10.0.0.1", of(ALICE, 9)), [net, app]);
    assert_eq!(replaced(&mut table, &both), [100, 101]);
    table.roll_back(2);
    // One of the two cannot end: neither does.
    put(&mut table, 0, exempt(there));
    assert_eq!(refused(&mut table, &both).limit, net);
}

#[test]
fn under_a_lowered_limit_several_sessions_end() {
    let mut table = table();
    put_alices(&mut table, 8);
    let late = |max| alice(8, 9, [oldest(max, of_role(ALICE))]);
    assert_eq!(replaced(&mut table, &late(6)), [100, 101, 102]);
    assert_eq!(count(&table, of_role(ALICE)), 8, "until they are gone");
    table.roll_back(8);
    let Verdict::Replacing(admission, ended, without) = verdict(&mut table, &late(1)) else {
        panic!("not replacing");
    };
    assert_eq!((ended.number, without.in_use, without.own), (8, 8, 8));
    assert_eq!(pids(&ended), [100, 101, 102, 103, 104], "the first five");
    assert_eq!(
        admission,
        Admission {
            over: None,
            sessions: 1,
            elsewhere: None,
        }
    );
    (0..8).for_each(|slot| leave(&table, slot, ALICE));
    assert_eq!(count(&table, of_role(ALICE)), 1);
}

#[test]
fn if_not_enough_sessions_can_end_none_does() {
    let mut table = table();
    put(&mut table, 0, of(ALICE, 1));
    put(&mut table, 1, young(ALICE));
    refused(&mut table, &alice(2, LATE, [oldest(1, of_role(ALICE))]));
    leave(&table, 1, ALICE);
    refused(&mut table, &alice(2, LATE, [oldest(0, of_role(ALICE))]));
}

/// Alice's first session and its successor are in different databases and at different addresses.
#[test]
fn a_successor_counts_beside_its_victim_where_a_limit_covers_only_one_of_them() {
    let mut table = table();
    put(&mut table, 0, from("10.0.0.1", elsewhere(of(ALICE, 1))));
    let here = from("10.0.0.2", of(ALICE, 2));
    let limit = oldest(1, of_role(ALICE));
    assert_eq!(replaced(&mut table, &login(1, here, [limit])), [100]);
    let (one, two) = (from_network("10.0.0.1/32"), from_network("10.0.0.2/32"));
    let counts = |table: &Table| {
        let scopes = [of_role(ALICE), in_database(WEB), in_database(APP), one, two];
        scopes.map(|scope| count(table, scope))
    };
    assert_eq!(counts(&table), [1, 1, 1, 1, 1]);
    // So a login that a limit on the victim's address covers finds no room before the victim has left.
    let bob = login(2, from("10.0.0.1", of(BOB, 3)), [at_most(1, one)]);
    refused(&mut table, &bob);
    leave(&table, 0, ALICE);
    assert_eq!(counts(&table), [1, 0, 1, 0, 1]);
    assert!(table.complete(1));
    assert_eq!(counts(&table), [1, 0, 1, 0, 1]);
}

/// Else another login could take the room of a victim that stays, or that the server still counts.
#[test]
fn the_successor_of_two_victims_counts_as_two_until_one_is_gone() {
    let mut table = table();
    put_alices(&mut table, 3);
    let limit = oldest(2, of_role(ALICE));
    assert_eq!(replaced(&mut table, &alice(3, 9, [limit])), [100, 101]);
    leave(&table, 2, ALICE);
    let next = alice(4, 10, [at_most(2, of_role(ALICE))]);
    assert_eq!(refused(&mut table, &next).in_use, 2);
    leave(&table, 1, ALICE);
    assert!(is_admitted(&mut table, &next));
    assert_eq!(count(&table, of_role(ALICE)), 2);
    table.roll_back(3);
    assert_eq!(count(&table, of_role(ALICE)), 2, "it gave up");
}

#[test]
fn after_a_rollback_the_victims_are_sessions_like_others() {
    let mut table = table();
    put_alices(&mut table, 2);
    let limit = oldest(2, of_role(ALICE));
    let before = state(&table);
    assert_eq!(replaced(&mut table, &alice(2, 8, [limit])), [100]);
    assert_eq!(replaced(&mut table, &alice(3, 9, [limit])), [101]);
    table.roll_back(2);
    assert!(victims(&table, 2).is_empty());
    assert_eq!(victims(&table, 3), [101], "another's");
    table.roll_back(3);
    assert_eq!(state(&table), before);
    assert_eq!(replaced(&mut table, &alice(2, 10, [limit])), [100]);
}

#[test]
fn a_successor_is_complete_when_all_victims_are_gone() {
    let mut table = table();
    put_alices(&mut table, 2);
    let late = alice(2, 9, [oldest(1, of_role(ALICE))]);
    assert_eq!(replaced(&mut table, &late), [100, 101]);
    assert!(!table.complete(2));
    leave(&table, 0, ALICE);
    assert!(!table.complete(2));
    assert_eq!(victims(&table, 2), [101]);
    // The other victim's process is gone, too: its slot has a new owner, which logs in.
    let next = login(1, of(BOB, 10), [at_most(0, of_role(BOB))]);
    assert!(matches!(verdict(&mut table, &next), Verdict::Refused(_)));
    assert!(table.complete(2));
    put(&mut table, 1, of(BOB, 11));
    assert_eq!(count(&table, in_database(APP)), 2);
    assert_eq!(state(&table).1, [101, 102]);
}

#[test]
fn a_victim_finds_why_it_ends_until_its_slot_has_a_new_owner() {
    let mut table = table();
    put(&mut table, 0, of(ALICE, 1));
    put(&mut table, 1, of(ALICE, 2));
    let session = from("10.0.0.1", of(ALICE, 9));
    let late = login(2, session, [oldest(2, of_role(ALICE))]);
    assert_eq!(replaced(&mut table, &late), [100]);
    assert_eq!(table.end_reason(0), None, "not told yet");
    table.tell_victims(2);
    let replaced = EndReason::Replaced(session.address);
    assert_eq!(table.end_reason(0), Some(replaced));
    assert_eq!((table.end_reason(1), table.end_reason(2)), (None, None));
    table.vacate(0);
    assert_eq!(table.end_reason(0), None);
}

#[test]
fn a_dry_run_says_which_sessions_would_end_and_ends_none() {
    let mut table = table();
    put(&mut table, 0, of(ALICE, 1));
    let would = |table: &mut Table, limits: &[Limit]| {
        let replaceable = state(table).1;
        let verdict = verdict(table, &alice(1, 2, limits));
        let Verdict::Admitted(Admission {
            over: Some((excess, ended)),
            ..
        }) = verdict
        else {
            panic!("not admitted over a limit but {verdict:?}");
        };
        leave(table, 1, ALICE);
        assert_eq!(state(table).1, replaceable);
        (excess.limit, excess.in_use, pids(&ended))
    };
    let replaces = tried_out(oldest(1, of_role(ALICE)));
    let refuses = tried_out(at_most(1, in_database(APP)));
    assert_eq!(would(&mut table, &[replaces]), (replaces, 1, vec![100]));
    assert_eq!(would(&mut table, &[refuses]), (refuses, 1, vec![]));
    let both = would(&mut table, &[replaces, refuses]);
    assert_eq!(both, (refuses, 1, vec![]));
    // Together with an enforced limit, which ends another session.
    put(&mut table, 1, elsewhere(of(ALICE, 0)));
    let trial = tried_out(oldest(1, in_database(APP)));
    let late = alice(2, 9, [oldest(2, of_role(ALICE)), trial]);
    let Verdict::Replacing(admission, ended, _) = verdict(&mut table, &late) else {
        panic!("not replacing");
    };
    assert_eq!(pids(&ended), [101]);
    let (excess, would_end) = admission.over.expect("it exceeds the other limit");
    assert_eq!((excess.limit, pids(&would_end)), (trial, vec![100]));
    assert_eq!(victims(&table, 2), [101]);
}

#[test]
fn a_login_waits_before_it_replaces() {
    let mut table = table();
    put(&mut table, 0, of(ALICE, 1));
    let mut late = patient(alice(1, 9, [oldest(1, of_role(ALICE))]));
    assert!(waits(&mut table, &late));
    late.rules.tried = late.limits[0].max_wait;
    assert_eq!(replaced(&mut table, &late), [100]);
    assert_eq!(table.waiters().count(), 0);
}

#[test]
fn a_waiter_does_not_get_the_room_of_a_victim() {
    let mut table = table();
    put(&mut table, 0, of(ALICE, 1));
    let bob = patient(login(1, of(BOB, 2), [at_most(1, in_database(APP))]));
    assert!(waits(&mut table, &bob));
    let late = alice(2, 3, [oldest(1, in_database(APP))]);
    assert_eq!(replaced(&mut table, &late), [100]);
    assert!(waits(&mut table, &bob));
    leave(&table, 0, ALICE);
    assert!(waits(&mut table, &bob));
    assert!(table.complete(2));
    assert!(waits(&mut table, &bob));
    table.roll_back(2);
    assert!(is_admitted(&mut table, &bob));
}

#[test]
fn room_that_is_reserved_for_earlier_waiters_is_left_to_them() {
    let mut table = table();
    put(&mut table, 0, of(ALICE, 1));
    put(&mut table, 1, of(BOB, 1));
    let bob = patient(login(2, of(BOB, 2), [at_most(2, in_database(APP))]));
    assert!(waits(&mut table, &bob));
    leave(&table, 1, BOB);
    // There is room for one, reserved for bob. Carol has no session that could end, alice has.
    let limit = oldest(2, in_database(APP));
    let excess = refused(&mut table, &login(3, of(CAROL, 3), [limit]));
    assert_eq!((excess.in_use, excess.ahead), (1, 1));
    assert_eq!(replaced(&mut table, &alice(3, 4, [limit])), [100]);
    assert!(is_admitted(&mut table, &bob));
}

const ADDRESS: Unit = Unit::Address {
    ipv6_prefix_length: 64,
};

/// From so many addresses.
fn places(max: u32, limit: fn(u32, Scope) -> Limit, scope: Scope) -> Limit {
    Limit {
        unit: ADDRESS,
        ..limit(max, scope)
    }
}

const DESK: &str = "10.0.0.1";
const HOME: &str = "2001:db8::1";
const TRAIN: &str = "10.0.0.3";

/// Alice has three sessions at her desk, the second and last of which are late, and one at home in between.
fn put_at_two_places(table: &mut Table) {
    put(table, 0, from(DESK, of(ALICE, 1)));
    put(table, 1, from(HOME, of(ALICE, 2)));
    put(table, 2, from(DESK, of(ALICE, 3)));
    put(table, 3, from(DESK, of(ALICE, 4)));
}

fn on_the_train(limit: Limit) -> Attempt<'static> {
    login(5, from(TRAIN, of(ALICE, LATE)), [limit])
}

#[test]
fn the_address_that_came_first_makes_room_as_a_whole() {
    let mut table = table();
    put_at_two_places(&mut table);
    let two = places(2, oldest, of_role(ALICE));
    // Whoever is counted already ends nobody; of IPv6 the /64 counts.
    for known in [DESK, "2001:db8::ffff"] {
        let login = login(4, from(known, of(ALICE, LATE)), [two]);
        assert!(is_admitted(&mut table, &login));
        leave(&table, 4, ALICE);
    }
    assert_eq!(replaced(&mut table, &on_the_train(two)), [100, 102, 103]);
    // The place is nobody else's, from wherever they come, but who is at home is at home.
    for (other, fits) in [
        (DESK, false),
        (TRAIN, false),
        ("10.0.0.4", false),
        (HOME, true),
    ] {
        let limit = places(2, at_most, of_role(ALICE));
        let login = login(6, from(other, of(ALICE, LATE)), [limit]);
        assert_eq!(is_admitted(&mut table, &login), fits, "{other}");
        table.vacate(6);
    }
    // It gives up, so that they stay.
    table.roll_back(5);
    let limit = places(2, at_most, of_role(ALICE));
    assert!(is_admitted(
        &mut table,
        &login(6, from(DESK, of(ALICE, LATE)), [limit])
    ));
    // Under a lowered limit both go.
    let mut table = self::table();
    put_at_two_places(&mut table);
    let one = places(1, oldest, of_role(ALICE));
    assert_eq!(
        replaced(&mut table, &on_the_train(one)),
        [100, 101, 102, 103]
    );
}

#[test]
fn a_second_login_from_the_new_address_waits_until_the_first_is_in() {
    let mut table = table();
    put_at_two_places(&mut table);
    let two = places(2, oldest, of_role(ALICE));
    assert_eq!(replaced(&mut table, &on_the_train(two)), [100, 102, 103]);
    let second = || login(6, from(TRAIN, of(ALICE, LATE + 1)), [two]);
    // It has waited long enough, and waits on; it ends nobody else.
    let mut follows = patient(second());
    follows.rules.tried = Duration::from_secs(100);
    assert!(waits(&mut table, &follows));
    assert_eq!(victims(&table, 6), [] as [u32; 0]);
    // Where it may not wait it is refused, and ends nobody either.
    table.dequeue(6);
    assert!(matches!(
        verdict(&mut table, &second()),
        Verdict::Refused(_)
    ));
    assert_eq!(victims(&table, 6), [] as [u32; 0]);
    // The victims are gone: there is room for both.
    for slot in [0, 2, 3] {
        leave(&table, slot, ALICE);
    }
    assert!(table.complete(5));
    assert!(is_admitted(&mut table, &follows));
    // The first gives up: now the second is to see for itself.
    let mut table = self::table();
    put_at_two_places(&mut table);
    assert_eq!(replaced(&mut table, &on_the_train(two)), [100, 102, 103]);
    assert!(waits(&mut table, &follows));
    table.roll_back(5);
    assert_eq!(replaced(&mut table, &follows), [100, 102, 103]);
}

#[test]
fn nobody_holds_on_to_an_address_that_is_being_left() {
    // Found by a property test. Alice leaves her desk for home, where bob comes from, who leaves it for a socket.
    let mut table = table();
    let two = places(2, oldest, in_database(APP));
    put(&mut table, 1, from(DESK, of(ALICE, 1)));
    put(&mut table, 2, from(HOME, of(BOB, 2)));
    let bob = login(3, of(BOB, LATE), [two]);
    assert_eq!(replaced(&mut table, &bob), [102]);
    let alice = login(4, from(HOME, of(ALICE, LATE + 1)), [two]);
    assert_eq!(replaced(&mut table, &alice), [101]);
    let carol = login(5, from(DESK, of(CAROL, LATE + 2)), [two]);
    assert!(
        !is_admitted(&mut table, &carol),
        "a third place if both complete"
    );
}

#[test]
fn whoever_was_told_to_end_does_not_come_back_while_there_are_too_many() {
    let mut table = table();
    for (slot, address) in ["10.0.0.1", "10.0.0.2", "10.0.0.3"].iter().enumerate() {
        put(&mut table, slot, from(address, of(ALICE, slot as u64)));
    }
    let limit = places(2, at_most, of_role(ALICE));
    let again = login(5, from("10.0.0.1", of(ALICE, LATE)), [limit]);
    assert!(is_admitted(&mut table, &again), "it is counted already");
    leave(&table, 5, ALICE);
    let reason = EndReason::Swept {
        source: limit.source,
        unit: limit.unit,
        in_use: 3,
        max: 2,
    };
    table.tell_to_end(0, reason);
    assert!(!is_admitted(&mut table, &again));
    assert!(is_admitted(
        &mut table,
        &login(5, from("10.0.0.2", of(ALICE, LATE)), [limit])
    ));
    leave(&table, 5, ALICE);
    // Of two sessions from there one is to stay.
    put(&mut table, 3, from("10.0.0.1", of(ALICE, 3)));
    assert!(is_admitted(&mut table, &again));
    leave(&table, 5, ALICE);
    leave(&table, 3, ALICE);
    // Another one has left: there is room.
    leave(&table, 2, ALICE);
    assert!(is_admitted(&mut table, &again));
}

#[test]
fn an_address_from_which_one_may_not_end_stays() {
    let not = |change: &dyn Fn(&mut Session)| {
        let mut table = table();
        put_at_two_places(&mut table);
        let mut session = from(DESK, of(ALICE, 3));
        change(&mut session);
        put(&mut table, 2, session);
        let limit = places(2, oldest, in_database(APP));
        let home = replaced(&mut table, &on_the_train(limit));
        table.roll_back(5);
        let alone = places(1, oldest, in_database(APP));
        refused(&mut table, &on_the_train(alone));
        home
    };
    assert_eq!(not(&|session| session.arrival = NOW), [101], "too young");
    assert_eq!(not(&|session| session.exempt = true), [101]);
    assert_eq!(not(&|session| session.role = BOB), [101]);
    // Elsewhere it is none that the limit counts.
    let mut table = table();
    put_at_two_places(&mut table);
    put(&mut table, 2, elsewhere(from(DESK, young(ALICE))));
    let limit = places(2, oldest, in_database(APP));
    assert_eq!(replaced(&mut table, &on_the_train(limit)), [100, 103]);
}

#[test]
fn the_address_that_all_have_left_idle_for_longest_makes_room() {
    let mut table = table();
    put_at_two_places(&mut table);
    let limit = places(2, longest_idle, of_role(ALICE));
    let idle_at = |desk, home| {
        [(100, 7), (101, home), (102, 7), (103, desk)]
            .into_iter()
            .filter(|(_, since)| *since > 0)
            .collect::<Vec<_>>()
    };
    for (desk, home, ended) in [
        (9, 8, vec![101]),
        (8, 9, vec![100, 102, 103]),
        (0, 9, vec![101]),
    ] {
        let login = Attempt {
            is_idle: idle(&table, &idle_at(desk, home)),
            ..on_the_train(limit)
        };
        assert_eq!(replaced(&mut table, &login), ended);
        table.roll_back(5);
    }
    let nobody = Attempt {
        is_idle: idle(&table, &idle_at(0, 0)),
        ..on_the_train(limit)
    };
    refused(&mut table, &nobody);
}

#[test]
fn a_place_that_goes_to_another_limits_victims_successor_is_counted_once() {
    let mut table = table();
    put(&mut table, 0, from(DESK, of(ALICE, 1)));
    put(&mut table, 1, from(DESK, of(ALICE, 2)));
    // For a limit on sessions one ends, for that on addresses both.
    let limits = [oldest(2, of_role(ALICE)), places(1, oldest, of_role(ALICE))];
    let train = login(5, from(TRAIN, of(ALICE, LATE)), limits);
    assert_eq!(replaced(&mut table, &train), [100, 101]);
    table.roll_back(5);
    // With room for two addresses one of them stays at the desk.
    let limits = [oldest(2, of_role(ALICE)), places(2, oldest, of_role(ALICE))];
    let train = login(5, from(TRAIN, of(ALICE, LATE)), limits);
    assert_eq!(replaced(&mut table, &train), [100]);
    let home = [places(2, at_most, of_role(ALICE))];
    refused(&mut table, &login(6, from(HOME, of(ALICE, LATE)), home));
}

/// A limit of a waiter's counts addresses, and none of the login's does.
#[test]
fn a_waiters_limit_may_need_memory_that_the_login_has_not() {
    let mut table = table();
    put(&mut table, 0, from(DESK, of(ALICE, 1)));
    let two = at_most(2, in_database(APP));
    let limits = [places(1, at_most, in_database(APP)), two];
    let bob = patient(login(1, from(HOME, of(BOB, 2)), limits));
    assert!(waits(&mut table, &bob));
    let mut carol = login(2, from(TRAIN, of(CAROL, 3)), [two]);
    assert_eq!(decided(&mut table, &carol), Err(Missing::Tally));
    carol.rules.tally = true;
    assert!(is_admitted(&mut table, &carol), "bob does not go first");
    leave(&table, 2, CAROL);
    leave(&table, 0, ALICE);
    let excess = refused(
        &mut table,
        &Attempt {
            limits: &[at_most(1, in_database(APP))],
            ..carol
        },
    );
    assert_eq!(excess.ahead, 1);
    assert!(is_admitted(&mut table, &bob));
}

#[test]
fn under_a_limit_per_address_only_sessions_from_that_address_end() {
    let mut table = table();
    put(&mut table, 0, from("10.0.0.1", of(ALICE, 1)));
    put(&mut table, 1, from("10.0.0.2", of(ALICE, 2)));
    let limit = Limit {
        per: Per::Address,
        ..oldest(1, from_network("10.0.0.2/32"))
    };
    let late = login(2, from("10.0.0.2", of(ALICE, 9)), [limit]);
    assert_eq!(replaced(&mut table, &late), [101]);
}
