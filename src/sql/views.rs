//! The functions under the SQL views. They show of other roles' sessions and limits no more than
//! `pg_stat_activity` shows of sessions. Names are bytes, so texts are returned as bytes.

#![expect(
    clippy::type_complexity,
    reason = "pgrx wants a row's columns named in the signature"
)]

use crate::lookup::{self, Labels};
use crate::pg::catalog::{Database, Role, name_of};
use crate::settings::{self, Enforcement};
use crate::sql::viewer::{SqlText, Viewer};
use crate::{error, shmem};
use model::event::{Name, Record};
use model::label::{Label, LabelLimit, LimitEnforcement};
use model::label_target::LabelTarget;
use model::limit::{Object, Per, Source};
use model::members::SessionFilter;
use model::precedence::{Defaults, Policy, policy};
use model::session::Session;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use pgrx::{Inet, pg_sys};

/// One row for each session that the caller may see.
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

/// One row for each count that a limit keeps, if it has a session or a waiter that the caller may see.
#[pg_extern(sql = false)]
fn current_usage() -> TableIterator<
    'static,
    (
        name!(source, SqlText),
        name!(per, &'static str),
        name!(subject, Option<SqlText>),
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
    let (applying, members) = lookup::applying(sessions.iter().chain(&waiters), &settings);
    let rows = applying.limits.iter().filter_map(|limit| {
        let counted =
            SessionFilter::new(limit.scope, !settings.exempt_replication, &members).ok()?;
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

/// One row for each limit that is set; of limits on roles, those that the caller may see.
#[pg_extern(sql = false)]
fn defined_limits() -> TableIterator<
    'static,
    (
        name!(source, SqlText),
        name!(per, Option<&'static str>),
        name!(subject, Option<SqlText>),
        name!(database, Option<SqlText>),
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
             target,
             limit,
             policy,
         }| {
            let subject = match source {
                Source::ConnectionLimit(object) | Source::Label(object) => Some(name_of(object)),
                Source::ClusterLimits | Source::MaxSessionsPerRole => None,
            };
            let per = limit.per.or(target.default_per());
            let exists = |name: &String| {
                databases
                    .iter()
                    .any(|database| database.name == name.as_bytes())
            };
            let covers = per.is_some_and(|per| target.pers().contains(&per));
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
                    (Enforcement::On, None | Some(LimitEnforcement::On)) => "on",
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
    target: LabelTarget,
    limit: LabelLimit,
    policy: Policy,
}

impl Defined {
    fn all(databases: &[Database], defaults: &Defaults) -> Vec<Defined> {
        let labels = Labels::read();
        let viewer = Viewer::current();
        let mut problems = Vec::new();
        let mut all = Vec::new();
        let bare = |source, target, max: i32, policy| {
            let mut limit = LabelLimit::new(max);
            limit.per = (target == LabelTarget::Cluster).then_some(Per::Role);
            (max >= 0).then_some(Defined {
                source,
                target,
                limit,
                policy,
            })
        };
        for role in Role::all().iter().filter(|role| viewer.may_see(role.oid)) {
            let object = Object::Role(role.oid);
            let target = LabelTarget::of_role(role.can_login);
            // That of a role without LOGIN limits nobody: it is shown as unmatched, because nothing is counted for it.
            let policy = labels.facts(role, None, None, defaults).0.role_policy();
            all.extend(bare(
                Source::ConnectionLimit(object),
                target,
                role.connection_limit,
                policy,
            ));
            let label = labels.label(object, &mut problems);
            all.extend(Defined::labelled(Source::Label(object), target, label));
        }
        for database in databases {
            let object = Object::Database(database.oid);
            let label = labels.label(object, &mut problems);
            all.extend(bare(
                Source::ConnectionLimit(object),
                LabelTarget::Database,
                database.connection_limit,
                policy(&label),
            ));
            all.extend(Defined::labelled(
                Source::Label(object),
                LabelTarget::Database,
                label,
            ));
        }
        all.extend(Defined::labelled(
            Source::ClusterLimits,
            LabelTarget::Cluster,
            defaults.cluster_limits.clone(),
        ));
        all.extend(bare(
            Source::MaxSessionsPerRole,
            LabelTarget::Cluster,
            defaults.max_sessions_per_role,
            (None, None),
        ));
        problems.iter().for_each(error::warn_of);
        all
    }

    fn labelled(
        source: Source,
        target: LabelTarget,
        label: Label,
    ) -> impl Iterator<Item = Defined> {
        let policy = policy(&label);
        let defined = move |limit| Defined {
            source,
            target,
            limit,
            policy,
        };
        label.limits.into_iter().map(defined)
    }
}

/// Events copied in one hold of the lock: 64 kB, so that no login waits for long.
const BATCH: usize = 64;

/// One row for each recent event that the caller may see, the oldest first.
#[pg_extern(sql = false)]
fn recent_events() -> TableIterator<
    'static,
    (
        name!(event_time, Option<TimestampWithTimeZone>),
        name!(event, &'static str),
        name!(usename, Option<SqlText>),
        name!(datname, Option<SqlText>),
        name!(client_addr, Option<Inet>),
        name!(pid, Option<i32>),
        name!(detail, SqlText),
    ),
> {
    shmem::require();
    let viewer = Viewer::current();
    let known = |name: &Name| (!name.bytes().is_empty()).then(|| name.bytes().to_vec());
    let (mut batch, mut rows) = (vec![Record::EMPTY; BATCH], Vec::new());
    let mut left = 0..shmem::event_log(|log| log.ring.end());
    loop {
        let read = shmem::event_log(|log| log.ring.read(left.clone(), &mut batch));
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
