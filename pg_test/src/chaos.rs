//! A chaos run: many roles and limits of every kind; clients that do what clients do, and are ended in every
//! way; limits, grants and settings that change meanwhile; servers that crash and are restarted; and a
//! standby that follows. Between the phases all is quiet, and is checked.
//!
//! What is set is known to the run itself, as is what must follow from it (`model`): the extension's code
//! and views are not asked. The same seed makes the same plan: which phases, which changes, what each client
//! does one after the other. Who comes first, and what therefore becomes of each, is up to the machine.
//!
//! What must hold, and why it does:
//! - **At a quiet point** no login is in flight and no session is leaving, so that these are equal: the
//!   processes of `session_limit.sessions`, those of `pg_stat_activity`, and the clients' books. A session that
//!   has ended has done so for a reason that the phase gave: its client, an actor that told it to, a newer
//!   session of a role that may replace, the sweep, a crash or restart. Nobody waits.
//! - **No limit is exceeded** by those whom it holds: there are never more of them than it allows, or than there
//!   were when the phase began, since each was let in when there was room, counting everyone. In a phase
//!   that changes something this is said only of limits that nothing of it is about: a login that comes meanwhile
//!   may be decided by what was before, or partly.
//! - **During a phase that changes nothing** the clients' books, whose counts are never more than the server's,
//!   do not exceed a limit either. Only sessions count there that nobody but their client ends, or of which
//!   the books are told before. (`pg_stat_activity` would be no witness: it is read row by row.) That someone was
//!   refused the books cannot prove wrong.
//! - **No room is left unused**: at a quiet point nobody leaves and nobody else comes, so that it is certain what
//!   becomes of a login. One that fits is admitted, and nobody ends for it; one that does not is refused, and nobody
//!   ends, or it replaces sessions of its role, and then fits. Of several at once as many get in as fit.
//!   That is tried for some logins on each server, whatever came before: also right after a crash.
//! - **No key has too many seats**, whenever anyone looks: all who take seats of a key allow as many. At a quiet point
//!   leases lapse, and what room a key has can be taken, and no more. A seat without a lease that no newer one replaces is
//!   held as long as its session lives, and no longer; when all clients are gone, so are the seats.
//! - **The server's log** has no panic, no failed assertion, no internal error, no reclaimed slot, and no process
//!   killed by a signal but those that the run killed.

mod actors;
mod books;
mod changes;
mod model;
mod quiet;
pub(crate) mod random;
mod seats;

use crate::bench::{Best, Figures, Table};
use crate::client::Target;
use crate::cluster::{Cluster, Stop};
use crate::server::Server;
use crate::{say, wait_for};
use actors::{Allowed, Client, Scene};
pub use books::Counts;
use books::{Books, SITES, Site};
use changes::Change;
use fastrand::Rng;
use model::{Seen, World};
use random::{one_in, one_of};
use rustix::process::{Pid, Signal, kill_process};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const CLIENTS: usize = 9;
/// What each does in a phase.
const ACTIONS: u64 = 30;
const SAY_EVERY: Duration = Duration::from_secs(5);

/// What a phase has besides its clients.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Sessions and logins are told to end; nothing is changed.
    Storm,
    /// The same, and labels, grants and settings are changed.
    Changes,
    /// `kill -9` of a backend, or of the background worker: the server starts all anew.
    Crash(Site, Victim),
    Restart(Site, Stop),
}

#[derive(Clone, Copy, Debug)]
enum Victim {
    Backend,
    Worker,
}

const CYCLE: [Kind; 13] = [
    Kind::Storm,
    Kind::Storm,
    Kind::Storm,
    Kind::Changes,
    Kind::Changes,
    Kind::Changes,
    Kind::Crash(0, Victim::Backend),
    Kind::Crash(0, Victim::Worker),
    Kind::Crash(1, Victim::Backend),
    Kind::Restart(0, Stop::Fast),
    Kind::Restart(0, Stop::Immediate),
    Kind::Restart(1, Stop::Fast),
    Kind::Restart(1, Stop::Immediate),
];

impl Kind {
    fn words(self) -> String {
        match self {
            Kind::Storm => "storm".to_string(),
            Kind::Changes => "changes".to_string(),
            Kind::Crash(site, victim) => format!("kill -9 of a {victim:?} of the {}", SITES[site]),
            Kind::Restart(site, stop) => format!("{stop:?} restart of the {}", SITES[site]),
        }
    }

    /// The server that everyone loses.
    fn loses(self) -> Option<Site> {
        match self {
            Kind::Storm | Kind::Changes => None,
            Kind::Crash(site, _) | Kind::Restart(site, _) => Some(site),
        }
    }
}

/// What came out.
pub struct Outcome {
    pub seed: u64,
    pub phases: u64,
    pub took: Duration,
    pub violations: usize,
    pub counts: Counts,
}

/// Runs at least once through every kind of phase, and for so long.
pub fn run(server: &Server, seed: u64, at_least: Duration) -> Outcome {
    let began = Instant::now();
    let mut run = Run::start(server, seed);
    let mut said = Instant::now();
    for cycle in 0.. {
        let mut kinds = CYCLE;
        random::of(&[seed, cycle]).shuffle(&mut kinds);
        for kind in kinds {
            if (cycle > 0 && began.elapsed() >= at_least) || run.books.violations() > 0 {
                break;
            }
            run.phase(kind);
            run.check_logs();
            if said.elapsed() >= SAY_EVERY {
                said = Instant::now();
                run.say(kind, began.elapsed());
            }
        }
        if began.elapsed() >= at_least || run.books.violations() > 0 {
            break;
        }
    }
    if run.books.violations() == 0 {
        run.check_end();
    }
    Outcome {
        seed,
        phases: run.number,
        took: began.elapsed(),
        violations: run.books.violations(),
        counts: run.books.counts(),
    }
}

impl Outcome {
    /// What was counted, in one row.
    pub fn table(&self, server: &Server) -> Table {
        let row = format!("PostgreSQL {}", server.major);
        let mut table = Table::new("Counted", [row.as_str()]);
        let counts = &self.counts;
        let columns = [
            ("logins", counts.logins),
            ("admitted", counts.admitted),
            ("refused", counts.refused),
            ("waited", counts.waited),
            ("replaced", counts.replaced),
            ("swept", counts.swept),
            ("kills -9", counts.killed),
            ("terminated", counts.terminated),
            ("cancelled", counts.cancelled),
            ("vanished", counts.vanished),
            ("reloads", counts.reloads),
            ("restarts", counts.restarts),
            ("crashes", counts.crashes),
            ("changes", counts.changes),
            ("quiet points", counts.quiet_points),
            ("probes", counts.probes),
            ("seats", counts.seats),
            ("seats refused", counts.seats_refused),
            ("looks at seats", counts.looks),
            ("violations", self.violations as u64),
        ];
        for (name, count) in columns {
            let cell = Figures::from_iter([count as f64]);
            table.column(name, 0, Best::None, [cell]);
        }
        table
    }
}

struct Run {
    seed: u64,
    /// Of phases.
    number: u64,
    clusters: [Cluster; 2],
    targets: [(Target, u16); 2],
    world: World,
    books: Books,
    clients: Vec<Client>,
    immediate_stops: usize,
    /// What the statistics of each server last said.
    waited: [u64; 2],
    /// How much of each server's log was read, and what it says of killed processes and immediate stops.
    logged: [usize; 2],
    killed: u64,
    stopped: usize,
}

impl Run {
    fn start(server: &Server, seed: u64) -> Run {
        let settings = [
            ("max_connections", "300"),
            ("log_line_prefix", "%m [%p] %e "),
            ("wal_retrieve_retry_interval", "100ms"),
            // A standby that is started again finds the rest.
            ("wal_keep_size", "256MB"),
            ("session_limit.max_wait", "50ms"),
            ("session_limit.replace_min_age", "1h"),
            ("session_limit.replace_idle_after", "1h"),
            ("session_limit.sweep_interval", "1s"),
            ("autovacuum", "off"),
        ];
        let primary = Cluster::start(server, &settings);
        let (world, sql) = World::begin();
        let statements: Vec<&str> = sql.iter().map(String::as_str).collect();
        primary.sql(&statements);
        seats::install(&primary, &world);
        let standby = Cluster::standby_of(&primary);
        let target = |cluster: &Cluster| (cluster.login_of("postgres"), cluster.port);
        Run {
            seed,
            number: 0,
            targets: [target(&primary), target(&standby)],
            clusters: [primary, standby],
            world,
            books: Books::default(),
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            immediate_stops: 0,
            waited: [0; 2],
            logged: [0; 2],
            killed: 0,
            stopped: 0,
        }
    }

    fn phase(&mut self, kind: Kind) {
        self.number += 1;
        let (seed, number) = (self.seed, self.number);
        self.books.set_context(format!(
            "PostgreSQL {}, seed {seed}, phase {number}, {}",
            self.clusters[0].server.major,
            kind.words()
        ));
        let mut random = random::of(&[seed, number, 1]);
        let before = self.world.clone();
        self.set_anew(&mut random);
        // Who is in is in: nothing of that ended anyone.
        let began = self.settle(&quiet::Ends::none(&before));
        let (changes, worlds) = self.plan(kind, &mut random);
        let constant = matches!(kind, Kind::Storm).then(|| self.world.clone());
        let sessions = self.sessions(&began);
        self.books
            .begin(constant.as_ref(), &sessions, began.clone());
        self.act(kind, &changes, &mut random);
        self.quiet_point(kind, &worlds, began, &mut random);
    }

    /// Changes a few things before anyone does anything.
    fn set_anew(&mut self, random: &mut Rng) {
        let mut sessions = [0, 1].map(|site| self.clusters[site].superuser());
        for number in 0..10 {
            let change = match number {
                0..6 => Change::of_catalogs(random, &self.world),
                _ => Change::of_settings(random),
            };
            if !matches!(change, Change::Enforcement(_) | Change::Sweep(_)) {
                actors::make(&mut sessions, &self.books, &mut self.world, &change);
            }
        }
        sessions.into_iter().for_each(|session| session.end());
        self.hold();
    }

    /// Returns when what is set holds on both servers.
    fn hold(&self) {
        for cluster in &self.clusters {
            self.books.count(|counts| counts.reloads += 1);
            cluster.reload();
        }
        let mut primary = self.clusters[0].superuser();
        // The end of the WAL may be one that no record reaches, for many seconds after a crash: write one.
        let written = primary.value("SELECT pg_logical_emit_message(true, 'chaos', '')");
        let mut standby = self.clusters[1].superuser();
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'::pg_lsn");
        wait_for("the standby to catch up", || {
            (standby.value(&sql) == "t").then_some(())
        });
        primary.end();
        standby.end();
    }

    /// What is changed in this phase, and how the world is before, between and after.
    fn plan(&self, kind: Kind, random: &mut Rng) -> (Vec<Change>, Vec<World>) {
        let (mut changes, mut worlds) = (Vec::new(), vec![self.world.clone()]);
        if !matches!(kind, Kind::Changes) {
            return (changes, worlds);
        }
        let mut world = self.world.clone();
        for number in 0..12 {
            let change = match number {
                0 => Change::Sweep(one_of(random, &["log", "terminate"])),
                10 => Change::Enforcement("on"),
                11 => Change::Sweep("log"),
                _ if one_in(random, 3) => Change::of_settings(random),
                _ => Change::of_catalogs(random, &world),
            };
            world.apply(&change);
            worlds.push(world.clone());
            changes.push(change);
        }
        (changes, worlds)
    }

    fn act(&mut self, kind: Kind, changes: &[Change], random: &mut Rng) {
        let quiet = matches!(kind, Kind::Storm | Kind::Changes);
        let scene_world = self.world.clone();
        let (seed, number) = (self.seed, self.number);
        let Run {
            clusters,
            targets,
            world,
            books,
            clients,
            immediate_stops,
            ..
        } = self;
        let books = &*books;
        let scene = Scene {
            world: &scene_world,
            books,
            targets,
            allowed: Allowed {
                down: !quiet,
                told: quiet,
                dropped: matches!(kind, Kind::Changes),
            },
        };
        let (acts, over) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let (acts, scene) = (acts, &scene);
            scope.spawn(move || seats::watch(scene.targets, books, &over));
            for (index, client) in clients.iter_mut().enumerate() {
                let acts = acts.clone();
                scope.spawn(move || {
                    let _acts = acts;
                    for action in 0..ACTIONS {
                        let mut random = random::of(&[seed, number, 100 + index as u64, action]);
                        client.act(scene, &mut random);
                    }
                });
            }
            match kind {
                Kind::Storm => actors::disturb(clusters, books, random),
                Kind::Changes => {
                    let clusters = &*clusters;
                    let mut other = random::of(&[seed, number, 2]);
                    // Before any login is told to end.
                    let sessions = [clusters[0].superuser(), clusters[1].superuser()];
                    scope.spawn(move || actors::disturb(clusters, books, &mut other));
                    actors::change(sessions, books, world, changes, random);
                }
                Kind::Crash(site, victim) => {
                    thread::sleep(Duration::from_millis(random.u64(50..=400)));
                    crash(&clusters[site], site, victim, books, random);
                }
                Kind::Restart(site, stop) => {
                    thread::sleep(Duration::from_millis(random.u64(50..=400)));
                    clusters[site].stop(stop);
                    clusters[site].start_again();
                    books.count(|counts| counts.restarts += 1);
                    *immediate_stops += usize::from(matches!(stop, Stop::Immediate));
                }
            }
        });
    }

    /// The clients' sessions, as the servers show them.
    fn sessions(&self, seen: &[Vec<Seen>; 2]) -> Vec<(Site, Seen)> {
        let held = self.clients.iter().flat_map(|client| &client.held);
        let shown = held.filter_map(|held| {
            let mut there = seen[held.site].iter();
            let seen = there.find(|seen| seen.pid == held.session.pid)?;
            Some((held.site, *seen))
        });
        shown.collect()
    }

    fn say(&self, kind: Kind, elapsed: Duration) {
        let counts = self.books.counts();
        say(format_args!(
            "{} s: phase {} ({}), {} logins, {} refused, {} crashes, {} changes, {} violations",
            elapsed.as_secs(),
            self.number,
            kind.words(),
            counts.logins,
            counts.refused,
            counts.crashes,
            counts.changes,
            self.books.violations(),
        ));
    }

    /// What the servers have logged since the last time.
    pub fn check_logs(&mut self) {
        let bad = [
            "PANIC:",
            "TRAP:",
            "panicked at",
            r#""event":"reclaimed""#,
            // Not LOG: a backend that is told to quit when it has closed its socket already cannot say so.
            " XX000 ERROR:",
            " XX000 FATAL:",
            " XX001 ",
            " XX002 ",
        ];
        for site in [0, 1] {
            let log = self.clusters[site].log();
            let new = log.get(self.logged[site]..).unwrap_or_default();
            for line in new.lines() {
                let signalled = line.contains("was terminated by signal");
                self.killed += u64::from(signalled);
                self.stopped += usize::from(line.contains("received immediate shutdown request"));
                let wrong = bad.iter().any(|text| line.contains(text))
                    || (signalled && !line.contains("by signal 9"));
                if wrong {
                    self.books
                        .violation(format!("the log of the {} has: {line}", SITES[site]));
                }
            }
            self.logged[site] = log.len();
        }
        let killed = self.books.counts().killed;
        if self.killed > killed {
            let text = format!("{} processes were killed, by the run {killed}", self.killed);
            self.books.violation(text);
        }
        if self.stopped > self.immediate_stops {
            self.books
                .violation("a server did not stop the fast way in a minute".to_string());
        }
    }
}

/// Kills one, and returns when the server has started all anew.
fn crash(cluster: &Cluster, site: Site, victim: Victim, books: &Books, random: &mut Rng) {
    let crashes = || {
        cluster
            .log()
            .matches("all server processes terminated; reinitializing")
            .count()
    };
    let before = crashes();
    let mut killed: Vec<Pid> = Vec::new();
    wait_for("a process to kill, and the crash", || {
        let chosen = match victim {
            // Only a child of this very server.
            Victim::Backend => books
                .one(site, random.usize(..1 << 16))
                .and_then(Pid::from_raw)
                .filter(|pid| cluster.processes("").contains(pid)),
            Victim::Worker => cluster
                .processes("postgres: session_limit worker")
                .first()
                .copied(),
        };
        if let Some(pid) = chosen.filter(|pid| !killed.contains(pid) && crashes() == before)
            && kill_process(pid, Signal::KILL).is_ok()
        {
            books.count(|counts| counts.killed += 1);
            killed.push(pid);
            thread::sleep(Duration::from_millis(200));
        }
        (crashes() > before).then_some(())
    });
    books.count(|counts| counts.crashes += 1);
    let superuser = cluster.login_of("postgres");
    wait_for("the server to be back", || {
        let mut connection = superuser.try_connect().ok()?;
        connection.send_startup(&superuser);
        connection.outcome().ok()
    })
    .close();
}
