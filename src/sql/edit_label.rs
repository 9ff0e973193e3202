//! The function under `set_limit` and `clear_limit`: it returns what a label will be when one of its limits is set or
//! removed.

use crate::lookup::Labels;
use crate::pg::catalog::{Database, Role};
use crate::pg::memory;
use crate::sql::viewer::SqlText;
use crate::{error, shmem};
use model::encoding;
use model::json_error;
use model::label::{Label, LabelLimit};
use model::label_target::LabelTarget;
use model::limit::Object;
use pgrx::pg_sys::{self, ObjectType};
use pgrx::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::ffi::CStr;

/// The label of the role, or of the database if `role` is null. With `keep`, `a_limit` (JSON) replaces the limit with the
/// same key or is added; without, that limit is removed. None if nothing is left of the label.
///
/// The object stays locked as by `SECURITY LABEL`, which must follow: nobody changes the label in between.
#[pg_extern(sql = false)]
fn edited_label(
    role: Option<&CStr>,
    database: Option<&CStr>,
    a_limit: Option<&[u8]>,
    keep: Option<bool>,
) -> Option<SqlText> {
    shmem::require();
    memory::require(0);
    let limit = a_limit.unwrap_or_else(|| error::must_not_be_null("a_limit"));
    let keep = keep.unwrap_or_else(|| error::must_not_be_null("keep"));
    let (object, target) = labelled(role, database);
    let old = Labels::sought().text(object);
    let old = old.unwrap_or_else(|| Ok(b"{}".to_vec()));
    let edited = old
        .map_err(Wrong::Label)
        .and_then(|old| edited(&old, target, limit, keep));
    match edited {
        Ok(label) => label,
        Err(Wrong::Label(why)) => error::label_is_invalid(object, &why),
        Err(Wrong::Limit(why)) => error::bad_label(&why, target),
        Err(Wrong::Missing) => error::no_such_limit(),
    }
}

/// Locks the role, or the database if `role` is null, and says what its limits can be about.
fn labelled(role: Option<&CStr>, database: Option<&CStr>) -> (Object, LabelTarget) {
    match (role, database) {
        (Some(name), _) => {
            let role = Role::by_name(name).unwrap_or_else(|| error::undefined_role(name));
            lock(
                pg_sys::AuthIdRelationId,
                role.oid,
                ObjectType::OBJECT_ROLE,
                name,
            );
            (Object::Role(role.oid), LabelTarget::of_role(role.can_login))
        }
        (None, Some(name)) => {
            let database =
                Database::by_name(name).unwrap_or_else(|| error::undefined_database(name));
            lock(
                pg_sys::DatabaseRelationId,
                database.oid,
                ObjectType::OBJECT_DATABASE,
                name,
            );
            (Object::Database(database.oid), LabelTarget::Database)
        }
        (None, None) => error::nothing_to_label(),
    }
}

/// Locks the object, as `SECURITY LABEL` does. Raises an error if the user may not label it.
fn lock(class: pg_sys::Oid, oid: u32, kind: ObjectType::Type, name: &CStr) {
    let address = pg_sys::ObjectAddress {
        classId: class,
        objectId: oid.into(),
        objectSubId: 0,
    };
    // SAFETY: in a transaction; the name is copied into the node that the check takes for its
    // messages.
    unsafe {
        let node = pg_sys::makeString(pg_sys::pstrdup(name.as_ptr()));
        let user = pg_sys::GetUserId();
        pg_sys::check_object_ownership(user, kind, address, node.cast(), std::ptr::null_mut());
        pg_sys::LockSharedObject(class, oid.into(), 0, pg_sys::ShareUpdateExclusiveLock as _);
    }
}

enum Wrong {
    Label(String),
    Limit(String),
    /// No limit has the key.
    Missing,
}

/// Does not check whether the object can have these limits: `SECURITY LABEL` does that. If a role got or lost LOGIN since
/// its label was set, the label may have limits that it cannot have any more, and they must be removable.
fn edited(
    label: &[u8],
    target: LabelTarget,
    limit: &[u8],
    keep: bool,
) -> Result<Option<SqlText>, Wrong> {
    let read = Label::read(label).map_err(Wrong::Label)?;
    let alone = [b"{\"limits\": [", limit, b"]}"].concat();
    let given = Label::read_for(&alone, target).map_err(Wrong::Limit)?;
    let key = given.limits.first().map(|given| given.key(target));
    let has_key = |other: &LabelLimit| Some(other.key(target)) == key;
    let position = read.limits.iter().position(has_key);
    let limit: Value = parsed(limit).map_err(Wrong::Limit)?;

    let mut label: Map<String, Value> = parsed(label).map_err(Wrong::Label)?;
    let mut limits = match label.remove("limits") {
        Some(Value::Array(limits)) => limits,
        _ => written_out(&mut label),
    };
    match (position.and_then(|position| limits.get_mut(position)), keep) {
        (Some(place), true) => *place = limit,
        (None, true) => limits.push(limit),
        (Some(_), false) => drop(position.map(|position| limits.remove(position))),
        (None, false) => return Err(Wrong::Missing),
    }
    if !limits.is_empty() {
        label.insert("limits".to_string(), Value::Array(limits));
    }
    Ok((!label.is_empty()).then(|| encoding::bytes(&Value::Object(label).to_string())))
}

fn parsed<T: DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    let json = encoding::json(json)?;
    serde_json::from_str(&json).map_err(|error| json_error::text(&error, &json))
}

/// The limit that a label without a list is short for.
fn written_out(label: &mut Map<String, Value>) -> Vec<Value> {
    let fields = [
        "max",
        "per",
        "count",
        "across",
        "database",
        "network",
        "enforcement",
    ];
    let taken = fields.iter().filter_map(|field| label.remove_entry(*field));
    let limit: Map<String, Value> = taken.collect();
    if limit.is_empty() {
        Vec::new()
    } else {
        vec![Value::Object(limit)]
    }
}
