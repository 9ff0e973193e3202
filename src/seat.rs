//! The seats that this session takes: how it waits for one, and what becomes of them when it ends.
//!
//! The undo comes before the do: the exit callback is registered before the first seat is taken, and a call that is
//! cancelled gives up what it has been given meanwhile. A seat ends after the session's last transaction has. A backend that
//! is killed restarts the server, which forgets all.

use crate::pg::backend::{self, Local, max_backends};
use crate::pg::{client, compat, ffi};
use crate::record;
use crate::shmem::{SeatTable, memory};
use model::seats::{Again, Answer, Found, Held, Holder, Key, Named, Now, Request, Taking};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// This session's number; 0 if it has never asked for a seat.
static SESSION: Local<Cell<u64>> = Local::new(Cell::new(0));
/// What giving up its seats needs when it ends: then there may be no memory.
static AT_EXIT: Local<Cell<Option<Found>>> = Local::new(Cell::new(None));

/// How a call for a seat ended.
pub enum Outcome {
    Taken,
    Refused {
        /// How many seats of the key are held.
        in_use: u32,
        /// The oldest of them.
        oldest: Vec<Held>,
        /// None if it did not wait.
        waited: Option<Duration>,
    },
    /// No seat of any key is left.
    Full,
}

/// This process, as the holder of a seat of this role.
pub fn holder(role: u32) -> Holder {
    Holder {
        role,
        pid: std::process::id(),
        slot: compat::my_slot() as u32,
        session: session(),
        address: client::own_connection().0,
    }
}

/// The number of this session; what it holds is given up when it ends.
fn session() -> u64 {
    if SESSION.get() == 0 {
        AT_EXIT.set(Some(Found::with_room(max_backends())));
        // SAFETY: the callback is a function of this library, which is never unloaded.
        unsafe { ffi::on_shmem_exit(Some(session_limit_leave_seats), pg_sys::Datum::null()) };
        SESSION.set(memory().seats.exclusively(|seats| seats.new_session()));
    }
    SESSION.get()
}

/// Whether this session took the seat.
pub fn is_own(seat: &Held) -> bool {
    seat.holder.session == SESSION.get()
}

/// Takes a seat, or waits for it.
pub fn take(request: &Request, max_wait: Duration) -> Outcome {
    let call = Call(request);
    let began = Instant::now();
    let mut asleep = None;
    let (taking, found) = loop {
        let left = max_wait.saturating_sub(began.elapsed());
        // However late it runs, whoever may wait does so once.
        let may_wait = !left.is_zero() || (asleep.is_none() && !max_wait.is_zero());
        let (taking, found) = step(|seats, now, found| seats.take(now, request, may_wait, found));
        let Taking::Waiting(alarm) = taking else {
            break (taking, found);
        };
        asleep.get_or_insert_with(Instant::now);
        let alarm = alarm.map(|alarm| alarm.saturating_sub(backend::tick()));
        sleep(alarm.map_or(left, |alarm| Duration::from_micros(alarm).min(left)));
    };
    let waited = asleep.map(|asleep| asleep.elapsed());
    record::seats::called(request, taking, waited);
    call.ends();
    match taking {
        Taking::Refused(in_use) => Outcome::Refused {
            in_use,
            oldest: found.oldest,
            waited,
        },
        Taking::Full | Taking::Waiting(_) => Outcome::Full,
        Taking::Taken | Taking::Replaced(_) => Outcome::Taken,
    }
}

/// A call for a seat, which is given up if it ends with an error.
struct Call<'a>(&'a Request);

impl Call<'_> {
    /// From now on it keeps what it has.
    fn ends(self) {
        std::mem::forget(self);
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut found = Found::with_room(max_backends());
        let now = now();
        memory()
            .seats
            .exclusively(|seats| seats.give_up(now, self.0, &mut found));
        wake(&found);
    }
}

/// Prolongs a lease. `ttl_us` None: by as much as before.
pub fn renew(seat: Named, ttl_us: Option<u64>) -> Answer {
    step(|seats, now, found| Ok(seats.renew(now, seat, ttl_us, found))).0
}

pub fn release(seat: Named) -> Answer {
    step(|seats, now, found| Ok(seats.release(now, seat, found))).0
}

/// Ends the seats of the key that are held now. Returns how many.
pub fn evict(key: &Key) -> u32 {
    let taken = memory().seats.shared(|seats| seats.taken());
    let mut all = 0;
    loop {
        match step(|seats, now, found| seats.evict(now, key, taken, found)).0 {
            0 => return all,
            some => all += some,
        }
    }
}

/// Ends the leases whose time is over.
pub fn expire() {
    step(|seats, now, found| seats.expire(now, found));
}

/// Every seat that is held, with its key. Of very many, not all at the same moment.
pub fn all() -> Vec<(Key, Held)> {
    let (mut all, mut batch) = (Vec::new(), Vec::with_capacity(BATCH));
    let mut read = 0;
    loop {
        let tick = backend::tick();
        let used = memory().seats.shared(|seats| {
            let held = seats.held(read..read + BATCH, tick);
            batch.extend(held.map(|(key, seat)| (*key, *seat)));
            seats.used()
        });
        crate::pg::memory::extend(&mut all, batch.drain(..));
        read += BATCH;
        if read >= used {
            return all;
        }
    }
}

/// So many places are read in one hold of the lock: 400 kB. A server has by default as many.
const BATCH: usize = 1000;

/// Takes one step under the lock, and sees to what it has found.
fn step<T>(
    mut step: impl FnMut(&mut SeatTable, Now, &mut Found) -> Result<T, Again>,
) -> (T, Found) {
    let mut found = Found::with_room(max_backends());
    // However often the step is taken: what is in time now is in time.
    let now = now();
    loop {
        let result = memory()
            .seats
            .exclusively(|seats| step(seats, now, &mut found));
        wake(&found);
        record::seats::ended(&found.ended);
        match result {
            Ok(result) => return (result, found),
            Err(Again) => found.clear(),
        }
        pgrx::check_for_interrupts!();
    }
}

fn now() -> Now {
    Now {
        tick: backend::tick(),
        time: backend::now(),
    }
}

fn wake(found: &Found) {
    found
        .wake
        .iter()
        .for_each(|slot| backend::wake(*slot as usize));
}

/// Returns when there may be a seat, or after so long. A client that is gone, a cancelled statement and a shutdown end it.
fn sleep(at_most: Duration) {
    let socket = client::own_connection().1;
    let closed = socket.map_or(0, |_| pg_sys::WL_SOCKET_CLOSED);
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH | closed;
    // SAFETY: a backend waits on its own latch and its client's socket. What it has read of the catalogs is not in use.
    unsafe {
        pg_sys::InvalidateCatalogSnapshot();
        let woken = pg_sys::WaitLatchOrSocket(
            pg_sys::MyLatch,
            events as i32,
            socket.unwrap_or(pg_sys::PGINVALID_SOCKET),
            at_most.as_micros().div_ceil(1000) as i64,
            memory().seat_wait_event,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
        if woken as u32 & pg_sys::WL_SOCKET_CLOSED != 0 {
            // As the server does where it finds the same.
            pg_sys::ClientConnectionLost = 1;
            pg_sys::InterruptPending = 1;
        }
    }
    pgrx::check_for_interrupts!();
}

/// Runs in a backend that exits, after its last transaction, while it may still take locks.
#[pg_guard]
unsafe extern "C-unwind" fn session_limit_leave_seats(_code: i32, _arg: pg_sys::Datum) {
    let slot = compat::my_slot() as u32;
    let Some(mut found) = AT_EXIT.take() else {
        return;
    };
    loop {
        let now = now();
        let done = memory()
            .seats
            .exclusively(|seats| seats.leave(now, slot, &mut found));
        wake(&found);
        found.clear();
        if done {
            return;
        }
    }
}
