//! What would happen: how each limit stands for a login that is not made, and which limit each role has.

#![expect(
    clippy::type_complexity,
    reason = "pgrx wants a row's columns named in the signature"
)]

use crate::lookup::{self, Labels};
use crate::pg::catalog::{Database, Role, name_of};
use crate::pg::memory;
use crate::settings;
use crate::sql::in_memory;
use crate::sql::standings::{self, NO_SLOT};
use crate::sql::viewer::{SqlText, Viewer};
use crate::{error, shmem};
use model::limit::{Across, Limit, Scope, Unit, Who};
use model::precedence::{Applicable, Defaults, applicable};
use model::session::Session;
use model::verdict::Standing;
use pgrx::Inet;
use pgrx::prelude::*;
use std::ffi::CStr;
use std::net::IpAddr;

/// One row for each limit that such a login would have to meet now.
#[pg_extern(sql = false)]
pub fn explain_login_0_2(
    role: Option<&CStr>,
    database: Option<&CStr>,
    address: Option<Inet>,
) -> TableIterator<
    'static,
    (
        name!(source, SqlText),
        name!(per, &'static str),
        name!(subject, Option<SqlText>),
        name!(in_use, Option<i64>),
        name!(max, i64),
        name!(fits, Option<bool>),
        name!(enforcement, &'static str),
        name!(count, &'static str),
        name!(across, &'static str),
        name!(elsewhere, Option<i64>),
    ),
> {
    shmem::require();
    memory::require(0);
    let role = role.unwrap_or_else(|| error::must_not_be_null("role"));
    let database = database.unwrap_or_else(|| error::must_not_be_null("database"));
    let viewer = Viewer::current();
    let (role, database) = named(role, database, &viewer);
    let standings = standings(&role, &database, address.map(host));
    let rows = standings.into_iter().map(|(standing, elsewhere, fits)| {
        let limit = standing.limit;
        let may_count = viewer.may_count_sessions(&limit);
        // A login that waits can take the room.
        let may_know = viewer.may_count_waiters(&limit.scope);
        (
            limit.source.words(&name_of),
            limit.per.word(),
            limit.subject(&name_of),
            may_count.then_some(i64::from(standing.in_use)),
            i64::from(limit.max),
            fits.filter(|_| may_know),
            if limit.enforced { "on" } else { "log" },
            limit.unit.count().word(),
            limit.across.word(),
            elsewhere.filter(|_| may_count),
        )
    });
    in_memory(rows)
}

/// The role, if it may log in and the viewer may know, and the database, if it takes logins.
fn named(role: &CStr, database: &CStr, viewer: &Viewer) -> (Role, Database) {
    let role = Role::by_name(role).unwrap_or_else(|| error::undefined_role(role));
    if !viewer.may_see(role.oid) {
        error::may_not_explain(&role.name);
    }
    if !role.can_login {
        error::cannot_log_in(&role.name);
    }
    let database =
        Database::by_name(database).unwrap_or_else(|| error::undefined_database(database));
    if database.invalid || !database.allows_connections {
        error::cannot_connect_to(&database.name);
    }
    (role, database)
}

fn host(inet: Inet) -> IpAddr {
    let host = inet.0.split('/').next().and_then(|host| host.parse().ok());
    host.map_or_else(
        || error::not_an_address(&inet.0),
        |host: IpAddr| host.to_canonical(),
    )
}

/// How each limit stands, how many it counts on other servers, and whether a login fits, if that is known.
fn standings(
    role: &Role,
    database: &Database,
    address: Option<IpAddr>,
) -> Vec<(Standing, Option<i64>, Option<bool>)> {
    let settings = settings::current();
    let (applicable, members, problems) =
        lookup::ask(role, Some(database), address, false, &settings);
    if let Some((object, why)) = lookup::invalid_label(&applicable, &problems, &settings) {
        error::label_is_invalid(object, why);
    }
    problems.iter().for_each(error::warn_of);
    let session = Session {
        role: role.oid,
        database: database.oid,
        address,
        started: 0,
        walsender: false,
        exempt: false,
        arrival: 0,
    };
    let mut copy = shmem::snapshot();
    let login = (NO_SLOT, session);
    let table = copy.table();
    let standings =
        standings::standings(&table, login, &applicable.limits, members, &settings).into_iter();
    let everywhere = standings.map(|standing| {
        let elsewhere = standings::elsewhere(&table, &standing.limit);
        let (in_use, max) = (i64::from(standing.in_use), i64::from(standing.limit.max));
        let fits = match standing.limit.across {
            Across::Servers if standing.fits && settings::servers::are_shared() => {
                elsewhere.map(|it| it + in_use < max)
            }
            _ => Some(standing.fits),
        };
        (standing, elsewhere, fits)
    });
    everywhere.collect()
}

/// One row for each role with LOGIN that the caller may see. A `max` of -1: no limit.
#[pg_extern(sql = false)]
fn effective_limits() -> TableIterator<
    'static,
    (
        name!(usename, SqlText),
        name!(max, i64),
        name!(source, Option<SqlText>),
        name!(exempt, bool),
        name!(connection_limit, i32),
    ),
> {
    shmem::require();
    memory::require(0);
    let (settings, labels, viewer) = (settings::current(), Labels::read(), Viewer::current());
    let defaults = Defaults {
        dry_run: false,
        ..settings::defaults()
    };
    let roles = Role::all().into_iter();
    let rows = roles
        .filter(|role| role.can_login && viewer.may_see(role.oid))
        .map(|role| {
            let (facts, _) = labels.facts(&role, None, None, &defaults);
            let Applicable { exempt, limits } = applicable(&facts);
            let exempt = exempt || settings.exempts_everywhere(role.superuser);
            let of_role = Scope {
                who: Who::Role(role.oid),
                database: None,
                network: None,
            };
            let is_effective = |limit: &&Limit| {
                let is_it = (limit.scope, limit.unit) == (of_role, Unit::Session);
                limit.enforced && is_it && !exempt
            };
            // One on this server and one across servers hold both.
            let limits = limits.iter().filter(is_effective);
            let limit = limits.min_by_key(|limit| limit.max);
            (
                role.name,
                limit.map_or(-1, |limit| i64::from(limit.max)),
                limit.map(|limit| limit.source.words(&name_of)),
                exempt,
                role.connection_limit,
            )
        });
    in_memory(rows)
}
