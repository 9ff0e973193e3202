//! The limits that would hold a login although there is no session under them.

use crate::lookup::Labels;
use crate::pg::catalog::{Database, Role};
use crate::pg::memberships::Memberships;
use crate::pg::memory;
use crate::settings;
use crate::shmem;
use model::label::Label;
use model::limit::{Limit, Object, Per, Who};
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
        limit.scope.who == self.who && limit.per != Per::Address
    }
}

/// The logins that meet each limit that is set on a role, a group, a database or the cluster as a whole; and those that meet
/// each limit of a single role that something was counted under since the statistics begin.
pub fn questions() -> Vec<Question> {
    let (labels, memberships) = (Labels::read(), Memberships::default());
    let cluster_limits = settings::defaults().cluster_limits;
    let databases = Database::all();
    let mut all = Vec::new();
    let no_database = std::iter::once((0, Label::default()));
    let labelled = databases.iter().map(|database| {
        let label = labels.label(Object::Database(database.oid), &mut Vec::new());
        (database.oid, label)
    });
    for (database, label) in no_database.chain(labelled) {
        let networks = networks(&label).chain(networks(&cluster_limits));
        let logins = networks.map(|address| question(Who::Anyone, 0, database, address));
        memory::extend(&mut all, logins);
    }
    for role in Role::all() {
        let label = labels.label(Object::Role(role.oid), &mut Vec::new());
        if label.limits.is_empty() && role.connection_limit < 0 {
            continue;
        }
        let (who, login) = if role.can_login {
            (Who::Role(role.oid), Some(role.oid))
        } else {
            let members = memberships.members_of(role.oid).into_iter();
            let mut members = members.filter_map(Role::by_oid);
            let member = members.find(|it| it.can_login && !it.superuser);
            (Who::MembersOf(role.oid), member.map(|it| it.oid))
        };
        let Some(login) = login else {
            continue;
        };
        for database in databases_of(&label, &databases) {
            let logins = networks(&label).map(|address| question(who, login, database, address));
            memory::extend(&mut all, logins);
        }
    }
    let statistics = shmem::statistics();
    let counted = statistics.limits.rows().filter_map(|(counted, _)| {
        let Some(Counted::Limit(limit)) = counted else {
            return None;
        };
        let Who::Role(role) = limit.scope.who else {
            return None;
        };
        let (database, network) = (limit.scope.database, limit.scope.network);
        let address = network.map(Network::first);
        Some(question(
            limit.scope.who,
            role,
            database.unwrap_or(0),
            address,
        ))
    });
    memory::extend(&mut all, counted);
    all
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

/// None, which is a Unix-domain socket, and an address in each network that the label names.
fn networks(label: &Label) -> impl Iterator<Item = Option<IpAddr>> {
    let networks = label.limits.iter().filter_map(|limit| limit.network);
    std::iter::once(None).chain(networks.map(|network| Some(network.first())))
}

/// 0, which is none, and each database that the label names.
fn databases_of<'a>(label: &'a Label, databases: &'a [Database]) -> impl Iterator<Item = u32> + 'a {
    let named = label.limits.iter().filter_map(|limit| {
        let name = limit.database.as_ref()?;
        let found = databases.iter().find(|database| database.name == *name)?;
        Some(found.oid)
    });
    std::iter::once(0).chain(named)
}
