//! The decision: count, decide and claim in one go, on a table that nobody else changes meanwhile.
//! Pure.

use crate::census::Census;
use crate::limit::{Limit, Scope, Who};
use crate::replace::{Full, Idle, Replacing, make_room};
use crate::sessions::{Bound, Counted, Members, Session, Table, Unknown, Waiter};
use std::net::IpAddr;
use std::time::Duration;

/// A login that asks for room.
pub struct Attempt<'a> {
    pub slot: usize,
    pub pid: u32,
    pub session: Session,
    /// What it must meet; nothing for the exempt.
    pub limits: &'a [Limit],
    /// The members of the groups that its limits count, and of any more.
    pub members: &'a Members,
    /// Which sessions are idle, if that is known.
    pub idle: Option<&'a Idle>,
    pub rules: Rules,
}

/// The settings that bear on a decision.
#[derive(Clone, Copy)]
pub struct Rules {
    /// Walsenders are sessions like others.
    pub count_walsenders: bool,
    /// Join the queue, or stay in it, rather than be refused, if that is known.
    pub may_wait: Option<bool>,
    /// How long the login has tried: each limit lets it wait for so long.
    pub tried: Duration,
    /// The queue's size; one role has a quarter of it.
    pub max_waiters: u32,
    pub replacing: Replacing,
    /// Say of an admission whether the role has a session from another address.
    pub audit: bool,
}

/// What becomes of a login.
#[derive(Debug, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "under the lock nothing is allocated"
)]
pub enum Verdict {
    /// It is a session.
    Admitted(Admission),
    /// It has the places of these sessions as soon as they are gone; without them it is over a limit.
    Replacing(Admission, Ended, Excess),
    /// It is in the queue: try again when woken.
    Waiting,
    /// It is not, and no longer waits.
    Refused(Excess),
}

/// What is to be said of a login that got in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Admission {
    /// It is over this limit, which is only tried out, and these sessions would end for it: none if it
    /// would be refused.
    pub over: Option<(Excess, Ended)>,
    /// The sessions of its role in its database, itself among them.
    pub sessions: u32,
    /// A session of its role from another address, if that was asked for.
    pub elsewhere: Option<Shown>,
}

/// The sessions that end for a login.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ended {
    pub number: u32,
    /// The process IDs of the first few.
    pub shown: [Option<u32>; 5],
}

/// The limit that has no room, and what fills it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Excess {
    pub limit: Limit,
    /// Sessions that the limit counts.
    pub in_use: u32,
    /// Earlier logins that wait for the room there is. Not 0 only if there is some.
    pub ahead: u32,
    /// How many of the sessions are of the login's own role.
    pub own: u32,
    /// The first few of these.
    pub shown: [Option<Shown>; 5],
}

/// A session as a login of the same role is told of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shown {
    pub pid: u32,
    pub address: Option<IpAddr>,
    pub started: i64,
}

impl Shown {
    fn new(pid: u32, session: &Session) -> Shown {
        Shown {
            pid,
            address: session.address,
            started: session.started,
        }
    }
}

/// One of a login's limits, as it stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    pub limit: Limit,
    /// Sessions that the limit counts.
    pub in_use: u32,
    /// Whether it would let the login in now.
    pub fits: bool,
}

/// Admits the login, queues it, or finds what it exceeds. When a waiter is admitted or refused, the
/// caller wakes the rest. If it needs to know more, the login is where it was: no session, and in the
/// queue or not.
pub fn attempt(
    table: &mut Table,
    census: &mut Census,
    login: &Attempt,
) -> Result<Verdict, Unknown> {
    table.vacate(login.slot);
    census.look(table);
    let mut exceeded = find_exceeded(table, census, login)?;
    if exceeded.is_some() && login.must_know_whether_to_wait() {
        return Err(Unknown::Patience);
    }
    if exceeded.is_some_and(|(limit, _)| may_wait(table, login, limit)) && enqueue(table, login) {
        // Whoever left before it saw us in the queue did not wake us: count again.
        census.look(table);
        exceeded = find_exceeded(table, census, login)?;
        if exceeded.is_some_and(|(limit, _)| login.lets_wait(limit)) {
            return Ok(Verdict::Waiting);
        }
    }
    let over = tried_out(table, census, login)?;
    let verdict = match exceeded {
        Some(full) => match replace(table, census, login, full, |limit| limit.enforced)? {
            // Someone has just left: there is room after all.
            Ok((_, Ended { number: 0, .. })) => {
                table.arrive(login.slot);
                Verdict::Admitted(admission(table, census, login, over)?)
            }
            Ok((excess, ended)) => {
                Verdict::Replacing(admission(table, census, login, over)?, ended, excess)
            }
            Err(excess) => Verdict::Refused(excess),
        },
        None => {
            claim(table, census, login);
            Verdict::Admitted(admission(table, census, login, over)?)
        }
    };
    table.dequeue(login.slot);
    Ok(verdict)
}

fn claim(table: &mut Table, census: &mut Census, login: &Attempt) {
    table.claim(login.slot, login.pid, login.session);
    census.set(login.slot, login.session.role);
}

fn give_back(table: &mut Table, census: &mut Census, login: &Attempt) {
    table.give_back(login.slot);
    census.set(login.slot, 0);
}

/// What would become of the login if the limits that are only tried out were enforced.
fn tried_out(
    table: &mut Table,
    census: &mut Census,
    login: &Attempt,
) -> Result<Option<(Excess, Ended)>, Unknown> {
    let Some(limit) = login.first_full(table, census, |limit| !limit.enforced, |_| true)? else {
        return Ok(None);
    };
    let replaced = replace(table, census, login, (limit, 0), |limit| !limit.enforced)?;
    give_back(table, census, login);
    Ok(match replaced {
        Ok((_, Ended { number: 0, .. })) => None,
        Ok(would) => Some(would),
        Err(excess) => Some((excess, Ended::default())),
    })
}

/// Makes room for the login under the chosen limits, of which one is full: it has claimed its slot then,
/// and says which sessions end. Or the limit that refuses it.
fn replace(
    table: &mut Table,
    census: &mut Census,
    login: &Attempt,
    (limit, ahead): Full,
    chosen: impl Fn(&Limit) -> bool,
) -> Result<Result<(Excess, Ended), Excess>, Unknown> {
    let without = excess(table, census, login, limit, ahead)?;
    if !login.rules.replacing.lets_end(limit) {
        return Ok(Err(without));
    }
    find_first(table, census, login)?;
    claim(table, census, login);
    let refuses = make_room(table, census, login, chosen);
    if !matches!(refuses, Ok(None)) {
        give_back(table, census, login);
    }
    Ok(match refuses? {
        Some((limit, ahead)) => Err(excess(table, census, login, limit, ahead)?),
        None => Ok((without, ended(table, login))),
    })
}

fn ended(table: &Table, login: &Attempt) -> Ended {
    let mut ended = Ended::default();
    for pid in table.predecessors(login.slot) {
        if let Some(free) = ended.shown.get_mut(ended.number as usize) {
            *free = Some(pid);
        }
        ended.number += 1;
    }
    ended
}

fn admission(
    table: &Table,
    census: &Census,
    login: &Attempt,
    over: Option<(Excess, Ended)>,
) -> Result<Admission, Unknown> {
    let alike = Scope {
        who: Who::Role(login.session.role),
        database: Some(login.session.database),
        network: None,
    };
    let alike = Counted::new(alike, true, login.members)?;
    let sessions = census.count_once_arrived(table, login.slot, alike);
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

/// A session over a Unix-domain socket has no address that another could differ from.
fn elsewhere(table: &Table, login: &Attempt) -> Result<Option<Shown>, Unknown> {
    let own = Scope {
        who: Who::Role(login.session.role),
        database: None,
        network: None,
    };
    let differs = |(_, _, other): &(usize, u32, Session)| {
        let addresses = login.session.address.zip(other.address);
        addresses.is_some_and(|(one, another)| one != another)
    };
    let mut own = table.staying(Counted::new(own, true, login.members)?);
    Ok(own
        .find(differs)
        .map(|(_, pid, session)| Shown::new(pid, &session)))
}

/// How each limit stands for a login that is not made: it would be admitted at once if all that are
/// enforced fit.
pub fn explain(table: &Table, login: &Attempt) -> Result<Vec<Standing>, Unknown> {
    let mut census = Census::new(table.shared, login.members, false);
    census.look(table);
    find_first(table, &mut census, login)?;
    let standing = |limit: &Limit| {
        let in_use = census.count(table, login.counted(bound(limit))?);
        let ahead = ahead(table, &census, login, bound(limit))?;
        Ok(Standing {
            limit: *limit,
            in_use,
            fits: limit.max.saturating_sub(in_use) > ahead,
        })
    };
    login.limits.iter().map(standing).collect()
}

fn may_wait(table: &Table, login: &Attempt, limit: &Limit) -> bool {
    let (mut all, mut own, mut queued) = (0, 0, false);
    for waiter in table.waiters() {
        queued |= waiter.slot == login.slot;
        all += 1;
        own += u32::from(waiter.session.role == login.session.role);
    }
    let max = login.rules.max_waiters;
    login.lets_wait(limit) && (queued || (all < max && own < max.div_ceil(4)))
}

fn enqueue(table: &mut Table, login: &Attempt) -> bool {
    let enforced = login.limits.iter().filter(|limit| limit.enforced);
    table.enqueue(login.slot, login.session, enforced.map(bound))
}

/// The enforced limit that has no room, and how many earlier waiters there is some for. Of several it
/// is one for which the login may not wait, if there is such.
fn find_exceeded<'a>(
    table: &Table,
    census: &mut Census,
    login: &Attempt<'a>,
) -> Result<Option<(&'a Limit, u32)>, Unknown> {
    let refuses = |limit: &Limit| !login.lets_wait(limit);
    if let Some(limit) = login.first_full(table, census, |limit| limit.enforced, refuses)? {
        return Ok(Some((limit, 0)));
    }
    if !has_rivals(table, census, login)? {
        return Ok(None);
    }
    // There is room, but earlier waiters that fit go first; those that do not are overtaken.
    census.first.clear();
    for waiter in table.waiters_before(login.slot) {
        if !goes_first(table, census, login, &waiter)? {
            continue;
        }
        let mut short = None;
        for limit in login.limits.iter().filter(|limit| limit.enforced) {
            let ahead = ahead(table, census, login, bound(limit))?;
            if room(table, census, login, bound(limit))? <= ahead
                && (short.is_none() || refuses(limit))
            {
                short = Some((limit, ahead));
            }
        }
        if short.is_some() {
            return Ok(short);
        }
    }
    Ok(None)
}

/// Whether the earlier waiters could take all the room that there is under one of the login's limits.
fn has_rivals(table: &Table, census: &Census, login: &Attempt) -> Result<bool, Unknown> {
    for limit in login.limits.iter().filter(|limit| limit.enforced) {
        let counted = login.counted(bound(limit))?;
        let rivals = table
            .waiters_before(login.slot)
            .filter(|waiter| counted.covers(&waiter.session))
            .count() as u32;
        if rivals > 0 && room(table, census, login, bound(limit))? <= rivals {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Finds which of the waiters before the login go first.
fn find_first(table: &Table, census: &mut Census, login: &Attempt) -> Result<(), Unknown> {
    census.first.clear();
    for waiter in table.waiters_before(login.slot) {
        goes_first(table, census, login, &waiter)?;
    }
    Ok(())
}

/// Finds out whether this waiter goes first, once that is known of those before it.
fn goes_first(
    table: &Table,
    census: &mut Census,
    login: &Attempt,
    waiter: &Waiter,
) -> Result<bool, Unknown> {
    for bound in waiter.bounds {
        let room = room(table, census, login, *bound)?;
        if room == 0 || room <= ahead(table, census, login, *bound)? {
            return Ok(false);
        }
    }
    census.first.push(waiter.slot);
    Ok(true)
}

pub fn bound(limit: &Limit) -> Bound {
    Bound {
        scope: limit.scope,
        max: limit.max,
    }
}

impl<'a> Attempt<'a> {
    fn lets_wait(&self, limit: &Limit) -> bool {
        self.rules.may_wait == Some(true) && self.has_time(limit)
    }

    fn must_know_whether_to_wait(&self) -> bool {
        self.rules.may_wait.is_none() && self.limits.iter().any(|limit| self.has_time(limit))
    }

    fn has_time(&self, limit: &Limit) -> bool {
        self.rules.tried < limit.max_wait
    }

    /// The first of the chosen limits that no more session fits under, of several the first that is
    /// preferred.
    fn first_full(
        &self,
        table: &Table,
        census: &Census,
        chosen: impl Fn(&Limit) -> bool,
        preferred: impl Fn(&Limit) -> bool,
    ) -> Result<Option<&'a Limit>, Unknown> {
        let mut full = None;
        for limit in self.limits.iter().filter(|limit| chosen(limit)) {
            if (full.is_none() || preferred(limit)) && room(table, census, self, bound(limit))? == 0
            {
                full = Some(limit);
                if preferred(limit) {
                    break;
                }
            }
        }
        Ok(full)
    }

    pub fn counted(&self, bound: Bound) -> Result<Counted<'a>, Unknown> {
        Counted::new(bound.scope, self.rules.count_walsenders, self.members)
    }
}

/// How many more sessions a limit has room for.
fn room(table: &Table, census: &Census, login: &Attempt, bound: Bound) -> Result<u32, Unknown> {
    let in_use = census.count_once(table, login.counted(bound)?);
    Ok(bound.max.saturating_sub(in_use))
}

/// How many of the waiters that go first take room under the limit.
pub fn ahead(
    table: &Table,
    census: &Census,
    login: &Attempt,
    bound: Bound,
) -> Result<u32, Unknown> {
    let counted = login.counted(bound)?;
    let covers = |slot: &&usize| {
        let session = table.session(**slot);
        session.is_some_and(|session| counted.covers(&session))
    };
    Ok(census.first.iter().filter(covers).count() as u32)
}

fn excess(
    table: &Table,
    census: &Census,
    login: &Attempt,
    limit: &Limit,
    ahead: u32,
) -> Result<Excess, Unknown> {
    let counted = login.counted(bound(limit))?;
    let own = counted.of(login.session.role);
    let mut shown = [None; 5];
    let sessions = census.counted(table, own);
    for (place, (pid, session)) in shown.iter_mut().zip(sessions) {
        *place = Some(Shown::new(pid, &session));
    }
    Ok(Excess {
        limit: *limit,
        in_use: census.count(table, counted),
        ahead,
        own: census.count(table, own),
        shown,
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::limit::tests::{at_most, in_database, of_role};
    use crate::sessions::tests::session;
    use crate::sessions::{Claim, OwnTable};

    const ALICE: u32 = 10;
    const BOB: u32 = 11;
    const CAROL: u32 = 12;
    const TEAM: u32 = 20;
    const APP: u32 = 5;
    const WEB: u32 = 6;

    /// A login of `role` to `APP` from the process at `slot`, that may wait.
    fn login(slot: usize, role: u32, limits: impl Into<Vec<Limit>>) -> Attempt<'static> {
        let rules = Rules {
            count_walsenders: false,
            may_wait: Some(true),
            tried: Duration::ZERO,
            max_waiters: 20,
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
            idle: None,
            rules,
        }
    }

    fn at_once(mut login: Attempt) -> Attempt {
        login.rules.may_wait = Some(false);
        login
    }

    fn alice(slot: usize, max: u32) -> Attempt<'static> {
        login(slot, ALICE, [at_most(max, of_role(ALICE))])
    }

    pub fn decided(table: &mut Table, login: &Attempt) -> Result<Verdict, Unknown> {
        let may_replace = login.rules.replacing.allowed;
        let mut census = Census::new(table.shared, login.members, may_replace);
        super::attempt(table, &mut census, login)
    }

    /// Who is admitted has its own test for how many sessions are like it.
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
    fn without_a_limit_or_one_that_is_enforced_all_are_admitted() {
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
            "a place is free, and not for us"
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
        // Room in the database, but alice, who came first, still has her session.
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
        // Two of alice wait, of whom one can go in: the second place in the database is bob's.
        let bob = login(3, BOB, [app]);
        assert_eq!(attempt(&mut table, &at_once(bob)), IN);
        assert_eq!(attempt(&mut table, &at(2, alice())), Verdict::Waiting);
        assert_eq!(attempt(&mut table, &at(1, alice())), IN);
    }

    #[test]
    fn a_waiter_for_something_else_holds_up_nobody() {
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
        let full = [at_most(0, in_database(APP))];
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
        assert!(queued(&mut table, 1, ALICE), "who waits may go on");
        assert!((3..7).all(|slot| queued(&mut table, slot, slot as u32)));
        assert!(!queued(&mut table, 8, BOB), "six in all");
    }

    #[test]
    fn a_refused_waiter_leaves_the_queue() {
        let mut memory = OwnTable::new(4, 16);
        let mut table = memory.table();
        assert_eq!(attempt(&mut table, &alice(0, 0)), Verdict::Waiting);
        refused(attempt(&mut table, &at_once(alice(0, 0))));
        assert_eq!(table.waiters().count(), 0);
    }

    #[test]
    fn the_next_owner_of_a_slot_does_not_count_the_last_one() {
        let mut memory = OwnTable::new(1, 4);
        let mut table = memory.table();
        assert_eq!(attempt(&mut table, &alice(0, 1)), IN);
        assert_eq!(attempt(&mut table, &alice(0, 1)), IN);
    }

    #[test]
    fn each_limit_lets_wait_for_its_own_time_and_the_strictest_decides() {
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
    fn a_groups_total_counts_whoever_is_a_member_now() {
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
    fn a_waiters_group_must_be_known_only_when_it_matters() {
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
        // Carol has nothing to do with the group, but alice, who waits for it, with the database.
        let mut elsewhere = login(2, CAROL, [at_most(1, in_database(WEB))]);
        elsewhere.session.database = WEB;
        assert_eq!(attempt(&mut table, &elsewhere), IN);
        let carol = login(3, CAROL, [app]);
        assert_eq!(decided(&mut table, &carol), Err(Unknown::Members(TEAM)));
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
    fn an_admission_says_how_many_sessions_are_like_it() {
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
    fn whether_a_login_may_wait_is_asked_only_where_it_matters() {
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
        assert_eq!(second, Err(Unknown::Patience));
        let impatient = Limit {
            max_wait: Duration::ZERO,
            ..one
        };
        let third = decided(&mut table, &unasked(2, impatient));
        assert!(matches!(third, Ok(Verdict::Refused(_))), "{third:?}");
    }

    #[test]
    fn explained_is_what_a_login_would_meet() {
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
            "the room is alice's"
        );
        assert_eq!(
            refused(attempt(&mut table, &at_once(login(3, BOB, [app])))).ahead,
            1
        );
    }
}
