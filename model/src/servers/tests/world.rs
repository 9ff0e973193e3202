//! Some servers, their clients, and the way to etcd.

use super::fake_etcd::{FakeEtcd, Ignores};
use crate::attempt::{Attempt, MayWait, Replacing, Rules};
use crate::count::SessionCounter;
use crate::decide;
use crate::limit::tests::{at_most, in_database, of_role};
use crate::limit::{Limit, Scope};
use crate::members::Members;
use crate::own_table::OwnTable;
use crate::servers::counter::Counter;
use crate::servers::counter::tests::by_oid;
use crate::servers::member::Member;
use crate::servers::place::{AcrossRules, OnUnreachable, Wanted};
use crate::servers::protocol::{Now, Protocol};
use crate::servers::transaction::Transaction;
use crate::session::{Claim, Session};
use crate::table::tests::session;
use crate::verdict::Verdict;
use std::collections::BTreeMap;
use std::time::Duration;

pub const SLOTS: usize = 8;
pub const APP: u32 = 5;
/// `server_timeout`.
pub const TIMEOUT: Duration = Duration::from_secs(4);
/// `etcd_timeout`.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// A request on its way to etcd.
pub struct Letter {
    pub from: usize,
    /// Of all requests.
    number: u64,
    transaction: Transaction,
}

pub struct Server {
    pub memory: OwnTable,
    pub protocol: Protocol,
    /// The request that it waits for an answer to.
    pub pending: Option<u64>,
    /// By slot: role and arrival.
    pub waiting: BTreeMap<usize, (u32, u64)>,
    pub sessions: BTreeMap<usize, u32>,
}

pub struct World {
    pub etcd: FakeEtcd,
    pub servers: Vec<Server>,
    pub letters: Vec<Letter>,
    /// Microseconds.
    pub now: u64,
    pub limits: Vec<(Scope, u32)>,
    /// Those that each server counts alone. A login may wait as long as it likes for them.
    pub alone: Vec<(Scope, u32)>,
    pub max_wait: Duration,
    pub on_unreachable: OnUnreachable,
    /// What is held counts for ever, to see that a test would notice.
    pub never_invalid: bool,
    /// For each of the limits, how many sessions servers had that the others took for gone: it may be exceeded by so many.
    pub excused: Vec<u32>,
    arrivals: u64,
    ids: u64,
    requests: u64,
}

impl World {
    /// With so many servers, that share limits: so many sessions of each role, and so many in the database.
    pub fn new(servers: usize, of_each_role: u32, in_all: u32, ignores: Ignores) -> World {
        let mut world = World {
            etcd: FakeEtcd::new(ignores),
            servers: Vec::new(),
            letters: Vec::new(),
            now: 1_000_000,
            limits: vec![
                (of_role(1), of_each_role),
                (of_role(2), of_each_role),
                (in_database(APP), in_all),
            ],
            alone: Vec::new(),
            max_wait: Duration::ZERO,
            on_unreachable: OnUnreachable::Refuse,
            never_invalid: false,
            excused: vec![0; 3],
            arrivals: 0,
            ids: 0,
            requests: 0,
        };
        for index in 0..servers {
            let server = world.start(index);
            world.servers.push(server);
        }
        world
    }

    /// A server that has just been started.
    pub fn start(&self, index: usize) -> Server {
        let mut memory = OwnTable::with_places(SLOTS, 4 * SLOTS, 2 * SLOTS);
        let member = Member {
            name: format!("pg{index}"),
            timeout_ms: TIMEOUT.as_millis() as u64,
            ..Member::default()
        };
        let protocol = Protocol::new("/x/", member, None, &memory.table());
        Server {
            memory,
            protocol,
            pending: None,
            waiting: BTreeMap::new(),
            sessions: BTreeMap::new(),
        }
    }

    /// The worker of a server starts again.
    pub fn restart_worker(&mut self, index: usize) {
        let member = Member {
            name: format!("pg{index}"),
            timeout_ms: TIMEOUT.as_millis() as u64,
            ..Member::default()
        };
        let server = &mut self.servers[index];
        server.protocol = Protocol::new("/x/", member, None, &server.memory.table());
        server.pending = None;
    }

    fn clock(&self) -> Now {
        Now {
            tick: self.now,
            boottime: self.now,
        }
    }

    fn limits_of(&self, role: u32) -> Vec<Limit> {
        let scopes = [of_role(role), in_database(APP)];
        let limits = self.limits.iter();
        let limits = limits.filter(|(scope, _)| scopes.contains(scope));
        let limit = |(scope, max): &(Scope, u32)| Limit {
            max_wait: self.max_wait,
            ..at_most(*max, *scope)
        };
        limits.map(limit).collect()
    }

    /// A login; false if its slot is not free.
    pub fn log_in(&mut self, index: usize, slot: usize, role: u32) -> Option<Verdict> {
        let server = &self.servers[index];
        if server.waiting.contains_key(&slot) || server.sessions.contains_key(&slot) {
            return None;
        }
        self.arrivals = self.now.max(self.arrivals + 1);
        Some(self.decide(index, slot, role, self.arrivals))
    }

    /// A login that is decided so long after it has arrived.
    pub fn log_in_late(&mut self, index: usize, slot: usize, role: u32, late: Duration) -> Verdict {
        self.arrivals = self.now.max(self.arrivals + 1);
        let arrival = self.arrivals;
        self.now += late.as_micros() as u64;
        self.rest();
        self.decide(index, slot, role, arrival)
    }

    /// A waiter is woken.
    pub fn wake(&mut self, index: usize, slot: usize) -> Option<Verdict> {
        let (role, arrival) = *self.servers[index].waiting.get(&slot)?;
        Some(self.decide(index, slot, role, arrival))
    }

    pub fn wake_all(&mut self, index: usize) -> Vec<(usize, Verdict)> {
        let mut slots: Vec<_> = self.servers[index].waiting.iter().collect();
        slots.sort_by_key(|(_, (_, arrival))| *arrival);
        let slots: Vec<usize> = slots.into_iter().map(|(slot, _)| *slot).collect();
        let woken = slots.into_iter();
        woken
            .filter_map(|slot| Some((slot, self.wake(index, slot)?)))
            .collect()
    }

    fn decide(&mut self, index: usize, slot: usize, role: u32, arrival: u64) -> Verdict {
        let mut limits = self.limits_of(role);
        let across = limits.len();
        let alone = self.alone.iter().map(|(scope, max)| Limit {
            max_wait: Duration::MAX,
            ..at_most(*max, *scope)
        });
        limits.extend(alone);
        let wanted: Vec<Wanted> = (limits.iter().take(across).enumerate())
            .map(|(index, limit)| Wanted::new(index, Counter::of(limit.scope, &by_oid), limit.max))
            .collect();
        let boottime = if self.never_invalid { 0 } else { self.now };
        let members = Members::default();
        let tried = Duration::from_micros(self.now - arrival.min(self.now));
        let server = &mut self.servers[index];
        let mut table = server.memory.table();
        if self.never_invalid && table.places.reach.valid_until == 0 {
            table.places.reach.valid_until = 1;
        }
        table.enter(slot, &wanted, &mut limits);
        let mut counter = SessionCounter::new(table.shared, &members, false, false);
        let login = Attempt {
            slot,
            pid: 100 + slot as u32,
            session: Session {
                arrival,
                ..session(role, APP)
            },
            limits: &limits,
            members: &members,
            is_idle: &|_, _| false,
            across: AcrossRules {
                boottime: &|| boottime,
                now: self.now,
                timeout: ANSWER_WITHIN,
                on_unreachable: self.on_unreachable,
            },
            rules: Rules {
                count_walsenders: false,
                may_wait: Some(MayWait {
                    connections: u32::MAX,
                    account: None,
                }),
                tried,
                max_waiters: 20,
                tally: false,
                replacing: Replacing::NONE,
                audit: false,
            },
        };
        let verdict =
            decide::attempt(&mut table, &mut counter, &login).expect("nothing is missing");
        server.waiting.remove(&slot);
        match verdict {
            Verdict::Admitted(_) => {
                server.sessions.insert(slot, role);
            }
            Verdict::Waiting => {
                server.waiting.insert(slot, (role, arrival));
            }
            _ => {}
        }
        verdict
    }

    pub fn log_out(&mut self, index: usize, slot: usize) -> bool {
        let server = &mut self.servers[index];
        let Some(role) = server.sessions.remove(&slot) else {
            return false;
        };
        let claim = Claim::new(100 + slot as u32, role);
        server.memory.table().shared.release(slot, claim)
    }

    /// The waiter's client goes away.
    pub fn give_up(&mut self, index: usize, slot: usize) {
        let server = &mut self.servers[index];
        if server.waiting.remove(&slot).is_some() {
            let mut table = server.memory.table();
            table.dequeue(slot);
            table.leave_places(slot);
        }
    }

    /// The worker sends what is due, if it does not wait for an answer; says whether it sent something.
    pub fn send(&mut self, index: usize) -> bool {
        let now = self.clock();
        let (ids, server) = (&mut self.ids, &mut self.servers[index]);
        if server.pending.is_some() {
            return false;
        }
        let protocol = &mut server.protocol;
        let draw = || {
            *ids += 1;
            *ids
        };
        let sent = protocol.greet(now, draw).or_else(|| {
            protocol.plan(&mut server.memory.table(), now, self.arrivals);
            protocol.ask(now).or_else(|| protocol.tidy(now))
        });
        let Some(transaction) = sent else {
            return false;
        };
        self.requests += 1;
        server.pending = Some(self.requests);
        self.letters.push(Letter {
            from: index,
            number: self.requests,
            transaction,
        });
        true
    }

    /// A request comes to etcd, and its answer, if `heard`, to the server that waits for it.
    pub fn deliver(&mut self, letter: usize, heard: bool) {
        let letter = self.letters.remove(letter);
        let lived: Vec<usize> = (0..self.servers.len())
            .filter(|it| self.lives(*it))
            .collect();
        let answer = self.etcd.execute(&letter.transaction);
        for index in lived {
            if !self.lives(index) {
                for number in 0..self.limits.len() {
                    self.excused[number] += self.sessions(index, self.limits[number].0);
                }
            }
        }
        let now = self.clock();
        let server = &mut self.servers[letter.from];
        if heard && server.pending == Some(letter.number) {
            server.pending = None;
            server.protocol.read(&answer, now).expect("a good answer");
            server.protocol.settle(&mut server.memory.table(), now);
        }
    }

    /// The server waits for its answer no longer.
    pub fn time_out(&mut self, index: usize) {
        let server = &mut self.servers[index];
        if server.pending.take().is_some() {
            server.protocol.fail(&mut server.memory.table(), true);
        }
    }

    /// All is well for a moment: whatever is sent is answered, and whoever waits is woken. Returns what became of the
    /// waiters of each server.
    pub fn rest(&mut self) -> Vec<(usize, usize, Verdict)> {
        let mut verdicts = Vec::new();
        let mut was_quiet = false;
        for _ in 0..100 {
            let mut quiet = true;
            for index in 0..self.servers.len() {
                if self.send(index) {
                    quiet = false;
                    self.deliver(self.letters.len() - 1, true);
                }
                let woken = self.wake_all(index).into_iter();
                verdicts.extend(woken.map(|(slot, verdict)| (index, slot, verdict)));
                let now = self.clock();
                let server = &self.servers[index];
                quiet &= server.pending.is_some() || !server.protocol.rest(now).is_zero();
            }
            // Whoever was woken may ask for something.
            if quiet && was_quiet {
                return verdicts;
            }
            was_quiet = quiet;
        }
        panic!("the servers do not come to rest");
    }

    /// The worker of a server stands still for so long that the others take the server for gone. It still waits for an answer
    /// then.
    pub fn cut_off(&mut self, index: usize) {
        self.servers[index].pending = Some(u64::MAX);
        for _ in 0..12 {
            self.now += TIMEOUT.as_micros() as u64 / 10;
            self.rest();
        }
    }

    /// A login, and what it leads to.
    pub fn log_in_and_rest(&mut self, index: usize, slot: usize, role: u32) {
        self.log_in(index, slot, role);
        self.rest();
    }

    /// How many sessions under this scope a server has.
    pub fn sessions(&self, index: usize, scope: Scope) -> u32 {
        let sessions = self.servers[index].sessions.values();
        let covered = sessions.filter(|role| scope.role().is_none_or(|of| of == **role));
        covered.count() as u32
    }

    /// Whether the others take this server for alive.
    fn lives(&mut self, index: usize) -> bool {
        let life = self.servers[index].memory.table().places.reach.life;
        let key = format!("/x/v1/m/{:016x}", life.0);
        self.etcd.keys.contains_key(&key)
    }

    /// Whether the others take this server for alive, and it has all its places.
    pub fn is_in(&mut self, index: usize) -> bool {
        self.lives(index) && self.servers[index].memory.table().places.reach.valid_until > 1
    }

    /// What the table of a server says that it holds, and what etcd says; None if it has no place of that counter.
    pub fn held(&mut self, index: usize, scope: Scope) -> Option<(u32, u32)> {
        let counter = Counter::of(scope, &by_oid);
        let table = self.servers[index].memory.table();
        let mut places = table.places.all();
        let (_, place, _) = places.find(|(_, _, name)| **name == counter)?;
        let id = table.places.reach.life.0;
        let key = format!("/x/v1/c/{}/p/{id:016x}", counter.text());
        let row = self.etcd.keys.get(&key);
        let in_etcd = row.map_or(0, |row| row.value.parse().expect("a number"));
        Some((place.held, in_etcd))
    }
}
