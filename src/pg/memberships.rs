//! Who is a member of which role, in `pg_auth_members`.

use crate::pg::catalog::Role;
use crate::pg::compat::{self, FormData_pg_auth_members};
use crate::pg::scan::{Catalog, form, opened};
use crate::pg::{ffi, memory};
use pgrx::pg_sys::{self, SysCacheIdentifier};
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
            None => reachable(role, |member| {
                granted_to(member, FormData_pg_auth_members::is_membership)
            }),
        };
        found.swap_remove(0);
        found
    }

    /// Who is a member of this group, directly or through others.
    pub fn members_of(&self, group: u32) -> Vec<u32> {
        let pairs = self.pairs();
        let mut found = reachable(group, |role| {
            let first = pairs.partition_point(|(group, _)| *group < role);
            let direct = pairs
                .iter()
                .skip(first)
                .take_while(|(group, _)| *group == role);
            direct.map(|(_, member)| *member).collect()
        });
        found.swap_remove(0);
        found
    }
}

/// The role itself, and every role whose privileges it has in a database of this owner.
pub fn privileged_as(role: u32, owner: u32) -> Vec<u32> {
    reachable(role, |member| {
        let inherit = Role::by_oid(member).is_some_and(|member| member.inherit);
        let mut groups = granted_to(member, |grant| grant.gives_privileges(inherit));
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

/// The grants with INHERIT or SET: pairs of a role and its member, sorted.
fn read(grants: Catalog) -> Vec<(u32, u32)> {
    let mut pairs = Vec::new();
    // SAFETY: the rows are of that catalog, and copied.
    grants.scan(|row| unsafe {
        let grant = form::<FormData_pg_auth_members>(row.tuple);
        if grant.is_membership() {
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
        let cache = SysCacheIdentifier::AUTHMEMMEMROLE as i32;
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
