//! A session, its claim on a slot, and why it was told to end.

use crate::limit::{Source, Unit};
use std::net::IpAddr;

/// A session's hold on its slot: process ID and role OID in one word, so that it can be taken and freed atomically.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim(u64);

impl Claim {
    pub fn new(pid: u32, role: u32) -> Claim {
        Claim((u64::from(pid) << 32) | u64::from(role))
    }

    /// The claim that a word of the slot table holds; None if the word is 0, a free slot.
    pub(crate) fn of(word: u64) -> Option<Claim> {
        (word != 0).then_some(Claim(word))
    }

    pub(crate) fn word(self) -> u64 {
        self.0
    }

    pub fn pid(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub fn role(self) -> u32 {
        self.0 as u32
    }
}

/// A session, or a login that waits to become one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Session {
    pub role: u32,
    /// 0 for a walsender without a database.
    pub database: u32,
    /// None over a Unix-domain socket.
    pub address: Option<IpAddr>,
    /// When its process started, in microseconds since 2000-01-01, as in a `timestamptz`. It is only shown: the wall clock
    /// can be set.
    pub started: i64,
    pub walsender: bool,
    /// It is counted, but never refused or ended because of a limit.
    pub exempt: bool,
    /// When its login arrived, in ticks (see [`crate::atomics::arrive`]). No two have the same, so this is the order of
    /// arrival, too.
    pub arrival: u64,
}

/// Role, database, address, walsender: to sessions with the same four the same limits apply.
pub type SessionKind = (u32, u32, Option<IpAddr>, bool);

impl Session {
    pub fn kind(&self) -> SessionKind {
        (self.role, self.database, self.address, self.walsender)
    }
}

/// Why a session was told to end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EndReason {
    /// A newer session of its role, from this address, replaces it.
    Replaced(Option<IpAddr>),
    /// A limit, set there, was lowered or set to `max` while it counted `in_use` units of sessions.
    Swept {
        source: Source,
        unit: Unit,
        in_use: u32,
        max: u32,
    },
    /// Its role was dropped.
    RoleDropped,
}
