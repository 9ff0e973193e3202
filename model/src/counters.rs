//! The statistics: counters of what has become of logins since the last reset, for each pair of a role and a database, and
//! for each limit; and the bytes that keep them over a restart. Shared memory, the lock and the file are the caller's.

use crate::limit::Object;
use crate::limit_counters::{self, Counted, LimitCounters, LimitStatistics};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How many pairs of a role and a database have counters of their own. More than most servers have; and a login whose
/// pair is the last one reads only 8 kB of pairs to find it.
pub const ROOM: usize = 1000;

/// [`Statistics::encode`] returns fewer bytes than this.
pub const MAX_BYTES: usize = 2_000_000;

/// What the bytes begin with. Raise the number when a counter comes, goes or changes its meaning.
const MAGIC: &[u8] = b"session_limit statistics ";
const VERSION: &[u8] = b"6\n";

/// With so many pairs it is time to look for dropped ones: a quarter is left for those that come before that is done.
const CROWDED: usize = ROOM - ROOM / 4;

/// What has counters of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pair {
    pub role: u32,
    /// 0 for a walsender without a database.
    pub database: u32,
}

/// A login that has been decided, as the counters take it.
#[derive(Debug)]
pub struct CountedLogin {
    /// Microseconds since 2000-01-01, as in a `timestamptz`.
    pub at: i64,
    pub outcome: CountedOutcome,
    /// How long it waited; None if it did not.
    pub waited: Option<Duration>,
    /// How long it took, without the waiting.
    pub deciding: Duration,
}

/// What became of a login.
#[derive(Clone, Debug)]
pub enum CountedOutcome {
    /// It got in; its pair now has `sessions` sessions, this one included.
    Admitted {
        sessions: u32,
        how: How,
    },
    Refused,
    /// Its client closed the connection while it waited.
    Abandoned,
}

/// How a login came to be admitted.
#[derive(Clone, Copy, Debug)]
pub enum How {
    /// There was room.
    Room,
    /// Older sessions ended for it.
    Replaced,
    /// A limit that is only tried out would refuse it.
    WouldRefuse,
    /// Under a limit that is only tried out, older sessions would end for it.
    WouldReplace,
}

/// What is counted for each pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Logins that were admitted, for whatever reason.
    pub admitted: u64,
    /// Logins that waited, whether they were admitted or not.
    pub waited: u64,
    /// How long all of them waited together, in microseconds.
    pub wait_us: u64,
    /// Logins that were refused.
    pub refused: u64,
    /// When a login was last refused, in microseconds since 2000-01-01; 0 if none was.
    pub last_refused: i64,
    /// Logins that were admitted after older sessions had ended for them.
    pub replaced: u64,
    /// Logins that a limit that is only tried out would have refused.
    pub would_refuse: u64,
    /// Logins for which older sessions would have ended under a limit that is only tried out.
    pub would_replace: u64,
    /// The most sessions at once.
    pub peak: u64,
    /// When that number was first reached, in microseconds since 2000-01-01; 0 if there was no session.
    pub peak_at: i64,
    /// Logins that were decided.
    pub decisions: u64,
    /// How long all of them took together, without waiting, in microseconds.
    pub decision_us: u64,
    /// Logins whose client closed the connection while they waited.
    pub abandoned: u64,
    /// Of seats.
    pub seats: SeatCounters,
}

/// What is counted of the seats of each pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SeatCounters {
    pub taken: u64,
    /// Calls for a seat that waited, whether they got one or not.
    pub waited: u64,
    pub refused: u64,
    /// Seats that ended for newer ones.
    pub replaced: u64,
    /// Seats that ended because they were not renewed in time.
    pub expired: u64,
    /// Seats that an administrator ended.
    pub evicted: u64,
}

impl SeatCounters {
    /// Counts what `other` has counted, too.
    pub fn add(&mut self, other: &SeatCounters) {
        let SeatCounters {
            taken,
            waited,
            refused,
            replaced,
            expired,
            evicted,
        } = *other;
        add(&mut self.taken, taken);
        add(&mut self.waited, waited);
        add(&mut self.refused, refused);
        add(&mut self.replaced, replaced);
        add(&mut self.expired, expired);
        add(&mut self.evicted, evicted);
    }
}

impl Counters {
    fn count(&mut self, login: &CountedLogin) {
        add(&mut self.decisions, 1);
        add(&mut self.decision_us, micros(login.deciding));
        if let Some(waited) = login.waited {
            add(&mut self.waited, 1);
            add(&mut self.wait_us, micros(waited));
        }
        match login.outcome {
            CountedOutcome::Admitted { sessions, how } => {
                add(&mut self.admitted, 1);
                match how {
                    How::Room => {}
                    How::Replaced => add(&mut self.replaced, 1),
                    How::WouldRefuse => add(&mut self.would_refuse, 1),
                    How::WouldReplace => add(&mut self.would_replace, 1),
                }
                if u64::from(sessions) > self.peak {
                    (self.peak, self.peak_at) = (sessions.into(), login.at);
                }
            }
            CountedOutcome::Abandoned => add(&mut self.abandoned, 1),
            CountedOutcome::Refused => {
                add(&mut self.refused, 1);
                self.last_refused = self.last_refused.max(login.at);
            }
        }
    }
}

impl Counters {
    /// Counts what `other` has counted, too. The peaks were not at the same moment: the higher one is kept.
    fn merge(&mut self, other: &Counters) {
        let Counters {
            admitted,
            waited,
            wait_us,
            refused,
            last_refused,
            replaced,
            would_refuse,
            would_replace,
            peak,
            peak_at,
            decisions,
            decision_us,
            abandoned,
            seats,
        } = *other;
        add(&mut self.admitted, admitted);
        add(&mut self.waited, waited);
        add(&mut self.wait_us, wait_us);
        if refused > 0 && (self.refused == 0 || last_refused > self.last_refused) {
            self.last_refused = last_refused;
        }
        add(&mut self.refused, refused);
        add(&mut self.replaced, replaced);
        add(&mut self.would_refuse, would_refuse);
        add(&mut self.would_replace, would_replace);
        if peak > self.peak {
            (self.peak, self.peak_at) = (peak, peak_at);
        }
        add(&mut self.decisions, decisions);
        add(&mut self.decision_us, decision_us);
        add(&mut self.abandoned, abandoned);
        self.seats.add(&seats);
    }
}

fn add(counter: &mut u64, number: u64) {
    *counter = counter.saturating_add(number);
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros().try_into().unwrap_or(u64::MAX)
}

/// The counters of all pairs, in the order of their first logins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Statistics {
    /// When it was last reset, in microseconds since 2000-01-01.
    since: i64,
    /// Whether the statistics from before that were lost.
    lost: bool,
    /// How many entries of `pairs` and `counters` are in use.
    used: usize,
    /// Apart from their counters, so that the search for a pair reads few pages.
    pairs: [Pair; ROOM],
    counters: [Counters; ROOM],
    /// The counters of all pairs for which there was no room, and of dropped ones that made room.
    others: Counters,
    /// Of each limit.
    pub limits: LimitStatistics,
}

impl Statistics {
    pub fn new(since: i64) -> Statistics {
        Statistics {
            since,
            lost: false,
            used: 0,
            pairs: [Pair::default(); ROOM],
            counters: [Counters::default(); ROOM],
            others: Counters::default(),
            limits: LimitStatistics::default(),
        }
    }

    /// Forgets all pairs and counters.
    pub fn reset(&mut self, since: i64) {
        (self.since, self.lost) = (since, false);
        (self.used, self.others) = (0, Counters::default());
        self.limits.reset();
    }

    /// Notes that the statistics from before the last reset were lost.
    pub fn lose(&mut self) {
        self.lost = true;
    }

    /// Counts a login for its pair.
    pub fn count(&mut self, pair: Pair, login: &CountedLogin) {
        self.counters_of(pair).count(login);
    }

    /// Counts what has become of the pair's seats.
    pub fn count_seats(&mut self, pair: Pair, more: &SeatCounters) {
        self.counters_of(pair).seats.add(more);
    }

    /// The pair's counters; those of the others if the pair has none and there is no room left.
    fn counters_of(&mut self, pair: Pair) -> &mut Counters {
        let mut known = self.pairs.iter().take(self.used);
        let position = known.position(|known| *known == pair);
        let position = position.unwrap_or_else(|| self.add(pair));
        self.counters.get_mut(position).unwrap_or(&mut self.others)
    }

    /// Adds a pair and returns its index, which is behind the end if there is no room.
    fn add(&mut self, pair: Pair) -> usize {
        let position = self.used;
        let mut free = self.pairs.iter_mut().zip(&mut self.counters).skip(position);
        if let Some(free) = free.next() {
            *free.0 = pair;
            *free.1 = Counters::default();
            self.used += 1;
        }
        position
    }

    /// Whether there is little room for further pairs.
    pub fn is_crowded(&self) -> bool {
        self.used >= CROWDED || self.limits.is_crowded()
    }

    /// The roles and databases that something was counted for.
    pub fn objects(&self) -> impl Iterator<Item = Object> {
        let pairs = self.pairs().flat_map(|(pair, _)| {
            let database = Some(pair.database).filter(|oid| *oid != 0);
            [
                Some(Object::Role(pair.role)),
                database.map(Object::Database),
            ]
        });
        let limits = self.limits.rows();
        let limits = limits.filter_map(|(counted, _)| counted);
        let limits = limits.flat_map(|counted| counted.objects());
        pairs.chain(limits).flatten()
    }

    /// Makes room: the counters of these roles and databases, which are sorted, become part of the others'. Allocates
    /// nothing.
    pub fn forget(&mut self, dropped: &[Object]) {
        self.limits.forget(dropped);
        let is_dropped = |object: Object| dropped.binary_search(&object).is_ok();
        let mut kept = 0;
        for position in 0..self.used {
            let entry = self.pairs.get(position).zip(self.counters.get(position));
            let Some((&pair, &counters)) = entry else {
                return;
            };
            if is_dropped(Object::Role(pair.role)) || is_dropped(Object::Database(pair.database)) {
                self.others.merge(&counters);
                continue;
            }
            let place = self.pairs.get_mut(kept).zip(self.counters.get_mut(kept));
            if let Some(place) = place {
                (*place.0, *place.1) = (pair, counters);
            }
            kept += 1;
        }
        self.used = kept;
    }

    /// When it was last reset, in microseconds since 2000-01-01.
    pub fn since(&self) -> i64 {
        self.since
    }

    /// Whether the statistics from before that were lost.
    pub fn lost(&self) -> bool {
        self.lost
    }

    fn pairs(&self) -> impl Iterator<Item = (&Pair, &Counters)> {
        self.pairs.iter().zip(&self.counters).take(self.used)
    }

    /// Each pair with its counters. Last, without a pair, the counters of all others, if a login was counted there.
    pub fn rows(&self) -> impl Iterator<Item = (Option<Pair>, &Counters)> {
        let others = (self.others != Counters::default()).then_some((None, &self.others));
        let pairs = self.pairs().map(|(pair, counters)| (Some(*pair), counters));
        pairs.chain(others)
    }

    /// A line with the version, all as JSON, and a checksum of that.
    pub fn encode(&self) -> Vec<u8> {
        let saved = Saved {
            since: self.since,
            lost: self.lost,
            others: self.others,
            pairs: self.pairs().map(|(pair, it)| (*pair, *it)).collect(),
            limits: self.limits.to_save(),
        };
        let json = serde_json::to_vec(&saved).unwrap_or_default();
        let mut bytes = [MAGIC, VERSION, &json].concat();
        bytes.extend(checksum(&bytes).to_le_bytes());
        bytes
    }

    /// Becomes the statistics that these bytes encode. If they encode none, says why, and stays as it is.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let (content, sum) = bytes.split_last_chunk().ok_or("it is too short")?;
        let versioned = content.strip_prefix(MAGIC);
        let versioned = versioned.ok_or("it has no statistics of session_limit")?;
        let json = versioned.strip_prefix(VERSION);
        let json = json.ok_or("another version wrote it")?;
        if checksum(content) != u64::from_le_bytes(*sum) {
            return Err("its checksum is wrong");
        }
        let saved: Saved = serde_json::from_slice(json).map_err(|_| "it cannot be read")?;
        // The others are one of the limits.
        if saved.pairs.len() > ROOM || saved.limits.len() > limit_counters::ROOM + 1 {
            return Err("it has too many rows");
        }
        (self.since, self.lost, self.others) = (saved.since, saved.lost, saved.others);
        self.used = saved.pairs.len();
        let entries = self.pairs.iter_mut().zip(&mut self.counters);
        for ((pair, counters), saved) in entries.zip(saved.pairs) {
            (*pair, *counters) = saved;
        }
        self.limits.restore(saved.limits);
        Ok(())
    }
}

/// What is kept over a restart.
#[derive(Serialize, Deserialize)]
struct Saved {
    since: i64,
    lost: bool,
    others: Counters,
    pairs: Vec<(Pair, Counters)>,
    limits: Vec<(Option<Counted>, LimitCounters)>,
}

/// FNV-1a with 64 bits. It notices every single wrong byte, because each step is a bijection.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    const ALICE: Pair = Pair {
        role: 10,
        database: 5,
    };
    const BOB: Pair = Pair {
        role: 11,
        database: 5,
    };

    fn login(at: i64, outcome: CountedOutcome) -> CountedLogin {
        CountedLogin {
            at,
            outcome,
            waited: None,
            deciding: Duration::from_micros(100),
        }
    }

    pub fn admitted(at: i64, sessions: u32) -> CountedLogin {
        login(
            at,
            CountedOutcome::Admitted {
                sessions,
                how: How::Room,
            },
        )
    }

    fn counters(statistics: &Statistics, pair: Option<Pair>) -> Counters {
        let mut rows = statistics.rows();
        let row = rows.find(|(found, _)| *found == pair);
        *row.expect("a row").1
    }

    #[test]
    fn each_outcome_counts_for_its_pair() {
        let mut statistics = Statistics::new(1);
        statistics.count(ALICE, &admitted(7, 1));
        statistics.count(
            ALICE,
            &login(
                8,
                CountedOutcome::Admitted {
                    sessions: 2,
                    how: How::WouldRefuse,
                },
            ),
        );
        for how in [How::Replaced, How::WouldReplace] {
            statistics.count(
                ALICE,
                &login(9, CountedOutcome::Admitted { sessions: 2, how }),
            );
        }
        statistics.count(BOB, &login(9, CountedOutcome::Refused));
        let waited = Some(Duration::from_millis(3));
        statistics.count(
            BOB,
            &CountedLogin {
                waited,
                ..login(10, CountedOutcome::Refused)
            },
        );
        assert_eq!(
            counters(&statistics, Some(ALICE)),
            Counters {
                admitted: 4,
                replaced: 1,
                would_refuse: 1,
                would_replace: 1,
                peak: 2,
                peak_at: 8,
                decisions: 4,
                decision_us: 400,
                ..Counters::default()
            }
        );
        assert_eq!(
            counters(&statistics, Some(BOB)),
            Counters {
                waited: 1,
                wait_us: 3000,
                refused: 2,
                last_refused: 10,
                decisions: 2,
                decision_us: 200,
                ..Counters::default()
            }
        );
        assert_eq!(statistics.rows().count(), 2);
    }

    #[test]
    fn the_peak_stays_at_the_first_time_it_was_reached() {
        let mut statistics = Statistics::new(1);
        for (at, sessions) in [(7, 1), (8, 3), (9, 3), (10, 2)] {
            statistics.count(ALICE, &admitted(at, sessions));
        }
        let counters = counters(&statistics, Some(ALICE));
        assert_eq!((counters.peak, counters.peak_at), (3, 8));
    }

    #[test]
    fn a_counter_does_not_wrap_around() {
        let mut statistics = Statistics::new(1);
        let deciding = Duration::MAX;
        for at in 0..3 {
            statistics.count(
                ALICE,
                &CountedLogin {
                    deciding,
                    ..admitted(at, 1)
                },
            );
        }
        assert_eq!(counters(&statistics, Some(ALICE)).decision_us, u64::MAX);
    }

    #[test]
    fn a_pair_for_which_there_is_no_room_is_one_of_the_others() {
        let mut statistics = Statistics::new(1);
        for role in 1..=ROOM as u32 + 5 {
            statistics.count(Pair { role, database: 1 }, &admitted(7, role));
        }
        assert_eq!(statistics.rows().count(), ROOM + 1);
        let others = counters(&statistics, None);
        assert_eq!((others.admitted, others.peak), (5, 1005));
        let last = Pair {
            role: ROOM as u32,
            database: 1,
        };
        statistics.count(last, &admitted(8, 1));
        statistics.count(
            Pair {
                role: 1,
                database: 1,
            },
            &admitted(8, 1),
        );
        assert_eq!(counters(&statistics, Some(last)).admitted, 2);
        assert_eq!(counters(&statistics, None), others);
        statistics.lose();
        let mut read = Statistics::new(0);
        assert_eq!(read.decode(&statistics.encode()), Ok(()));
        assert_eq!(read.encode(), statistics.encode());
    }

    #[test]
    fn forgotten_pairs_make_room_and_are_counted_with_the_others() {
        let mut statistics = Statistics::new(1);
        let of = |role: u32| Pair { role, database: 1 };
        for role in 1..=ROOM as u32 {
            assert_eq!(statistics.is_crowded(), role > 750, "{role}");
            statistics.count(of(role), &admitted(i64::from(role), role));
        }
        statistics.count(of(9), &login(50, CountedOutcome::Refused));
        statistics.count(of(8), &login(40, CountedOutcome::Refused));
        let before: Vec<_> = statistics.rows().map(|(pair, it)| (pair, *it)).collect();
        let dropped = [8, 9, 2000, 2001];
        statistics.forget(&dropped.map(Object::Role));
        let all: Vec<_> = statistics.rows().map(|(pair, it)| (pair, *it)).collect();
        let (others, kept) = all.split_last().expect("rows");
        let is_kept = |(pair, _): &(Option<Pair>, Counters)| {
            pair.is_some_and(|pair| !dropped.contains(&pair.role))
        };
        let expected: Vec<_> = before.into_iter().filter(is_kept).collect();
        assert_eq!(kept, expected, "in the same order");
        let merged = Counters {
            admitted: 2,
            refused: 2,
            last_refused: 50,
            peak: 9,
            peak_at: 9,
            decisions: 4,
            decision_us: 400,
            ..Counters::default()
        };
        assert_eq!(*others, (None, merged));
        statistics.count(of(2000), &admitted(7, 1));
        statistics.count(of(2001), &admitted(7, 1));
        statistics.count(of(2002), &admitted(7, 1));
        assert_eq!(counters(&statistics, Some(of(2001))).admitted, 1);
        assert_eq!(counters(&statistics, None).admitted, 3, "full again");
    }

    #[test]
    fn after_a_reset_all_counters_begin_at_0() {
        let mut statistics = Statistics::new(1);
        for role in 0..ROOM as u32 + 5 {
            statistics.count(Pair { role, database: 1 }, &admitted(7, 3));
        }
        statistics.lose();
        statistics.reset(8);
        assert_eq!((statistics.since(), statistics.rows().count()), (8, 0));
        assert!(!statistics.lost(), "these were discarded");
        statistics.count(ALICE, &admitted(9, 1));
        let alice = counters(&statistics, Some(ALICE));
        assert_eq!((alice.admitted, alice.peak, alice.peak_at), (1, 1, 9));
        assert_eq!(statistics.rows().count(), 1);
    }

    #[test]
    fn bytes_that_encode_no_statistics_are_refused_with_a_reason() {
        let mut statistics = Statistics::new(1);
        statistics.count(ALICE, &admitted(7, 1));
        let before = statistics;
        let good = statistics.encode();
        let signed = |version: &[u8], json: &[u8]| {
            let mut bytes = [MAGIC, version, json].concat();
            bytes.extend(checksum(&bytes).to_le_bytes());
            bytes
        };
        let json = &good[MAGIC.len() + VERSION.len()..good.len() - 8];
        let mut flipped = good.clone();
        flipped[100] ^= 1;
        let text = String::from_utf8(json.to_vec()).expect("JSON");
        let pairs = text.find("\"pairs\":[").expect("pairs") + "\"pairs\":[".len();
        let end = text[pairs..].find("]]").expect("the end of the row") + pairs + 1;
        let rows = vec![&text[pairs..end]; ROOM + 1].join(",");
        let longer = [&text[..pairs], &rows, &text[end..]].concat();
        let cases = [
            (vec![], "it is too short"),
            (vec![0; 7], "it is too short"),
            (
                b"{\"not\": \"ours\"}".to_vec(),
                "it has no statistics of session_limit",
            ),
            (signed(b"3\n", json), "another version wrote it"),
            (flipped, "its checksum is wrong"),
            (good[..good.len() - 8].to_vec(), "its checksum is wrong"),
            (good[..good.len() - 3].to_vec(), "its checksum is wrong"),
            (signed(VERSION, b"{}"), "it cannot be read"),
            (signed(VERSION, longer.as_bytes()), "it has too many rows"),
        ];
        for (bytes, why) in cases {
            assert_eq!(statistics.decode(&bytes), Err(why));
            assert!(statistics == before, "{why}");
        }
    }
}
