//! How limits stand for a login that is not made, or for one that waits.

use crate::lookup::{self, Inputs};
use crate::pg::backend;
use crate::pg::catalog::name_of;
use crate::pg::memberships::Memberships;
use crate::pg::memory;
use crate::settings::{self, Settings};
use model::attempt::{Attempt, MayWait, Replacing, Rules};
use model::decide;
use model::limit::{Across, Limit};
use model::members::Members;
use model::servers::counter::Counter;
use model::servers::place::{AcrossRules, Contact, Wanted};
use model::session::Session;
use model::sweep::Applying;
use model::table::Table;
use model::verdict::Standing;
use std::time::Duration;

/// A login that waits.
pub struct WaitingLogin {
    pub slot: usize,
    pub session: Session,
    /// The enforced limits without room for it, as indexes into [`Applying::limits`]. None if it is about to go in.
    pub in_the_way: Vec<usize>,
}

/// The slot of a login that is not made: no process has it, so that all waiters come before.
pub const NO_SLOT: usize = usize::MAX;

/// How each of these limits stands for the login, in a copy of the table.
pub fn standings(
    table: &Table,
    (slot, session): (usize, Session),
    limits: &[Limit],
    members: Members,
    settings: &Settings,
) -> Vec<Standing> {
    let rules = Rules {
        count_walsenders: !settings.exempt_replication,
        may_wait: Some(MayWait::NOT),
        tried: Duration::ZERO,
        max_waiters: 0,
        tally: false,
        replacing: Replacing::NONE,
        audit: false,
    };
    let memberships = Memberships::default();
    lookup::retry_with(
        Inputs::new(members),
        |group| memberships.members_of(group),
        || MayWait::NOT,
        |inputs| {
            let login = Attempt {
                across: AcrossRules::NONE,
                slot,
                pid: 0,
                session,
                limits,
                members: &inputs.members,
                is_idle: &|_, _| false,
                rules,
            };
            decide::explain(table, &login)
        },
    )
}

/// How many the limit counts on other servers, as of the last look at etcd. None if it counts on this one alone, or if that is
/// not known.
pub fn elsewhere(table: &Table, limit: &Limit) -> Option<i64> {
    if limit.across == Across::Server || !settings::servers::are_shared() {
        return None;
    }
    let is_known = table.places.contact(backend::boottime()) == Contact::Good;
    let wanted = Wanted::new(0, Counter::of(limit.scope, &name_of), limit.max);
    let place = table.places.get(table.places.known(&wanted)?)?;
    (is_known && place.was_looked_at_since(1)).then(|| place.elsewhere.into())
}

/// The logins that wait in a copy of the table, in the order of the queue. `applying` covers them.
pub fn waiting_logins(
    table: &Table,
    applying: &Applying,
    members: &Members,
    settings: &Settings,
) -> Vec<WaitingLogin> {
    let waiters = table.waiters().map(|waiter| {
        let login = (waiter.slot, waiter.session);
        let hold = applying.hold.get(&waiter.session.kind());
        let hold = hold.map(Vec::as_slice).unwrap_or_default();
        let limits = hold.iter().filter_map(|index| applying.limits.get(*index));
        let limits: Vec<Limit> = limits.copied().collect();
        let standings = standings(table, login, &limits, members.clone(), settings);
        let full = hold.iter().zip(standings);
        // It lacks nothing but places.
        let asks = table.places.asks(waiter.slot);
        let lacks = |limit: &Limit| asks && limit.across == Across::Servers;
        let full = full.filter(|(_, it)| it.limit.enforced && (!it.fits || lacks(&it.limit)));
        WaitingLogin {
            slot: waiter.slot,
            session: waiter.session,
            in_the_way: full.map(|(index, _)| *index).collect(),
        }
    });
    let mut all = Vec::new();
    memory::extend(&mut all, waiters);
    all
}
