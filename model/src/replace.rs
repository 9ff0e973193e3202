//! Which sessions end so that a login finds room: its victims (see [`crate::table`]).
//!
//! A victim is a session of the login's own role that arrived before the login and is old enough. If several limits are
//! full, every one must get room, or the login is refused and no session ends. Victims are chosen for the limit with
//! the fewest candidates first; one victim can make room under several limits.
//!
//! Under a limit that counts different addresses, an address makes room when all sessions from it end. So they end together,
//! or none of them, because one may not: it is too young, not idle, or of another role. The address whose first session
//! arrived first goes first; under `replace_idle` the one that all have left idle for longest.
//!
//! Under `replace_idle` a victim is idle, too. It can begin a transaction at any time, also while the decision is made.
//! So the caller looks once more before it tells the victims to end ([`idle_victim_woke`]).

use crate::attempt::{Attempt, FullLimit, IsIdle, ahead, idle_since};
use crate::count::{SessionCounter, VictimRank};
use crate::limit::{Limit, OnExcess, Unit};
use crate::members::Missing;
use crate::table::Table;
use crate::tally::View;
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
                let (mut units, mut last) = (0, None);
                for index in 0..counter.candidates.len() {
                    let Some((rank, slot)) = counter.candidates.get(index).copied() else {
                        continue;
                    };
                    // Sessions from one address have the same rank, and no others have it.
                    units += u32::from(last != Some(rank));
                    if units > excess {
                        break;
                    }
                    last = Some(rank);
                    counter.hand_over(table, slot, login.slot);
                    if full.0.on_excess == OnExcess::ReplaceIdle {
                        let since = match full.0.unit {
                            Unit::Session => rank.1,
                            // The rank has that of the last one of the address. If this one is not idle any more, the caller
                            // finds that.
                            _ => idle_since(table, login.is_idle, slot)
                                .filter(|it| Some(*it) <= rank.1),
                        };
                        counter.idle_victims.push((slot, since.unwrap_or(u64::MAX)));
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
        let Some((excess, ahead)) = excess(table, counter, login, limit)? else {
            continue;
        };
        find_candidates(table, counter, login, limit)?;
        match counter.candidates.len() {
            0 => return Ok(Shortage::Refuses((limit, ahead))),
            number if number < fewest => {
                fewest = number;
                shortage = Shortage::Of((limit, ahead), excess);
            }
            _ => {}
        }
    }
    Ok(shortage)
}

/// How many sessions, or units of them, there would be over the limit with the login, which has claimed its slot, when its
/// victims are gone and the waiters ahead are in; and how many are for these. None if the limit has room for that.
fn excess(
    table: &Table,
    counter: &SessionCounter,
    login: &Attempt,
    limit: &Limit,
) -> Result<Option<(u32, u32)>, Missing> {
    let filter = login.counted(limit.condition())?;
    let (needed, ahead) = match limit.unit {
        Unit::Session => {
            let ahead = ahead(table, counter, login, limit.condition())?;
            let number = counter.count_when_complete(table, login.slot, filter);
            (number + ahead, ahead)
        }
        unit => {
            let (session, first) = (Some(&login.session), &counter.first);
            let stand = |view| counter.different(table, filter, unit, view, first, session);
            let before = stand(View::Without(login.slot))?;
            if before.has_room(limit.max) {
                return Ok(None);
            }
            let then = stand(View::Complete(login.slot))?;
            (then.in_use + then.ahead, then.ahead)
        }
    };
    let bound = login.bound(table, counter, &limit.condition(), &login.session);
    let excess = needed.checked_sub(bound).filter(|excess| *excess > 0);
    Ok(excess.map(|excess| (excess, ahead)))
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
    if !login.rules.replacing.lets_end(limit) {
        return Ok(());
    }
    let all = login.counted(limit.condition())?;
    let own = all.of(login.session.role);
    if limit.unit == Unit::Session {
        let ranked = |slot| Some((rank(table, login, limit, slot)?, slot));
        found.extend(counter.covered(table, own).filter_map(ranked));
        return Ok(());
    }
    if counter.covered(table, own).next().is_none() {
        return Ok(());
    }
    // None has a rank until all from its address are known.
    for slot in counter.covered(table, all) {
        // Those that have been chosen for another limit are as good as gone.
        if slot != login.slot && table.shared.successor(slot) != Some(login.slot) {
            found.push((NOT_RANKED, slot));
        }
    }
    let value = |slot: usize| table.session(slot).and_then(|it| limit.unit.value(&it));
    found.sort_unstable_by_key(|(_, slot)| value(*slot));
    let alike = |(_, one): &(_, usize), (_, other): &(_, usize)| value(*one) == value(*other);
    for of_one in found.chunk_by_mut(alike) {
        let rank_of = |(_, slot): &(_, usize)| {
            let is_own = table.session(*slot)?.role == login.session.role;
            is_own.then(|| rank(table, login, limit, *slot)).flatten()
        };
        let mut together = None;
        for one in &*of_one {
            let Some((told, since, arrival)) = rank_of(one) else {
                together = None;
                break;
            };
            let (all_told, latest, first) = together.unwrap_or((told, since, arrival));
            together = Some((all_told | told, latest.max(since), first.min(arrival)));
        }
        let rank = together.unwrap_or(NOT_RANKED);
        of_one.iter_mut().for_each(|one| one.0 = rank);
    }
    found.retain(|(rank, _)| *rank != NOT_RANKED);
    Ok(())
}

/// No session's: none arrives so late.
const NOT_RANKED: VictimRank = (true, None, u64::MAX);

/// The rank of the session at this slot; None if it may not end for the limit.
fn rank(table: &Table, login: &Attempt, limit: &Limit, slot: usize) -> Option<VictimRank> {
    let rules = &login.rules.replacing;
    let (_, session) = table.replaceable(slot)?;
    let is_past = |tick, ago| rules.now.saturating_sub(tick) >= ticks(ago);
    if session.arrival >= login.session.arrival || !is_past(session.arrival, rules.min_age) {
        return None;
    }
    let since = match limit.on_excess {
        OnExcess::ReplaceIdle => {
            let since = idle_since(table, login.is_idle, slot)?;
            Some(since).filter(|since| is_past(*since, rules.idle_after))?;
            Some(since)
        }
        _ => None,
    };
    let told = table.end_reason(slot).is_some();
    Some((told, since, session.arrival))
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
