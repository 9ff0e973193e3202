//! The functions under the SQL views. They show of other roles' sessions and limits no more than
//! `pg_stat_activity` shows of sessions. Names are bytes, so texts are returned as bytes.

#![expect(
    clippy::type_complexity,
    reason = "pgrx wants a row's columns named in the signature"
)]

use crate::apply::{Defaults, Policy, policy};
use crate::catalog::{Database, Role, name_of};
use crate::facts::{self, Labels};
use crate::grammar::{self, Carrier, LabelLimit};
use crate::limit::{Object, Per, Source};
use crate::ring::{Name, Record};
use crate::sessions::{Counted, Session};
use crate::settings::{self, Enforcement};
use crate::{error, shmem};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use pgrx::{Inet, pg_sys};

/// A text in the database's encoding, which is stored as a `bytea` is.
pub type Text = Vec<u8>;

/// One row a session that the caller may see.
#[pg_extern(sql = false)]
fn active_sessions() -> TableIterator<
    'static,
    (
        name!(pid, i32),
        name!(usesysid, pg_sys::Oid),
        name!(datid, pg_sys::Oid),
        name!(client_addr, Option<Inet>),
        name!(backend_start, Option<TimestampWithTimeZone>),
        name!(exempt, bool),
    ),
> {
    let mut copy = shmem::snapshot();
    let viewer = Viewer::current();
    let table = copy.table();
    let sessions = table.sessions();
    let rows = sessions.filter(|(_, session)| viewer.may_see(session.role));
    let rows = rows.map(|(pid, session)| {
        (
            pid as i32,
            session.role.into(),
            session.database.into(),
            session.address.map(|address| Inet(address.to_string())),
            TimestampWithTimeZone::try_from(session.started).ok(),
            session.exempt,
        )
    });
    TableIterator::new(rows.collect::<Vec<_>>())
}

/// One row for each count that a limit keeps, of those with a session or a waiter.
#[pg_extern(sql = false)]
fn current_usage() -> TableIterator<
    'static,
    (
        name!(source, Text),
        name!(per, &'static str),
        name!(subject, Option<Text>),
        name!(in_use, i64),
        name!(max, i64),
        name!(waiting, i64),
    ),
> {
    let settings = settings::current();
    let mut copy = shmem::snapshot();
    let table = copy.table();
    let viewer = Viewer::current();
    let sessions: Vec<Session> = table.sessions().map(|(_, session)| session).collect();
    let waiters: Vec<Session> = table.waiters().map(|waiter| waiter.session).collect();
    let (applying, members) = facts::applying(sessions.iter().chain(&waiters), &settings);
    let rows = applying.limits.iter().filter_map(|limit| {
        let counted = Counted::new(limit.scope, !settings.exempt_replication, &members).ok()?;
        let covered = |session: &&Session| counted.covers(session);
        let mut all = sessions.iter().chain(&waiters).filter(covered);
        if !all.any(|session| viewer.may_see(session.role)) {
            return None;
        }
        Some((
            limit.source.words(&name_of),
            limit.per.word(),
            limit.subject(&name_of),
            i64::from(table.count(counted)),
            i64::from(limit.max),
            waiters.iter().filter(covered).count() as i64,
        ))
    });
    TableIterator::new(rows.collect::<Vec<_>>())
}

/// Every limit that is set, of those on roles only what the caller may see.
#[pg_extern(sql = false)]
fn defined_limits() -> TableIterator<
    'static,
    (
        name!(source, Text),
        name!(per, Option<&'static str>),
        name!(subject, Option<Text>),
        name!(database, Option<Text>),
        name!(network, Option<String>),
        name!(max, i64),
        name!(on_excess, &'static str),
        name!(max_wait_ms, i64),
        name!(enforcement, &'static str),
        name!(unmatched, bool),
    ),
> {
    shmem::require();
    let (settings, defaults) = (settings::current(), settings::defaults());
    let databases = Database::all();
    let limits = Defined::all(&databases, &defaults);
    let rows = limits.into_iter().map(
        |Defined {
             source,
             carrier,
             limit,
             policy,
         }| {
            let subject = match source {
                Source::ConnectionLimit(object) | Source::Label(object) => Some(name_of(object)),
                Source::ClusterLimits | Source::MaxSessionsPerRole => None,
            };
            let per = limit.per.or(carrier.default_per());
            let exists = |name: &String| {
                databases
                    .iter()
                    .any(|database| database.name == name.as_bytes())
            };
            let covers = per.is_some_and(|per| carrier.pers().contains(&per));
            (
                source.words(&name_of),
                per.map(Per::word),
                subject,
                limit.database.clone().map(String::into_bytes),
                limit.network.map(|network| network.to_string()),
                i64::from(limit.max),
                limit
                    .on_excess
                    .or(policy.0)
                    .unwrap_or(defaults.on_excess)
                    .word(),
                limit
                    .max_wait
                    .or(policy.1)
                    .unwrap_or(defaults.max_wait)
                    .as_millis() as i64,
                match (settings.enforcement, limit.enforcement) {
                    (Enforcement::Off, _) => "off",
                    (Enforcement::On, None | Some(grammar::Enforcement::On)) => "on",
                    _ => "log",
                },
                !covers || !limit.database.as_ref().is_none_or(exists),
            )
        },
    );
    TableIterator::new(rows.collect::<Vec<_>>())
}

/// A limit as it is set, whomever it covers.
struct Defined {
    source: Source,
    carrier: Carrier,
    limit: LabelLimit,
    policy: Policy,
}

impl Defined {
    fn all(databases: &[Database], defaults: &Defaults) -> Vec<Defined> {
        let labels = Labels::read();
        let viewer = Viewer::current();
        let mut troubles = Vec::new();
        let mut all = Vec::new();
        let bare = |source, carrier, max: i32, policy| {
            let mut limit = LabelLimit::new(max);
            limit.per = (carrier == Carrier::Cluster).then_some(Per::Role);
            (max >= 0).then_some(Defined {
                source,
                carrier,
                limit,
                policy,
            })
        };
        for role in Role::all().iter().filter(|role| viewer.may_see(role.oid)) {
            let object = Object::Role(role.oid);
            if role.can_login {
                let policy = labels.facts(role, None, None, defaults).0.role_policy();
                all.extend(bare(
                    Source::ConnectionLimit(object),
                    Carrier::Role,
                    role.connection_limit,
                    policy,
                ));
            }
            let carrier = Carrier::of_role(role.can_login);
            let label = labels.label(object, &mut troubles);
            all.extend(Defined::labelled(Source::Label(object), carrier, label));
        }
        for database in databases {
            let object = Object::Database(database.oid);
            let label = labels.label(object, &mut troubles);
            all.extend(bare(
                Source::ConnectionLimit(object),
                Carrier::Database,
                database.connection_limit,
                policy(&label),
            ));
            all.extend(Defined::labelled(
                Source::Label(object),
                Carrier::Database,
                label,
            ));
        }
        all.extend(Defined::labelled(
            Source::ClusterLimits,
            Carrier::Cluster,
            defaults.cluster_limits.clone(),
        ));
        all.extend(bare(
            Source::MaxSessionsPerRole,
            Carrier::Cluster,
            defaults.max_sessions_per_role,
            (None, None),
        ));
        troubles.iter().for_each(error::warn_of);
        all
    }

    fn labelled(
        source: Source,
        carrier: Carrier,
        label: grammar::Label,
    ) -> impl Iterator<Item = Defined> {
        let policy = policy(&label);
        let defined = move |limit| Defined {
            source,
            carrier,
            limit,
            policy,
        };
        label.limits.into_iter().map(defined)
    }
}

/// How many records are copied in one hold of the lock.
const BATCH: usize = 64;

/// One row a recent event that the caller may see, the oldest first.
#[pg_extern(sql = false)]
fn recent_events() -> TableIterator<
    'static,
    (
        name!(event_time, Option<TimestampWithTimeZone>),
        name!(event, &'static str),
        name!(usename, Option<Text>),
        name!(datname, Option<Text>),
        name!(client_addr, Option<Inet>),
        name!(pid, Option<i32>),
        name!(detail, Text),
    ),
> {
    shmem::require();
    let viewer = Viewer::current();
    let known = |name: &Name| (!name.bytes().is_empty()).then(|| name.bytes().to_vec());
    let (mut batch, mut rows) = (vec![Record::EMPTY; BATCH], Vec::new());
    let mut left = 0..shmem::trail(|trail| trail.ring.end());
    loop {
        let read = shmem::trail(|trail| trail.ring.read(left.clone(), &mut batch));
        let records = batch.iter().zip(read.clone()).map(|(record, _)| record);
        rows.extend(records.filter(|it| viewer.may_see(it.role)).map(|it| {
            (
                TimestampWithTimeZone::try_from(it.time).ok(),
                it.kind.word(),
                known(&it.role_name),
                known(&it.database),
                it.address.map(|address| Inet(address.to_string())),
                (it.pid != 0).then_some(it.pid as i32),
                it.detail.bytes().to_vec(),
            )
        }));
        if read.is_empty() {
            return TableIterator::new(rows);
        }
        left.start = read.end;
    }
}

/// Whoever runs the query.
pub struct Viewer {
    role: pg_sys::Oid,
    sees_all: bool,
}

impl Viewer {
    pub fn current() -> Viewer {
        // SAFETY: in a transaction, in a backend with a database.
        unsafe {
            let role = pg_sys::GetUserId();
            let all_stats = pg_sys::Oid::from(pg_sys::ROLE_PG_READ_ALL_STATS);
            Viewer {
                role,
                sees_all: pg_sys::has_privs_of_role(role, all_stats),
            }
        }
    }

    /// Also what is nobody's.
    pub fn sees_all(&self) -> bool {
        self.sees_all
    }

    pub fn may_see(&self, role: u32) -> bool {
        // SAFETY: as above.
        self.sees_all || unsafe { pg_sys::has_privs_of_role(self.role, role.into()) }
    }
}
