//! Whether a role has the privilege CONNECT on a database. The server's own functions for that fill caches that are
//! wrong once the login has its database.

use crate::pg::catalog::{Database, Role};
use crate::pg::memberships::privileged_as;
use crate::pg::scan::{Row, key, seek};
use pgrx::pg_sys;
use std::num::NonZeroUsize;

/// None if that cannot be read: a long list of privileges is stored out of line, where a login cannot read it.
pub fn may_connect(role: &Role, database: &Database) -> Option<bool> {
    if role.superuser {
        return Some(true);
    }
    let mut key = key(
        pg_sys::Anum_pg_database_oid,
        pg_sys::F_OIDEQ,
        pg_sys::Oid::from(database.oid).into(),
    );
    let index = (pg_sys::Oid::from(pg_sys::DatabaseOidIndexId), &mut key);
    let mut grantees = None;
    // SAFETY: the rows are of that catalog.
    seek(pg_sys::DatabaseRelationId, index, |row| unsafe {
        grantees = granted_to(row);
    });
    let mut roles = privileged_as(role.oid, database.owner);
    roles.push(pg_sys::ACL_ID_PUBLIC);
    Some(grantees?.iter().any(|grantee| roles.contains(grantee)))
}

/// The roles that a row of `pg_database` says may connect; None if it is stored elsewhere.
///
/// # Safety
/// The row is of that catalog.
unsafe fn granted_to(row: Row) -> Option<Vec<u32>> {
    const COLUMN: NonZeroUsize =
        NonZeroUsize::new(pg_sys::Anum_pg_database_datacl as usize).unwrap();
    // SAFETY: as the caller says.
    let acl = unsafe { pgrx::htup::heap_getattr_raw(row.tuple, COLUMN, row.shape) };
    let Some(acl) = acl else {
        // The default.
        return Some(vec![pg_sys::ACL_ID_PUBLIC]);
    };
    // SAFETY: an ACL is a one-dimensional array of AclItem without nulls, and that is a plain struct.
    unsafe {
        let stored = acl.cast_mut_ptr::<pg_sys::varlena>();
        if pgrx::varatt_is_1b_e(stored) {
            return None;
        }
        let array = pg_sys::pg_detoast_datum(stored).cast::<pg_sys::ArrayType>();
        let length = *array.add(1).cast::<i32>() as usize;
        let first = array.byte_add(ARRAY_HEADER).cast::<pg_sys::AclItem>();
        let items = std::slice::from_raw_parts(first, length);
        let connect = items
            .iter()
            .filter(|item| item.ai_privs & pg_sys::AclMode::from(pg_sys::ACL_CONNECT) != 0);
        Some(connect.map(|item| item.ai_grantee.to_u32()).collect())
    }
}

/// `ARR_OVERHEAD_NONULLS(1)` (`src/include/utils/array.h`).
const ARRAY_HEADER: usize = 24;
