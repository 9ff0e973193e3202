//! The decision on a login: count, decide and claim under one hold of the exclusive lock.

use crate::attempt::{Attempt, FullLimit, MayWait, is_free};
use crate::count::SessionCounter;
use crate::limit::{Limit, Scope, Unit, Who};
use crate::members::{Missing, SessionFilter};
use crate::order::{find_admissible, find_exceeded, find_first};
use crate::queue::Waiter;
use crate::replace::make_room;
use crate::servers::place::Contact;
use crate::session::Session;
use crate::table::Table;
use crate::tally::View;
use crate::verdict::{Admission, Ended, Excess, NotWaited, ShownSession, Standing, Verdict};

/// Admits the login, queues it, or refuses it. If an input is missing, the login has no claim, but it may have entered
/// the queue: the caller supplies the input and tries again. After it has dropped the lock, the caller wakes the slots
/// in `counter.wake`.
///
/// Who is woken: of the waiters, a session that ends wakes only the first, because its process knows nothing of limits.
/// The first waiter goes in; or it finds the waiters behind it that may go in, and wakes them. A waiter that leaves the queue, or
/// from now on waits for something else, may leave room to those behind it: then the first waiter is woken to try again.
pub fn attempt(
    table: &mut Table,
    counter: &mut SessionCounter,
    login: &Attempt,
) -> Result<Verdict, Missing> {
    counter.wake.clear();
    // None: it was not in the queue. Some: whether it would wait for the same as before.
    let before = table
        .waiter(login.slot)
        .map(|waiter| login.waits_for_the_same_as(&waiter));
    let verdict = decide(table, counter, login)?;
    let first = table.shared.first_waiter();
    match (&verdict, before) {
        (_, None) => {}
        (Verdict::Waiting, _) if first == Some(login.slot) => {
            find_admissible(table, counter, login);
        }
        (Verdict::Waiting, Some(true)) => {}
        _ => counter.wake.extend(first),
    }
    Ok(verdict)
}

fn decide(
    table: &mut Table,
    counter: &mut SessionCounter,
    login: &Attempt,
) -> Result<Verdict, Missing> {
    table.vacate(login.slot);
    let across = login.limits.iter().any(|limit| limit.place.is_some());
    if across {
        let boottime = (login.across.boottime)();
        counter.contact = table.places.contact(boottime);
        // Nobody has joined for so long: others need not wait for that, too.
        if counter.contact == Contact::Joining && login.gives_up_on_joining(table, boottime) {
            table.places.reach.answers = false;
            counter.contact = Contact::Lost;
        }
    } else {
        table.leave_places(login.slot);
    }
    counter.refresh(table);
    let mut exceeded = find_exceeded(table, counter, login)?;
    let contact = counter.contact;
    let asks = |table: &Table, exceeded: Option<FullLimit>| {
        exceeded.is_some_and(|(limit, _)| login.awaits_answer(table, contact, limit))
    };
    let mut only_asks = asks(table, exceeded);
    if exceeded.is_some() && login.must_know_whether_to_wait(only_asks) {
        return Err(Missing::Patience);
    }
    let mut not_waited = None;
    let mut follows = follows_a_successor(table, counter, login, exceeded)?;
    if exceeded.is_some_and(|(limit, _)| login.has_time(limit) || follows || only_asks) {
        not_waited = match only_asks {
            true => login
                .may_wait()
                .is_none()
                .then_some(NotWaited::NothingToSpare),
            false => why_not_wait(table, login),
        };
        if not_waited.is_none() && !enqueue(table, login) {
            not_waited = Some(NotWaited::NoRoomForLimits);
        }
        if not_waited.is_none() {
            // A session that left before it saw this login in the queue did not wake it: count again.
            counter.refresh(table);
            exceeded = find_exceeded(table, counter, login)?;
            follows = follows_a_successor(table, counter, login, exceeded)?;
            only_asks = asks(table, exceeded);
            let waits = |limit: &Limit| login.lets_wait(limit) || follows || only_asks;
            if exceeded.is_some_and(|(limit, _)| waits(limit)) {
                let has_place = |limit: &Limit| {
                    let place = limit.place.and_then(|number| table.places.get(number));
                    place.is_some()
                };
                let elsewhere = |limit: &Limit| limit.enforced && !has_place(limit);
                let asks = across
                    && login
                        .first_full(table, counter, elsewhere, |_| true)?
                        .is_none();
                note_extra(table, counter, login);
                let now = login.across.now;
                let can_ask = contact.may_answer();
                table.places.wait(login.slot, asks, only_asks, can_ask, now);
                return Ok(Verdict::Waiting);
            }
        }
    }
    let over = tried_out(table, counter, login)?;
    let verdict = match exceeded {
        // No session ends for it: another login has seen to that.
        Some((limit, ahead)) if follows => {
            let excess = excess(table, counter, login, limit, ahead)?;
            Verdict::Refused(Excess {
                not_waited: not_waited.filter(|_| login.has_time(limit)),
                ..excess
            })
        }
        Some(full) => match replace(table, counter, login, full, |limit| limit.enforced)? {
            // A session has left meanwhile: there is room without a victim.
            Ok((_, Ended { number: 0, .. })) => {
                table.complete(login.slot);
                Verdict::Admitted(admission(table, counter, login, over)?)
            }
            Ok((excess, ended)) => {
                Verdict::Replacing(admission(table, counter, login, over)?, ended, excess)
            }
            // It may be another limit than the one for which the login was to wait.
            Err(excess) => Verdict::Refused(Excess {
                not_waited: not_waited.filter(|_| login.has_time(&excess.limit)),
                ..excess
            }),
        },
        None => {
            claim(table, counter, login);
            Verdict::Admitted(admission(table, counter, login, over)?)
        }
    };
    let waited = table.dequeue(login.slot);
    if matches!(verdict, Verdict::Refused(_)) {
        table.leave_places(login.slot);
    } else if across {
        note_extra(table, counter, login);
        table.places.take(login.slot, waited);
    }
    Ok(verdict)
}

/// Notes for each place of the login how many sessions its limit counts that have no place.
fn note_extra(table: &mut Table, counter: &SessionCounter, login: &Attempt) {
    for limit in login.limits {
        // The members of its own groups are known by now.
        if let (Some(number), Ok(filter)) = (limit.place, login.counted(limit.condition())) {
            let counted = counter.count(table, filter);
            table.note_counted(number, counted);
        }
    }
}

/// Whether the limit that is full, if one is, counts different addresses, and all sessions from that of the login are logins of its role that wait for
/// their victims to go. When these have gone there is room for this login, too; so it waits for that, however long it has
/// waited, and replaces nobody. That takes as long as a login waits for its victims, which is bounded.
fn follows_a_successor(
    table: &Table,
    counter: &SessionCounter,
    login: &Attempt,
    exceeded: Option<FullLimit>,
) -> Result<bool, Missing> {
    let counts_addresses = |(limit, _): &FullLimit| limit.unit != Unit::Session && limit.max > 0;
    let Some((limit, _)) = exceeded.filter(counts_addresses) else {
        return Ok(false);
    };
    let value = limit.unit.value(&login.session);
    let filter = login.counted(limit.condition())?;
    let mut some = false;
    for slot in counter.covered(table, filter) {
        let session = table.session(slot);
        let alike = session.filter(|session| limit.unit.value(session) == value);
        if let Some(session) = alike {
            if session.role != login.session.role || !table.is_pending(slot) {
                return Ok(false);
            }
            some = true;
        }
    }
    Ok(some)
}

/// Makes the login a session.
fn claim(table: &mut Table, counter: &mut SessionCounter, login: &Attempt) {
    table.claim(login.slot, login.pid, login.session);
    counter.set(login.slot, login.session.role);
}

/// Undoes `claim`. The login's victims, if it has any, are victims no more.
fn roll_back(table: &mut Table, counter: &mut SessionCounter, login: &Attempt) {
    table.roll_back(login.slot);
    counter.set(login.slot, 0);
}

/// What would become of the login if the limits that are only tried out were enforced. None if it would find room; else
/// the limit that it exceeds, and the sessions that would end for it: none if it would be refused.
fn tried_out(
    table: &mut Table,
    counter: &mut SessionCounter,
    login: &Attempt,
) -> Result<Option<(Excess, Ended)>, Missing> {
    let Some(limit) = login.first_full(table, counter, |limit| !limit.enforced, |_| true)? else {
        return Ok(None);
    };
    let replaced = replace(table, counter, login, (limit, 0), |limit| !limit.enforced)?;
    roll_back(table, counter, login);
    Ok(match replaced {
        Ok((_, Ended { number: 0, .. })) => None,
        Ok(would) => Some(would),
        Err(excess) => Some((excess, Ended::default())),
    })
}

/// Makes room for the login under the chosen limits, of which `limit` is full. Ok: the login has claimed its slot, and
/// these are its victims, and the excess is that without them. Err: the limit that refuses it; nothing has changed.
fn replace(
    table: &mut Table,
    counter: &mut SessionCounter,
    login: &Attempt,
    (limit, ahead): FullLimit,
    chosen: impl Fn(&Limit) -> bool,
) -> Result<Result<(Excess, Ended), Excess>, Missing> {
    let without = excess(table, counter, login, limit, ahead)?;
    if !login.rules.replacing.lets_end(limit) {
        return Ok(Err(without));
    }
    find_first(table, counter, login)?;
    claim(table, counter, login);
    // Others will be gone.
    counter.forget_in_use();
    let refuses = make_room(table, counter, login, chosen);
    if !matches!(refuses, Ok(None)) {
        roll_back(table, counter, login);
    }
    Ok(match refuses? {
        Some((limit, ahead)) => Err(excess(table, counter, login, limit, ahead)?),
        None => Ok((without, ended(table, login))),
    })
}

/// The victims of the login.
fn ended(table: &Table, login: &Attempt) -> Ended {
    let mut ended = Ended::default();
    for pid in table.victims(login.slot) {
        if let Some(free) = ended.shown.get_mut(ended.number as usize) {
            *free = Some(pid);
        }
        ended.number += 1;
    }
    ended
}

/// What is said of the login, which has claimed its slot. Completes `counter.in_use`.
fn admission(
    table: &Table,
    counter: &SessionCounter,
    login: &Attempt,
    over: Option<(Excess, Ended)>,
) -> Result<Admission, Missing> {
    let alike = Scope {
        who: Who::Role(login.session.role),
        database: Some(login.session.database),
        network: None,
    };
    let alike = SessionFilter::new(alike, true, login.members)?;
    let sessions = counter.count_when_complete(table, login.slot, alike);
    for (limit, known) in login.limits.iter().zip(&counter.in_use) {
        if known.get().is_none() {
            known.set(Some(count_when_complete(table, counter, login, limit)?));
        }
    }
    let elsewhere = match login.rules.audit {
        true => elsewhere(table, login)?,
        false => None,
    };
    Ok(Admission {
        over,
        sessions,
        elsewhere,
    })
}

/// How many sessions, or units of them, the limit counts when the login's victims are gone.
fn count_when_complete(
    table: &Table,
    counter: &SessionCounter,
    login: &Attempt,
    limit: &Limit,
) -> Result<u32, Missing> {
    let filter = login.counted(limit.condition())?;
    let complete = View::Complete(login.slot);
    Ok(match limit.unit {
        Unit::Session => counter.count_when_complete(table, login.slot, filter),
        unit => {
            counter
                .different(table, filter, unit, complete, &[], None)?
                .in_use
        }
    })
}

/// A session of the login's role from another address. Sessions over a Unix-domain socket have no address: they are
/// left out, and for such a login there is none.
fn elsewhere(table: &Table, login: &Attempt) -> Result<Option<ShownSession>, Missing> {
    let own = Scope {
        who: Who::Role(login.session.role),
        database: None,
        network: None,
    };
    let differs = |(_, _, other): &(usize, u32, Session)| {
        let addresses = login.session.address.zip(other.address);
        addresses.is_some_and(|(one, another)| one != another)
    };
    let mut own = table.staying(SessionFilter::new(own, true, login.members)?);
    Ok(own
        .find(differs)
        .map(|(_, pid, session)| ShownSession::new(pid, &session)))
}

/// How each limit stands for a login that only asks. It would be admitted at once if there is room under all enforced
/// ones. Allocates, so it needs a copy of the table.
pub fn explain(table: &Table, login: &Attempt) -> Result<Vec<Standing>, Missing> {
    let tallies = |waiter: Waiter| {
        let mut conditions = waiter.conditions.iter();
        conditions.any(|condition| condition.unit != Unit::Session)
    };
    let tally = login.tallies() || table.waiters().any(tallies);
    let mut counter = SessionCounter::new(table.shared, login.members, false, tally);
    counter.refresh(table);
    find_first(table, &mut counter, login)?;
    let standing = |limit: &Limit| {
        let condition = limit.condition();
        let filter = login.counted(condition)?;
        let (fits, _) = is_free(table, &counter, login, condition, &login.session)?;
        Ok(Standing {
            limit: *limit,
            in_use: counter.count_units(table, filter, limit.unit)?,
            fits,
        })
    };
    login.limits.iter().map(standing).collect()
}

/// Why the login may not wait, if it may not: by the rules, or because the queue has no room for it. Whoever waits
/// already goes on, unless it does so on another account from now on.
fn why_not_wait(table: &Table, login: &Attempt) -> Option<NotWaited> {
    if login.session.walsender {
        return Some(NotWaited::WalSender);
    }
    let Some(MayWait {
        connections,
        account,
    }) = login.may_wait()
    else {
        return Some(NotWaited::NothingToSpare);
    };
    let (mut all, mut of_role, mut on_account) = (0, 0, 0);
    // Of the room for what they wait for.
    let (mut taken, mut taken_on_account) = (0, login.conditions().count());
    for waiter in table.waiters() {
        if table.places.only_asks(waiter.slot) {
            taken += waiter.conditions.len();
        } else if waiter.slot != login.slot {
            let conditions = waiter.conditions.len();
            all += 1;
            taken += conditions;
            of_role += u32::from(waiter.session.role == login.session.role);
            if waiter.account == account {
                on_account += 1;
                taken_on_account += conditions;
            }
        } else if waiter.account == account {
            return None;
        }
    }
    let max = login.rules.max_waiters;
    let left = (max - max / 4).saturating_sub(all).min(connections);
    let room = table.conditions.len();
    let room_left = (room - room / 4).saturating_sub(taken);
    if all >= max {
        Some(NotWaited::QueueFull(all))
    } else if of_role >= max.div_ceil(4) {
        Some(NotWaited::RoleQueueFull(of_role))
    } else if account.is_some() && on_account >= left {
        account.map(NotWaited::AccountFull)
    } else if account.is_some() && taken_on_account > room_left {
        Some(NotWaited::NoRoomForLimits)
    } else {
        None
    }
}

fn enqueue(table: &mut Table, login: &Attempt) -> bool {
    table.charge(login.slot, login.may_wait().and_then(|it| it.account));
    table.enqueue(login.slot, login.session, login.conditions())
}

/// Keeps the sessions that arrived first, the oldest first.
fn show(shown: &mut [Option<(u64, ShownSession)>; 5], pid: u32, session: &Session) {
    let mut next = Some((session.arrival, ShownSession::new(pid, session)));
    for place in shown {
        let is_older =
            |(arrival, _): &(u64, ShownSession)| place.is_none_or(|(other, _)| *arrival < other);
        if next.as_ref().is_some_and(is_older) {
            std::mem::swap(place, &mut next);
        }
    }
}

/// What a refusal says of the limit.
fn excess(
    table: &Table,
    counter: &SessionCounter,
    login: &Attempt,
    limit: &Limit,
    ahead: u32,
) -> Result<Excess, Missing> {
    let filter = login.counted(limit.condition())?;
    let own = filter.of(login.session.role);
    let mut shown = [None; 5];
    for (pid, session) in counter.counted(table, own) {
        show(&mut shown, pid, &session);
    }
    Ok(Excess {
        limit: *limit,
        in_use: counter.count_units(table, filter, limit.unit)?,
        ahead,
        own: counter.count(table, own),
        shown: shown.map(|shown| shown.map(|(_, session)| session)),
        not_waited: None,
        elsewhere: login.elsewhere(table, counter.contact, limit),
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::account::Account;
    use crate::attempt::{Replacing, Rules};
    use crate::limit::tests::{at_most, in_database, of_role};
    use crate::members::Members;
    use crate::own_table::OwnTable;
    use crate::servers::place::AcrossRules;
    use crate::session::Claim;
    use crate::table::tests::session;
    use std::cell::Cell;
    use std::time::Duration;

    const ALICE: u32 = 10;
    const BOB: u32 = 11;
    const CAROL: u32 = 12;
    const TEAM: u32 = 20;
    const APP: u32 = 5;
    const WEB: u32 = 6;

    /// There are connections to wait in, and nobody is charged.
    pub const WAIT: MayWait = MayWait {
        connections: u32::MAX,
        account: None,
    };

    /// A login of `role` to `APP` from the process at `slot`, that may wait.
    fn login(slot: usize, role: u32, limits: impl Into<Vec<Limit>>) -> Attempt<'static> {
        let rules = Rules {
            count_walsenders: false,
            may_wait: Some(WAIT),
            tried: Duration::ZERO,
            max_waiters: 20,
            tally: false,
            replacing: Replacing {
                allowed: true,
                now: 1_000_000,
                min_age: Duration::from_secs(1),
                idle_after: Duration::from_millis(500),
            },
            audit: false,
        };
        Attempt {
            slot,
            pid: 100 + slot as u32,
            session: session(role, APP),
            limits: limits.into().leak(),
            members: Box::leak(Box::default()),
            is_idle: &|_, _| false,
            across: AcrossRules::NONE,
            rules,
        }
    }

    fn at_once(mut login: Attempt) -> Attempt {
        login.rules.may_wait = Some(MayWait::NOT);
        login
    }

    fn alice(slot: usize, max: u32) -> Attempt<'static> {
        login(slot, ALICE, [at_most(max, of_role(ALICE))])
    }

    pub fn decided(table: &mut Table, login: &Attempt) -> Result<Verdict, Missing> {
        let may_replace = login.rules.replacing.allowed;
        let tallies = login.tallies();
        let mut counter = SessionCounter::new(table.shared, login.members, may_replace, tallies);
        counter.in_use = vec![Cell::new(None); login.limits.len()];
        let verdict = super::attempt(table, &mut counter, login)?;
        if matches!(verdict, Verdict::Admitted(_) | Verdict::Replacing(..)) {
            for (limit, in_use) in login.limits.iter().zip(&counter.in_use) {
                let filter = login.counted(limit.condition())?;
                if filter.covers(&login.session) {
                    let counted = count_when_complete(table, &counter, login, limit)?;
                    assert_eq!(in_use.get(), Some(counted), "{limit:?}");
                }
            }
        }
        Ok(verdict)
    }

    /// Verdicts without the number of sessions, for which there is a test of its own.
    fn attempt(table: &mut Table, login: &Attempt) -> Verdict {
        match decided(table, login).expect("every group is known") {
            Verdict::Admitted(admission) => Verdict::Admitted(Admission {
                sessions: 0,
                ..admission
            }),
            other => other,
        }
    }

    fn leave(table: &Table, slot: usize, role: u32) {
        assert!(
            table
                .shared
                .release(slot, Claim::new(100 + slot as u32, role))
        );
    }

    const IN: Verdict = Verdict::Admitted(Admission {
        over: None,
        sessions: 0,
        elsewhere: None,
    });

    fn refused(verdict: Verdict) -> Excess {
        match verdict {
            Verdict::Refused(excess) => excess,
            other => panic!("not refused but {other:?}"),
        }
    }

    fn pids(excess: &Excess) -> Vec<u32> {
        excess
            .shown
            .iter()
            .flatten()
            .map(|shown| shown.pid)
            .collect()
    }

    #[test]
    fn exactly_max_are_admitted() {
        let mut memory = OwnTable::new(8, 32);
        let mut table = memory.table();
        for slot in 0..3 {
            assert_eq!(attempt(&mut table, &at_once(alice(slot, 3))), IN);
        }
        let excess = refused(attempt(&mut table, &at_once(alice(3, 3))));
        assert_eq!((excess.in_use, excess.own, excess.ahead), (3, 3, 0));
        assert_eq!(pids(&excess), [100, 101, 102]);
        leave(&table, 1, ALICE);
        assert_eq!(attempt(&mut table, &at_once(alice(3, 3))), IN);
    }

    #[test]
    fn a_limit_of_zero_admits_nobody() {
        let mut memory = OwnTable::new(1, 4);
        assert_eq!(
            refused(attempt(&mut memory.table(), &at_once(alice(0, 0)))).in_use,
            0
        );
    }

    #[test]
    fn a_refusal_shows_only_sessions_of_the_same_role() {
        let mut memory = OwnTable::new(8, 32);
        let mut table = memory.table();
        let limits = [at_most(2, in_database(APP))];
        assert_eq!(attempt(&mut table, &login(0, BOB, limits)), IN);
        assert_eq!(attempt(&mut table, &login(1, ALICE, limits)), IN);
        let excess = refused(attempt(&mut table, &at_once(login(2, ALICE, limits))));
        assert_eq!((excess.in_use, excess.own), (2, 1));
        assert_eq!(pids(&excess), [101]);
    }

    #[test]
    fn without_an_enforced_limit_everyone_is_admitted_and_counted() {
        let mut memory = OwnTable::new(8, 32);
        let mut table = memory.table();
        assert_eq!(attempt(&mut table, &alice(0, 1)), IN);
        assert_eq!(attempt(&mut table, &login(1, ALICE, [])), IN);
        let tried_out = Limit {
            enforced: false,
            ..at_most(1, of_role(ALICE))
        };
        let dry = login(2, ALICE, [tried_out]);
        let Verdict::Admitted(Admission {
            over: Some((excess, _)),
            ..
        }) = attempt(&mut table, &dry)
        else {
            panic!("a dry run admits and says what is exceeded");
        };
        assert_eq!(excess.in_use, 2);
        assert_eq!(
            refused(attempt(&mut table, &at_once(alice(3, 1)))).in_use,
            3,
            "all are counted"
        );
    }

    #[test]
    fn waiters_go_in_by_arrival_and_nobody_barges() {
        let mut memory = OwnTable::new(8, 32);
        let mut table = memory.table();
        assert_eq!(attempt(&mut table, &alice(0, 1)), IN);
        assert_eq!(attempt(&mut table, &alice(5, 1)), Verdict::Waiting);
        assert_eq!(attempt(&mut table, &alice(4, 1)), Verdict::Waiting);
        leave(&table, 0, ALICE);
        let excess = refused(attempt(&mut table, &at_once(alice(3, 1))));
        assert_eq!(
            (excess.in_use, excess.ahead),
            (0, 1),
            "the room is reserved for a waiter"
        );
        assert_eq!(attempt(&mut table, &alice(4, 1)), Verdict::Waiting);
        assert_eq!(attempt(&mut table, &alice(5, 1)), IN);
        assert_eq!(attempt(&mut table, &alice(4, 1)), Verdict::Waiting);
        leave(&table, 5, ALICE);
        assert_eq!(attempt(&mut table, &alice(4, 1)), IN);
        assert_eq!(table.waiters().count(), 0);
    }

    #[test]
    fn a_waiter_that_cannot_go_in_is_overtaken() {
        let mut memory = OwnTable::new(8, 32);
        let mut table = memory.table();
        let app = at_most(2, in_database(APP));
        let of = |role| [at_most(1, of_role(role)), app];
        assert_eq!(attempt(&mut table, &login(0, ALICE, of(ALICE))), IN);
        assert_eq!(attempt(&mut table, &login(1, BOB, of(BOB))), IN);
        assert_eq!(
            attempt(&mut table, &login(2, ALICE, of(ALICE))),
            Verdict::Waiting
        );
        assert_eq!(
            attempt(&mut table, &login(3, BOB, of(BOB))),
            Verdict::Waiting
        );
        leave(&table, 1, BOB);
        // There is room in the database, but not for alice's first waiter: her session is still there.
        assert_eq!(
            attempt(&mut table, &login(2, ALICE, of(ALICE))),
            Verdict::Waiting
        );
        assert_eq!(attempt(&mut table, &login(3, BOB, of(BOB))), IN);
    }

    #[test]
    fn room_is_kept_only_for_waiters_that_fit_together() {
        let mut memory = OwnTable::new(8, 32);
        let mut table = memory.table();
        let app = at_most(2, in_database(APP));
        let alice = || login(0, ALICE, [at_most(1, of_role(ALICE)), app]);
        let at = |slot, login: Attempt<'static>| Attempt {
            slot,
            pid: 100 + slot as u32,
            ..login
        };
        assert_eq!(attempt(&mut table, &alice()), IN);
        assert_eq!(attempt(&mut table, &at(1, alice())), Verdict::Waiting);
        assert_eq!(attempt(&mut table, &at(2, alice())), Verdict::Waiting);
        leave(&table, 0, ALICE);
        // Two of alice's logins wait, but only one can go in: the second place in the database is bob's.
        let bob = login(3, BOB, [app]);
        assert_eq!(attempt(&mut table, &at_once(bob)), IN);
        assert_eq!(attempt(&mut table, &at(2, alice())), Verdict::Waiting);
        assert_eq!(attempt(&mut table, &at(1, alice())), IN);
    }

    #[test]
    fn a_waiter_that_no_limit_of_a_login_covers_does_not_hold_it_up() {
        let mut memory = OwnTable::new(8, 32);
        let mut table = memory.table();
        assert_eq!(attempt(&mut table, &alice(0, 1)), IN);
        assert_eq!(attempt(&mut table, &alice(1, 1)), Verdict::Waiting);
        leave(&table, 0, ALICE);
        let bob = login(
            2,
            BOB,
            [at_most(1, of_role(BOB)), at_most(1, in_database(WEB))],
        );
        assert_eq!(attempt(&mut table, &at_once(bob)), IN);
    }

    #[test]
    fn the_queue_is_bounded_and_one_role_has_a_quarter_of_it() {
        let mut memory = OwnTable::new(16, 64);
        let mut table = memory.table();
        let full = [at_most(1, in_database(APP))];
        assert_eq!(attempt(&mut table, &login(15, CAROL, full)), IN);
        let queued = |table: &mut Table, slot, role| {
            let mut login = login(slot, role, full);
            login.rules.max_waiters = 6;
            attempt(table, &login) == Verdict::Waiting
        };
        assert!(queued(&mut table, 0, ALICE) && queued(&mut table, 1, ALICE));
        assert!(
            !queued(&mut table, 2, ALICE),
            "a quarter of six, rounded up"
        );
        assert!(queued(&mut table, 1, ALICE), "a waiter may go on");
        assert!((3..7).all(|slot| queued(&mut table, slot, slot as u32)));
        assert!(!queued(&mut table, 8, BOB), "six in all");
    }

    /// Tries to queue a login of a role of its own, of at most 20, and says why it does not wait.
    fn queue_on(
        table: &mut Table,
        slot: usize,
        account: Option<Account>,
        connections: u32,
    ) -> Option<NotWaited> {
        let full = [at_most(1, in_database(APP))];
        queue_with(table, slot, account, connections, full)
    }

    fn queue_with<const N: usize>(
        table: &mut Table,
        slot: usize,
        account: Option<Account>,
        connections: u32,
        limits: [Limit; N],
    ) -> Option<NotWaited> {
        let mut login = login(slot, slot as u32 + 1, limits);
        login.rules.may_wait = Some(MayWait {
            connections,
            account,
        });
        match attempt(table, &login) {
            Verdict::Waiting => None,
            verdict => refused(verdict).not_waited,
        }
    }

    #[test]
    fn one_account_leaves_half_of_the_places_and_all_leave_a_quarter() {
        let mut memory = OwnTable::new(64, 128);
        let mut table = memory.table();
        let full = [at_most(1, in_database(APP))];
        assert_eq!(attempt(&mut table, &login(63, CAROL, full)), IN);
        let mut slots = 0..;
        let mut queue = |table: &mut Table, account| {
            let slot = slots.next().expect("another one");
            (slot, queue_on(table, slot, account, u32::MAX))
        };
        for (owner, share) in [(1, 8), (2, 4), (3, 2), (4, 1), (5, 0)] {
            let account = Account::of_owner(owner);
            let full = account.map(NotWaited::AccountFull);
            for _ in 0..share {
                assert_eq!(queue(&mut table, account).1, None, "{owner}");
            }
            assert_eq!(queue(&mut table, account).1, full, "{owner}");
        }
        for _ in 15..20 {
            assert_eq!(queue(&mut table, None).1, None);
        }
        assert_eq!(queue(&mut table, None).1, Some(NotWaited::QueueFull(20)));
    }

    #[test]
    fn one_account_leaves_half_of_the_connections() {
        let mut memory = OwnTable::new(64, 128);
        let mut table = memory.table();
        let full = [at_most(1, in_database(APP))];
        assert_eq!(attempt(&mut table, &login(63, CAROL, full)), IN);
        let account = Some(Account::OF_ROLES);
        for (slot, connections) in [(0, 4), (1, 3)] {
            assert_eq!(queue_on(&mut table, slot, account, connections), None);
        }
        let why = Some(NotWaited::AccountFull(Account::OF_ROLES));
        assert_eq!(queue_on(&mut table, 2, account, 2), why);
        assert_eq!(queue_on(&mut table, 2, None, 2), None);
        assert_eq!(queue_on(&mut table, 3, None, 1), None);
    }

    /// With many limits a waiter takes much of the room for them.
    #[test]
    fn one_account_leaves_half_of_the_room_for_limits() {
        let mut memory = OwnTable::new(64, 40);
        let mut table = memory.table();
        let full = [at_most(1, in_database(APP))];
        assert_eq!(attempt(&mut table, &login(63, CAROL, full)), IN);
        let account = Account::of_owner(1);
        let queue = |table: &mut Table, slot, account| {
            let many = [at_most(1, in_database(APP)); 6];
            queue_with(table, slot, account, u32::MAX, many)
        };
        // Of 30: 6, 12, and 18 while 12 are taken; but not 24 while 18 are.
        for slot in 0..3 {
            assert_eq!(queue(&mut table, slot, account), None);
        }
        let no_room = Some(NotWaited::NoRoomForLimits);
        assert_eq!(queue(&mut table, 3, account), no_room);
        // Who is on none gets what is left.
        for slot in 4..7 {
            assert_eq!(queue(&mut table, slot, None), None);
        }
        assert_eq!(queue(&mut table, 7, None), no_room);
        // Who waits already is not asked again.
        assert_eq!(queue(&mut table, 0, account), None);
    }

    #[test]
    fn a_waiter_that_comes_onto_an_account_later_is_bounded_by_it() {
        let mut memory = OwnTable::new(64, 128);
        let mut table = memory.table();
        let full = [at_most(1, in_database(APP))];
        assert_eq!(attempt(&mut table, &login(63, CAROL, full)), IN);
        for slot in 0..20 {
            assert_eq!(queue_on(&mut table, slot, None, u32::MAX), None);
        }
        // The label that makes them wait longer is set while they wait.
        let account = Some(Account::OF_ROLES);
        let why = Some(NotWaited::AccountFull(Account::OF_ROLES));
        let stay = |slot: &usize| {
            let refusal = queue_on(&mut table, *slot, account, u32::MAX);
            assert!(refusal.is_none() || refusal == why, "{refusal:?}");
            refusal.is_none()
        };
        assert_eq!((0..20).filter(stay).count(), 8);
        let again: Vec<usize> = table.waiters().map(|waiter| waiter.slot).collect();
        for slot in again {
            assert_eq!(queue_on(&mut table, slot, account, u32::MAX), None);
        }
    }

    #[test]
    fn a_refused_waiter_leaves_the_queue() {
        let mut memory = OwnTable::new(4, 16);
        let mut table = memory.table();
        assert_eq!(attempt(&mut table, &alice(1, 1)), IN);
        assert_eq!(attempt(&mut table, &alice(0, 1)), Verdict::Waiting);
        refused(attempt(&mut table, &at_once(alice(0, 1))));
        assert_eq!(table.waiters().count(), 0);
    }

    #[test]
    fn a_refusal_shows_the_oldest_sessions_first() {
        let mut memory = OwnTable::new(8, 32);
        let mut table = memory.table();
        for (slot, arrival) in [6, 2, 7, 1, 5, 4, 3].into_iter().enumerate() {
            let arrived = Session {
                arrival,
                ..session(ALICE, APP)
            };
            table.claim(slot, 100 + arrival as u32, arrived);
        }
        let mut late = at_once(alice(7, 7));
        late.session.arrival = 9;
        let shown = refused(attempt(&mut table, &late)).shown;
        let pids: Vec<u32> = shown.iter().flatten().map(|session| session.pid).collect();
        assert_eq!(pids, [101, 102, 103, 104, 105]);
    }

    #[test]
    fn under_a_limit_of_0_nobody_waits() {
        let mut memory = OwnTable::new(4, 16);
        let mut table = memory.table();
        let excess = refused(attempt(&mut table, &alice(0, 0)));
        assert_eq!((excess.limit.max, excess.not_waited), (0, None));
        assert_eq!(table.waiters().count(), 0);
    }

    #[test]
    fn a_refusal_says_why_the_login_did_not_wait() {
        let mut memory = OwnTable::new(16, 64);
        let mut table = memory.table();
        let full = [at_most(1, in_database(APP))];
        assert_eq!(attempt(&mut table, &login(15, CAROL, full)), IN);
        let six = |slot, role, may_wait: bool| {
            let mut login = login(slot, role, full);
            login.rules.max_waiters = 6;
            login.rules.may_wait = Some(if may_wait { WAIT } else { MayWait::NOT });
            login
        };
        let why = |table: &mut Table, login| refused(attempt(table, &login)).not_waited;
        let spare = Some(NotWaited::NothingToSpare);
        assert_eq!(why(&mut table, six(0, ALICE, false)), spare);
        for slot in 1..3 {
            assert_eq!(
                attempt(&mut table, &six(slot, ALICE, true)),
                Verdict::Waiting
            );
        }
        let share = Some(NotWaited::RoleQueueFull(2));
        assert_eq!(why(&mut table, six(3, ALICE, true)), share);
        for slot in 3..7 {
            let login = six(slot, slot as u32, true);
            assert_eq!(attempt(&mut table, &login), Verdict::Waiting);
        }
        let all = Some(NotWaited::QueueFull(6));
        assert_eq!(why(&mut table, six(8, BOB, true)), all);
    }

    #[test]
    fn the_next_owner_of_a_slot_does_not_count_the_previous_one() {
        let mut memory = OwnTable::new(1, 4);
        let mut table = memory.table();
        assert_eq!(attempt(&mut table, &alice(0, 1)), IN);
        assert_eq!(attempt(&mut table, &alice(0, 1)), IN);
    }

    #[test]
    fn each_limit_has_its_own_max_wait_and_the_shortest_decides() {
        let mut memory = OwnTable::new(8, 32);
        let mut table = memory.table();
        let patient = at_most(1, of_role(ALICE));
        let strict = Limit {
            max_wait: Duration::from_millis(10),
            ..at_most(1, in_database(APP))
        };
        let both = [patient, strict];
        assert_eq!(attempt(&mut table, &login(0, ALICE, both)), IN);
        let mut second = login(1, ALICE, both);
        assert_eq!(attempt(&mut table, &second), Verdict::Waiting);
        second.rules.tried = Duration::from_millis(10);
        assert_eq!(refused(attempt(&mut table, &second)).limit, strict);
        let mut third = login(2, ALICE, [patient]);
        third.rules.tried = Duration::from_millis(999);
        assert_eq!(attempt(&mut table, &third), Verdict::Waiting);
        third.rules.tried = Duration::from_millis(1000);
        assert_eq!(refused(attempt(&mut table, &third)).limit, patient);
    }

    fn members(of_team: &[u32]) -> &'static Members {
        let mut members = Members::default();
        members.insert(TEAM, of_team.to_vec());
        Box::leak(Box::new(members))
    }

    fn of_team() -> Scope {
        Scope {
            who: Who::MembersOf(TEAM),
            database: None,
            network: None,
        }
    }

    #[test]
    fn a_groups_total_counts_the_members_of_now() {
        let mut memory = OwnTable::new(8, 32);
        let mut table = memory.table();
        // Bob logged in before he was a member.
        assert_eq!(attempt(&mut table, &login(0, BOB, [])), IN);
        let alice = |slot, team: &[u32]| Attempt {
            members: members(team),
            ..login(slot, ALICE, [at_most(1, of_team())])
        };
        let excess = refused(attempt(&mut table, &at_once(alice(1, &[ALICE, BOB]))));
        assert_eq!((excess.in_use, excess.own), (1, 0));
        assert_eq!(attempt(&mut table, &at_once(alice(1, &[ALICE]))), IN);
    }

    #[test]
    fn the_members_of_a_waiters_group_are_missing_only_when_they_matter() {
        let mut memory = OwnTable::new(8, 32);
        let mut table = memory.table();
        let app = at_most(2, in_database(APP));
        let team = at_most(1, of_team());
        let known = |login: Attempt<'static>| Attempt {
            members: members(&[ALICE, BOB]),
            ..login
        };
        assert_eq!(attempt(&mut table, &known(login(0, BOB, [team, app]))), IN);
        assert_eq!(
            attempt(&mut table, &known(login(1, ALICE, [team, app]))),
            Verdict::Waiting
        );
        // Carol is no member of the group, for which alice waits. In another database alice does not matter to carol. In
        // alice's database she does: whether she goes first depends on the group.
        let mut elsewhere = login(2, CAROL, [at_most(1, in_database(WEB))]);
        elsewhere.session.database = WEB;
        assert_eq!(attempt(&mut table, &elsewhere), IN);
        let carol = login(3, CAROL, [app]);
        assert_eq!(decided(&mut table, &carol), Err(Missing::Members(TEAM)));
        assert_eq!(
            attempt(&mut table, &known(carol)),
            IN,
            "alice does not fit: she is overtaken"
        );
        leave(&table, 3, CAROL);
        leave(&table, 0, BOB);
        let carol = known(login(3, CAROL, [at_most(1, in_database(APP))]));
        assert_eq!(
            attempt(&mut table, &carol),
            Verdict::Waiting,
            "now she does"
        );
    }

    #[test]
    fn an_admission_says_how_many_sessions_its_role_has_in_its_database() {
        let mut memory = OwnTable::new(8, 32);
        let mut table = memory.table();
        let mut alike = |slot, role, database| {
            let mut login = login(slot, role, []);
            login.session.database = database;
            match decided(&mut table, &login) {
                Ok(Verdict::Admitted(admission)) => admission.sessions,
                other => panic!("not admitted but {other:?}"),
            }
        };
        assert_eq!(alike(0, ALICE, APP), 1);
        assert_eq!(alike(1, ALICE, WEB), 1);
        assert_eq!(alike(2, BOB, APP), 1);
        assert_eq!(alike(3, ALICE, APP), 2);
    }

    #[test]
    fn an_audit_says_whether_the_role_is_in_from_another_address() {
        let mut memory = OwnTable::new(8, 32);
        let mut table = memory.table();
        let mut from = |slot, role, address: Option<&str>, audit| {
            let mut login = login(slot, role, []);
            login.session.address = address.map(|text| text.parse().expect(text));
            login.rules.audit = audit;
            match attempt(&mut table, &login) {
                Verdict::Admitted(admission) => admission.elsewhere.map(|other| other.pid),
                other => panic!("not admitted but {other:?}"),
            }
        };
        let (here, there) = (Some("10.0.0.5"), Some("10.0.0.6"));
        assert_eq!(from(0, ALICE, None, true), None);
        assert_eq!(from(1, ALICE, here, true), None, "a socket is no address");
        assert_eq!(from(2, ALICE, here, true), None, "the same");
        assert_eq!(from(3, BOB, there, true), None, "another role");
        assert_eq!(from(4, ALICE, None, true), None);
        assert_eq!(from(5, ALICE, there, false), None, "not asked for");
        assert_eq!(from(5, ALICE, there, true), Some(101), "not its own slot");
        assert_eq!(from(6, ALICE, here, true), Some(105));
    }

    #[test]
    fn whether_a_login_may_wait_is_missing_only_when_it_matters() {
        let mut memory = OwnTable::new(3, 8);
        let mut table = memory.table();
        let unasked = |slot, limit: Limit| {
            let mut login = login(slot, ALICE, [limit]);
            login.rules.may_wait = None;
            login
        };
        let one = at_most(1, of_role(ALICE));
        let first = decided(&mut table, &unasked(0, one));
        assert!(matches!(first, Ok(Verdict::Admitted(_))), "{first:?}");
        let second = decided(&mut table, &unasked(1, one));
        assert_eq!(second, Err(Missing::Patience));
        let impatient = Limit {
            max_wait: Duration::ZERO,
            ..one
        };
        let third = decided(&mut table, &unasked(2, impatient));
        assert!(matches!(third, Ok(Verdict::Refused(_))), "{third:?}");
    }

    #[test]
    fn explain_says_what_a_login_would_meet() {
        let mut memory = OwnTable::new(8, 32);
        let mut table = memory.table();
        let app = at_most(2, in_database(APP));
        assert_eq!(attempt(&mut table, &login(0, ALICE, [app])), IN);
        let bob = login(9, BOB, [app, at_most(0, of_role(BOB))]);
        let standings = |table: &Table, login: &Attempt| {
            let explained = explain(table, login).expect("every group is known");
            explained
                .iter()
                .map(|it| (it.in_use, it.fits))
                .collect::<Vec<_>>()
        };
        assert_eq!(standings(&table, &bob), [(1, true), (0, false)]);
        assert_eq!(attempt(&mut table, &login(1, ALICE, [app])), IN);
        assert_eq!(
            attempt(&mut table, &login(2, ALICE, [app])),
            Verdict::Waiting
        );
        leave(&table, 0, ALICE);
        assert_eq!(
            standings(&table, &bob),
            [(1, false), (0, false)],
            "the room is reserved for alice"
        );
        assert_eq!(
            refused(attempt(&mut table, &at_once(login(3, BOB, [app])))).ahead,
            1
        );
    }
}
