//! What is wrong with a label, or with a setting that is written like one.

use crate::error::about;
use crate::error::report::{Report, Text, composed, sentence};
use crate::pg::catalog::{self, name_of};
use model::event::EventKind;
use model::label::{LabelProblem, MAX_LABEL_BYTES};
use model::label_target::LabelTarget;
use model::limit::{Object, Source};
use pgrx::pg_sys;
use pgrx::{PgLogLevel, PgSqlErrorCode};
use std::collections::BTreeSet;
use std::ffi::CStr;
use std::time::Duration;

fn invalid(message: &'static CStr) -> Report {
    Report::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
}

fn not_allowed(message: &'static CStr) -> Report {
    Report::new(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, message)
}

/// A label that is to be set says what it may not.
pub fn bad_label(why: &str, target: LabelTarget) -> ! {
    invalid(c"invalid session_limit label")
        .detail(sentence(why))
        .hint(example(target))
        .error()
}

pub fn label_too_long(bytes: usize, target: LabelTarget) -> ! {
    invalid(c"invalid session_limit label")
        .detail(format!(
            "The label has {bytes} bytes; a login can read {MAX_LABEL_BYTES}."
        ))
        .hint(format!(
            "Leave out blanks, or spread the limits over several groups. {}",
            example(target)
        ))
        .error()
}

pub fn labels_are_for_roles_and_databases() -> ! {
    invalid(c"session_limit labels are for roles and databases only")
        .detail(c"No other object has sessions.")
        .hint(format!(
            "Use SECURITY LABEL FOR session_limit ON ROLE or ON DATABASE. {}",
            example(LabelTarget::Database)
        ))
        .error()
}

pub fn only_superusers_label_groups() -> ! {
    not_allowed(c"must be superuser to set the session_limit label of a role without LOGIN")
        .detail(c"Such a label limits the role's members, and whoever administers the role can make anyone a member.")
        .hint(format!(
            "Ask a superuser, or label a role that can log in. {}",
            example(LabelTarget::Role)
        ))
        .error()
}

pub fn only_superusers_turn_labels(can_login: bool) -> ! {
    not_allowed(c"must be superuser to change LOGIN of a role with such a session_limit label")
        .detail(c"Without LOGIN the label is about the role's members.")
        .hint(match can_login {
            true => c"Ask a superuser.",
            false => c"Remove the label first, or ask a superuser.",
        })
        .error()
}

pub fn only_superusers_exempt() -> ! {
    not_allowed(c"must be superuser to exempt a role from limits")
        .detail(c"Field \"exempt\" is true.")
        .hint(format!(
            "Ask a superuser, or leave it out. {}",
            example(LabelTarget::Role)
        ))
        .error()
}

pub fn only_superusers_count_across_servers() -> ! {
    not_allowed(c"must be superuser to set a limit across servers")
        .detail(c"Field \"across\" is \"servers\". What such limits count takes room in etcd, which all share.")
        .hint(c"Ask a superuser, or leave it out.")
        .error()
}

/// Without etcd.
pub fn counts_on_this_server_alone() {
    notice(c"the limit counts on this server alone, because session_limit.etcd_endpoints is empty")
        .send(PgLogLevel::NOTICE);
}

pub fn only_superusers_let_wait(wait: Duration, most: Duration) -> ! {
    let (wait, most) = (wait.as_millis(), most.as_millis());
    not_allowed(c"must be superuser to let logins wait for so long")
        .detail(format!(
            "Field \"max_wait\" is {wait} ms; session_limit.max_label_wait and session_limit.max_wait allow {most} ms."
        ))
        .hint(c"Ask for a smaller \"max_wait\", or ask a superuser to set the label or to raise session_limit.max_label_wait.")
        .error()
}

/// A role gets, or loses, LOGIN, and keeps a label that it could not be given now.
pub fn label_fits_no_more(why: &str, can_login: bool) {
    let with = if can_login { "with" } else { "without" };
    let message = format!("the role's session_limit label does not fit a role {with} LOGIN");
    Report::new(PgSqlErrorCode::ERRCODE_WARNING, message)
        .detail(sentence(why))
        .hint(c"Until the role is altered back, such a limit has no effect, and a dump would be restored without this label.")
        .send(PgLogLevel::WARNING);
}

/// A label that is set allows more than the server will.
pub fn connection_limit_is_smaller(object: Object, connection_limit: i32) {
    let kind = object.kind();
    let message = format!(
        "the {kind}'s CONNECTION LIMIT, {connection_limit}, is smaller than the label's limit"
    );
    Report::new(PgSqlErrorCode::ERRCODE_WARNING, message)
        .detail(c"The smaller one applies.")
        .send(PgLogLevel::WARNING);
}

/// So many roles are named in a message.
const NAMED: usize = 5;

/// A group with a label that is about its members, and the roles that can make anyone a member, superusers aside.
pub fn group_is_administered(group: u32, by: &BTreeSet<u32>) {
    let names = by.iter().take(NAMED);
    let names: Vec<Vec<u8>> = names.map(|oid| name_of(Object::Role(*oid))).collect();
    let mut message = b"roles that are no superusers can make anyone a member of role \"".to_vec();
    message.extend(name_of(Object::Role(group)));
    message.extend(b"\", which has a session_limit label: ");
    message.extend(names.join(&b", "[..]));
    if by.len() > NAMED {
        message.extend(format!(", and {} more", by.len() - NAMED).into_bytes());
    }
    Report::new(PgSqlErrorCode::ERRCODE_WARNING, message)
        .detail(c"They have ADMIN OPTION on it or on a member of it, or, before PostgreSQL 16, CREATEROLE. The label limits, or exempts, whomever they make a member.")
        .hint(c"Revoke that from all who are not to have such power.")
        .send(PgLogLevel::WARNING);
}

/// The library is loaded, but was not when the server started.
pub fn label_has_no_effect() {
    Report::new(
        PgSqlErrorCode::ERRCODE_WARNING,
        c"session_limit is not preloaded, so its labels limit nobody",
    )
    .hint(
        c"Add session_limit to shared_preload_libraries in postgresql.conf and restart the server.",
    )
    .send(PgLogLevel::WARNING);
}

fn notice(message: impl Into<Text>) -> Report {
    Report::new(PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message)
}

pub fn label_is_empty() {
    notice(c"the session_limit label is empty, so it has no effect")
        .hint(c"Set it to NULL to remove it.")
        .send(PgLogLevel::NOTICE);
}

pub fn role_is_exempt() {
    notice(c"the role is exempt, so the limits of its session_limit label have no effect")
        .detail(c"By its label, or as a superuser by session_limit.exempt_superusers.")
        .send(PgLogLevel::NOTICE);
}

pub fn limits_database_does_not_exist(name: &[u8]) {
    let after = "\" does not exist, so a limit on sessions in it has no effect";
    let code = PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION;
    about(code, "database \"", name, after)
        .detail(c"It takes effect when a database of this name is created.")
        .send(PgLogLevel::NOTICE);
}

/// A query met a label that is wrong.
pub fn warn_of(problem: &LabelProblem) {
    wrong_label(problem).send(PgLogLevel::WARNING);
}

/// A login passed over a label, or a part of it.
pub fn log_wrong_label(problem: &LabelProblem) {
    wrong_label(problem).send(PgLogLevel::LOG_SERVER_ONLY);
}

fn wrong_label(problem: &LabelProblem) -> Report {
    let words = problem.words(&catalog::name_of);
    Report::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, words)
}

/// A query is about a label that cannot be read.
pub fn label_is_invalid(object: Object, why: &str) -> ! {
    let mut message = b"invalid session_limit ".to_vec();
    message.extend(Source::Label(object).words(&catalog::name_of));
    Report::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
        .detail(sentence(why))
        .error()
}

/// The value that a setting was to have is no good: the server says which, and keeps the old one.
pub fn bad_setting(why: &str, target: LabelTarget) {
    say_of_setting(sentence(why), example(target).into_bytes());
}

/// The list that `log_events` was to have names something else.
pub fn not_an_event(why: &str) {
    let mut hint = "Name none, excess, all, or some of".to_string();
    // Not with `join`: the compiler unrolls that for an array, and thinks about it for minutes.
    for (index, kind) in EventKind::ALL.into_iter().enumerate() {
        hint += if index == 0 { " " } else { ", " };
        hint += kind.word();
    }
    hint.push('.');
    say_of_setting(sentence(why), hint.into_bytes());
}

fn say_of_setting(detail: Vec<u8>, hint: Vec<u8>) {
    let say = |text: Vec<u8>| {
        let text = composed(text);
        // SAFETY: what the macros GUC_check_errdetail and GUC_check_errhint do; the text is copied.
        unsafe {
            pg_sys::pre_format_elog_string(0, std::ptr::null());
            pg_sys::format_elog_string(c"%s".as_ptr(), text.as_ptr())
        }
    };
    // SAFETY: variables of this process, for the check hook that calls this.
    unsafe {
        pg_sys::GUC_check_errdetail_string = say(detail);
        pg_sys::GUC_check_errhint_string = say(hint);
    }
}

/// The server is about to start with such a value of `cluster_limits`.
pub fn cannot_start(value: &CStr, why: &str, target: LabelTarget) -> ! {
    let mut message = b"invalid value for parameter \"session_limit.cluster_limits\": \"".to_vec();
    message.extend(value.to_bytes());
    message.push(b'"');
    Report::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
        .detail(sentence(why))
        .hint(example(target))
        .fatal()
}

fn example(target: LabelTarget) -> String {
    format!("Example: {}", target.example())
}
