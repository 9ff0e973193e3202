//! Whose sessions a limit counts.

use crate::limit::{Scope, Who};
use crate::session::Session;

/// The members of some groups, as the catalogs had them before the lock was taken.
#[derive(Clone, Debug, Default)]
pub struct Members(Vec<(u32, Vec<u32>)>);

/// What nobody has said, and must be known to decide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Missing {
    /// Who the members of the group with this OID are.
    Members(u32),
    /// Which sessions are idle.
    Idle,
    /// Whether the login may wait at all.
    Patience,
}

impl Members {
    pub fn insert(&mut self, group: u32, mut members: Vec<u32>) {
        members.sort_unstable();
        self.0.push((group, members));
    }

    pub fn extend(&mut self, others: Members) {
        self.0.extend(others.0);
    }

    pub fn of(&self, group: u32) -> Option<&[u32]> {
        let mut known = self.all().filter(|(known, _)| *known == group);
        known.next().map(|(_, members)| members)
    }

    /// The groups, each with its members, sorted.
    pub fn all(&self) -> impl Iterator<Item = (u32, &[u32])> {
        self.0
            .iter()
            .map(|(group, members)| (*group, members.as_slice()))
    }
}

/// The sessions that a limit counts: those in its scope, walsenders among them or not.
#[derive(Clone, Copy)]
pub struct SessionFilter<'a> {
    pub scope: Scope,
    /// Sorted.
    members: &'a [u32],
    pub walsenders: bool,
    /// Only this role's.
    pub own: Option<u32>,
}

impl<'a> SessionFilter<'a> {
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

    /// Of these, those of a role.
    pub fn of(self, role: u32) -> SessionFilter<'a> {
        SessionFilter {
            own: Some(role),
            ..self
        }
    }

    pub fn covers(self, session: &Session) -> bool {
        let theirs = match self.scope.who {
            Who::Anyone => true,
            Who::Role(role) => session.role == role,
            Who::MembersOf(_) => self.members.binary_search(&session.role).is_ok(),
        };
        let from = |address| {
            self.scope
                .network
                .is_none_or(|network| network.contains(address))
        };
        theirs
            && self.own.is_none_or(|own| session.role == own)
            && self
                .scope
                .database
                .is_none_or(|database| session.database == database)
            && session.address.map_or(self.scope.network.is_none(), from)
            && (self.walsenders || !session.walsender)
    }
}
