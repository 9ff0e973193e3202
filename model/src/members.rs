//! Which sessions a limit counts, and who is in a group.

use crate::limit::{Scope, Who};
use crate::session::Session;

/// The members of some groups, as the catalogs had them before the lock was taken: for each group its members, sorted.
#[derive(Clone, Debug, Default)]
pub struct Members(Vec<(u32, Vec<u32>)>);

/// An input that the decision turned out to need and that the caller has not supplied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Missing {
    /// The members of the group with this OID.
    Members(u32),
    /// Whether the login may wait at all ([`crate::attempt::Rules::may_wait`]).
    Patience,
    /// Memory to count different roles or addresses in ([`crate::attempt::Rules::tally`]): some waiter's limit does.
    Tally,
}

impl Members {
    pub fn insert(&mut self, group: u32, mut members: Vec<u32>) {
        members.sort_unstable();
        self.0.push((group, members));
    }

    /// The members of the group, sorted; None if they are not known.
    pub fn of(&self, group: u32) -> Option<&[u32]> {
        let mut known = self.all().filter(|(known, _)| *known == group);
        known.next().map(|(_, members)| members)
    }

    /// Each known group with its members, sorted.
    pub fn all(&self) -> impl Iterator<Item = (u32, &[u32])> {
        self.0
            .iter()
            .map(|(group, members)| (*group, members.as_slice()))
    }
}

/// Says which sessions a limit counts: those in its scope, with or without walsenders.
#[derive(Clone, Copy)]
pub struct SessionFilter<'a> {
    pub scope: Scope,
    /// The members of the scope's group, sorted; empty if the scope has none.
    members: &'a [u32],
    /// Whether walsenders count.
    pub walsenders: bool,
    /// If given, only this role's sessions.
    pub own: Option<u32>,
}

impl<'a> SessionFilter<'a> {
    /// An error if the scope is of a group whose members are not in `members`.
    pub fn new(scope: Scope, walsenders: bool, members: &'a Members) -> Result<Self, Missing> {
        let members = match scope.who {
            Who::MembersOf(group) => members.of(group).ok_or(Missing::Members(group))?,
            Who::Anyone | Who::Role(_) => &[],
        };
        Ok(SessionFilter {
            scope,
            members,
            walsenders,
            own: None,
        })
    }

    /// The same, but only this role's sessions.
    pub fn of(self, role: u32) -> SessionFilter<'a> {
        SessionFilter {
            own: Some(role),
            ..self
        }
    }

    pub fn covers(self, session: &Session) -> bool {
        let of_role = match self.scope.who {
            Who::Anyone => true,
            Who::Role(role) => session.role == role,
            Who::MembersOf(_) => self.members.binary_search(&session.role).is_ok(),
        };
        let from_network = |address| {
            self.scope
                .network
                .is_none_or(|network| network.contains(address))
        };
        of_role
            && self.own.is_none_or(|own| session.role == own)
            && self
                .scope
                .database
                .is_none_or(|database| session.database == database)
            && session
                .address
                .map_or(self.scope.network.is_none(), from_network)
            && (self.walsenders || !session.walsender)
    }
}
