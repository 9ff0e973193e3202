//! What is known of a session.

use crate::limit::Source;
use std::net::IpAddr;

/// A backend's hold on its slot: process ID and role OID in one word, 0 when free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim(u64);

impl Claim {
    pub fn new(pid: u32, role: u32) -> Claim {
        Claim((u64::from(pid) << 32) | u64::from(role))
    }

    /// The word in the slot table; 0, a free slot, is no claim.
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

/// What is known of a session, or of a login that waits to become one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Session {
    pub role: u32,
    /// 0 for a walsender without a database.
    pub database: u32,
    /// None over a Unix-domain socket.
    pub address: Option<IpAddr>,
    /// When its process started: microseconds since 2000-01-01, as in a `timestamptz`.
    pub started: i64,
    pub walsender: bool,
    /// SessionFilter, never refused.
    pub exempt: bool,
    /// The order in which logins arrived: no clock's, which can be set back.
    pub arrival: u64,
}

/// What a session has in common with those that the same limits apply to.
pub type SessionKind = (u32, u32, Option<IpAddr>, bool);

impl Session {
    /// Role, database, address, walsender.
    pub fn kind(&self) -> SessionKind {
        (self.role, self.database, self.address, self.walsender)
    }
}

/// Why a session was told to end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EndReason {
    /// By a newer session of its role, from this address.
    Replaced(Option<IpAddr>),
    /// This limit was lowered, or set, when there were so many sessions.
    Swept {
        source: Source,
        in_use: u32,
        max: u32,
    },
}
