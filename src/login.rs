//! The hook: runs in a backend whose client has just been authenticated, before it is told so. The
//! only file that touches `Port`.
//!
//! Each way out is a decision:
//! - authentication failed, or `pg_upgrade` runs: not a login; the server goes on.
//! - the server is about to refuse (no such role or database, …): refused here with its words. To
//!   let the server do it would let in, uncounted, whoever becomes admissible between our look and
//!   its own.
//! - an exempt superuser: counted and admitted, whatever else is set.
//! - exempt by a label: counted and admitted.
//! - a label that cannot be read: whom it covers is refused, for it may have been meant to; in a dry
//!   run the label is passed over, and the log says so.
//! - everyone else: `decide`; over a limit: `excess`.
//! - could end other sessions, but has not the privilege CONNECT: refused here with the server's words,
//!   so that it takes nobody's place.
//! - an error of ours, or of the catalogs: this one login fails with it. What was claimed or queued
//!   is given up on exit.

use crate::catalog::{self, Database, Role};
use crate::compat::Port;
use crate::decide::{Admission, Attempt, Ended, Excess, Rules, Verdict};
use crate::excess::Patience;
use crate::facts::{self, Known, Trouble};
use crate::limit::{Limit, Object};
use crate::replace::Replacing;
use crate::server::{self, guarded};
use crate::sessions::{Members, Session};
use crate::settings::{self, LogEvents, Settings};
use crate::{error, events, shmem, stats};
use pgrx::pg_sys::{self, libpq};
use pgrx::prelude::*;
use std::cell::Cell;
use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

type Hook = unsafe extern "C-unwind" fn(*mut libpq::be::Port, i32);

struct Previous(Cell<Option<Hook>>);

// SAFETY: PostgreSQL runs this library in single-threaded processes.
unsafe impl Sync for Previous {}

static PREVIOUS: Previous = Previous(Cell::new(None));

pub fn install_hook() {
    // SAFETY: the postmaster is loading the library; the hook is a plain variable, and the previous
    // one is called.
    unsafe {
        PREVIOUS.0.set(libpq::ClientAuthentication_hook);
        libpq::ClientAuthentication_hook = Some(session_limit_client_authentication);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn session_limit_client_authentication(
    port: *mut libpq::be::Port,
    status: i32,
) {
    if let Some(previous) = PREVIOUS.0.get() {
        // SAFETY: the arguments are the server's own, and what the previous hook raises is passed
        // on.
        unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| previous(port, status)) };
    }
    // SAFETY: a plain variable of this process.
    let upgrading = unsafe { pg_sys::IsBinaryUpgrade };
    if status == pg_sys::STATUS_OK as i32 && !upgrading {
        // SAFETY: the server passes its own Port, which lives as long as the process.
        admit(&Client::of(unsafe { &*port.cast() }));
    }
}

/// Whoever asks to be let in.
pub struct Client<'a> {
    pub role: &'a CStr,
    /// None for a walsender without a database.
    pub database: Option<&'a CStr>,
    /// None over a Unix-domain socket.
    pub address: Option<IpAddr>,
    pub socket: pg_sys::pgsocket,
    pub walsender: bool,
}

impl<'a> Client<'a> {
    fn of(port: &'a Port) -> Client<'a> {
        // SAFETY: the server has filled these in, and ends its strings with a zero byte.
        unsafe {
            let walsender = pg_sys::am_walsender;
            let without_database = walsender && !pg_sys::am_db_walsender;
            Client {
                role: CStr::from_ptr(port.user_name),
                database: (!without_database).then(|| CStr::from_ptr(port.database_name)),
                address: address(&port.raddr),
                socket: port.sock,
                walsender,
            }
        }
    }
}

/// The role whose session this process is.
pub fn own_role() -> &'static CStr {
    // SAFETY: the server's own Port, which lives as long as the process; the server has filled it in
    // for whoever got as far as the hook.
    unsafe { CStr::from_ptr((*pg_sys::MyProcPort.cast::<Port>()).user_name) }
}

/// The database that its client asked for; empty for a walsender without one.
pub fn own_database() -> &'static CStr {
    // SAFETY: as above.
    unsafe {
        let name = (*pg_sys::MyProcPort.cast::<Port>()).database_name;
        if name.is_null() {
            c""
        } else {
            CStr::from_ptr(name)
        }
    }
}

/// As `catalog::name_of`, for who is logging in: its role has been looked up by name, and not by its OID.
pub fn name_of(object: Object) -> Vec<u8> {
    let own = Role::by_name(own_role()).filter(|role| object == Object::Role(role.oid));
    own.map_or_else(|| catalog::name_of(object), |role| role.name)
}

/// The client's address as the socket has it: `remote_host` is text that reverse DNS chooses under
/// `log_hostname`.
fn address(peer: &pg_sys::SockAddr) -> Option<IpAddr> {
    let family = libc::c_int::from(peer.addr.ss_family);
    let storage = &raw const peer.addr;
    // SAFETY: the kernel stored the struct that the family says, and a sockaddr_storage is aligned
    // for each of them.
    unsafe {
        match family {
            libc::AF_INET => {
                let ip = (*storage.cast::<libc::sockaddr_in>()).sin_addr.s_addr;
                Some(Ipv4Addr::from(u32::from_be(ip)).into())
            }
            libc::AF_INET6 => {
                let ip = (*storage.cast::<libc::sockaddr_in6>()).sin6_addr.s6_addr;
                // An IPv4 client of a socket for both is one all the same.
                Some(IpAddr::from(Ipv6Addr::from(ip)).to_canonical())
            }
            _ => None,
        }
    }
}

/// What is known of a login when it is decided.
struct Asked {
    session: Session,
    limits: Vec<Limit>,
    /// Of the groups that the limits count.
    members: Members,
    /// What was passed over in labels.
    troubles: Vec<Trouble>,
}

/// How a login ended.
pub struct Decision<'a> {
    pub client: &'a Client<'a>,
    pub session: Session,
    pub outcome: Outcome<'a>,
    /// None if it did not wait.
    pub waited: Option<Duration>,
    /// How long it took besides.
    pub deciding: Duration,
}

pub enum Outcome<'a> {
    Admitted(&'a Admission),
    /// These sessions have ended for it; else it would have been over that limit.
    Replaced(&'a Admission, &'a Ended, &'a Excess),
    Refused(&'a Excess),
}

/// Returns when the client is in; else this is the end of the process.
fn admit(client: &Client) {
    let patience = Patience::begin();
    loop {
        let settings = settings::current();
        let Asked {
            session,
            limits,
            members,
            troubles,
        } = ask(client, &settings, patience.arrival);
        // A waiter asks again and again.
        if patience.waited().is_none() {
            troubles.iter().for_each(events::trouble);
        }
        let rules = Rules {
            count_walsenders: !settings.exempt_replication,
            may_wait: None,
            tried: patience.tried(),
            max_waiters: settings.max_waiters,
            replacing: Replacing {
                allowed: limits.iter().any(Limit::replaces) && patience.may_replace(client),
                now: stats::now(),
                min_age: settings.replace_min_age,
                idle_after: settings.replace_idle_after,
            },
            audit: settings::log_events() == LogEvents::All,
        };
        let may_wait = || patience.may_wait(client, &limits);
        let known = Known {
            // Whoever has waited needs to know, and cheaply does.
            may_wait: patience.waited().map(|_| may_wait()),
            ..Known::new(members)
        };
        let verdict = facts::knowing(known, may_wait, |known| {
            shmem::decide(&Attempt {
                slot: shmem::my_slot(),
                pid: std::process::id(),
                session,
                limits: &limits,
                members: &known.members,
                idle: known.idle.as_ref(),
                rules: Rules {
                    may_wait: known.may_wait,
                    ..rules
                },
            })
        });
        match verdict {
            Verdict::Admitted(admission) => {
                let outcome = Outcome::Admitted(&admission);
                record(&Decision::new(client, session, outcome, &patience));
                return let_in();
            }
            Verdict::Replacing(admission, ended, excess) => {
                let replaced = patience.replace(client);
                let outcome = match replaced {
                    Ok(()) => Outcome::Replaced(&admission, &ended, &excess),
                    Err(_) => Outcome::Refused(&excess),
                };
                record(&Decision::new(client, session, outcome, &patience));
                match replaced {
                    Ok(()) => return let_in(),
                    Err(stays) => error::too_many(&excess, patience.waited(), stays),
                }
            }
            Verdict::Refused(excess) => {
                let outcome = Outcome::Refused(&excess);
                record(&Decision::new(client, session, outcome, &patience));
                error::too_many(&excess, patience.waited(), None)
            }
            Verdict::Waiting => patience.sleep(client, &limits),
        }
    }
}

/// Whoever is told to end meanwhile is told when there is nothing left to record.
fn record(decision: &Decision) {
    // SAFETY: a plain variable of this process, as HOLD_INTERRUPTS and RESUME_INTERRUPTS use it.
    unsafe { pg_sys::InterruptHoldoffCount += 1 };
    stats::decided(decision);
    events::decided(decision);
    // SAFETY: as above.
    unsafe { pg_sys::InterruptHoldoffCount -= 1 };
}

/// A session can be told to end from its claim on, and its client is to hear why. To one that is being
/// authenticated the server says nothing; it takes this one for authenticated a moment later.
fn let_in() {
    // SAFETY: plain variables of this process.
    unsafe {
        pg_sys::ClientAuthInProgress = false;
        if pg_sys::ProcDiePending != 0 {
            error::terminated();
        }
    }
}

impl<'a> Decision<'a> {
    fn new(
        client: &'a Client<'a>,
        session: Session,
        outcome: Outcome<'a>,
        patience: &Patience,
    ) -> Decision<'a> {
        Decision {
            client,
            session,
            outcome,
            waited: patience.waited(),
            deciding: patience.deciding(),
        }
    }
}

/// Reads what the catalogs say of the client's role and database now, and which limits apply.
/// Raises what the server would.
fn ask(client: &Client, settings: &Settings, arrival: u64) -> Asked {
    // Roles may have been made or changed while the client was authenticated.
    // SAFETY: in a transaction, in a backend.
    unsafe { guarded(|| server::AcceptInvalidationMessages()) };
    let role = Role::by_name(client.role).unwrap_or_else(|| error::no_such_role(client.role));
    if !role.can_login {
        error::role_may_not_log_in(client.role);
    }
    if client.walsender && !role.superuser && !role.replication {
        error::role_may_not_replicate();
    }
    let database = client.database.map(database);
    let (applicable, members, troubles) = facts::ask(
        &role,
        database.as_ref(),
        client.address,
        client.walsender,
        settings,
    );
    if let Some((object, why)) = facts::invalid_label(&applicable, &troubles, settings) {
        error::invalid_label(object, why);
    }
    if applicable.limits.iter().any(Limit::replaces)
        && let Some(database) = &database
        && !database.admits(&role)
    {
        error::may_not_connect(&database.name);
    }
    let session = Session {
        role: role.oid,
        database: database.map_or(0, |database| database.oid),
        address: client.address,
        // SAFETY: a plain variable of this process.
        started: unsafe { pg_sys::MyStartTimestamp },
        walsender: client.walsender,
        exempt: applicable.exempt,
        arrival,
    };
    Asked {
        session,
        members,
        limits: applicable.limits,
        troubles,
    }
}

fn database(name: &CStr) -> Database {
    let database = Database::by_name(name).unwrap_or_else(|| error::no_such_database(name));
    if database.invalid {
        error::database_is_invalid(name);
    }
    if !database.allows_connections {
        error::database_accepts_no_connections(name);
    }
    database
}
