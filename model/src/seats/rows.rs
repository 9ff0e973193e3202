//! What the arrays have in them.

use super::list::{Links, List, NONE};
use super::words::{Held, Holder, Key, Request};

/// A place for one seat.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub(super) held: Held,
    /// The number of its key.
    pub(super) key: u32,
    /// Number of all seats that were taken before.
    pub(super) order: u64,
    /// In the list of its key's seats, the oldest first; or of free places.
    pub(super) of_key: Links,
    /// In the list of its session's seats, unless it is a lease.
    pub(super) of_session: Links,
}

impl Place {
    pub const FREE: Place = Place {
        held: Held {
            id: [0; 16],
            holder: Holder {
                role: 0,
                pid: 0,
                slot: NONE,
                session: 0,
                address: None,
            },
            max: 0,
            taken: 0,
            lease: None,
        },
        key: NONE,
        order: 0,
        of_key: Links::NONE,
        of_session: Links::NONE,
    };
}

/// A key that has seats, or the place for one.
#[derive(Clone, Copy, Debug)]
pub struct KeyInUse {
    pub(super) key: Key,
    /// How many of its seats are held.
    pub(super) held: u32,
    pub(super) seats: List,
    pub(super) waiters: List,
    /// In the list of free places.
    pub(super) links: Links,
}

impl KeyInUse {
    pub const FREE: KeyInUse = KeyInUse {
        key: Key::NONE,
        held: 0,
        seats: List::EMPTY,
        waiters: List::EMPTY,
        links: Links::NONE,
    };
}

/// What a backend has to do with seats.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// Its own seats, but for leases.
    pub(super) seats: List,
    /// What it has asked for, until it has learnt what became of that.
    pub(super) request: Option<Request>,
    /// The number of the key that it waits for; NONE if it does not wait.
    pub(super) key: u32,
    /// In the list of those who wait for the key.
    pub(super) links: Links,
}

impl Backend {
    pub const NONE: Backend = Backend {
        seats: List::EMPTY,
        request: None,
        key: NONE,
        links: Links::NONE,
    };
}
