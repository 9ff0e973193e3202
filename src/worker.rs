//! The background worker. No decision about a login depends on it.
//!
//! It sweeps: it finds the sessions over a limit that was lowered, or set, after they came. It says who can make anyone a
//! member of a labelled group: no hook is told of a GRANT. It frees slots whose process is gone; it should never find one.
//! It logs how many lines were suppressed, where no later line does. It makes room in the statistics where roles and
//! databases were dropped, and ends seats of dropped databases, and those whose time is over before anyone calls.
//!
//! It connects to no database, so that every database can be dropped. If the catalogs cannot be read, it says so once in
//! a while and goes on.

use crate::lookup::Administered;
use crate::pg::catalog::{Database, Role};
use crate::pg::{backend, compat, memory};
use crate::record::{self, events};
use crate::settings::{self, Enforcement, Settings, SweepSetting};
use crate::{error, login, lookup, seat, shmem, slot};
use model::counters::Statistics;
use model::limit::{Across, Limit, Object, Scope, Source, Unit};
use model::members::SessionFilter;
use model::per::Per;
use model::seats::Key;
use model::servers::place::Wanted;
use model::session::{Claim, Session};
use model::sweep::{Exceeded, Sweep, ends_if_dropped};
use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, SignalWakeFlags,
};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// As often as the log may say how many lines it was spared.
const SAY_EVERY: Duration = Duration::from_secs(1);
/// A commit sends its invalidations microseconds after it has woken the worker.
const WAKE_AGAIN: Duration = Duration::from_millis(20);
/// A slot is seen twice without its process before it is freed: a process is gone from the process array for
/// microseconds before it frees its slot.
const RECLAIM_EVERY: Duration = Duration::from_secs(10);
/// The administrators of so many groups are logged at each sweep, those of the others later.
const GROUPS_AT_ONCE: usize = 5;
/// A worker that was killed or failed is started again after this.
const RESTART_AFTER: Duration = Duration::from_secs(1);

pub fn register() {
    BackgroundWorkerBuilder::new("session_limit worker")
        .set_type("session_limit worker")
        .set_library("session_limit")
        .set_function("session_limit_worker_main")
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::ConsistentState)
        .set_restart_time(Some(RESTART_AFTER))
        .load();
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn session_limit_worker_main(_arg: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    BackgroundWorker::connect_worker_to_spi_by_oid(None, None);
    backend::never_wait_long_for_a_lock();
    shmem::memory().mailbox.become_reader();
    // The configuration may have been reloaded before this process had a handler for that.
    backend::reload_settings();
    warn_if_not_last();
    let (mut suspects, mut said) = (Vec::new(), SaidBefore::default());
    let (mut reclaimed, mut swept) = (Instant::now(), Instant::now());
    // Limits may have changed before there was a worker.
    let mut changed = true;
    // If there was nothing to sweep, the invalidations may come a moment later.
    let mut wake_again = false;
    loop {
        let settings = settings::current();
        if changed || swept.elapsed() >= settings.sweep_interval {
            swept = Instant::now();
            sweep(&settings, &mut said);
        }
        // There may be room for them now. The sweep comes first, so that the invalidations of the commit that woke this
        // worker have been sent when the waiters read again.
        if changed || wake_again {
            slot::wake_all_waiters();
        }
        wake_again = changed;
        // Not at each wake-up: it is woken for other reasons, too.
        if reclaimed.elapsed() >= RECLAIM_EVERY {
            reclaimed = Instant::now();
            suspects = reclaim(&suspects);
            shmem::label_changes().look_again();
            forget_dropped();
            end_seats();
        }
        events::flush_suppressed(false);
        let left = RECLAIM_EVERY
            .saturating_sub(reclaimed.elapsed())
            .min(settings.sweep_interval.saturating_sub(swept.elapsed()))
            .min(if wake_again { WAKE_AGAIN } else { SAY_EVERY });
        // The latch waits for whole milliseconds, rounded down.
        if !BackgroundWorker::wait_latch(Some(left + Duration::from_millis(1))) {
            break;
        }
        changed = shmem::memory().mailbox.take_changed();
        if BackgroundWorker::sighup_received() {
            backend::reload_settings();
            changed = true;
        }
    }
    events::flush_suppressed(true);
    // It was told to stop. The postmaster starts a worker again that did not end with 0, unless the server is stopping.
    // SAFETY: ends the process as the server's own workers do; nothing is held.
    unsafe { pg_sys::proc_exit(1) };
}

/// Acts in a transaction. If the catalogs cannot be read, the log says so once in a while, and the worker goes on.
fn read_catalogs(act: impl FnOnce()) {
    if let Err(why) = backend::in_transaction(act) {
        events::cannot_read_limits(&why);
    }
}

/// A library whose hook comes after ours may refuse a login that has cost another session by then.
fn warn_if_not_last() {
    if login::is_last() {
        return;
    }
    read_catalogs(|| {
        if lookup::some_limit_replaces() {
            error::another_library_decides_later();
        }
    });
}

/// What the log says already.
#[derive(Default)]
struct SaidBefore {
    exceeded: Vec<Said>,
    /// Roles that were dropped, each with the number of its sessions.
    dropped: BTreeMap<u32, u32>,
    /// Labelled groups, each with the roles that can make anyone a member.
    administered: Administered,
}

/// A limit that the log says is exceeded, and by how many sessions here and elsewhere.
type Said = (Source, Scope, (Per, Unit, Across), u32, (u32, u32));

/// Does to the sessions over a limit what the setting says. What the log said last time is not said again.
fn sweep(settings: &Settings, said: &mut SaidBefore) {
    let looks = settings.sweep != SweepSetting::Off && settings.enforcement != Enforcement::Off;
    read_catalogs(|| {
        // SAFETY: in a transaction. A commit wakes the worker before it sends its invalidations: so all caches are read
        // anew.
        unsafe { pg_sys::InvalidateSystemCaches() };
        if looks {
            end_and_say(settings, said);
        } else {
            (said.exceeded, said.dropped) = Default::default();
        }
        said.administered = say_administered(&said.administered);
        if settings::servers::are_shared() {
            give_places(settings);
        }
    });
}

/// Gives each session places under the limits across servers that count it: it may have come before there was the limit, or
/// be exempt.
fn give_places(settings: &Settings) {
    let mut copy = shmem::snapshot();
    let table = copy.table();
    let sessions: Vec<_> = table.claimed().collect();
    let all = sessions.iter().map(|(_, _, session)| session);
    let (applying, members) = lookup::applying(all, settings);
    let count_walsenders = !settings.exempt_replication;
    let wanted = lookup::across_servers(&applying.limits).into_iter();
    let wanted = wanted.filter_map(|one| {
        let limit = applying.limits.get(one.limit)?;
        let filter = SessionFilter::new(limit.scope, count_walsenders, &members);
        Some((filter.ok()?, one))
    });
    let wanted: Vec<(SessionFilter, Wanted)> = wanted.collect();
    let of = |session: &Session| {
        let covering = wanted.iter().filter(|(filter, _)| filter.covers(session));
        covering.map(|(_, one)| *one).collect()
    };
    // Most have theirs since their login.
    let lacking = sessions.iter().filter_map(|(slot, pid, session)| {
        let wanted: Vec<Wanted> = of(session);
        let claim = Claim::new(*pid, session.role);
        (!table.has_places(*slot, &wanted)).then_some((*slot, claim, wanted))
    });
    let mut adopted = Vec::new();
    memory::extend(&mut adopted, lacking);
    let memory = shmem::memory();
    memory.table.exclusively(|table| table.adopt_all(&adopted));
    memory.servers_mailbox.wake();
}

fn end_and_say(settings: &Settings, said: &mut SaidBefore) {
    let mut copy = shmem::snapshot();
    let table = copy.table();
    let sessions: Vec<Session> = table.sessions().map(|(_, session)| session).collect();
    let (mut applying, members) = lookup::applying(sessions.iter(), settings);
    for wanted in lookup::across_servers(&applying.limits) {
        if let Some(limit) = applying.limits.get_mut(wanted.limit) {
            limit.place = table.places.known(&wanted);
        }
    }
    let ends = settings.sweep == SweepSetting::Terminate;
    let sweep = Sweep {
        applying: &applying,
        members: &members,
        is_idle: &compat::is_idle,
        count_walsenders: !settings.exempt_replication,
    };
    let may_end = |over: &Exceeded| {
        let limit = applying.limits.get(over.limit);
        limit.is_some_and(|limit| {
            let is_own = limit.across == Across::Server;
            limit.enforced && is_own && is_of_an_administrator(limit.source)
        })
    };
    let exceeded = sweep.over(&table).into_iter();
    let (end, say): (Vec<_>, Vec<_>) = exceeded.partition(|over| ends && may_end(over));
    // If a limit is changing just now, it may have been raised: nobody ends before the next sweep.
    if !end.is_empty() && !shmem::memory().mailbox.has_changed() {
        for ending in slot::end_excess(&sweep, &end) {
            if let Some(limit) = applying.limits.get(ending.over.limit) {
                let ended = Some((ending.pid, &ending.session));
                record::swept(limit);
                events::swept(limit, &ending.over, ended);
            }
        }
    }
    said.exceeded = say_exceeded(&applying.limits, &say, &said.exceeded);
    said.dropped = end_dropped(&sessions, settings, &said.dropped);
}

/// Logs who can make anyone a member of a labelled group, unless the log said so of all of them, and returns what the log
/// says now.
fn say_administered(said: &Administered) -> Administered {
    let groups = lookup::administered_groups().into_iter();
    let is_said = |(group, by): &(u32, BTreeSet<u32>)| {
        let said = said.get(group);
        said.is_some_and(|said| by.is_subset(said))
    };
    let (mut known, new): (Administered, Administered) = groups.partition(is_said);
    for (group, by) in new.into_iter().take(GROUPS_AT_ONCE) {
        error::group_is_administered(group, &by);
        known.insert(group, by);
    }
    known
}

/// Sessions of a role that was dropped are excess by nature: no limit counts them any more. Ends them, or logs how many
/// there are, and returns what is logged.
fn end_dropped(
    sessions: &[Session],
    settings: &Settings,
    said: &BTreeMap<u32, u32>,
) -> BTreeMap<u32, u32> {
    let count_walsenders = !settings.exempt_replication;
    let mut dropped = BTreeMap::new();
    for session in sessions {
        if ends_if_dropped(session, count_walsenders) && Role::by_oid(session.role).is_none() {
            *dropped.entry(session.role).or_insert(0) += 1;
        }
    }
    if !dropped.is_empty() {
        // An index could be damaged: the catalog itself must have none of them.
        for role in Role::all() {
            dropped.remove(&role.oid);
        }
    }
    let ends = settings.sweep == SweepSetting::Terminate;
    if ends && settings.enforcement == Enforcement::On && !dropped.is_empty() {
        let roles: Vec<u32> = dropped.keys().copied().collect();
        for (pid, session) in slot::end_sessions_of(&roles, count_walsenders) {
            let in_use = dropped.get(&session.role).copied().unwrap_or(0);
            events::role_dropped(session.role, in_use, Some((pid, &session)));
        }
        return BTreeMap::new();
    }
    for (role, in_use) in dropped
        .iter()
        .filter(|(role, in_use)| said.get(role) != Some(in_use))
    {
        events::role_dropped(*role, *in_use, None);
    }
    dropped
}

/// If there is little room left in the statistics, those of dropped roles and databases become part of the others'.
fn forget_dropped() {
    if !shmem::ask_statistics(Statistics::is_crowded) {
        return;
    }
    read_catalogs(|| {
        // Before the catalogs: who is not in them any more was dropped, and not made meanwhile.
        let statistics = shmem::statistics();
        let mut dropped: BTreeSet<Object> = statistics.objects().collect();
        for role in Role::all() {
            dropped.remove(&Object::Role(role.oid));
        }
        for database in Database::all() {
            dropped.remove(&Object::Database(database.oid));
        }
        let dropped: Vec<Object> = dropped.into_iter().collect();
        if !dropped.is_empty() {
            shmem::change_statistics(|statistics| statistics.forget(&dropped));
        }
    });
}

/// Ends the seats whose time is over, in case that nobody has called since; and those of databases that were dropped, to
/// which nobody can return.
fn end_seats() {
    read_catalogs(|| {
        seat::expire();
        // Before the catalog, as above.
        let mut dropped: BTreeSet<Key> = seat::all().into_iter().map(|(key, _)| key).collect();
        if dropped.is_empty() {
            return;
        }
        let databases = Database::all().into_iter();
        let databases: BTreeSet<u32> = databases.map(|database| database.oid).collect();
        dropped.retain(|key| !databases.contains(&key.database()));
        for key in dropped {
            seat::evict(&key);
        }
    });
}

/// Whether the limit can only have been set by a superuser, or by whoever administers the role that it is on. The owner of
/// a database, who can set its limits, ends nobody's sessions by that.
fn is_of_an_administrator(source: Source) -> bool {
    let Some(oid) = source.database() else {
        return true;
    };
    Database::by_oid(oid).is_some_and(|database| Role::is_superuser(database.owner))
}

/// Logs which limits are exceeded, unless the log said so last time, and returns all that are exceeded now.
fn say_exceeded(limits: &[Limit], exceeded: &[Exceeded], said: &[Said]) -> Vec<Said> {
    let mut now = Vec::new();
    for over in exceeded {
        if let Some(limit) = limits.get(over.limit) {
            let saying = to_say(limit, over);
            if !said.contains(&saying) {
                events::swept(limit, over, None);
            }
            now.push(saying);
        }
    }
    now
}

fn to_say(limit: &Limit, over: &Exceeded) -> Said {
    let per = (limit.per, limit.unit, limit.across);
    let counted = (over.in_use, over.elsewhere);
    (limit.source, limit.scope, per, limit.max, counted)
}

/// Frees the slots of `suspects` whose process is still gone, and returns the slots whose process is gone now. A process
/// that has just left the process array is about to free its slot itself: so a slot must be seen twice.
fn reclaim(suspects: &[(usize, Claim)]) -> Vec<(usize, Claim)> {
    let gone: Vec<_> = shmem::memory()
        .shared
        .claims()
        .filter(|(_, claim)| backend::is_gone(claim.pid()))
        .collect();
    for (slot, claim) in gone.iter().filter(|orphan| suspects.contains(orphan)) {
        if slot::release(*slot, *claim) {
            events::reclaimed(claim.pid(), claim.role());
        }
    }
    gone
}
