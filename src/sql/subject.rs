//! Which sessions a limit is about, as the views say it.

use crate::pg::catalog::name_of;
use crate::sql::viewer::SqlText;
use model::limit::{Limit, Object, Per};
use pgrx::Inet;

/// See `Limit::subject`. Its parts are by themselves, too, fit for a metric's labels.
#[derive(Default)]
pub struct Subject {
    pub words: Option<SqlText>,
    pub role: Option<SqlText>,
    pub database: Option<SqlText>,
    /// Of a limit by address.
    pub address: Option<Inet>,
    /// Of any other limit.
    pub network: Option<String>,
}

impl Subject {
    pub fn of(limit: &Limit) -> Subject {
        let scope = limit.scope;
        let (address, network) = match (scope.network, limit.per) {
            (Some(network), Per::Address) => (Some(Inet(network.first().to_string())), None),
            (network, _) => (None, network.map(|network| network.to_string())),
        };
        Subject {
            words: limit.subject(&name_of),
            role: scope.role().map(|oid| name_of(Object::Role(oid))),
            database: scope.database.map(|oid| name_of(Object::Database(oid))),
            address,
            network,
        }
    }
}
