//! What becomes of a login, and what is to be said of it.

use crate::limit::Limit;
use crate::session::Session;
use std::net::IpAddr;

/// What becomes of a login.
#[derive(Debug, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "under the lock nothing is allocated"
)]
pub enum Verdict {
    /// It is a session.
    Admitted(Admission),
    /// It has the places of these sessions as soon as they are gone; without them it is over a limit.
    Replacing(Admission, Ended, Excess),
    /// It is in the queue: try again when woken.
    Waiting,
    /// It is not, and no longer waits.
    Refused(Excess),
}

/// What is to be said of a login that got in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Admission {
    /// It is over this limit, which is only tried out, and these sessions would end for it: none if it
    /// would be refused.
    pub over: Option<(Excess, Ended)>,
    /// The sessions of its role in its database, itself among them.
    pub sessions: u32,
    /// A session of its role from another address, if that was asked for.
    pub elsewhere: Option<ShownSession>,
}

/// The sessions that end for a login.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ended {
    pub number: u32,
    /// The process IDs of the first few.
    pub shown: [Option<u32>; 5],
}

/// The limit that has no room, and what fills it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Excess {
    pub limit: Limit,
    /// Sessions that the limit counts.
    pub in_use: u32,
    /// Earlier logins that wait for the room there is. Not 0 only if there is some.
    pub ahead: u32,
    /// How many of the sessions are of the login's own role.
    pub own: u32,
    /// The first few of these.
    pub shown: [Option<ShownSession>; 5],
}

/// A session as a login of the same role is told of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShownSession {
    pub pid: u32,
    pub address: Option<IpAddr>,
    pub started: i64,
}

impl ShownSession {
    pub fn new(pid: u32, session: &Session) -> ShownSession {
        ShownSession {
            pid,
            address: session.address,
            started: session.started,
        }
    }
}

/// One of a login's limits, as it stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    pub limit: Limit,
    /// Sessions that the limit counts.
    pub in_use: u32,
    /// Whether it would let the login in now.
    pub fits: bool,
}
