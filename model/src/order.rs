//! Who goes first. A waiter *goes first* if it would be admitted now, given the waiters that go first before it: room
//! is then reserved for it under each limit that covers it. A waiter that would not be admitted is overtaken.
//!
//! Under a limit that counts different roles or addresses, room is reserved only for those that go first and would add
//! one, each different one once. A login whose role or address is counted already, or will be by then, needs none.

use crate::attempt::{Attempt, FullLimit, is_free, room};
use crate::count::SessionCounter;
use crate::limit::Limit;
use crate::members::Missing;
use crate::queue::Waiter;
use crate::table::Table;

/// The enforced limit that keeps the login out; None if none does. If several do, it is one for which the login may not
/// wait, if there is such a one; and only if there is no other, one of which it awaits what etcd says.
pub fn find_exceeded<'a>(
    table: &Table,
    counter: &mut SessionCounter,
    login: &Attempt<'a>,
) -> Result<Option<FullLimit<'a>>, Missing> {
    let contact = counter.contact;
    let awaits = |limit: &Limit| login.awaits_answer(table, contact, limit);
    let refuses = |limit: &Limit| !login.lets_wait(limit) && !awaits(limit);
    if let Some(limit) = login.first_full(table, counter, |limit| limit.enforced, refuses)? {
        let other = match awaits(limit) {
            true => {
                let is_other = |limit: &Limit| limit.enforced && !awaits(limit);
                login.first_full(table, counter, is_other, |_| true)?
            }
            false => None,
        };
        return Ok(Some((other.unwrap_or(limit), 0)));
    }
    if !has_rivals(table, counter, login)? {
        return Ok(None);
    }
    // Every limit has room, but waiters ahead may take it. Look for the first one that leaves the login none.
    counter.first.clear();
    for waiter in table.waiters_before(login.slot) {
        if !goes_first(table, counter, login, &waiter)? {
            continue;
        }
        let mut reserved = None;
        for limit in login.limits.iter().filter(|limit| limit.enforced) {
            let (free, ahead) = is_free(table, counter, login, limit.condition(), &login.session)?;
            let is_better = |(other, _): FullLimit| refuses(limit) || awaits(other);
            if !free && reserved.is_none_or(is_better) {
                reserved = Some((limit, ahead));
            }
        }
        if reserved.is_some() {
            return Ok(reserved);
        }
    }
    Ok(None)
}

/// Whether the waiters ahead could take all the room under one of the login's limits. Cheaper than to find out which of
/// them go first, and mostly false.
fn has_rivals(table: &Table, counter: &SessionCounter, login: &Attempt) -> Result<bool, Missing> {
    for limit in login.limits.iter().filter(|limit| limit.enforced) {
        let filter = login.counted(limit.condition())?;
        let rivals = table
            .waiters_before(login.slot)
            .filter(|waiter| filter.covers(&waiter.session))
            .count() as u32;
        if rivals == 0 {
            continue;
        }
        if room(table, counter, login, limit.condition(), &login.session)? <= rivals {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Puts into `counter.first` which of the waiters ahead of the login go first.
pub fn find_first(
    table: &Table,
    counter: &mut SessionCounter,
    login: &Attempt,
) -> Result<(), Missing> {
    counter.first.clear();
    for waiter in table.waiters_before(login.slot) {
        goes_first(table, counter, login, &waiter)?;
    }
    Ok(())
}

/// Whether this waiter goes first. If so, adds it to `counter.first`, which has those ahead of it already.
fn goes_first(
    table: &Table,
    counter: &mut SessionCounter,
    login: &Attempt,
    waiter: &Waiter,
) -> Result<bool, Missing> {
    for condition in waiter.conditions {
        if !is_free(table, counter, login, *condition, &waiter.session)?.0 {
            return Ok(false);
        }
    }
    counter.first.push(waiter.slot);
    Ok(true)
}

/// Puts into `counter.wake` the waiters that may go in now although the first waiter, whose attempt this is, may not.
/// A waiter is among them, too, if the inputs of the attempt do not suffice to say whether it may.
pub fn find_admissible(table: &Table, counter: &mut SessionCounter, first: &Attempt) {
    counter.first.clear();
    for waiter in table.waiters().skip(1) {
        if goes_first(table, counter, first, &waiter).unwrap_or(true) {
            debug_assert!(
                counter.wake.len() < counter.wake.capacity(),
                "no allocation"
            );
            counter.wake.push(waiter.slot);
        }
    }
}
