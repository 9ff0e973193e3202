//! What the worker says to etcd, and what it makes of the answers. No I/O and no clock: the caller sends what it is given,
//! and says what time it is.
//!
//! One transaction is under way at a time:
//! 1. [`Protocol::greet`] says what is due about this server itself, and about servers that are gone.
//! 2. If nothing is, [`Protocol::plan`], under the table's lock, finds out what is to be asked for its places, and
//!    [`Protocol::ask`] makes a transaction of that. If nothing is either, [`Protocol::tidy`].
//! 3. When the answer is there, [`Protocol::read`] reads it, and [`Protocol::settle`], under the lock, makes it part of
//!    the table. If there is none, [`Protocol::fail`], under the lock.

use super::member::{Me, Member, Members, key};
use super::round::{Due, LINGER, POLL, Rounds};
use super::tidying::Tidying;
use super::transaction::{Answer, Compare, Operation, Outcome, Row, Transaction};
use crate::table::Table;
use std::collections::BTreeSet;
use std::time::Duration;

/// In microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// CLOCK_MONOTONIC: what others did is measured by it. It stands still while the machine is suspended, so that nobody
    /// is taken for gone too early.
    pub tick: u64,
    /// CLOCK_BOOTTIME: how long this server lives is measured by it. It goes on while the machine is suspended.
    pub boottime: u64,
}

/// What the log says.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Others took this server for gone, or etcd lost what it knew. It has joined again, with so many places for its sessions.
    Rejoined(u64),
    /// The server of this name was silent for too long, and its places are free now. None: what it wrote cannot be read.
    Gone(Option<String>),
}

/// So many former lives are ended at once.
const FORMER_LIVES: usize = 50;

enum Sent {
    Birth(u64),
    Beat,
    /// Of the server with this id and name.
    Burial(String, Option<String>),
    Round,
    Tidying(Tidying),
}

/// What an answer means for the table.
#[derive(Default)]
enum Settling {
    #[default]
    Nothing,
    /// A new life: its id, and the revision at which it began.
    Birth(u64, i64),
    Beat,
    Round,
    Death,
}

/// The state of a worker.
pub struct Protocol {
    prefix: String,
    /// What it writes of itself.
    member: Member,
    me: Option<Me>,
    /// The ids of lives that ended with the server's process, or of which nobody knows whether they began. Their keys are deleted
    /// when the next one begins.
    former: Vec<String>,
    /// The members that lived at the last look.
    pub members: Members,
    rounds: Rounds,
    sent: Option<Sent>,
    /// When what is under way was sent.
    sent_at: Now,
    settling: Settling,
    /// The last sign of life that etcd has confirmed.
    beat: Now,
    /// Not all sessions have their places yet.
    joining: bool,
    /// The server has lived before.
    reborn: bool,
    /// The latest of etcd that was seen.
    revision: i64,
    due: Due,
    /// Keys of servers that are gone may be there.
    tidying: Option<Tidying>,
    /// Since it was last asked it has joined, with so many places.
    joined: Option<u64>,
    /// Servers whose `server_timeout` was logged, by id.
    named: BTreeSet<String>,
    said: Vec<Said>,
}

impl Protocol {
    /// Of a server whose keys have this prefix. If the table says that the server lives, it lives on. `former`: the id of a
    /// life before the server was started, if it is known.
    pub fn new(prefix: &str, member: Member, former: Option<String>, table: &Table) -> Protocol {
        let reach = &table.places.reach;
        let prefix = format!("{prefix}v1/");
        let mut rounds = Rounds::new(prefix.clone(), table.places.room());
        let (id, born) = reach.life;
        let me = (id != 0).then(|| Me {
            id: hex(id),
            born,
            // It gives a sign of life first.
            written: 0,
        });
        if me.is_some() {
            rounds.be_uncertain(table);
        }
        Protocol {
            prefix,
            member,
            reborn: me.is_some(),
            me,
            former: former.into_iter().collect(),
            members: Members::default(),
            rounds,
            sent: None,
            sent_at: Now::default(),
            settling: Settling::Nothing,
            beat: Now::default(),
            joining: reach.valid_until == 0,
            revision: 0,
            due: Due::default(),
            tidying: None,
            joined: None,
            named: BTreeSet::new(),
            said: Vec::new(),
        }
    }

    /// What is due about this server itself, or one that is gone. `draw` draws an id that was never used.
    pub fn greet(&mut self, now: Now, draw: impl FnOnce() -> u64) -> Option<Transaction> {
        self.sent_at = now;
        let members = Operation::Range(format!("{}m/", self.prefix));
        let Some(me) = &self.me else {
            let id = draw();
            let mut success = vec![Operation::Put(
                key(&self.prefix, &hex(id)),
                self.member.next_beat(),
            )];
            let former = self.former.iter();
            success.extend(former.map(|id| Operation::Delete(key(&self.prefix, id))));
            // If there is no answer. Only those of the last seconds can have begun.
            self.former.push(hex(id));
            let too_many = self.former.len().saturating_sub(FORMER_LIVES);
            self.former.drain(..too_many);
            success.push(members);
            self.sent = Some(Sent::Birth(id));
            return Some(Transaction {
                success,
                ..Transaction::default()
            });
        };
        let lives = me.lives(&self.prefix);
        if self.beat.tick == 0 || now.tick >= self.beat.tick + self.timeout() / 4 {
            self.sent = Some(Sent::Beat);
            return Some(Transaction {
                compare: vec![lives],
                success: vec![
                    Operation::Put(me.key(&self.prefix), self.member.next_beat()),
                    members,
                ],
                failure: vec![],
            });
        }
        let (id, revision) = self
            .members
            .silent(&me.id, self.member.timeout_ms, now.tick)?;
        let gone = key(&self.prefix, id);
        let name = self.members.name_of(id).map(str::to_string);
        self.sent = Some(Sent::Burial(id.to_string(), name));
        Some(Transaction {
            compare: vec![lives, Compare::ModifiedAt(gone.clone(), revision)],
            success: vec![Operation::Delete(gone)],
            failure: vec![],
        })
    }

    /// Finds out what is to be asked for places. Every login that arrived until the tick `arrivals` has had its turn under the
    /// lock, or has it later with another arrival.
    pub fn plan(&mut self, table: &mut Table, now: Now, arrivals: u64) {
        let valid = now.boottime < table.places.reach.valid_until;
        self.due = self.rounds.plan(table, now.tick, arrivals, valid);
        if self.joining && !self.due.asserting && self.me.is_some() {
            self.joining = false;
            self.be_valid(table);
            self.joined = Some(table.places.held());
            self.due.now = true;
        }
        if !self.due.asserting && self.rounds.take_asserted() {
            // The others are to hear of it, and look at what they hold.
            self.member.asserted = self.member.asserted.wrapping_add(1);
            self.beat.tick = 0;
            self.due.now = true;
        }
        self.member.places = table.places.held();
    }

    /// What was planned; None if there is nothing to do.
    pub fn ask(&mut self, now: Now) -> Option<Transaction> {
        let transaction = self.rounds.transaction(self.me.as_ref()?)?;
        (self.sent, self.sent_at) = (Some(Sent::Round), now);
        Some(transaction)
    }

    /// Deletes keys of servers that are gone, if this server is to do it: the first of those that live does.
    pub fn tidy(&mut self, now: Now) -> Option<Transaction> {
        let me = self
            .me
            .as_ref()
            .filter(|me| self.members.is_first(&me.id))?;
        let tidying = self.tidying.clone()?;
        let members = Operation::Range(format!("{}m/", self.prefix));
        let success = [members].into_iter().chain(tidying.operations());
        let transaction = Transaction {
            compare: vec![me.lives(&self.prefix)],
            success: success.collect(),
            failure: vec![],
        };
        (self.sent, self.sent_at) = (Some(Sent::Tidying(tidying)), now);
        Some(transaction)
    }

    /// How long nothing is due, if nothing happens.
    pub fn rest(&self, now: Now) -> Duration {
        let beat = self.beat.tick + self.timeout() / 4;
        let beat = beat.saturating_sub(now.tick);
        let due = [
            (self.due.now, 0),
            (self.due.waiting, POLL),
            (self.due.spare, LINGER / 2),
        ];
        let due = due.iter().filter(|(is_due, _)| *is_due);
        let first = due.map(|(_, after)| *after).min();
        Duration::from_micros(first.map_or(beat, |first| first.min(beat)))
    }

    /// Reads the answer to what was sent. The error says that it cannot be read: then nobody knows what was done.
    pub fn read(&mut self, answer: &Answer, now: Now) -> Result<(), String> {
        let is_older = answer.revision < self.revision;
        let outcome = match &self.sent {
            None => return Ok(()),
            Some(Sent::Burial(id, name)) => {
                self.members.forget(id);
                if answer.succeeded {
                    self.said.push(Said::Gone(name.clone()));
                    self.begin_to_tidy();
                }
                Settling::Nothing
            }
            // etcd was restored from a backup, or another took this server for gone.
            Some(_) if is_older || !answer.succeeded => {
                self.me = None;
                Settling::Death
            }
            Some(Sent::Birth(id)) => {
                let members = rows(answer.results.last())?;
                self.members.take(members, now.tick, self.timeout() / 2);
                self.me = Some(Me {
                    id: hex(*id),
                    born: answer.revision,
                    written: answer.revision,
                });
                self.former.clear();
                (self.joining, self.beat) = (true, self.sent_at);
                let settling = Settling::Birth(*id, answer.revision);
                self.begin_to_tidy();
                settling
            }
            Some(Sent::Beat) => {
                self.look(answer.results.last(), now)?;
                self.beat = self.sent_at;
                Settling::Beat
            }
            Some(Sent::Round) => {
                self.look(answer.results.first(), now)?;
                let members = &self.members;
                if let Some(me) = &self.me {
                    self.rounds.read(answer, me, |id| members.lives(id))?;
                }
                Settling::Round
            }
            Some(Sent::Tidying(tidying)) => {
                let tidying = tidying.clone();
                self.look(answer.results.first(), now)?;
                let keys = match answer.results.last() {
                    Some(Outcome::Range(keys)) if answer.results.len() > 1 => keys.as_slice(),
                    _ => &[],
                };
                // If another is gone since, it begins anew.
                if self.tidying.as_ref() == Some(&tidying) {
                    self.tidying = tidying.go_on(keys, &self.members);
                }
                Settling::Nothing
            }
        };
        self.revision = match outcome {
            Settling::Death => 0,
            _ => answer.revision,
        };
        (self.sent, self.settling) = (None, outcome);
        Ok(())
    }

    fn begin_to_tidy(&mut self) {
        self.tidying = Some(Tidying::of(format!("{}c/", self.prefix)));
    }

    /// Sees which servers live.
    fn look(&mut self, outcome: Option<&Outcome>, now: Now) -> Result<(), String> {
        let blind_after = self.timeout() / 2;
        let news = self.members.take(rows(outcome)?, now.tick, blind_after);
        if news.asserted {
            self.rounds.look_again();
        }
        if news.gone {
            self.begin_to_tidy();
        }
        if let Some(me) = &mut self.me {
            me.written = self.members.written(&me.id).unwrap_or(me.written);
        }
        Ok(())
    }

    /// The server stops: if no session is left, nothing is held here any more. Says whether it is so; then `farewell` is sent.
    /// Walsenders end after this worker. Those with places are waited for all the same: perhaps only this worker ends.
    pub fn leave(&mut self, table: &mut Table) -> bool {
        let is_walsender = |slot| table.session(slot).is_some_and(|it| it.walsender);
        let may_stay = |slot| is_walsender(slot) && table.places.of(slot).next().is_none();
        let mut claimed = table.shared.claims().map(|(slot, _)| slot);
        let is_empty = claimed.all(may_stay) && table.waiters().next().is_none();
        if is_empty {
            (table.places.reach.valid_until, table.places.reach.life) = (0, (0, 0));
            self.rounds.be_born(table);
        }
        is_empty
    }

    /// With this others need not wait until they miss the server.
    pub fn farewell(&mut self) -> Option<Transaction> {
        let me = self.me.take()?;
        Some(Transaction {
            compare: vec![me.lives(&self.prefix)],
            success: vec![Operation::Delete(me.key(&self.prefix))],
            failure: vec![],
        })
    }

    /// Makes the answer that was read part of the table.
    pub fn settle(&mut self, table: &mut Table, now: Now) {
        table.places.reach.answers = true;
        if let Some(me) = &self.me {
            self.members.list(&me.id, table.places.servers);
        }
        match std::mem::take(&mut self.settling) {
            Settling::Nothing => {}
            Settling::Death => {
                (table.places.reach.valid_until, table.places.reach.life) = (0, (0, 0));
                self.rounds.lose();
            }
            Settling::Birth(id, born) => {
                table.places.reach.life = (id, born);
                self.rounds.be_born(table);
            }
            Settling::Beat if self.joining => {}
            Settling::Beat => self.be_valid(table),
            Settling::Round => self.rounds.settle(table, now.tick),
        }
    }

    /// There was no answer, or one that cannot be read. `unreachable`: nor will there be one soon.
    pub fn fail(&mut self, table: &mut Table, unreachable: bool) {
        table.places.reach.answers &= !unreachable;
        if let Some(Sent::Round) = self.sent {
            self.rounds.lose();
            // After the next sign of life it is not done any more, and can be looked for.
            self.beat.tick = 0;
        }
    }

    /// The id of this life, in hex; None before the first.
    pub fn id(&self) -> Option<&str> {
        self.me.as_ref().map(|me| me.id.as_str())
    }

    /// The names of servers that have not been named so far, and whose `server_timeout` is another one, which is returned in
    /// milliseconds.
    pub fn new_timeouts(&mut self) -> Vec<(String, u64)> {
        let own = self.member.timeout_ms;
        let members = self.members.all();
        let members = members.filter_map(|(id, seen)| Some((id, seen.member.as_ref()?)));
        let mut differing = Vec::new();
        for (id, member) in members.filter(|(_, member)| member.timeout_ms != own) {
            if self.named.insert(id.to_string()) {
                let name = self.members.name_of(id).unwrap_or_default();
                differing.push((name.to_string(), member.timeout_ms));
            }
        }
        differing
    }

    /// What the log says since the last call.
    pub fn take_said(&mut self) -> Vec<Said> {
        let mut said = std::mem::take(&mut self.said);
        if let Some(places) = self.joined.take() {
            if self.reborn {
                said.push(Said::Rejoined(places));
            }
            self.reborn = true;
        }
        said
    }

    /// What is held counts until 10 % before others may take this server for gone.
    fn be_valid(&self, table: &mut Table) {
        let timeout = self.timeout();
        table.places.reach.valid_until = self.beat.boottime + timeout - timeout / 10;
    }

    /// In microseconds.
    fn timeout(&self) -> u64 {
        self.member.timeout_ms * 1000
    }
}

fn hex(id: u64) -> String {
    format!("{id:016x}")
}

fn rows(outcome: Option<&Outcome>) -> Result<&[Row], String> {
    match outcome {
        Some(Outcome::Range(rows)) => Ok(rows),
        _ => Err("etcd's answer is not that to what was asked".to_string()),
    }
}
