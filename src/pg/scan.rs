//! How rows of the shared catalogs are read: out of a syscache, or by a scan.
//!
//! A scan uses its index only once the relation cache can say what the index looks like. On the first login after a
//! start it cannot: the scan then reads the whole catalog.

use crate::pg::{compat, ffi};
use pgrx::pg_sys::{self, SysCacheIdentifier};

/// A row that a scan has found, good until the scan goes on.
pub struct Row {
    pub tuple: pg_sys::HeapTuple,
    pub shape: pg_sys::TupleDesc,
}

impl Row {
    /// # Safety
    /// The catalog has `N` columns, and the row no null.
    pub unsafe fn columns<const N: usize>(&self) -> [pg_sys::Datum; N] {
        let mut columns = [pg_sys::Datum::null(); N];
        let mut nulls = [false; N];
        // SAFETY: as the caller says, there is room for all columns.
        unsafe {
            let (columns, nulls) = (columns.as_mut_ptr(), nulls.as_mut_ptr());
            ffi::heap_deform_tuple(self.tuple, self.shape, columns, nulls);
        }
        columns
    }
}

/// A shared catalog that is open.
#[derive(Clone, Copy)]
pub struct Catalog(pg_sys::Relation);

/// An index, and what is sought in it.
pub type Index<'a> = (pg_sys::Oid, &'a mut pg_sys::ScanKeyData);

/// Opens a shared catalog for as long as `read` takes. To open it once more meanwhile costs little.
pub fn opened<T>(catalog: pg_sys::Oid, read: impl FnOnce(Catalog) -> T) -> T {
    let lock = pg_sys::AccessShareLock as i32;
    // SAFETY: in a transaction. What is raised leaves the relation to the transaction's end.
    unsafe {
        let relation = ffi::table_open(catalog, lock);
        let read = read(Catalog(relation));
        ffi::table_close(relation, lock);
        read
    }
}

/// Visits the rows of a shared catalog that an index leads to, as they are now.
pub fn seek(catalog: pg_sys::Oid, index: Index, mut visit: impl FnMut(Row)) {
    opened(catalog, |catalog| {
        catalog.visit(std::ptr::null_mut(), Some(index), &mut visit);
    });
}

/// Visits all rows of a shared catalog as they are now.
pub fn scan(catalog: pg_sys::Oid, visit: impl FnMut(Row)) {
    opened(catalog, |catalog| catalog.scan(visit));
}

impl Catalog {
    /// How many pages it takes.
    pub fn pages(self) -> u32 {
        // SAFETY: it is open.
        unsafe { ffi::RelationGetNumberOfBlocksInFork(self.0, pg_sys::ForkNumber::MAIN_FORKNUM) }
    }

    /// Visits all rows as they are now.
    pub fn scan(self, mut visit: impl FnMut(Row)) {
        self.visit(std::ptr::null_mut(), None, &mut visit);
    }

    /// Visits the rows that an index leads to, or all, as the snapshot sees them; null: as they are now.
    pub fn visit(
        self,
        snapshot: pg_sys::Snapshot,
        index: Option<Index>,
        visit: &mut dyn FnMut(Row),
    ) {
        // SAFETY: in a transaction, and the catalog is open. The key outlives the scan.
        unsafe {
            let usable = index.is_some() && pg_sys::criticalSharedRelcachesBuilt;
            let (index, keys, key) = match index {
                Some((index, key)) => (index, 1, &raw mut *key),
                None => (pg_sys::InvalidOid, 0, std::ptr::null_mut()),
            };
            let scan = ffi::systable_beginscan(self.0, index, usable, snapshot, keys, key);
            loop {
                let tuple = ffi::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                let shape = (*self.0).rd_att;
                visit(Row { tuple, shape });
            }
            ffi::systable_endscan(scan);
        }
    }
}

/// For an index whose first column this is. What the value points to must outlive the scan.
pub fn key(column: u32, equals: u32, value: pg_sys::Datum) -> pg_sys::ScanKeyData {
    let mut key = pg_sys::ScanKeyData::default();
    let equal = pg_sys::BTEqualStrategyNumber as u16;
    // SAFETY: fills in the key.
    unsafe { pg_sys::ScanKeyInit(&mut key, column as i16, equal, equals.into(), value) };
    key
}

/// Copies a row out of a syscache.
///
/// # Safety
/// In a transaction. `Row` is the struct of the cache's catalog, and `key` of its key's type.
pub unsafe fn cached<Row, T>(
    cache: SysCacheIdentifier::Type,
    key: pg_sys::Datum,
    copy: fn(&Row) -> T,
) -> Option<T> {
    // SAFETY: as the caller says; the row is copied before it is given back.
    unsafe {
        let tuple = ffi::SearchSysCache1(compat::cache_number(cache), key);
        if tuple.is_null() {
            return None;
        }
        let copied = copy(form(tuple));
        ffi::ReleaseSysCache(tuple);
        Some(copied)
    }
}

/// The fixed columns of a row, which follow its header, as in `GETSTRUCT`.
///
/// # Safety
/// `tuple` is of the catalog whose struct is `Row`, and lives as long as the reference.
pub unsafe fn form<'a, Row>(tuple: pg_sys::HeapTuple) -> &'a Row {
    // SAFETY: as the caller says.
    unsafe {
        let header = (*tuple).t_data;
        &*header.byte_add((*header).t_hoff as usize).cast::<Row>()
    }
}

/// What a text says, unless it is compressed or stored out of line.
///
/// # Safety
/// `text` is a text that lives as long as the result is used.
pub unsafe fn plain<'a>(text: pg_sys::Datum) -> Option<&'a [u8]> {
    // SAFETY: as the caller says; what is not in place is not looked at.
    unsafe {
        let text = text.cast_mut_ptr::<pg_sys::varlena>();
        let in_place = !pgrx::varatt_is_1b_e(text) && !pgrx::varatt_is_4b_c(text);
        in_place.then(|| pgrx::varlena_to_byte_slice(text))
    }
}
