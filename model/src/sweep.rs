//! Which sessions end because a limit was set or lowered after they came.
//!
//! A limit is exceeded if it counts more sessions than its `max`, of whatever kind. But only sessions that the limit
//! *holds* may end for it: those to which it applies. A limit holds no session that is exempt, and none for which a
//! nearer limit takes its place. Such a session is counted; but as it may have been let in over the limit, no session
//! that was there before it ends because of it.
//!
//! A limit across servers is exceeded if it counts more here and elsewhere together. Nobody ends for it: which of the servers
//! should end how many, none of them knows.
//!
//! A limit can count different roles or addresses. Then all sessions of one end, or none: those of a role or address that the
//! limit does not hold completely stay, and so it stays, too.
//!
//! Idle sessions end first, so that none ends within a transaction while an idle one could. A session is told to end
//! once: from then on it is neither counted nor chosen here.

use crate::attempt::{IsIdle, idle_since};
use crate::limit::{Limit, OnExcess, Unit};
use crate::members::{Members, SessionFilter};
use crate::session::{EndReason, Session, SessionKind};
use crate::table::Table;
use std::collections::BTreeMap;

/// The limits that apply to the sessions of a table, as the catalogs and settings had them before the lock was taken.
#[derive(Debug, Default)]
pub struct Applying {
    pub limits: Vec<Limit>,
    /// For each kind of session the limits that hold it, as indexes into `limits`; none if it is exempt.
    pub hold: BTreeMap<SessionKind, Vec<usize>>,
}

/// What a sweep needs to know.
pub struct Sweep<'a> {
    pub applying: &'a Applying,
    pub members: &'a Members,
    pub is_idle: IsIdle<'a>,
    pub count_walsenders: bool,
}

/// A limit that is exceeded by sessions that may end for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exceeded {
    /// Its index in [`Applying::limits`].
    pub limit: usize,
    /// How many sessions it counts, without those that are about to end; or how many different roles or addresses. Of a limit
    /// across servers those on this one.
    pub in_use: u32,
    /// How many sessions it counts on other servers, as of the last look at etcd.
    pub elsewhere: u32,
    /// How many of them it holds: they may end for it.
    pub held: u32,
    /// How many of these are to end.
    pub excess: u32,
}

/// A session that is told to end, and for which limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ending {
    pub pid: u32,
    pub session: Session,
    pub over: Exceeded,
}

/// The order in which sessions end, the smallest first: (1) idle, which is false here; (2) the tick since which it has been
/// idle, so the longest idle, or 0 if that does not matter; (3) earliest arrival.
type SweepRank = (bool, u64, u64);

/// Memory for what is found under the lock, where nothing is allocated.
pub struct Found {
    candidates: Vec<(Option<SweepRank>, usize, u32)>,
    pub endings: Vec<Ending>,
}

impl Found {
    /// With room for as many sessions as the table can have.
    pub fn with_room_for(sessions: usize) -> Found {
        Found {
            candidates: Vec::with_capacity(sessions),
            endings: Vec::with_capacity(sessions),
        }
    }
}

impl Sweep<'_> {
    /// The limits that are exceeded by sessions that may end for them. Those that hold the fewest come first: the
    /// sessions that end for them may be enough for the others. Allocates, so it needs a copy of the table.
    pub fn over(&self, table: &Table) -> Vec<Exceeded> {
        let limits = 0..self.applying.limits.len();
        let mut found = Found::with_room_for(table.shared.slots());
        let mut all: Vec<Exceeded> = limits
            .filter_map(|limit| self.exceeded(table, limit, &mut found))
            .collect();
        all.sort_by_key(|over| over.held);
        all
    }

    /// Chooses the sessions that end so that these limits are met, and notes in the table that they are told to. The
    /// caller tells them once it has dropped the lock.
    pub fn end(&self, table: &mut Table, limits: &[Exceeded], found: &mut Found) {
        for over in limits {
            // Looked at anew: sessions that end for an earlier limit may be enough for this one.
            if let Some(over) = self.exceeded(table, over.limit, found) {
                self.end_for(table, over, found);
            }
        }
    }

    /// Chooses the sessions that end for this limit. `found.candidates` has what `exceeded` left there.
    fn end_for(&self, table: &mut Table, over: Exceeded, found: &mut Found) {
        let Some(limit) = self.applying.limits.get(over.limit) else {
            return;
        };
        for (rank, slot, _) in &mut found.candidates {
            let session = table.session(*slot);
            *rank = rank.and(session.map(|it| self.rank(table, limit.on_excess, *slot, &it)));
        }
        for of_one in units(table, limit.unit, &mut found.candidates) {
            let together = of_one.iter().map(|(rank, ..)| *rank).reduce(last);
            let together = together.flatten();
            of_one.iter_mut().for_each(|one| one.0 = together);
        }
        found.candidates.retain(|(rank, ..)| rank.is_some());
        found.candidates.sort_unstable();
        let end_reason = EndReason::Swept {
            source: limit.source,
            unit: limit.unit,
            in_use: over.in_use,
            max: limit.max,
        };
        let (mut ended, mut before) = (0, None);
        for (rank, slot, pid) in &found.candidates {
            // The sessions of one role or address have the same rank, and no others have it.
            ended += u32::from(before != Some(rank));
            if ended > over.excess {
                break;
            }
            before = Some(rank);
            let told = table.tell_to_end(*slot, end_reason);
            found.endings.extend(told.map(|session| Ending {
                pid: *pid,
                session,
                over,
            }));
        }
    }

    /// None if the limit is met, or if no session may end for it. Puts the sessions that it counts into
    /// `found.candidates`, with a rank that says no more than that they may end.
    fn exceeded(&self, table: &Table, index: usize, found: &mut Found) -> Option<Exceeded> {
        let (limit, filter) = self.limit(index)?;
        let place = limit.place.and_then(|number| table.places.get(number));
        let elsewhere = place.map_or(0, |place| place.elsewhere);
        let max = limit.max.saturating_sub(elsewhere);
        if table.staying(filter).count() as u32 <= max {
            return None;
        }
        let all = table.staying(filter);
        let may_end = |slot, session: &Session| self.holds(table, index, slot, session);
        found.candidates.clear();
        found.candidates.extend(all.map(|(slot, pid, session)| {
            let arrival = may_end(slot, &session).then_some((false, 0, session.arrival));
            (arrival, slot, pid)
        }));
        let arrival = |slot: usize| table.session(slot).map_or(0, |session| session.arrival);
        let (mut in_use, mut held, mut partly_held, mut latest) = (0, 0, 0, 0);
        for of_one in units(table, limit.unit, &mut found.candidates) {
            in_use += 1;
            partly_held += u32::from(of_one.iter().any(|(rank, ..)| rank.is_some()));
            if of_one.iter().all(|(rank, ..)| rank.is_some()) {
                held += 1;
                let arrivals = of_one.iter().map(|(_, slot, _)| arrival(*slot));
                latest = arrivals.min().unwrap_or(0).max(latest);
            }
        }
        if in_use <= max {
            return None;
        }
        let rightful = match limit.unit {
            // The latest session that the limit holds was let in: there was room, or the limit was another. So what came
            // after it was let in over the limit, and does not count here.
            Unit::Session => {
                let sessions = found.candidates.iter();
                sessions
                    .filter(|(_, slot, _)| arrival(*slot) <= latest)
                    .count() as u32
            }
            // A role or an address that is in needs no room for further sessions, so that these say nothing. Whoever is in
            // only by sessions that the limit does not hold costs nobody a session.
            Unit::Role | Unit::Address { .. } => partly_held,
        };
        let excess = rightful.saturating_sub(max).min(held);
        (excess > 0).then_some(Exceeded {
            limit: index,
            in_use,
            elsewhere,
            held,
            excess,
        })
    }

    /// The limit, and which sessions it counts. None if the members of its group are not known.
    fn limit(&self, index: usize) -> Option<(&Limit, SessionFilter<'_>)> {
        let limit = self.applying.limits.get(index)?;
        let filter = SessionFilter::new(limit.scope, self.count_walsenders, self.members);
        Some((limit, filter.ok()?))
    }

    /// Whether the session may end for the limit. Not one of a kind that is not in [`Applying::hold`], because its first
    /// session came after the catalogs were read.
    fn holds(&self, table: &Table, limit: usize, slot: usize, session: &Session) -> bool {
        let hold = self.applying.hold.get(&session.kind());
        hold.is_some_and(|limits| limits.contains(&limit)) && !table.is_pending(slot)
    }

    fn rank(
        &self,
        table: &Table,
        on_excess: OnExcess,
        slot: usize,
        session: &Session,
    ) -> SweepRank {
        let since = match (idle_since(table, self.is_idle, slot), on_excess) {
            (None, _) => return (true, 0, session.arrival),
            (Some(_), OnExcess::ReplaceOldest) => 0,
            (Some(since), OnExcess::Refuse | OnExcess::ReplaceIdle) => since,
        };
        (false, since, session.arrival)
    }
}

/// The sessions by what a limit counts as one.
fn units<'a>(
    table: &Table,
    unit: Unit,
    sessions: &'a mut [(Option<SweepRank>, usize, u32)],
) -> impl Iterator<Item = &'a mut [(Option<SweepRank>, usize, u32)]> {
    let value = move |slot: usize| match unit {
        Unit::Session => Some(slot as u128),
        _ => table.session(slot).and_then(|session| unit.value(&session)),
    };
    if unit != Unit::Session {
        sessions.sort_unstable_by_key(|(_, slot, _)| value(*slot));
    }
    sessions.chunk_by_mut(move |(_, one, _), (_, other, _)| value(*one) == value(*other))
}

/// The rank of two sessions that end together: that of the one that would end last, but for the arrival, which is the
/// first. None if one of them may not end.
fn last(one: Option<SweepRank>, other: Option<SweepRank>) -> Option<SweepRank> {
    let ((busy, since, arrival), (other_busy, other_since, other_arrival)) = one.zip(other)?;
    Some((
        busy | other_busy,
        since.max(other_since),
        arrival.min(other_arrival),
    ))
}

/// Whether a session ends if its role was dropped.
pub fn ends_if_dropped(session: &Session, count_walsenders: bool) -> bool {
    !session.exempt && (count_walsenders || !session.walsender)
}

/// Chooses the sessions of these roles, which were dropped, but for exempt ones, and notes that they are told to end. Their process IDs and
/// the sessions go to `found`, which has room for all.
pub fn end_sessions_of(
    dropped: &[u32],
    count_walsenders: bool,
    table: &mut Table,
    found: &mut Vec<(u32, Session)>,
) {
    for slot in 0..table.shared.slots() {
        let Some((pid, session)) = table.process(slot) else {
            continue;
        };
        let ends = ends_if_dropped(&session, count_walsenders) && table.end_reason(slot).is_none();
        if ends && dropped.contains(&session.role) {
            table.tell_to_end(slot, EndReason::RoleDropped);
            found.push((pid, session));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::tests::{at_most, in_database, of_role};
    use crate::limit::{Scope, Who};
    use crate::own_table::OwnTable;
    use crate::servers::counter::Counter;
    use crate::servers::place::Wanted;
    use crate::table::tests::session;

    const ALICE: u32 = 10;
    const BOB: u32 = 11;
    const CAROL: u32 = 12;
    const TEAM: u32 = 20;
    const APP: u32 = 5;
    const WEB: u32 = 6;

    /// A table whose sessions arrived in the order of their slots, and have the process IDs 100 and up.
    struct World {
        memory: OwnTable,
        applying: Applying,
        members: Members,
        /// The idle sessions: process ID, and since when.
        idle: Vec<(u32, u64)>,
    }

    impl World {
        /// Every limit holds every session.
        fn new(limits: impl Into<Vec<Limit>>, sessions: &[Session]) -> World {
            let limits = limits.into();
            let all: Vec<usize> = (0..limits.len()).collect();
            let mut memory = OwnTable::with_places(sessions.len() + 2, 0, 1);
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
                idle: Vec::new(),
            }
        }

        fn sweep<T>(&mut self, act: impl FnOnce(&Sweep, &mut Table) -> T) -> T {
            let mut table = self.memory.table();
            for (pid, since) in &self.idle {
                table.shared.note_active(*pid as usize - 100, *since);
            }
            let sweep = Sweep {
                applying: &self.applying,
                members: &self.members,
                is_idle: &|_, pid| self.idle.iter().any(|(idle, _)| *idle == pid),
                count_walsenders: false,
            };
            act(&sweep, &mut table)
        }

        /// The exceeded limits, each with how many sessions it counts.
        fn over(&mut self) -> Vec<(usize, u32)> {
            let over = self.sweep(|sweep, table| sweep.over(table));
            over.iter().map(|over| (over.limit, over.in_use)).collect()
        }

        /// The slots of the sessions that end, in the order in which they are chosen.
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
    fn as_many_sessions_end_as_exceed_the_limit() {
        for (sessions, max, ended) in [(3, 3, 0), (3, 4, 0), (3, 2, 1), (3, 1, 2), (3, 0, 3)] {
            let mut world = alice(sessions, max, OnExcess::Refuse);
            assert_eq!(world.end().len(), ended, "{sessions} under {max}");
        }
    }

    #[test]
    fn the_longest_idle_end_first_and_then_the_oldest() {
        for on_excess in [OnExcess::Refuse, OnExcess::ReplaceIdle] {
            let mut world = alice(5, 1, on_excess);
            world.idle = vec![(101, 70), (103, 50), (104, 60)];
            assert_eq!(world.end(), [3, 4, 1, 0], "then the oldest");
        }
    }

    #[test]
    fn under_replace_oldest_the_oldest_of_the_idle_end_first() {
        let mut world = alice(5, 1, OnExcess::ReplaceOldest);
        world.idle = vec![(101, 70), (103, 50), (104, 60)];
        assert_eq!(world.end(), [1, 3, 4, 0]);
    }

    #[test]
    fn no_session_ends_in_a_transaction_while_an_idle_one_could() {
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
    fn a_limit_across_servers_counts_those_elsewhere() {
        let wanted = Wanted::new(0, Counter::of(of_role(ALICE), &|_| b"alice".to_vec()), 2);
        for (elsewhere, over) in [(0, vec![]), (1, vec![]), (2, vec![(0, 1)])] {
            let mut world = alice(1, 2, OnExcess::Refuse);
            let places = &mut world.memory.table().places;
            let number = places.find(&wanted);
            let place = number.and_then(|number| places.get_mut(number));
            place.expect("a place").elsewhere = elsewhere;
            world.applying.limits[0].place = number;
            assert_eq!(world.over(), over, "{elsewhere} elsewhere");
        }
    }

    #[test]
    fn a_session_that_was_told_is_neither_told_again_nor_counted() {
        let mut world = alice(3, 1, OnExcess::Refuse);
        assert_eq!(world.end(), [0, 1]);
        assert_eq!(world.end(), [] as [u32; 0]);
        assert_eq!(world.over(), []);
        let told = |in_use| EndReason::Swept {
            source: world.applying.limits[0].source,
            unit: Unit::Session,
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
    fn no_session_ends_that_the_limit_does_not_hold() {
        // Bob is exempt, or has a nearer limit; or nothing is known of his sessions.
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
        assert_eq!(world.over(), [], "it does not hold the two that are left");
        let mut world = World::new([at_most(1, in_database(APP))], &sessions);
        world.applying.hold.remove(&session(BOB, APP).kind());
        assert_eq!(world.end(), [1, 2]);
    }

    #[test]
    fn a_session_that_was_let_in_over_the_limit_pushes_no_earlier_one_out() {
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
            "three were there when alice's last one came"
        );
        let over = [sessions[0], sessions[1], session(BOB, APP)];
        let mut world = World::new([at_most(2, in_database(APP))], &over);
        world.applying.hold.insert(session(BOB, APP).kind(), vec![]);
        assert_eq!(world.over(), []);
        assert_eq!(world.end(), [] as [u32; 0]);
    }

    #[test]
    fn a_session_that_ends_for_one_limit_counts_for_the_others_too() {
        let sessions = [
            session(BOB, APP),
            session(ALICE, WEB),
            session(ALICE, APP),
            session(BOB, APP),
        ];
        // One of the three in the database must end, and one of alice's two.
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
    fn a_victim_is_about_to_end_and_its_successor_is_not() {
        let mut world = alice(3, 1, OnExcess::Refuse);
        let mut table = world.memory.table();
        table.claim(3, 103, session(ALICE, APP));
        table.hand_over(0, 3);
        assert_eq!(world.over(), [(0, 3)], "1, 2 and the successor");
        assert_eq!(world.end(), [1, 2]);
        // The successor gives up, so the first session stays; the others have been told to end.
        world.memory.table().roll_back(3);
        assert_eq!(world.over(), [], "one session stays");
    }

    fn from(address: &str, role: u32) -> Session {
        Session {
            address: address.parse().ok(),
            ..session(role, APP)
        }
    }

    const ADDRESS: Unit = Unit::Address {
        ipv6_prefix_length: 64,
    };

    fn at_most_addresses(max: u32, scope: Scope) -> Limit {
        Limit {
            unit: ADDRESS,
            ..at_most(max, scope)
        }
    }

    #[test]
    fn whoever_is_in_by_exempt_sessions_alone_costs_nobody_a_session() {
        // Alice was in before carol, who is exempt; her pool has made a new session since, which needed no room.
        let sessions = [BOB, CAROL, ALICE].map(|role| session(role, APP));
        let users = Limit {
            unit: Unit::Role,
            ..at_most(2, in_database(APP))
        };
        let mut world = World::new([users], &sessions);
        world.applying.hold.insert(sessions[1].kind(), Vec::new());
        assert_eq!(world.over(), []);
        let mut world = World::new([users], &sessions);
        assert_eq!(world.over(), [(0, 3)], "if she is not");
    }

    #[test]
    fn all_sessions_from_an_address_end_or_none() {
        let (home, desk, v6) = ("10.0.0.1", "10.0.0.2", "2001:db8::");
        let sessions = [
            from(home, ALICE),
            from(desk, ALICE),
            from("", ALICE),
            from(home, ALICE),
            from(&format!("{v6}1"), ALICE),
            from(&format!("{v6}2"), ALICE),
        ];
        for (max, ended) in [
            (4, vec![]),
            (3, vec![0, 3]),
            (2, vec![0, 1, 3]),
            (1, vec![0, 1, 2, 3]),
            (0, vec![0, 1, 2, 3, 4, 5]),
        ] {
            let mut world = World::new([at_most_addresses(max, of_role(ALICE))], &sessions);
            let mut found = world.end();
            found.sort_unstable();
            assert_eq!(found, ended, "{max}");
            assert_eq!(world.over(), [], "{max}");
        }
        // Idle ones first, but not if somebody works there, too.
        let mut world = World::new([at_most_addresses(3, of_role(ALICE))], &sessions);
        world.idle = vec![(100, 7), (102, 9), (104, 8), (105, 9)];
        assert_eq!(world.end(), [2]);
        // Someone else's session from there is not held, so that the address stays.
        let mut others = sessions.to_vec();
        others.push(from(home, BOB));
        let mut world = World::new([at_most_addresses(3, in_database(APP))], &others);
        world.applying.hold.remove(&others[6].kind());
        assert_eq!(world.end(), [1]);
    }

    #[test]
    fn all_sessions_of_a_role_end_or_none() {
        let sessions = [session(ALICE, APP), session(BOB, APP), session(ALICE, APP)];
        let limit = Limit {
            unit: Unit::Role,
            ..at_most(1, in_database(APP))
        };
        let mut world = World::new([limit], &sessions);
        assert_eq!(world.over(), [(0, 2)]);
        assert_eq!(world.end(), [0, 2]);
        assert_eq!(world.end(), [] as [u32; 0]);
    }

    #[test]
    fn walsenders_end_only_where_they_count_as_sessions() {
        let walsender = Session {
            walsender: true,
            ..session(ALICE, 0)
        };
        let mut world = World::new([at_most(1, of_role(ALICE))], &[walsender; 3]);
        assert_eq!(world.over(), []);
    }

    #[test]
    fn the_sessions_of_a_dropped_role_end_whatever_the_limits() {
        let sessions = [session(ALICE, APP), session(BOB, APP), session(ALICE, WEB)];
        let mut world = World::new([at_most(9, in_database(APP))], &sessions);
        let mut table = world.memory.table();
        let mut end = |dropped: &[u32]| {
            let mut found = Vec::with_capacity(3);
            end_sessions_of(dropped, false, &mut table, &mut found);
            found.iter().map(|(pid, _)| *pid).collect::<Vec<_>>()
        };
        assert!(end(&[12]).is_empty());
        assert_eq!(end(&[ALICE]), [100, 102]);
        assert!(end(&[ALICE]).is_empty(), "they were told");
        assert_eq!(table.end_reason(0), Some(EndReason::RoleDropped));
    }
}
