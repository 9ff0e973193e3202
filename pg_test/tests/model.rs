//! The unit tests of the extension's pure modules. Compiled here, without pgrx, they need no server
//! around them, and what they prove includes that the model knows nothing of PostgreSQL.

#![allow(dead_code)]

#[path = "../../src/decide.rs"]
mod decide;
#[path = "../../src/limit.rs"]
mod limit;
#[path = "../../src/sessions.rs"]
mod sessions;

/// Any sequence of logins, retries and departures, against a reference that is slow and plain.
mod against_a_reference {
    use crate::decide::{Attempt, Rules, Verdict, attempt};
    use crate::limit::{Limits, Scope, applicable};
    use crate::sessions::memory::{Memory, session};
    use crate::sessions::{Claim, Session, Table};
    use proptest::collection::vec;
    use proptest::prelude::*;

    const SLOTS: usize = 12;
    const MAX_WAITERS: u32 = 6;

    /// `CONNECTION LIMIT` of each role and each database; -1 is none. Their OIDs are the indexes.
    #[derive(Clone, Debug)]
    struct Limited {
        roles: [i32; 3],
        databases: [i32; 2],
    }

    impl Limited {
        fn limits(&self, session: &Session) -> Limits {
            let (role, database) = (session.role, session.database);
            applicable(
                (role, self.roles[role as usize]),
                Some((database, self.databases[database as usize])),
                -1,
            )
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// Whoever is at the slot tries: a new login, or one that waits.
        Try {
            slot: usize,
            role: u32,
            database: u32,
            may_wait: bool,
        },
        /// Whoever is at the slot goes away.
        Leave { slot: usize },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let login = (0..SLOTS, 0..3u32, 0..2u32, any::<bool>());
        let login = login.prop_map(|(slot, role, database, may_wait)| Step::Try {
            slot,
            role,
            database,
            may_wait,
        });
        let leave = (0..SLOTS).prop_map(|slot| Step::Leave { slot });
        vec(prop_oneof![3 => login, 2 => leave], 1..120)
    }

    fn limited() -> impl Strategy<Value = Limited> {
        let max = -1..4i32;
        (
            [max.clone(), max.clone(), max.clone()],
            [max.clone(), -1..6i32],
        )
            .prop_map(|(roles, databases)| Limited { roles, databases })
    }

    /// Who is in, and who waits, by slot; the waiters in order of arrival.
    #[derive(Default)]
    struct Reference {
        sessions: Vec<(usize, Session)>,
        waiters: Vec<(usize, Session)>,
    }

    impl Reference {
        fn fits(limited: &Limited, session: &Session, among: &[Session]) -> bool {
            limited.limits(session).iter().flatten().all(|limit| {
                let in_scope = |other: &&Session| match limit.scope {
                    Scope::Role(role) => other.role == role,
                    Scope::Database(database) => other.database == database,
                };
                among.iter().filter(in_scope).count() < limit.max as usize
            })
        }

        /// What must become of this login, once earlier waiters that fit have gone in.
        fn attempt(&mut self, limited: &Limited, login: &Attempt) -> &'static str {
            let position = self
                .waiters
                .iter()
                .position(|(slot, _)| *slot == login.slot);
            let mut among: Vec<Session> = self.sessions.iter().map(|(_, s)| *s).collect();
            for (_, waiter) in &self.waiters[..position.unwrap_or(self.waiters.len())] {
                if Reference::fits(limited, waiter, &among) {
                    among.push(*waiter);
                }
            }
            if Reference::fits(limited, &login.session, &among) {
                self.waiters.retain(|(slot, _)| *slot != login.slot);
                self.sessions.push((login.slot, login.session));
                return "admitted";
            }
            let of_role = |w: &&(usize, Session)| w.1.role == login.session.role;
            let own = self.waiters.iter().filter(of_role).count();
            let place = self.waiters.len() < MAX_WAITERS as usize && own < 2;
            match position {
                Some(_) if login.rules.may_wait => "waiting",
                None if login.rules.may_wait && place => {
                    self.waiters.push((login.slot, login.session));
                    "waiting"
                }
                _ => {
                    self.waiters.retain(|(slot, _)| *slot != login.slot);
                    "refused"
                }
            }
        }
    }

    fn attempt_of(limited: &Limited, slot: usize, session: Session, may_wait: bool) -> Attempt {
        let rules = Rules {
            count_walsenders: false,
            dry_run: false,
            may_wait,
            max_waiters: MAX_WAITERS,
        };
        Attempt {
            slot,
            pid: 100 + slot as u32,
            session,
            limits: limited.limits(&session),
            rules,
        }
    }

    fn name(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Admitted(_) => "admitted",
            Verdict::Waiting => "waiting",
            Verdict::Refused(_) => "refused",
        }
    }

    fn queue(table: &Table) -> Vec<usize> {
        table.waiters().map(|(slot, ..)| slot).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        #[test]
        fn every_decision_is_the_references(limited in limited(), steps in steps()) {
            let mut memory = Memory::new(SLOTS);
            let mut table = memory.table();
            let mut reference = Reference::default();
            for step in steps {
                match step {
                    Step::Try { slot, role, database, may_wait } => {
                        if reference.sessions.iter().any(|(taken, _)| *taken == slot) {
                            continue;
                        }
                        let waiting = reference.waiters.iter().find(|(taken, _)| *taken == slot);
                        let session = waiting.map_or(session(role, database), |(_, waiter)| *waiter);
                        let login = attempt_of(&limited, slot, session, may_wait);
                        let verdict = attempt(&mut table, &login);
                        prop_assert_eq!(name(&verdict), reference.attempt(&limited, &login));
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
            // Woken until nothing changes, nobody is left waiting who has room.
            loop {
                let before = queue(&table);
                for slot in before.iter().rev() {
                    let here = |place: &&(usize, Session)| place.0 == *slot;
                    let waiter = reference.waiters.iter().find(here).map(|(_, waiter)| *waiter);
                    let login = attempt_of(&limited, *slot, waiter.expect("in both"), true);
                    let verdict = attempt(&mut table, &login);
                    prop_assert_eq!(name(&verdict), reference.attempt(&limited, &login));
                }
                if queue(&table) == before {
                    break;
                }
            }
            let among: Vec<Session> = table.sessions().map(|(_, session)| *session).collect();
            for (_, waiter, _) in table.waiters() {
                prop_assert!(!Reference::fits(&limited, waiter, &among));
            }
        }
    }
}
