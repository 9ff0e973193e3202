//! The labels of this extension, in `pg_shseclabel`: the server nails it in the relation cache, so that a login can
//! read it before it has a database.

use crate::pg::memory;
use crate::pg::scan::{Catalog, Row, key, opened, plain, seek};
use model::limit::Object;
use pgrx::pg_sys;
use std::collections::BTreeMap;
use std::ffi::CStr;

/// The name under which labels are given.
pub const PROVIDER: &CStr = c"session_limit";

/// What a label says; None if it is stored in a way that a login cannot read.
pub type LabelText = Option<Vec<u8>>;

/// `src/include/catalog/pg_shseclabel.h`
const SHARED_SEC_LABEL_RELATION: pg_sys::Oid = pg_sys::Oid::from_u32(3592);
const SHARED_SEC_LABEL_OBJECT_INDEX: pg_sys::Oid = pg_sys::Oid::from_u32(3593);
const ANUM_SHSECLABEL_OBJOID: u32 = 1;

/// The catalog while it is open: labels of other providers are in it, too.
#[derive(Clone, Copy)]
pub struct LabelCatalog(Catalog);

/// Opens the catalog for as long as `read` takes.
pub fn with_labels<T>(read: impl FnOnce(LabelCatalog) -> T) -> T {
    opened(SHARED_SEC_LABEL_RELATION, |catalog| {
        read(LabelCatalog(catalog))
    })
}

impl LabelCatalog {
    pub fn pages(self) -> u32 {
        self.0.pages()
    }

    /// All labels of this extension.
    pub fn read(self) -> BTreeMap<Object, LabelText> {
        let mut labels = BTreeMap::new();
        self.0.scan(|row| {
            if labels.len().is_multiple_of(memory::ROWS_BETWEEN) {
                memory::require(0);
            }
            labels.extend(label(row));
        });
        labels
    }
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

/// A row, if it is of this extension.
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
