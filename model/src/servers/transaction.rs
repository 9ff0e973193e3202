//! Transactions of etcd, as values: what is sent, and what comes back. [`super::etcd_json`] writes them as etcd's gateway
//! takes them.

/// Done whole or not at all, at one revision of etcd.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transaction {
    /// If all of them hold, `success` is done, else `failure`.
    pub compare: Vec<Compare>,
    pub success: Vec<Operation>,
    pub failure: Vec<Operation>,
}

/// A condition. Revisions are those of etcd's whole store: each transaction that changes something has the next one.
#[derive(Clone, Debug, PartialEq)]
pub enum Compare {
    /// The key was made at this revision; 0: it does not exist.
    CreatedAt(String, i64),
    /// The key was last changed at this revision; 0: it does not exist.
    ModifiedAt(String, i64),
    /// No key with this prefix was changed after this revision. A key that was deleted does not count.
    UnmodifiedSince(String, i64),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    Put(String, String),
    Delete(String),
    /// Reads all keys with this prefix.
    Range(String),
    /// Reads keys without values: those with this prefix, from `from` on, in their order, but not more than `most`.
    Keys {
        from: String,
        prefix: String,
        most: usize,
    },
    Transaction(Transaction),
}

/// What a transaction that was done returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Whether all conditions held.
    pub succeeded: bool,
    /// etcd's, after the transaction.
    pub revision: i64,
    /// For each operation that was done what it returned.
    pub results: Vec<Outcome>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Of a put or a delete.
    Done,
    /// The values are empty if only keys were read.
    Range(Vec<Row>),
    /// Its revision is that of the outermost transaction.
    Transaction(Answer),
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub key: String,
    pub value: String,
    pub created: i64,
    pub modified: i64,
}
