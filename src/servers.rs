//! The background worker that asks etcd for the places of this server. It is there only if `session_limit.etcd_endpoints` is
//! set, and it alone opens the library that speaks with etcd.
//!
//! No login waits for the network: a login that lacks a place queues, wakes this worker, and sleeps. What is asked, and what
//! becomes of the answers, is in `model::servers`.

use crate::error;
use crate::pg::backend;
use crate::pg::etcd_library::{self, EtcdClient, EtcdLibrary, Failure};
use crate::record::events;
use crate::settings::servers::{self as settings, EtcdSettings};
use crate::shmem;
use model::servers::etcd_json::{decode, encode};
use model::servers::member::Member;
use model::servers::protocol::{Now, Protocol, Said};
use model::servers::transaction::Transaction;
use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, SignalWakeFlags,
};
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::json;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// A worker that was killed or failed is started again after this.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// After a failure etcd is asked again so much later.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// So often etcd is asked for its size, and the log says that it is too large. A reload has it asked at once.
const LOOK_AT_SIZE_EVERY: Duration = Duration::from_secs(60);
/// So often the log says, without a reload in between, that the library cannot be opened, or another reason why etcd cannot be
/// reached: each of its members may have one.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// From so many bytes on nothing is written: half of etcd's usual quota. Beyond that nobody can write, Patroni for one.
const LARGE: u64 = 1 << 30;
/// For so long the worker of a server that stops waits for the sessions to end.
const FOR_SESSIONS: Duration = Duration::from_secs(5);
/// How often it looks.
const LOOK_FOR_SESSIONS_EVERY: Duration = Duration::from_millis(10);
/// Where the id of this life is kept. Base backups leave this folder out.
const ID_FILE: &str = "pg_stat_tmp/session_limit.id";

pub fn register() {
    if !settings::are_shared() {
        return;
    }
    BackgroundWorkerBuilder::new("session_limit servers")
        .set_type("session_limit servers")
        .set_library("session_limit")
        .set_function("session_limit_servers_main")
        .enable_shmem_access(None)
        .set_start_time(BgWorkerStartTime::ConsistentState)
        .set_restart_time(Some(RESTART_AFTER))
        .load();
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn session_limit_servers_main(_arg: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    shmem::memory().servers_mailbox.become_reader();
    backend::reload_settings();
    if let Some((library, complained)) = library() {
        let mut worker = Worker::new(library, complained);
        while !backend::is_to_end() {
            let rest = worker.step();
            // The latch waits for whole milliseconds, rounded down.
            if !rest.is_zero()
                && !BackgroundWorker::wait_latch(Some(rest + Duration::from_millis(1)))
            {
                break;
            }
            if BackgroundWorker::sighup_received() {
                backend::reload_settings();
                worker.open();
            }
        }
        if backend::has_postmaster() {
            worker.leave();
        }
    }
    // SAFETY: ends the process as the server's own workers do; nothing is held.
    unsafe { pg_sys::proc_exit(1) };
}

/// The library that speaks with etcd. Where it cannot be opened, etcd cannot be reached until it is there, after a while or
/// a reload. With it comes what the log says. None: the process is to end.
fn library() -> Option<(EtcdLibrary, Option<Complaint>)> {
    let mut complained = None;
    loop {
        let why = match EtcdLibrary::open() {
            Ok(library) => return Some((library, complained)),
            Err(why) => why,
        };
        error::no_etcd_library(&why);
        complained = Some(Complaint { why, at: None });
        let table = &shmem::memory().table;
        table.exclusively(|table| table.places.reach.answers = false);
        wake_asking();
        let began = Instant::now();
        while began.elapsed() < COMPLAIN_EVERY {
            if !BackgroundWorker::wait_latch(Some(COMPLAIN_EVERY)) {
                return None;
            }
            if BackgroundWorker::sighup_received() {
                backend::reload_settings();
                break;
            }
        }
    }
}

struct Worker {
    library: EtcdLibrary,
    protocol: Protocol,
    /// None if a setting is wrong.
    client: Option<EtcdClient>,
    /// How many endpoints there are to try.
    endpoints: usize,
    /// Why etcd cannot be reached, as the log has it; None if it can be.
    complained: Option<Complaint>,
    /// The last of so many failures in a row.
    failed: Option<(Instant, usize)>,
    /// When etcd was asked for its size, and whether it was too large.
    size: Option<(Instant, bool)>,
    /// The id that is in the file.
    kept: Option<String>,
}

struct Complaint {
    why: String,
    /// None: settings were read anew since.
    at: Option<Instant>,
}

impl Worker {
    fn new(library: EtcdLibrary, complained: Option<Complaint>) -> Worker {
        let member = Member {
            name: name(),
            address: format!("{}:{}", backend::host_name(), backend::port()),
            since: backend::now(),
            timeout_ms: settings::server_timeout().as_millis() as u64,
            // Others see whether it changes, also from what a worker before this one wrote.
            asserted: backend::random_number(),
            ..Member::default()
        };
        let prefix = settings::etcd().prefix;
        // Copied, so that nothing is allocated under the lock.
        let mut copy = shmem::snapshot();
        let protocol = Protocol::new(&prefix, member, former_id(), &copy.table());
        let mut worker = Worker {
            library,
            protocol,
            client: None,
            endpoints: 0,
            complained,
            failed: None,
            size: None,
            kept: None,
        };
        worker.open();
        worker
    }

    /// Opens the client anew. Files may have changed, too.
    fn open(&mut self) {
        let settings = settings::etcd();
        self.client = None;
        self.endpoints = settings.endpoints().count();
        self.size = None;
        let complaints = self.complained.iter_mut();
        complaints.for_each(|complaint| complaint.at = None);
        let client = configuration(&settings).and_then(|it| self.library.client(&it));
        match client {
            Ok(client) => self.client = Some(client),
            Err(why) => {
                error::bad_etcd_setting(&why);
                self.has_complained(why);
            }
        }
    }

    /// Asks etcd one thing, if something is due. Returns for how long nothing is, if nothing happens.
    fn step(&mut self) -> Duration {
        if let Some((failed, _)) = self.failed.filter(|_| self.has_tried_all()) {
            let left = TRY_AGAIN_AFTER.saturating_sub(failed.elapsed());
            if !left.is_zero() {
                return left;
            }
        }
        if self.is_large() {
            let table = &shmem::memory().table;
            let is_new = table.exclusively(|table| {
                let answered = table.places.reach.answers;
                self.protocol.fail(table, true);
                answered
            });
            // Who waits for room on this server wakes this worker, and must not be woken by it each time.
            if is_new {
                wake_asking();
            }
            return LOOK_AT_SIZE_EVERY;
        }
        let now = now();
        let greeting = self.protocol.greet(now, backend::random_number);
        let transaction = greeting.or_else(|| {
            let arrivals = shmem::latest_arrival();
            let table = &shmem::memory().table;
            table.exclusively(|table| self.protocol.plan(table, now, arrivals));
            self.protocol.ask(now).or_else(|| self.protocol.tidy(now))
        });
        if let Some(transaction) = transaction {
            self.ask(&transaction);
            self.say();
            return Duration::ZERO;
        }
        self.say();
        self.protocol.rest(now)
    }

    fn ask(&mut self, transaction: &Transaction) {
        let answer = match &mut self.client {
            None => Err(None),
            Some(client) => client
                .call("/v3/kv/txn", &encode(transaction))
                .map_err(Some),
        };
        let answer = answer.and_then(|body| {
            let answer = decode(&body);
            let read = answer.and_then(|answer| self.protocol.read(&answer, now()));
            let endpoint = String::new();
            read.map_err(|why| Some(Failure { endpoint, why }))
        });
        let table = &shmem::memory().table;
        match answer {
            Ok(()) => {
                table.exclusively(|table| self.protocol.settle(table, now()));
                self.failed = None;
                if self.complained.take().is_some() {
                    events::reachable();
                }
            }
            Err(failure) => {
                let failures = self.failed.map_or(0, |(_, failures)| failures);
                self.failed = Some((Instant::now(), failures + 1));
                // Each call goes to the next endpoint.
                let unreachable = self.has_tried_all();
                table.exclusively(|table| self.protocol.fail(table, unreachable));
                if let Some(failure) = failure.filter(|_| unreachable) {
                    self.complain(failure);
                }
            }
        }
        wake_asking();
    }

    fn has_tried_all(&self) -> bool {
        self.failed
            .is_some_and(|(_, failures)| failures >= self.endpoints)
    }

    /// Says why etcd cannot be reached, and again after a reload, or after a while if there is another reason.
    fn complain(&mut self, Failure { endpoint, why }: Failure) {
        let is_said = self.complained.as_ref().is_some_and(|complaint| {
            let recently = |at: Instant| complaint.why == why || at.elapsed() < COMPLAIN_EVERY;
            complaint.at.is_some_and(recently)
        });
        // Who stops the server has not waited for the last answer.
        if !is_said && !backend::is_to_end() {
            events::unreachable(&endpoint, &why);
            self.has_complained(why);
        }
    }

    fn has_complained(&mut self, why: String) {
        let at = Some(Instant::now());
        self.complained = Some(Complaint { why, at });
    }

    /// Whether etcd is too large to be written to. It is asked once in a while.
    fn is_large(&mut self) -> bool {
        // While it does not answer, nobody waits for this answer besides.
        if self.failed.is_some() {
            return false;
        }
        let known = self.size;
        let known = known.filter(|(asked, _)| asked.elapsed() < LOOK_AT_SIZE_EVERY);
        if let Some((_, large)) = known {
            return large;
        }
        let answer = self
            .client
            .as_mut()
            .map(|client| client.call("/v3/maintenance/status", "{}"));
        let bytes = answer.and_then(Result::ok).and_then(|body| size(&body));
        let large = bytes.is_some_and(|bytes| bytes >= LARGE);
        if let Some(bytes) = bytes.filter(|_| large) {
            error::etcd_is_large(bytes);
            self.has_complained(String::new());
        }
        self.size = Some((Instant::now(), large));
        large
    }

    /// The server stops. If its sessions end soon, others learn that its places are free. It goes on until then: perhaps only
    /// this worker was told to end.
    fn leave(&mut self) {
        let began = Instant::now();
        let table = &shmem::memory().table;
        while !table.exclusively(|table| self.protocol.leave(table)) {
            if began.elapsed() >= FOR_SESSIONS {
                return;
            }
            etcd_library::allow_last_call();
            let rest = self.step();
            std::thread::sleep(rest.min(LOOK_FOR_SESSIONS_EVERY));
        }
        if let (Some(farewell), Some(client), None) =
            (self.protocol.farewell(), &mut self.client, self.failed)
        {
            // If it is not heard, others find out.
            etcd_library::allow_last_call();
            let _ = client.call("/v3/kv/txn", &encode(&farewell));
        }
    }

    fn say(&mut self) {
        for (name, timeout) in self.protocol.new_timeouts() {
            error::server_timeouts_differ(&name, timeout);
        }
        if self.protocol.id() != self.kept.as_deref() {
            self.kept = self.protocol.id().map(str::to_string);
            if let Some(id) = &self.kept {
                keep_id(id);
            }
        }
        for said in self.protocol.take_said() {
            match said {
                Said::Rejoined(places) => events::rejoined(places),
                Said::Gone(name) => events::server_gone(name),
            }
        }
    }
}

/// Wakes the waiters that have asked for places.
fn wake_asking() {
    let mut asking = Vec::with_capacity(backend::max_backends());
    let table = &shmem::memory().table;
    table.shared(|table| asking.extend(table.asking()));
    asking.into_iter().for_each(backend::wake);
}

fn now() -> Now {
    Now {
        tick: backend::tick(),
        boottime: backend::boottime(),
    }
}

/// What the library is opened with. The error says which setting is wrong, and how.
fn configuration(settings: &EtcdSettings) -> Result<String, String> {
    let password = match settings.password_file.as_str() {
        "" => String::new(),
        file => {
            // What is no file, such as a pipe, might never end.
            let text = fs::metadata(file).and_then(|about| match about.is_file() {
                true => fs::read_to_string(file),
                false => Err(io::Error::other("it is no regular file")),
            });
            let text = text
                .map_err(|why| format!("password_file: could not read file \"{file}\": {why}"))?;
            let password = text.trim_end_matches(['\r', '\n']);
            if password.is_empty() {
                return Err(format!("password_file: file \"{file}\" is empty"));
            }
            password.to_string()
        }
    };
    Ok(json!({
        "endpoints": settings.endpoints().collect::<Vec<_>>(),
        "ca_file": settings.ca_file,
        "cert_file": settings.cert_file,
        "key_file": settings.key_file,
        "user": settings.user,
        "password": password,
        "timeout": settings.timeout.as_millis() as u64,
    })
    .to_string())
}

/// How many bytes etcd has in use, as it says itself.
fn size(status: &str) -> Option<u64> {
    let status: serde_json::Value = serde_json::from_str(status).ok()?;
    let size = status.get("dbSizeInUse").or(status.get("dbSize"))?;
    size.as_str()?.parse().ok()
}

/// Keeps the id of this life, so that the next one, after a crash or restart, can end it. If that fails, others do, later.
fn keep_id(id: &str) {
    if let Some(whose) = whose() {
        let _ = fs::write(ID_FILE, format!("{id} {whose}"));
    }
}

/// The id of the life that this data directory's server had before.
fn former_id() -> Option<String> {
    let text = fs::read_to_string(ID_FILE).ok()?;
    let (id, kept) = text.split_once(' ')?;
    let is_id = id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_id && Some(kept) == whose().as_deref()).then(|| id.to_string())
}

/// The host, and the data directory's place there: those of a copy differ.
fn whose() -> Option<String> {
    let directory = fs::metadata(".").ok()?;
    let (device, inode) = (directory.dev(), directory.ino());
    Some(format!("{} {device} {inode}", backend::host_name()))
}

/// What other servers call this one, if no other has the same name.
fn name() -> String {
    match settings::server_name() {
        name if name.is_empty() => backend::cluster_name(),
        name => name,
    }
}
