//! Which sessions end so that a login finds room: its victims (see [`crate::table`]).
//!
//! A victim is a session of the login's own role that arrived before the login and is old enough. If several limits are
//! full, every one must get room, or the login is refused and no session ends. Victims are chosen for the limit with
//! the fewest candidates first; one victim can make room under several limits.
//!
//! Under `replace_idle` a victim is idle, too. It can begin a transaction at any time, also while the decision is made.
//! So the caller looks once more before it tells the victims to end ([`idle_victim_woke`]).

use crate::attempt::{Attempt, FullLimit, IsIdle, ahead, idle_since};
use crate::count::{SessionCounter, VictimRank};
use crate::limit::{Limit, OnExcess};
use crate::members::Missing;
use crate::table::Table;
use std::time::Duration;

/// Makes as many sessions victims of the login, which has claimed its slot, as make room under each of the chosen
/// limits. Returns the limit that refuses the login, if one does. In that case, and if an input is missing, the caller
/// rolls back.
pub fn make_room<'a>(
    table: &mut Table,
    counter: &mut SessionCounter,
    login: &Attempt<'a>,
    chosen: impl Fn(&Limit) -> bool,
) -> Result<Option<FullLimit<'a>>, Missing> {
    counter.idle_victims.clear();
    loop {
        match find_shortage(table, counter, login, &chosen)? {
            Shortage::None => return Ok(None),
            Shortage::Refuses(full) => return Ok(Some(full)),
            // All its victims at once: until there is room under this limit, it stays the one with the fewest
            // candidates.
            Shortage::Of(full, excess) => {
                find_candidates(table, counter, login, full.0)?;
                // All that were idle a moment ago may have begun a transaction.
                if counter.candidates.is_empty() {
                    return Ok(Some(full));
                }
                counter.candidates.sort_unstable();
                for index in 0..counter.candidates.len().min(excess as usize) {
                    if let Some(((_, idle_since, _), slot)) = counter.candidates.get(index).copied()
                    {
                        counter.hand_over(table, slot, login.slot);
                        let idle_since = idle_since.map(|since| (slot, since));
                        counter.idle_victims.extend(idle_since);
                    }
                }
            }
        }
    }
}

/// Where the login lacks room.
enum Shortage<'a> {
    /// Nowhere: every limit has room.
    None,
    /// Under this limit, and no session may end for it.
    Refuses(FullLimit<'a>),
    /// Under this limit, by this number of sessions.
    Of(FullLimit<'a>, u32),
}

/// Finds the full limit for which the fewest sessions may end.
fn find_shortage<'a>(
    table: &Table,
    counter: &mut SessionCounter,
    login: &Attempt<'a>,
    chosen: &impl Fn(&Limit) -> bool,
) -> Result<Shortage<'a>, Missing> {
    let (mut shortage, mut fewest) = (Shortage::None, usize::MAX);
    for limit in login.limits.iter().filter(|limit| chosen(limit)) {
        let filter = login.counted(limit.condition())?;
        let ahead = ahead(table, counter, login, limit.condition())?;
        let needed = counter.count_when_complete(table, login.slot, filter) + ahead;
        if needed <= limit.max {
            continue;
        }
        find_candidates(table, counter, login, limit)?;
        match counter.candidates.len() {
            0 => return Ok(Shortage::Refuses((limit, ahead))),
            number if number < fewest => {
                fewest = number;
                shortage = Shortage::Of((limit, ahead), needed - limit.max);
            }
            _ => {}
        }
    }
    Ok(shortage)
}

/// Puts into `counter.candidates` the sessions that may end for the limit.
fn find_candidates(
    table: &Table,
    counter: &mut SessionCounter,
    login: &Attempt,
    limit: &Limit,
) -> Result<(), Missing> {
    let mut found = std::mem::take(&mut counter.candidates);
    found.clear();
    let result = candidates(table, counter, login, limit, &mut found);
    counter.candidates = found;
    result
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
        let Some((_, session)) = table.replaceable(slot) else {
            continue;
        };
        let is_past = |tick, ago| rules.now.saturating_sub(tick) >= ticks(ago);
        if session.arrival >= login.session.arrival || !is_past(session.arrival, rules.min_age) {
            continue;
        }
        let since = match limit.on_excess {
            OnExcess::ReplaceIdle => {
                let since = idle_since(table, login.is_idle, slot);
                let since = since.filter(|since| is_past(*since, rules.idle_after));
                if since.is_none() {
                    continue;
                }
                since
            }
            _ => None,
        };
        let told = table.end_reason(slot).is_some();
        found.push(((told, since, session.arrival), slot));
    }
    Ok(())
}

fn ticks(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Whether one of these victims of the login at `slot` (see [`SessionCounter::idle_victims`]) is still there, but has not
/// been idle all the time.
pub fn idle_victim_woke(
    table: &Table,
    slot: usize,
    idle_victims: &[(usize, u64)],
    is_idle: IsIdle,
) -> bool {
    idle_victims.iter().any(|(victim, since)| {
        // The slot of one that is gone may have a new owner.
        let stays =
            table.shared.successor(*victim) == Some(slot) && table.process(*victim).is_some();
        stays && idle_since(table, is_idle, *victim) != Some(*since)
    })
}
