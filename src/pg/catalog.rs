//! What is read of roles and databases: in shared catalogs, which a login can read before it has a database.
//!
//! Safe with cold caches, on the first login after a start: the syscaches AUTHNAME, AUTHOID, AUTHMEMMEMROLE and
//! DATABASEOID have nailed indexes, and `scan` needs no other.

use crate::pg::memory;
use crate::pg::scan::{Row, cached, form, key, opened, scan, seek};
use model::limit::Object;
use pgrx::pg_sys::{self, FormData_pg_authid, FormData_pg_database, SysCacheIdentifier};
use std::ffi::CStr;

/// A row of `pg_authid`.
pub struct Role {
    pub oid: u32,
    pub name: Vec<u8>,
    pub superuser: bool,
    pub can_login: bool,
    pub replication: bool,
    pub create_role: bool,
    /// The attribute INHERIT.
    pub inherit: bool,
    /// Negative: no limit.
    pub connection_limit: i32,
}

/// A row of `pg_database`.
pub struct Database {
    pub oid: u32,
    pub name: Vec<u8>,
    pub owner: u32,
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

    /// False also if it was dropped.
    pub fn is_superuser(oid: u32) -> bool {
        Role::by_oid(oid).is_some_and(|role| role.superuser)
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
        opened(pg_sys::AuthIdRelationId, |roles| {
            roles.visit(itself, Some(index), &mut visit);
        });
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
            create_role: false,
            inherit: false,
            connection_limit: -1,
        }
    }

    pub fn all() -> Vec<Role> {
        let mut roles = Vec::new();
        // SAFETY: the rows are of that catalog, and copied.
        scan(pg_sys::AuthIdRelationId, |row| unsafe {
            memory::extend(&mut roles, [Role::from(form(row.tuple))]);
        });
        roles
    }

    fn from(row: &FormData_pg_authid) -> Role {
        Role {
            oid: row.oid.to_u32(),
            name: name(&row.rolname),
            superuser: row.rolsuper,
            can_login: row.rolcanlogin,
            replication: row.rolreplication,
            create_role: row.rolcreaterole,
            inherit: row.rolinherit,
            connection_limit: row.rolconnlimit,
        }
    }
}

impl Database {
    pub fn by_name(name: &CStr) -> Option<Database> {
        let mut key = key(
            pg_sys::Anum_pg_database_datname,
            pg_sys::F_NAMEEQ,
            name.as_ptr().into(),
        );
        let index = (pg_sys::Oid::from(pg_sys::DatabaseNameIndexId), &mut key);
        let mut found = None;
        // SAFETY: the rows are of that catalog, and copied.
        seek(pg_sys::DatabaseRelationId, index, |row| unsafe {
            found = Some(Database::from(form(row.tuple)));
        });
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

    pub fn all() -> Vec<Database> {
        let mut databases = Vec::new();
        // SAFETY: the rows are of that catalog, and copied.
        scan(pg_sys::DatabaseRelationId, |row| unsafe {
            memory::extend(&mut databases, [Database::from(form(row.tuple))]);
        });
        databases
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

/// The name of a role or database; its OID if it was dropped.
pub fn name_of(object: Object) -> Vec<u8> {
    let (oid, name) = match object {
        Object::Role(oid) => (oid, Role::by_oid(oid).map(|role| role.name)),
        Object::Database(oid) => (oid, Database::by_oid(oid).map(|database| database.name)),
    };
    name.unwrap_or_else(|| oid.to_string().into_bytes())
}

fn name(name: &pg_sys::NameData) -> Vec<u8> {
    // SAFETY: PostgreSQL ends its names with a zero byte.
    unsafe { CStr::from_ptr(name.data.as_ptr()) }
        .to_bytes()
        .to_vec()
}
