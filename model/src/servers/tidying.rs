//! The keys of servers that are gone, under counters that nobody looks at any more: they count for nothing, and are deleted
//! some time. One server does it for all, while it has nothing else to ask.

use super::member::Members;
use super::transaction::{Operation, Row};

/// So many keys are read in one transaction, and those to delete are deleted in the next one. etcd allows 128 operations
/// in one.
pub const PAGE: usize = 100;

/// How far it has come.
#[derive(Clone, Debug, PartialEq)]
pub struct Tidying {
    /// Below these all is looked through.
    prefix: String,
    /// The key from which on it goes on; None: all are read.
    from: Option<String>,
    /// Keys to delete.
    trash: Vec<String>,
}

impl Tidying {
    pub fn of(prefix: String) -> Tidying {
        Tidying {
            from: Some(prefix.clone()),
            prefix,
            trash: Vec::new(),
        }
    }

    /// What is to be done next. If it reads keys, that comes last.
    pub fn operations(&self) -> Vec<Operation> {
        let trash = self.trash.iter().cloned().map(Operation::Delete);
        let page = self.from.as_ref().map(|from| Operation::Keys {
            from: from.clone(),
            prefix: self.prefix.clone(),
            most: PAGE,
        });
        trash.chain(page).collect()
    }

    /// It is done, and these keys were read. Whoever is not a member at the same revision never is one again. Returns what is
    /// left to do; None if nothing is.
    pub fn go_on(self, rows: &[Row], members: &Members) -> Option<Tidying> {
        let id = |key: &str| key.rsplit('/').next().unwrap_or_default().to_string();
        let keys = rows.iter().map(|row| row.key.clone());
        let trash: Vec<String> = keys.filter(|key| !members.lives(&id(key))).collect();
        let last = rows.last().filter(|_| rows.len() == PAGE);
        let from = last.map(|row| format!("{}\0", row.key));
        (from.is_some() || !trash.is_empty()).then_some(Tidying {
            from,
            trash,
            ..self
        })
    }
}
