//! Which sessions end so that a login finds room: whole decisions.

use crate::attempt::{Attempt, Idle, Replacing, Rules};
use crate::decide::tests::decided as attempt;
use crate::limit::tests::{at_most, in_database, of_role};
use crate::limit::{Limit, OnExcess, Per, Scope, Who};
use crate::members::{Missing, SessionFilter};
use crate::own_table::OwnTable;
use crate::session::{Claim, EndReason, Session};
use crate::table::Table;
use crate::table::tests::session;
use crate::verdict::{Admission, Ended, Excess, Verdict};
use std::time::Duration;

const ALICE: u32 = 10;
const BOB: u32 = 11;
const APP: u32 = 5;
const WEB: u32 = 6;
const SECOND: i64 = 1_000_000;
const NOW: i64 = 100 * SECOND;

/// To `APP`, old enough to be replaced.
fn of(role: u32, arrival: u64) -> Session {
    Session {
        arrival,
        ..session(role, APP)
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
        may_wait: Some(false),
        tried: Duration::ZERO,
        max_waiters: 20,
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
        idle: None,
        rules,
    }
}

fn patient(login: Attempt) -> Attempt {
    Attempt {
        rules: Rules {
            may_wait: Some(true),
            ..login.rules
        },
        ..login
    }
}

fn is_in(table: &mut Table, slot: usize, session: Session) {
    table.claim(slot, 100 + slot as u32, session);
}

fn verdict(table: &mut Table, login: &Attempt) -> Verdict {
    attempt(table, login).expect("all is known")
}

fn pids(ended: &Ended) -> Vec<u32> {
    ended.shown.iter().flatten().copied().collect()
}

/// The process IDs of the sessions that end for it.
fn replaced(table: &mut Table, login: &Attempt) -> Vec<u32> {
    match verdict(table, login) {
        Verdict::Replacing(_, ended, _) => {
            assert_eq!(table.victims(login.slot).collect::<Vec<_>>(), pids(&ended));
            pids(&ended)
        }
        other => panic!("not replacing but {other:?}"),
    }
}

/// It is refused, and nothing is left of it.
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

/// Who is in and can be told to end.
fn state(table: &Table) -> (Vec<u32>, Vec<u32>) {
    (
        table.sessions().map(|(pid, _)| pid).collect(),
        (0..8)
            .filter_map(|slot| table.replaceable(slot))
            .map(|(pid, _)| pid)
            .collect(),
    )
}

fn count(table: &Table, scope: Scope) -> u32 {
    let members = Default::default();
    table.count(SessionFilter::new(scope, false, &members).expect("no group"))
}

fn leave(table: &Table, slot: usize, role: u32) {
    assert!(
        table
            .shared
            .release(slot, Claim::new(100 + slot as u32, role))
    );
}

#[test]
fn the_oldest_by_arrival_ends() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    // Neither by slot nor by the clock.
    is_in(&mut table, 0, of(ALICE, 5));
    is_in(
        &mut table,
        1,
        Session {
            started: 9 * SECOND,
            ..of(ALICE, 3)
        },
    );
    is_in(&mut table, 2, of(ALICE, 4));
    let limit = oldest(3, of_role(ALICE));
    assert_eq!(
        replaced(&mut table, &login(3, of(ALICE, 9), [limit])),
        [101]
    );
    assert_eq!(
        replaced(&mut table, &login(4, of(ALICE, 10), [limit])),
        [102]
    );
    assert_eq!(count(&table, of_role(ALICE)), 3);
}

#[test]
fn who_was_told_and_is_still_there_ends_last() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    is_in(&mut table, 0, of(ALICE, 1));
    is_in(&mut table, 1, of(ALICE, 2));
    let limit = oldest(2, of_role(ALICE));
    let first = login(2, of(ALICE, 9), [limit]);
    assert_eq!(replaced(&mut table, &first), [100]);
    table.tell_victims(2);
    table.roll_back(2);
    assert_eq!(
        replaced(&mut table, &login(3, of(ALICE, 10), [limit])),
        [101]
    );
    assert_eq!(
        replaced(&mut table, &login(4, of(ALICE, 11), [limit])),
        [100],
        "if there is no other"
    );
}

#[test]
fn only_sessions_of_its_own_role_end() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    is_in(&mut table, 0, of(BOB, 1));
    is_in(&mut table, 1, of(ALICE, 2));
    let limit = oldest(2, in_database(APP));
    let carol = login(2, of(12, 9), [limit]);
    assert_eq!(refused(&mut table, &carol).own, 0);
    assert_eq!(
        replaced(&mut table, &login(2, of(ALICE, 9), [limit])),
        [101]
    );
    // Nor does one that the limit does not count.
    is_in(
        &mut table,
        3,
        Session {
            database: WEB,
            ..of(BOB, 0)
        },
    );
    assert_eq!(replaced(&mut table, &login(4, of(BOB, 9), [limit])), [100]);
}

#[test]
fn only_sessions_that_arrived_before_it_end() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    is_in(&mut table, 0, of(ALICE, 7));
    let limit = oldest(1, of_role(ALICE));
    refused(&mut table, &login(1, of(ALICE, 6), [limit]));
    assert_eq!(
        replaced(&mut table, &login(1, of(ALICE, 8), [limit])),
        [100]
    );
}

#[test]
fn the_young_are_spared() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    let started = |started| Session {
        started,
        ..of(ALICE, 1)
    };
    let limit = oldest(1, of_role(ALICE));
    let late = login(1, of(ALICE, 2), [limit]);
    // By a clock that was set back meanwhile, too.
    for time in [NOW - SECOND + 1, NOW, NOW + SECOND] {
        is_in(&mut table, 0, started(time));
        refused(&mut table, &late);
    }
    is_in(&mut table, 0, started(NOW - SECOND));
    assert_eq!(replaced(&mut table, &late), [100]);
}

#[test]
fn of_the_idle_the_one_that_is_idle_longest_ends() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    for slot in 0..5 {
        is_in(&mut table, slot, of(ALICE, slot as u64));
    }
    is_in(&mut table, 5, of(BOB, 0));
    let limit = longest_idle(5, of_role(ALICE));
    let unknowing = login(6, of(ALICE, 9), [limit]);
    let before = state(&table);
    assert_eq!(attempt(&mut table, &unknowing), Err(Missing::Idle));
    assert_eq!(state(&table), before);
    // The first two are at work, the third is idle, though for less than five seconds.
    let idle: Idle = vec![
        (102, NOW - 5 * SECOND + 1),
        (103, NOW - 6 * SECOND),
        (104, NOW - 7 * SECOND),
        (105, NOW - 9 * SECOND),
    ];
    let knowing = |slot| Attempt {
        idle: Some(Box::leak(Box::new(idle.clone()))),
        ..login(slot, of(ALICE, 9), [limit])
    };
    assert_eq!(replaced(&mut table, &knowing(6)), [104]);
    assert_eq!(replaced(&mut table, &knowing(7)), [103]);
    table.roll_back(6);
    leave(&table, 4, ALICE);
    table.claim(6, 106, of(ALICE, 10));
    assert_eq!(refused(&mut table, &knowing(4)).in_use, 5);
}

#[test]
fn who_is_idle_matters_only_if_someone_could_end() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    is_in(&mut table, 0, of(BOB, 1));
    is_in(
        &mut table,
        1,
        Session {
            started: NOW,
            ..of(ALICE, 1)
        },
    );
    refused(
        &mut table,
        &login(2, of(ALICE, 9), [longest_idle(2, in_database(APP))]),
    );
}

#[test]
fn the_exempt_the_arriving_and_those_told_already_are_spared() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    is_in(
        &mut table,
        0,
        Session {
            exempt: true,
            ..of(ALICE, 1)
        },
    );
    is_in(&mut table, 1, of(ALICE, 2));
    let limit = oldest(2, of_role(ALICE));
    assert_eq!(
        replaced(&mut table, &login(2, of(ALICE, 3), [limit])),
        [101]
    );
    let next = login(3, of(ALICE, 4), [limit]);
    assert_eq!(refused(&mut table, &next).in_use, 2);
    leave(&table, 1, ALICE);
    assert_eq!(refused(&mut table, &next).in_use, 2, "not arrived yet");
    assert!(table.complete(2));
    assert_eq!(replaced(&mut table, &next), [102]);
}

#[test]
fn one_limit_that_refuses_is_enough() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    is_in(&mut table, 0, of(ALICE, 1));
    let replaces = oldest(1, of_role(ALICE));
    let refuses = at_most(1, in_database(APP));
    for limits in [[replaces, refuses], [refuses, replaces]] {
        let late = login(1, of(ALICE, 9), limits);
        assert_eq!(refused(&mut table, &late).limit, refuses);
    }
    // Unless it has room.
    let roomy = at_most(2, in_database(APP));
    assert_eq!(
        replaced(&mut table, &login(1, of(ALICE, 9), [replaces, roomy])),
        [100]
    );
}

#[test]
fn nobody_ends_for_a_login_that_would_fail() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    is_in(&mut table, 0, of(ALICE, 1));
    let mut fails = login(1, of(ALICE, 9), [oldest(1, of_role(ALICE))]);
    fails.rules.replacing.allowed = false;
    refused(&mut table, &fails);
}

#[test]
fn one_that_makes_room_under_several_limits_ends_alone() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    is_in(
        &mut table,
        0,
        Session {
            database: WEB,
            ..of(ALICE, 1)
        },
    );
    is_in(&mut table, 1, of(ALICE, 2));
    // The first of these by itself would end the session in the other database.
    let limits = [oldest(2, of_role(ALICE)), oldest(1, in_database(APP))];
    assert_eq!(replaced(&mut table, &login(2, of(ALICE, 9), limits)), [101]);
}

#[test]
fn each_limit_is_given_room_or_none() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    let elsewhere = Session {
        database: WEB,
        ..of(ALICE, 1)
    };
    is_in(&mut table, 0, from("10.0.0.2", elsewhere));
    is_in(&mut table, 1, of(ALICE, 2));
    let net = oldest(1, from_network("10.0.0.0/8"));
    let app = oldest(1, in_database(APP));
    let both = login(2, from("10.0.0.1", of(ALICE, 9)), [net, app]);
    assert_eq!(replaced(&mut table, &both), [100, 101]);
    table.roll_back(2);
    // One of them cannot be: neither ends.
    table.claim(
        0,
        100,
        Session {
            exempt: true,
            ..from("10.0.0.2", elsewhere)
        },
    );
    assert_eq!(refused(&mut table, &both).limit, net);
}

#[test]
fn under_a_lowered_limit_several_end() {
    let mut memory = OwnTable::new(16, 64);
    let mut table = memory.table();
    for slot in 0..8 {
        is_in(&mut table, slot, of(ALICE, slot as u64));
    }
    let late = |max| login(8, of(ALICE, 9), [oldest(max, of_role(ALICE))]);
    assert_eq!(replaced(&mut table, &late(6)), [100, 101, 102]);
    assert_eq!(count(&table, of_role(ALICE)), 8, "until they are gone");
    table.roll_back(8);
    let Verdict::Replacing(admission, ended, without) = verdict(&mut table, &late(1)) else {
        panic!("not replacing");
    };
    assert_eq!((ended.number, without.in_use, without.own), (8, 8, 8));
    assert_eq!(pids(&ended), [100, 101, 102, 103, 104], "the first few");
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
fn if_not_enough_can_end_none_does() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    is_in(&mut table, 0, of(ALICE, 1));
    is_in(
        &mut table,
        1,
        Session {
            started: NOW,
            ..of(ALICE, 2)
        },
    );
    let limit = oldest(1, of_role(ALICE));
    refused(&mut table, &login(2, of(ALICE, 9), [limit]));
    let none = oldest(0, of_role(ALICE));
    leave(&table, 1, ALICE);
    refused(&mut table, &login(2, of(ALICE, 9), [none]));
}

/// Alice's first session is at one address and in one database, its successor at and in another.
#[test]
fn an_heir_counts_beside_whom_it_replaces_only_where_a_limit_covers_one_of_them() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    let there = Session {
        database: WEB,
        ..of(ALICE, 1)
    };
    is_in(&mut table, 0, from("10.0.0.1", there));
    let here = from("10.0.0.2", of(ALICE, 2));
    let limit = oldest(1, of_role(ALICE));
    assert_eq!(replaced(&mut table, &login(1, here, [limit])), [100]);
    let (one, two) = (from_network("10.0.0.1/32"), from_network("10.0.0.2/32"));
    let counts = |table: &Table| {
        let scopes = [of_role(ALICE), in_database(WEB), in_database(APP), one, two];
        scopes.map(|scope| count(table, scope))
    };
    assert_eq!(counts(&table), [1, 1, 1, 1, 1]);
    // So whoever is limited by where it leaves waits until it has left.
    let bob = login(2, from("10.0.0.1", of(BOB, 3)), [at_most(1, one)]);
    refused(&mut table, &bob);
    leave(&table, 0, ALICE);
    assert_eq!(counts(&table), [1, 0, 1, 0, 1]);
    assert!(table.complete(1));
    assert_eq!(counts(&table), [1, 0, 1, 0, 1]);
}

/// Else someone could take a place that falls back, or that the server still counts.
#[test]
fn the_heir_of_two_counts_as_two_until_one_is_gone() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    for slot in 0..3 {
        is_in(&mut table, slot, of(ALICE, slot as u64));
    }
    let limit = oldest(2, of_role(ALICE));
    assert_eq!(
        replaced(&mut table, &login(3, of(ALICE, 9), [limit])),
        [100, 101]
    );
    leave(&table, 2, ALICE);
    let next = login(4, of(ALICE, 10), [at_most(2, of_role(ALICE))]);
    assert_eq!(refused(&mut table, &next).in_use, 2);
    leave(&table, 1, ALICE);
    assert!(matches!(verdict(&mut table, &next), Verdict::Admitted(_)));
    assert_eq!(count(&table, of_role(ALICE)), 2);
    table.roll_back(3);
    assert_eq!(count(&table, of_role(ALICE)), 2, "it gave up");
}

#[test]
fn a_place_that_is_given_back_is_its_sessions_again() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    for slot in 0..2 {
        is_in(&mut table, slot, of(ALICE, slot as u64));
    }
    let limit = oldest(2, of_role(ALICE));
    let before = state(&table);
    assert_eq!(
        replaced(&mut table, &login(2, of(ALICE, 8), [limit])),
        [100]
    );
    assert_eq!(
        replaced(&mut table, &login(3, of(ALICE, 9), [limit])),
        [101]
    );
    table.roll_back(2);
    assert_eq!(table.victims(2).count(), 0);
    assert_eq!(table.victims(3).collect::<Vec<_>>(), [101], "another's");
    table.roll_back(3);
    assert_eq!(state(&table), before);
    assert_eq!(
        replaced(&mut table, &login(2, of(ALICE, 10), [limit])),
        [100]
    );
}

#[test]
fn a_login_arrives_when_all_before_it_are_gone() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    for slot in 0..2 {
        is_in(&mut table, slot, of(ALICE, slot as u64));
    }
    let late = login(2, of(ALICE, 9), [oldest(1, of_role(ALICE))]);
    assert_eq!(replaced(&mut table, &late), [100, 101]);
    assert!(!table.complete(2));
    leave(&table, 0, ALICE);
    assert!(!table.complete(2));
    assert_eq!(table.victims(2).collect::<Vec<_>>(), [101]);
    // The other's process is gone, too, and its slot is another's, who asks for itself.
    let next = login(1, of(BOB, 10), [at_most(0, of_role(BOB))]);
    assert!(matches!(verdict(&mut table, &next), Verdict::Refused(_)));
    assert!(table.complete(2));
    is_in(&mut table, 1, of(BOB, 11));
    assert_eq!(count(&table, in_database(APP)), 2);
    assert_eq!(state(&table).1, [101, 102]);
}

#[test]
fn who_is_told_to_end_finds_why_until_the_slot_is_anothers() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    is_in(&mut table, 0, of(ALICE, 1));
    is_in(&mut table, 1, of(ALICE, 2));
    let late = login(
        2,
        from("10.0.0.1", of(ALICE, 9)),
        [oldest(2, of_role(ALICE))],
    );
    assert_eq!(replaced(&mut table, &late), [100]);
    assert_eq!(table.end_reason(0), None, "not told yet");
    table.tell_victims(2);
    let address = late.session.address;
    assert_eq!(table.end_reason(0), Some(EndReason::Replaced(address)));
    assert_eq!((table.end_reason(1), table.end_reason(2)), (None, None));
    table.vacate(0);
    assert_eq!(table.end_reason(0), None);
}

#[test]
fn a_dry_run_says_who_would_end_and_ends_nobody() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    is_in(&mut table, 0, of(ALICE, 1));
    let would = |table: &mut Table, slot, limits: &[Limit]| {
        let (replaceable, asking) = (state(table).1, login(slot, of(ALICE, 2), limits));
        let verdict = verdict(table, &asking);
        let Verdict::Admitted(Admission {
            over: Some((excess, ended)),
            ..
        }) = verdict
        else {
            panic!("not admitted over a limit but {verdict:?}");
        };
        leave(table, slot, ALICE);
        assert_eq!(state(table).1, replaceable);
        (excess.limit, excess.in_use, pids(&ended))
    };
    let replaces = tried_out(oldest(1, of_role(ALICE)));
    let refuses = tried_out(at_most(1, in_database(APP)));
    assert_eq!(would(&mut table, 1, &[replaces]), (replaces, 1, vec![100]));
    assert_eq!(would(&mut table, 1, &[refuses]), (refuses, 1, vec![]));
    assert_eq!(
        would(&mut table, 1, &[replaces, refuses]),
        (refuses, 1, vec![])
    );
    // Beside one that is enforced, which ends another.
    is_in(
        &mut table,
        1,
        Session {
            database: WEB,
            ..of(ALICE, 0)
        },
    );
    let limits = [
        oldest(2, of_role(ALICE)),
        tried_out(oldest(1, in_database(APP))),
    ];
    let Verdict::Replacing(admission, ended, _) =
        verdict(&mut table, &login(2, of(ALICE, 9), limits))
    else {
        panic!("not replacing");
    };
    assert_eq!(pids(&ended), [101]);
    let over = admission
        .over
        .map(|(excess, ended)| (excess.limit, pids(&ended)));
    assert_eq!(over, Some((limits[1], vec![100])));
    assert_eq!(table.victims(2).collect::<Vec<_>>(), [101]);
}

#[test]
fn a_login_waits_before_it_replaces() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    is_in(&mut table, 0, of(ALICE, 1));
    let mut late = patient(login(1, of(ALICE, 9), [oldest(1, of_role(ALICE))]));
    assert_eq!(verdict(&mut table, &late), Verdict::Waiting);
    late.rules.tried = late.limits[0].max_wait;
    assert_eq!(replaced(&mut table, &late), [100]);
    assert_eq!(table.waiters().count(), 0);
}

#[test]
fn a_waiter_does_not_get_the_place_that_is_left_to_another() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    is_in(&mut table, 0, of(ALICE, 1));
    let waits = patient(login(1, of(BOB, 2), [at_most(1, in_database(APP))]));
    assert_eq!(verdict(&mut table, &waits), Verdict::Waiting);
    let late = login(2, of(ALICE, 3), [oldest(1, in_database(APP))]);
    assert_eq!(replaced(&mut table, &late), [100]);
    assert_eq!(verdict(&mut table, &waits), Verdict::Waiting);
    leave(&table, 0, ALICE);
    assert_eq!(verdict(&mut table, &waits), Verdict::Waiting);
    assert!(table.complete(2));
    assert_eq!(verdict(&mut table, &waits), Verdict::Waiting);
    table.roll_back(2);
    assert!(matches!(verdict(&mut table, &waits), Verdict::Admitted(_)));
}

#[test]
fn room_that_earlier_logins_wait_for_is_left_to_them() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    is_in(&mut table, 0, of(ALICE, 1));
    is_in(&mut table, 1, of(BOB, 1));
    let waits = patient(login(2, of(BOB, 2), [at_most(2, in_database(APP))]));
    assert_eq!(verdict(&mut table, &waits), Verdict::Waiting);
    leave(&table, 1, BOB);
    // One place is free, and bob's; carol has nobody to end, alice has.
    let limit = oldest(2, in_database(APP));
    let carol = refused(&mut table, &login(3, of(12, 3), [limit]));
    assert_eq!((carol.in_use, carol.ahead), (1, 1));
    assert_eq!(
        replaced(&mut table, &login(3, of(ALICE, 4), [limit])),
        [100]
    );
    assert!(matches!(verdict(&mut table, &waits), Verdict::Admitted(_)));
}

#[test]
fn what_a_limit_counts_by_address_is_not_given_room_elsewhere() {
    let mut memory = OwnTable::new(8, 32);
    let mut table = memory.table();
    is_in(&mut table, 0, from("10.0.0.1", of(ALICE, 1)));
    is_in(&mut table, 1, from("10.0.0.2", of(ALICE, 2)));
    let limit = Limit {
        per: Per::Address,
        ..oldest(1, from_network("10.0.0.2/32"))
    };
    let late = login(2, from("10.0.0.2", of(ALICE, 9)), [limit]);
    assert_eq!(replaced(&mut table, &late), [101]);
}
