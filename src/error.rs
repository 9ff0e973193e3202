//! Every error that a user can see.
//!
//! Where the server has a message for it, ours is the same, translated as the server's, so that
//! whatever watches for that one works as before. A refused login is told after AuthenticationOk,
//! as the server does: libpq with `sslmode=prefer` takes an earlier error for a failure of TLS and
//! tries again without. Names are bytes in an unknown encoding and stay so.

use crate::compat;
use crate::decide::{Excess, Shown};
use crate::limit::Scope;
use crate::login::Client;
use crate::settings;
use pgrx::pg_sys::{self, panic::ErrorReport};
use pgrx::{PgLogLevel, PgSqlErrorCode};
use std::ffi::{CStr, CString, c_char, c_int};
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

/// The login is over a limit, and has waited as long as it may.
pub fn too_many(client: &Client, excess: &Excess, waited: Option<Duration>) -> ! {
    let message = match excess.limit.scope {
        Scope::Role(_) => c"too many connections for role \"%s\"",
        Scope::Database(_) => c"too many connections for database \"%s\"",
    };
    let name = client.subject(excess.limit.scope);
    let hint = match settings::refusal_hint() {
        Some(hint) => Text::Composed(hint),
        None if excess.own > 0 => {
            Text::literal(c"Close one of these sessions, or ask for the limit to be raised.")
        }
        None => Text::literal(c"Try again later, or ask for the limit to be raised."),
    };
    Refusal {
        detail: Some(Text::Composed(what_is_in_the_way(client, excess, waited))),
        hint: Some(hint),
        ..Refusal::new(PgSqlErrorCode::ERRCODE_TOO_MANY_CONNECTIONS, message, name)
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

/// A SQL function needs the table in shared memory.
pub fn not_preloaded() -> ! {
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        "session_limit must be loaded via \"shared_preload_libraries\"",
        "",
    )
    .set_hint(
        "Add session_limit to shared_preload_libraries in postgresql.conf and restart the server.",
    )
    .report(PgLogLevel::ERROR);
    unreachable!()
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
fn what_is_in_the_way(client: &Client, excess: &Excess, waited: Option<Duration>) -> CString {
    let Excess {
        limit,
        in_use,
        ahead,
        own,
        shown,
    } = excess;
    let name = client.subject(limit.scope);
    let mut text = format!("The limit is {} (", sessions(limit.max)).into_bytes();
    text.extend(limit.source_name(name.to_bytes()));
    text.extend(format!("); {in_use} {} in use", are(*in_use)).bytes());
    if *own > 0 {
        let by = match limit.scope {
            Scope::Role(_) => String::new(),
            Scope::Database(_) => format!(", {own} of them by this role"),
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
    CString::new(text).unwrap_or_default()
}

fn sessions(number: u32) -> String {
    format!("{number} session{}", if number == 1 { "" } else { "s" })
}

fn are(number: u32) -> &'static str {
    if number == 1 { "is" } else { "are" }
}

fn describe(session: &Shown) -> String {
    let from = session
        .address
        .map_or("a local socket".to_string(), |address| address.to_string());
    // SAFETY: returns a string in a static buffer, copied before the next call.
    let started = unsafe { CStr::from_ptr(pg_sys::timestamptz_to_str(session.started)) };
    format!(
        "pid {} from {from} since {}",
        session.pid,
        started.to_string_lossy()
    )
}
