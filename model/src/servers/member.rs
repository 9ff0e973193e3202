//! The servers that count together, and who of them lives.
//!
//! Each writes its key anew every quarter of `server_timeout`, and stops using what it holds 10 % before that time is
//! over since the last writing that was confirmed. Whoever sees a key unchanged for `server_timeout`, by a clock of its
//! own, deletes it: that server is gone, and its places are free. So it has taken itself for gone before. A server that
//! was taken for gone begins a new life, with another id. Whoever could not look for long begins to count that time anew: if
//! etcd was down, nobody could write.

use super::place::KnownServer;
use super::transaction::{Compare, Row};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One life of this server.
#[derive(Clone, Debug, PartialEq)]
pub struct Me {
    /// 16 hex digits, drawn for each life.
    pub id: String,
    /// The revision at which its key was made.
    pub born: i64,
    /// The revision of its last sign of life, as far as this server knows.
    pub(super) written: i64,
}

impl Me {
    pub fn key(&self, prefix: &str) -> String {
        key(prefix, &self.id)
    }

    /// Holds as long as nobody has taken this server for gone.
    pub fn lives(&self, prefix: &str) -> Compare {
        Compare::CreatedAt(self.key(prefix), self.born)
    }

    /// Does not hold for a request that arrives after the next sign of life: who sent it has looked by then whether it was
    /// done.
    pub fn is_in_time(&self, prefix: &str) -> Compare {
        Compare::ModifiedAt(self.key(prefix), self.written)
    }
}

pub fn key(prefix: &str, id: &str) -> String {
    format!("{prefix}m/{id}")
}

/// An id as a number; 0 if it is none.
pub fn number(id: &str) -> u64 {
    u64::from_str_radix(id, 16).unwrap_or(0)
}

/// What a server writes of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// What others call it, if no other has the same name; empty: nothing is said.
    pub name: String,
    /// Host and port, else.
    #[serde(default)]
    pub address: String,
    /// Since when its worker has been in touch, in microseconds since 2000-01-01, by its own clock.
    pub since: i64,
    /// Its `server_timeout`, in milliseconds.
    pub timeout_ms: u64,
    /// How many places it held, of all counters together.
    pub places: u64,
    /// One more with each writing.
    pub beat: u64,
    /// Another number each time that it has taken places for sessions that were in, whatever others held.
    #[serde(default)]
    pub asserted: u64,
}

impl Member {
    /// What is written next.
    pub fn next_beat(&mut self) -> String {
        self.beat += 1;
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// What was seen of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// None if it cannot be read.
    pub member: Option<Member>,
    revision: i64,
    /// Since which tick the revision is the same.
    pub unchanged_since: u64,
}

impl Seen {
    fn asserted(&self) -> u64 {
        self.member.as_ref().map_or(0, |member| member.asserted)
    }
}

/// What has happened since the last look.
#[derive(Clone, Copy, Debug, Default)]
pub struct News {
    /// A server has taken places for sessions that were in, whatever others held.
    pub asserted: bool,
    /// A server is gone.
    pub gone: bool,
}

/// The servers that live, this one among them, by id.
#[derive(Clone, Debug, Default)]
pub struct Members {
    seen: BTreeMap<String, Seen>,
    /// The tick of the last look.
    looked: u64,
}

impl Members {
    /// Takes what was read at this tick. After `blind_after` microseconds without a look nobody counts as silent so far.
    pub fn take(&mut self, rows: &[Row], now: u64, blind_after: u64) -> News {
        let mut seen = BTreeMap::new();
        let was_blind = now.saturating_sub(self.looked) > blind_after;
        self.looked = now;
        let mut news = News::default();
        for row in rows {
            let id = row.key.rsplit('/').next().unwrap_or_default();
            let before = self.seen.remove(id);
            let asserted = before.as_ref().map_or(0, Seen::asserted);
            let before = before.filter(|before| before.revision == row.modified);
            let mut now_seen = before.unwrap_or_else(|| Seen {
                member: serde_json::from_str(&row.value).ok(),
                revision: row.modified,
                unchanged_since: now,
            });
            if was_blind {
                now_seen.unchanged_since = now;
            }
            news.asserted |= now_seen.asserted() != asserted;
            seen.insert(id.to_string(), now_seen);
        }
        news.gone = self.seen.keys().any(|id| !seen.contains_key(id));
        self.seen = seen;
        news
    }

    pub fn lives(&self, id: &str) -> bool {
        self.seen.contains_key(id)
    }

    /// Whether it is the first of those that live, in the order of their ids.
    pub fn is_first(&self, id: &str) -> bool {
        self.seen.keys().next().is_some_and(|first| first == id)
    }

    /// The revision of a server's last sign of life.
    pub fn written(&self, id: &str) -> Option<i64> {
        self.seen.get(id).map(|seen| seen.revision)
    }

    /// The servers that live, each with its id.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Seen)> {
        self.seen.iter().map(|(id, seen)| (id.as_str(), seen))
    }

    /// What a server is called; None if what it wrote cannot be read.
    pub fn name_of(&self, id: &str) -> Option<&str> {
        let member = self.seen.get(id)?.member.as_ref()?;
        // Another life of the same server may be there for a while.
        let is_another =
            |other: &Member| other.name == member.name && other.address != member.address;
        let mut all = self.seen.values().filter_map(|seen| seen.member.as_ref());
        let is_taken = all.any(is_another);
        Some(match member.name.is_empty() || is_taken {
            true => &member.address,
            false => &member.name,
        })
    }

    /// Writes them into this list, as far as there is room.
    pub fn list(&self, me: &str, list: &mut [KnownServer]) {
        list.fill(KnownServer::NONE);
        for ((id, seen), entry) in self.all().zip(list) {
            let member = seen.member.as_ref();
            let (since, places) = member.map_or((0, 0), |it| (it.since, it.places));
            entry.id = number(id);
            (entry.since, entry.last_seen) = (since, seen.unchanged_since);
            (entry.places, entry.this, entry.known) = (places, id == me, true);
            entry.set_name(self.name_of(id).unwrap_or_default());
        }
    }

    pub fn forget(&mut self, id: &str) {
        self.seen.remove(id);
    }

    /// A server other than `me` that has been silent for its own timeout and that of this server, in milliseconds: its id,
    /// and the revision of what it wrote.
    pub fn silent(&self, me: &str, timeout_ms: u64, now: u64) -> Option<(&str, i64)> {
        let is_silent = |(id, seen): &(&str, &Seen)| {
            let own = seen.member.as_ref().map_or(0, |member| member.timeout_ms);
            let silent_for = now.saturating_sub(seen.unchanged_since);
            *id != me && silent_for > own.max(timeout_ms).saturating_mul(1000)
        };
        let (id, seen) = self.all().find(is_silent)?;
        Some((id, seen.revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_two_servers_have_is_none() {
        let row = |id: &str, name: &str, address: &str| {
            let mut member = Member {
                name: name.to_string(),
                address: address.to_string(),
                ..Member::default()
            };
            Row {
                key: key("/x/v1/", id),
                value: member.next_beat(),
                created: 1,
                modified: 1,
            }
        };
        let mut members = Members::default();
        let rows = [
            row("1", "batman", "a:5432"),
            row("2", "batman", "b:5432"),
            row("3", "robin", "c:5432"),
            // Before it crashed, and since.
            row("4", "robin", "c:5432"),
            row("5", "", "d:5432"),
        ];
        members.take(&rows, 1, 1);
        let names = ["1", "2", "3", "4", "5", "6"].map(|id| members.name_of(id));
        let expected = ["a:5432", "b:5432", "robin", "robin", "d:5432"].map(Some);
        assert_eq!(names[..5], expected);
        assert_eq!(names[5], None);
    }
}
