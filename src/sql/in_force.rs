//! The limits that would hold a login although there is no session under them.

use crate::lookup::Labels;
use crate::pg::catalog::{Database, Role};
use crate::pg::memberships::Memberships;
use crate::pg::memory;
use crate::settings::{self, Settings};
use crate::shmem;
use crate::sql::viewer::Viewer;
use model::label::{Label, LabelLimit};
use model::limit::{Limit, Object, Scope, Who};
use model::limit_counters::Counted;
use model::network::Network;
use model::session::Session;
use std::net::IpAddr;

/// A login that nobody makes, and whose limits it is asked for.
pub struct Question {
    pub who: Who,
    pub login: Session,
}

impl Question {
    /// Whether the limit is one of those. A limit by address is not: no address is better than another.
    pub fn is_about(&self, limit: &Limit) -> bool {
        limit.scope.who == self.who && !limit.per.has_address()
    }
}

/// The logins that meet each limit that the viewer may see and that is set on a role, a group, a database or the cluster; and
/// those that meet each limit of a single role that something was counted under since the statistics begin.
pub fn questions(viewer: &Viewer, settings: &Settings) -> Vec<Question> {
    let labels = Labels::read();
    let databases = Database::all();
    let mut all = Vec::new();
    of_databases(&labels, &databases, &mut all);
    let memberships = Memberships::default();
    for role in Role::all().iter().filter(|role| viewer.may_see(role.oid)) {
        let label = labels.label(Object::Role(role.oid), &mut Vec::new());
        if label.limits.is_empty() && role.connection_limit < 0 {
            continue;
        }
        pgrx::check_for_interrupts!();
        let (who, login) = if role.can_login {
            (Who::Role(role.oid), Some(role.oid))
        } else {
            // One whom its limits hold.
            let is_held = |member: &Role| {
                let label = labels.label(Object::Role(member.oid), &mut Vec::new());
                member.can_login && !settings.exempts_everywhere(member.superuser) && !label.exempt
            };
            let members = memberships.members_of(role.oid).into_iter();
            let member = members.filter_map(Role::by_oid).find(is_held);
            (Who::MembersOf(role.oid), member.map(|it| it.oid))
        };
        if let Some(login) = login {
            let logins = places(&label, &databases);
            let logins = logins.map(|(database, address)| question(who, login, database, address));
            memory::extend(&mut all, logins);
        }
    }
    of_counted(viewer, &databases, &mut all);
    all
}

fn of_databases(labels: &Labels, databases: &[Database], all: &mut Vec<Question>) {
    let cluster_limits = settings::defaults().cluster_limits;
    let no_database = std::iter::once((0, Label::default()));
    let open = databases
        .iter()
        .filter(|database| database.allows_connections);
    let labelled = open.map(|database| {
        let label = labels.label(Object::Database(database.oid), &mut Vec::new());
        (database.oid, label)
    });
    for (database, label) in no_database.chain(labelled) {
        let limits = label.limits.iter().chain(&cluster_limits.limits);
        let addresses = limits.map(an_address).chain([None]);
        let logins = addresses.map(|address| question(Who::Anyone, 0, database, address));
        memory::extend(all, logins);
    }
}

/// Of roles that still may log in, and databases that are still there.
fn of_counted(viewer: &Viewer, databases: &[Database], all: &mut Vec<Question>) {
    let statistics = shmem::statistics();
    for (counted, _) in statistics.limits.rows() {
        let Some(Counted::Limit(limit)) = counted else {
            continue;
        };
        let Scope {
            who: Who::Role(role),
            database,
            network,
        } = limit.scope
        else {
            continue;
        };
        pgrx::check_for_interrupts!();
        let is_there = |oid: u32| databases.iter().any(|database| database.oid == oid);
        if !limit.per.has_address()
            && viewer.may_see(role)
            && database.is_none_or(is_there)
            && Role::by_oid(role).is_some_and(|role| role.can_login)
        {
            let address = network.map(Network::first);
            let login = question(limit.scope.who, role, database.unwrap_or(0), address);
            memory::extend(all, [login]);
        }
    }
}

fn question(who: Who, role: u32, database: u32, address: Option<IpAddr>) -> Question {
    let login = Session {
        role,
        database,
        address,
        started: 0,
        walsender: false,
        exempt: false,
        arrival: 0,
    };
    Question { who, login }
}

/// An address that the limit is about; None is a Unix-domain socket.
fn an_address(limit: &LabelLimit) -> Option<IpAddr> {
    limit.network.map(Network::first)
}

/// For each limit of a label, and for a `CONNECTION LIMIT`, a database, or 0, and an address that it is about.
fn places<'a>(
    label: &'a Label,
    databases: &'a [Database],
) -> impl Iterator<Item = (u32, Option<IpAddr>)> + 'a {
    let place = |limit: &LabelLimit| {
        let database = match &limit.database {
            None => 0,
            Some(name) => databases.iter().find(|it| it.name == *name)?.oid,
        };
        Some((database, an_address(limit)))
    };
    label.limits.iter().filter_map(place).chain([(0, None)])
}
