//! What happened, in a record of one size.

use serde::{Serialize, Serializer};
use std::net::IpAddr;

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A login got in at once.
    Admitted,
    /// A login got in after it had waited.
    Waited,
    Refused,
    /// A login got in, and sessions were ended for it.
    Replaced,
    /// A login got in only because the limit is tried out.
    WouldRefuse,
    WouldReplace,
    /// The worker found more sessions than a limit allows, or ended one of them.
    Swept,
    /// The worker freed the place of a process that is gone.
    Reclaimed,
    /// A role got in from one address while it has a session from another.
    ConcurrentAddresses,
}

impl EventKind {
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

    /// Whether it can happen on a server where everybody finds room.
    pub fn is_usual(self) -> bool {
        matches!(self, EventKind::Admitted | EventKind::ConcurrentAddresses)
    }
}

impl Serialize for EventKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

/// A few bytes that need no memory elsewhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FixedText<const SIZE: usize> {
    length: u16,
    /// Zero after that.
    bytes: [u8; SIZE],
}

impl<const SIZE: usize> FixedText<SIZE> {
    pub const EMPTY: FixedText<SIZE> = FixedText {
        length: 0,
        bytes: [0; SIZE],
    };

    /// None if it is too long.
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

/// The name of a role or database, as the catalogs have it.
pub type Name = FixedText<64>;

/// An event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record {
    /// Microseconds since 2000-01-01, as in a `timestamptz`.
    pub time: i64,
    pub kind: EventKind,
    pub role: u32,
    /// Empty if nobody knew it.
    pub role_name: Name,
    /// Empty if there is none.
    pub database: Name,
    pub address: Option<IpAddr>,
    /// 0 if none.
    pub pid: u32,
    /// What else there is to say, as JSON in ASCII.
    pub detail: FixedText<848>,
}

const _: () = assert!(size_of::<Record>() <= 1024);

impl Record {
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
