//! The event log: each decision becomes a line of JSON in the server log, and a record for the view.

use crate::pg::backend::{now, tick, user};
use crate::pg::{catalog, client};
use crate::record::decision::{Decision, Outcome};
use crate::record::json::{Bytes, json};
use crate::settings;
use crate::shmem::{self, About};
use model::event::{EventKind, FixedText, Record};
use model::limit::{Across, Limit, Names, Object, Unit};
use model::seats::{Holder, Key};
use model::session::Session;
use model::sweep::Exceeded;
use model::throttle::{LineKey, Suppressed};
use model::verdict::{Admission, Elsewhere, Ended, Excess, NotWaited};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode};
use serde::Serialize;
use std::ffi::CStr;
use std::net::IpAddr;
use std::time::Duration;

/// What happened. Its JSON is the line in the log.
#[derive(Serialize)]
struct Event {
    #[serde(rename = "event")]
    kind: EventKind,
    #[serde(skip)]
    role_oid: u32,
    role: Option<Bytes>,
    database: Option<Bytes>,
    client_addr: Option<IpAddr>,
    pid: Option<u32>,
    #[serde(flatten)]
    detail: Detail,
}

/// What an event says besides.
#[derive(Serialize)]
#[serde(untagged)]
enum Detail {
    Nothing {},
    Waited {
        waited_ms: u128,
    },
    Over(OverLimit),
    Elsewhere {
        other_addr: Option<IpAddr>,
        other_pid: u32,
    },
    /// So many sessions are of a role that was dropped, and has no name any more.
    RoleDropped {
        action: &'static str,
        role_oid: u32,
        in_use: u32,
    },
    /// The worker has no catalogs to look the name up in.
    Reclaimed {
        role_oid: u32,
    },
    Seat(Seat),
    Unreachable {
        endpoint: String,
        reason: String,
    },
    Rejoined {
        places: u64,
    },
    ServerGone {
        server: Option<String>,
    },
}

/// A seat, or a call for one.
#[derive(Serialize)]
pub struct Seat {
    key: Bytes,
    max: u32,
    /// How many seats of the key are held, for a call that is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_use: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waited_ms: Option<u128>,
    /// Who has ended it, and that backend's process ID.
    #[serde(skip_serializing_if = "Option::is_none")]
    by_role: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by_pid: Option<u32>,
}

impl Seat {
    pub fn new(key: &Key, max: u32) -> Seat {
        Seat {
            key: Bytes(key.text().to_vec()),
            max,
            in_use: None,
            waited_ms: None,
            by_role: None,
            by_pid: None,
        }
    }

    pub fn of_call(self, in_use: Option<u32>, waited: Option<Duration>) -> Seat {
        Seat {
            in_use,
            waited_ms: waited.map(|waited| waited.as_millis()),
            ..self
        }
    }

    pub fn ended_by_me(self) -> Seat {
        Seat {
            by_role: Some(Bytes(catalog::name_of(Object::Role(user())))),
            by_pid: Some(std::process::id()),
            ..self
        }
    }
}

/// The limit that decided.
#[derive(Serialize)]
struct OverLimit {
    /// `log` or `terminate`, of a sweep.
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'static str>,
    source: Bytes,
    per: &'static str,
    /// Not if it is `sessions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<&'static str>,
    /// Not if it is `server`. Never beside `count`.
    #[serde(skip_serializing_if = "Option::is_none")]
    across: Option<&'static str>,
    subject: Option<Bytes>,
    in_use: u32,
    /// On other servers, if it counts across servers and that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    elsewhere: Option<u32>,
    max: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    waited_ms: Option<u128>,
    /// Why it did not wait, though the limit lets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_waited: Option<&'static str>,
    /// The process IDs of the first few sessions that end for the login.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ended_pids: Vec<u32>,
}

/// How a login ended.
pub fn decided(decision: &Decision) {
    let (admission, kind, detail) = what_happened(decision);
    // Admissions are recorded only if the log has them, too: they would push everything else out of the ring.
    if !kind.is_usual() || settings::log_events().has(kind) {
        tell(&of_login(decision, kind, detail));
    }
    if let Some(other) = admission.and_then(|admission| admission.elsewhere) {
        let detail = Detail::Elsewhere {
            other_addr: other.address,
            other_pid: other.pid,
        };
        tell(&of_login(decision, EventKind::ConcurrentAddresses, detail));
    }
}

fn what_happened<'a>(decision: &Decision<'a>) -> (Option<&'a Admission>, EventKind, Detail) {
    let waited = decision.waited;
    match decision.outcome {
        Outcome::Admitted(admission) => match (&admission.over, waited) {
            (Some((excess, ended)), _) => {
                let kind = match ended.number {
                    0 => EventKind::WouldRefuse,
                    _ => EventKind::WouldReplace,
                };
                (Some(admission), kind, over_limit(excess, ended, waited))
            }
            (None, Some(waited)) => {
                let waited_ms = waited.as_millis();
                (
                    Some(admission),
                    EventKind::Waited,
                    Detail::Waited { waited_ms },
                )
            }
            (None, None) => (Some(admission), EventKind::Admitted, Detail::Nothing {}),
        },
        Outcome::Replaced(admission, ended, excess) => {
            let detail = over_limit(excess, ended, waited);
            (Some(admission), EventKind::Replaced, detail)
        }
        Outcome::Abandoned => {
            let detail = waited.map_or(Detail::Nothing {}, |waited| Detail::Waited {
                waited_ms: waited.as_millis(),
            });
            (None, EventKind::Abandoned, detail)
        }
        Outcome::Refused(excess, _) => {
            let detail = over_limit(excess, &Ended::default(), waited);
            (None, EventKind::Refused, detail)
        }
    }
}

fn of_login(decision: &Decision, kind: EventKind, detail: Detail) -> Event {
    let name = |name: &CStr| Bytes(name.to_bytes().to_vec());
    let client = decision.client;
    Event {
        kind,
        role_oid: decision.session.role,
        role: Some(name(client.role)),
        database: client.database.map(name),
        client_addr: client.address,
        pid: Some(std::process::id()),
        detail,
    }
}

fn over_limit(excess: &Excess, ended: &Ended, waited: Option<Duration>) -> Detail {
    Detail::Over(OverLimit {
        waited_ms: waited.map(|waited| waited.as_millis()),
        not_waited: excess
            .not_waited
            .filter(|_| waited.is_none())
            .map(NotWaited::word),
        ended_pids: ended.shown.iter().flatten().copied().collect(),
        elsewhere: match excess.elsewhere {
            Some(Elsewhere::Held(number, _)) => Some(number),
            _ => None,
        },
        ..of_limit(&excess.limit, excess.in_use, &client::name_of)
    })
}

fn of_limit(limit: &Limit, in_use: u32, names: Names) -> OverLimit {
    OverLimit {
        action: None,
        source: Bytes(limit.source.words(names)),
        per: limit.per.word(),
        count: (limit.unit != Unit::Session).then(|| limit.unit.count().word()),
        across: (limit.across != Across::Server).then(|| limit.across.word()),
        subject: limit.subject(names).map(Bytes),
        in_use,
        elsewhere: None,
        max: limit.max,
        waited_ms: None,
        not_waited: None,
        ended_pids: Vec::new(),
    }
}

/// The worker has freed the slot of a process that is gone and did not free it. This should never happen.
pub fn reclaimed(pid: u32, role_oid: u32) {
    tell(&Event {
        kind: EventKind::Reclaimed,
        role_oid,
        role: None,
        database: None,
        client_addr: None,
        pid: Some(pid),
        detail: Detail::Reclaimed { role_oid },
    });
}

/// The sweep found more sessions under a limit than it allows. It has told the session `ended` to end; None: it only says
/// so.
pub fn swept(limit: &Limit, over: &Exceeded, ended: Option<(u32, &Session)>) {
    let name = |object| Bytes(catalog::name_of(object));
    let session = ended.map(|(_, session)| session);
    let database = session.map(|session| session.database);
    tell(&Event {
        kind: EventKind::Swept,
        role_oid: session.map_or(0, |session| session.role),
        role: session.map(|session| name(Object::Role(session.role))),
        database: database
            .filter(|oid| *oid != 0)
            .map(|oid| name(Object::Database(oid))),
        client_addr: session.and_then(|session| session.address),
        pid: ended.map(|(pid, _)| pid),
        detail: Detail::Over(OverLimit {
            action: Some(ended.map_or("log", |_| "terminate")),
            elsewhere: (limit.across == Across::Servers).then_some(over.elsewhere),
            ..of_limit(limit, over.in_use, &catalog::name_of)
        }),
    });
}

/// The sweep found sessions of a role that was dropped. It has told the session `ended` to end; None: it only says so.
pub fn role_dropped(role_oid: u32, in_use: u32, ended: Option<(u32, &Session)>) {
    let session = ended.map(|(_, session)| session);
    let database = session.map(|session| session.database);
    tell(&Event {
        kind: EventKind::Swept,
        role_oid,
        role: None,
        database: database
            .filter(|oid| *oid != 0)
            .map(|oid| Bytes(catalog::name_of(Object::Database(oid)))),
        client_addr: session.and_then(|session| session.address),
        pid: ended.map(|(pid, _)| pid),
        detail: Detail::RoleDropped {
            action: ended.map_or("log", |_| "terminate"),
            role_oid,
            in_use,
        },
    });
}

/// What has become of a seat of this holder.
pub fn seat(kind: EventKind, key: &Key, holder: &Holder, seat: Seat) {
    if kind.is_usual() && !settings::log_events().has(kind) {
        return;
    }
    let name = |object| Some(Bytes(catalog::name_of(object)));
    tell(&Event {
        kind,
        role_oid: holder.role,
        role: name(Object::Role(holder.role)),
        database: name(Object::Database(key.database())),
        client_addr: holder.address,
        pid: Some(holder.pid),
        detail: Detail::Seat(seat),
    });
}

/// etcd does not answer any more: why not, and which endpoint was asked last.
pub fn unreachable(endpoint: &str, reason: &str) {
    of_server(
        EventKind::Unreachable,
        Detail::Unreachable {
            endpoint: endpoint.to_string(),
            reason: reason.to_string(),
        },
    );
}

pub fn reachable() {
    of_server(EventKind::Reachable, Detail::Nothing {});
}

/// This server is one of the others again, with so many places for its sessions.
pub fn rejoined(places: u64) {
    of_server(EventKind::Rejoined, Detail::Rejoined { places });
}

/// The server of this name was silent for too long; None: what it wrote of itself cannot be read.
pub fn server_gone(server: Option<String>) {
    of_server(EventKind::ServerGone, Detail::ServerGone { server });
}

fn of_server(kind: EventKind, detail: Detail) {
    tell(&Event {
        kind,
        role_oid: 0,
        role: None,
        database: None,
        client_addr: None,
        pid: None,
        detail,
    });
}

/// Catalogs could not be read, and whoever found that goes on without the limits in them. Once in a while is enough.
pub fn cannot_read_limits(why: &str) {
    if shmem::memory().mailbox.may_complain() {
        let message = format!("session_limit: could not read limits, goes on without them: {why}");
        let code = PgSqlErrorCode::ERRCODE_DATA_CORRUPTED;
        ErrorReport::new(code, message, "").report(PgLogLevel::LOG_SERVER_ONLY);
    }
}

/// Keeps the event for the view, and logs it if the setting asks for it. The throttle spares the log no admissions:
/// whoever asks for them wants all of them.
fn tell(event: &Event) {
    let usual = event.kind.is_usual();
    let logged = settings::log_events().has(event.kind);
    let (mut record, key) = (event.record(), event.key());
    let about = match event.detail {
        Detail::Seat(_) => About::Seats,
        _ => About::Logins,
    };
    let (fits, suppressed) = shmem::event_log(about, |log| {
        record.time = now();
        log.ring.push(&record);
        match logged && !usual {
            true => log.throttle.admit(&key, second()),
            false => (logged, None),
        }
    });
    suppressed.iter().for_each(log_suppressed);
    if fits {
        log(event);
    }
}

/// Logs how many lines were suppressed in the seconds that are over; at the end of the server, in this second, too.
pub fn flush_suppressed(at_the_end: bool) {
    for about in [About::Logins, About::Seats] {
        let next = || {
            shmem::event_log(about, |log| {
                let except = (!at_the_end).then(second);
                log.throttle.take(except)
            })
        };
        while let Some(suppressed) = next() {
            log_suppressed(&suppressed);
        }
    }
}

#[derive(Serialize)]
struct SuppressedLine {
    event: &'static str,
    of: EventKind,
    role: Option<Bytes>,
    source: Option<Bytes>,
    number: u32,
}

fn log_suppressed(suppressed: &Suppressed) {
    let key = suppressed.key;
    let known = |text: &[u8]| (!text.is_empty()).then(|| Bytes(text.to_vec()));
    log(&SuppressedLine {
        event: "left_out",
        of: key.kind,
        role: known(key.role_name.bytes()),
        source: known(key.source.bytes()),
        number: suppressed.number,
    });
}

impl Event {
    fn record(&self) -> Record {
        let detail = json(&self.detail);
        let detail = detail.and_then(|detail| FixedText::new(detail.as_bytes()));
        let truncated = || FixedText::new(br#"{"truncated":true}"#);
        Record {
            time: 0,
            kind: self.kind,
            role: self.role_oid,
            role_name: fixed(self.role.as_ref()),
            database: fixed(self.database.as_ref()),
            address: self.client_addr,
            pid: self.pid.unwrap_or(0),
            detail: detail.or_else(truncated).unwrap_or(FixedText::EMPTY),
        }
    }

    fn key(&self) -> LineKey {
        let source = match &self.detail {
            Detail::Over(over) => Some(&over.source),
            _ => None,
        };
        LineKey {
            kind: self.kind,
            role: self.role_oid,
            role_name: fixed(self.role.as_ref()),
            source: fixed(source),
        }
    }
}

/// A name fits always: names have less than 64 bytes.
fn fixed<const SIZE: usize>(bytes: Option<&Bytes>) -> FixedText<SIZE> {
    let text = bytes.and_then(|bytes| FixedText::new(&bytes.0));
    text.unwrap_or(FixedText::EMPTY)
}

/// The number of this second, for the throttle.
fn second() -> u64 {
    tick() / 1_000_000
}

fn log(line: &impl Serialize) {
    if let Some(json) = json(line) {
        let code = PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION;
        ErrorReport::new(code, format!("session_limit: {json}"), "")
            .report(PgLogLevel::LOG_SERVER_ONLY);
    }
}
