//! A chaos run over several servers: a primary with its standby, and another primary, which share limits in an etcd of three
//! members. Clients log in and out all the time, while members of etcd are killed and stopped, what servers and etcd say to
//! each other is held back and cut, workers are stopped and ended, servers crash and are restarted, and the standby is
//! promoted. `session_limit.on_unreachable` is `refuse`, and `server_timeout` as short as can be.
//!
//! What must hold, and why the run may say so:
//! - **No limit is exceeded.** The clients keep books: a session is in from when its client knows it to a moment before its
//!   client closes it. So the books never count more than there are.
//! - One excess is documented: a server that is out of touch for `server_timeout` is taken for gone, and its sessions live on.
//!   So only such sessions are counted as nobody can rightly take for gone: those of a server that has been in touch since
//!   they began to log in. This is measured, for a busy machine can keep a server out of touch, too: the links note when
//!   each server sent its last request that etcd has done. A server in touch gives a sign of life every quarter of
//!   `server_timeout`, before it sends anything else. If no two such requests are a third of `server_timeout` apart, and the
//!   last is no older, its last sign of life is younger than 3/4 + 1/4 of that: it still has its places.
//! - **A server out of touch lets nobody in**, once 9/10 of `server_timeout` have passed since that last request, until it
//!   has sent another one. The books do not count those whom it lets in, so each of them is a violation.
//! - Sessions end with their server: when it crashes or stops, those that began before it is back are not counted.
//! - **At a quiet point**, when all faults are over and no client is left, no server is known to etcd but those that live, and
//!   each limit can be filled up to what it allows, and no further: from one server alone, and from all in turn. That must be
//!   so within [`SETTLED_WITHIN`].
//!
//! The same seed makes the same plan for each client and each fault. Who comes first is up to the machine.

use crate::bench::{Best, Figures, Table};
use crate::chaos::random::{self, one_of};
use crate::client::{Refusal, Session, Target};
use crate::cluster::{Cluster, Stop};
use crate::etcd::Etcd;
use crate::fleet::{Fleet, Servers};
use crate::link::{Flow, Link};
use crate::server::Server;
use crate::{run as run_program, say, wait_for};
use fastrand::Rng;
use rustix::process::{Pid, Signal, kill_process};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

const SERVERS: usize = 3;
const STANDBY: usize = 2;
const MEMBERS: usize = 3;
const CLIENTS: u64 = 8;
const SERVER_TIMEOUT: Duration = Duration::from_secs(3);
/// Between quiet points.
const ROUND: Duration = Duration::from_secs(25);
/// A server that is gone is known to etcd for 3.75 s. The rest is for a busy machine.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);

/// A limit across servers.
struct Limit {
    name: &'static str,
    /// Whom it counts.
    roles: &'static [&'static str],
    max: usize,
    /// Who can fill it, because no other limit is smaller.
    fillers: &'static [&'static str],
}

const LIMITS: [Limit; 4] = [
    Limit {
        name: "role alice",
        roles: &["alice"],
        max: 1,
        fillers: &["alice"],
    },
    Limit {
        name: "role app",
        roles: &["app"],
        max: 3,
        fillers: &["app"],
    },
    Limit {
        name: "group team",
        roles: &["ann", "bo"],
        max: 2,
        fillers: &["ann", "bo"],
    },
    Limit {
        name: "the cluster",
        roles: &ROLES,
        max: 5,
        fillers: &["guest"],
    },
];
const ROLES: [&str; 5] = ["alice", "app", "ann", "bo", "guest"];
const CLUSTER_LIMITS: &str = r#"{"limits": [{"per": "cluster", "max": 5, "across": "servers"}]}"#;
const SQL: [&str; 9] = [
    "CREATE ROLE alice LOGIN",
    "CREATE ROLE app LOGIN",
    "CREATE ROLE guest LOGIN",
    "CREATE ROLE team",
    "CREATE ROLE ann LOGIN IN ROLE team",
    "CREATE ROLE bo LOGIN IN ROLE team",
    r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"max": 1, "across": "servers"}'"#,
    r#"SECURITY LABEL FOR session_limit ON ROLE app IS '{"max": 3, "across": "servers"}'"#,
    r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"max": 2, "per": "group", "across": "servers"}'"#,
];

/// What goes wrong. Most last for a while, which may be longer than `server_timeout`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// `kill -9` of a member of etcd, of the leader more often than not.
    MemberKilled,
    MemberStopped,
    /// Two members are stopped.
    NoMajority,
    RequestsWait,
    AnswersWait,
    Cut,
    Closed,
    WorkerEnded,
    WorkerStopped,
    /// `kill -9` of a backend.
    Crash,
    Restart,
    Promotion,
}

const OF_ETCD: [Fault; 3] = [Fault::MemberKilled, Fault::MemberStopped, Fault::NoMajority];
const OF_SERVERS: [Fault; 8] = [
    Fault::RequestsWait,
    Fault::AnswersWait,
    Fault::Cut,
    Fault::Closed,
    Fault::WorkerEnded,
    Fault::WorkerStopped,
    Fault::Crash,
    Fault::Restart,
];
const FAULTS: usize = OF_ETCD.len() + OF_SERVERS.len() + 1;

/// What is counted of the run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub logins: u64,
    pub admitted: u64,
    /// With 53300.
    pub full: u64,
    /// With 57P03, because etcd could not be reached.
    pub unreachable: u64,
    /// The server was down, or ended the session.
    pub lost: u64,
    /// How often the books said that a limit was just full.
    pub filled: u64,
    /// Sessions that did not count any more when they ended.
    pub doubtful: u64,
    pub quiet_points: u64,
    /// By kind.
    pub faults: [u64; FAULTS],
}

impl Counts {
    /// Whether limits were full, and servers in trouble, often enough for a run to say something. A busy machine needs more
    /// time for that.
    pub fn are_enough(&self) -> bool {
        self.admitted > 100
            && self.full > 50
            && self.filled > 50
            && self.faults.iter().sum::<u64>() >= 5
    }
}

/// What came out.
pub struct Outcome {
    pub seed: u64,
    pub took: Duration,
    pub violations: usize,
    pub counts: Counts,
}

impl Outcome {
    /// What was counted, in one row.
    pub fn table(&self, server: &Server) -> Table {
        let row = format!("PostgreSQL {}", server.major);
        let mut table = Table::new("Counted", [row.as_str()]);
        let counts = &self.counts;
        let faults = OF_ETCD.iter().chain(&OF_SERVERS).chain([&Fault::Promotion]);
        let faults = faults.map(|fault| (format!("{fault:?}"), counts.faults[*fault as usize]));
        let columns = [
            ("logins", counts.logins),
            ("admitted", counts.admitted),
            ("refused 53300", counts.full),
            ("refused 57P03", counts.unreachable),
            ("server down", counts.lost),
            ("limit just full", counts.filled),
            ("doubtful", counts.doubtful),
            ("quiet points", counts.quiet_points),
            ("violations", self.violations as u64),
        ];
        let columns = columns.map(|(name, count)| (name.to_string(), count));
        for (name, count) in columns.into_iter().chain(faults) {
            let cell = Figures::from_iter([count as f64]);
            table.column(&name, 0, Best::None, [cell]);
        }
        table
    }
}

/// Runs for so long at least, and until enough has happened; or says why there is no etcd that runs here.
pub fn run(server: &Server, seed: u64, at_least: Duration) -> Result<Outcome, String> {
    let timeout = format!("{}ms", SERVER_TIMEOUT.as_millis());
    let settings = [
        ("session_limit.on_unreachable", "refuse"),
        ("session_limit.server_timeout", timeout.as_str()),
        ("session_limit.etcd_timeout", "500ms"),
        ("session_limit.max_wait", "50ms"),
        ("session_limit.cluster_limits", CLUSTER_LIMITS),
        ("wal_retrieve_retry_interval", "100ms"),
        // A standby that is started again finds the rest.
        ("wal_keep_size", "256MB"),
        ("autovacuum", "off"),
    ];
    let servers = Servers::PrimariesAndStandby;
    let (mut fleet, links) = Fleet::try_start_linked(server, MEMBERS, servers, &settings)?;
    fleet.sql(&SQL);
    let scene = Scene {
        seed,
        books: Books::new(&links),
        targets: fleet.clusters.iter().map(|it| it.login_of("")).collect(),
    };
    scene.books.lock().context = format!("PostgreSQL {}, seed {seed}", server.major);
    scene.settle(&fleet.etcd);
    let began = Instant::now();
    let mut promoted = false;
    for round in 0.. {
        let left = at_least.saturating_sub(began.elapsed());
        let is_over = left.is_zero() && scene.books.counts().are_enough();
        if is_over || began.elapsed() > at_least * 10 || scene.books.violations() > 0 {
            break;
        }
        let promotes = !std::mem::replace(&mut promoted, round > 0 || left <= ROUND) && promoted;
        let time = if left.is_zero() { at_least } else { left };
        scene.round(round, &mut fleet, time.min(ROUND), promotes);
        scene.settle(&fleet.etcd);
        let (counts, violations) = (scene.books.counts(), scene.books.violations());
        say(format_args!(
            "{} s: {} logins, {} admitted, {} refused, {violations} violations",
            began.elapsed().as_secs(),
            counts.logins,
            counts.admitted,
            counts.full + counts.unreachable,
        ));
    }
    Ok(Outcome {
        seed,
        took: began.elapsed(),
        violations: scene.books.violations(),
        counts: scene.books.counts(),
    })
}

struct Scene<'a> {
    seed: u64,
    books: Books<'a>,
    targets: Vec<Target>,
}

impl Scene<'_> {
    /// Clients and faults, for so long.
    fn round(&self, number: u64, fleet: &mut Fleet, time: Duration, promotes: bool) {
        let end = Instant::now() + time;
        let random = |whose: u64| random::of(&[self.seed, number, whose]);
        let over = AtomicBool::new(false);
        let Fleet { etcd, clusters, .. } = fleet;
        thread::scope(|scope| {
            let over = &over;
            for client in 0..CLIENTS {
                scope.spawn(move || {
                    let mut random = random(100 + client);
                    while !over.load(Ordering::Relaxed) {
                        self.log_in_and_out(&mut random);
                    }
                });
            }
            let mut faults = vec![scope.spawn(move || {
                let mut random = random(0);
                while pauses(&mut random, 500..=2500, end) {
                    self.trouble_etcd(etcd, &mut random);
                }
            })];
            for (site, cluster) in clusters.iter_mut().enumerate() {
                faults.push(scope.spawn(move || {
                    let mut random = random(1 + site as u64);
                    if promotes && site == STANDBY {
                        thread::sleep(time / 2);
                        self.count(Fault::Promotion);
                        cluster.sql(&["SELECT pg_promote()"]);
                    }
                    while pauses(&mut random, 300..=5000, end) {
                        let fault = one_of(&mut random, &OF_SERVERS);
                        self.count(fault);
                        self.trouble(site, cluster, fault, &mut random);
                    }
                }));
            }
            faults.into_iter().for_each(|it| it.join().expect("faults"));
            over.store(true, Ordering::Relaxed);
        });
    }

    fn count(&self, fault: Fault) {
        self.books.lock().counts.faults[fault as usize] += 1;
    }

    fn log_in_and_out(&self, random: &mut Rng) {
        thread::sleep(Duration::from_millis(random.u64(0..=20)));
        let site = random.usize(..SERVERS);
        let role = one_of(random, &ROLES);
        let Some(session) = self.log_in(site, role) else {
            return;
        };
        let time = match random.usize(..20) {
            0 => random.u64(200..=1500),
            _ => random.u64(0..=80),
        };
        thread::sleep(Duration::from_millis(time));
        self.log_out(session, random.bool());
    }

    fn log_in(&self, site: usize, role: &'static str) -> Option<Live> {
        let began = Instant::now();
        let contact = self.books.links[site].contact();
        self.books.lock().counts.logins += 1;
        match self.try_log_in(site, role) {
            Ok(session) => Some(self.books.enter(site, role, session, began, contact)),
            Err(refusal) => {
                self.books.refused(&refusal);
                None
            }
        }
    }

    fn try_log_in(&self, site: usize, role: &str) -> Result<Session, Refusal> {
        let target = Target {
            user: role.to_string(),
            ..self.targets[site].clone()
        };
        let mut connection = target.try_connect().map_err(|_| Refusal {
            fields: Default::default(),
            authenticated: false,
        })?;
        connection.send_startup(&target);
        connection.outcome()
    }

    fn log_out(&self, mut live: Live, vanishes: bool) {
        self.books.leave(&live);
        let session = live.session.take().expect("a session");
        match vanishes {
            true => drop(session),
            false => session.close(),
        }
    }

    fn trouble_etcd(&self, etcd: &mut Etcd, random: &mut Rng) {
        let fault = one_of(random, &OF_ETCD);
        let member = match random.usize(..3) {
            0 => random.usize(..MEMBERS),
            _ => etcd.leader(),
        };
        self.count(fault);
        match fault {
            Fault::MemberKilled => {
                etcd.kill(member);
                sleep_between(random, 300..=2500);
                etcd.restart(&[member]);
            }
            Fault::MemberStopped => {
                etcd.stop(member);
                sleep_between(random, 500..=5000);
                etcd.go_on(member);
            }
            _ => {
                let other = (member + 1) % MEMBERS;
                etcd.stop(member);
                etcd.stop(other);
                sleep_between(random, 500..=4500);
                etcd.go_on(other);
                etcd.go_on(member);
            }
        }
    }

    fn trouble(&self, site: usize, cluster: &mut Cluster, fault: Fault, random: &mut Rng) {
        let link = &self.books.links[site];
        let worker = cluster.processes("session_limit servers").first().copied();
        let signal = |signal| worker.is_some_and(|worker| kill_process(worker, signal).is_ok());
        let flow = |flow: Flow, random: &mut Rng| {
            link.set(flow);
            sleep_awhile(random);
            link.set(Flow::Passes);
        };
        match fault {
            Fault::RequestsWait => flow(Flow::RequestsWait, random),
            Fault::AnswersWait => flow(Flow::AnswersWait, random),
            Fault::Closed => flow(Flow::Closed, random),
            Fault::Cut => link.cut(),
            Fault::WorkerEnded => {
                signal(Signal::TERM);
            }
            Fault::WorkerStopped => {
                signal(Signal::STOP);
                sleep_awhile(random);
                signal(Signal::CONT);
            }
            Fault::Crash => self.without(site, || crash(cluster)),
            _ => self.without(site, || {
                cluster.stop(Stop::Fast);
                cluster.start_again();
            }),
        }
    }

    /// Does something in which the server's sessions end.
    fn without(&self, site: usize, does: impl FnOnce()) {
        self.books.lock().up_since[site] = None;
        does();
        self.books.lock().up_since[site] = Some(Instant::now());
    }

    /// All faults are over, and no client is left. Fills all limits.
    fn settle(&self, etcd: &Etcd) {
        let number = self.books.counts().quiet_points as usize;
        self.books.lock().counts.quiet_points += 1;
        let mut known = String::new();
        let is_settled = within(|| {
            let mut ctl = etcd.ctl();
            let members = "/session_limit/v1/m/";
            known = run_program(ctl.args(["get", "--prefix", "--keys-only", members]));
            known.split_whitespace().count() == SERVERS
        });
        if !is_settled {
            self.violation(format!("not the servers that live are in etcd:\n{known}"));
        }
        for (index, limit) in LIMITS.iter().enumerate() {
            self.fill(limit, &[(number + index) % SERVERS]);
            self.fill(limit, &[0, 1, 2]);
        }
    }

    /// By logins on these servers in turn.
    fn fill(&self, limit: &Limit, sites: &[usize]) {
        let name = limit.name;
        let mut sessions = Vec::new();
        let mut told = String::new();
        let is_filled = within(|| {
            let site = sites[sessions.len() % sites.len()];
            let role = limit.fillers[sessions.len() % limit.fillers.len()];
            match self.try_log_in(site, role) {
                Ok(session) => sessions.push(session),
                Err(refusal) => told = format!("{refusal:?}"),
            }
            sessions.len() == limit.max
        });
        if !is_filled {
            let number = sessions.len();
            self.violation(format!("{name} lets in {number} on {sites:?}: {told}"));
        }
        for site in 0..SERVERS {
            for role in limit.fillers {
                let is_full = within(|| match self.try_log_in(site, role) {
                    Ok(_) => {
                        self.violation(format!("{name}, filled on {sites:?}, lets in {site}"));
                        true
                    }
                    // A busy machine may not answer in time.
                    Err(refusal) => refusal.sqlstate() == "53300",
                });
                if !is_full {
                    self.violation(format!("{name} cannot be decided on {site}"));
                }
            }
        }
        sessions.into_iter().for_each(Session::end);
    }

    fn violation(&self, what: String) {
        self.books.lock().violation(what);
    }
}

/// A session, in the books.
struct Live {
    number: u64,
    session: Option<Session>,
}

struct Entry {
    number: u64,
    site: usize,
    role: &'static str,
    /// When it began to log in.
    began: Instant,
}

struct Books<'a> {
    links: &'a [Link],
    inner: Mutex<Inner>,
}

struct Inner {
    counts: Counts,
    entries: Vec<Entry>,
    /// Of each server; None: its sessions end, or may.
    up_since: [Option<Instant>; SERVERS],
    context: String,
    violations: usize,
}

impl<'a> Books<'a> {
    fn new(links: &'a [Link]) -> Books<'a> {
        let inner = Inner {
            counts: Counts::default(),
            entries: Vec::new(),
            up_since: [Some(Instant::now()); SERVERS],
            context: String::new(),
            violations: 0,
        };
        Books {
            links,
            inner: Mutex::new(inner),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("the books")
    }

    fn counts(&self) -> Counts {
        self.lock().counts
    }

    fn violations(&self) -> usize {
        self.lock().violations
    }

    /// `contact` is what the server's link said after the login had begun.
    fn enter(
        &self,
        site: usize,
        role: &'static str,
        session: Session,
        began: Instant,
        contact: Option<Instant>,
    ) -> Live {
        let mut inner = self.lock();
        inner.counts.admitted += 1;
        let silent = contact.map(|contact| began.saturating_duration_since(contact));
        let is_lost = silent.is_none_or(|it| it > SERVER_TIMEOUT * 9 / 10);
        if is_lost && self.links[site].contact() == contact {
            inner.violation(format!(
                "{role} is in on server {site}, which has been out of touch for {silent:?}"
            ));
        }
        let number = inner.counts.admitted;
        inner.entries.push(Entry {
            number,
            site,
            role,
            began,
        });
        for limit in LIMITS.iter().filter(|limit| limit.roles.contains(&role)) {
            self.check(&mut inner, limit);
        }
        let session = Some(session);
        Live { number, session }
    }

    fn check(&self, inner: &mut Inner, limit: &Limit) {
        let entries = inner.entries.iter();
        let of_limit = entries.filter(|entry| limit.roles.contains(&entry.role));
        let certain: Vec<usize> = of_limit
            .filter(|entry| self.is_certain(inner, entry))
            .map(|entry| entry.site)
            .collect();
        let (number, max) = (certain.len(), limit.max);
        inner.counts.filled += u64::from(number == max);
        if number > max {
            let name = limit.name;
            inner.violation(format!(
                "{name} allows {max}, and {number} are in, on {certain:?}"
            ));
        }
    }

    /// Whether nobody can rightly think that it is gone.
    fn is_certain(&self, inner: &Inner, entry: &Entry) -> bool {
        let is_up = inner.up_since[entry.site].is_some_and(|since| since <= entry.began);
        is_up && self.links[entry.site].is_in_touch_since(entry.began, SERVER_TIMEOUT / 3)
    }

    /// Before it is closed.
    fn leave(&self, live: &Live) {
        let mut inner = self.lock();
        let entries = &mut inner.entries;
        let place = entries.iter().position(|it| it.number == live.number);
        let entry = entries.swap_remove(place.expect("an entry"));
        let is_certain = self.is_certain(&inner, &entry);
        inner.counts.doubtful += u64::from(!is_certain);
    }

    fn refused(&self, refusal: &Refusal) {
        let mut inner = self.lock();
        match refusal.sqlstate() {
            "53300" => inner.counts.full += 1,
            "57P03" if refusal.message().contains("without etcd") => inner.counts.unreachable += 1,
            // Starting, stopping, or in a crash.
            "57P01" | "57P02" | "57P03" | "" => inner.counts.lost += 1,
            _ => inner.violation(format!("a login is told {refusal:?}")),
        }
    }
}

impl Inner {
    fn violation(&mut self, what: String) {
        eprintln!("VIOLATION ({}): {what}", self.context);
        self.violations += 1;
    }
}

/// Waits until it is so, for as long as it may take when all faults are over. Whether it is.
fn within(mut is_so: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while began.elapsed() < SETTLED_WITHIN {
        if is_so() {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}

/// False, at once, if the end is before.
fn pauses(random: &mut Rng, milliseconds: std::ops::RangeInclusive<u64>, end: Instant) -> bool {
    let pause = Duration::from_millis(random.u64(milliseconds));
    let fits = Instant::now() + pause < end;
    thread::sleep(if fits { pause } else { Duration::ZERO });
    fits
}

fn sleep_between(random: &mut Rng, milliseconds: std::ops::RangeInclusive<u64>) {
    thread::sleep(Duration::from_millis(random.u64(milliseconds)));
}

/// Less than `server_timeout`, or more.
fn sleep_awhile(random: &mut Rng) {
    let milliseconds = match random.usize(..3) {
        0 => 3500..=5500,
        _ => 100..=2000,
    };
    sleep_between(random, milliseconds);
}

/// Kills a backend, and returns when the server has started all anew.
fn crash(cluster: &Cluster) {
    let again = "all server processes terminated; reinitializing";
    let crashes = || cluster.log().matches(again).count();
    let before = crashes();
    let session = cluster.superuser();
    let pid = Pid::from_raw(session.pid).expect("a process ID");
    kill_process(pid, Signal::KILL).expect("kill -9");
    wait_for("the crash", || (crashes() > before).then_some(()));
    let superuser = cluster.login_of("postgres");
    let mut log_in = || {
        let mut connection = superuser.try_connect().ok()?;
        connection.send_startup(&superuser);
        connection.outcome().ok()
    };
    wait_for("the server to be back", &mut log_in).end();
}
