//! The limits that are set, whomever they cover.

#![expect(
    clippy::type_complexity,
    reason = "pgrx wants a row's columns named in the signature"
)]

use crate::lookup::{self, Administered, Labels};
use crate::pg::catalog::{Database, Role, name_of};
use crate::pg::memory;
use crate::settings::{self, Enforcement};
use crate::sql::in_memory;
use crate::sql::viewer::{SqlText, Viewer};
use crate::{error, shmem};
use model::label::{Label, LabelLimit, LabelProblem, LimitEnforcement};
use model::label_target::LabelTarget;
use model::limit::{Count, Object, OnExcess, Source};
use model::per::Per;
use model::precedence::{Defaults, Policy, policy};
use pgrx::pg_sys;
use pgrx::prelude::*;

/// One row for each limit that is set; of limits on roles, those that the caller may see.
#[pg_extern(sql = false)]
pub fn defined_limits_0_2() -> TableIterator<
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
        name!(administrators, Option<Vec<pg_sys::Oid>>),
        name!(count, &'static str),
        name!(across, &'static str),
    ),
> {
    shmem::require();
    memory::require(0);
    let (enforcement, defaults) = (settings::current().enforcement, settings::defaults());
    // Nobody is told a secret: everyone can read pg_auth_members.
    let administered = lookup::administered_groups();
    let databases = Database::all();
    let rows = all(&databases, &defaults).into_iter().map(|defined| {
        let (limit, policy) = (&defined.limit, defined.policy);
        let on_excess = match limit.count {
            Count::Roles => OnExcess::Refuse,
            _ => limit.on_excess.or(policy.0).unwrap_or(defaults.on_excess),
        };
        let max_wait = limit.max_wait.or(policy.1).unwrap_or(defaults.max_wait);
        (
            defined.source.words(&name_of),
            defined.per().map(Per::word),
            defined.subject(),
            limit.database.clone(),
            limit.network.map(|network| network.to_string()),
            i64::from(limit.max),
            on_excess.word(),
            max_wait.as_millis() as i64,
            match (enforcement, limit.enforcement) {
                (Enforcement::Off, _) => "off",
                (Enforcement::On, None | Some(LimitEnforcement::On)) => "on",
                _ => "log",
            },
            !defined.can_match(&databases),
            defined.administrators(&administered),
            limit.count.word(),
            limit.across.word(),
        )
    });
    in_memory(rows)
}

/// A limit as it is set.
struct Defined {
    source: Source,
    target: LabelTarget,
    limit: LabelLimit,
    /// Of its label.
    policy: Policy,
}

fn all(databases: &[Database], defaults: &Defaults) -> Vec<Defined> {
    let labels = Labels::read();
    let mut problems = Vec::new();
    let mut all = of_roles(&labels, defaults, &mut problems);
    for database in databases {
        let object = Object::Database(database.oid);
        let label = labels.label(object, &mut problems);
        let (source, target) = (Source::ConnectionLimit(object), LabelTarget::Database);
        let policy = policy(&label);
        memory::extend(
            &mut all,
            number(source, target, database.connection_limit, policy),
        );
        memory::extend(&mut all, labelled(Source::Label(object), target, label));
    }
    let (label, target) = (defaults.cluster_limits.clone(), LabelTarget::Cluster);
    all.extend(labelled(Source::ClusterLimits, target, label));
    let (source, max) = (Source::MaxSessionsPerRole, defaults.max_sessions_per_role);
    all.extend(number(source, target, max, (None, None)));
    problems.iter().for_each(error::warn_of);
    all
}

fn of_roles(
    labels: &Labels,
    defaults: &Defaults,
    problems: &mut Vec<LabelProblem>,
) -> Vec<Defined> {
    let viewer = Viewer::current();
    let mut all = Vec::new();
    for role in Role::all().iter().filter(|role| viewer.may_see(role.oid)) {
        let object = Object::Role(role.oid);
        let target = LabelTarget::of_role(role.can_login);
        let policy = labels.facts(role, None, None, defaults).0.role_policy();
        let source = Source::ConnectionLimit(object);
        memory::extend(
            &mut all,
            number(source, target, role.connection_limit, policy),
        );
        let label = labels.label(object, problems);
        memory::extend(&mut all, labelled(Source::Label(object), target, label));
    }
    all
}

/// A limit that is only a number; a negative one is none.
fn number(source: Source, target: LabelTarget, max: i32, policy: Policy) -> Option<Defined> {
    let mut limit = LabelLimit::new(max);
    limit.per = (target == LabelTarget::Cluster).then_some(Per::Role);
    (max >= 0).then_some(Defined {
        source,
        target,
        limit,
        policy,
    })
}

fn labelled(source: Source, target: LabelTarget, label: Label) -> impl Iterator<Item = Defined> {
    let policy = policy(&label);
    label.limits.into_iter().map(move |limit| Defined {
        source,
        target,
        limit,
        policy,
    })
}

impl Defined {
    /// None for the `CONNECTION LIMIT` of a role without LOGIN, which limits nobody.
    fn per(&self) -> Option<Per> {
        self.limit.per.or(self.target.default_per())
    }

    fn subject(&self) -> Option<SqlText> {
        match self.source {
            Source::ConnectionLimit(object) | Source::Label(object) => Some(name_of(object)),
            Source::ClusterLimits | Source::MaxSessionsPerRole => None,
        }
    }

    /// Of a group's label.
    fn administrators(&self, administered: &Administered) -> Option<Vec<pg_sys::Oid>> {
        let Source::Label(Object::Role(group)) = self.source else {
            return None;
        };
        let administrators = administered.get(&group)?.iter();
        Some(administrators.map(|oid| (*oid).into()).collect())
    }

    /// Whether it can be about any session now.
    fn can_match(&self, databases: &[Database]) -> bool {
        let exists = |name: &Vec<u8>| databases.iter().any(|database| database.name == *name);
        self.per()
            .is_some_and(|per| self.target.allows(per, self.limit.count))
            && self.limit.database.as_ref().is_none_or(exists)
    }
}
