//! Events, as records of one size, so that they can be kept in shared memory.

use serde::{Serialize, Serializer};
use std::net::IpAddr;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A login got in at once.
    Admitted,
    /// A login got in after it had waited.
    Waited,
    /// A login was refused.
    Refused,
    /// A login got in, and other sessions ended for it.
    Replaced,
    /// A login got in, but would be refused if a limit that is only tried out were enforced.
    WouldRefuse,
    /// A login got in, but other sessions would end for it if a limit that is only tried out were enforced.
    WouldReplace,
    /// The worker found more sessions than a limit allows, or ended one of them.
    Swept,
    /// The worker freed the slot of a process that is gone.
    Reclaimed,
    /// A login got in from one address while its role has a session from another.
    ConcurrentAddresses,
}

impl EventKind {
    /// Its name in the log and in the view.
    pub fn word(self) -> &'static str {
        match self {
            EventKind::Admitted => "admitted",
            EventKind::Waited => "waited",
            EventKind::Refused => "refused",
            EventKind::Replaced => "replaced",
            EventKind::WouldRefuse => "would_refuse",
            EventKind::WouldReplace => "would_replace",
            EventKind::Swept => "swept",
            EventKind::Reclaimed => "reclaimed",
            EventKind::ConcurrentAddresses => "concurrent_addresses",
        }
    }

    /// Whether it happens without any limit being exceeded.
    pub fn is_usual(self) -> bool {
        matches!(self, EventKind::Admitted | EventKind::ConcurrentAddresses)
    }
}

impl Serialize for EventKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

/// Up to `SIZE` bytes of text, stored in place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FixedText<const SIZE: usize> {
    length: u16,
    /// Zeros after `length`.
    bytes: [u8; SIZE],
}

impl<const SIZE: usize> FixedText<SIZE> {
    pub const EMPTY: FixedText<SIZE> = FixedText {
        length: 0,
        bytes: [0; SIZE],
    };

    /// None if the text is too long: it is never cut.
    pub fn new(text: &[u8]) -> Option<FixedText<SIZE>> {
        let mut bytes = [0; SIZE];
        bytes.get_mut(..text.len())?.copy_from_slice(text);
        let length = u16::try_from(text.len()).ok()?;
        Some(FixedText { length, bytes })
    }

    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length as usize).unwrap_or_default()
    }
}

/// The name of a role or database, as the catalogs have it: PostgreSQL's NAMEDATALEN is 64 bytes.
pub type Name = FixedText<64>;

/// One event, as the ring keeps it and the view shows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record {
    /// Microseconds since 2000-01-01, as in a `timestamptz`.
    pub time: i64,
    pub kind: EventKind,
    pub role: u32,
    /// Empty if it is not known.
    pub role_name: Name,
    /// The database's name; empty if there is none.
    pub database: Name,
    /// None over a Unix-domain socket, or if there is no client.
    pub address: Option<IpAddr>,
    /// The process ID; 0 if there is none.
    pub pid: u32,
    /// What the event adds, as JSON in ASCII. Its size fills the record up to 1,024 bytes.
    pub detail: FixedText<848>,
}

// `max_events` records are in shared memory: the size of one is what a DBA reckons with.
const _: () = assert!(size_of::<Record>() <= 1024);

impl Record {
    /// Memory that no event is in yet.
    pub const EMPTY: Record = Record {
        time: 0,
        kind: EventKind::Admitted,
        role: 0,
        role_name: FixedText::EMPTY,
        database: FixedText::EMPTY,
        address: None,
        pid: 0,
        detail: FixedText::EMPTY,
    };
}
