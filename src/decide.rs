//! The decision: count, decide and claim in one go, on a table that nobody else changes meanwhile.
//! Pure.

use crate::limit::{Limit, Limits};
use crate::sessions::{Counted, Session, Table};
use std::net::IpAddr;

/// A login that asks for room.
pub struct Attempt {
    pub slot: usize,
    pub pid: u32,
    pub session: Session,
    pub limits: Limits,
    pub rules: Rules,
}

/// The settings that bear on a decision.
#[derive(Clone, Copy)]
pub struct Rules {
    /// Walsenders are sessions like others.
    pub count_walsenders: bool,
    /// Admit over the limit too, but say so.
    pub dry_run: bool,
    /// Join the queue, or stay in it, rather than be refused.
    pub may_wait: bool,
    /// The queue's size; one role has a quarter of it.
    pub max_waiters: u32,
}

/// What becomes of a login.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// It is a session. Some: in a dry run, over this limit.
    Admitted(Option<Excess>),
    /// It is in the queue: try again when woken.
    Waiting,
    /// It is not, and no longer waits.
    Refused(Excess),
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

/// A session as a refused login of the same role is told of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shown {
    pub pid: u32,
    pub address: Option<IpAddr>,
    pub started: i64,
}

/// Admits the login, queues it, or finds what it exceeds. When a waiter is admitted or refused, the
/// caller wakes the rest.
pub fn attempt(table: &mut Table, login: &Attempt) -> Verdict {
    table.vacate(login.slot);
    let mut excess = find_excess(table, login);
    if excess.is_some() && may_wait(table, login) {
        table.enqueue(login.slot, login.session, login.limits);
        // Whoever left before it saw us in the queue did not wake us: count again.
        excess = find_excess(table, login);
        if excess.is_some() {
            return Verdict::Waiting;
        }
    }
    table.dequeue(login.slot);
    match excess {
        Some(excess) if !login.rules.dry_run => Verdict::Refused(excess),
        over => {
            table.claim(login.slot, login.pid, login.session);
            Verdict::Admitted(over)
        }
    }
}

fn may_wait(table: &Table, login: &Attempt) -> bool {
    let rules = login.rules;
    if rules.dry_run || !rules.may_wait {
        return false;
    }
    let (mut all, mut own, mut queued) = (0, 0, false);
    for (slot, session, _) in table.waiters() {
        queued |= slot == login.slot;
        all += 1;
        own += u32::from(session.role == login.session.role);
    }
    queued || (all < rules.max_waiters && own < rules.max_waiters.div_ceil(4))
}

fn find_excess(table: &mut Table, login: &Attempt) -> Option<Excess> {
    let is_full = |limit: &&Limit| room(table, login, limit) == 0;
    if let Some(limit) = login.limits.iter().flatten().find(is_full) {
        return Some(excess(table, login, limit, 0));
    }
    let rival = |session: &Session| {
        let mut limits = login.limits.iter().flatten();
        limits.any(|limit| counted(login, limit).covers(session))
    };
    if !table
        .waiters_before(login.slot)
        .any(|(_, session, _)| rival(session))
    {
        return None;
    }
    // There is room, but earlier waiters that fit go first; those that do not are overtaken.
    for position in 0.. {
        let (slot, fits) = {
            let (slot, _, limits) = table.waiters_before(login.slot).nth(position)?;
            let fits =
                |limit: &Limit| room(table, login, limit) > ahead(table, login, limit, position);
            (slot, limits.iter().flatten().all(fits))
        };
        table.set_goes_first(slot, fits);
        for limit in login.limits.iter().flatten().filter(|_| fits) {
            let ahead = ahead(table, login, limit, position + 1);
            if room(table, login, limit) <= ahead {
                return Some(excess(table, login, limit, ahead));
            }
        }
    }
    None
}

fn counted(login: &Attempt, limit: &Limit) -> Counted {
    Counted {
        scope: limit.scope,
        walsenders: login.rules.count_walsenders,
    }
}

/// How many more sessions the limit has room for.
fn room(table: &Table, login: &Attempt, limit: &Limit) -> u32 {
    limit.max.saturating_sub(table.count(counted(login, limit)))
}

/// How many of the first `among` waiters go first and take room under the limit.
fn ahead(table: &Table, login: &Attempt, limit: &Limit, among: usize) -> u32 {
    let counted = counted(login, limit);
    let waiters = table.waiters_before(login.slot).take(among);
    let first =
        waiters.filter(|(slot, session, _)| table.goes_first(*slot) && counted.covers(session));
    first.count() as u32
}

fn excess(table: &Table, login: &Attempt, limit: &Limit, ahead: u32) -> Excess {
    let counted = counted(login, limit);
    let (mut in_use, mut own, mut shown) = (0, 0, [None; 5]);
    for (pid, session) in table
        .sessions()
        .filter(|(_, session)| counted.covers(session))
    {
        in_use += 1;
        if session.role == login.session.role {
            if let Some(free) = shown.get_mut(own as usize) {
                *free = Some(Shown {
                    pid,
                    address: session.address,
                    started: session.started,
                });
            }
            own += 1;
        }
    }
    Excess {
        limit: *limit,
        in_use,
        ahead,
        own,
        shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::{NONE, Scope, Source};
    use crate::sessions::Claim;
    use crate::sessions::memory::{Memory, session};

    const ALICE: u32 = 10;
    const BOB: u32 = 11;
    const APP: u32 = 5;
    const WEB: u32 = 6;

    fn at_most(max: u32, scope: Scope) -> Option<Limit> {
        Some(Limit {
            scope,
            max,
            source: Source::ConnectionLimit,
        })
    }

    /// A login of `role` to `APP` from the process at `slot`, that may wait.
    fn login(slot: usize, role: u32, limits: Limits) -> Attempt {
        let rules = Rules {
            count_walsenders: false,
            dry_run: false,
            may_wait: true,
            max_waiters: 20,
        };
        Attempt {
            slot,
            pid: 100 + slot as u32,
            session: session(role, APP),
            limits,
            rules,
        }
    }

    fn at_once(mut login: Attempt) -> Attempt {
        login.rules.may_wait = false;
        login
    }

    fn alice(slot: usize, max: u32) -> Attempt {
        login(slot, ALICE, [at_most(max, Scope::Role(ALICE)), None])
    }

    fn leave(table: &Table, slot: usize, role: u32) {
        assert!(
            table
                .shared
                .release(slot, Claim::new(100 + slot as u32, role))
        );
    }

    const IN: Verdict = Verdict::Admitted(None);

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
        let mut memory = Memory::new(8);
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
        let mut memory = Memory::new(1);
        assert_eq!(
            refused(attempt(&mut memory.table(), &at_once(alice(0, 0)))).in_use,
            0
        );
    }

    #[test]
    fn a_refusal_shows_only_sessions_of_the_same_role() {
        let mut memory = Memory::new(8);
        let mut table = memory.table();
        let limits = [None, at_most(2, Scope::Database(APP))];
        assert_eq!(attempt(&mut table, &login(0, BOB, limits)), IN);
        assert_eq!(attempt(&mut table, &login(1, ALICE, limits)), IN);
        let excess = refused(attempt(&mut table, &at_once(login(2, ALICE, limits))));
        assert_eq!((excess.in_use, excess.own), (2, 1));
        assert_eq!(pids(&excess), [101]);
    }

    #[test]
    fn no_limit_and_a_dry_run_admit_over_the_limit() {
        let mut memory = Memory::new(8);
        let mut table = memory.table();
        assert_eq!(attempt(&mut table, &alice(0, 1)), IN);
        assert_eq!(attempt(&mut table, &login(1, ALICE, NONE)), IN);
        let mut dry = alice(2, 1);
        dry.rules.dry_run = true;
        let Verdict::Admitted(Some(excess)) = attempt(&mut table, &dry) else {
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
        let mut memory = Memory::new(8);
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
        let mut memory = Memory::new(8);
        let mut table = memory.table();
        let app = at_most(2, Scope::Database(APP));
        let of = |role| [at_most(1, Scope::Role(role)), app];
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
        let mut memory = Memory::new(8);
        let mut table = memory.table();
        let app = at_most(2, Scope::Database(APP));
        let alice = || login(0, ALICE, [at_most(1, Scope::Role(ALICE)), app]);
        let at = |slot, login: Attempt| Attempt {
            slot,
            pid: 100 + slot as u32,
            ..login
        };
        assert_eq!(attempt(&mut table, &alice()), IN);
        assert_eq!(attempt(&mut table, &at(1, alice())), Verdict::Waiting);
        assert_eq!(attempt(&mut table, &at(2, alice())), Verdict::Waiting);
        leave(&table, 0, ALICE);
        // Two of alice wait, of whom one can go in: the second place in the database is bob's.
        let bob = login(3, BOB, [None, app]);
        assert_eq!(attempt(&mut table, &at_once(bob)), IN);
        assert_eq!(attempt(&mut table, &at(2, alice())), Verdict::Waiting);
        assert_eq!(attempt(&mut table, &at(1, alice())), IN);
    }

    #[test]
    fn a_waiter_for_something_else_holds_up_nobody() {
        let mut memory = Memory::new(8);
        let mut table = memory.table();
        assert_eq!(attempt(&mut table, &alice(0, 1)), IN);
        assert_eq!(attempt(&mut table, &alice(1, 1)), Verdict::Waiting);
        leave(&table, 0, ALICE);
        let bob = login(
            2,
            BOB,
            [
                at_most(1, Scope::Role(BOB)),
                at_most(1, Scope::Database(WEB)),
            ],
        );
        assert_eq!(attempt(&mut table, &at_once(bob)), IN);
    }

    #[test]
    fn the_queue_is_bounded_and_one_role_has_a_quarter_of_it() {
        let mut memory = Memory::new(16);
        let mut table = memory.table();
        let full = [at_most(0, Scope::Database(APP)), None];
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
        let mut memory = Memory::new(4);
        let mut table = memory.table();
        assert_eq!(attempt(&mut table, &alice(0, 0)), Verdict::Waiting);
        refused(attempt(&mut table, &at_once(alice(0, 0))));
        assert_eq!(table.waiters().count(), 0);
    }

    #[test]
    fn the_next_owner_of_a_slot_does_not_count_the_last_one() {
        let mut memory = Memory::new(1);
        let mut table = memory.table();
        assert_eq!(attempt(&mut table, &alice(0, 1)), IN);
        assert_eq!(attempt(&mut table, &alice(0, 1)), IN);
    }
}
