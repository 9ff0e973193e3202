//! What is sent to etcd for the jobs of a round, and what is read in its answer. Nothing of the table is needed, so no lock is
//! held.

use super::{Act, Job, Read, Rounds};
use crate::servers::member::{self, Me};
use crate::servers::place::Holder;
use crate::servers::transaction::{Answer, Compare, Operation, Outcome, Row, Transaction};
use std::collections::BTreeSet;

/// What nobody lives for any more is deleted, so many keys in one transaction.
const DELETED_AT_ONCE: usize = 20;

impl Rounds {
    /// The transaction of the jobs that were planned; None if there are none.
    pub fn transaction(&mut self, me: &Me) -> Option<Transaction> {
        if self.jobs.is_empty() {
            return None;
        }
        let mut success = vec![Operation::Range(format!("{}m/", self.prefix))];
        for (index, first) in self.jobs.iter().enumerate() {
            if first.group == index {
                let group = self.jobs.iter().filter(|job| job.group == index);
                success.push(Operation::Transaction(self.of_group(group, me)));
            }
        }
        for _ in 0..DELETED_AT_ONCE {
            success.extend(self.trash.pop_first().map(Operation::Delete));
        }
        Some(Transaction {
            compare: vec![me.lives(&self.prefix)],
            success,
            failure: vec![],
        })
    }

    fn of_group<'a>(&self, jobs: impl Iterator<Item = &'a Job>, me: &Me) -> Transaction {
        let mut inner = Transaction::default();
        let mut reads = Vec::new();
        let mut takes = false;
        for job in jobs {
            let all = format!("{}c/{}/", self.prefix, job.counter.text());
            let (place, wish) = (format!("{all}p/{}", me.id), format!("{all}w/{}", me.id));
            let view = self.views.get(job.number as usize);
            let (revision, own_revision) = view.map_or((0, 0), |it| (it.revision, it.own_revision));
            let unchanged = Compare::ModifiedAt(place.clone(), own_revision);
            takes |= matches!(job.act, Act::Raise(_) | Act::Assert(_) | Act::Wish(_));
            match job.act {
                Act::Raise(held) => {
                    let others = format!("{all}p/");
                    inner
                        .compare
                        .push(Compare::UnmodifiedSince(others, revision));
                    inner.success.push(Operation::Put(place, held.to_string()));
                    inner.success.push(Operation::Delete(wish));
                }
                Act::Lower(0) => {
                    inner.compare.push(unchanged);
                    inner.success.push(Operation::Delete(place));
                }
                Act::Lower(held) | Act::Assert(held) => {
                    inner.compare.push(unchanged);
                    inner.success.push(Operation::Put(place, held.to_string()));
                }
                Act::Wish(number) => inner.success.push(Operation::Put(wish, number.to_string())),
                Act::Unwish => inner.success.push(Operation::Delete(wish)),
                Act::Look => {}
            }
            reads.push(Operation::Range(all));
        }
        // What arrives late, when this server does not know of it, would stay.
        inner
            .compare
            .extend(takes.then(|| me.is_in_time(&self.prefix)));
        inner.failure.clone_from(&reads);
        inner.success.extend(reads);
        inner
    }

    /// Reads the answer to the transaction, whose conditions held. `lives` says which servers live.
    pub fn read(
        &mut self,
        answer: &Answer,
        me: &Me,
        lives: impl Fn(&str) -> bool,
    ) -> Result<(), String> {
        let unexpected = || "etcd's answer is not that to what was asked".to_string();
        self.read.clear();
        self.read.resize(self.jobs.len(), Read::default());
        let mut results = answer.results.iter().skip(1);
        for group in 0..self.jobs.len() {
            if self
                .jobs
                .get(group)
                .is_none_or(|first| first.group != group)
            {
                continue;
            }
            let Some(Outcome::Transaction(inner)) = results.next() else {
                return Err(unexpected());
            };
            let mut ranges = inner.results.iter().filter_map(|result| match result {
                Outcome::Range(rows) => Some(rows),
                _ => None,
            });
            let jobs = self.jobs.iter().zip(&mut self.read);
            for (_, read) in jobs.filter(|(job, _)| job.group == group) {
                let rows = ranges.next().ok_or_else(unexpected)?;
                *read = Read {
                    done: inner.succeeded,
                    revision: answer.revision,
                    ..Read::of(rows, me, &lives, &mut self.trash)
                };
            }
        }
        Ok(())
    }
}

impl Read {
    /// From all keys of a counter. What is of servers that do not live goes into the trash. Of one that lives, a number that
    /// cannot be read may be any.
    fn of(
        rows: &[Row],
        me: &Me,
        lives: impl Fn(&str) -> bool,
        trash: &mut BTreeSet<String>,
    ) -> Read {
        let mut read = Read::default();
        let mut wishes = Vec::new();
        for row in rows {
            let mut parts = row.key.rsplit('/');
            let (id, kind) = (parts.next().unwrap_or_default(), parts.next());
            let number = row.value.parse().unwrap_or(u32::MAX);
            if !lives(id) {
                trash.insert(row.key.clone());
                continue;
            }
            match (kind, id == me.id) {
                (Some("p"), true) => (read.own, read.own_revision) = (number, row.modified),
                (Some("p"), false) => {
                    read.others = read.others.saturating_add(number);
                    if number > read.holder.places {
                        let id = member::number(id);
                        read.holder = Holder { id, places: number };
                    }
                }
                (Some("w"), true) => read.wish = Some(row.created),
                (Some("w"), false) => wishes.push((row.created, number)),
                _ => {}
            }
        }
        let before = |wish: &&(i64, u32)| read.wish.is_none_or(|own| wish.0 < own);
        let ahead = wishes.iter().filter(before).map(|wish| wish.1);
        read.ahead = ahead.fold(0, u32::saturating_add);
        read
    }
}
