//! What a login that is refused, and a session that is told to end, are told.
//!
//! Where the server has a message for it, ours is the same, translated as the server's, so that whatever watches for
//! that one works as before. Names are bytes in an unknown encoding and stay so.

use crate::error::report::{Report, Text, composed, sentence};
use crate::pg::catalog;
use crate::pg::client::{self, has_database_encoding, own_database, own_role};
use crate::pg::compat;
use model::account::Account;
use model::limit::{Limit, Object, Scope, Source, Unit, Who};
use model::servers::place::{Holder, KnownServer};
use model::verdict::{Elsewhere, Excess, NotWaited, ShownSession};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use std::ffi::{CStr, CString};
use std::net::IpAddr;
use std::time::Duration;

pub fn no_such_role(name: &CStr) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION;
    let message = Text::about(c"role \"%s\" does not exist", name.to_bytes());
    Report::new(code, message).refuse()
}

pub fn role_may_not_log_in(name: &CStr) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION;
    let message = Text::about(c"role \"%s\" is not permitted to log in", name.to_bytes());
    Report::new(code, message).refuse()
}

pub fn role_may_not_replicate() -> ! {
    let (message, detail) = compat::NOT_A_WALSENDER;
    let report = Report::new(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, message);
    match detail {
        Some((format, word)) => report.detail(Text::about(format, word.to_bytes())).refuse(),
        None => report.refuse(),
    }
}

pub fn no_such_database(name: &CStr) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_CATALOG_NAME;
    let message = Text::about(c"database \"%s\" does not exist", name.to_bytes());
    Report::new(code, message).refuse()
}

pub fn database_is_invalid(name: &CStr) -> ! {
    let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
    let message = Text::about(
        c"cannot connect to invalid database \"%s\"",
        name.to_bytes(),
    );
    Report::new(code, message)
        .hint(c"Use DROP DATABASE to drop invalid databases.")
        .refuse()
}

pub fn database_accepts_no_connections(name: &CStr) -> ! {
    let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
    let format = c"database \"%s\" is not currently accepting connections";
    Report::new(code, Text::about(format, name.to_bytes())).refuse()
}

pub fn may_not_connect(database: &[u8]) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE;
    Report::new(
        code,
        Text::about(c"permission denied for database \"%s\"", database),
    )
    .detail(c"User does not have CONNECT privilege.")
    .refuse()
}

/// The login is over a limit, and has waited as long as it may. `told` is the process of a session that was told to end
/// for it and has not ended. `servers` are those that count together, if the limit is across servers. `hint` is what the
/// setting says.
pub fn too_many(
    excess: &Excess,
    waited: Option<Duration>,
    told: Option<u32>,
    servers: Option<&[KnownServer]>,
    hint: Option<CString>,
) -> ! {
    let hint = match hint {
        Some(hint) => Text::Composed(hint),
        None if excess.limit.max == 0 => {
            Text::literal(c"Under this limit no login is let in; ask for it to be raised.")
        }
        None if is_queue_full(not_waited(excess, waited)) => {
            Text::literal(c"Try again in a moment, or ask for session_limit.max_waiters or the limit to be raised.")
        }
        None if excess.own > 0 && excess.limit.unit == Unit::Session => {
            Text::literal(c"Close one of these sessions, or ask for the limit to be raised.")
        }
        // If other roles count, too, an address may be theirs.
        None if excess.own > 0 && matches!(excess.limit.scope.who, Who::Role(_)) => {
            Text::literal(c"Close all sessions from one of these addresses, or ask for the limit to be raised.")
        }
        None => Text::literal(c"Try again later, or ask for the limit to be raised."),
    };
    let code = PgSqlErrorCode::ERRCODE_TOO_MANY_CONNECTIONS;
    Report::new(code, too_many_for(&excess.limit))
        .detail(what_is_in_the_way(excess, waited, told, servers))
        .hint(hint)
        .refuse()
}

/// etcd cannot be reached, and without it the limit lets nobody in. Before the client is told that it is authenticated, libpq
/// goes on to the next host of its list.
pub fn cannot_ask_etcd(limit: &Limit) -> ! {
    let limit_is = format!(
        "The limit is {} across servers (",
        units(limit.unit, limit.max)
    );
    let mut detail = limit_is.into_bytes();
    detail.extend(limit.source.words(&client::name_of));
    detail.extend(b"), and etcd cannot be reached.");
    let code = PgSqlErrorCode::ERRCODE_CANNOT_CONNECT_NOW;
    Report::new(code, c"cannot let this session in without etcd")
        .detail(detail)
        .hint(c"Try again later, or connect to another server.")
        .fatal()
}

/// The server's message where it has one, which it may translate.
fn too_many_for(limit: &Limit) -> Text {
    let name = |oid| client::name_of(oid);
    match limit.scope {
        _ if limit.unit != Unit::Session => limit.message(&client::name_of).into(),
        Scope {
            who: Who::Role(oid),
            database: None,
            network: None,
        } => Text::about(
            c"too many connections for role \"%s\"",
            &name(Object::Role(oid)),
        ),
        Scope {
            who: Who::Anyone,
            database: Some(oid),
            network: None,
        } => Text::about(
            c"too many connections for database \"%s\"",
            &name(Object::Database(oid)),
        ),
        _ => limit.message(&client::name_of).into(),
    }
}

/// A label that covers the login cannot be read.
pub fn invalid_label(object: Object, why: &str) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
    let label = Source::Label(object).words(&catalog::name_of);
    Report::new(code, Text::about(c"invalid session_limit %s", &label))
        .detail(sentence(why))
        .hint(c"Ask a superuser to set the label anew, or to remove it.")
        .refuse()
}

/// A waiting login was told to stop, or the server is shutting down.
pub fn terminated() -> ! {
    let code = PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN;
    Report::new(code, c"terminating connection due to administrator command").refuse()
}

/// A waiting login's client has closed the connection: nobody is left to tell.
pub fn client_is_gone() -> ! {
    // SAFETY: a plain variable of this process.
    unsafe { pg_sys::whereToSendOutput = pg_sys::CommandDest::DestNone };
    let code = PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE;
    Report::new(code, c"connection to client lost").fatal()
}

/// The DETAIL for a session of the role `own` that ends for a newer one.
pub fn replaced_by(own: u32, address: Option<IpAddr>) -> CString {
    let mut text = b"This session was replaced by a newer session of role \"".to_vec();
    text.extend(own_name(Object::Role(own)));
    text.extend(format!("\" from {}.", place(address)).bytes());
    composed(text)
}

/// The DETAIL for a session whose role was dropped.
pub fn role_dropped() -> CString {
    c"The role of this session was dropped.".to_owned()
}

/// The DETAIL for a session of the role `own` that ends because a limit was lowered, or set, after it came. It can look
/// up no name: it knows those of its own role and database.
pub fn swept(source: Source, unit: Unit, in_use: u32, max: u32, own: u32) -> CString {
    let place = match source {
        Source::Label(Object::Role(oid)) if oid != own => [
            b"label on a role that ",
            own_name(Object::Role(own)).as_slice(),
            b" is a member of",
        ]
        .concat(),
        _ => source.words(&own_name),
    };
    let (are, there) = (are(in_use), units(unit, in_use));
    let mut text = format!("There {are} {there} under a limit of {max} (").into_bytes();
    text.extend(place);
    text.extend(b").");
    composed(text)
}

/// The name of this session's own role or database. Its OID if the client's encoding may lack characters of the name:
/// the server would then report that, and no more why the session ends.
fn own_name(object: Object) -> Vec<u8> {
    let (oid, name) = match object {
        Object::Role(oid) => (oid, own_role()),
        Object::Database(oid) => (oid, own_database()),
    };
    match has_database_encoding() || name.to_bytes().is_ascii() {
        true => name.to_bytes().to_vec(),
        false => oid.to_string().into_bytes(),
    }
}

/// The limit, where it is set, what is in use, and of that the role's own sessions: a user learns
/// nothing of others.
fn what_is_in_the_way(
    excess: &Excess,
    waited: Option<Duration>,
    told: Option<u32>,
    servers: Option<&[KnownServer]>,
) -> Vec<u8> {
    let Excess {
        limit,
        in_use,
        ahead,
        own,
        ..
    } = excess;
    let across = match servers {
        Some([_]) => " across 1 server".to_string(),
        Some(servers) => format!(" across {} servers", servers.len()),
        None => String::new(),
    };
    let mut text = format!("The limit is {}{across} (", units(limit.unit, limit.max)).into_bytes();
    text.extend(limit.source.words(&client::name_of));
    let own = match own {
        0 => String::new(),
        _ => own_sessions(excess),
    };
    let counted = match excess.elsewhere {
        Some(Elsewhere::Held(number, holder)) if number > 0 => {
            let all = in_use + number;
            let here = match in_use {
                0 => String::new(),
                _ => format!(" {in_use} on this server{own};"),
            };
            let there = on_servers(number, holder, servers.unwrap_or_default());
            format!("); {all} {} in use:{here} {number} {there}.", are(all))
        }
        _ => format!("); {in_use} {} in use{own}.", are(*in_use)),
    };
    text.extend(counted.bytes());
    if excess.elsewhere == Some(Elsewhere::Unknown) {
        text.extend(b" Other servers are not counted, because etcd cannot be reached.");
    }
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
        let waited = waited.as_millis();
        text.extend(format!(" The login waited {waited} ms for room.").bytes());
    }
    if let Some(why) = not_waited(excess, waited) {
        text.extend(format!(" The login did not wait: {}.", cannot_wait(why)).bytes());
    }
    if told.is_none() && limit.replaces() && excess.own > 0 {
        text.extend(b" None of these sessions may be replaced now.");
    }
    if let Some(pid) = told {
        text.extend(
            format!(" The session of pid {pid} was told to end for this one, and has not ended.")
                .bytes(),
        );
    }
    text
}

/// Where so many places are held.
fn on_servers(number: u32, holder: Holder, servers: &[KnownServer]) -> String {
    let holds_all = |server: &&KnownServer| server.id == holder.id && holder.places == number;
    match servers.iter().find(holds_all) {
        Some(server) => format!("on server {}", String::from_utf8_lossy(server.name())),
        None => "on other servers".to_string(),
    }
}

fn not_waited(excess: &Excess, waited: Option<Duration>) -> Option<NotWaited> {
    excess.not_waited.filter(|_| waited.is_none())
}

fn is_queue_full(why: Option<NotWaited>) -> bool {
    matches!(
        why,
        Some(NotWaited::QueueFull(_) | NotWaited::RoleQueueFull(_) | NotWaited::AccountFull(_))
    )
}

fn cannot_wait(why: NotWaited) -> String {
    let wait = |number| match number {
        1 => "1 login".to_string(),
        _ => format!("{number} logins"),
    };
    match why {
        NotWaited::QueueFull(number) => {
            let logins = wait(number);
            format!("{logins} wait already, as many as session_limit.max_waiters allows")
        }
        NotWaited::RoleQueueFull(number) => {
            let logins = wait(number);
            format!("{logins} of this role wait already, its share of session_limit.max_waiters")
        }
        NotWaited::AccountFull(Account::OF_ROLES) => {
            "no more logins may wait longer by the label on their role now, so that others can wait"
                .to_string()
        }
        NotWaited::AccountFull(_) => {
            "no more logins under limits on databases of this owner may wait now, so that others can"
                .to_string()
        }
        NotWaited::NoRoomForLimits => "the queue has no room for its limits".to_string(),
        NotWaited::WalSender => "WAL senders do not".to_string(),
        NotWaited::NothingToSpare => {
            "the connections that are left are reserved, or authentication_timeout leaves no time"
                .to_string()
        }
    }
}

/// How many of the sessions are the role's own, and the first few of those.
fn own_sessions(excess: &Excess) -> String {
    let own = excess.own;
    let by = match (excess.limit.unit, excess.limit.scope.who) {
        (Unit::Session, Who::Role(_)) => String::new(),
        (Unit::Session, _) if own == excess.in_use => ", all by this role".to_string(),
        (Unit::Session, Who::Anyone | Who::MembersOf(_)) => format!(", {own} of them by this role"),
        _ => format!(", with {} of this role", units(Unit::Session, own)),
    };
    let list: Vec<String> = excess.shown.iter().flatten().map(describe).collect();
    format!("{by}: {}", listed(&list, own))
}

/// The first of `all`.
pub(super) fn listed(list: &[String], all: u32) -> String {
    let more = match all as usize - list.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", list.join(", "))
}

fn units(unit: Unit, number: u32) -> String {
    let (one, several) = match unit {
        Unit::Session => ("session", "sessions"),
        Unit::Role => ("user", "users"),
        Unit::Address { .. } => ("client address", "client addresses"),
    };
    format!("{number} {}", if number == 1 { one } else { several })
}

pub(super) fn are(number: u32) -> &'static str {
    if number == 1 { "is" } else { "are" }
}

fn place(address: Option<IpAddr>) -> String {
    address.map_or("a local socket".to_string(), |address| address.to_string())
}

pub(super) fn describe(session: &ShownSession) -> String {
    let from = place(session.address);
    // SAFETY: returns a string in a static buffer, copied before the next call.
    let started = unsafe { CStr::from_ptr(pg_sys::timestamptz_to_str(session.started)) };
    format!(
        "pid {} from {from} since {}",
        session.pid,
        started.to_string_lossy()
    )
}
