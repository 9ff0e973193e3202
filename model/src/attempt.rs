//! What is known of a login when it is decided.

use crate::count::SessionCounter;
use crate::limit::{Condition, Limit};
use crate::members::{Members, Missing, SessionFilter};
use crate::queue::Waiter;
use crate::session::Session;
use crate::table::Table;
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
    pub const NONE: Replacing = Replacing {
        allowed: false,
        now: 0,
        min_age: Duration::ZERO,
        idle_after: Duration::ZERO,
    };

    /// Whether sessions may end so that there is room under this limit.
    pub fn lets_end(&self, limit: &Limit) -> bool {
        self.allowed && limit.replaces()
    }
}

/// Sessions that are idle, and since when, as they were before the lock was taken; sorted by process ID.
pub type Idle = Vec<(u32, i64)>;

/// A limit that has no room, and for how many earlier logins there is some.
pub type FullLimit<'a> = (&'a Limit, u32);

impl<'a> Attempt<'a> {
    /// What it waits for, if it does.
    pub fn conditions(&self) -> impl Iterator<Item = Condition> + Clone {
        let enforced = self.limits.iter().filter(|limit| limit.enforced);
        enforced.map(Limit::condition)
    }

    /// Whether it waits for the same as the waiter, which it was.
    pub fn is(&self, waiter: &Waiter) -> bool {
        let conditions = waiter.conditions.iter().copied();
        waiter.session.kind() == self.session.kind() && self.conditions().eq(conditions)
    }

    pub fn lets_wait(&self, limit: &Limit) -> bool {
        self.rules.may_wait == Some(true) && self.has_time(limit)
    }

    pub fn must_know_whether_to_wait(&self) -> bool {
        self.rules.may_wait.is_none() && self.limits.iter().any(|limit| self.has_time(limit))
    }

    fn has_time(&self, limit: &Limit) -> bool {
        self.rules.tried < limit.max_wait
    }

    /// The first of the chosen limits that no more session fits under, of several the first that is
    /// preferred.
    pub fn first_full(
        &self,
        table: &Table,
        counter: &SessionCounter,
        chosen: impl Fn(&Limit) -> bool,
        preferred: impl Fn(&Limit) -> bool,
    ) -> Result<Option<&'a Limit>, Missing> {
        let mut full = None;
        for limit in self.limits.iter().filter(|limit| chosen(limit)) {
            if (full.is_none() || preferred(limit))
                && room(table, counter, self, limit.condition())? == 0
            {
                full = Some(limit);
                if preferred(limit) {
                    break;
                }
            }
        }
        Ok(full)
    }

    pub fn counted(&self, condition: Condition) -> Result<SessionFilter<'a>, Missing> {
        SessionFilter::new(condition.scope, self.rules.count_walsenders, self.members)
    }
}

/// How many more sessions a limit has room for.
pub fn room(
    table: &Table,
    counter: &SessionCounter,
    login: &Attempt,
    condition: Condition,
) -> Result<u32, Missing> {
    let in_use = counter.count_cached(table, login.counted(condition)?);
    Ok(condition.max.saturating_sub(in_use))
}

/// How many of the waiters that go first take room under the limit.
pub fn ahead(
    table: &Table,
    counter: &SessionCounter,
    login: &Attempt,
    condition: Condition,
) -> Result<u32, Missing> {
    let counted = login.counted(condition)?;
    let covers = |slot: &&usize| {
        let session = table.session(**slot);
        session.is_some_and(|session| counted.covers(&session))
    };
    Ok(counter.first.iter().filter(covers).count() as u32)
}

/// Since when the session of this process is idle, if it is.
pub fn idle_since(idle: &Idle, pid: u32) -> Option<i64> {
    let found = idle.binary_search_by_key(&pid, |(idle, _)| *idle).ok()?;
    idle.get(found).map(|(_, since)| *since)
}
