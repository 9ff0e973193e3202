//! The outcome of a decision: what becomes of a login, and what messages and events say of it.

use crate::account::Account;
use crate::limit::Limit;
use crate::limit_counters::WhyRefused;
use crate::servers::place::Holder;
use crate::session::Session;
use std::net::IpAddr;

/// What becomes of a login.
#[derive(Debug, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "it is made under the lock, where nothing is allocated"
)]
pub enum Verdict {
    /// It is a session.
    Admitted(Admission),
    /// It has claimed its slot, and becomes a session when these victims are gone. The excess is that without them.
    Replacing(Admission, Ended, Excess),
    /// It is in the queue, and tries again when it is woken.
    Waiting,
    /// It is refused, and not in the queue.
    Refused(Excess),
}

/// What is said of a login that gets in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Admission {
    /// The limit that it exceeds and that is only tried out, and the sessions that would end for it: none if it would be
    /// refused.
    pub over: Option<(Excess, Ended)>,
    /// How many sessions its role has in its database, this one included.
    pub sessions: u32,
    /// A session of its role from another address, if there is one and [`crate::attempt::Rules::audit`] asks for it.
    pub elsewhere: Option<ShownSession>,
}

/// The sessions that end for a login, its victims.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ended {
    pub number: u32,
    /// The process IDs of the first five, so that a message stays short.
    pub shown: [Option<u32>; 5],
}

/// A limit without room for the login, and what fills it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Excess {
    pub limit: Limit,
    /// How many sessions the limit counts.
    pub in_use: u32,
    /// How many earlier waiters the free room is reserved for; 0 when there is no free room.
    pub ahead: u32,
    /// How many of the sessions are of the login's own role.
    pub own: u32,
    /// The first five of these, so that a message stays short.
    pub shown: [Option<ShownSession>; 5],
    /// Why the login was refused without waiting, though the limit lets it wait.
    pub not_waited: Option<NotWaited>,
    /// What is known of other servers, if the limit counts across servers.
    pub elsewhere: Option<Elsewhere>,
}

/// What a limit across servers counts elsewhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Elsewhere {
    /// So many places were held on other servers at the last look at etcd, and most of them there.
    Held(u32, Holder),
    /// etcd did not answer, and without it the limit lets nobody in.
    Unreachable,
    /// etcd did not answer, and without it the limit is that of this server.
    Unknown,
}

impl Excess {
    /// Why the login was refused, where no session was to end for it.
    pub fn why_refused(&self) -> WhyRefused {
        match self.not_waited {
            None | Some(NotWaited::WalSender) => WhyRefused::NoRoom,
            Some(_) => WhyRefused::NoPlaceToWait,
        }
    }
}

/// Why a login may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotWaited {
    /// So many logins wait already, as many as may.
    QueueFull(u32),
    /// So many logins of its role wait already, as many as may.
    RoleQueueFull(u32),
    /// As many logins wait on this account as may.
    AccountFull(Account),
    /// The queue has no room for the limits that it would wait for.
    NoRoomForLimits,
    /// WAL senders do not wait: they would take places of `max_wal_senders`.
    WalSender,
    /// Only connections that the server reserves would be left, or its own timeout comes too soon.
    NothingToSpare,
}

impl NotWaited {
    pub fn word(self) -> &'static str {
        match self {
            NotWaited::QueueFull(_) => "queue_full",
            NotWaited::RoleQueueFull(_) => "role_queue_full",
            NotWaited::AccountFull(Account::OF_ROLES) => "role_labels_queue_full",
            NotWaited::AccountFull(_) => "owner_queue_full",
            NotWaited::NoRoomForLimits => "no_room_for_limits",
            NotWaited::WalSender => "wal_sender",
            NotWaited::NothingToSpare => "nothing_to_spare",
        }
    }
}

/// What a login may learn of another session of its role.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShownSession {
    pub pid: u32,
    pub address: Option<IpAddr>,
    /// Microseconds since 2000-01-01.
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

/// How one of a login's limits stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    pub limit: Limit,
    /// How many sessions the limit counts.
    pub in_use: u32,
    /// Whether it has room for the login now that is not reserved for waiters.
    pub fits: bool,
}
