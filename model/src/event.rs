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
    /// A waiting login's client closed the connection.
    Abandoned,
    /// A seat was taken at once.
    SeatTaken,
    /// A seat was taken after its caller had waited.
    SeatWaited,
    /// A call for a seat was refused.
    SeatRefused,
    /// A seat ended for a newer one.
    SeatReplaced,
    /// A seat ended that was not renewed in time.
    SeatExpired,
    /// An administrator ended a seat.
    SeatEvicted,
    /// etcd does not answer any more.
    Unreachable,
    /// etcd answers again.
    Reachable,
    /// Others had taken this server for gone, and it is one of them again.
    Rejoined,
    /// Another server has given no sign of life for too long.
    ServerGone,
}

impl EventKind {
    pub const ALL: [EventKind; 20] = [
        EventKind::Admitted,
        EventKind::Waited,
        EventKind::Refused,
        EventKind::Replaced,
        EventKind::WouldRefuse,
        EventKind::WouldReplace,
        EventKind::Swept,
        EventKind::Reclaimed,
        EventKind::ConcurrentAddresses,
        EventKind::Abandoned,
        EventKind::SeatTaken,
        EventKind::SeatWaited,
        EventKind::SeatRefused,
        EventKind::SeatReplaced,
        EventKind::SeatExpired,
        EventKind::SeatEvicted,
        EventKind::Unreachable,
        EventKind::Reachable,
        EventKind::Rejoined,
        EventKind::ServerGone,
    ];

    fn bit(self) -> u32 {
        1 << self as u16
    }

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
            EventKind::Abandoned => "abandoned",
            EventKind::SeatTaken => "seat_taken",
            EventKind::SeatWaited => "seat_waited",
            EventKind::SeatRefused => "seat_refused",
            EventKind::SeatReplaced => "seat_replaced",
            EventKind::SeatExpired => "seat_expired",
            EventKind::SeatEvicted => "seat_evicted",
            EventKind::Unreachable => "unreachable",
            EventKind::Reachable => "reachable",
            EventKind::Rejoined => "rejoined",
            EventKind::ServerGone => "server_gone",
        }
    }

    /// Whether it happens without any limit being exceeded.
    pub fn is_usual(self) -> bool {
        use EventKind::{Admitted, ConcurrentAddresses, SeatExpired, SeatTaken};
        matches!(
            self,
            Admitted | ConcurrentAddresses | SeatTaken | SeatExpired
        )
    }
}

/// A set of events, as the setting `log_events` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventSet(u32);

impl EventSet {
    pub const NONE: EventSet = EventSet(0);

    /// Every event of a limit: none that can happen while everybody finds room.
    pub fn excess() -> EventSet {
        EventSet::of(EventKind::ALL.into_iter().filter(|kind| !kind.is_usual()))
    }

    fn of(kinds: impl IntoIterator<Item = EventKind>) -> EventSet {
        let bits = kinds.into_iter().map(EventKind::bit);
        EventSet(bits.fold(0, |all, bit| all | bit))
    }

    /// Reads a list of events, separated by commas; `none`, `excess` and `all` stand for several. Or says what is none.
    pub fn read(list: &str) -> Result<EventSet, String> {
        let mut set = EventSet::NONE;
        for word in list.split(',').map(str::trim) {
            let is_word = |kind: &EventKind| kind.word().eq_ignore_ascii_case(word);
            let named = match word.to_ascii_lowercase().as_str() {
                "none" => EventSet::NONE,
                "excess" => EventSet::excess(),
                "all" => EventSet::of(EventKind::ALL),
                _ => match EventKind::ALL.into_iter().find(is_word) {
                    Some(kind) => EventSet(kind.bit()),
                    None => return Err(format!("\"{word}\" is not an event")),
                },
            };
            set.0 |= named.0;
        }
        Ok(set)
    }

    pub fn has(self, kind: EventKind) -> bool {
        self.0 & kind.bit() != 0
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_a_list_of_events() {
        let words = |list: &str| {
            let set = EventSet::read(list).expect(list);
            let has = EventKind::ALL.into_iter().filter(|kind| set.has(*kind));
            has.map(EventKind::word).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(words("none"), "");
        assert_eq!(words("refused, Swept"), "refused swept");
        let excess = "waited refused replaced would_refuse would_replace swept reclaimed abandoned \
                      seat_waited seat_refused seat_replaced seat_evicted \
                      unreachable reachable rejoined server_gone";
        assert_eq!(words("EXCESS"), excess);
        let audited = excess.replace("abandoned", "concurrent_addresses abandoned");
        assert_eq!(words("concurrent_addresses,excess"), audited);
        assert_eq!(words("all").split(' ').count(), EventKind::ALL.len());
        for wrong in ["", "refuse", "refused,", "all none"] {
            assert!(EventSet::read(wrong).is_err(), "{wrong}");
        }
        let why = EventSet::read("refused, left_out");
        assert_eq!(why, Err(r#""left_out" is not an event"#.to_string()));
    }
}
