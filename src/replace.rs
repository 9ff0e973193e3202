//! Which sessions end so that a login finds room. Pure.
//!
//! Only sessions of the login's own role, that arrived before it and are not too young. Of several
//! limits that have no room each is given it, the one with the fewest such sessions first; a single
//! one that refuses, or that no session can be ended for, and none ends.

use crate::decide::{Attempt, ahead, bound};
use crate::limit::{Limit, OnExcess};
use crate::sessions::{Session, Table, Unknown};
use std::time::Duration;

/// When replacing is allowed.
#[derive(Clone, Copy)]
pub struct Replacing {
    /// Not if the server would refuse the login afterwards.
    pub allowed: bool,
    /// Microseconds since 2000-01-01.
    pub now: i64,
    /// No session ends that is younger.
    pub min_age: Duration,
    /// Nor, where only idle ones do, one that is idle for less.
    pub idle_after: Duration,
}

impl Replacing {
    /// Whether sessions may end so that there is room under this limit.
    pub fn lets_end(&self, limit: &Limit) -> bool {
        self.allowed && limit.on_excess != OnExcess::Refuse
    }
}

/// Sessions that are idle, and since when, as they were before the lock was taken; sorted by process ID.
pub type Idle = Vec<(u32, i64)>;

/// A limit that has no room, and for how many earlier logins there is some.
pub type Full<'a> = (&'a Limit, u32);

/// Leaves to the login, which has claimed its slot, the places of as many sessions as make room under
/// each of the chosen limits; or finds the limit that refuses it. Then, or if something is unknown,
/// the caller gives them back.
pub fn make_room<'a>(
    table: &mut Table,
    login: &Attempt<'a>,
    chosen: impl Fn(&Limit) -> bool,
    waiting: usize,
) -> Result<Option<Full<'a>>, Unknown> {
    loop {
        let mut next: Option<(usize, usize)> = None;
        for limit in login.limits.iter().filter(|limit| chosen(limit)) {
            let ahead = ahead(table, login, bound(limit), waiting)?;
            if table.count(login.counted(bound(limit))?) + ahead <= limit.max {
                continue;
            }
            let Some((number, first)) = candidates(table, login, limit)? else {
                return Ok(Some((limit, ahead)));
            };
            if next.is_none_or(|(fewest, _)| number < fewest) {
                next = Some((number, first));
            }
        }
        match next {
            Some((_, first)) => table.bequeath(first, login.slot),
            None => return Ok(None),
        }
    }
}

/// How many sessions may be ended for the limit, and the slot of the one to end first.
fn candidates(
    table: &Table,
    login: &Attempt,
    limit: &Limit,
) -> Result<Option<(usize, usize)>, Unknown> {
    let rules = &login.rules.replacing;
    if !rules.lets_end(limit) {
        return Ok(None);
    }
    let counted = login.counted(bound(limit))?;
    let old_enough = |session: &Session| {
        let age = rules.now.saturating_sub(session.started);
        session.arrival < login.session.arrival && age >= micros(rules.min_age)
    };
    let (mut number, mut first) = (0, None);
    for (slot, pid, session) in table.replaceable() {
        let own = session.role == login.session.role;
        if !own || !counted.covers(session) || !old_enough(session) {
            continue;
        }
        let rank = match limit.on_excess {
            OnExcess::ReplaceIdle => {
                let idle = login.idle.ok_or(Unknown::Idle)?;
                let of_session = idle.binary_search_by_key(&pid, |(idle, _)| *idle);
                let since = of_session.ok().and_then(|index| idle.get(index));
                let long_enough = |(_, since): &&(u32, i64)| {
                    rules.now.saturating_sub(*since) >= micros(rules.idle_after)
                };
                let Some((_, since)) = since.filter(long_enough) else {
                    continue;
                };
                (*since, session.arrival)
            }
            _ => (0, session.arrival),
        };
        number += 1;
        if first.is_none_or(|(best, _)| rank < best) {
            first = Some((rank, slot));
        }
    }
    Ok(first.map(|(_, slot)| (number, slot)))
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
