//! What the server log says of decisions: `session_limit: ` and one JSON object a line.

use crate::catalog;
use crate::decide::{Admission, Excess};
use crate::facts::Trouble;
use crate::limit::{Limit, Object};
use crate::login::{Client, Decision, Outcome};
use crate::sessions::Session;
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys::panic::ErrorReport};
use serde::Serialize;
use std::ffi::CStr;
use std::net::IpAddr;

#[derive(Serialize)]
struct WouldRefuse<'a> {
    event: &'static str,
    role: String,
    database: Option<String>,
    client_addr: Option<IpAddr>,
    pid: u32,
    source: &'a str,
    per: &'static str,
    subject: Option<&'a str>,
    in_use: u32,
    max: u32,
}

pub fn decided(decision: &Decision) {
    if let Outcome::Admitted(Admission {
        over: Some((excess, _)),
        ..
    }) = decision.outcome
    {
        would_refuse(decision.client, excess);
    }
}

/// A login that is admitted only because nothing is enforced.
fn would_refuse(client: &Client, excess: &Excess) {
    let source = excess.limit.source.words(&catalog::name_of);
    let subject = excess.limit.subject(&catalog::name_of);
    let subject = subject.as_deref().map(String::from_utf8_lossy);
    log(&WouldRefuse {
        event: "would_refuse",
        role: text(client.role),
        database: client.database.map(text),
        client_addr: client.address,
        pid: std::process::id(),
        source: &String::from_utf8_lossy(&source),
        per: excess.limit.per.word(),
        subject: subject.as_deref(),
        in_use: excess.in_use,
        max: excess.limit.max,
    });
}

#[derive(Serialize)]
struct Reclaimed {
    event: &'static str,
    /// The worker has no catalogs to look its name up in.
    role_oid: u32,
    pid: u32,
}

/// A slot was freed for a process that is gone and did not free it: never expected.
pub fn reclaimed(pid: u32, role: u32) {
    log(&Reclaimed {
        event: "reclaimed",
        role_oid: role,
        pid,
    });
}

#[derive(Serialize)]
struct Swept<'a> {
    event: &'static str,
    action: &'static str,
    #[serde(flatten)]
    ended: Option<Ended>,
    source: &'a str,
    per: &'static str,
    subject: Option<&'a str>,
    in_use: u32,
    max: u32,
}

#[derive(Serialize)]
struct Ended {
    role: String,
    /// None for a walsender without a database.
    database: Option<String>,
    client_addr: Option<IpAddr>,
    pid: u32,
}

/// So many sessions are over a limit that was lowered, or set, after they came: it is only said, or
/// this one was told to end.
pub fn swept(limit: &Limit, in_use: u32, ended: Option<(u32, &Session)>) {
    let name = |object| String::from_utf8_lossy(&catalog::name_of(object)).into_owned();
    let source = limit.source.words(&catalog::name_of);
    let subject = limit.subject(&catalog::name_of);
    let subject = subject.as_deref().map(String::from_utf8_lossy);
    log(&Swept {
        event: "swept",
        action: ended.map_or("log", |_| "terminate"),
        ended: ended.map(|(pid, session)| Ended {
            role: name(Object::Role(session.role)),
            database: (session.database != 0).then(|| name(Object::Database(session.database))),
            client_addr: session.address,
            pid,
        }),
        source: &String::from_utf8_lossy(&source),
        per: limit.per.word(),
        subject: subject.as_deref(),
        in_use,
        max: limit.max,
    });
}

/// A label that a login had to pass over, in part or as a whole.
pub fn trouble(trouble: &Trouble) {
    let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
    ErrorReport::new(code, trouble.to_string(), "").report(PgLogLevel::LOG);
}

/// JSON is Unicode; names are bytes, usually UTF-8.
fn text(name: &CStr) -> String {
    name.to_string_lossy().into_owned()
}

fn log(event: &impl Serialize) {
    let json = serde_json::to_string(event).unwrap_or_else(|error| error.to_string());
    let code = PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION;
    ErrorReport::new(code, format!("session_limit: {json}"), "").report(PgLogLevel::LOG);
}
