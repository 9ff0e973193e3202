//! The label provider: runs in a backend, called by `SECURITY LABEL FOR session_limit`, after the server has checked that
//! the user may label the object. A label that passes is stored to the letter.
//!
//! The label of a role with LOGIN limits that role. The label of a role without LOGIN limits its members, and only
//! superusers may set it. So a second hook, on ALTER ROLE, keeps others from turning the one into the other.

use crate::lookup::Labels;
use crate::pg::backend::{self, Local, is_superuser};
use crate::pg::catalog::{Database, Role};
use crate::pg::labels::PROVIDER;
use crate::pg::memberships::Administrators;
use crate::pg::memory;
use crate::{error, settings, shmem};
use model::label::{Label, LabelLimit, MAX_LABEL_BYTES};
use model::label_target::LabelTarget;
use model::limit::{Across, Count, Object};
use model::per::Per;
use pgrx::prelude::*;
use pgrx::{PgXactCallbackEvent, pg_sys};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_int, c_void};

static PREVIOUS: Local<Cell<pg_sys::object_access_hook_type>> = Local::new(Cell::new(None));
/// This session was told that the library is not preloaded: a restore sets many labels.
static WARNED: Local<Cell<bool>> = Local::new(Cell::new(false));
/// This transaction changes labels.
static CHANGES_LABELS: Local<Cell<bool>> = Local::new(Cell::new(false));

pub fn register_provider() {
    // SAFETY: the name is static, the hooks are functions of this library, which is never unloaded,
    // and the previous one is called.
    unsafe {
        pg_sys::register_label_provider(PROVIDER.as_ptr(), Some(session_limit_check_label));
        PREVIOUS.set(pg_sys::object_access_hook);
        pg_sys::object_access_hook = Some(session_limit_object_access);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn session_limit_object_access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    sub: c_int,
    argument: *mut c_void,
) {
    if let Some(previous) = PREVIOUS.get() {
        // SAFETY: the arguments are the server's own, and what the previous hook raises is passed on.
        unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous(access, class, object, sub, argument));
        }
    }
    let is_ours = [pg_sys::AuthIdRelationId, pg_sys::DatabaseRelationId].contains(&class);
    if access != pg_sys::ObjectAccessType::OAT_POST_ALTER || !is_ours {
        return;
    }
    memory::require(0);
    match class {
        // ALTER ROLE … [NO]LOGIN, CONNECTION LIMIT
        pg_sys::AuthIdRelationId => {
            check_altered(object.to_u32());
            at_commit_limits_change();
        }
        // ALTER DATABASE … CONNECTION LIMIT, RENAME
        pg_sys::DatabaseRelationId => at_commit_limits_change(),
        _ => {}
    }
}

/// At commit, the worker is woken: it sweeps, and wakes the waiters. A transaction that is prepared goes unnoticed until
/// the next sweep.
fn at_commit_limits_change() {
    pgrx::register_xact_callback(PgXactCallbackEvent::Commit, || {
        if let Some(memory) = shmem::existing_memory() {
            memory.mailbox.limits_changed();
        }
    });
}

fn check_altered(oid: u32) {
    let (Some(before), Some(after)) = (Role::by_oid(oid), Role::altered(oid)) else {
        return;
    };
    if before.can_login == after.can_login {
        return;
    }
    // The lock that SECURITY LABEL takes: no label is set meanwhile.
    // SAFETY: in a transaction.
    unsafe {
        let lock = pg_sys::ShareUpdateExclusiveLock;
        pg_sys::LockSharedObject(pg_sys::AuthIdRelationId, oid.into(), 0, lock as _);
    }
    let Some(text) = Labels::sought().text(Object::Role(oid)) else {
        return;
    };
    let is_about_members = || {
        let label = text.as_deref().map(Label::read);
        label.is_ok_and(|label| label.is_ok_and(|label| label.is_about_members()))
    };
    if !is_superuser() && is_about_members() {
        error::only_superusers_turn_labels(after.can_login);
    }
    let target = LabelTarget::of_role(after.can_login);
    let fits = text
        .as_deref()
        .map_err(String::clone)
        .and_then(|text| Label::check(text, target));
    if let Err(why) = fits {
        error::label_fits_no_more(&why, after.can_login);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn session_limit_check_label(
    object: *const pg_sys::ObjectAddress,
    label: *const c_char,
) {
    memory::require(0);
    // SAFETY: the server passes the object that it has locked, and a text or, to remove the label,
    // null.
    let (object, label) = unsafe {
        let label = (!label.is_null()).then(|| CStr::from_ptr(label).to_bytes());
        (&*object, label)
    };
    if shmem::existing_memory().is_none() && label.is_some() && !WARNED.replace(true) {
        error::label_has_no_effect();
    }
    labels_change();
    at_commit_limits_change();
    let oid = object.objectId.to_u32();
    match object.classId {
        // SECURITY LABEL FOR session_limit ON ROLE …
        pg_sys::AuthIdRelationId => {
            let Some(role) = Role::by_oid(oid) else {
                return;
            };
            let target = LabelTarget::of_role(role.can_login);
            if target == LabelTarget::Group && !is_superuser() {
                error::only_superusers_label_groups();
            }
            let exempt = settings::current().exempts_everywhere(role.superuser);
            let object = Object::Role(oid);
            check(label, target, object, role.connection_limit, exempt);
        }
        // SECURITY LABEL FOR session_limit ON DATABASE …
        pg_sys::DatabaseRelationId => {
            let limit = Database::by_oid(oid).map_or(-1, |database| database.connection_limit);
            let object = Object::Database(oid);
            check(label, LabelTarget::Database, object, limit, false);
        }
        _ => error::labels_are_for_roles_and_databases(),
    }
}

/// No login may go on to believe that there is no label.
fn labels_change() {
    let Some(changes) = shmem::existing_label_changes() else {
        return;
    };
    if CHANGES_LABELS.replace(true) {
        return;
    }
    changes.begin();
    for end in [
        PgXactCallbackEvent::Commit,
        PgXactCallbackEvent::Abort,
        PgXactCallbackEvent::Prepare,
    ] {
        pgrx::register_xact_callback(end, || {
            if CHANGES_LABELS.replace(false) {
                changes.end();
            }
        });
    }
}

fn check(
    label: Option<&[u8]>,
    target: LabelTarget,
    object: Object,
    connection_limit: i32,
    exempt: bool,
) {
    let Some(json) = label else {
        return;
    };
    if json.len() > MAX_LABEL_BYTES {
        error::label_too_long(json.len(), target);
    }
    // pg_upgrade restores whatever the old cluster had.
    if backend::is_upgrading() {
        return;
    }
    let label = Label::check(json, target);
    let label = label.unwrap_or_else(|why| error::bad_label(&why, target));
    if label.exempt && !is_superuser() {
        error::only_superusers_exempt();
    }
    let is_across = |limit: &LabelLimit| limit.across == Across::Servers;
    if label.limits.iter().any(is_across) {
        if !is_superuser() {
            error::only_superusers_count_across_servers();
        }
        if !settings::servers::are_shared() {
            error::counts_on_this_server_alone();
        }
    }
    if let (Some(wait), Some(most)) = (label.longest_wait(), settings::current().max_label_wait)
        && wait > most
        && !is_superuser()
    {
        error::only_superusers_let_wait(wait, most);
    }
    let whole = match target {
        LabelTarget::Database => Per::Database,
        _ => Per::Role,
    };
    let key = (Some(whole), None, None, Count::Sessions, Across::Server);
    let limit = label.limits.iter().find(|limit| limit.key(target) == key);
    if let Some(limit) = limit
        && target != LabelTarget::Group
        && connection_limit >= 0
        && !(0..=connection_limit).contains(&limit.max)
    {
        error::connection_limit_is_smaller(object, connection_limit);
    }
    notice_what_has_no_effect(&label, target, exempt);
    if let Object::Role(group) = object
        && target == LabelTarget::Group
        && label.is_about_members()
    {
        warn_of_administrators(group);
    }
}

fn warn_of_administrators(group: u32) {
    let administrators = Administrators::read().of(group);
    if !administrators.is_empty() {
        error::group_is_administered(group, &administrators);
    }
}

/// What is set, and limits nobody as things are.
fn notice_what_has_no_effect(label: &Label, target: LabelTarget, exempt: bool) {
    if *label == Label::default() {
        error::label_is_empty();
    }
    if !label.limits.is_empty() && target == LabelTarget::Role && (exempt || label.exempt) {
        error::role_is_exempt();
    }
    let named = label
        .limits
        .iter()
        .filter_map(|limit| limit.database.as_ref());
    let named: BTreeSet<&Vec<u8>> = named.collect();
    if named.is_empty() {
        return;
    }
    let databases = Database::all();
    for name in named {
        if !databases.iter().any(|it| it.name == *name) {
            error::limits_database_does_not_exist(name);
        }
    }
}
