//! What a login reads of its role and its database, in shared catalogs, before it has a database.
//!
//! Safe with cold caches, on the first login after a start: the syscaches AUTHNAME, AUTHOID and
//! DATABASEOID have nailed indexes. A database's name has no syscache, and `get_database_oid` asks
//! for one that is not built yet.

use pgrx::pg_sys::{self, FormData_pg_authid, FormData_pg_database, SysCacheIdentifier};
use std::ffi::CStr;

/// A row of `pg_authid`.
pub struct Role {
    pub oid: u32,
    pub superuser: bool,
    pub can_login: bool,
    pub replication: bool,
    /// Negative: no limit.
    pub connection_limit: i32,
}

/// A row of `pg_database`.
pub struct Database {
    pub oid: u32,
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

    fn from(row: &FormData_pg_authid) -> Role {
        Role {
            oid: row.oid.to_u32(),
            superuser: row.rolsuper,
            can_login: row.rolcanlogin,
            replication: row.rolreplication,
            connection_limit: row.rolconnlimit,
        }
    }
}

impl Database {
    pub fn by_name(name: &CStr) -> Option<Database> {
        // SAFETY: in a transaction. The scan key, and the name it points to, outlive the scan; the
        // row is copied before the scan ends. The index is used only once the relation cache can
        // say what it looks like.
        unsafe {
            let mut key = pg_sys::ScanKeyData::default();
            pg_sys::ScanKeyInit(
                &mut key,
                pg_sys::Anum_pg_database_datname as i16,
                pg_sys::BTEqualStrategyNumber as u16,
                pg_sys::F_NAMEEQ.into(),
                name.as_ptr().into(),
            );
            let lock = pg_sys::AccessShareLock as i32;
            let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, lock);
            let scan = pg_sys::systable_beginscan(
                relation,
                pg_sys::DatabaseNameIndexId.into(),
                pg_sys::criticalSharedRelcachesBuilt,
                std::ptr::null_mut(),
                1,
                &mut key,
            );
            let tuple = pg_sys::systable_getnext(scan);
            let database = (!tuple.is_null()).then(|| Database::from(form(tuple)));
            pg_sys::systable_endscan(scan);
            pg_sys::table_close(relation, lock);
            database
        }
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

    fn from(row: &FormData_pg_database) -> Database {
        Database {
            oid: row.oid.to_u32(),
            invalid: row.datconnlimit == pg_sys::DATCONNLIMIT_INVALID_DB,
            allows_connections: row.datallowconn,
            connection_limit: row.datconnlimit,
        }
    }
}

/// Copies a row out of a syscache.
///
/// # Safety
/// In a transaction. `Row` is the struct of the cache's catalog, and `key` of its key's type.
unsafe fn cached<Row, T>(
    cache: SysCacheIdentifier::Type,
    key: pg_sys::Datum,
    copy: fn(&Row) -> T,
) -> Option<T> {
    // SAFETY: as the caller says; the row is copied before it is given back.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(cache as i32, key);
        if tuple.is_null() {
            return None;
        }
        let copied = copy(form(tuple));
        pg_sys::ReleaseSysCache(tuple);
        Some(copied)
    }
}

/// # Safety
/// `tuple` is of the catalog whose struct is `Row`, and lives as long as the reference.
unsafe fn form<'a, Row>(tuple: pg_sys::HeapTuple) -> &'a Row {
    // SAFETY: as the caller says: the fixed columns of a row follow its header, as GETSTRUCT has
    // it.
    unsafe {
        let header = (*tuple).t_data;
        &*header.byte_add((*header).t_hoff as usize).cast::<Row>()
    }
}
