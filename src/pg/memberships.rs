//! Who is a member of which role, in `pg_auth_members`.

use crate::pg::catalog::Role;
use crate::pg::compat;
use crate::pg::scan::{Catalog, form, opened, scan};
use crate::pg::{ffi, memory};
use pgrx::pg_sys::{self, FormData_pg_auth_members, SysCacheIdentifier};
use std::cell::OnceCell;
use std::collections::BTreeSet;

/// `src/include/catalog/pg_auth_members.h`
const AUTH_MEM_RELATION: pg_sys::Oid = pg_sys::Oid::from_u32(1261);

/// To read all of a catalog costs less than to seek some of its rows while it takes so few pages: 2 pages have room for
/// about 270 grants, or for 20 to 100 labels.
pub const FEW_PAGES: u32 = 2;

/// The grants with INHERIT or SET, as they were when first asked for: pairs of a role and its member, sorted.
#[derive(Default)]
pub struct Memberships(OnceCell<Vec<(u32, u32)>>);

impl Memberships {
    fn pairs(&self) -> &[(u32, u32)] {
        self.0.get_or_init(|| opened(AUTH_MEM_RELATION, read))
    }

    /// All grants, if that costs less than to seek some of them.
    fn cheap_pairs(&self) -> Option<&[(u32, u32)]> {
        if self.0.get().is_none() {
            opened(AUTH_MEM_RELATION, |grants| {
                if grants.pages() <= FEW_PAGES {
                    self.0.get_or_init(|| read(grants));
                }
            });
        }
        self.0.get().map(Vec::as_slice)
    }

    /// Every role that this one is a member of by grants with INHERIT or SET, directly or through others.
    pub fn groups_of(&self, role: u32) -> Vec<u32> {
        let mut found = match self.cheap_pairs() {
            Some(pairs) => reachable(role, |member| {
                let those = pairs.iter().filter(|(_, other)| *other == member);
                those.map(|(group, _)| *group).collect()
            }),
            None => reachable(role, |member| granted_to(member, compat::is_membership)),
        };
        found.swap_remove(0);
        found
    }

    /// Who is a member of this group, directly or through others.
    pub fn members_of(&self, group: u32) -> Vec<u32> {
        let pairs = self.pairs();
        let mut found = reachable(group, |role| seconds(pairs, role).collect());
        found.swap_remove(0);
        found
    }
}

/// Who can make others members: the grants with ADMIN, superusers left out, as they were when read.
pub struct Administrators {
    memberships: Memberships,
    /// Pairs of a role and who has ADMIN on it, sorted.
    grants: Vec<(u32, u32)>,
    /// Who can grant every role.
    of_all: Vec<u32>,
}

impl Administrators {
    pub fn read() -> Administrators {
        let roles = Role::all();
        let superusers = roles.iter().filter(|role| role.superuser);
        let superusers: BTreeSet<u32> = superusers.map(|role| role.oid).collect();
        // Only superusers grant a superuser's role, ADMIN or not.
        let is_of_others = |role: pg_sys::Oid| !superusers.contains(&role.to_u32());
        let mut grants = Vec::new();
        // SAFETY: the rows are of that catalog, and copied.
        scan(AUTH_MEM_RELATION, |row| unsafe {
            let grant = form::<FormData_pg_auth_members>(row.tuple);
            if grant.admin_option && is_of_others(grant.roleid) && is_of_others(grant.member) {
                memory::extend(
                    &mut grants,
                    [(grant.roleid.to_u32(), grant.member.to_u32())],
                );
            }
        });
        grants.sort_unstable();
        let grants_every_role = |role: &&Role| {
            compat::createrole_grants_every_role() && role.create_role && !role.superuser
        };
        let of_all = roles.iter().filter(grants_every_role);
        Administrators {
            memberships: Memberships::default(),
            grants,
            of_all: of_all.map(|role| role.oid).collect(),
        }
    }

    /// The roles that can make anyone a member of this group: those that can grant it, or a role that is a member of it.
    /// Who can act as one of these roles is not followed.
    pub fn of(&self, group: u32) -> BTreeSet<u32> {
        let mut found: BTreeSet<u32> = self.of_all.iter().copied().collect();
        let members = self.memberships.members_of(group);
        for role in members.into_iter().chain([group]) {
            found.extend(seconds(&self.grants, role));
        }
        found
    }
}

/// The role itself, and every role whose privileges it has in a database of this owner.
pub fn privileged_as(role: u32, owner: u32) -> Vec<u32> {
    reachable(role, |member| {
        let inherit = Role::by_oid(member).is_some_and(|member| member.inherit);
        let mut groups = granted_to(member, |grant| compat::gives_privileges(grant, inherit));
        if member == owner && compat::ownership_gives_privileges(inherit) {
            groups.push(pg_sys::ROLE_PG_DATABASE_OWNER);
        }
        groups
    })
}

/// The role, and all that `next` leads to from it, directly or through others.
fn reachable(role: u32, next: impl Fn(u32) -> Vec<u32>) -> Vec<u32> {
    let (mut found, mut known) = (vec![role], BTreeSet::from([role]));
    let mut position = 0;
    while let Some(&role) = found.get(position) {
        let new = next(role).into_iter().filter(|other| known.insert(*other));
        memory::extend(&mut found, new);
        position += 1;
    }
    found
}

/// Of sorted pairs, the second of each whose first is this role.
fn seconds(pairs: &[(u32, u32)], role: u32) -> impl Iterator<Item = u32> {
    let begin = pairs.partition_point(|(first, _)| *first < role);
    let those = pairs.iter().skip(begin);
    those
        .take_while(move |(first, _)| *first == role)
        .map(|(_, second)| *second)
}

/// The grants with INHERIT or SET: pairs of a role and its member, sorted.
fn read(grants: Catalog) -> Vec<(u32, u32)> {
    let mut pairs = Vec::new();
    // SAFETY: the rows are of that catalog, and copied.
    grants.scan(|row| unsafe {
        let grant = form::<FormData_pg_auth_members>(row.tuple);
        if compat::is_membership(grant) {
            memory::extend(&mut pairs, [(grant.roleid.to_u32(), grant.member.to_u32())]);
        }
    });
    pairs.sort_unstable();
    pairs
}

/// The roles that this one is directly a member of by such grants.
fn granted_to(member: u32, such: impl Fn(&FormData_pg_auth_members) -> bool) -> Vec<u32> {
    // SAFETY: in a transaction. The cache is of that catalog, its first key a member; the rows are
    // copied before the list is given back.
    unsafe {
        let cache = compat::cache_number(SysCacheIdentifier::AUTHMEMMEMROLE);
        let key = pg_sys::Oid::from(member).into();
        let none = pg_sys::Datum::null();
        let list = ffi::SearchSysCacheList(cache, 1, key, none, none);
        let rows = (*list).members.as_slice((*list).n_members as usize);
        let grants = rows
            .iter()
            .map(|row| form::<FormData_pg_auth_members>(&raw mut (**row).tuple));
        let groups = grants
            .filter(|grant| such(grant))
            .map(|grant| grant.roleid.to_u32());
        let groups = groups.collect();
        ffi::ReleaseCatCacheList(list);
        groups
    }
}
