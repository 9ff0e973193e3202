//! The quiet point: what the servers say, what the books say, and what a login comes to.

use super::actors::{self, any_login, is_refusal};
use super::books::{SITES, Site, allowed};
use super::model::{Count, Expected, Login, Scope, Seen, Who, World};
use super::random::{one_in, one_of};
use super::{Kind, Run};
use crate::client::Session;
use crate::{PATIENCE, wait_for};
use fastrand::Rng;
use std::thread;
use std::time::{Duration, Instant};

/// Limits that are filled on each server, each by so many logins one after the other at most; who is let in
/// stays for the next.
const FILLED: usize = 3;
const PROBES: usize = 6;
/// And so many at once.
const AT_ONCE: usize = 6;

const SHOWN: &str = "SELECT pid, usename, datname, client_addr, state FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND state IS DISTINCT FROM 'starting'";
const PIDS: &str = "SELECT 'server', pid FROM pg_stat_activity
        WHERE backend_type IN ('client backend', 'walsender') AND state IS DISTINCT FROM 'starting'
    UNION ALL SELECT 'slots', pid FROM session_limit.sessions
    UNION ALL SELECT 'walsenders', pid FROM pg_stat_activity WHERE backend_type = 'walsender'
    UNION ALL SELECT 'waiting', count(*) FROM session_limit.waiters";

/// Why a session may have ended that its client did not end.
pub struct Ends {
    /// For a newer one of its role.
    replaced: Vec<bool>,
    swept: bool,
    /// With everyone of this server.
    lost: Option<Site>,
}

impl Ends {
    /// Only because an actor said so.
    pub fn none(world: &World) -> Ends {
        Ends {
            replaced: vec![false; world.roles.len()],
            swept: false,
            lost: None,
        }
    }

    pub fn of(worlds: &[World], lost: Option<Site>) -> Ends {
        let roles = 0..worlds[0].roles.len();
        Ends {
            replaced: roles
                .map(|role| worlds.iter().any(|world| world.replaces(role)))
                .collect(),
            swept: worlds.iter().any(|world| world.sweep == "terminate"),
            lost,
        }
    }
}

impl Run {
    pub fn quiet_point(
        &mut self,
        kind: Kind,
        worlds: &[World],
        mut began: [Vec<Seen>; 2],
        random: &mut Rng,
    ) {
        self.hold();
        let ends = Ends::of(worlds, kind.loses());
        if ends.swept {
            self.let_the_workers_finish();
        }
        let seen = self.settle(&ends);
        if let Some(site) = kind.loses() {
            began[site].clear();
        }
        for site in [0, 1] {
            self.check_limits(site, worlds, &began[site], &seen[site]);
        }
        for site in [0, 1] {
            self.check_seats(site, random);
            self.read_views(site);
            self.probe(site, random);
        }
        self.books.count(|counts| counts.quiet_points += 1);
        // Who was replaced by one of those.
        let ends = Ends::of(&worlds[worlds.len() - 1..], None);
        self.settle(&ends);
    }

    /// A worker may be about to tell those whom it has chosen, and to hear of the reload. DROP DATABASE waits
    /// until each process has taken notice, on a standby as it is replayed: a worker does so before it sweeps, or as
    /// it does; if the latter, the second time is after.
    fn let_the_workers_finish(&self) {
        for _ in 0..2 {
            self.clusters[0].sql(&["CREATE DATABASE passing", "DROP DATABASE passing"]);
            self.hold();
            for cluster in &self.clusters {
                let mut session = cluster.superuser();
                let sql = "SELECT count(*) FROM pg_stat_activity
                    WHERE backend_type = 'session_limit worker' AND wait_event = 'Extension'";
                wait_for("the worker to have nothing to do", || {
                    (session.value(sql) == "1").then_some(())
                });
                session.end();
            }
        }
    }

    /// Waits until servers and clients agree on who is in, and returns that.
    pub fn settle(&mut self, ends: &Ends) -> [Vec<Seen>; 2] {
        let mut checkers = [0, 1].map(|site| self.clusters[site].superuser());
        let start = Instant::now();
        let mut seen = loop {
            self.ask_clients(ends);
            let differing: Vec<String> = [0, 1]
                .into_iter()
                .filter_map(|site| self.differing(site, &mut checkers[site]))
                .collect();
            if differing.is_empty() {
                break [0, 1].map(|site| self.seen(&mut checkers[site]));
            }
            if start.elapsed() >= PATIENCE {
                self.books.violation(differing.join("\n"));
                break [0, 1].map(|site| self.seen(&mut checkers[site]));
            }
            thread::sleep(Duration::from_millis(5));
        };
        for (seen, checker) in seen.iter_mut().zip(checkers) {
            seen.retain(|session| session.pid != checker.pid);
            checker.end();
        }
        seen
    }

    /// What differs between the server's processes, the slots and the books.
    fn differing(&self, site: Site, checker: &mut Session) -> Option<String> {
        let rows = checker.query(PIDS);
        let of = |what: &str| {
            let rows = rows.iter().filter(|row| row[0] == what);
            let mut pids: Vec<i32> = rows.map(|row| row[1].parse().unwrap_or(0)).collect();
            pids.sort_unstable();
            pids
        };
        let held = self.clients.iter().flat_map(|client| &client.held);
        let here = held.filter(|held| held.site == site);
        let mut books: Vec<i32> = here.map(|held| held.session.pid).collect();
        books.push(checker.pid);
        books.extend(of("walsenders"));
        books.sort_unstable();
        let (server, slots, waiting) = (of("server"), of("slots"), of("waiting"));
        let agree = server == slots && server == books && waiting == [0];
        (!agree).then(|| {
            format!(
                "on the {} differ the server's sessions {server:?}, the slots {slots:?}, the books {books:?}, or so many wait: {waiting:?}",
                SITES[site]
            )
        })
    }

    /// Lets each client find out whether its sessions are there; one that is not must have a reason.
    fn ask_clients(&mut self, ends: &Ends) {
        for client in &mut self.clients {
            client.held.retain_mut(|held| {
                held.query("SELECT 1");
                let Some(end) = &held.end else {
                    return true;
                };
                let (site, pid) = (held.site, held.session.pid);
                let lost = ends.lost == Some(site);
                let told = lost || self.books.was_told(site, pid);
                let replaced = ends.replaced[held.login.role];
                let (expected, by_newer, by_sweep) = match end.detail() {
                    text if text.starts_with("This session was replaced") => (replaced, 1, 0),
                    text if text.contains(" under a limit of ") => (ends.swept, 0, 1),
                    _ => (told, 0, 0),
                };
                self.books.count(|counts| {
                    counts.replaced += by_newer;
                    counts.swept += by_sweep;
                });
                if !expected {
                    let who = self.world.say(held.login);
                    self.books.violation(format!(
                        "the session of {who}, pid {pid} of the {}, has ended without a reason: {end:?}",
                        SITES[site]
                    ));
                }
                self.books.leave(site, pid);
                false
            });
        }
    }

    fn seen(&self, checker: &mut Session) -> Vec<Seen> {
        let rows = checker.query(SHOWN).into_iter();
        let seen = rows.map(|row| Seen {
            pid: row[0].parse().expect("a process ID"),
            role: self.world.roles.iter().position(|role| role.name == row[1]),
            database: self
                .world
                .databases
                .iter()
                .position(|database| database.name == row[2])
                .expect("a database of the run"),
            address: row[3]
                .rsplit('.')
                .next()
                .and_then(|number| number.parse().ok())
                .unwrap_or(0),
            idle: row[4] == "idle",
        });
        seen.collect()
    }

    /// No limit is exceeded: none, that is, that was the same all the time.
    fn check_limits(&self, site: Site, worlds: &[World], began: &[Seen], seen: &[Seen]) {
        let world = &self.world;
        let mut checked: Vec<Scope> = Vec::new();
        for login in world.logins().filter(|login| !world.is_exempt(login.role)) {
            for limit in world.limits(login) {
                if checked.contains(&limit.scope) {
                    continue;
                }
                checked.push(limit.scope);
                let Some(max) = constant_max(worlds, limit.scope) else {
                    continue;
                };
                let count = world.count_held(limit.scope, seen);
                let allowed = allowed(world, limit.scope, max, began);
                if count > allowed {
                    self.books.violation(format!(
                        "a limit is exceeded on the {}: {limit:?}, by the server {count}, allowed {allowed}; before: {began:?}; now: {seen:?}\n{world}",
                        SITES[site]
                    ));
                }
            }
        }
    }

    fn read_views(&mut self, site: Site) {
        let mut session = self.clusters[site].superuser();
        for view in ["limits", "usage", "role_limits", "events", "sessions"] {
            session.query(&format!("SELECT * FROM session_limit.{view}"));
        }
        let waited = session.value("SELECT coalesce(sum(waited), 0) FROM session_limit.stats");
        let waited: u64 = waited.parse().expect("a number");
        // After a crash they begin anew.
        let last = std::mem::replace(&mut self.waited[site], waited);
        let more = waited.checked_sub(last).unwrap_or(waited);
        self.books.count(|counts| counts.waited += more);
        session.end();
    }

    /// What becomes of logins of which that is certain.
    fn probe(&mut self, site: Site, random: &mut Rng) {
        let mut checker = self.clusters[site].superuser();
        let mut kept = Vec::new();
        for _ in 0..FILLED {
            let Some(logins) = self.any_limit(random) else {
                break;
            };
            for _ in 0..PROBES {
                let login = one_of(random, &logins);
                self.books.count(|counts| counts.probes += 1);
                let session = self.probe_one(site, login, &mut checker);
                let full = session.is_none();
                kept.extend(session);
                if full && one_in(random, 2) {
                    break;
                }
            }
        }
        let login = any_login(random, &self.world);
        self.books.count(|counts| counts.probes += 1);
        kept.extend(self.probe_one(site, login, &mut checker));
        let seen = self.seen(&mut checker);
        if let Some(login) = self.any_that_do_not_all_fit(random, &seen) {
            self.books.count(|counts| counts.probes += 1);
            kept.extend(self.probe_storm(site, login, &mut checker));
        }
        kept.into_iter().for_each(Session::close);
        checker.end();
    }

    /// The logins that one of the limits is about; of every kind of limit as often.
    fn any_limit(&self, random: &mut Rng) -> Option<Vec<Login>> {
        let world = &self.world;
        let logins = world.logins().filter(|login| !world.is_exempt(login.role));
        let mut kinds: Vec<(String, Vec<Scope>)> = Vec::new();
        for limit in logins.flat_map(|login| world.limits(login)) {
            let kind = limit.scope.kind();
            let place = kinds.iter().position(|(known, _)| *known == kind);
            let place = place.unwrap_or_else(|| {
                kinds.push((kind, Vec::new()));
                kinds.len() - 1
            });
            if !kinds[place].1.contains(&limit.scope) {
                kinds[place].1.push(limit.scope);
            }
        }
        let (_, scopes) = random.choice(&kinds)?;
        let scope = *random.choice(scopes)?;
        let about = |login: &Login| {
            let limits = world.limits(*login);
            !world.is_exempt(login.role) && limits.iter().any(|limit| limit.scope == scope)
        };
        Some(world.logins().filter(about).collect())
    }

    /// A login of which there is room for some, and that ends nobody's session.
    fn any_that_do_not_all_fit(&self, random: &mut Rng, seen: &[Seen]) -> Option<Login> {
        let world = &self.world;
        let held = |login: &Login| {
            let room = world.room(*login, seen);
            let some = room.is_some_and(|room| (1..AT_ONCE as i32).contains(&room));
            some && !world.is_exempt(login.role) && !world.replaces(login.role)
        };
        let logins: Vec<Login> = world.logins().filter(held).collect();
        random.choice(logins)
    }

    fn probe_one(&self, site: Site, login: Login, checker: &mut Session) -> Option<Session> {
        let (before, world) = (self.seen(checker), &self.world);
        let expected = world.expected(login, &before);
        let answer = actors::target(world, &self.targets[site], login).login();
        if answer.is_err() {
            self.wait_for_slots(checker);
        }
        let after = self.seen(checker);
        let ended: Vec<Seen> = before
            .iter()
            .filter(|session| after.iter().all(|other| other.pid != session.pid))
            .copied()
            .collect();
        let right = match (&expected, &answer) {
            (Expected::In, Ok(_)) => ended.is_empty(),
            (Expected::Refused(_), Err(refusal)) => is_refusal(refusal) && ended.is_empty(),
            (Expected::Replaces(_), Ok(_)) => {
                let limits = world.limits(login).into_iter();
                let met = limits.into_iter().all(|limit| {
                    let count = world.count(limit.scope, &after);
                    // It may have been counted already under one that was lowered.
                    count <= limit.max
                        || (limit.scope.count != Count::Sessions
                            && count <= world.count(limit.scope, &before))
                });
                met && !ended.is_empty()
                    && ended.iter().all(|session| session.role == Some(login.role))
            }
            _ => false,
        };
        if !right {
            let answer = answer.as_ref().map(|session| session.pid);
            self.books.violation(format!(
                "a login of {} on the {} was to be {expected:?}, and came to {answer:?}; before: {before:?}; ended: {ended:?}\n{world}",
                world.say(login),
                SITES[site],
            ));
        }
        answer.ok()
    }

    /// Of several at once as many are let in as fit.
    fn probe_storm(&self, site: Site, login: Login, checker: &mut Session) -> Vec<Session> {
        let (before, world) = (self.seen(checker), &self.world);
        let room = world.room(login, &before).unwrap_or(i32::MAX);
        let expected = AT_ONCE.min(room as usize);
        let target = actors::target(world, &self.targets[site], login);
        let mut sessions = Vec::new();
        let mut odd = Vec::new();
        for outcome in target.storm(AT_ONCE) {
            match outcome {
                Ok(session) => sessions.push(session),
                Err(refusal) if is_refusal(&refusal) => {}
                Err(refusal) => odd.push(refusal),
            }
        }
        if sessions.len() != expected || !odd.is_empty() {
            self.books.violation(format!(
                "of {AT_ONCE} logins at once of {} on the {} {} were let in, and {expected} fit; other answers: {odd:?}; before: {before:?}\n{world}",
                world.say(login),
                SITES[site],
                sessions.len(),
            ));
        }
        sessions
    }

    /// Until nobody is leaving who was let in by us and refused by the server.
    fn wait_for_slots(&self, checker: &mut Session) {
        wait_for("slots and backends to agree", || {
            let rows = checker.query(PIDS);
            let count = |what: &str| rows.iter().filter(|row| row[0] == what).count();
            (count("server") == count("slots")).then_some(())
        });
    }
}

/// What a limit allows that nothing in these worlds is about but the same, for everyone it counts.
fn constant_max(worlds: &[World], scope: Scope) -> Option<i32> {
    let (first, others) = worlds.split_first()?;
    let same = |world: &World| {
        let members = match scope.who {
            Who::Group(group) => world.members(group) == first.members(group),
            Who::Anyone | Who::Role(_) => true,
        };
        members && world.enforcement == first.enforcement
    };
    if !others.iter().all(same) {
        return None;
    }
    let mut max = None;
    for login in first.logins().filter(|login| !first.is_exempt(login.role)) {
        let counted = Seen {
            pid: 0,
            role: Some(login.role),
            database: login.database,
            address: login.address,
            idle: false,
        };
        if !first.covers(scope, &counted) {
            continue;
        }
        let all = first.contenders(login, scope);
        let changed = |world: &World| world.contenders(login, scope) != all;
        if others.iter().any(changed) {
            return None;
        }
        let limits = first.limits(login).into_iter();
        let here = limits.filter(|limit| limit.scope == scope);
        max = max.max(Some(here.map(|limit| limit.max).min()?));
    }
    max
}
