//! On whose account a login waits. Whoever owns a database or administers a role makes logins wait by the limits and
//! labels set there, as many as they like: the bound is theirs, not a limit's.

use crate::limit::{Limit, Object, Source};
use std::num::NonZeroU32;
use std::time::Duration;

/// Those who share a part of the queue's places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account(NonZeroU32);

impl Account {
    /// Whoever administers roles, all together: the catalogs do not say who set a label. No role has this OID.
    pub const OF_ROLES: Account = Account(NonZeroU32::MIN);

    /// The owner of databases, by OID.
    pub fn of_owner(owner: u32) -> Option<Account> {
        NonZeroU32::new(owner).map(Account)
    }

    /// None if only superusers can have made the login wait, or it waits no longer than everyone does under a limit on
    /// a role. `usual` is how long that is, and `longest` what a label may ask for that no superuser sets. `owner` says
    /// whose the login's database is, unless a superuser's.
    pub fn of(
        limits: &[Limit],
        role: u32,
        (usual, longest): (Duration, Option<Duration>),
        owner: impl FnOnce() -> Option<u32>,
    ) -> Option<Account> {
        let mut enforced = limits.iter().filter(|limit| limit.enforced);
        let is_of_others = |wait: Duration| longest.is_none_or(|longest| wait <= longest);
        if enforced.clone().any(|limit| {
            limit.max_wait > usual && is_of_others(limit.max_wait) && follows_label_of(role, limit)
        }) {
            return Some(Account::OF_ROLES);
        }
        if !enforced.any(|limit| limit.source.database().is_some()) {
            return None;
        }
        owner().and_then(Account::of_owner)
    }
}

/// Whether the label on this role may say how long a login waits for the limit.
fn follows_label_of(role: u32, limit: &Limit) -> bool {
    match limit.source {
        Source::Label(object) | Source::ConnectionLimit(object) => object == Object::Role(role),
        Source::MaxSessionsPerRole => true,
        Source::ClusterLimits => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::tests::{at_most, in_database, of_role};

    const ALICE: u32 = 10;
    const TEAM: u32 = 20;
    const OWNER: u32 = 30;
    const APP: u32 = 5;

    #[test]
    fn a_login_waits_on_the_account_of_whoever_may_have_made_it_wait() {
        let (alice, team, app) = (
            Object::Role(ALICE),
            Object::Role(TEAM),
            Object::Database(APP),
        );
        let roles = Some(Account::OF_ROLES);
        let owner = Account::of_owner(OWNER);
        let (normal, longer, longest) = (1000, 1001, 5000);
        let table = [
            (Source::Label(alice), normal, None),
            (Source::Label(alice), longer, roles),
            (Source::Label(alice), longest, roles),
            // Only a superuser can have set it.
            (Source::Label(alice), longest + 1, None),
            (Source::ConnectionLimit(alice), normal, None),
            (Source::ConnectionLimit(alice), longer, roles),
            (Source::MaxSessionsPerRole, normal, None),
            (Source::MaxSessionsPerRole, longer, roles),
            (Source::Label(team), longer, None),
            (Source::ClusterLimits, longer, None),
            (Source::Label(app), 0, owner),
            (Source::ConnectionLimit(app), longer, owner),
        ];
        let waits = (
            Duration::from_millis(normal),
            Some(Duration::from_millis(longest)),
        );
        let account = |limits: &[Limit]| Account::of(limits, ALICE, waits, || Some(OWNER));
        for (source, max_wait, expected) in table {
            let limit = Limit {
                source,
                max_wait: Duration::from_millis(max_wait),
                ..at_most(1, of_role(ALICE))
            };
            assert_eq!(account(&[limit]), expected, "{source:?} {max_wait}");
            let tried_out = Limit {
                enforced: false,
                ..limit
            };
            assert_eq!(account(&[tried_out]), None, "{source:?} tried out");
        }
        let on_app = Limit {
            source: Source::Label(app),
            ..at_most(1, in_database(APP))
        };
        let patient = Limit {
            source: Source::Label(alice),
            max_wait: Duration::from_millis(longer),
            ..at_most(1, of_role(ALICE))
        };
        assert_eq!(account(&[on_app, patient]), roles);
        let of_superuser = Account::of(&[on_app], ALICE, (Duration::ZERO, None), || None);
        assert_eq!(of_superuser, None);
    }
}
