//! What is read of roles, groups, databases and labels: in shared catalogs, which a login can read
//! before it has a database.
//!
//! Safe with cold caches, on the first login after a start: the syscaches AUTHNAME, AUTHOID,
//! AUTHMEMMEMROLE and DATABASEOID have nailed indexes, and `rows` needs no other.

use crate::compat::{self, FormData_pg_auth_members};
use crate::limit::Object;
use crate::rows::{
    Row, cached, form, key, on_first_page, opened, pages, plain, scan, seek, seek_as_of,
};
use crate::server;
use crate::sessions::Members;
use pgrx::pg_sys::{self, FormData_pg_authid, FormData_pg_database, SysCacheIdentifier};
use std::cell::OnceCell;
use std::ffi::CStr;
use std::num::NonZeroUsize;

/// A row of `pg_authid`.
pub struct Role {
    pub oid: u32,
    pub name: Vec<u8>,
    pub superuser: bool,
    pub can_login: bool,
    pub replication: bool,
    /// Its attribute INHERIT.
    pub inherit: bool,
    /// Negative: no limit.
    pub connection_limit: i32,
}

/// A row of `pg_database`.
pub struct Database {
    pub oid: u32,
    pub name: Vec<u8>,
    owner: u32,
    /// What is left when `DROP DATABASE` was interrupted.
    pub invalid: bool,
    pub allows_connections: bool,
    /// Negative: no limit.
    pub connection_limit: i32,
}

impl Role {
    pub fn by_name(name: &CStr) -> Option<Role> {
        // SAFETY: that cache is of that catalog, and by that key.
        unsafe {
            cached(
                SysCacheIdentifier::AUTHNAME,
                name.as_ptr().into(),
                Role::from,
            )
        }
    }

    pub fn by_oid(oid: u32) -> Option<Role> {
        // SAFETY: that cache is of that catalog, and by that key.
        unsafe {
            cached(
                SysCacheIdentifier::AUTHOID,
                pg_sys::Oid::from(oid).into(),
                Role::from,
            )
        }
    }

    /// What the command that runs has made of a role; nobody else sees that yet.
    pub fn altered(oid: u32) -> Option<Role> {
        let mut key = key(
            pg_sys::Anum_pg_authid_oid,
            pg_sys::F_OIDEQ,
            pg_sys::Oid::from(oid).into(),
        );
        let index = (pg_sys::Oid::from(pg_sys::AuthIdOidIndexId), &mut key);
        let mut found = None;
        let itself = &raw mut pg_sys::SnapshotSelfData;
        // SAFETY: the rows are of that catalog.
        let mut visit = |row: Row| found = Some(Role::from(unsafe { form(row.tuple) }));
        seek_as_of(itself, pg_sys::AuthIdRelationId, index, &mut visit);
        found
    }

    /// What is left of a role that was dropped while it has sessions.
    pub fn dropped(oid: u32) -> Role {
        Role {
            oid,
            name: Vec::new(),
            superuser: false,
            can_login: false,
            replication: false,
            inherit: false,
            connection_limit: -1,
        }
    }

    /// Every role.
    pub fn all() -> Vec<Role> {
        let mut roles = Vec::new();
        // SAFETY: the rows are of that catalog, and copied.
        scan(pg_sys::AuthIdRelationId, |row| unsafe {
            roles.push(Role::from(form(row.tuple)));
        });
        roles
    }

    /// Whether each of these roles may log in, if it is there.
    pub fn may_log_in(roles: &[u32]) -> Vec<(u32, bool)> {
        let mut found = Vec::new();
        // SAFETY: the rows are of that catalog.
        let of = |row: &Row| unsafe { form::<FormData_pg_authid>(row.tuple) };
        let is_one = |row: &Row| roles.contains(&of(row).oid.to_u32());
        on_first_page(pg_sys::AuthIdRelationId, &is_one, |row| {
            found.push((of(&row).oid.to_u32(), of(&row).rolcanlogin));
        });
        for role in roles {
            if !found.iter().any(|(known, _)| known == role) {
                found.extend(Role::by_oid(*role).map(|role| (role.oid, role.can_login)));
            }
        }
        found
    }

    /// Every role that it is a member of by grants with INHERIT or SET, directly or through others.
    pub fn groups(&self, memberships: &Memberships) -> Vec<u32> {
        let mut found = if memberships.are_cheap() {
            reachable(self.oid, |role| {
                let pairs = memberships.pairs().iter();
                let those = pairs.filter(|(_, member)| *member == role);
                those.map(|(group, _)| *group).collect()
            })
        } else {
            reachable(self.oid, |role| {
                granted_to(role, FormData_pg_auth_members::is_membership)
            })
        };
        found.swap_remove(0);
        found
    }

    /// Itself, and every role whose privileges it has in a database of this owner.
    fn privileged_as(&self, owner: u32) -> Vec<u32> {
        reachable(self.oid, |member| {
            let inherit = Role::by_oid(member).is_some_and(|member| member.inherit);
            let mut groups = granted_to(member, |grant| grant.gives_privileges(inherit));
            if member == owner && compat::ownership_gives_privileges(inherit) {
                groups.push(pg_sys::ROLE_PG_DATABASE_OWNER);
            }
            groups
        })
    }

    fn from(row: &FormData_pg_authid) -> Role {
        Role {
            oid: row.oid.to_u32(),
            name: name(&row.rolname),
            superuser: row.rolsuper,
            can_login: row.rolcanlogin,
            replication: row.rolreplication,
            inherit: row.rolinherit,
            connection_limit: row.rolconnlimit,
        }
    }
}

/// The role, and all that those lead to, directly or through others.
fn reachable(role: u32, groups_of: impl Fn(u32) -> Vec<u32>) -> Vec<u32> {
    let mut found = vec![role];
    let mut next = 0;
    while let Some(&member) = found.get(next) {
        for group in groups_of(member) {
            if !found.contains(&group) {
                found.push(group);
            }
        }
        next += 1;
    }
    found
}

/// The roles that this one is directly a member of by such grants.
fn granted_to(member: u32, such: impl Fn(&FormData_pg_auth_members) -> bool) -> Vec<u32> {
    // SAFETY: in a transaction. The cache is of that catalog, its first key a member; the rows are
    // copied before the list is given back.
    unsafe {
        let cache = SysCacheIdentifier::AUTHMEMMEMROLE as i32;
        let key = pg_sys::Oid::from(member).into();
        let none = pg_sys::Datum::null();
        let list = pg_sys::SearchSysCacheList(cache, 1, key, none, none);
        let rows = (*list).members.as_slice((*list).n_members as usize);
        let grants = rows
            .iter()
            .map(|row| form::<FormData_pg_auth_members>(&raw mut (**row).tuple));
        let groups = grants
            .filter(|grant| such(grant))
            .map(|grant| grant.roleid.to_u32());
        let groups = groups.collect();
        pg_sys::ReleaseCatCacheList(list);
        groups
    }
}

/// The grants with INHERIT or SET, as they were when first asked for: pairs of a role and its member.
#[derive(Default)]
pub struct Memberships(OnceCell<Vec<(u32, u32)>>);

impl Memberships {
    fn pairs(&self) -> &[(u32, u32)] {
        self.0.get_or_init(|| {
            let mut pairs = Vec::new();
            // SAFETY: the rows are of that catalog, and copied.
            scan(AUTH_MEM_RELATION, |row| unsafe {
                let grant = form::<FormData_pg_auth_members>(row.tuple);
                if grant.is_membership() {
                    pairs.push((grant.roleid.to_u32(), grant.member.to_u32()));
                }
            });
            pairs
        })
    }

    /// Whether it costs less to ask for all of them than to seek some.
    fn are_cheap(&self) -> bool {
        self.0.get().is_some()
            || opened(AUTH_MEM_RELATION, |grants| {
                let few = pages(grants) <= FEW_PAGES;
                // While the catalog is open: to open it once more costs little then.
                if few {
                    self.pairs();
                }
                few
            })
    }

    /// Who is a member of each of these groups, directly or through others.
    pub fn of(&self, groups: &[u32]) -> Members {
        let mut grants = self.pairs().to_vec();
        grants.sort_unstable();
        let mut members = Members::default();
        for group in groups {
            members.insert(*group, below(&grants, *group));
        }
        members
    }
}

/// Everyone whom `grants`, sorted pairs of a role and its member, lead to from this role.
fn below(grants: &[(u32, u32)], top: u32) -> Vec<u32> {
    let mut found = std::collections::BTreeSet::new();
    let mut next = vec![top];
    while let Some(role) = next.pop() {
        let first = grants.partition_point(|(group, _)| *group < role);
        let direct = grants
            .iter()
            .skip(first)
            .take_while(|(group, _)| *group == role);
        next.extend(direct.filter_map(|(_, member)| found.insert(*member).then_some(*member)));
    }
    found.into_iter().collect()
}

impl Database {
    pub fn by_name(name: &CStr) -> Option<Database> {
        let mut found = None;
        // SAFETY: the rows are of that catalog.
        let is_it = |row: &Row| unsafe {
            bytes(&form::<FormData_pg_database>(row.tuple).datname) == name.to_bytes()
        };
        // SAFETY: as above.
        on_first_page(pg_sys::DatabaseRelationId, &is_it, |row| unsafe {
            found = Some(Database::from(form(row.tuple)));
        });
        if found.is_none() {
            let mut key = key(
                pg_sys::Anum_pg_database_datname,
                pg_sys::F_NAMEEQ,
                name.as_ptr().into(),
            );
            let index = (pg_sys::Oid::from(pg_sys::DatabaseNameIndexId), &mut key);
            // SAFETY: as above.
            seek(pg_sys::DatabaseRelationId, index, |row| unsafe {
                found = Some(Database::from(form(row.tuple)));
            });
        }
        found
    }

    pub fn by_oid(oid: u32) -> Option<Database> {
        // SAFETY: that cache is of that catalog, and by that key.
        unsafe {
            cached(
                SysCacheIdentifier::DATABASEOID,
                pg_sys::Oid::from(oid).into(),
                Database::from,
            )
        }
    }

    /// Every database.
    pub fn all() -> Vec<Database> {
        let mut databases = Vec::new();
        // SAFETY: the rows are of that catalog, and copied.
        scan(pg_sys::DatabaseRelationId, |row| unsafe {
            databases.push(Database::from(form(row.tuple)));
        });
        databases
    }

    /// Whether the role has the privilege CONNECT. The server's own functions for that leave caches
    /// behind that are wrong once the login has its database.
    pub fn admits(&self, role: &Role) -> bool {
        if role.superuser {
            return true;
        }
        let mut key = key(
            pg_sys::Anum_pg_database_oid,
            pg_sys::F_OIDEQ,
            pg_sys::Oid::from(self.oid).into(),
        );
        let index = (pg_sys::Oid::from(pg_sys::DatabaseOidIndexId), &mut key);
        let mut grantees = Vec::new();
        // SAFETY: the rows are of that catalog, and that column is an array of aclitem, which has no
        // nulls, or null. The array's items are copied.
        seek(pg_sys::DatabaseRelationId, index, |row| unsafe {
            grantees = may_connect(row);
        });
        let mut roles = role.privileged_as(self.owner);
        roles.push(pg_sys::ACL_ID_PUBLIC);
        grantees.iter().any(|grantee| roles.contains(grantee))
    }

    fn from(row: &FormData_pg_database) -> Database {
        Database {
            oid: row.oid.to_u32(),
            name: name(&row.datname),
            owner: row.datdba.to_u32(),
            invalid: row.datconnlimit == pg_sys::DATCONNLIMIT_INVALID_DB,
            allows_connections: row.datallowconn,
            connection_limit: row.datconnlimit,
        }
    }
}

/// The roles that a row of `pg_database` says may connect.
///
/// # Safety
/// The row is of that catalog.
unsafe fn may_connect(row: Row) -> Vec<u32> {
    const COLUMN: NonZeroUsize =
        NonZeroUsize::new(pg_sys::Anum_pg_database_datacl as usize).unwrap();
    // SAFETY: as the caller says.
    let acl = unsafe { pgrx::htup::heap_getattr_raw(row.tuple, COLUMN, row.shape) };
    let Some(acl) = acl else {
        // The default.
        return vec![pg_sys::ACL_ID_PUBLIC];
    };
    // SAFETY: an ACL is a one-dimensional array of AclItem without nulls, and that is a plain struct. One
    // that is stored elsewhere cannot be read here: then nobody may.
    unsafe {
        let stored = acl.cast_mut_ptr::<pg_sys::varlena>();
        if pgrx::varatt_is_1b_e(stored) {
            return Vec::new();
        }
        let array = pg_sys::pg_detoast_datum(stored).cast::<pg_sys::ArrayType>();
        let length = *array.add(1).cast::<i32>() as usize;
        let first = array.byte_add(ARRAY_HEADER).cast::<pg_sys::AclItem>();
        let items = std::slice::from_raw_parts(first, length);
        let connect = items
            .iter()
            .filter(|item| item.ai_privs & pg_sys::AclMode::from(pg_sys::ACL_CONNECT) != 0);
        connect.map(|item| item.ai_grantee.to_u32()).collect()
    }
}

/// `ARR_OVERHEAD_NONULLS(1)` (`src/include/utils/array.h`).
const ARRAY_HEADER: usize = 24;

/// The name of a role or database; its OID if it was dropped.
pub fn name_of(object: Object) -> Vec<u8> {
    let (oid, name) = match object {
        Object::Role(oid) => (oid, Role::by_oid(oid).map(|role| role.name)),
        Object::Database(oid) => (oid, Database::by_oid(oid).map(|database| database.name)),
    };
    name.unwrap_or_else(|| oid.to_string().into_bytes())
}

fn name(name: &pg_sys::NameData) -> Vec<u8> {
    bytes(name).to_vec()
}

fn bytes(name: &pg_sys::NameData) -> &[u8] {
    // SAFETY: PostgreSQL ends its names with a zero byte.
    unsafe { CStr::from_ptr(name.data.as_ptr()) }.to_bytes()
}

/// The labels of this extension: pairs of what carries one and what it says.
pub fn labels() -> Vec<(Object, LabelText)> {
    let mut labels = Vec::new();
    scan(SHARED_SEC_LABEL_RELATION, |row| labels.extend(label(row)));
    labels
}

/// The label of one object.
pub fn label_of(object: Object) -> Option<LabelText> {
    let (Object::Role(oid) | Object::Database(oid)) = object;
    let mut key = key(
        ANUM_SHSECLABEL_OBJOID,
        pg_sys::F_OIDEQ,
        pg_sys::Oid::from(oid).into(),
    );
    let mut found = None;
    let index = (SHARED_SEC_LABEL_OBJECT_INDEX, &mut key);
    seek(SHARED_SEC_LABEL_RELATION, index, |row| {
        found = found
            .take()
            .or(label(row).filter(|(labelled, _)| *labelled == object));
    });
    found.map(|(_, text)| text)
}

/// Reading a whole catalog is cheaper than seeking some of it while it is on so few pages.
pub const FEW_PAGES: u32 = 2;

/// Tells how many pages all labels take, those of other providers among them, and keeps them open meanwhile:
/// to open a catalog once more costs little.
pub fn with_pages_of_labels<T>(tell: impl FnOnce(u32) -> T) -> T {
    opened(SHARED_SEC_LABEL_RELATION, |labels| tell(pages(labels)))
}

pub fn is_standby() -> bool {
    // SAFETY: reads shared memory.
    unsafe { server::RecoveryInProgress() }
}

/// A row of `pg_shseclabel`, if it is of this extension.
fn label(row: Row) -> Option<(Object, LabelText)> {
    // SAFETY: that catalog has these four columns, none of them null, and the last two are texts.
    let (object, class, provider, text) = unsafe {
        let [object, class, provider, text] = row.columns();
        (object, class, plain(provider), plain(text))
    };
    if provider != Some(PROVIDER.to_bytes()) {
        return None;
    }
    let oid = object.value() as u32;
    let object = match pg_sys::Oid::from(class.value() as u32) {
        pg_sys::AuthIdRelationId => Object::Role(oid),
        pg_sys::DatabaseRelationId => Object::Database(oid),
        _ => return None,
    };
    Some((object, text.map(Vec::from)))
}

/// The name under which labels are given.
pub const PROVIDER: &CStr = c"session_limit";

/// None if it is stored in a way that a login cannot read.
pub type LabelText = Option<Vec<u8>>;

/// `src/include/catalog/pg_auth_members.h`
const AUTH_MEM_RELATION: pg_sys::Oid = pg_sys::Oid::from_u32(1261);

/// `src/include/catalog/pg_shseclabel.h`
const SHARED_SEC_LABEL_RELATION: pg_sys::Oid = pg_sys::Oid::from_u32(3592);

const SHARED_SEC_LABEL_OBJECT_INDEX: pg_sys::Oid = pg_sys::Oid::from_u32(3593);
const ANUM_SHSECLABEL_OBJOID: u32 = 1;
