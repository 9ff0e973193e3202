//! The clients' books: who is in, from a moment after each was let in to a moment before it goes. So what
//! they count is never more than what the server counts.

use super::model::{Count, Limit, Login, Scope, Seen, Who, World};
use std::collections::HashSet;
use std::sync::Mutex;

/// One of the servers: the primary, or the standby.
pub type Site = usize;
pub const SITES: [&str; 2] = ["primary", "standby"];

/// What is counted of the run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub logins: u64,
    pub admitted: u64,
    pub refused: u64,
    pub waited: u64,
    pub replaced: u64,
    pub swept: u64,
    pub killed: u64,
    pub terminated: u64,
    pub cancelled: u64,
    pub vanished: u64,
    pub reloads: u64,
    pub restarts: u64,
    pub crashes: u64,
    pub changes: u64,
    pub quiet_points: u64,
    pub probes: u64,
    /// Taken.
    pub seats: u64,
    pub seats_refused: u64,
    /// At the seats, whether there are too many.
    pub looks: u64,
}

#[derive(Default)]
pub struct Books {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    counts: Counts,
    live: Vec<Live>,
    /// Who was told to end by the run itself.
    told: HashSet<(Site, i32)>,
    /// What holds while nothing is changed: limits, and who was in when it began.
    constant: Option<(World, [Vec<Seen>; 2])>,
    context: String,
    violations: Vec<String>,
}

#[derive(Clone, Copy)]
struct Live {
    site: Site,
    seen: Seen,
    /// Only its client ends it, and it is held to limits: it counts.
    certain: bool,
}

impl Books {
    pub fn count(&self, count: impl FnOnce(&mut Counts)) {
        count(&mut self.lock().counts);
    }

    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Said with every violation from now on.
    pub fn set_context(&self, context: String) {
        self.lock().context = context;
    }

    pub fn violation(&self, what: String) {
        self.lock().violation(what);
    }

    pub fn violations(&self) -> usize {
        self.lock().violations.len()
    }

    /// The clients' sessions are these; while nothing is changed, no limit may be exceeded.
    pub fn begin(&self, world: Option<&World>, sessions: &[(Site, Seen)], seen: [Vec<Seen>; 2]) {
        let mut inner = self.lock();
        inner.constant = world.map(|world| (world.clone(), seen));
        let live = sessions.iter().map(|(site, seen)| Live {
            site: *site,
            seen: *seen,
            certain: is_certain(world, seen),
        });
        inner.live = live.collect();
    }

    pub fn enter(&self, site: Site, login: Login, pid: i32) {
        let seen = Seen {
            pid,
            role: Some(login.role),
            database: login.database,
            address: login.address,
            idle: false,
        };
        let mut inner = self.lock();
        inner.counts.admitted += 1;
        let constant = inner.constant.take();
        let world = constant.as_ref().map(|(world, _)| world);
        let certain = is_certain(world, &seen) && !inner.told.contains(&(site, pid));
        inner.live.push(Live {
            site,
            seen,
            certain,
        });
        if let Some((world, began)) = &constant
            && certain
        {
            for limit in world.limits(login) {
                inner.check(world, site, login, limit, &began[site]);
            }
        }
        inner.constant = constant;
    }

    /// False if it was told to end meanwhile.
    pub fn leave(&self, site: Site, pid: i32) -> bool {
        let mut inner = self.lock();
        let before = inner.live.len();
        inner
            .live
            .retain(|live| (live.site, live.seen.pid) != (site, pid));
        inner.live.len() < before
    }

    /// Someone's session at this site, which is told to end now.
    pub fn tell_one(&self, site: Site, which: usize) -> Option<i32> {
        let pid = self.one(site, which)?;
        self.tell(site, pid);
        Some(pid)
    }

    /// This process is told to end now. It may be a login that becomes a session just before it hears of it.
    pub fn tell(&self, site: Site, pid: i32) {
        self.leave(site, pid);
        self.lock().told.insert((site, pid));
    }

    pub fn one(&self, site: Site, which: usize) -> Option<i32> {
        let inner = self.lock();
        let mut here: Vec<i32> = inner
            .live
            .iter()
            .filter(|live| live.site == site)
            .map(|live| live.seen.pid)
            .collect();
        here.sort_unstable();
        (!here.is_empty()).then(|| here[which % here.len()])
    }

    pub fn was_told(&self, site: Site, pid: i32) -> bool {
        self.lock().told.contains(&(site, pid))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("the books")
    }
}

impl Inner {
    fn check(&mut self, world: &World, site: Site, login: Login, limit: Limit, began: &[Seen]) {
        let here = self.live.iter();
        let here = here.filter(|live| live.site == site && live.certain);
        let here: Vec<Seen> = here.map(|live| live.seen).collect();
        let count = world.count(limit.scope, &here);
        let allowed = allowed(world, limit.scope, limit.max, began);
        if count > allowed {
            self.violation(format!(
                "a limit is exceeded during the storm on the {}: {limit:?}, by the books {count}, allowed {allowed}, after the login of {}; the books: {here:?}\n{world}",
                SITES[site],
                world.say(login),
            ));
        }
    }

    fn violation(&mut self, what: String) {
        let text = format!("VIOLATION ({}): {what}", self.context);
        eprintln!("{text}");
        self.violations.push(text);
    }
}

/// So many sessions there may be, as there were so many when nothing had been changed yet: who was in
/// before a limit was lowered stays.
pub fn allowed(world: &World, scope: Scope, max: i32, began: &[Seen]) -> i32 {
    // An address from which an exempt session comes, or came, is counted: others from there need no room.
    if scope.count == Count::Addresses && scope.who == Who::Anyone {
        return i32::MAX;
    }
    max.max(world.count_held(scope, began))
}

fn is_certain(world: Option<&World>, seen: &Seen) -> bool {
    let stays = |world: &World| {
        seen.role
            .is_none_or(|role| !world.is_exempt(role) && !world.replaces(role))
    };
    world.is_some_and(stays)
}
