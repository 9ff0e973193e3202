//! The input of a decision: a login, the limits that it must meet, and the rules.

use crate::account::Account;
use crate::count::SessionCounter;
use crate::limit::{Condition, Limit, Unit};
use crate::members::{Members, Missing, SessionFilter};
use crate::queue::Waiter;
use crate::servers::place::{AcrossRules, Contact, OnUnreachable};
use crate::session::Session;
use crate::table::Table;
use crate::tally::{Different, View};
use crate::verdict::Elsewhere;
use std::time::Duration;

/// A login that asks for room.
pub struct Attempt<'a> {
    /// The slot of its process.
    pub slot: usize,
    pub pid: u32,
    /// What it will be once it is admitted.
    pub session: Session,
    /// The limits that apply to it; none if it is exempt.
    pub limits: &'a [Limit],
    /// The members of at least the groups that its limits count.
    pub members: &'a Members,
    pub is_idle: IsIdle<'a>,
    /// For limits across servers.
    pub across: AcrossRules<'a>,
    pub rules: Rules,
}

/// The settings that bear on a decision.
#[derive(Clone, Copy)]
pub struct Rules {
    /// Whether walsenders count as sessions.
    pub count_walsenders: bool,
    /// Whether the login may wait, if a limit's `max_wait` allows that; None if that is not known.
    pub may_wait: Option<MayWait>,
    /// How long the login has tried. It may wait for a limit until this reaches the limit's `max_wait`.
    pub tried: Duration,
    /// How many logins wait at most; of one role at most a quarter of that. On accounts see [`MayWait::account`].
    pub max_waiters: u32,
    /// Whether there is memory to count different roles or addresses in even if no limit of the login counts them.
    pub tally: bool,
    pub replacing: Replacing,
    /// Whether [`crate::verdict::Admission::elsewhere`] is wanted.
    pub audit: bool,
}

/// Whether a login may wait, and on whose account.
#[derive(Clone, Copy)]
pub struct MayWait {
    /// How many connections there are to wait in, this login's among them; 0: it may not wait.
    pub connections: u32,
    /// One account has at most half of the places that nobody else takes, and of the connections; and the last quarter of
    /// the places is for logins on none.
    pub account: Option<Account>,
}

impl MayWait {
    pub const NOT: MayWait = MayWait {
        connections: 0,
        account: None,
    };
}

/// Which sessions may be replaced.
#[derive(Clone, Copy)]
pub struct Replacing {
    /// False if the server would refuse the login afterwards, so that no session must end for it.
    pub allowed: bool,
    /// The tick (see [`crate::atomics::arrive`]).
    pub now: u64,
    /// A session whose login arrived later than so long ago is not replaced.
    pub min_age: Duration,
    /// Under `replace_idle` a session that has been idle for less is not replaced.
    pub idle_after: Duration,
}

impl Replacing {
    /// No session may be replaced.
    pub const NONE: Replacing = Replacing {
        allowed: false,
        now: 0,
        min_age: Duration::ZERO,
        idle_after: Duration::ZERO,
    };

    /// Whether sessions may end to make room under this limit.
    pub fn lets_end(&self, limit: &Limit) -> bool {
        self.allowed && limit.replaces()
    }
}

/// Whether the session at this slot, of the process with this ID, is idle outside a transaction at this moment. It is
/// asked under the lock. The answer can change at any time: no session takes the lock to begin a transaction.
pub type IsIdle<'a> = &'a dyn Fn(usize, u32) -> bool;

/// A limit without room for the login. If it has some room, the second field is the number of earlier waiters that the
/// room is reserved for, else 0.
pub type FullLimit<'a> = (&'a Limit, u32);

impl<'a> Attempt<'a> {
    /// What the login waits for, if it does: room under each enforced limit.
    pub fn conditions(&self) -> impl Iterator<Item = Condition> + Clone {
        let enforced = self.limits.iter().filter(|limit| limit.enforced);
        enforced.map(Limit::condition)
    }

    /// Whether this login would wait for the same as `waiter`, its own entry in the queue, does.
    pub fn waits_for_the_same_as(&self, waiter: &Waiter) -> bool {
        let conditions = waiter.conditions.iter().copied();
        waiter.session.kind() == self.session.kind() && self.conditions().eq(conditions)
    }

    /// None if the login may not wait, or that is not known.
    pub fn may_wait(&self) -> Option<MayWait> {
        self.rules.may_wait.filter(|it| it.connections > 0)
    }

    /// Whether the login may wait for room under this limit; false if that is not known.
    pub fn lets_wait(&self, limit: &Limit) -> bool {
        self.may_wait().is_some() && self.has_time(limit)
    }

    /// Whether the decision depends on [`Rules::may_wait`], and that is not known. The login waits for an answer of etcd if
    /// it `asks` for one.
    pub fn must_know_whether_to_wait(&self, asks: bool) -> bool {
        let waits = asks || self.limits.iter().any(|limit| self.has_time(limit));
        self.rules.may_wait.is_none() && waits
    }

    /// Whether the login waits for what etcd says of this limit, which has no room here.
    pub fn awaits_answer(&self, table: &Table, contact: Contact, limit: &Limit) -> bool {
        let condition = limit.condition();
        let place = condition.place.and_then(|number| table.places.get(number));
        let contact = self.contact(table, contact, &condition, &self.session);
        let (arrival, max) = (self.session.arrival, limit.max);
        let may_answer = match contact {
            Contact::Good => place.is_some_and(|place| !place.is_full(max, arrival)),
            // What is held does not count any more.
            Contact::Joining => place.is_some_and(|place| !place.had_none_free(arrival)),
            Contact::Silent | Contact::Lost => false,
        };
        max > 0 && may_answer && !self.is_impatient(table)
    }

    /// Whether the login has asked etcd for as long as it may.
    fn is_impatient(&self, table: &Table) -> bool {
        let since = table.places.asks_since(self.slot);
        let asked = Duration::from_micros(self.across.now.saturating_sub(since));
        since > 0 && asked >= self.across.timeout
    }

    /// Whether the login has asked for as long as it may while this server joined the others, and was not answered, or this
    /// server has been about to join for as long.
    pub fn gives_up_on_joining(&self, table: &Table, boottime: u64) -> bool {
        let places = self.limits.iter().filter_map(|limit| limit.place);
        let mut places = places.filter_map(|number| table.places.get(number));
        let arrival = self.session.arrival;
        let lost = table.places.reach.valid_until;
        let joining = Duration::from_micros(boottime.saturating_sub(lost));
        self.is_impatient(table)
            && (places.any(|place| !place.was_looked_at_since(arrival))
                || lost > 0 && joining >= self.across.timeout)
    }

    /// The contact to etcd, for the session's room under this condition. A login that has waited for an answer for too long
    /// does without.
    fn contact(
        &self,
        table: &Table,
        contact: Contact,
        condition: &Condition,
        session: &Session,
    ) -> Contact {
        let place = condition.place.and_then(|number| table.places.get(number));
        let answered = place.is_none_or(|place| place.was_looked_at_since(session.arrival));
        let is_own = session.arrival == self.session.arrival;
        match contact {
            contact if !is_own || answered || !self.is_impatient(table) => contact,
            Contact::Good => Contact::Silent,
            Contact::Joining => Contact::Lost,
            contact => contact,
        }
    }

    /// What is known of other servers under this limit.
    pub fn elsewhere(&self, table: &Table, contact: Contact, limit: &Limit) -> Option<Elsewhere> {
        let condition = limit.condition();
        let place = table.places.get(condition.place?);
        let contact = self.contact(table, contact, &condition, &self.session);
        Some(match (place, contact, self.across.on_unreachable) {
            (Some(place), Contact::Good, _) => Elsewhere::Held(place.elsewhere, place.holder),
            (_, _, OnUnreachable::Refuse) => Elsewhere::Unreachable,
            (_, _, OnUnreachable::Local) => Elsewhere::Unknown,
        })
    }

    /// How many sessions the condition lets in on this server.
    pub fn bound(
        &self,
        table: &Table,
        counter: &SessionCounter,
        condition: &Condition,
        session: &Session,
    ) -> u32 {
        let contact = self.contact(table, counter.contact, condition, session);
        table.bound(condition, contact, self.across.on_unreachable)
    }

    pub fn has_time(&self, limit: &Limit) -> bool {
        limit.max > 0 && self.rules.max_waiters > 0 && self.rules.tried < limit.max_wait
    }

    /// The first of the chosen limits that is full; if some of those are preferred, the first of these. Full
    /// means no room at all; room that is reserved for waiters is room here.
    pub fn first_full(
        &self,
        table: &Table,
        counter: &SessionCounter,
        chosen: impl Fn(&Limit) -> bool,
        preferred: impl Fn(&Limit) -> bool,
    ) -> Result<Option<&'a Limit>, Missing> {
        let mut full = None;
        for (index, limit) in self.limits.iter().enumerate() {
            if !chosen(limit) || (full.is_some() && !preferred(limit)) {
                continue;
            }
            let (has_room, with) = look(table, counter, self, limit.condition(), &self.session)?;
            if let Some(known) = counter.in_use.get(index) {
                known.set(Some(with));
            }
            if !has_room {
                full = Some(limit);
                if preferred(limit) {
                    break;
                }
            }
        }
        Ok(full)
    }

    /// Whether the decision needs memory to count different roles or addresses in.
    pub fn tallies(&self) -> bool {
        self.rules.tally || self.limits.iter().any(|limit| limit.unit != Unit::Session)
    }

    /// Says which sessions the condition's limit counts.
    pub fn counted(&self, condition: Condition) -> Result<SessionFilter<'a>, Missing> {
        SessionFilter::new(condition.scope, self.rules.count_walsenders, self.members)
    }
}

/// Whether a limit has room for a session, also if it is reserved for waiters.
pub fn has_room(
    table: &Table,
    counter: &SessionCounter,
    login: &Attempt,
    condition: Condition,
    session: &Session,
) -> Result<bool, Missing> {
    Ok(look(table, counter, login, condition, session)?.0)
}

/// The same, and how many the limit would count with the session.
fn look(
    table: &Table,
    counter: &SessionCounter,
    login: &Attempt,
    condition: Condition,
    session: &Session,
) -> Result<(bool, u32), Missing> {
    if condition.unit == Unit::Session {
        let in_use = counter.count_cached(table, login.counted(condition)?);
        let bound = login.bound(table, counter, &condition, session);
        return Ok((in_use < bound, in_use.saturating_add(1)));
    }
    let stand = different(table, counter, login, condition, session, &[])?;
    Ok((stand.has_room(condition.max), stand.with))
}

/// Whether a limit has room for a session that is not reserved for the waiters in `counter.first`; and, if there is room
/// that is, for how many it is.
pub fn is_free(
    table: &Table,
    counter: &SessionCounter,
    login: &Attempt,
    condition: Condition,
    session: &Session,
) -> Result<(bool, u32), Missing> {
    if condition.unit == Unit::Session {
        let room = room(table, counter, login, condition, session)?;
        if room == 0 {
            return Ok((false, 0));
        }
        let ahead = ahead(table, counter, login, condition)?;
        return Ok((room > ahead, ahead));
    }
    let stand = different(table, counter, login, condition, session, &counter.first)?;
    Ok((stand.has_room(condition.max), stand.ahead))
}

/// How a limit that counts different roles or addresses stands for the session when these waiters have gone in.
fn different(
    table: &Table,
    counter: &SessionCounter,
    login: &Attempt,
    condition: Condition,
    session: &Session,
    first: &[usize],
) -> Result<Different, Missing> {
    let (filter, unit) = (login.counted(condition)?, condition.unit);
    counter.different(table, filter, unit, View::Now, first, Some(session))
}

/// How many more sessions, or units of them, a limit has room for, including room that is reserved for waiters, as the
/// session finds it.
pub fn room(
    table: &Table,
    counter: &SessionCounter,
    login: &Attempt,
    condition: Condition,
    session: &Session,
) -> Result<u32, Missing> {
    let filter = login.counted(condition)?;
    let in_use = match condition.unit {
        Unit::Session => counter.count_cached(table, filter),
        unit => counter.count_units(table, filter, unit)?,
    };
    let bound = login.bound(table, counter, &condition, session);
    Ok(bound.saturating_sub(in_use))
}

/// How many of the waiters in `counter.first` the limit covers: its room is reserved for them.
pub fn ahead(
    table: &Table,
    counter: &SessionCounter,
    login: &Attempt,
    condition: Condition,
) -> Result<u32, Missing> {
    let filter = login.counted(condition)?;
    let covers = |slot: &&usize| {
        let session = table.session(**slot);
        session.is_some_and(|session| filter.covers(&session))
    };
    Ok(counter.first.iter().filter(covers).count() as u32)
}

/// The tick since which the session at `slot` has been idle; None if it is not idle. A WAL sender never is: its work is
/// in no transaction, so that nothing says when it became idle.
pub fn idle_since(table: &Table, is_idle: IsIdle, slot: usize) -> Option<u64> {
    let (pid, session) = table.process(slot)?;
    if session.walsender || !is_idle(slot, pid) {
        return None;
    }
    table.shared.last_active(slot)
}
