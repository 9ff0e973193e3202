//! Every error that a user can see.
//!
//! Where the server has a message for it, ours is the same, translated as the server's, so that
//! whatever watches for that one works as before. A refused login is told after AuthenticationOk,
//! as the server does: libpq with `sslmode=prefer` takes an earlier error for a failure of TLS and
//! tries again without. Names are bytes in an unknown encoding and stay so.

use crate::catalog::name_of;
use crate::compat;
use crate::decide::{Excess, Shown};
use crate::facts::Trouble;
use crate::grammar::{Carrier, MAX_LABEL_BYTES};
use crate::limit::{Limit, Object, Scope, Source, Who};
use crate::{login, settings};
use pgrx::pg_sys::{self, panic::ErrorReport};
use pgrx::{PgLogLevel, PgSqlErrorCode};
use std::ffi::{CStr, CString, c_char, c_int};
use std::net::IpAddr;
use std::time::Duration;

unsafe extern "C-unwind" {
    fn errstart(level: c_int, domain: *const c_char) -> bool;
    fn errcode(code: c_int) -> c_int;
    fn errmsg(format: *const c_char, ...) -> c_int;
    fn errdetail(format: *const c_char, ...) -> c_int;
    fn errhint(format: *const c_char, ...) -> c_int;
    fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
}

pub fn no_such_role(name: &CStr) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION;
    Refusal::new(code, c"role \"%s\" does not exist", name).end()
}

pub fn role_may_not_log_in(name: &CStr) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION;
    Refusal::new(code, c"role \"%s\" is not permitted to log in", name).end()
}

pub fn role_may_not_replicate() -> ! {
    let (message, detail) = compat::NOT_A_WALSENDER;
    let code = PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE;
    Refusal {
        detail: detail.map(|(format, word)| Text::Format(format, word)),
        ..Refusal::new(code, message, c"")
    }
    .end()
}

pub fn no_such_database(name: &CStr) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_CATALOG_NAME;
    Refusal::new(code, c"database \"%s\" does not exist", name).end()
}

pub fn database_is_invalid(name: &CStr) -> ! {
    let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
    let hint = Some(Text::literal(
        c"Use DROP DATABASE to drop invalid databases.",
    ));
    Refusal {
        hint,
        ..Refusal::new(code, c"cannot connect to invalid database \"%s\"", name)
    }
    .end()
}

pub fn database_accepts_no_connections(name: &CStr) -> ! {
    let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
    Refusal::new(
        code,
        c"database \"%s\" is not currently accepting connections",
        name,
    )
    .end()
}

pub fn may_not_connect(database: &[u8]) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE;
    let detail = Some(Text::literal(c"User does not have CONNECT privilege."));
    let name = composed(database.to_vec());
    Refusal {
        detail,
        ..Refusal::new(code, c"permission denied for database \"%s\"", &name)
    }
    .end()
}

/// The DETAIL for a session of the role `own` that ends for a newer one.
pub fn replaced_by(own: u32, address: Option<IpAddr>) -> CString {
    let mut text = b"This session was replaced by a newer session of role \"".to_vec();
    text.extend(own_name(Object::Role(own)));
    text.extend(format!("\" from {}.", place(address)).bytes());
    composed(text)
}

/// The DETAIL for a session of the role `own` that ends for a limit that was lowered, or set, after it
/// came. It can look no name up: it knows those of its own role and database.
pub fn swept(source: Source, in_use: u32, max: u32, own: u32) -> CString {
    let place = match source {
        Source::Label(Object::Role(oid)) if oid != own => [
            b"label on a role that ",
            own_name(Object::Role(own)).as_slice(),
            b" is a member of",
        ]
        .concat(),
        _ => source.words(&own_name),
    };
    let (are, there) = (are(in_use), sessions(in_use));
    let mut text = format!("There {are} {there} under a limit of {max} (").into_bytes();
    text.extend(place);
    text.extend(b").");
    composed(text)
}

/// The name of this session's own role or database; its OID if the client may have no characters for it:
/// the server would tell that then, and no more why the session ends.
fn own_name(object: Object) -> Vec<u8> {
    let (oid, name) = match object {
        Object::Role(oid) => (oid, login::own_role()),
        Object::Database(oid) => (oid, login::own_database()),
    };
    // SAFETY: reads variables of this process.
    let same_encoding =
        unsafe { pg_sys::pg_get_client_encoding() == pg_sys::GetDatabaseEncoding() };
    match same_encoding || name.to_bytes().is_ascii() {
        true => name.to_bytes().to_vec(),
        false => oid.to_string().into_bytes(),
    }
}

/// The login is over a limit, and has waited as long as it may; also for the session of this process to
/// end, if one was told to.
pub fn too_many(excess: &Excess, waited: Option<Duration>, told: Option<u32>) -> ! {
    let (message, name) = too_many_for(&excess.limit);
    let hint = match settings::refusal_hint() {
        Some(hint) => Text::Composed(hint),
        None if excess.own > 0 => {
            Text::literal(c"Close one of these sessions, or ask for the limit to be raised.")
        }
        None => Text::literal(c"Try again later, or ask for the limit to be raised."),
    };
    Refusal {
        detail: Some(Text::Composed(what_is_in_the_way(excess, waited, told))),
        hint: Some(hint),
        ..Refusal::new(PgSqlErrorCode::ERRCODE_TOO_MANY_CONNECTIONS, message, &name)
    }
    .end()
}

/// The server's message where it has one, which it may translate.
fn too_many_for(limit: &Limit) -> (&'static CStr, CString) {
    match limit.scope {
        Scope {
            who: Who::Role(oid),
            database: None,
            network: None,
        } => (
            c"too many connections for role \"%s\"",
            composed(login::name_of(Object::Role(oid))),
        ),
        Scope {
            who: Who::Anyone,
            database: Some(oid),
            network: None,
        } => (
            c"too many connections for database \"%s\"",
            composed(login::name_of(Object::Database(oid))),
        ),
        _ => (c"%s", composed(limit.message(&login::name_of))),
    }
}

/// A label that covers the login cannot be read.
pub fn invalid_label(object: Object, why: &str) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
    let label = composed(Source::Label(object).words(&name_of));
    let hint = c"Ask a superuser to set the label anew, or to remove it.";
    Refusal {
        detail: Some(Text::Composed(composed(sentence(why).into_bytes()))),
        hint: Some(Text::literal(hint)),
        ..Refusal::new(code, c"invalid session_limit %s", &label)
    }
    .end()
}

/// A waiting login was told to stop, or the server is shutting down.
pub fn terminated() -> ! {
    let code = PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN;
    let message = c"terminating connection due to administrator command";
    Refusal::new(code, message, c"").end()
}

/// A waiting login's client has closed the connection: nobody is left to tell.
pub fn client_is_gone() -> ! {
    // SAFETY: a plain variable of this process.
    unsafe { pg_sys::whereToSendOutput = pg_sys::CommandDest::DestNone };
    let code = PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE;
    Refusal::new(code, c"connection to client lost", c"").raise()
}

/// A label that is to be set says what it may not.
pub fn bad_label(why: &str, carrier: Carrier) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
    refuse(
        code,
        "invalid session_limit label",
        sentence(why),
        example(carrier),
    )
}

pub fn label_too_long(bytes: usize, carrier: Carrier) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
    refuse(
        code,
        "invalid session_limit label",
        format!("The label has {bytes} bytes; a login can read {MAX_LABEL_BYTES}."),
        format!(
            "Leave out blanks, or spread the limits over several groups. {}",
            example(carrier)
        ),
    )
}

pub fn labels_are_for_roles_and_databases() -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
    refuse(
        code,
        "session_limit labels are for roles and databases only",
        "No other object has sessions.",
        format!(
            "Use SECURITY LABEL FOR session_limit ON ROLE or ON DATABASE. {}",
            example(Carrier::Database)
        ),
    )
}

pub fn only_superusers_label_groups() -> ! {
    let code = PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE;
    refuse(
        code,
        "must be superuser to set the session_limit label of a role without LOGIN",
        "Such a label limits the role's members, and whoever administers the role can make anyone a member.",
        format!(
            "Ask a superuser, or label a role that can log in. {}",
            example(Carrier::Role)
        ),
    )
}

pub fn only_superusers_turn_labels(can_login: bool) -> ! {
    let hint = match can_login {
        true => "Ask a superuser.",
        false => "Remove the label first, or ask a superuser.",
    };
    let code = PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE;
    refuse(
        code,
        "must be superuser to change LOGIN of a role with such a session_limit label",
        "Without LOGIN the label is about the role's members.",
        hint,
    )
}

/// A role gets, or loses, LOGIN, and keeps a label that it could not be given now.
pub fn label_fits_no_more(why: &str, can_login: bool) {
    let code = PgSqlErrorCode::ERRCODE_WARNING;
    let with = if can_login { "with" } else { "without" };
    let message = format!("the role's session_limit label does not fit a role {with} LOGIN");
    ErrorReport::new(code, message, "")
        .set_detail(sentence(why))
        .set_hint("Until the role is altered back, such a limit has no effect, and a dump would be restored without this label.")
        .report(PgLogLevel::WARNING);
}

pub fn only_superusers_exempt() -> ! {
    let code = PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE;
    refuse(
        code,
        "must be superuser to exempt a role from limits",
        "Field \"exempt\" is true.",
        format!(
            "Ask a superuser, or leave it out. {}",
            example(Carrier::Role)
        ),
    )
}

/// A label that is set allows more than the server will.
pub fn connection_limit_is_smaller(object: &str, connection_limit: i32) {
    let code = PgSqlErrorCode::ERRCODE_WARNING;
    let message = format!(
        "the {object}'s CONNECTION LIMIT, {connection_limit}, is smaller than the label's limit"
    );
    ErrorReport::new(code, message, "")
        .set_detail("The smaller one applies.")
        .report(PgLogLevel::WARNING);
}

/// The server starts without the numbers that it stopped with.
pub fn stats_are_lost(file: &str, why: &str) {
    log(format!(
        "session_limit: could not read \"{file}\", statistics begin anew: {why}"
    ));
}

/// The server stops, and will start without its numbers.
pub fn stats_are_not_kept(file: &str, why: &std::io::Error) {
    log(format!(
        "session_limit: could not write \"{file}\", statistics are not kept: {why}"
    ));
}

fn log(message: String) {
    let code = PgSqlErrorCode::ERRCODE_IO_ERROR;
    ErrorReport::new(code, message, "").report(PgLogLevel::LOG);
}

/// The value that a setting was to have is no good: the server says which, and keeps the old one.
pub fn bad_setting(why: &str, carrier: Carrier) {
    let say = |text: String| {
        let text = composed(text.into_bytes());
        // SAFETY: what the macros GUC_check_errdetail and GUC_check_errhint do; the text is copied.
        unsafe {
            pg_sys::pre_format_elog_string(0, std::ptr::null());
            pg_sys::format_elog_string(c"%s".as_ptr(), text.as_ptr())
        }
    };
    // SAFETY: variables of this process, for the check hook that calls this.
    unsafe {
        pg_sys::GUC_check_errdetail_string = say(sentence(why));
        pg_sys::GUC_check_errhint_string = say(example(carrier));
    }
}

/// The server is about to start with such a value of `cluster_limits`.
pub fn cannot_start(value: &CStr, why: &str, carrier: Carrier) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
    let message = c"invalid value for parameter \"session_limit.cluster_limits\": \"%s\"";
    Refusal {
        detail: Some(Text::Composed(composed(sentence(why).into_bytes()))),
        hint: Some(Text::Composed(composed(example(carrier).into_bytes()))),
        ..Refusal::new(code, message, value)
    }
    .raise()
}

fn example(carrier: Carrier) -> String {
    format!("A right one is: {}", carrier.example())
}

/// As a DETAIL is written. It may cite anything, a zero byte, too, at which it must not end.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_uppercase());
    let mut sentence = String::new();
    for char in first.into_iter().chain(chars).chain(['.']) {
        match char.is_control() {
            true => sentence.extend(char.escape_default()),
            false => sentence.push(char),
        }
    }
    sentence
}

fn composed(text: Vec<u8>) -> CString {
    CString::new(text).unwrap_or_default()
}

/// For messages that pgrx must have as UTF-8.
fn text(name: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(name)
}

fn fail(code: PgSqlErrorCode, message: String) -> ! {
    raise(ErrorReport::new(code, message, ""))
}

fn refuse(
    code: PgSqlErrorCode,
    message: &'static str,
    detail: impl Into<String>,
    hint: impl Into<String>,
) -> ! {
    raise(
        ErrorReport::new(code, message, "")
            .set_detail(detail)
            .set_hint(hint),
    )
}

fn raise(report: ErrorReport) -> ! {
    report.report(PgLogLevel::ERROR);
    unreachable!("an error does not return")
}

/// A query met a label that is wrong.
pub fn warn_of(trouble: &Trouble) {
    let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
    ErrorReport::new(code, trouble.to_string(), "").report(PgLogLevel::WARNING);
}

/// Such a login would be refused for the sake of a label.
pub fn label_is_invalid(object: Object, why: &str) -> ! {
    let label = Source::Label(object).words(&name_of);
    let message = format!("invalid session_limit {}", text(&label));
    let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
    raise(ErrorReport::new(code, message, "").set_detail(sentence(why)))
}

pub fn undefined_role(name: &CStr) -> ! {
    let code = PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT;
    fail(
        code,
        format!("role \"{}\" does not exist", text(name.to_bytes())),
    )
}

pub fn cannot_log_in(name: &[u8]) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION;
    fail(
        code,
        format!("role \"{}\" is not permitted to log in", text(name)),
    )
}

pub fn must_not_be_null(argument: &str) -> ! {
    let code = PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED;
    fail(code, format!("{argument} must not be null"))
}

pub fn nothing_to_label() -> ! {
    let code = PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED;
    let hint = "Name the role or the database whose label is to change.";
    raise(ErrorReport::new(code, "role and database must not both be null", "").set_hint(hint))
}

pub fn no_such_limit() -> ! {
    let code = PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT;
    let hint =
        "A limit is found by \"per\", \"database\" and \"network\". See session_limit.limits.";
    raise(ErrorReport::new(code, "the label has no such limit", "").set_hint(hint))
}

pub fn undefined_database(name: &CStr) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_CATALOG_NAME;
    fail(
        code,
        format!("database \"{}\" does not exist", text(name.to_bytes())),
    )
}

pub fn cannot_connect_to(name: &[u8]) -> ! {
    let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
    fail(
        code,
        format!(
            "database \"{}\" is not currently accepting connections",
            text(name)
        ),
    )
}

pub fn not_an_address(text: &str) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
    fail(code, format!("\"{text}\" is not a client's address"))
}

pub fn may_not_explain(role: &[u8]) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE;
    let message = format!(
        "permission denied to explain a login of role \"{}\"",
        text(role)
    );
    let detail =
        "Only roles with privileges of that role, or of the role \"pg_read_all_stats\", may.";
    raise(ErrorReport::new(code, message, "").set_detail(detail))
}

/// A SQL function needs the table in shared memory.
pub fn not_preloaded() -> ! {
    raise(
        ErrorReport::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "session_limit must be loaded via \"shared_preload_libraries\"",
            "",
        )
        .set_hint("Add session_limit to shared_preload_libraries in postgresql.conf and restart the server."),
    )
}

/// A text that the server may translate, with the string for its `%s` if it has one; or one that
/// was composed.
enum Text {
    Format(&'static CStr, &'static CStr),
    Composed(CString),
}

impl Text {
    fn literal(text: &'static CStr) -> Text {
        Text::Format(text, c"")
    }

    /// A format with at most one `%s`, and the string for it.
    fn format(&self) -> (&CStr, &CStr) {
        match self {
            Text::Format(format, argument) => (format, argument),
            Text::Composed(text) => (c"%s", text),
        }
    }
}

/// A FATAL error: it ends the process without unwinding.
struct Refusal<'a> {
    code: PgSqlErrorCode,
    /// With at most one `%s`, for `name`.
    message: &'static CStr,
    name: &'a CStr,
    detail: Option<Text>,
    hint: Option<Text>,
}

impl<'a> Refusal<'a> {
    fn new(code: PgSqlErrorCode, message: &'static CStr, name: &'a CStr) -> Self {
        Refusal {
            code,
            message,
            name,
            detail: None,
            hint: None,
        }
    }

    /// Tells the client that it is authenticated, then that it is refused.
    fn end(self) -> ! {
        // SAFETY: the hook runs where the server sends this very message, AuthenticationOk, next.
        unsafe {
            let mut message = pg_sys::StringInfoData::default();
            pg_sys::pq_beginmessage(&mut message, b'R' as c_char);
            pg_sys::pq_sendbytes(&mut message, [0u8; 4].as_ptr().cast(), 4);
            pg_sys::pq_endmessage(&mut message);
        }
        self.raise()
    }

    fn raise(self) -> ! {
        // SAFETY: the server's own sequence for an error; every text outlives it, and no format
        // asks for more than its one string.
        unsafe {
            errstart(pg_sys::FATAL as c_int, std::ptr::null());
            errcode(self.code as c_int);
            errmsg(self.message.as_ptr(), self.name.as_ptr());
            if let Some((format, text)) = self.detail.as_ref().map(Text::format) {
                errdetail(format.as_ptr(), text.as_ptr());
            }
            if let Some((format, text)) = self.hint.as_ref().map(Text::format) {
                errhint(format.as_ptr(), text.as_ptr());
            }
            errfinish(c"session_limit".as_ptr(), 0, c"".as_ptr());
        }
        unreachable!("FATAL ends the process")
    }
}

/// The limit, where it is set, what is in use, and of that the role's own sessions: a user learns
/// nothing of others.
fn what_is_in_the_way(excess: &Excess, waited: Option<Duration>, told: Option<u32>) -> CString {
    let Excess {
        limit,
        in_use,
        ahead,
        own,
        shown,
    } = excess;
    let mut text = format!("The limit is {} (", sessions(limit.max)).into_bytes();
    text.extend(limit.source.words(&login::name_of));
    text.extend(format!("); {in_use} {} in use", are(*in_use)).bytes());
    if *own > 0 {
        let by = match limit.scope.who {
            Who::Role(_) => String::new(),
            _ if own == in_use => ", all by this role".to_string(),
            Who::Anyone | Who::MembersOf(_) => format!(", {own} of them by this role"),
        };
        let list: Vec<String> = shown.iter().flatten().map(describe).collect();
        let more = match *own as usize - list.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        text.extend(format!("{by}: {}{more}", list.join(", ")).bytes());
    }
    text.push(b'.');
    if *ahead > 0 {
        let verb = if *ahead == 1 {
            "login goes"
        } else {
            "logins go"
        };
        text.extend(
            format!(" The room is for {ahead} that came before: waiting {verb} first.").bytes(),
        );
    }
    if let Some(waited) = waited {
        text.extend(format!(" The login waited {} ms for room.", waited.as_millis()).bytes());
    }
    if told.is_none() && limit.replaces() && *own > 0 {
        text.extend(b" None of these sessions may be replaced now.");
    }
    if let Some(pid) = told {
        text.extend(
            format!(" The session of pid {pid} was told to end for this one, and has not ended.")
                .bytes(),
        );
    }
    composed(text)
}

fn sessions(number: u32) -> String {
    format!("{number} session{}", if number == 1 { "" } else { "s" })
}

fn are(number: u32) -> &'static str {
    if number == 1 { "is" } else { "are" }
}

fn place(address: Option<IpAddr>) -> String {
    address.map_or("a local socket".to_string(), |address| address.to_string())
}

fn describe(session: &Shown) -> String {
    let from = place(session.address);
    // SAFETY: returns a string in a static buffer, copied before the next call.
    let started = unsafe { CStr::from_ptr(pg_sys::timestamptz_to_str(session.started)) };
    format!(
        "pid {} from {from} since {}",
        session.pid,
        started.to_string_lossy()
    )
}
