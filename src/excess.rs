//! What a login does that found no room: it waits, until it is woken to try again or its patience
//! is over; or it ends sessions, and waits until they are gone.
//!
//! A waiter is a backend in the middle of its start: it holds one of `max_connections`, so nobody
//! waits unless the reserved connections stay free; it holds no snapshot; and it must be done
//! before the server's own timeouts would end it with nothing but an EOF for its client.

use crate::limit::Limit;
use crate::{compat, error, login::Client, shmem, stats};
use pgrx::pg_sys;
use std::cell::{Cell, OnceCell};
use std::time::{Duration, Instant};

/// A refusal takes a moment too.
const BEFORE_TIMEOUT: Duration = Duration::from_millis(200);

/// How long it takes to replace a session that goes at once, with plenty to spare.
const FOR_REPLACING: Duration = Duration::from_secs(1);

/// The worker wakes waiters when it hears of a changed limit. It does not hear of all, nor of a dropped database, and
/// on a standby of none: they look.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A session that was told to end takes a moment, unless it is stopped, or in a system call that
/// nothing interrupts.
const FOR_PREDECESSORS: Duration = Duration::from_secs(5);

/// Whose slot a session had may have taken it before the session could wake its heir: it looks.
const LOOK_FOR_PREDECESSORS_EVERY: Duration = Duration::from_millis(10);

/// How long a login may wait, counted from its arrival.
pub struct Patience {
    /// Its number in the order of arrival.
    pub arrival: u64,
    arrived: Instant,
    /// When it first went to sleep.
    asleep: Cell<Option<Instant>>,
    /// For how long it slept, in all.
    slept: Cell<Duration>,
    /// Whether the connections were free that nobody is to take by waiting.
    room: OnceCell<bool>,
    cancelled: Cell<bool>,
}

impl Patience {
    pub fn begin() -> Patience {
        Patience {
            arrival: shmem::next_arrival(),
            arrived: Instant::now(),
            asleep: Cell::new(None),
            slept: Cell::new(Duration::ZERO),
            room: OnceCell::new(),
            cancelled: Cell::new(false),
        }
    }

    pub fn may_wait(&self, client: &Client, limits: &[Limit]) -> bool {
        // Asked once: a superuser who uses a reserved connection later sends nobody away.
        let has_room = || *self.room.get_or_init(|| has_room(client));
        self.has_time(limits) && has_room()
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

    /// Returns when there may be room, or when it is time to give up. Takes in what has changed
    /// meanwhile.
    pub fn sleep(&self, client: &Client, limits: &[Limit]) {
        self.asleep
            .set(self.asleep.get().or_else(|| Some(Instant::now())));
        self.look(client, self.left(limits).min(LOOK_EVERY));
    }

    /// Ends the sessions whose places the login is to have, and returns when they are gone; or one
    /// that stays, or none if it is too late for the login to tell any.
    pub fn replace(&self, client: &Client) -> Result<(), Option<u32>> {
        // Nobody's session ends for a client that is gone, or a login that was told to stop. A latch that
        // is set hides what the socket says: the second look sees it.
        self.look(client, Duration::ZERO);
        self.look(client, Duration::ZERO);
        if !self.has_time(&[]) {
            return Err(None);
        }
        let began = Instant::now();
        for pid in shmem::notify_predecessors() {
            compat::end_session(pid);
        }
        loop {
            let Some(pid) = shmem::remaining_predecessors().first().copied() else {
                return Ok(());
            };
            let left = FOR_PREDECESSORS.saturating_sub(began.elapsed());
            let left = before_timeouts().unwrap_or(left).min(left);
            if left.is_zero() || self.cancelled.get() {
                return Err(Some(pid));
            }
            self.look(client, left.min(LOOK_FOR_PREDECESSORS_EVERY));
        }
    }

    /// Waits until woken, but not for long, and heeds whatever has happened.
    fn look(&self, client: &Client, at_most: Duration) {
        let since = Instant::now();
        let wake = pg_sys::WL_LATCH_SET
            | pg_sys::WL_SOCKET_CLOSED
            | pg_sys::WL_TIMEOUT
            | pg_sys::WL_EXIT_ON_PM_DEATH;
        // SAFETY: a backend waits on its own latch and its client's socket; the catalogs' rows have
        // been copied, so that no snapshot is needed.
        let woken = unsafe {
            pg_sys::InvalidateCatalogSnapshot();
            let woken = pg_sys::WaitLatchOrSocket(
                pg_sys::MyLatch,
                wake as i32,
                client.socket,
                at_most.as_micros().div_ceil(1000) as i64,
                pg_sys::PG_WAIT_EXTENSION,
            );
            pg_sys::ResetLatch(pg_sys::MyLatch);
            woken as u32
        };
        self.slept.set(self.slept.get() + since.elapsed());
        if woken & pg_sys::WL_SOCKET_CLOSED != 0 {
            error::client_is_gone();
        }
        self.heed_signals();
    }

    fn heed_signals(&self) {
        // SAFETY: plain variables of this process, set by its signal handlers. The file is read as
        // in the server's main loop.
        unsafe {
            if pg_sys::ProcDiePending != 0 {
                error::terminated();
            }
            if pg_sys::QueryCancelPending != 0 {
                pg_sys::QueryCancelPending = 0;
                self.cancelled.set(true);
            }
            if pg_sys::ConfigReloadPending != 0 {
                pg_sys::ConfigReloadPending = 0;
                pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
            }
        }
        // Others wait for this backend to take part in barriers.
        pgrx::check_for_interrupts!();
    }
}

/// Whether connections are left for those for whom the server reserves them. Walsenders use other ones.
fn has_room(client: &Client) -> bool {
    client.walsender || compat::reserved_connections_are_free()
}

unsafe extern "C-unwind" {
    fn get_timeout_active(id: u32) -> bool;
    fn get_timeout_finish_time(id: u32) -> pg_sys::TimestampTz;
}

/// How long until the login must do something else than wait. Where it may end sessions, it is to have
/// time for that.
fn time_to_wait(limits: &[Limit]) -> Option<Duration> {
    let replaces = limits.iter().any(Limit::replaces);
    let left = before_timeouts()?;
    Some(left.saturating_sub(if replaces {
        FOR_REPLACING
    } else {
        Duration::ZERO
    }))
}

/// How long until the server ends the login, less the time that a refusal takes. A reload can change
/// it.
fn before_timeouts() -> Option<Duration> {
    // SAFETY: both only read variables of this process, and raise nothing.
    let finish =
        |id: &u32| unsafe { get_timeout_active(*id).then(|| get_timeout_finish_time(*id)) };
    let finish = compat::LOGIN_TIMEOUTS.iter().filter_map(finish).min()?;
    let left = finish - stats::now();
    let left = Duration::from_micros(u64::try_from(left).unwrap_or(0));
    Some(left.saturating_sub(BEFORE_TIMEOUT))
}
