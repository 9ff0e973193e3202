//! What a seat is, who holds it, and for whom it is asked.

use std::net::IpAddr;

/// A seat's name, which is the right to renew and to release it: the bytes of a UUID that nobody can guess.
pub type Id = [u8; 16];

/// The longest text of a key, in bytes.
pub const MAX_KEY: usize = 255;

const OID: usize = size_of::<u32>();

/// What seats are counted for: a text, in one database. As bytes, since the server's hash table compares these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Key([u8; OID + 1 + MAX_KEY]);

impl Key {
    pub const NONE: Key = Key([0; OID + 1 + MAX_KEY]);

    /// None if the text is empty or too long.
    pub fn new(database: u32, text: &[u8]) -> Option<Key> {
        let length = u8::try_from(text.len()).ok().filter(|length| *length > 0)?;
        let mut key = Key::NONE;
        let (start, rest) = key.0.split_at_mut_checked(OID)?;
        start.copy_from_slice(&database.to_ne_bytes());
        let (place, bytes) = rest.split_first_mut()?;
        *place = length;
        bytes.get_mut(..text.len())?.copy_from_slice(text);
        Some(key)
    }

    pub fn database(&self) -> u32 {
        let start = self.0.first_chunk();
        start.map_or(0, |start| u32::from_ne_bytes(*start))
    }

    pub fn text(&self) -> &[u8] {
        let rest = self.0.get(OID..).and_then(<[u8]>::split_first);
        let text = rest.and_then(|(length, bytes)| bytes.get(..*length as usize));
        text.unwrap_or_default()
    }
}

/// Who takes a seat.
#[derive(Clone, Copy, Debug)]
pub struct Holder {
    pub role: u32,
    pub pid: u32,
    /// The number of the backend's PGPROC.
    pub slot: u32,
    /// A number that no other session has, before or after.
    pub session: u64,
    /// None over a Unix-domain socket.
    pub address: Option<IpAddr>,
}

/// A moment, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The tick, which orders.
    pub tick: u64,
    /// Microseconds since 2000-01-01, as in a `timestamptz`, which is shown.
    pub time: i64,
}

/// A call that asks for a seat.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub key: Key,
    /// The name of the seat, if it gets one.
    pub id: Id,
    pub holder: Holder,
    /// At most so many seats of the key, its own among them.
    pub max: u32,
    /// A lease for so many microseconds; None: it ends with the session.
    pub ttl_us: Option<u64>,
    /// Whether the oldest seats of its own role end for it, if it has waited in vain.
    pub replaces: bool,
}

/// The lease of a seat.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// For how long it was last renewed, in microseconds.
    pub ttl_us: u64,
    /// The tick at which it ends.
    pub ends: u64,
}

impl Lease {
    pub fn from(now: Now, ttl_us: u64) -> Lease {
        let ends = now.tick.saturating_add(ttl_us);
        Lease { ttl_us, ends }
    }
}

/// What is known of a seat that is held.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub id: Id,
    pub holder: Holder,
    pub max: u32,
    /// When it was taken, as in a `timestamptz`.
    pub taken: i64,
    /// None: it ends with the session.
    pub lease: Option<Lease>,
}

impl Held {
    /// Whether its lease, if it has one, has not ended by this tick.
    pub fn is_held_at(&self, tick: u64) -> bool {
        self.lease.is_none_or(|lease| lease.ends > tick)
    }
}

/// Why a seat ended, though its holder did not release it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Expired,
    Replaced,
    Evicted,
}

/// A seat that has ended so.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    pub why: Why,
    pub key: Key,
    pub seat: Held,
}
