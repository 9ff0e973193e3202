//! Seats: the clients take them with their sessions, and what must hold of them.
//!
//! Whoever takes a seat of a key allows as many of it as everyone else, in any database. So nobody ever sees more.

use super::Run;
use super::actors::Held;
use super::books::{Books, SITES, Site};
use super::model::World;
use super::random::{one_in, one_of};
use crate::client::{Session, Target};
use crate::cluster::Cluster;
use crate::{PATIENCE, wait_for};
use fastrand::Rng;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

struct Key {
    name: &'static str,
    max: usize,
    on_excess: &'static str,
}

const REPLACED: &str = "replace_oldest";
const KEYS: [Key; 4] = [
    Key::new("one", 1, "refuse"),
    Key::new("two", 2, "refuse"),
    Key::new("five", 5, "refuse"),
    Key::new("handed on", 2, REPLACED),
];

/// Short, so that leases lapse in a phase, and none is left soon after.
const TTLS: [&str; 3] = ["20 ms", "100 ms", "300 ms"];
const LOOK_EVERY: Duration = Duration::from_millis(10);

const HELD: &str = "SELECT datname, key, count(*) FROM session_limit.seats GROUP BY datname, key";
const LEASES: &str = "SELECT count(*) FROM session_limit.seats WHERE expires_at IS NOT NULL";
const ORPHANS: &str = "SELECT * FROM session_limit.seats
    WHERE expires_at IS NULL AND pid NOT IN (SELECT pid FROM pg_stat_activity)";
const OTHERS: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
/// Those who wait for a seat.
const CANCEL: &str = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND state = 'active' AND wait_event IN ('SessionLimitSeat', 'Extension')";

impl Key {
    const fn new(name: &'static str, max: usize, on_excess: &'static str) -> Key {
        Key {
            name,
            max,
            on_excess,
        }
    }

    fn take(&self, ttl: Option<&str>, max_wait: &str) -> String {
        let ttl = ttl.map_or(String::new(), |ttl| format!(", ttl => '{ttl}'"));
        format!(
            "SELECT session_limit.take_seat('{}', {}{ttl}, max_wait => '{max_wait}', on_excess => '{}')",
            self.name, self.max, self.on_excess
        )
    }
}

/// A seat that a client took with a session.
pub struct Seat {
    id: String,
    /// It has no lease, and no newer one takes its place.
    stays: bool,
}

/// In every database, for every role.
pub fn install(primary: &Cluster, world: &World) {
    for database in &world.databases {
        let superuser = primary.login_of("postgres").to(&database.name);
        let mut superuser = superuser.login().expect("a superuser");
        superuser.query("CREATE EXTENSION IF NOT EXISTS session_limit");
        superuser.query("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA session_limit TO PUBLIC");
        superuser.end();
    }
}

/// What a client does with seats and one of its sessions.
pub fn act(held: &mut Held, books: &Books, random: &mut Rng) {
    let (what, which) = (random.usize(..6), random.usize(..1 << 16));
    let key = random.choice(&KEYS).expect("a key");
    let ttl = one_in(random, 2).then(|| one_of(random, &TTLS));
    let max_wait = one_of(random, &["0", "10 ms", "60 ms"]);
    let number = held.seats.len();
    let chosen = held.seats.get(which % number.max(1));
    let renew = chosen.map(|seat| (seat.stays, format!("renew_seat('{}')", seat.id)));
    match (what, renew) {
        (0, Some((stays, renew))) => tell(held, stays, &renew, books),
        (1, Some(_)) => {
            let seat = held.seats.remove(which % number);
            tell(
                held,
                seat.stays,
                &format!("release_seat('{}')", seat.id),
                books,
            );
        }
        _ => take(held, key, ttl, max_wait, books),
    }
}

fn take(held: &mut Held, key: &Key, ttl: Option<&str>, max_wait: &str, books: &Books) {
    match held.ask(&key.take(ttl, max_wait)) {
        Some(Ok(mut rows)) => {
            books.count(|counts| counts.seats += 1);
            held.seats.push(Seat {
                id: rows.remove(0).remove(0),
                stays: ttl.is_none() && key.on_excess != REPLACED,
            });
        }
        Some(Err(error)) => match error.sqlstate() {
            "53300" => books.count(|counts| counts.seats_refused += 1),
            // It was cancelled; the transaction has failed before; a conflict with recovery.
            "57014" | "25P02" | "40001" => {}
            _ => books.violation(format!(
                "an unexpected answer to a call for a seat on the {}: {error:?}",
                SITES[held.site]
            )),
        },
        None => {}
    }
}

/// Whether a seat is held still, the answer to this call says. One that stays is.
fn tell(held: &mut Held, stays: bool, call: &str, books: &Books) {
    let answer = held.ask(&format!("SELECT session_limit.{call}"));
    if let Some(Ok(rows)) = answer
        && stays
        && rows != [["t"]]
    {
        books.violation(format!(
            "pid {} of the {} has lost a seat without a reason: {call}",
            held.session.pid, SITES[held.site]
        ));
    }
}

/// Asks for a seat and goes away. It would wait for longer than anyone has patience, if nobody noticed.
pub fn vanish(mut session: Session, random: &mut Rng) {
    let key = random.choice(&KEYS).expect("a key");
    session.send(&key.take(None, "10 min"));
}

/// Cancels whoever waits for a seat.
pub fn cancel(cluster: &Cluster, books: &Books) {
    let mut superuser = cluster.superuser();
    let cancelled = superuser.query(CANCEL).len() as u64;
    books.count(|counts| counts.cancelled += cancelled);
    superuser.close();
}

/// Looks again and again whether there are too many, until nobody is at the other end of `over`.
pub fn watch(targets: &[(Target, u16); 2], books: &Books, over: &Receiver<()>) {
    let mut watchers = [None, None];
    while over.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
        for (site, watcher) in watchers.iter_mut().enumerate() {
            // The server may be down.
            *watcher = watcher.take().or_else(|| log_in(&targets[site].0));
            let rows = watcher
                .as_mut()
                .and_then(|watcher| watcher.try_query(HELD).ok());
            match rows {
                Some(rows) => check(site, &rows, books),
                None => *watcher = None,
            }
        }
    }
    watchers.into_iter().flatten().for_each(Session::end);
}

fn log_in(target: &Target) -> Option<Session> {
    let mut connection = target.try_connect().ok()?;
    connection.send_startup(target);
    connection.outcome().ok()
}

/// No key has too many.
fn check(site: Site, rows: &[Vec<String>], books: &Books) {
    books.count(|counts| counts.looks += 1);
    for row in rows {
        let key = KEYS.iter().find(|key| key.name == row[1]);
        let number: usize = row[2].parse().expect("a number");
        if key.is_none_or(|key| number > key.max) {
            books.violation(format!("too many seats on the {}: {row:?}", SITES[site]));
        }
    }
}

impl Run {
    /// While all is quiet: no lease is left, no session seat without its session, and none is missing. What room there is
    /// can be taken, and no more.
    pub fn check_seats(&mut self, site: Site, random: &mut Rng) {
        let books = &self.books;
        let database = random.choice(&self.world.databases).expect("a database");
        let superuser = self.targets[site].0.clone().to(&database.name);
        let mut superuser = superuser.login().expect("a superuser");
        if !settles(|| superuser.value(LEASES) == "0") {
            books.violation(format!("leases do not lapse on the {}", SITES[site]));
        }
        let orphans = superuser.query(ORPHANS);
        if !orphans.is_empty() {
            let site = SITES[site];
            books.violation(format!(
                "seats without a session on the {site}: {orphans:?}"
            ));
        }
        let held = self.clients.iter_mut().flat_map(|it| &mut it.held);
        for held in held.filter(|held| held.site == site) {
            for seat in 0..held.seats.len() {
                let Seat { id, stays } = &held.seats[seat];
                let (call, stays) = (format!("renew_seat('{id}')"), *stays);
                tell(held, stays, &call, books);
            }
        }
        let rows = superuser.query(HELD);
        check(site, &rows, books);
        for key in &KEYS {
            let is_of_key = |row: &&Vec<String>| row[0] == database.name && row[1] == key.name;
            let row = rows.iter().find(is_of_key);
            let taken = row.map_or(0, |row| row[2].parse().expect("a number"));
            fill(&mut superuser, site, key, taken, books);
        }
        superuser.end();
    }

    /// When the clients are gone, so are all seats.
    pub fn check_end(&mut self) {
        let held = self.clients.iter_mut().flat_map(|it| it.held.drain(..));
        held.for_each(|held| held.session.close());
        for site in [0, 1] {
            let mut superuser = self.clusters[site].superuser();
            wait_for("the clients' sessions to end", || {
                (superuser.value(OTHERS) == "0").then_some(())
            });
            if !settles(|| superuser.query(HELD).is_empty()) {
                let left = superuser.query("SELECT * FROM session_limit.seats");
                let site = SITES[site];
                self.books
                    .violation(format!("seats are left on the {site}: {left:?}"));
            }
            superuser.end();
        }
    }
}

/// Takes all that are left, and one more.
fn fill(superuser: &mut Session, site: Site, key: &Key, taken: usize, books: &Books) {
    let take = |ttl| {
        format!(
            "SELECT session_limit.try_take_seat('{}', {}, {ttl}, max_wait => '0')",
            key.name, key.max
        )
    };
    let room = key.max.saturating_sub(taken);
    let mut seats = Vec::new();
    for number in 0..=room {
        let ttl = if number % 2 == 0 { "NULL" } else { "'1 day'" };
        let seat = superuser.value(&take(ttl));
        seats.extend((!seat.is_empty()).then_some(seat));
    }
    if seats.len() != room {
        books.violation(format!(
            "on the {} {} seats of \"{}\" could be taken, where {taken} of {} are",
            SITES[site],
            seats.len(),
            key.name,
            key.max
        ));
    }
    for seat in seats {
        let released = superuser.value(&format!("SELECT session_limit.release_seat('{seat}')"));
        if released != "t" {
            let site = SITES[site];
            books.violation(format!(
                "a seat on the {site} could not be released: {seat}"
            ));
        }
    }
}

fn settles(mut settled: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if settled() || start.elapsed() > PATIENCE {
            return start.elapsed() <= PATIENCE;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
