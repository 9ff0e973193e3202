//! Property tests: any sequence of steps, compared with a reference that is slow and plain; any settings; and any bytes.

/// Any sequence of logins, retries and departures, under limits of every kind that refuse.
mod decisions {
    use crate::attempt::{Attempt, MayWait, Replacing, Rules};
    use crate::decide::explain;
    use crate::decide::tests::{WAIT, decided as attempt};
    use crate::limit::tests::at_most;
    use crate::limit::{Limit, Scope, Unit, Who};
    use crate::members::{Members, Missing};
    use crate::own_table::OwnTable;
    use crate::servers::place::AcrossRules;
    use crate::session::{Claim, Session};
    use crate::table::Table;
    use crate::table::tests::session;
    use crate::verdict::Verdict;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::net::IpAddr;
    use std::time::Duration;

    pub const SLOTS: usize = 12;
    pub const MAX_WAITERS: u32 = 8;
    /// The roles have the OIDs 1 to this: 0 is no role's.
    const ROLES: u32 = 4;

    /// The limits, and the members of the groups 10 and 11.
    #[derive(Clone, Debug)]
    pub struct World {
        pub limits: Vec<Limit>,
        members: [Vec<u32>; 2],
    }

    fn who() -> impl Strategy<Value = Who> {
        prop_oneof![
            Just(Who::Anyone),
            (1..=ROLES).prop_map(Who::Role),
            (10..12u32).prop_map(Who::MembersOf),
        ]
    }

    fn limit() -> impl Strategy<Value = Limit> {
        let network = prop_oneof![Just("10.0.0.0/31"), Just("10.0.0.1/32"), Just("0.0.0.0/0")];
        let network = proptest::option::of(network);
        let scope = (who(), proptest::option::of(0..2u32), network);
        (scope, 0..4u32, any::<bool>(), 0..5u32, unit()).prop_map(
            |((who, database, network), max, patient, trial, unit)| {
                let network = network.map(|text| text.parse().expect(text));
                Limit {
                    unit,
                    max_wait: Duration::from_secs(if patient { 1 } else { 0 }),
                    enforced: trial > 0,
                    ..at_most(
                        max,
                        Scope {
                            who,
                            database,
                            network,
                        },
                    )
                }
            },
        )
    }

    fn unit() -> impl Strategy<Value = Unit> {
        let ipv6_prefix_length = 64;
        prop_oneof![
            3 => Just(Unit::Session),
            1 => Just(Unit::Role),
            2 => Just(Unit::Address { ipv6_prefix_length }),
        ]
    }

    /// What a limit counts once, as text.
    pub fn unit_of(limit: &Limit, number: usize, session: &Session) -> String {
        match limit.unit {
            Unit::Session => format!("{number}"),
            Unit::Role => format!("{}", session.role),
            Unit::Address { .. } => match session.address {
                // The addresses of `any_session` that are IPv6 differ in the third group.
                Some(IpAddr::V6(address)) => format!("{}", address.segments()[2]),
                address => format!("{address:?}"),
            },
        }
    }

    pub fn world() -> impl Strategy<Value = World> {
        let members = || vec(1..=ROLES, 0..4);
        (vec(limit(), 0..7), [members(), members()])
            .prop_map(|(limits, members)| World { limits, members })
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// The login at the slot tries: a new one, or the one that waits there.
        Try {
            slot: usize,
            session: Session,
            may_wait: bool,
        },
        /// The session or waiter at the slot goes away.
        Leave { slot: usize },
    }

    pub fn any_session() -> impl Strategy<Value = Session> {
        let address = prop_oneof![
            Just(None),
            Just(Some("10.0.0.1")),
            Just(Some("10.0.0.2")),
            Just(Some("2001:db8:1::1")),
            Just(Some("2001:db8:1::2")),
            Just(Some("2001:db8:2::1")),
        ];
        (1..=ROLES, 0..2u32, address).prop_map(|(role, database, address)| Session {
            address: address.map(|text| text.parse().expect(text)),
            ..session(role, database)
        })
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let login = (0..SLOTS, any_session(), any::<bool>());
        let login = login.prop_map(|(slot, session, may_wait)| Step::Try {
            slot,
            session,
            may_wait,
        });
        let leave = (0..SLOTS).prop_map(|slot| Step::Leave { slot });
        vec(prop_oneof![3 => login, 2 => leave], 1..100)
    }

    impl World {
        pub fn covers(&self, limit: &Limit, session: &Session) -> bool {
            let Scope {
                who,
                database,
                network,
            } = limit.scope;
            let of_role = match who {
                Who::Anyone => true,
                Who::Role(role) => role == session.role,
                Who::MembersOf(group) => self.members[group as usize - 10].contains(&session.role),
            };
            let in_database = database.is_none() || database == Some(session.database);
            let from_network = match (network, session.address) {
                (None, _) => true,
                (Some(_), Some(IpAddr::V6(_))) => false,
                (Some(network), Some(address)) => match network.to_string().as_str() {
                    "10.0.0.1/32" => address.to_string() == "10.0.0.1",
                    "10.0.0.0/31" => address.to_string() != "10.0.0.2",
                    _ => true,
                },
                (Some(_), None) => false,
            };
            of_role && in_database && from_network
        }

        /// The members of both groups.
        pub fn members(&self) -> Members {
            let mut members = Members::default();
            for (group, of_group) in (10..).zip(&self.members) {
                members.insert(group, of_group.clone());
            }
            members
        }

        /// The limits that cover the session.
        pub fn of(&self, session: &Session) -> Vec<Limit> {
            self.limits
                .iter()
                .copied()
                .filter(|limit| self.covers(limit, session))
                .collect()
        }

        /// Those of the limits that are enforced and full for a session beside these.
        fn full<'a>(
            &self,
            limits: &'a [Limit],
            session: &Session,
            among: &[Session],
        ) -> Vec<&'a Limit> {
            let is_full = |limit: &&Limit| {
                let covered = among.iter().enumerate();
                let covered = covered.filter(|(_, session)| self.covers(limit, session));
                let in_use = covered.map(|(number, session)| unit_of(limit, number, session));
                let in_use: BTreeSet<String> = in_use.collect();
                let is_new = !in_use.contains(&unit_of(limit, usize::MAX, session));
                let needs_room = is_new || limit.max == 0;
                limit.enforced && needs_room && in_use.len() >= limit.max as usize
            };
            limits.iter().filter(is_full).collect()
        }
    }

    /// The sessions and the waiters, each with its slot; the waiters in the order of the queue.
    #[derive(Default)]
    struct Reference {
        sessions: Vec<(usize, Session)>,
        waiters: Vec<(usize, Session)>,
    }

    impl Reference {
        /// The sessions that there would be once the waiters ahead of `slot` that find room had gone in.
        fn among(&self, world: &World, slot: usize) -> Vec<Session> {
            let mut among: Vec<Session> =
                self.sessions.iter().map(|(_, session)| *session).collect();
            for (_, waiter) in self
                .waiters
                .iter()
                .take_while(|(waiter, _)| *waiter != slot)
            {
                if world.full(&world.of(waiter), waiter, &among).is_empty() {
                    among.push(*waiter);
                }
            }
            among
        }

        /// Whether every limit has room for the session, if no room is reserved for waiters.
        fn has_room(&self, world: &World, session: &Session) -> bool {
            let among: Vec<Session> = self.sessions.iter().map(|(_, session)| *session).collect();
            world.full(&world.of(session), session, &among).is_empty()
        }
    }

    /// Decides on a login, and compares the verdict with the reference.
    fn try_one(
        world: &World,
        table: &mut Table,
        reference: &mut Reference,
        slot: usize,
        session: Session,
        may_wait: bool,
    ) -> Result<(), TestCaseError> {
        let limits = world.of(&session);
        let was_waiting = reference.waiters.iter().any(|(waiter, _)| *waiter == slot);
        let among = reference.among(world, slot);
        let full = world.full(&limits, &session, &among);
        let own = reference
            .waiters
            .iter()
            .filter(|(_, waiter)| waiter.role == session.role)
            .count();
        let place = was_waiting || (reference.waiters.len() < MAX_WAITERS as usize && own < 2);
        // Nobody waits under a limit of 0.
        let is_impatient = |limit: &Limit| limit.max_wait.is_zero() || limit.max == 0;
        let impatient = full.iter().any(|limit| is_impatient(limit));
        let verdict = ask(world, table, slot, session, may_wait, &limits);
        reference
            .waiters
            .retain(|(waiter, _)| *waiter != slot || matches!(verdict, Verdict::Waiting));
        match verdict {
            Verdict::Admitted(_) => {
                prop_assert!(full.is_empty(), "admitted over {:?}", full);
                reference.sessions.push((slot, session));
            }
            Verdict::Waiting => {
                prop_assert!(!full.is_empty() && may_wait && place);
                // No login waits under a limit without max_wait that is full even without what is reserved for
                // waiters.
                let among: Vec<Session> = reference
                    .sessions
                    .iter()
                    .map(|(_, session)| *session)
                    .collect();
                let full = world.full(&limits, &session, &among);
                prop_assert!(!full.iter().any(|limit| is_impatient(limit)));
                if !was_waiting {
                    reference.waiters.push((slot, session));
                }
            }
            Verdict::Replacing(..) => prop_assert!(false, "every limit refuses"),
            Verdict::Refused(excess) => {
                prop_assert!(full.contains(&&excess.limit), "{:?} has room", excess.limit);
                prop_assert!(!may_wait || !place || impatient);
            }
        }
        Ok(())
    }

    /// Decides as the login hook does: supplies the members of a group when they are missing.
    fn ask(
        world: &World,
        table: &mut Table,
        slot: usize,
        session: Session,
        may_wait: bool,
        limits: &[Limit],
    ) -> Verdict {
        let mut members = Members::default();
        for limit in limits {
            if let Who::MembersOf(group) = limit.scope.who {
                members.insert(group, world.members[group as usize - 10].clone());
            }
        }
        loop {
            let rules = Rules {
                count_walsenders: false,
                may_wait: Some(if may_wait { WAIT } else { MayWait::NOT }),
                tried: Duration::ZERO,
                max_waiters: MAX_WAITERS,
                tally: true,
                replacing: Replacing::NONE,
                audit: false,
            };
            let login = Attempt {
                slot,
                pid: 100 + slot as u32,
                session,
                limits,
                members: &members,
                is_idle: &|_, _| false,
                across: AcrossRules::NONE,
                rules,
            };
            let explained = explain(
                table,
                &Attempt {
                    slot: usize::MAX,
                    ..login
                },
            );
            let waiting = table.waiters().any(|waiter| waiter.slot == slot);
            match attempt(table, &login) {
                Ok(verdict) => {
                    // What `explain` says of a new login is what the login meets.
                    if let (Ok(standings), false) = (explained, waiting) {
                        let fits = standings.iter().all(|it| it.fits || !it.limit.enforced);
                        assert_eq!(fits, matches!(verdict, Verdict::Admitted(_)));
                    }
                    return verdict;
                }
                Err(Missing::Members(group)) => {
                    members.insert(group, world.members[group as usize - 10].clone())
                }
                Err(Missing::Patience) => unreachable!("it is known whether it may wait"),
                Err(Missing::Tally) => unreachable!("there is memory for it"),
            }
        }
    }

    fn queue(table: &Table) -> Vec<usize> {
        table.waiters().map(|waiter| waiter.slot).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

        #[test]
        fn every_decision_is_the_references(world in world(), steps in steps()) {
            let mut memory = OwnTable::new(SLOTS, 4 * SLOTS);
            let mut table = memory.table();
            let mut reference = Reference::default();
            for step in steps {
                match step {
                    Step::Try { slot, session, may_wait } => {
                        if reference.sessions.iter().any(|(taken, _)| *taken == slot) {
                            continue;
                        }
                        let waiting = reference.waiters.iter().find(|(taken, _)| *taken == slot);
                        let session = waiting.map_or(session, |(_, waiter)| *waiter);
                        try_one(&world, &mut table, &mut reference, slot, session, may_wait)?;
                    }
                    Step::Leave { slot } => {
                        let here = |place: &&(usize, Session)| place.0 == slot;
                        if let Some((_, session)) = reference.sessions.iter().find(here) {
                            let claim = Claim::new(100 + slot as u32, session.role);
                            prop_assert!(table.shared.release(slot, claim));
                        }
                        table.dequeue(slot);
                        reference.sessions.retain(|(taken, _)| *taken != slot);
                        reference.waiters.retain(|(taken, _)| *taken != slot);
                    }
                }
                let waiters: Vec<usize> = reference.waiters.iter().map(|(slot, _)| *slot).collect();
                prop_assert_eq!(queue(&table), waiters);
                prop_assert_eq!(table.sessions().count(), reference.sessions.len());
            }
            // All waiters try again until nothing changes: then none is left that has room.
            loop {
                let before = queue(&table);
                for slot in before.iter().rev() {
                    let here = |place: &&(usize, Session)| place.0 == *slot;
                    let waiter = reference.waiters.iter().find(here).map(|(_, waiter)| *waiter);
                    try_one(&world, &mut table, &mut reference, *slot, waiter.expect("in both"), true)?;
                }
                if queue(&table) == before {
                    break;
                }
            }
            for (_, waiter) in &reference.waiters {
                prop_assert!(!reference.has_room(&world, waiter));
            }
        }
    }
}

/// Any sequence of logins, which may replace sessions, of departures, and of successors that complete or give up,
/// compared with plain books of who is in.
mod replacements {
    use super::decisions::{MAX_WAITERS, SLOTS, World, any_session, unit_of, world};
    use crate::attempt::{Attempt, MayWait, Replacing, Rules};
    use crate::count::SessionCounter;
    use crate::decide::tests::{WAIT, decided as attempt};
    use crate::limit::{Limit, OnExcess, Unit, Who};
    use crate::members::{Members, SessionFilter};
    use crate::own_table::OwnTable;
    use crate::servers::place::AcrossRules;
    use crate::session::{Claim, Session};
    use crate::table::Table;
    use crate::verdict::{Ended, Excess, Verdict};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    const NOW: u64 = 100;
    const MIN_AGE: u64 = 30;
    const IDLE_AFTER: u64 = 40;

    /// Any limits, each with any policy.
    fn any_policy() -> impl Strategy<Value = World> {
        let policy = prop_oneof![
            1 => Just(OnExcess::Refuse),
            2 => Just(OnExcess::ReplaceIdle),
            4 => Just(OnExcess::ReplaceOldest),
        ];
        (world(), vec(policy, 7)).prop_map(|(mut world, policies)| {
            for (limit, policy) in world.limits.iter_mut().zip(policies) {
                limit.on_excess = match limit.unit {
                    Unit::Role => OnExcess::Refuse,
                    _ => policy,
                };
            }
            world
        })
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// The login at the slot tries: the one that waits there, or else a new one, after the session that was there has
        /// gone.
        Try { slot: usize, login: Login },
        /// The session or waiter at the slot goes away.
        Leave { slot: usize },
        /// The successor at the slot asks whether it is complete.
        Look { slot: usize },
    }

    #[derive(Clone, Debug)]
    struct Login {
        session: Session,
        may_wait: bool,
        allowed: bool,
        /// Since when the session will be idle; None: it will not be idle.
        idle: Option<u64>,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Arrivals are random: logins are not decided in the order in which they got their numbers.
        let arrival = prop_oneof![3 => 0..NOW - MIN_AGE + 1, 1 => 0..NOW + 5];
        let times = (arrival, proptest::bool::weighted(0.02));
        let session = (any_session(), times).prop_map(|(session, (arrival, exempt))| Session {
            arrival,
            exempt,
            ..session
        });
        let (may_wait, allowed) = (any::<bool>(), proptest::bool::weighted(0.9));
        let login = (session, may_wait, allowed, proptest::option::of(0..NOW));
        let login = login.prop_map(|(session, may_wait, allowed, idle)| Login {
            session,
            may_wait,
            allowed,
            idle,
        });
        let login = (0..SLOTS, login).prop_map(|(slot, login)| Step::Try { slot, login });
        let leave = (0..SLOTS).prop_map(|slot| Step::Leave { slot });
        let look = (0..SLOTS).prop_map(|slot| Step::Look { slot });
        vec(prop_oneof![6 => login, 2 => leave, 1 => look], 1..120)
    }

    /// A session, or a successor that is to be one.
    struct Place {
        slot: usize,
        session: Session,
        idle: Option<u64>,
        /// The slots of its victims, as long as it is pending; None if it is a session like any other.
        replaces: Option<Vec<usize>>,
    }

    /// The sessions, and the waiters with their slots.
    #[derive(Default)]
    struct Books {
        /// Whether there was an exempt session: beside it others may have come without room of their own.
        had_exempt: bool,
        places: Vec<Place>,
        waiters: Vec<(usize, Login)>,
    }

    impl Books {
        fn place(&self, slot: usize) -> Option<&Place> {
            self.places.iter().find(|place| place.slot == slot)
        }

        /// The victims of this successor that are still there.
        fn victims<'a>(&'a self, successor: &'a Place) -> impl Iterator<Item = &'a Place> {
            let slots = successor.replaces.iter().flatten();
            slots.filter_map(|slot| self.place(*slot))
        }

        fn is_victim(&self, place: &Place) -> bool {
            let mut successors = self.places.iter();
            successors.any(|successor| {
                successor
                    .replaces
                    .iter()
                    .flatten()
                    .any(|slot| *slot == place.slot)
            })
        }

        /// The sessions that a limit counts: those that it covers, except successors of victims that it covers, too.
        fn counted<'a>(
            &'a self,
            world: &'a World,
            limit: &'a Limit,
        ) -> impl Iterator<Item = &'a Place> {
            self.places.iter().filter(move |place| {
                let covers = |place: &&Place| world.covers(limit, &place.session);
                covers(place) && !self.victims(place).any(|other| covers(&other))
            })
        }

        /// The sessions that may end so that the login gets room under the limit.
        fn may_end<'a>(
            &'a self,
            world: &'a World,
            limit: &'a Limit,
            login: &'a Login,
        ) -> impl Iterator<Item = &'a Place> {
            self.places.iter().filter(move |place| {
                let Session {
                    role,
                    arrival,
                    exempt,
                    ..
                } = place.session;
                let idle = place.idle.is_some_and(|since| NOW - since >= IDLE_AFTER);
                let policy = match limit.on_excess {
                    OnExcess::Refuse => false,
                    OnExcess::ReplaceIdle => idle,
                    OnExcess::ReplaceOldest => true,
                };
                login.allowed
                    && policy
                    && role == login.session.role
                    && arrival < login.session.arrival
                    && NOW.saturating_sub(arrival) >= MIN_AGE
                    && !exempt
                    && place.replaces.is_none()
                    && !self.is_victim(place)
                    && world.covers(limit, &place.session)
            })
        }

        /// The session or waiter at the slot is gone.
        fn forget(&mut self, slot: usize) {
            self.places.retain(|place| place.slot != slot);
            self.waiters.retain(|(waiter, _)| *waiter != slot);
            for successor in &mut self.places {
                if let Some(slots) = &mut successor.replaces {
                    slots.retain(|replaced| *replaced != slot);
                }
            }
        }

        /// A login was refused: its limit has no room, nor would have if all that may end did.
        fn refused(&self, world: &World, slot: usize, login: &Login, excess: &Excess) {
            let Excess {
                limit,
                in_use,
                ahead,
                ..
            } = *excess;
            assert!(limit.enforced && world.covers(&limit, &login.session));
            if limit.unit != Unit::Session {
                let own = unit_of(&limit, 0, &login.session);
                let counts_it = |place: &&Place| {
                    let is_settled = place.replaces.is_none() && !self.is_victim(place);
                    let covered = world.covers(&limit, &place.session);
                    is_settled && covered && unit_of(&limit, 0, &place.session) == own
                };
                let counted_already = self.places.iter().any(|place| counts_it(&place));
                assert!(limit.max == 0 || !counted_already, "{limit:?}");
                return;
            }
            let counted = self.counted(world, &limit).count();
            assert_eq!(in_use as usize, counted);
            let end = self.may_end(world, &limit, login).count();
            let earlier = self
                .waiters
                .iter()
                .take_while(|(waiter, _)| *waiter != slot)
                .count();
            assert!(ahead as usize <= earlier);
            assert!(
                counted - end + ahead as usize >= limit.max as usize,
                "{limit:?}"
            );
        }

        /// Sessions at these slots end for a login: each may, for a limit that may be full.
        fn replaced(
            &self,
            world: &World,
            limits: &[Limit],
            login: &Login,
            slots: &[usize],
            ended: &Ended,
        ) {
            assert!(!slots.is_empty() && ended.number as usize == slots.len());
            let full = |limit: &&Limit| {
                let earlier = self
                    .waiters
                    .iter()
                    .filter(|(_, waiter)| world.covers(limit, &waiter.session));
                limit.unit != Unit::Session
                    || self.counted(world, limit).count() + earlier.count() >= limit.max as usize
            };
            let full: Vec<&Limit> = limits
                .iter()
                .filter(|limit| limit.enforced)
                .filter(full)
                .collect();
            for slot in slots {
                let may = |limit: &&&Limit| {
                    let mut may_end = self.may_end(world, limit, login);
                    let Some(place) = may_end.find(|place| place.slot == *slot) else {
                        return false;
                    };
                    let unit = unit_of(limit, place.slot, &place.session);
                    let mut others = self.places.iter().filter(|other| {
                        world.covers(limit, &other.session)
                            && unit_of(limit, other.slot, &other.session) == unit
                    });
                    others.all(|other| slots.contains(&other.slot))
                };
                assert!(
                    full.iter().any(|limit| may(&limit)),
                    "{slot} ends for nothing"
                );
            }
        }
    }

    /// Decides on a login, checks the verdict against the books, and enters it.
    fn try_one(world: &World, table: &mut Table, books: &mut Books, slot: usize, login: Login) {
        let limits = match login.session.exempt {
            true => Vec::new(),
            false => world.of(&login.session),
        };
        let members = world.members();
        for place in &books.places {
            table
                .shared
                .note_active(place.slot, place.idle.unwrap_or(NOW));
        }
        let is_idle = |slot, pid| {
            assert_eq!(pid, 100 + slot as u32);
            books.place(slot).is_some_and(|place| place.idle.is_some())
        };
        let rules = Rules {
            count_walsenders: false,
            may_wait: Some(if login.may_wait { WAIT } else { MayWait::NOT }),
            tried: Duration::ZERO,
            max_waiters: MAX_WAITERS,
            tally: true,
            replacing: Replacing {
                allowed: login.allowed,
                now: NOW,
                min_age: Duration::from_micros(MIN_AGE),
                idle_after: Duration::from_micros(IDLE_AFTER),
            },
            audit: false,
        };
        let asking = Attempt {
            slot,
            pid: 100 + slot as u32,
            session: login.session,
            limits: &limits,
            members: &members,
            is_idle: &is_idle,
            across: AcrossRules::NONE,
            rules,
        };
        let verdict = attempt(table, &asking).expect("all is known");
        let slots: Vec<usize> = table.victims(slot).map(|pid| pid as usize - 100).collect();
        let replaces = match verdict {
            Verdict::Replacing(_, ended, _) => {
                books.replaced(world, &limits, &login, &slots, &ended);
                Some(slots)
            }
            Verdict::Admitted(_) => None,
            Verdict::Waiting => {
                if !books.waiters.iter().any(|(waiter, _)| *waiter == slot) {
                    books.waiters.push((slot, login));
                }
                return;
            }
            Verdict::Refused(excess) => {
                books.refused(world, slot, &login, &excess);
                assert!(slots.is_empty(), "a refused login leaves a mark");
                return books.forget(slot);
            }
        };
        books.forget(slot);
        let Login { session, idle, .. } = login;
        books.had_exempt |= session.exempt;
        books.places.push(Place {
            slot,
            session,
            idle,
            replaces,
        });
        // When the victims are gone, no limit of the login is exceeded.
        for limit in limits.iter() {
            if !limit.enforced || limit.unit != Unit::Session {
                continue;
            }
            let successor = books.place(slot).expect("it is in");
            let is_its_victim =
                |place: &&Place| books.victims(successor).any(|it| it.slot == place.slot);
            let counted = books
                .places
                .iter()
                .filter(|place| world.covers(limit, &place.session));
            let counts_as_its_victims = |place: &&Place| {
                let mut victims = books.victims(place);
                place.slot != slot && victims.any(|it| world.covers(limit, &it.session))
            };
            let counted =
                counted.filter(|place| !is_its_victim(place) && !counts_as_its_victims(place));
            assert!(
                counted.count() <= limit.max as usize,
                "one too many: {limit:?}"
            );
        }
    }

    /// The session or waiter at the slot goes away, as a backend that exits.
    fn go(table: &mut Table, books: &mut Books, slot: usize) {
        table.dequeue(slot);
        if let Some(place) = books.place(slot) {
            if place.replaces.is_some() {
                table.roll_back(slot);
            }
            let claim = Claim::new(100 + slot as u32, place.session.role);
            table.shared.release(slot, claim);
        }
        books.forget(slot);
    }

    /// Whichever of the successors complete or give up, there are no more than the table counts; and that is no more than
    /// the limit allows, unless there were exempt sessions.
    fn compare_units(
        world: &World,
        table: &Table,
        books: &Books,
        limit: &Limit,
        filter: SessionFilter,
    ) {
        let pending = books.places.iter().filter(|place| place.replaces.is_some());
        let pending: Vec<&Place> = pending.collect();
        let mut most = 0;
        for complete in 0..1_u32 << pending.len() {
            let is_complete = |index: usize| complete & (1 << index) != 0;
            let is_there = |place: &&Place| {
                let mut all = pending.iter().enumerate();
                all.all(|(index, successor)| match is_complete(index) {
                    true => !books.victims(successor).any(|it| it.slot == place.slot),
                    false => successor.slot != place.slot,
                })
            };
            let there = books.places.iter().filter(is_there);
            let covered = there.filter(|place| world.covers(limit, &place.session));
            let units = covered.map(|place| unit_of(limit, place.slot, &place.session));
            most = most.max(units.collect::<BTreeSet<String>>().len());
        }
        let counted = table.count_units(filter, limit.unit) as usize;
        let members = Members::default();
        let mut counter = SessionCounter::new(table.shared, &members, false, true);
        counter.refresh(table);
        if !matches!(limit.scope.who, Who::MembersOf(_)) {
            let number = counter.count_units(table, filter, limit.unit);
            assert_eq!(number, Ok(counted as u32));
        }
        assert!(most <= counted, "{most} {counted} {limit:?}");
        let is_met = most <= limit.max as usize;
        assert!(!limit.enforced || books.had_exempt || is_met, "{limit:?}");
    }

    /// The table counts and may replace what the books say, and no enforced limit is exceeded but by exempt sessions.
    fn compare(world: &World, table: &Table, books: &Books) {
        let members = world.members();
        for limit in world.limits.iter() {
            let filter = SessionFilter::new(limit.scope, false, &members).expect("a known group");
            if limit.unit != Unit::Session {
                compare_units(world, table, books, limit, filter);
                continue;
            }
            let expected = books.counted(world, limit);
            assert_eq!(table.count(filter) as usize, expected.count(), "{limit:?}");
            let not_exempt = books
                .counted(world, limit)
                .filter(|place| !place.session.exempt);
            assert!(
                !limit.enforced || not_exempt.count() <= limit.max as usize,
                "{limit:?}"
            );
        }
        let replaceable = (0..SLOTS).filter(|slot| table.replaceable(*slot).is_some());
        let mut replaceable: Vec<usize> = replaceable.collect();
        let may_end = |place: &&Place| {
            !place.session.exempt && place.replaces.is_none() && !books.is_victim(place)
        };
        let mut expected: Vec<usize> = books
            .places
            .iter()
            .filter(may_end)
            .map(|place| place.slot)
            .collect();
        replaceable.sort_unstable();
        expected.sort_unstable();
        assert_eq!(replaceable, expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

        #[test]
        fn no_limit_is_exceeded_and_no_session_ends_that_must_not(world in any_policy(), steps in steps()) {
            let mut memory = OwnTable::new(SLOTS, 4 * SLOTS);
            let mut table = memory.table();
            let mut books = Books::default();
            for step in steps {
                match step {
                    Step::Try { slot, login } => {
                        let waits = books.waiters.iter().find(|(waiter, _)| *waiter == slot);
                        let login = match waits.cloned() {
                            Some((_, waiter)) => Login { may_wait: login.may_wait, ..waiter },
                            None => login,
                        };
                        match books.place(slot) {
                            Some(place) if place.replaces.is_some() => go(&mut table, &mut books, slot),
                            // Its process has left the process array, but has not freed the slot yet.
                            Some(_) => books.forget(slot),
                            None => {}
                        }
                        try_one(&world, &mut table, &mut books, slot, login);
                    }
                    Step::Leave { slot } => go(&mut table, &mut books, slot),
                    Step::Look { slot } => {
                        let Some(place) = books.places.iter_mut().find(|place| place.slot == slot) else {
                            continue;
                        };
                        if let Some(slots) = &place.replaces {
                            let all_gone = slots.is_empty();
                            prop_assert_eq!(table.complete(slot), all_gone);
                            if all_gone {
                                place.replaces = None;
                            }
                        }
                    }
                }
                compare(&world, &table, &books);
            }
            for slot in 0..SLOTS {
                go(&mut table, &mut books, slot);
            }
            compare(&world, &table, &books);
            prop_assert_eq!(table.sessions().count() + table.waiters().count(), 0);
        }
    }
}

/// Which limits apply, compared with the rules as the documentation tells them: for each limit by itself, whether a rule
/// keeps it from applying.
mod applying {
    use crate::label::Label;
    use crate::label_target::LabelTarget;
    use crate::limit::{Object, OnExcess, Source};
    use crate::precedence::{Defaults, InDatabase, LoginFacts, applicable};
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    /// A limit as written: `per` as JSON, whether it has a `database` and a `network`, `max`, and whether it is enforced.
    type Written = (&'static str, bool, bool, i32, bool);

    const ROLE: &[&str] = &[
        r#""role""#,
        r#""address""#,
        r#"["role", "database"]"#,
        r#"["role", "address"]"#,
    ];
    const GROUP: &[&str] = &[
        r#""role""#,
        r#""address""#,
        r#""group""#,
        r#"["role", "database"]"#,
        r#"["role", "database", "address"]"#,
    ];
    const DATABASE: &[&str] = &[
        r#""database""#,
        r#""role""#,
        r#""address""#,
        r#"["role", "database"]"#,
        r#"["role", "database", "address"]"#,
    ];
    const CLUSTER: &[&str] = &[
        r#""role""#,
        r#""address""#,
        r#""database""#,
        r#""cluster""#,
        r#"["role", "database"]"#,
        r#"["role", "address"]"#,
        r#"["role", "database", "address"]"#,
    ];

    fn written(
        pers: &'static [&'static str],
        databases: bool,
    ) -> impl Strategy<Value = Vec<Written>> {
        let limit = (
            proptest::sample::select(pers),
            any::<bool>().prop_map(move |in_database| in_database && databases),
            any::<bool>(),
            -1..5i32,
            proptest::bool::weighted(0.8),
        );
        proptest::collection::vec(limit, 0..4).prop_map(|mut limits: Vec<Written>| {
            let mut keys = BTreeSet::new();
            limits.retain(|(per, database, network, ..)| keys.insert((*per, *database, *network)));
            limits
        })
    }

    fn label(target: LabelTarget, limits: &[Written]) -> Label {
        let limits = limits.iter().map(|(per, database, network, max, enforced)| {
            let database = if *database { r#", "database": "app""# } else { "" };
            let network = if *network { r#", "network": "10.0.0.0/8""# } else { "" };
            let enforcement = if *enforced { "on" } else { "log" };
            format!(r#"{{"max": {max}, "per": {per}{database}{network}, "enforcement": "{enforcement}"}}"#)
        });
        let json = format!(
            r#"{{"limits": [{}]}}"#,
            limits.collect::<Vec<_>>().join(", ")
        );
        Label::check(json.as_bytes(), target).expect(&json)
    }

    #[derive(Clone, Debug)]
    struct Case {
        role: Vec<Written>,
        groups: [Vec<Written>; 2],
        database: Vec<Written>,
        cluster: Vec<Written>,
        numbers: [i32; 3],
        in_app: bool,
        address: Option<&'static str>,
    }

    fn case() -> impl Strategy<Value = Case> {
        let group = || written(GROUP, true);
        let address = prop_oneof![
            Just(None),
            Just(Some("10.1.1.1")),
            Just(Some("192.168.0.1"))
        ];
        (
            written(ROLE, true),
            [group(), group()],
            written(DATABASE, false),
            written(CLUSTER, true),
            [-1..5i32, -1..5i32, -1..5i32],
            any::<bool>(),
            address,
        )
            .prop_map(
                |(role, groups, database, cluster, numbers, in_app, address)| Case {
                    role,
                    groups,
                    database,
                    cluster,
                    numbers,
                    in_app,
                    address,
                },
            )
    }

    /// Where a limit is set, how far out that is (0: the role), and what is written there.
    type Placed = (Source, u32, Written);

    impl Case {
        /// The limits that count the login.
        fn all(&self) -> Vec<Placed> {
            let mut all: Vec<Placed> = Vec::new();
            let mut add = |source, level, limits: &[Written]| {
                all.extend(limits.iter().map(|limit| (source, level, *limit)))
            };
            let number = |per: &'static str, max| {
                if max < 0 {
                    vec![]
                } else {
                    vec![(per, false, false, max, true)]
                }
            };
            add(Source::Label(Object::Role(1)), 0, &self.role);
            let (role, database) = (r#""role""#, r#""database""#);
            add(
                Source::ConnectionLimit(Object::Role(1)),
                0,
                &number(role, self.numbers[0]),
            );
            add(Source::Label(Object::Role(2)), 1, &self.groups[0]);
            add(Source::Label(Object::Role(3)), 1, &self.groups[1]);
            add(Source::Label(Object::Database(9)), 2, &self.database);
            add(
                Source::ConnectionLimit(Object::Database(9)),
                2,
                &number(database, self.numbers[1]),
            );
            add(Source::ClusterLimits, 3, &self.cluster);
            add(
                Source::MaxSessionsPerRole,
                3,
                &number(role, self.numbers[2]),
            );
            all.retain(|(_, _, limit)| self.matches(limit));
            all
        }

        fn matches(&self, (per, database, network, ..): &Written) -> bool {
            (!database || self.in_app)
                && (!network || self.address == Some("10.1.1.1"))
                && (!per.contains("address") || self.address.is_some())
        }

        /// Whether the same label has a limit for the same address with a smaller network.
        fn is_hidden(&self, (source, _, limit): &Placed, among: &[Placed]) -> bool {
            let nearer = |other: &Placed| {
                other.0 == *source && (other.2.0, other.2.1, other.2.2) == (limit.0, limit.1, true)
            };
            limit.0.contains("address") && !limit.2 && among.iter().any(nearer)
        }

        /// Whether this one of the limits applies.
        fn applies(&self, limit: &Placed, among: &[Placed]) -> bool {
            let (source, level, (per, database, network, max, _)) = *limit;
            let as_number = |max: i32| if max < 0 { i32::MAX } else { max };
            let rivals = among
                .iter()
                .filter(|(_, _, other)| (other.0, other.1, other.2) == (per, database, network));
            let mut rivals: Vec<&Placed> = rivals.collect();
            match per {
                r#""group""# => rivals.clear(),
                _ if level == 2 => rivals.clear(),
                _ if per.contains("database") => {}
                _ => rivals.retain(|other| other.1 != 2),
            }
            let earlier = |other: &Placed| {
                among.iter().position(|it| it == other) < among.iter().position(|it| it == limit)
            };
            let beaten = |other: &&Placed| {
                let smaller =
                    as_number(other.2.3) < as_number(max) || (other.2.3 == max && earlier(other));
                other.1 < level
                    || (other.1 == level
                        && !self.is_hidden(other, among)
                        && smaller
                        && (other.0, other.2) != (source, limit.2))
            };
            max >= 0 && !self.is_hidden(limit, among) && !rivals.iter().any(beaten)
        }

        fn expected(&self) -> Vec<(String, i64, bool)> {
            let all = self.all();
            let enforced: Vec<Placed> = all.iter().copied().filter(|limit| limit.2.4).collect();
            let chosen = all.iter().filter(|limit| match limit.2.4 {
                true => self.applies(limit, &enforced),
                false => self.applies(limit, &all),
            });
            let mut expected: Vec<_> = chosen
                .map(|(source, _, (per, _, _, max, enforced))| {
                    (format!("{source:?} {per}"), i64::from(*max), *enforced)
                })
                .collect();
            expected.sort();
            expected
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(5000) })]

        #[test]
        fn the_limits_that_apply_are_those_by_the_rules(case in case()) {
            let defaults = Defaults {
                cluster_limits: label(LabelTarget::Cluster, &case.cluster),
                max_sessions_per_role: case.numbers[2],
                on_excess: OnExcess::Refuse,
                max_wait: Duration::ZERO,
                ipv6_prefix_length: 128,
                dry_run: false,
            };
            let facts = LoginFacts {
                role: 1,
                connection_limit: case.numbers[0],
                label: label(LabelTarget::Role, &case.role),
                groups: vec![(2, label(LabelTarget::Group, &case.groups[0])), (3, label(LabelTarget::Group, &case.groups[1]))],
                database: Some(InDatabase {
                    oid: 9,
                    name: if case.in_app { b"app" } else { b"web" },
                    connection_limit: case.numbers[1],
                    label: label(LabelTarget::Database, &case.database),
                }),
                address: case.address.map(|address| address.parse().expect(address)),
                defaults: &defaults,
            };
            let limits = applicable(&facts).limits;
            let mut found: Vec<_> = limits
                .iter()
                .map(|limit| (format!("{:?} {}", limit.source, limit.per.json()), i64::from(limit.max), limit.enforced))
                .collect();
            found.sort();
            prop_assert_eq!(found, case.expected());
        }
    }
}

/// Reading a label or a network ends in a result or an error, and not in a panic, whatever the bytes are. They are kept.
mod any_bytes {
    use crate::encoding;
    use crate::label::Label;
    use crate::label_target::LabelTarget;
    use crate::network::Network;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Pieces of labels, in any order.
    fn pieces() -> impl Strategy<Value = String> {
        const PIECES: &[&str] = &[
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"limits\"",
            "\"max\"",
            "\"per\"",
            "\"network\"",
            "\"database\"",
            "\"max_wait\"",
            "\"exempt\"",
            "\"on_excess\"",
            "\"enforcement\"",
            "1",
            "-1",
            "1e99",
            "262144",
            "\"role\"",
            "[\"role\", \"database\"]",
            "\"address\"",
            "\"10.0.0.0/8\"",
            "\"::/129\"",
            "\"5s\"",
            "\"99999999999999999999min\"",
            "\"\\ud800\"",
            "\"\\u0000\"",
            "true",
            "null",
            "\"log\"",
            " ",
            "{\"max\": 1}",
            "\"",
        ];
        vec(proptest::sample::select(PIECES), 0..24).prop_map(|pieces| pieces.concat())
    }

    fn check(json: &[u8]) -> Result<(), TestCaseError> {
        for target in [
            LabelTarget::Role,
            LabelTarget::Group,
            LabelTarget::Database,
            LabelTarget::Cluster,
        ] {
            match Label::check(json, target) {
                Ok(label) => prop_assert_eq!(Label::read(json), Ok(label)),
                Err(why) => prop_assert!(!why.is_empty()),
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20000) })]

        #[test]
        fn any_bytes_are_a_label_or_an_error(bytes in vec(any::<u8>(), 0..200)) {
            check(&bytes)?;
        }

        #[test]
        fn any_bytes_are_a_text(bytes in vec(prop_oneof![any::<u8>(), Just(0xf4), Just(0x8f)], 0..20)) {
            prop_assert_eq!(encoding::bytes(&encoding::text(&bytes)), bytes);
        }

        #[test]
        fn any_pieces_of_labels_are_a_label_or_an_error(text in pieces()) {
            check(text.as_bytes())?;
        }

        #[test]
        fn any_text_is_a_network_or_an_error(text in "[0-9a-f:./]{0,40}") {
            if let Ok(network) = text.parse::<Network>() {
                prop_assert_eq!(network.to_string().parse(), Ok(network));
                prop_assert!(network.contains(network.first()));
            }
        }
    }
}

/// The bytes of the statistics, whatever the file holds, and its sums.
mod statistics {
    use crate::counters::{CountedLogin, CountedOutcome, How, Pair, Statistics};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::time::Duration;

    fn pair() -> impl Strategy<Value = Pair> {
        (0..6u32, 0..3u32).prop_map(|(role, database)| Pair { role, database })
    }

    fn login() -> impl Strategy<Value = CountedLogin> {
        let all = [
            How::Room,
            How::Replaced,
            How::WouldRefuse,
            How::WouldReplace,
        ];
        let how = (0..all.len()).prop_map(move |index| all[index]);
        let outcome = prop_oneof![
            (1..9u32, how).prop_map(|(sessions, how)| CountedOutcome::Admitted { sessions, how }),
            Just(CountedOutcome::Refused),
        ];
        let waited = proptest::option::of(any::<u32>());
        (any::<i64>(), outcome, waited, any::<u32>()).prop_map(|(at, outcome, waited, deciding)| {
            let micros = |micros| Duration::from_micros(u64::from(micros));
            CountedLogin {
                at,
                outcome,
                waited: waited.map(micros),
                deciding: micros(deciding),
            }
        })
    }

    fn statistics() -> impl Strategy<Value = Box<Statistics>> {
        (any::<i64>(), vec((pair(), login()), 0..40)).prop_map(|(since, logins)| {
            let mut statistics = Box::new(Statistics::new(since));
            for (pair, login) in logins {
                statistics.count(pair, &login);
            }
            statistics
        })
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(statistics in statistics()) {
            let mut read = Box::new(Statistics::new(0));
            prop_assert_eq!(read.decode(&statistics.encode()), Ok(()));
            prop_assert!(read == statistics);
        }

        #[test]
        fn a_flipped_byte_is_noticed(statistics in statistics(), at in any::<prop::sample::Index>(), flip in 1..=255u8) {
            let mut bytes = statistics.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let mut read = Box::new(Statistics::new(0));
            prop_assert!(read.decode(&bytes).is_err());
            prop_assert!(*read == Statistics::new(0));
        }

        #[test]
        fn a_missing_end_is_noticed(statistics in statistics(), length in any::<prop::sample::Index>()) {
            let bytes = statistics.encode();
            let mut read = Box::new(Statistics::new(0));
            prop_assert!(read.decode(&bytes[..length.index(bytes.len())]).is_err());
            prop_assert!(*read == Statistics::new(0));
        }

        #[test]
        fn other_bytes_are_refused(bytes in vec(any::<u8>(), 0..5000)) {
            let mut read = Box::new(Statistics::new(0));
            prop_assert!(read.decode(&bytes).is_err());
            prop_assert!(*read == Statistics::new(0));
        }

        #[test]
        fn every_login_is_counted_once(logins in vec((pair(), login()), 0..200)) {
            let mut statistics = Box::new(Statistics::new(0));
            logins.iter().for_each(|(pair, login)| statistics.count(*pair, login));
            for (pair, counters) in statistics.rows() {
                let own = || logins.iter().filter(|(of, _)| Some(*of) == pair).map(|(_, login)| login);
                let number = |wanted: &dyn Fn(&CountedLogin) -> bool| own().filter(|login| wanted(login)).count() as u64;
                let refused = |login: &CountedLogin| matches!(login.outcome, CountedOutcome::Refused);
                prop_assert_eq!(counters.decisions, number(&|_| true));
                prop_assert_eq!(counters.refused, number(&refused));
                prop_assert_eq!(counters.admitted, number(&|login| !refused(login)));
                prop_assert_eq!(counters.waited, number(&|login| login.waited.is_some()));
            }
            let decisions: u64 = statistics.rows().map(|(_, counters)| counters.decisions).sum();
            prop_assert_eq!(decisions, logins.len() as u64);
        }
    }
}
