//! The hook: runs in a backend whose client has just been authenticated, before it is told so.
//!
//! Each way out is a decision:
//! - authentication failed, or `pg_upgrade` runs: not a login; the server goes on.
//! - the server is about to refuse (no such role or database, …): refused here with its words. To let the server do it
//!   would let in, uncounted, whoever becomes admissible between our look and its own.
//! - an exempt superuser: counted and admitted, whatever else is set.
//! - exempt by a label: counted and admitted.
//! - a label that cannot be read: whom it covers is refused, for it may have been meant to; in a dry run the label is
//!   passed over, and the log says so.
//! - the catalogs cannot be read: this login fails with the server's error; in a dry run it goes on without limits, and
//!   the log says so.
//! - there is no memory to spare: this login fails, with 53200; in a dry run as where catalogs cannot be read. An
//!   allocation that fails all the same ends the login, also in a dry run: what comes next in the server needs more.
//! - everyone else: `slot::decide`; over a limit: `wait`.
//! - could end other sessions, or is about to wait, but has not the privilege CONNECT: refused here with the server's
//!   words, so that it takes nobody's slot or place. Where the privileges cannot be read, it ends nobody's session. In
//!   a dry run nobody asks.
//! - an error of ours, or of the catalogs: this one login fails with it. What was claimed or queued is given up on exit.

mod wait;

use crate::error;
use crate::lookup::{self, Inputs};
use crate::pg::backend::{self, Local};
use crate::pg::catalog::{Database, Role};
use crate::pg::client::Client;
use crate::pg::compat;
use crate::pg::connect_privilege::may_connect;
use crate::pg::memberships::Memberships;
use crate::pg::memory;
use crate::record::decision::{Decision, Outcome};
use crate::record::{self, events};
use crate::settings::{self, Enforcement, Settings};
use crate::shmem;
use crate::slot::{self, InUse};
use model::account::Account;
use model::attempt::{Attempt, MayWait, Replacing, Rules};
use model::event::EventKind;
use model::label::LabelProblem;
use model::limit::Limit;
use model::limit_counters::WhyRefused;
use model::members::Members;
use model::servers::place::{AcrossRules, Wanted};
use model::session::Session;
use model::verdict::{Elsewhere, Verdict};
use pgrx::pg_sys::{self, libpq};
use pgrx::prelude::*;
use std::cell::Cell;
use std::ffi::CStr;
use wait::{ClientIsGone, NotReplaced, Wait};

type Hook = unsafe extern "C-unwind" fn(*mut libpq::be::Port, i32);

static PREVIOUS: Local<Cell<Option<Hook>>> = Local::new(Cell::new(None));

pub fn install_hook() {
    // SAFETY: the postmaster is loading the library. The hook is a plain variable, and the previous one is called.
    unsafe {
        PREVIOUS.set(libpq::ClientAuthentication_hook);
        libpq::ClientAuthentication_hook = Some(session_limit_client_authentication);
    }
}

/// Whether a library that is loaded after this one has a say about logins after ours: what it refuses may have cost
/// another session by then. Called when all libraries are loaded.
pub fn is_last() -> bool {
    // SAFETY: reads a variable of this process.
    let outermost = unsafe { libpq::ClientAuthentication_hook };
    outermost
        .is_none_or(|hook| std::ptr::fn_addr_eq(hook, session_limit_client_authentication as Hook))
}

#[pg_guard]
unsafe extern "C-unwind" fn session_limit_client_authentication(
    port: *mut libpq::be::Port,
    status: i32,
) {
    if let Some(previous) = PREVIOUS.get() {
        // SAFETY: the arguments are the server's own, and what the previous hook raises is passed on.
        unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| previous(port, status)) };
    }
    if status == pg_sys::STATUS_OK as i32 && !backend::is_upgrading() {
        // SAFETY: the server's own Port.
        admit(&unsafe { Client::of(port) });
    }
}

/// What the catalogs and the settings said of a login.
struct Asked {
    role: Role,
    database: Option<Database>,
    session: Session,
    limits: Vec<Limit>,
    /// Those of them that count across servers.
    wanted: Vec<Wanted>,
    /// Of the groups that the limits count.
    members: Members,
    /// What was passed over in labels.
    problems: Vec<LabelProblem>,
    /// The login ends nobody's session if it is not known whether the server will let it in.
    may_replace: bool,
    /// How many invalidations this process had received when it asked.
    invalidations: u64,
}

/// Returns when the client is in; else this is the end of the process.
fn admit(client: &Client) {
    let wait = Wait::begin();
    let mut asked = Asked::of(client, wait.arrival);
    if !asked.problems.is_empty() {
        let log_problems = || asked.problems.iter().for_each(error::log_wrong_label);
        or_go_on(&settings::current(), log_problems);
    }
    loop {
        let (verdict, in_use) = decide(client, &wait, &asked);
        let decided = |outcome| {
            let decision = Decision {
                client,
                session: asked.session,
                limits: &asked.limits,
                in_use: &in_use,
                outcome,
                waited: wait.waited(),
                deciding: wait.deciding(),
            };
            or_go_on(&settings::current(), || record::decided(&decision));
        };
        let refuse = |excess, why, stays| {
            decided(Outcome::Refused(excess, why));
            if excess.elsewhere == Some(Elsewhere::Unreachable) {
                error::cannot_ask_etcd(&excess.limit);
            }
            let servers = excess.elsewhere.map(|_| shmem::known_servers());
            let hint = settings::refusal_hint();
            error::too_many(excess, wait.waited(), stays, servers.as_deref(), hint)
        };
        let abandon = || {
            // Others find room before this is written down.
            slot::give_up();
            decided(Outcome::Abandoned);
            error::client_is_gone()
        };
        match verdict {
            Verdict::Admitted(admission) => {
                decided(Outcome::Admitted(&admission));
                return let_in();
            }
            Verdict::Replacing(admission, ended, excess) => match wait.replace(client) {
                Ok(()) => {
                    decided(Outcome::Replaced(&admission, &ended, &excess));
                    return let_in();
                }
                Err(NotReplaced::Stays(pid)) => refuse(&excess, WhyRefused::NotReplaced, Some(pid)),
                Err(NotReplaced::TooLate) => refuse(&excess, WhyRefused::NotReplaced, None),
                Err(NotReplaced::ClientIsGone) => abandon(),
                Err(NotReplaced::Woke) => slot::give_up(),
            },
            Verdict::Refused(excess) => refuse(&excess, excess.why_refused(), None),
            Verdict::Waiting => {
                if let Err(ClientIsGone) = wait.sleep(client, &asked.limits) {
                    abandon();
                }
            }
        }
        if wait.take_reloaded() || !asked.is_current() {
            asked = Asked::of(client, wait.arrival);
        }
    }
}

fn decide(client: &Client, wait: &Wait, asked: &Asked) -> (Verdict, Vec<InUse>) {
    let limits = &asked.limits;
    let settings = settings::current();
    let rules = Rules {
        count_walsenders: !settings.exempt_replication,
        may_wait: None,
        tried: wait.tried(),
        max_waiters: settings.max_waiters,
        tally: false,
        replacing: Replacing {
            allowed: asked.may_replace
                && limits.iter().any(Limit::replaces)
                && wait.may_replace(client),
            now: backend::tick(),
            min_age: settings.replace_min_age,
            idle_after: settings.replace_idle_after,
        },
        audit: settings::log_events().has(EventKind::ConcurrentAddresses),
    };
    let may_wait = || asked.may_wait(wait, settings.max_waiters);
    let inputs = Inputs {
        // Whoever has waited needs to know, and cheaply does.
        may_wait: wait.waited().map(|_| may_wait()),
        ..Inputs::new(asked.members.clone())
    };
    let begin_to_wait = || {
        asked.refuse_without_connect();
        may_wait()
    };
    let memberships = Memberships::default();
    let members_of = |group| or_go_on(&settings, || memberships.members_of(group));
    lookup::retry_with(inputs, members_of, begin_to_wait, |inputs| {
        let attempt = Attempt {
            slot: slot::my_slot(),
            pid: std::process::id(),
            session: asked.session,
            limits,
            members: &inputs.members,
            is_idle: &compat::is_idle,
            across: AcrossRules {
                boottime: &backend::boottime,
                now: backend::tick(),
                timeout: settings::servers::etcd_timeout(),
                on_unreachable: settings::servers::on_unreachable(),
            },
            rules: Rules {
                may_wait: inputs.may_wait,
                tally: inputs.tally,
                ..rules
            },
        };
        slot::decide(&attempt, &asked.wanted)
    })
}

/// A session can be told to end from its claim on, and its client is to hear why. While a client is being
/// authenticated the server tells it nothing; it takes this one for authenticated a moment later.
fn let_in() {
    // SAFETY: plain variables of this process.
    unsafe {
        pg_sys::ClientAuthInProgress = false;
        if pg_sys::ProcDiePending != 0 {
            error::terminated();
        }
    }
}

impl Asked {
    /// Reads what the catalogs say of the client's role and database now, and which limits apply. Raises what the
    /// server would.
    fn of(client: &Client, arrival: u64) -> Asked {
        let settings = settings::current();
        if settings.enforcement != Enforcement::Log {
            memory::require(0);
        }
        // Roles may have been made or changed while the client was authenticated.
        let invalidations = backend::receive_invalidations();
        let role = role(client);
        let database = client.database.map(database);
        let (applicable, members, problems) = look_up(client, &role, database.as_ref(), &settings);
        if let Some((object, why)) = lookup::invalid_label(&applicable, &problems, &settings) {
            record::unreadable_label(object);
            error::invalid_label(object, why);
        }
        let wanted = lookup::across_servers(&applicable.limits);
        let replaces = |limit: &Limit| limit.enforced && limit.replaces();
        let asked_for = database.as_ref();
        let asked_for = asked_for.filter(|_| applicable.limits.iter().any(replaces));
        let may_connect = asked_for.map(|database| (database, may_connect(&role, database)));
        if let Some((database, Some(false))) = may_connect {
            error::may_not_connect(&database.name);
        }
        Asked {
            session: Session {
                role: role.oid,
                database: database.as_ref().map_or(0, |database| database.oid),
                address: client.address,
                started: backend::started(),
                walsender: client.walsender,
                exempt: applicable.exempt,
                arrival,
            },
            wanted,
            limits: applicable.limits,
            members,
            problems,
            may_replace: !matches!(may_connect, Some((_, None))),
            invalidations,
            role,
            database,
        }
    }

    /// A login that the server will not let into the database takes no place from those who wait for it.
    fn refuse_without_connect(&self) {
        if let Some(database) = &self.database
            && may_connect(&self.role, database) == Some(false)
        {
            error::may_not_connect(&database.name);
        }
    }

    fn may_wait(&self, wait: &Wait, max_waiters: u32) -> MayWait {
        MayWait {
            connections: wait.connections(&self.limits, max_waiters),
            account: self.account(),
        }
    }

    /// On whose account the login waits, if it does.
    fn account(&self) -> Option<Account> {
        let owner = || {
            let owner = self.database.as_ref()?.owner;
            (!Role::is_superuser(owner)).then_some(owner)
        };
        let Settings {
            max_wait,
            max_label_wait,
            ..
        } = settings::current();
        let waits = (max_wait, max_label_wait);
        Account::of(&self.limits, self.role.oid, waits, owner)
    }

    /// Whether no catalog has changed since.
    fn is_current(&self) -> bool {
        backend::receive_invalidations() == self.invalidations
    }
}

fn look_up(
    client: &Client,
    role: &Role,
    database: Option<&Database>,
    settings: &Settings,
) -> lookup::Answer {
    let Client {
        address, walsender, ..
    } = *client;
    or_go_on(settings, || {
        lookup::ask(role, database, address, walsender, settings)
    })
}

/// In a dry run no error ends the login: it goes on with nothing, and the log says so.
fn or_go_on<T: Default>(settings: &Settings, act: impl FnOnce() -> T) -> T {
    if settings.enforcement != Enforcement::Log {
        return act();
    }
    let act = || {
        memory::require(0);
        act()
    };
    backend::try_to_read(act).unwrap_or_else(|why| {
        events::cannot_read_limits(&why);
        T::default()
    })
}

fn role(client: &Client) -> Role {
    let role = Role::by_name(client.role).unwrap_or_else(|| error::no_such_role(client.role));
    if !role.can_login {
        error::role_may_not_log_in(client.role);
    }
    if client.walsender && !role.superuser && !role.replication {
        error::role_may_not_replicate();
    }
    role
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
