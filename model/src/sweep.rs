//! Which sessions end because a limit was lowered, or set, after they came. Pure.
//!
//! What is over a limit is what a login would be refused for: the limit counts more sessions than it
//! allows, whoever they are. Who ends for it are those whom it holds: sessions to which it applies,
//! not one that is exempt, nor one that has a nearer limit. Such a one is let in over the limit, and
//! pushes out nobody who was there. The idle ones go first, so that none ends in a transaction while an
//! idle one is there. A session is told once: from then on it is neither counted nor chosen.

use crate::attempt::{Idle, idle_since};
use crate::limit::{Limit, OnExcess};
use crate::members::{Members, SessionFilter};
use crate::session::{EndReason, Session, SessionKind};
use crate::table::Table;
use std::collections::BTreeMap;

/// Which limits there are for the sessions of a table, as the catalogs and settings had it before the
/// lock was taken.
#[derive(Debug, Default)]
pub struct Applying {
    pub limits: Vec<Limit>,
    /// By their index those that hold a session of this kind: none, if it is exempt.
    pub hold: BTreeMap<SessionKind, Vec<usize>>,
}

/// What a sweep knows.
pub struct Sweep<'a> {
    pub applying: &'a Applying,
    pub members: &'a Members,
    pub idle: &'a Idle,
    pub count_walsenders: bool,
}

/// A limit that is exceeded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exceeded {
    /// Which of the limits it is.
    pub limit: usize,
    /// How many sessions it counts, but for those that were told to end.
    pub in_use: u32,
    /// How many of them may be ended for it.
    pub held: u32,
    /// How many of these are to be.
    pub excess: u32,
}

/// A session that is to end, and for which limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ending {
    pub pid: u32,
    pub session: Session,
    pub over: Exceeded,
}

/// A session that may be ended: those that rank lowest are. It is not idle; since when it is idle, if that
/// counts; its arrival.
type SweepRank = (bool, i64, u64);

/// Room for what is found under the lock, where nothing is allocated.
pub struct Found {
    candidates: Vec<(SweepRank, usize, u32)>,
    pub endings: Vec<Ending>,
}

impl Found {
    pub fn with_room_for(sessions: usize) -> Found {
        Found {
            candidates: Vec::with_capacity(sessions),
            endings: Vec::with_capacity(sessions),
        }
    }
}

impl Sweep<'_> {
    /// The limits that are exceeded by sessions that may be ended for it. Those that hold the fewest come
    /// first: who ends for them may be enough for the others.
    pub fn over(&self, table: &Table) -> Vec<Exceeded> {
        let limits = 0..self.applying.limits.len();
        let mut all: Vec<Exceeded> = limits.filter_map(|limit| self.look(table, limit)).collect();
        all.sort_by_key(|over| over.held);
        all
    }

    /// Chooses who ends so that these limits are met, and notes that they are told.
    pub fn end(&self, table: &mut Table, limits: &[Exceeded], found: &mut Found) {
        for over in limits {
            // Those who end for the limits before may be enough.
            if let Some(over) = self.look(table, over.limit) {
                self.end_for(table, over, found);
            }
        }
    }

    fn end_for(&self, table: &mut Table, over: Exceeded, found: &mut Found) {
        let Some((limit, counted)) = self.limit(over.limit) else {
            return;
        };
        let held = self.held(table, over.limit, counted);
        let ranked =
            held.map(|(slot, pid, session)| (self.rank(limit.on_excess, pid, &session), slot, pid));
        found.candidates.clear();
        found.candidates.extend(ranked);
        found.candidates.sort_unstable();
        let end_reason = EndReason::Swept {
            source: limit.source,
            in_use: over.in_use,
            max: limit.max,
        };
        for (_, slot, pid) in found.candidates.iter().take(over.excess as usize) {
            let told = table.tell_to_end(*slot, end_reason);
            found.endings.extend(told.map(|session| Ending {
                pid: *pid,
                session,
                over,
            }));
        }
    }

    /// None if the limit is met, or if nobody ends for it.
    fn look(&self, table: &Table, index: usize) -> Option<Exceeded> {
        let (limit, counted) = self.limit(index)?;
        let in_use = table.staying(counted).count() as u32;
        if in_use <= limit.max {
            return None;
        }
        let held = self.held(table, index, counted);
        let arrivals = held.map(|(_, _, session)| session.arrival);
        let (held, latest) = arrivals.fold((0, 0), |(held, latest), arrival| {
            (held + 1, arrival.max(latest))
        });
        // When the latest of them came, there was room, or the limit was another.
        let staying = table.staying(counted);
        let then = staying.filter(|(_, _, session)| session.arrival <= latest);
        let excess = (then.count() as u32).saturating_sub(limit.max).min(held);
        (excess > 0).then_some(Exceeded {
            limit: index,
            in_use,
            held,
            excess,
        })
    }

    /// The limit, and what it counts. None if nobody has asked who its members are.
    fn limit(&self, index: usize) -> Option<(&Limit, SessionFilter<'_>)> {
        let limit = self.applying.limits.get(index)?;
        let counted = SessionFilter::new(limit.scope, self.count_walsenders, self.members);
        Some((limit, counted.ok()?))
    }

    /// The sessions that may be ended for the limit. Of a kind that nobody has asked about, because
    /// its first session has only just come, none may.
    fn held<'b>(
        &'b self,
        table: &'b Table,
        limit: usize,
        counted: SessionFilter<'b>,
    ) -> impl Iterator<Item = (usize, u32, Session)> {
        let holds = move |session: &Session| {
            let hold = self.applying.hold.get(&session.kind());
            hold.is_some_and(|limits| limits.contains(&limit))
        };
        let staying = table.staying(counted);
        staying.filter(move |(slot, _, session)| holds(session) && !table.is_pending(*slot))
    }

    fn rank(&self, on_excess: OnExcess, pid: u32, session: &Session) -> SweepRank {
        let since = match (idle_since(self.idle, pid), on_excess) {
            (None, _) => return (true, 0, session.arrival),
            (Some(_), OnExcess::ReplaceOldest) => 0,
            (Some(since), OnExcess::Refuse | OnExcess::ReplaceIdle) => since,
        };
        (false, since, session.arrival)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::tests::{at_most, in_database, of_role};
    use crate::limit::{Scope, Who};
    use crate::own_table::OwnTable;
    use crate::table::tests::session;

    const ALICE: u32 = 10;
    const BOB: u32 = 11;
    const TEAM: u32 = 20;
    const APP: u32 = 5;
    const WEB: u32 = 6;

    /// Sessions whose process IDs are 100 and up, in order of arrival.
    struct World {
        memory: OwnTable,
        applying: Applying,
        members: Members,
        idle: Idle,
    }

    impl World {
        /// Every limit holds everyone.
        fn new(limits: impl Into<Vec<Limit>>, sessions: &[Session]) -> World {
            let limits = limits.into();
            let all: Vec<usize> = (0..limits.len()).collect();
            let mut memory = OwnTable::new(sessions.len() + 2, 0);
            let mut hold = BTreeMap::new();
            for (slot, session) in sessions.iter().enumerate() {
                let arrival = slot as u64;
                let session = Session {
                    arrival,
                    ..*session
                };
                memory.table().claim(slot, 100 + slot as u32, session);
                hold.insert(session.kind(), all.clone());
            }
            World {
                memory,
                applying: Applying { limits, hold },
                members: Members::default(),
                idle: Idle::new(),
            }
        }

        fn sweep<T>(&mut self, act: impl FnOnce(&Sweep, &mut Table) -> T) -> T {
            let sweep = Sweep {
                applying: &self.applying,
                members: &self.members,
                idle: &self.idle,
                count_walsenders: false,
            };
            act(&sweep, &mut self.memory.table())
        }

        /// The limits that are over, each with what it counts.
        fn over(&mut self) -> Vec<(usize, u32)> {
            let over = self.sweep(|sweep, table| sweep.over(table));
            over.iter().map(|over| (over.limit, over.in_use)).collect()
        }

        /// The slots of those who end, in order.
        fn end(&mut self) -> Vec<u32> {
            self.sweep(|sweep, table| {
                let mut found = Found::with_room_for(10);
                let over = sweep.over(table);
                sweep.end(table, &over, &mut found);
                found
                    .endings
                    .iter()
                    .map(|ending| ending.pid - 100)
                    .collect()
            })
        }
    }

    fn alice(sessions: usize, max: u32, on_excess: OnExcess) -> World {
        let limit = Limit {
            on_excess,
            ..at_most(max, of_role(ALICE))
        };
        World::new([limit], &vec![session(ALICE, APP); sessions])
    }

    #[test]
    fn as_many_end_as_are_too_many() {
        for (sessions, max, ended) in [(3, 3, 0), (3, 4, 0), (3, 2, 1), (3, 1, 2), (3, 0, 3)] {
            let mut world = alice(sessions, max, OnExcess::Refuse);
            assert_eq!(world.end().len(), ended, "{sessions} under {max}");
        }
    }

    #[test]
    fn the_longest_idle_end_first() {
        for on_excess in [OnExcess::Refuse, OnExcess::ReplaceIdle] {
            let mut world = alice(5, 1, on_excess);
            world.idle = vec![(101, 70), (103, 50), (104, 60)];
            assert_eq!(world.end(), [3, 4, 1, 0], "then the oldest");
        }
    }

    #[test]
    fn or_the_oldest_of_the_idle() {
        let mut world = alice(5, 1, OnExcess::ReplaceOldest);
        world.idle = vec![(101, 70), (103, 50), (104, 60)];
        assert_eq!(world.end(), [1, 3, 4, 0]);
    }

    #[test]
    fn none_ends_in_a_transaction_while_one_is_idle() {
        let policies = [
            OnExcess::Refuse,
            OnExcess::ReplaceIdle,
            OnExcess::ReplaceOldest,
        ];
        for on_excess in policies {
            let mut world = alice(3, 2, on_excess);
            world.idle = vec![(102, 99)];
            assert_eq!(world.end(), [2], "{on_excess:?}: the youngest");
        }
    }

    #[test]
    fn who_was_told_is_neither_told_again_nor_counted() {
        let mut world = alice(3, 1, OnExcess::Refuse);
        assert_eq!(world.end(), [0, 1]);
        assert_eq!(world.end(), [] as [u32; 0]);
        assert_eq!(world.over(), []);
        let told = |in_use| EndReason::Swept {
            source: world.applying.limits[0].source,
            in_use,
            max: 1,
        };
        let end_reasons = [Some(told(3)), Some(told(3)), None];
        let table = world.memory.table();
        assert_eq!([0, 1, 2].map(|slot| table.end_reason(slot)), end_reasons);
        // The next owner of the slot has been told nothing.
        let mut table = world.memory.table();
        table.vacate(0);
        table.claim(0, 110, session(ALICE, APP));
        assert_eq!(world.over(), [(0, 2)]);
    }

    #[test]
    fn nobody_ends_who_is_beyond_the_limit() {
        // Slot 0 is exempt, or has a nearer limit, and slot 3 of a kind that nobody has asked about.
        let sessions = [
            session(BOB, APP),
            session(ALICE, APP),
            session(ALICE, APP),
            session(BOB, APP),
        ];
        let mut world = World::new([at_most(1, in_database(APP))], &sessions);
        world.applying.hold.insert(session(BOB, APP).kind(), vec![]);
        assert_eq!(world.over(), [(0, 4)]);
        assert_eq!(world.end(), [1, 2]);
        assert_eq!(world.over(), [], "two are left, whom it does not hold");
        let mut world = World::new([at_most(1, in_database(APP))], &sessions);
        world.applying.hold.remove(&session(BOB, APP).kind());
        assert_eq!(world.end(), [1, 2]);
    }

    #[test]
    fn who_was_let_in_over_the_limit_pushes_nobody_out() {
        let sessions = [(); 3].map(|()| session(ALICE, APP));
        let over = [
            sessions[0],
            session(BOB, APP),
            sessions[1],
            session(BOB, APP),
        ];
        let mut world = World::new([at_most(1, in_database(APP))], &over);
        world.applying.hold.insert(session(BOB, APP).kind(), vec![]);
        assert_eq!(
            world.end(),
            [0, 2],
            "of the three when the last of alice came"
        );
        let over = [sessions[0], sessions[1], session(BOB, APP)];
        let mut world = World::new([at_most(2, in_database(APP))], &over);
        world.applying.hold.insert(session(BOB, APP).kind(), vec![]);
        assert_eq!(world.over(), []);
        assert_eq!(world.end(), [] as [u32; 0]);
    }

    #[test]
    fn who_ends_for_one_limit_ends_for_the_others_too() {
        let sessions = [
            session(BOB, APP),
            session(ALICE, WEB),
            session(ALICE, APP),
            session(BOB, APP),
        ];
        // Of all four one must end, and of Alice's two one.
        let limits = [at_most(2, in_database(APP)), at_most(1, of_role(ALICE))];
        let mut world = World::new(limits, &sessions);
        world.idle = vec![(102, 5)];
        assert_eq!(world.over(), [(1, 2), (0, 3)], "the fewest first");
        assert_eq!(world.end(), [2]);
    }

    #[test]
    fn the_members_of_a_group_count_together() {
        let team = Scope {
            who: Who::MembersOf(TEAM),
            database: None,
            network: None,
        };
        let sessions = [session(ALICE, APP), session(BOB, APP), session(12, APP)];
        let mut world = World::new([at_most(1, team)], &sessions);
        assert_eq!(world.end(), [] as [u32; 0], "unknown members");
        world.members.insert(TEAM, vec![ALICE, BOB]);
        assert_eq!(world.end(), [0]);
    }

    #[test]
    fn a_session_that_is_replaced_leaves_already_and_its_heir_stays() {
        let mut world = alice(3, 1, OnExcess::Refuse);
        let mut table = world.memory.table();
        table.claim(3, 103, session(ALICE, APP));
        table.hand_over(0, 3);
        assert_eq!(world.over(), [(0, 3)], "1, 2 and the successor");
        assert_eq!(world.end(), [1, 2]);
        // The successor gives up: its place falls back to the first.
        world.memory.table().roll_back(3);
        assert_eq!(world.over(), [], "which is one");
    }

    #[test]
    fn walsenders_are_sessions_only_where_they_count() {
        let walsender = Session {
            walsender: true,
            ..session(ALICE, 0)
        };
        let mut world = World::new([at_most(1, of_role(ALICE))], &[walsender; 3]);
        assert_eq!(world.over(), []);
    }
}
