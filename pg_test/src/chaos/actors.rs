//! Who does something: clients, and those who end sessions and change what is set.

use super::books::{Books, Site};
use super::changes::{BENCH, Change};
use super::model::{ADDRESSES, Login, World};
use super::random::one_in;
use super::seats::{self, Seat};
use crate::client::{Endpoint, Refusal, Session, Target};
use crate::cluster::Cluster;
use fastrand::Rng;
use rustix::process::{Signal, kill_process};
use std::thread;
use std::time::Duration;

/// Sessions that one client has at most.
const HELD: usize = 5;

/// What may happen to clients in a phase without anything being wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed {
    /// The server may be down, or end everyone.
    pub down: bool,
    /// A login may be told to end, or its client's connection be closed.
    pub told: bool,
    /// A role may not be there.
    pub dropped: bool,
}

pub struct Held {
    pub site: Site,
    pub login: Login,
    pub session: Session,
    /// That it took, and has not released.
    pub seats: Vec<Seat>,
    /// How the server ended it, once the client knows.
    pub end: Option<Refusal>,
}

impl Held {
    fn new(site: Site, login: Login, session: Session) -> Held {
        Held {
            site,
            login,
            session,
            seats: Vec::new(),
            end: None,
        }
    }

    /// What is wrong with the query is no matter, only whether there is a session any more.
    pub fn query(&mut self, sql: &str) {
        self.ask(sql);
    }

    /// The answer; None if there is no session any more.
    pub fn ask(&mut self, sql: &str) -> Option<Result<Vec<Vec<String>>, Refusal>> {
        let ends = |error: &&Refusal| matches!(error.sqlstate(), "" | "57P01" | "57P02" | "57P03");
        if self.end.is_some() {
            return None;
        }
        let answer = self.session.try_query(sql);
        self.end = answer.as_ref().err().filter(ends).cloned();
        self.end.is_none().then_some(answer)
    }
}

/// A client with some sessions.
#[derive(Default)]
pub struct Client {
    pub held: Vec<Held>,
}

/// What every client of a phase knows.
pub struct Scene<'a> {
    pub world: &'a World,
    pub books: &'a Books,
    /// Where to log in over the socket, for each site.
    pub targets: &'a [(Target, u16); 2],
    pub allowed: Allowed,
}

impl Scene<'_> {
    pub fn target(&self, site: Site, login: Login) -> Target {
        target(self.world, &self.targets[site], login)
    }

    /// Logs in, and says what became of it if that must not be. None if it was not let in.
    fn log_in(&self, site: Site, login: Login) -> Option<Held> {
        let target = self.target(site, login);
        self.books.count(|counts| counts.logins += 1);
        let Ok(mut connection) = target.try_connect() else {
            self.unreachable(site, login);
            return None;
        };
        connection.send_startup(&target);
        match connection.outcome() {
            Ok(session) => {
                self.books.enter(site, login, session.pid);
                Some(Held::new(site, login, session))
            }
            Err(refusal) => {
                self.refused(login, &refusal);
                None
            }
        }
    }

    fn unreachable(&self, site: Site, login: Login) {
        match self.allowed.down {
            true => thread::sleep(Duration::from_millis(20)),
            false => self.books.violation(format!(
                "server {site} cannot be reached for {}",
                self.world.say(login)
            )),
        }
    }

    fn refused(&self, login: Login, refusal: &Refusal) {
        if is_refusal(refusal) {
            self.books.count(|counts| counts.refused += 1);
            if self.world.roles[login.role].superuser {
                self.books
                    .violation(format!("a superuser was refused: {refusal:?}"));
            }
            return;
        }
        let ended = self.allowed.told || self.allowed.down;
        let expected = match refusal.sqlstate() {
            "57P01" | "57014" | "" => ended,
            "57P02" | "57P03" => self.allowed.down,
            "28000" => self.allowed.dropped,
            _ => false,
        };
        if !expected {
            let who = self.world.say(login);
            self.books.violation(format!(
                "an unexpected answer to a login of {who}: {refusal:?}"
            ));
        }
    }
}

/// Where and how to log in.
pub fn target(world: &World, (socket, port): &(Target, u16), login: Login) -> Target {
    let address = format!("127.0.0.{}", login.address);
    Target {
        endpoint: match login.address {
            0 => socket.endpoint.clone(),
            _ => Endpoint::TcpFrom(address.parse().expect("an address"), *port),
        },
        user: world.roles[login.role].name.clone(),
        database: Some(world.databases[login.database].name.clone()),
        ..socket.clone()
    }
}

/// Whether it is one for the sake of a limit.
pub fn is_refusal(refusal: &Refusal) -> bool {
    let too_many = ["connections ", "users ", "client addresses "];
    let message = refusal.message().strip_prefix("too many ");
    let is_one = message.is_some_and(|text| too_many.iter().any(|what| text.starts_with(what)));
    refusal.sqlstate() == "53300" && is_one
}

/// Any login but the bench's own.
pub fn any_login(random: &mut Rng, world: &World) -> Login {
    Login {
        role: random.usize(..BENCH),
        database: random.usize(..world.databases.len()),
        address: random.u8(..ADDRESSES),
    }
}

impl Client {
    /// One of the things that clients do; which, only `random` says.
    pub fn act(&mut self, scene: &Scene, random: &mut Rng) {
        let site = usize::from(one_in(random, 4));
        let login = any_login(random, scene.world);
        let (what, which) = (random.usize(..20), random.usize(..1 << 16));
        let pause = Duration::from_millis(random.u64(..12));
        match what {
            0..=5 => self.log_in(scene, site, login),
            6 | 7 => {
                // Three at once.
                let targets = (0..3).map(|_| scene.target(site, login)).collect();
                self.storm(scene, site, login, targets);
            }
            8 => {
                // Waits for its chance.
                self.log_in(scene, site, login);
                thread::sleep(pause);
            }
            9 | 10 => self.query(which, "SELECT pg_sleep(0.01)"),
            11 => self.query(which, "BEGIN"),
            12 => self.query(which, "COMMIT"),
            13 => self.query(which, "SELECT 1/0"),
            14 => leave_early(scene, &scene.target(site, login), None),
            15 => leave_early(scene, &scene.target(site, login), Some(pause * 3)),
            16 => {
                if let Some(held) = self.take(scene.books, which) {
                    scene.books.count(|counts| counts.vanished += 1);
                    match one_in(random, 2) {
                        true => seats::vanish(held.session, random),
                        false => drop(held.session),
                    }
                }
            }
            17 | 18 => {
                if let Some(held) = self.take(scene.books, which) {
                    held.session.close();
                }
            }
            _ => thread::sleep(pause),
        }
        if one_in(random, 3) {
            self.seat(scene, which, random);
        }
    }

    fn log_in(&mut self, scene: &Scene, site: Site, login: Login) {
        if self.held.len() >= HELD
            && let Some(held) = self.take(scene.books, 0)
        {
            held.session.close();
        }
        self.held.extend(scene.log_in(site, login));
    }

    fn storm(&mut self, scene: &Scene, site: Site, login: Login, targets: Vec<Target>) {
        let connect = |target: &Target| {
            scene.books.count(|counts| counts.logins += 1);
            let connection = target.try_connect();
            if connection.is_err() {
                scene.unreachable(site, login);
            }
            connection.ok()
        };
        let mut connections: Vec<_> = targets.iter().filter_map(connect).collect();
        for connection in &mut connections {
            connection.send_startup(&targets[0]);
        }
        for connection in connections {
            match connection.outcome() {
                Ok(session) => {
                    scene.books.enter(site, login, session.pid);
                    self.held.push(Held::new(site, login, session));
                }
                Err(refusal) => scene.refused(login, &refusal),
            }
        }
        while self.held.len() > HELD {
            if let Some(held) = self.take(scene.books, 0) {
                held.session.close();
            }
        }
    }

    fn query(&mut self, which: usize, sql: &str) {
        let count = self.held.len();
        if let Some(held) = self.held.get_mut(which % count.max(1)) {
            held.query(sql);
        }
    }

    fn seat(&mut self, scene: &Scene, which: usize, random: &mut Rng) {
        let count = self.held.len();
        if let Some(held) = self.held.get_mut(which % count.max(1)) {
            seats::act(held, scene.books, random);
        }
    }

    fn take(&mut self, books: &Books, which: usize) -> Option<Held> {
        if self.held.is_empty() {
            return None;
        }
        let held = self.held.remove(which % self.held.len());
        books.leave(held.site, held.session.pid);
        Some(held)
    }
}

/// Goes away before it is told anything, or after so long.
fn leave_early(scene: &Scene, target: &Target, after: Option<Duration>) {
    scene.books.count(|counts| {
        counts.logins += 1;
        counts.vanished += 1;
    });
    let Ok(mut connection) = target.try_connect() else {
        return;
    };
    connection.send_startup(target);
    after.into_iter().for_each(thread::sleep);
}

/// Ends sessions and logins of others, and reloads.
pub fn disturb(clusters: &[Cluster; 2], books: &Books, random: &mut Rng) {
    for _ in 0..8 {
        let (what, which) = (random.usize(..12), random.usize(..1 << 16));
        let site = usize::from(one_in(random, 4));
        let cluster = &clusters[site];
        thread::sleep(Duration::from_millis(random.u64(10..=60)));
        match what {
            0..=2 => {
                if let Some(pid) = books.tell_one(site, which) {
                    books.count(|counts| counts.terminated += 1);
                    one_statement(cluster, &format!("SELECT pg_terminate_backend({pid})"));
                }
            }
            3..=6 => {
                // A login that is being decided, in most cases because it waits.
                let waiting = cluster.processes(" authentication");
                if !waiting.is_empty() {
                    books.count(|counts| counts.cancelled += 1);
                    let _ = kill_process(waiting[which % waiting.len()], Signal::INT);
                }
            }
            7 => {
                let waiting = cluster.processes(" authentication");
                if !waiting.is_empty() {
                    let login = waiting[which % waiting.len()];
                    books.count(|counts| counts.terminated += 1);
                    books.tell(site, login.as_raw_nonzero().get());
                    let _ = kill_process(login, Signal::TERM);
                }
            }
            8 => {
                books.count(|counts| counts.reloads += 1);
                one_statement(cluster, "SELECT pg_reload_conf()");
            }
            9 | 10 => seats::cancel(cluster, books),
            _ => {
                for worker in cluster.processes("postgres: session_limit worker") {
                    books.count(|counts| counts.terminated += 1);
                    let _ = kill_process(worker, Signal::TERM);
                }
            }
        }
    }
}

fn one_statement(cluster: &Cluster, sql: &str) {
    let mut session = cluster.superuser();
    session.query(sql);
    session.close();
}

/// Makes the changes one after the other, each committed, and each setting reloaded.
pub fn change(
    mut sessions: [Session; 2],
    books: &Books,
    world: &mut World,
    changes: &[Change],
    pauses: &mut Rng,
) {
    for change in changes {
        thread::sleep(Duration::from_millis(pauses.u64(0..=60)));
        make(&mut sessions, books, world, change);
        if change.is_of_a_setting() {
            for session in &mut sessions {
                session.query("SELECT pg_reload_conf()");
                books.count(|counts| counts.reloads += 1);
            }
        }
    }
    sessions.into_iter().for_each(Session::end);
}

/// Makes a change; a setting's needs a reload.
pub fn make(sessions: &mut [Session; 2], books: &Books, world: &mut World, change: &Change) {
    books.count(|counts| counts.changes += 1);
    for statement in change.sql(world) {
        sessions[0].query(&statement);
        if change.is_of_a_setting() {
            sessions[1].query(&statement);
        }
    }
    world.apply(change);
}
