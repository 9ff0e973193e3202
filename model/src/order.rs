//! Who goes first: room that an earlier waiter fits in is left to it; a waiter that fits in none is overtaken.

use crate::attempt::{Attempt, FullLimit, ahead, room};
use crate::count::SessionCounter;
use crate::limit::Limit;
use crate::members::Missing;
use crate::queue::Waiter;
use crate::table::Table;

/// The enforced limit that has no room, and how many earlier waiters there is some for. Of several it
/// is one for which the login may not wait, if there is such.
pub fn find_exceeded<'a>(
    table: &Table,
    counter: &mut SessionCounter,
    login: &Attempt<'a>,
) -> Result<Option<FullLimit<'a>>, Missing> {
    let refuses = |limit: &Limit| !login.lets_wait(limit);
    if let Some(limit) = login.first_full(table, counter, |limit| limit.enforced, refuses)? {
        return Ok(Some((limit, 0)));
    }
    if !has_rivals(table, counter, login)? {
        return Ok(None);
    }
    // There is room, but earlier waiters that fit go first; those that do not are overtaken.
    counter.first.clear();
    for waiter in table.waiters_before(login.slot) {
        if !goes_first(table, counter, login, &waiter)? {
            continue;
        }
        let mut short = None;
        for limit in login.limits.iter().filter(|limit| limit.enforced) {
            let ahead = ahead(table, counter, login, limit.condition())?;
            if room(table, counter, login, limit.condition())? <= ahead
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
fn has_rivals(table: &Table, counter: &SessionCounter, login: &Attempt) -> Result<bool, Missing> {
    for limit in login.limits.iter().filter(|limit| limit.enforced) {
        let counted = login.counted(limit.condition())?;
        let rivals = table
            .waiters_before(login.slot)
            .filter(|waiter| counted.covers(&waiter.session))
            .count() as u32;
        if rivals > 0 && room(table, counter, login, limit.condition())? <= rivals {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Finds which of the waiters before the login go first.
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

/// Finds out whether this waiter goes first, once that is known of those before it.
fn goes_first(
    table: &Table,
    counter: &mut SessionCounter,
    login: &Attempt,
    waiter: &Waiter,
) -> Result<bool, Missing> {
    for condition in waiter.conditions {
        let room = room(table, counter, login, *condition)?;
        if room == 0 || room <= ahead(table, counter, login, *condition)? {
            return Ok(false);
        }
    }
    counter.first.push(waiter.slot);
    Ok(true)
}

/// Finds the waiters that may go in now, before the first of them, who asks. A waiter of which that is not known may.
pub fn find_admissible(table: &Table, counter: &mut SessionCounter, first: &Attempt) {
    counter.first.clear();
    for waiter in table.waiters().skip(1) {
        if goes_first(table, counter, first, &waiter).unwrap_or(true) {
            counter.wake.push(waiter.slot);
        }
    }
}
