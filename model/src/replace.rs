//! Which sessions end so that a login finds room. Pure.
//!
//! Only sessions of the login's own role, that arrived before it and are not too young. Of several
//! limits that have no room each is given it, the one with the fewest such sessions first; a single
//! one that refuses, or that no session can be ended for, and none ends.

use crate::attempt::{Attempt, FullLimit, ahead, idle_since};
use crate::count::{SessionCounter, VictimRank};
use crate::limit::{Limit, OnExcess};
use crate::members::Missing;
use crate::table::Table;
use std::time::Duration;

/// Hands over to the login, which has claimed its slot, as many sessions as make room under each of the chosen limits;
/// or finds the limit that refuses it. Then, or if an input is missing, the caller rolls back.
pub fn make_room<'a>(
    table: &mut Table,
    counter: &mut SessionCounter,
    login: &Attempt<'a>,
    chosen: impl Fn(&Limit) -> bool,
) -> Result<Option<FullLimit<'a>>, Missing> {
    loop {
        match find_shortage(table, counter, login, &chosen)? {
            Shortage::None => return Ok(None),
            Shortage::Refuses(full) => return Ok(Some(full)),
            // Until there is room under this limit, it stays the one with the fewest candidates.
            Shortage::Of(limit, excess) => {
                find_candidates(table, counter, login, limit)?;
                counter.candidates.sort_unstable();
                for place in 0..counter.candidates.len().min(excess as usize) {
                    if let Some((_, slot)) = counter.candidates.get(place) {
                        counter.hand_over(table, *slot, login.slot);
                    }
                }
            }
        }
    }
}

/// What the login lacks.
enum Shortage<'a> {
    None,
    /// Nobody can be ended for this limit.
    Refuses(FullLimit<'a>),
    /// So many sessions must end for this limit.
    Of(&'a Limit, u32),
}

/// Finds the limit without room for which the fewest sessions can be ended.
fn find_shortage<'a>(
    table: &Table,
    counter: &mut SessionCounter,
    login: &Attempt<'a>,
    chosen: &impl Fn(&Limit) -> bool,
) -> Result<Shortage<'a>, Missing> {
    let (mut shortage, mut fewest) = (Shortage::None, usize::MAX);
    for limit in login.limits.iter().filter(|limit| chosen(limit)) {
        let counted = login.counted(limit.condition())?;
        let ahead = ahead(table, counter, login, limit.condition())?;
        let then = counter.count_when_complete(table, login.slot, counted) + ahead;
        if then <= limit.max {
            continue;
        }
        find_candidates(table, counter, login, limit)?;
        match counter.candidates.len() {
            0 => return Ok(Shortage::Refuses((limit, ahead))),
            number if number < fewest => {
                fewest = number;
                shortage = Shortage::Of(limit, then - limit.max);
            }
            _ => {}
        }
    }
    Ok(shortage)
}

/// Finds the sessions that may be ended for the limit.
fn find_candidates(
    table: &Table,
    counter: &mut SessionCounter,
    login: &Attempt,
    limit: &Limit,
) -> Result<(), Missing> {
    let mut found = std::mem::take(&mut counter.candidates);
    found.clear();
    let all_is_known = candidates(table, counter, login, limit, &mut found);
    counter.candidates = found;
    all_is_known
}

fn candidates(
    table: &Table,
    counter: &SessionCounter,
    login: &Attempt,
    limit: &Limit,
    found: &mut Vec<(VictimRank, usize)>,
) -> Result<(), Missing> {
    let rules = &login.rules.replacing;
    if !rules.lets_end(limit) {
        return Ok(());
    }
    let own = login.counted(limit.condition())?.of(login.session.role);
    for slot in counter.covered(table, own) {
        let Some((pid, session)) = table.replaceable(slot) else {
            continue;
        };
        let age = rules.now.saturating_sub(session.started);
        if session.arrival >= login.session.arrival || age < micros(rules.min_age) {
            continue;
        }
        let since = match limit.on_excess {
            OnExcess::ReplaceIdle => {
                let since = idle_since(login.idle.ok_or(Missing::Idle)?, pid);
                let long_enough =
                    |since: &i64| rules.now.saturating_sub(*since) >= micros(rules.idle_after);
                let Some(since) = since.filter(long_enough) else {
                    continue;
                };
                since
            }
            _ => 0,
        };
        let told = table.end_reason(slot).is_some();
        found.push(((told, since, session.arrival), slot));
    }
    Ok(())
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
