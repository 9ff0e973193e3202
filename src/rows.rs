//! How rows of the shared catalogs are read: out of a syscache, by an index once the relation cache knows it, and,
//! until then and wherever it costs less, by looking through a catalog's pages.

use crate::server::{self, guarded};
use pgrx::pg_sys::{self, SysCacheIdentifier};

/// A row that a scan has found, good until the next one.
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
            server::heap_deform_tuple(self.tuple, self.shape, columns, nulls);
        }
        columns
    }
}

/// What a text says, unless it is compressed or elsewhere.
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

/// For an index whose first column this is. What the value points to must outlive the scan.
pub fn key(column: u32, equals: u32, value: pg_sys::Datum) -> pg_sys::ScanKeyData {
    let mut key = pg_sys::ScanKeyData::default();
    let equal = pg_sys::BTEqualStrategyNumber as u16;
    // SAFETY: fills in the key.
    unsafe { pg_sys::ScanKeyInit(&mut key, column as i16, equal, equals.into(), value) };
    key
}

/// An index, and what is sought in it. It is used only once the relation cache can say what it looks
/// like.
pub type Index<'a> = (pg_sys::Oid, &'a mut pg_sys::ScanKeyData);

/// Visits the rows of a shared catalog that an index leads to now.
pub fn seek(catalog: pg_sys::Oid, by: Index, mut visit: impl FnMut(Row)) {
    seek_as_of(std::ptr::null_mut(), catalog, by, &mut visit);
}

/// Visits those that the snapshot sees. One piece of code for all catalogs: each login has to map what it
/// runs.
pub fn seek_as_of(
    snapshot: pg_sys::Snapshot,
    catalog: pg_sys::Oid,
    (index, key): Index,
    visit: &mut dyn FnMut(Row),
) {
    opened(catalog, |relation| {
        // SAFETY: in a transaction. The key outlives the scan.
        unsafe {
            let usable = pg_sys::criticalSharedRelcachesBuilt;
            let scan = pg_sys::systable_beginscan(relation, index, usable, snapshot, 1, key);
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                let shape = (*relation).rd_att;
                visit(Row { tuple, shape });
            }
            pg_sys::systable_endscan(scan);
        }
    });
}

/// Visits all rows of a shared catalog as they are now.
pub fn scan(catalog: pg_sys::Oid, mut visit: impl FnMut(Row)) {
    opened(catalog, |relation| {
        visit_pages(relation, pages, &|_| true, &mut visit)
    });
}

/// Visits such rows of a shared catalog as are on its first page now. That is there as long as there is any
/// row, and has room for some forty databases or roles.
pub fn on_first_page(
    catalog: pg_sys::Oid,
    such: &dyn Fn(&Row) -> bool,
    mut visit: impl FnMut(Row),
) {
    opened(catalog, |relation| {
        visit_pages(relation, |_| 1, such, &mut visit)
    });
}

pub fn opened<T>(catalog: pg_sys::Oid, read: impl FnOnce(pg_sys::Relation) -> T) -> T {
    let lock = pg_sys::AccessShareLock as i32;
    // SAFETY: in a transaction.
    unsafe {
        let relation = guarded(|| server::table_open(catalog, lock));
        let read = read(relation);
        server::table_close(relation, lock);
        read
    }
}

/// How many pages an open catalog takes.
pub fn pages(relation: pg_sys::Relation) -> u32 {
    let main = pg_sys::ForkNumber::MAIN_FORKNUM;
    // SAFETY: it is open.
    unsafe { guarded(|| server::RelationGetNumberOfBlocksInFork(relation, main)) }
}

/// Visits such rows on the first pages of an open catalog as are there now. As the server's own scans do, but
/// without what makes those fast that go on for long, which takes a login several times as long.
fn visit_pages(
    relation: pg_sys::Relation,
    how_many: fn(pg_sys::Relation) -> u32,
    such: &dyn Fn(&Row) -> bool,
    visit: &mut dyn FnMut(Row),
) {
    // SAFETY: in a transaction. The relation is a catalog, whose rows are stored as a heap, and has those
    // pages. A row that the snapshot sees stays as it is while its page is locked.
    unsafe {
        let (catalog, shape) = ((*relation).rd_id, (*relation).rd_att);
        let snapshot = guarded(|| server::RegisterSnapshot(server::GetCatalogSnapshot(catalog)));
        // Asked after it was taken: none of its rows is on a later page.
        for block in 0..how_many(relation) {
            pgrx::check_for_interrupts!();
            let buffer = guarded(|| {
                let buffer = server::ReadBuffer(relation, block);
                server::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
                buffer
            });
            let page = pg_sys::BufferGetPage(buffer);
            for (line, place) in lines(page).iter().zip(1..) {
                if line.lp_flags() != pg_sys::LP_NORMAL {
                    continue;
                }
                let mut tuple = pg_sys::HeapTupleData {
                    t_len: line.lp_len(),
                    t_tableOid: catalog,
                    t_data: page.byte_add(line.lp_off() as usize).cast(),
                    ..Default::default()
                };
                pgrx::itemptr::item_pointer_set_all(&mut tuple.t_self, block, place);
                let tuple = &raw mut tuple;
                let row = Row { tuple, shape };
                let is_visible =
                    || server::HeapTupleSatisfiesVisibility(row.tuple, snapshot, buffer);
                if such(&row) && guarded(is_visible) {
                    visit(row);
                }
            }
            server::UnlockReleaseBuffer(buffer);
        }
        server::UnregisterSnapshot(snapshot);
    }
}

/// Where a page has its rows.
///
/// # Safety
/// The page is pinned and locked as long as the result is used.
unsafe fn lines<'a>(page: pg_sys::Page) -> &'a [pg_sys::ItemIdData] {
    const HEADER: usize = std::mem::offset_of!(pg_sys::PageHeaderData, pd_linp);
    // SAFETY: as the caller says. They follow the page's header, up to where it says; in a page that was never
    // written all is zero.
    unsafe {
        let end = (*page.cast::<pg_sys::PageHeaderData>()).pd_lower;
        let bytes = usize::from(end).saturating_sub(HEADER);
        let first = page.byte_add(HEADER).cast();
        std::slice::from_raw_parts(first, bytes / size_of::<pg_sys::ItemIdData>())
    }
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
        let tuple = guarded(|| server::SearchSysCache1(cache as i32, key));
        if tuple.is_null() {
            return None;
        }
        let copied = copy(form(tuple));
        server::ReleaseSysCache(tuple);
        Some(copied)
    }
}

/// # Safety
/// `tuple` is of the catalog whose struct is `Row`, and lives as long as the reference.
pub unsafe fn form<'a, Row>(tuple: pg_sys::HeapTuple) -> &'a Row {
    // SAFETY: as the caller says: the fixed columns of a row follow its header, as GETSTRUCT has
    // it.
    unsafe {
        let header = (*tuple).t_data;
        &*header.byte_add((*header).t_hoff as usize).cast::<Row>()
    }
}
