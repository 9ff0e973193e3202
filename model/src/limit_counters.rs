//! Counters of what each limit did to logins and sessions since the last reset, and the most sessions that it counted.

use crate::limit::{Limit, Object};
use serde::{Deserialize, Serialize};
use std::hash::{DefaultHasher, Hash, Hasher};

/// How many limits have counters of their own. A limit for each role, address or database has as many as there are of
/// these.
pub const ROOM: usize = 1000;

/// What has counters of its own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Counted {
    /// A limit, as it was when something was last counted for it.
    Limit(Limit),
    /// The label on this object, which cannot be read, so that its limits are not known.
    UnreadableLabel(Object),
}

impl Counted {
    /// Whether both are the same limit, whose number and policy may have changed meanwhile.
    fn is_same_as(&self, other: &Counted) -> bool {
        let key = |it: &Limit| {
            let about = (it.scope, it.per, it.unit, it.across);
            (it.source, about, it.enforced)
        };
        match (self, other) {
            (Counted::Limit(one), Counted::Limit(two)) => key(one) == key(two),
            _ => self == other,
        }
    }

    /// Hashes of where it is set, and of what is the same as long as the limit is.
    fn fingerprint(&self) -> Fingerprint {
        let hash = |of: &dyn Fn(&mut DefaultHasher)| {
            let mut hasher = DefaultHasher::new();
            of(&mut hasher);
            hasher.finish() as u32
        };
        match self {
            Counted::Limit(limit) => (
                hash(&|hasher| limit.source.hash(hasher)),
                hash(&|hasher| (limit.scope, limit.per, limit.unit, limit.across).hash(hasher)),
            ),
            Counted::UnreadableLabel(object) => (hash(&|hasher| object.hash(hasher)), 0),
        }
    }

    /// What it is set on, and the role and the database whose sessions it counts.
    pub fn objects(&self) -> [Option<Object>; 3] {
        match self {
            Counted::UnreadableLabel(object) => [Some(*object), None, None],
            Counted::Limit(limit) => {
                let (role, database) = (limit.scope.role(), limit.scope.database);
                let role = role.map(Object::Role);
                [limit.source.object(), role, database.map(Object::Database)]
            }
        }
    }
}

/// Of where a limit is set, and of the rest of it.
type Fingerprint = (u32, u32);

/// What happened under a limit.
#[derive(Clone, Copy, Debug)]
pub enum Happened {
    /// A login was admitted; the limit now counts so many sessions, this one among them.
    Admitted(u32),
    Refused(WhyRefused),
    /// Older sessions ended for a login.
    Replaced,
    /// The limit is only tried out: else it would have refused a login that was admitted.
    WouldRefuse,
    /// The limit is only tried out: else older sessions would have ended for a login.
    WouldReplace,
    /// The sweep told a session to end.
    Swept,
}

/// Why a login was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyRefused {
    /// There was no room, be it after the login had waited.
    NoRoom,
    /// The limit would have let the login wait, but there was no place to wait in.
    NoPlaceToWait,
    /// A session was to end for the login, and did not.
    NotReplaced,
    /// A label that covers the login cannot be read.
    UnreadableLabel,
}

/// What is counted for each limit. Times are microseconds since 2000-01-01; 0: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LimitCounters {
    pub admitted: u64,
    pub refused_no_room: u64,
    pub refused_no_place_to_wait: u64,
    pub refused_not_replaced: u64,
    pub refused_unreadable_label: u64,
    pub last_refused: i64,
    pub replaced: u64,
    pub would_refuse: u64,
    pub would_replace: u64,
    pub swept: u64,
    /// The most sessions at once.
    pub peak: u64,
    /// When that number was first reached.
    pub peak_at: i64,
}

impl LimitCounters {
    fn count(&mut self, happened: Happened, at: i64) {
        let counter = match happened {
            Happened::Admitted(in_use) => {
                if u64::from(in_use) > self.peak {
                    (self.peak, self.peak_at) = (in_use.into(), at);
                }
                &mut self.admitted
            }
            Happened::Refused(why) => {
                self.last_refused = self.last_refused.max(at);
                match why {
                    WhyRefused::NoRoom => &mut self.refused_no_room,
                    WhyRefused::NoPlaceToWait => &mut self.refused_no_place_to_wait,
                    WhyRefused::NotReplaced => &mut self.refused_not_replaced,
                    WhyRefused::UnreadableLabel => &mut self.refused_unreadable_label,
                }
            }
            Happened::Replaced => &mut self.replaced,
            Happened::WouldRefuse => &mut self.would_refuse,
            Happened::WouldReplace => &mut self.would_replace,
            Happened::Swept => &mut self.swept,
        };
        *counter = counter.saturating_add(1);
    }

    /// Counts what `other` has counted, too. The peaks were not at the same moment: the higher one is kept.
    fn merge(&mut self, other: &LimitCounters) {
        let add = |counter: &mut u64, number| *counter = counter.saturating_add(number);
        add(&mut self.admitted, other.admitted);
        add(&mut self.refused_no_room, other.refused_no_room);
        let no_place = other.refused_no_place_to_wait;
        add(&mut self.refused_no_place_to_wait, no_place);
        add(&mut self.refused_not_replaced, other.refused_not_replaced);
        let unreadable = other.refused_unreadable_label;
        add(&mut self.refused_unreadable_label, unreadable);
        self.last_refused = self.last_refused.max(other.last_refused);
        add(&mut self.replaced, other.replaced);
        add(&mut self.would_refuse, other.would_refuse);
        add(&mut self.would_replace, other.would_replace);
        add(&mut self.swept, other.swept);
        if other.peak > self.peak {
            (self.peak, self.peak_at) = (other.peak, other.peak_at);
        }
    }
}

/// If so many limits have counters, it is time to look for dropped roles and databases among them.
const CROWDED: usize = ROOM - ROOM / 4;

/// Limits that are set in one place take no more of the room from others, once it is used up.
const OF_ONE_SOURCE: usize = ROOM / 4;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    counted: Counted,
    counters: LimitCounters,
}

/// The counters of all limits. If there are more than [`ROOM`], a row becomes part of the others: the one that nothing was
/// counted in for the longest, of those from the same place if these are many, so that whoever makes limits in one place
/// hides no others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LimitStatistics {
    used: usize,
    /// For each row, apart from it, so that the search for a row reads few pages; and the number of its last change.
    fingerprints: [Fingerprint; ROOM],
    changed: [u64; ROOM],
    rows: [Row; ROOM],
    others: LimitCounters,
    changes: u64,
}

impl Default for LimitStatistics {
    fn default() -> LimitStatistics {
        let unused = Row {
            counted: Counted::UnreadableLabel(Object::Role(0)),
            counters: LimitCounters::default(),
        };
        LimitStatistics {
            used: 0,
            fingerprints: [(0, 0); ROOM],
            changed: [0; ROOM],
            rows: [unused; ROOM],
            others: LimitCounters::default(),
            changes: 0,
        }
    }
}

impl LimitStatistics {
    pub fn reset(&mut self) {
        (self.used, self.others) = (0, LimitCounters::default());
    }

    /// Counts what happened under the limit. Allocates nothing.
    pub fn count(&mut self, counted: Counted, happened: Happened, at: i64) {
        if let Some(row) = self.row(counted) {
            row.counted = counted;
            row.counters.count(happened, at);
        }
    }

    /// The row of the limit, changed just now.
    fn row(&mut self, counted: Counted) -> Option<&mut Row> {
        let fingerprint = counted.fingerprint();
        let known = self.fingerprints.iter().zip(&self.rows).take(self.used);
        let is_it = |(known, row): (&Fingerprint, &Row)| {
            *known == fingerprint && row.counted.is_same_as(&counted)
        };
        let known = known.into_iter().position(is_it);
        let position = match known {
            Some(position) => position,
            None => {
                let position = self.free(fingerprint.0);
                *self.fingerprints.get_mut(position)? = fingerprint;
                *self.rows.get_mut(position)? = Row {
                    counted,
                    counters: LimitCounters::default(),
                };
                position
            }
        };
        self.changes += 1;
        *self.changed.get_mut(position)? = self.changes;
        self.rows.get_mut(position)
    }

    /// The index of a row for a further limit that is set there.
    fn free(&mut self, source: u32) -> usize {
        if self.used < ROOM {
            self.used += 1;
            return self.used - 1;
        }
        let is_alike = |(other, _): &Fingerprint| *other == source;
        let alike = self.fingerprints.iter().filter(|it| is_alike(it)).count();
        let rows = self.fingerprints.iter().zip(&self.changed).enumerate();
        let oldest = rows
            .filter(|(_, (fingerprint, _))| alike < OF_ONE_SOURCE || is_alike(fingerprint))
            .min_by_key(|(_, (_, changed))| **changed);
        let position = oldest.map_or(ROOM, |(position, _)| position);
        if let Some(row) = self.rows.get(position) {
            self.others.merge(&row.counters);
        }
        position
    }

    /// Whether there is little room for further limits.
    pub fn is_crowded(&self) -> bool {
        self.used >= CROWDED
    }

    /// Makes room: rows about these roles and databases, which are sorted, become part of the others. Allocates nothing.
    pub fn forget(&mut self, dropped: &[Object]) {
        let mut kept = 0;
        for position in 0..self.used {
            let fingerprint = self.fingerprints.get(position).copied();
            let changed = self.changed.get(position).copied();
            let row = self.rows.get(position).copied();
            let (Some(fingerprint), Some(changed), Some(row)) = (fingerprint, changed, row) else {
                return;
            };
            let is_dropped = |object: &Object| dropped.binary_search(object).is_ok();
            if row.counted.objects().iter().flatten().any(is_dropped) {
                self.others.merge(&row.counters);
                continue;
            }
            self.fingerprints
                .get_mut(kept)
                .into_iter()
                .for_each(|it| *it = fingerprint);
            self.changed
                .get_mut(kept)
                .into_iter()
                .for_each(|it| *it = changed);
            self.rows.get_mut(kept).into_iter().for_each(|it| *it = row);
            kept += 1;
        }
        self.used = kept;
    }

    /// Each limit with its counters. Last, without a limit, the counters of the others, if there are any.
    pub fn rows(&self) -> impl Iterator<Item = (Option<Counted>, &LimitCounters)> {
        let others = (self.others != LimitCounters::default()).then_some((None, &self.others));
        let rows = self.rows.iter().take(self.used);
        rows.map(|row| (Some(row.counted), &row.counters))
            .chain(others)
    }

    /// What is kept over a restart: the rows, those that have not changed for the longest first.
    pub fn to_save(&self) -> Vec<(Option<Counted>, LimitCounters)> {
        let mut rows: Vec<(&u64, &Row)> = self.changed.iter().zip(&self.rows).collect();
        rows.truncate(self.used);
        rows.sort_by_key(|(changed, _)| **changed);
        let others = std::iter::once((None, self.others));
        let rows = rows.into_iter();
        let rows = rows.map(|(_, row)| (Some(row.counted), row.counters));
        others.chain(rows).collect()
    }

    /// Takes back what [`LimitStatistics::to_save`] returned.
    pub fn restore(&mut self, saved: Vec<(Option<Counted>, LimitCounters)>) {
        self.reset();
        for (counted, counters) in saved {
            match counted {
                None => self.others = counters,
                Some(counted) => {
                    if let Some(row) = self.row(counted) {
                        row.counters = counters;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::limit::tests::{at_most, in_database, of_role};
    use crate::limit::{Across, Source};

    fn of(role: u32) -> Counted {
        Counted::Limit(at_most(3, of_role(role)))
    }

    fn counters(statistics: &LimitStatistics, counted: Option<Counted>) -> LimitCounters {
        let mut rows = statistics.rows();
        let row = rows.find(|(found, _)| *found == counted);
        *row.expect("a row").1
    }

    #[test]
    fn each_event_counts_for_its_limit() {
        let mut statistics = Box::new(LimitStatistics::default());
        let unreadable = Counted::UnreadableLabel(Object::Role(1));
        let all = [
            (of(1), Happened::Admitted(2)),
            (of(1), Happened::Admitted(1)),
            (of(1), Happened::Refused(WhyRefused::NoRoom)),
            (of(1), Happened::Refused(WhyRefused::NoPlaceToWait)),
            (of(1), Happened::Refused(WhyRefused::NotReplaced)),
            (of(1), Happened::Replaced),
            (of(1), Happened::WouldRefuse),
            (of(1), Happened::WouldReplace),
            (of(1), Happened::Swept),
            (of(2), Happened::Admitted(7)),
            (unreadable, Happened::Refused(WhyRefused::UnreadableLabel)),
        ];
        for (at, (counted, happened)) in (1..).zip(all) {
            statistics.count(counted, happened, at);
        }
        assert_eq!(
            counters(&statistics, Some(of(1))),
            LimitCounters {
                admitted: 2,
                refused_no_room: 1,
                refused_no_place_to_wait: 1,
                refused_not_replaced: 1,
                refused_unreadable_label: 0,
                last_refused: 5,
                replaced: 1,
                would_refuse: 1,
                would_replace: 1,
                swept: 1,
                peak: 2,
                peak_at: 1,
            }
        );
        let other = counters(&statistics, Some(of(2)));
        assert_eq!((other.admitted, other.peak, other.peak_at), (1, 7, 10));
        let unreadable = counters(&statistics, Some(unreadable));
        let number = unreadable.refused_unreadable_label;
        assert_eq!((number, unreadable.last_refused), (1, 11));
        assert_eq!(statistics.rows().count(), 3);
    }

    #[test]
    fn a_limit_is_the_same_with_another_number_and_another_one_in_another_scope() {
        let mut statistics = Box::new(LimitStatistics::default());
        let raised = Counted::Limit(at_most(9, of_role(1)));
        let mut tried_out = at_most(3, of_role(1));
        tried_out.enforced = false;
        let mut across_servers = at_most(3, of_role(1));
        across_servers.across = Across::Servers;
        let others = [
            Counted::Limit(tried_out),
            Counted::Limit(across_servers),
            Counted::Limit(at_most(3, in_database(1))),
            Counted::UnreadableLabel(Object::Database(1)),
        ];
        for counted in [of(1), raised].into_iter().chain(others) {
            statistics.count(counted, Happened::Admitted(1), 1);
        }
        assert_eq!(counters(&statistics, Some(raised)).admitted, 2);
        assert_eq!(statistics.rows().count(), 5);
        for other in others {
            assert_eq!(counters(&statistics, Some(other)).admitted, 1);
        }
    }

    #[test]
    fn the_limit_that_nothing_happened_under_for_the_longest_makes_room() {
        let mut statistics = Box::new(LimitStatistics::default());
        assert!(!statistics.is_crowded());
        for role in 1..=ROOM as u32 {
            statistics.count(of(role), Happened::Admitted(role), role.into());
        }
        assert!(statistics.is_crowded());
        statistics.count(of(1), Happened::Admitted(1), 5000);
        assert!(statistics.rows().all(|(counted, _)| counted.is_some()));
        statistics.count(of(9000), Happened::Admitted(1), 5001);
        statistics.count(of(9001), Happened::Swept, 5002);
        assert_eq!(statistics.rows().count(), ROOM + 1);
        assert_eq!(counters(&statistics, Some(of(1))).admitted, 2, "kept");
        let others = counters(&statistics, None);
        assert_eq!((others.admitted, others.peak, others.peak_at), (2, 3, 3));
        assert_eq!(counters(&statistics, Some(of(9000))).admitted, 1);
        // It comes back with nothing, and what it had stays with the others.
        statistics.count(of(2), Happened::Swept, 5003);
        assert_eq!(counters(&statistics, Some(of(2))).admitted, 0);
        assert_eq!(counters(&statistics, None).admitted, 3);
    }

    #[test]
    fn limits_set_in_one_place_hide_no_others() {
        let mut statistics = Box::new(LimitStatistics::default());
        let on_app = |role| {
            let source = Source::Label(Object::Database(5));
            let limit = Limit {
                source,
                ..at_most(3, of_role(role))
            };
            Counted::Limit(limit)
        };
        let application = Counted::UnreadableLabel(Object::Database(1));
        statistics.count(application, Happened::Admitted(1), 1);
        for role in 1..=4 * ROOM as u32 {
            statistics.count(on_app(role), Happened::Admitted(1), 2);
        }
        assert_eq!(counters(&statistics, Some(application)).admitted, 1);
        // Another place takes its share, and no more.
        for role in 1..=ROOM as u32 {
            statistics.count(of(role), Happened::Admitted(1), 3);
        }
        let sources = |wanted: Source| {
            let rows = statistics.rows();
            let is_of = |counted: &Option<Counted>| matches!(counted, Some(Counted::Limit(limit)) if limit.source == wanted);
            rows.filter(|(counted, _)| is_of(counted)).count()
        };
        assert_eq!(sources(Source::MaxSessionsPerRole), OF_ONE_SOURCE);
        let all: u64 = statistics.rows().map(|(_, it)| it.admitted).sum();
        assert_eq!(all, 1 + 5 * ROOM as u64, "none is lost");
    }

    #[test]
    fn rows_about_dropped_roles_and_databases_make_room() {
        let mut statistics = Box::new(LimitStatistics::default());
        let on_group = Limit {
            source: Source::Label(Object::Role(7)),
            ..at_most(3, of_role(1))
        };
        let all = [
            of(1),
            of(2),
            Counted::Limit(on_group),
            Counted::Limit(at_most(3, in_database(1))),
            Counted::Limit(at_most(3, in_database(2))),
            Counted::UnreadableLabel(Object::Database(2)),
        ];
        for (at, counted) in (1..).zip(all) {
            statistics.count(counted, Happened::Admitted(1), at);
        }
        statistics.forget(&[Object::Role(2), Object::Role(7), Object::Database(2)]);
        let left: Vec<_> = statistics.rows().map(|(counted, _)| counted).collect();
        assert_eq!(left, [Some(all[0]), Some(all[3]), None]);
        assert_eq!(counters(&statistics, None).admitted, 4);
        statistics.count(all[3], Happened::Admitted(1), 9);
        assert_eq!(counters(&statistics, Some(all[3])).admitted, 2);
    }

    #[test]
    fn what_is_saved_comes_back_in_the_same_order() {
        let mut statistics = Box::new(LimitStatistics::default());
        for role in 1..=ROOM as u32 + 1 {
            statistics.count(of(role), Happened::Admitted(role), 1);
        }
        statistics.count(of(2), Happened::Swept, 2);
        let mut restored = Box::new(LimitStatistics::default());
        restored.count(of(9999), Happened::Swept, 2);
        restored.restore(statistics.to_save());
        assert_eq!(restored.to_save(), statistics.to_save());
        for statistics in [&mut statistics, &mut restored] {
            statistics.count(of(8000), Happened::Admitted(1), 3);
        }
        assert_eq!(restored.to_save(), statistics.to_save());
        let kept = counters(&restored, Some(of(2)));
        assert_eq!((kept.swept, kept.peak), (1, 2));
        restored.reset();
        assert_eq!(restored.rows().count(), 0);
    }
}
