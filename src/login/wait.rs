//! What a login does that found no room: it waits, until it is woken to try again or its time is over; or it ends
//! sessions, and waits until they are gone.
//!
//! A waiter is a backend in the middle of its start. It holds one of `max_connections`, so nobody waits unless the
//! reserved connections stay free. It holds no snapshot. It must be done before the server's own timeouts would end it
//! with nothing but an EOF for its client.

use crate::pg::backend;
use crate::pg::client::Client;
use crate::pg::compat;
use crate::settings::servers::etcd_timeout;
use crate::{error, shmem, slot};
use model::limit::Limit;
use pgrx::pg_sys;
use std::cell::{Cell, OnceCell};
use std::time::{Duration, Instant};

/// A refusal is sent so long before the server's own timeout would end the login: on a busy machine a backend may not
/// run for that long.
const BEFORE_TIMEOUT: Duration = Duration::from_millis(200);

/// A login that may replace stops waiting so long before that: its victims are to be gone by then. An idle session is
/// gone in 3 ms.
const FOR_REPLACING: Duration = Duration::from_secs(1);

/// Some changes wake no waiter: GRANT, DROP DATABASE, and on a standby every change. So a waiter looks for itself.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A victim takes a moment to end, unless it is stopped, or in a system call that nothing interrupts: then it is not
/// waited for any longer.
const FOR_VICTIMS: Duration = Duration::from_secs(5);

/// A victim wakes its successor as it exits, unless another backend has got its slot by then. So the successor looks
/// for itself.
const LOOK_FOR_VICTIMS_EVERY: Duration = Duration::from_millis(10);

/// One login's waiting, counted from its arrival.
pub struct Wait {
    /// Its number in the order of arrival.
    pub arrival: u64,
    arrived: Instant,
    /// When it first went to sleep.
    asleep: Cell<Option<Instant>>,
    /// For how long it slept, in all.
    slept: Cell<Duration>,
    /// How many connections there were to wait in when that was first asked.
    room: OnceCell<u32>,
    cancelled: Cell<bool>,
    /// The settings were read anew, and nobody has taken notice.
    reloaded: Cell<bool>,
}

/// The client has closed the connection.
pub struct ClientIsGone;

/// Why no sessions were replaced.
pub enum NotReplaced {
    ClientIsGone,
    /// The login has no time left to tell them to end.
    TooLate,
    /// A session that was to end because it was idle has begun a transaction. None was told to end: decide anew.
    Woke,
    /// The session of this process was told to end, and has not ended.
    Stays(u32),
}

impl From<ClientIsGone> for NotReplaced {
    fn from(_: ClientIsGone) -> NotReplaced {
        NotReplaced::ClientIsGone
    }
}

impl Wait {
    pub fn begin() -> Wait {
        // The server started it just now: nobody has set the clock since.
        backend::login_timeout();
        Wait {
            arrival: shmem::next_arrival(),
            arrived: Instant::now(),
            asleep: Cell::new(None),
            slept: Cell::new(Duration::ZERO),
            room: OnceCell::new(),
            cancelled: Cell::new(false),
            reloaded: Cell::new(false),
        }
    }

    /// How many connections there are to wait in, at most so many, this login's among them; 0: it may not wait.
    pub fn connections(&self, limits: &[Limit], at_most: u32) -> u32 {
        if !self.has_time(limits) {
            return 0;
        }
        // Asked once: a superuser who uses a reserved connection later sends nobody away.
        *self
            .room
            .get_or_init(|| compat::unreserved_connections(at_most))
    }

    fn has_time(&self, limits: &[Limit]) -> bool {
        !self.cancelled.get() && time_to_wait(limits).is_none_or(|left| !left.is_zero())
    }

    /// Whether the server would let the login in, if a session ended for it.
    pub fn may_replace(&self, client: &Client) -> bool {
        self.has_time(&[]) && has_room(client)
    }

    /// How long ago the login arrived.
    pub fn tried(&self) -> Duration {
        self.arrived.elapsed()
    }

    /// How long the login has waited; None if it has not.
    pub fn waited(&self) -> Option<Duration> {
        self.asleep.get().map(|asleep| asleep.elapsed())
    }

    /// How long it took to decide, and not to wait.
    pub fn deciding(&self) -> Duration {
        self.tried().saturating_sub(self.slept.get())
    }

    /// Whether the settings were read anew since the last call.
    pub fn take_reloaded(&self) -> bool {
        self.reloaded.take()
    }

    /// How long until one of the limits, or the server, lets it wait no longer.
    fn left(&self, limits: &[Limit]) -> Duration {
        let tried = self.tried();
        let left = |limit: &Limit| {
            limit
                .max_wait
                .checked_sub(tried)
                .filter(|left| !left.is_zero())
        };
        let ends = limits.iter().filter_map(left).chain(time_to_wait(limits));
        ends.min().unwrap_or(LOOK_EVERY)
    }

    /// Returns when there may be room, or when it is time to give up. If it asks for places, it gives up
    /// `session_limit.etcd_timeout` after it has begun to, too.
    pub fn sleep(&self, client: &Client, limits: &[Limit]) -> Result<(), ClientIsGone> {
        if self.asleep.get().is_none() {
            self.asleep.set(Some(Instant::now()));
            // If the login is let in, the server sets the next one.
            compat::set_process_title(c"authentication waiting for room");
        }
        let asked = |since| Duration::from_micros(backend::tick().saturating_sub(since));
        let for_answer =
            slot::asks_since().map(|since| etcd_timeout().saturating_sub(asked(since)));
        let for_answer = for_answer.filter(|left| !left.is_zero());
        let left = self.left(limits).min(LOOK_EVERY);
        self.look(client, for_answer.map_or(left, |it| it.min(left)))
    }

    /// Ends the victims of this login, and returns when they are gone.
    pub fn replace(&self, client: &Client) -> Result<(), NotReplaced> {
        // Nobody's session ends for a client that is gone, or for a login that was told to stop. A latch that is set
        // hides what the socket says: the second look sees it.
        self.look(client, Duration::ZERO)?;
        self.look(client, Duration::ZERO)?;
        if !self.has_time(&[]) {
            return Err(NotReplaced::TooLate);
        }
        let began = Instant::now();
        // Nothing may come in between: at any moment an idle session can begin a transaction.
        for pid in slot::mark_victims().ok_or(NotReplaced::Woke)? {
            backend::end_session(pid);
        }
        loop {
            let Some(pid) = slot::remaining_victims().first().copied() else {
                return Ok(());
            };
            let left = FOR_VICTIMS.saturating_sub(began.elapsed());
            let left = before_timeouts().unwrap_or(left).min(left);
            if left.is_zero() || self.cancelled.get() {
                return Err(NotReplaced::Stays(pid));
            }
            self.look(client, left.min(LOOK_FOR_VICTIMS_EVERY))?;
        }
    }

    /// Waits until woken, but not for long, and heeds whatever has happened.
    fn look(&self, client: &Client, at_most: Duration) -> Result<(), ClientIsGone> {
        let since = Instant::now();
        let wake = pg_sys::WL_LATCH_SET
            | pg_sys::WL_SOCKET_CLOSED
            | pg_sys::WL_TIMEOUT
            | pg_sys::WL_EXIT_ON_PM_DEATH;
        // SAFETY: a backend waits on its own latch and its client's socket. Rows of the catalogs have been copied, so
        // no snapshot is needed.
        let woken = unsafe {
            pg_sys::InvalidateCatalogSnapshot();
            let woken = pg_sys::WaitLatchOrSocket(
                pg_sys::MyLatch,
                wake as i32,
                client.socket,
                at_most.as_micros().div_ceil(1000) as i64,
                shmem::memory().wait_event,
            );
            pg_sys::ResetLatch(pg_sys::MyLatch);
            woken as u32
        };
        self.slept.set(self.slept.get() + since.elapsed());
        if woken & pg_sys::WL_SOCKET_CLOSED != 0 {
            return Err(ClientIsGone);
        }
        self.heed_signals();
        Ok(())
    }

    fn heed_signals(&self) {
        // SAFETY: variables of this process, set by its signal handlers.
        unsafe {
            if pg_sys::ProcDiePending != 0 {
                error::terminated();
            }
            if pg_sys::QueryCancelPending != 0 {
                pg_sys::QueryCancelPending = 0;
                self.cancelled.set(true);
            }
            if pg_sys::ConfigReloadPending != 0 {
                backend::reload_settings();
                self.reloaded.set(true);
            }
        }
        // Others wait for this backend to take part in barriers.
        pgrx::check_for_interrupts!();
    }
}

/// Whether connections are left for those for whom the server reserves them. Walsenders use other ones.
fn has_room(client: &Client) -> bool {
    client.walsender || compat::unreserved_connections(1) > 0
}

/// How long until the login must do something else than wait. Where it may end sessions, it needs time for that.
fn time_to_wait(limits: &[Limit]) -> Option<Duration> {
    let replaces = limits.iter().any(Limit::replaces);
    let left = before_timeouts()?;
    Some(left.saturating_sub(if replaces {
        FOR_REPLACING
    } else {
        Duration::ZERO
    }))
}

/// How long until the server ends the login, less the time that a refusal takes. A reload can change it.
fn before_timeouts() -> Option<Duration> {
    let left = backend::login_timeout()?.saturating_sub(backend::tick());
    Some(Duration::from_micros(left).saturating_sub(BEFORE_TIMEOUT))
}
