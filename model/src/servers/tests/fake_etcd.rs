//! An etcd in memory: it does what etcd says that a transaction does.

use crate::servers::transaction::{Answer, Compare, Operation, Outcome, Row, Transaction};
use std::collections::BTreeMap;

/// A condition that it takes for true always, to see that a test would notice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ignores {
    Nothing,
    /// That nobody has changed a place since the last look.
    Range,
    /// That a server's own place is as it was.
    Own,
    /// That the server was not taken for gone.
    Member,
}

pub struct FakeEtcd {
    pub revision: i64,
    pub keys: BTreeMap<String, Row>,
    pub ignores: Ignores,
    /// How many transactions it has done.
    pub done: u64,
}

impl FakeEtcd {
    pub fn new(ignores: Ignores) -> FakeEtcd {
        FakeEtcd {
            revision: 1,
            keys: BTreeMap::new(),
            ignores,
            done: 0,
        }
    }

    pub fn execute(&mut self, transaction: &Transaction) -> Answer {
        self.done += 1;
        // All conditions are of the state before, also those of transactions within.
        let before = self.keys.clone();
        let next = self.revision + 1;
        let mut answer = self.execute_at(transaction, &before, next);
        if self.keys != before {
            self.revision = next;
        }
        self.date(&mut answer);
        answer
    }

    fn date(&self, answer: &mut Answer) {
        answer.revision = self.revision;
        for result in &mut answer.results {
            if let Outcome::Transaction(inner) = result {
                self.date(inner);
            }
        }
    }

    fn execute_at(
        &mut self,
        transaction: &Transaction,
        before: &BTreeMap<String, Row>,
        revision: i64,
    ) -> Answer {
        let succeeded = transaction.compare.iter().all(|it| self.holds(it, before));
        let operations = match succeeded {
            true => &transaction.success,
            false => &transaction.failure,
        };
        let mut results = Vec::new();
        for operation in operations {
            results.push(match operation {
                Operation::Put(key, value) => {
                    let created = self.keys.get(key).map_or(revision, |row| row.created);
                    let row = Row {
                        key: key.clone(),
                        value: value.clone(),
                        created,
                        modified: revision,
                    };
                    self.keys.insert(key.clone(), row);
                    Outcome::Done
                }
                Operation::Delete(key) => {
                    self.keys.remove(key);
                    Outcome::Done
                }
                Operation::Range(prefix) => Outcome::Range(self.range(prefix).cloned().collect()),
                Operation::Keys { from, prefix, most } => {
                    let keys = self.range(prefix).filter(|row| row.key >= *from);
                    Outcome::Range(keys.take(*most).cloned().collect())
                }
                Operation::Transaction(inner) => {
                    Outcome::Transaction(self.execute_at(inner, before, revision))
                }
            });
        }
        Answer {
            succeeded,
            revision,
            results,
        }
    }

    fn holds(&self, compare: &Compare, before: &BTreeMap<String, Row>) -> bool {
        match compare {
            Compare::CreatedAt(key, revision) => {
                let created = before.get(key).map_or(0, |row| row.created);
                self.ignores == Ignores::Member || created == *revision
            }
            Compare::ModifiedAt(key, revision) => {
                let modified = before.get(key).map_or(0, |row| row.modified);
                let ignored = match self.ignores {
                    Ignores::Own => key.contains("/p/"),
                    // A late request meets another condition, which hides what this one is for.
                    Ignores::Range => key.contains("/m/"),
                    Ignores::Nothing | Ignores::Member => false,
                };
                ignored || modified == *revision
            }
            Compare::UnmodifiedSince(prefix, revision) => {
                let mut rows = before.values().filter(|row| row.key.starts_with(prefix));
                self.ignores == Ignores::Range || rows.all(|row| row.modified <= *revision)
            }
        }
    }

    pub fn range<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Row> {
        self.keys
            .values()
            .filter(move |row| row.key.starts_with(prefix))
    }
}
