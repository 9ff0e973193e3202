//! `cargo interleavings`: in every order in which a few processes can take their steps, no waiter is forgotten and no
//! limit is exceeded.
//!
//! The processes run the decisions and the atomics of the extension. Only what the server provides is made here: the
//! lock, the latches, and the end of a process. If all remaining processes sleep, one of them was forgotten, and loom
//! reports a deadlock. These tests can fail: they did without any one of the three fences, with a weaker one, and
//! with a step of `leave`, `leave_queue` or `decide` left out or swapped.

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Mutex, Notify};
use loom::thread::{self, JoinHandle};
use model::attempt::{Attempt, MayWait, Replacing, Rules};
use model::count::SessionCounter;
use model::decide::attempt;
use model::limit::{Across, Limit, OnExcess, Scope, Source, Unit, Who};
use model::members::Members;
use model::own_table::{OwnAtomics, OwnRows, OwnTable};
use model::per::Per;
use model::servers::place::AcrossRules;
use model::session::{Claim, Session};
use model::verdict::Verdict;
use std::time::Duration;

const ALICE: u32 = 1;
const BOB: u32 = 2;

/// The server: the table, its lock, and each process's latch.
struct Server {
    atomics: OwnAtomics,
    rows: Mutex<OwnRows>,
    latches: Vec<Notify>,
}

impl Server {
    /// With a session of each of these roles, and `besides` more slots.
    fn start(sessions: &[u32], besides: usize) -> Arc<Server> {
        let slots = sessions.len() + besides;
        let mut own = OwnTable::new(slots, 4 * slots);
        for (slot, role) in sessions.iter().enumerate() {
            let session = session(*role, slot);
            own.table().claim(slot, pid(slot), session);
        }
        Arc::new(Server {
            atomics: own.atomics,
            rows: Mutex::new(own.rows),
            latches: (0..slots).map(|_| Notify::new()).collect(),
        })
    }

    fn wake(&self, slots: impl IntoIterator<Item = usize>) {
        for slot in slots {
            self.latches[slot].notify();
        }
    }

    /// As `slot::decide` in the extension.
    fn decide(&self, slot: usize, role: u32, limits: &[Limit]) -> Verdict {
        let members = Members::default();
        let shared = self.atomics.shared();
        let mut counter = SessionCounter::new(shared, &members, false, false);
        let login = Attempt {
            slot,
            pid: pid(slot),
            session: session(role, slot),
            limits,
            members: &members,
            is_idle: &|_, _| false,
            across: AcrossRules::NONE,
            rules: RULES,
        };
        let verdict = {
            let mut rows = self.rows.lock().expect("nobody panics");
            attempt(&mut rows.table(shared), &mut counter, &login).expect("nothing is missing")
        };
        self.wake(counter.wake.iter().copied());
        verdict
    }

    /// A login that waits until it is admitted.
    fn log_in(&self, slot: usize, role: u32, limits: &[Limit]) {
        loop {
            match self.decide(slot, role, limits) {
                Verdict::Admitted(_) => return self.check(limits),
                Verdict::Waiting => self.latches[slot].wait(),
                other => panic!("{other:?}"),
            }
        }
    }

    /// A login that gives up as soon as it waits, whether it has been woken or not.
    fn log_in_and_give_up(&self, slot: usize, role: u32, limits: &[Limit]) {
        match self.decide(slot, role, limits) {
            Verdict::Admitted(_) => self.leave(slot, role),
            Verdict::Waiting => self.leave_queue(slot),
            other => panic!("{other:?}"),
        }
    }

    /// As `session_limit_leave_queue` in the extension.
    fn leave_queue(&self, slot: usize) {
        let shared = self.atomics.shared();
        let first = {
            let mut rows = self.rows.lock().expect("nobody panics");
            let mut table = rows.table(shared);
            table.dequeue(slot);
            table.shared.first_waiter()
        };
        self.wake(first);
    }

    /// As `slot::release` in the extension: the session's process ends.
    fn leave(&self, slot: usize, role: u32) {
        let shared = self.atomics.shared();
        shared.release(slot, Claim::new(pid(slot), role));
        self.wake(shared.first_waiter());
    }

    /// No limit is exceeded.
    fn check(&self, limits: &[Limit]) {
        let shared = self.atomics.shared();
        let mut rows = self.rows.lock().expect("nobody panics");
        let table = rows.table(shared);
        for limit in limits {
            let Who::Role(role) = limit.scope.who else {
                continue;
            };
            let sessions = table.shared.roles().filter(|it| *it == role);
            assert!(sessions.count() <= limit.max as usize);
        }
    }
}

const RULES: Rules = Rules {
    count_walsenders: false,
    may_wait: Some(MayWait {
        connections: u32::MAX,
        account: None,
    }),
    tried: Duration::ZERO,
    max_waiters: 100,
    tally: false,
    replacing: Replacing::NONE,
    audit: false,
};

fn pid(slot: usize) -> u32 {
    100 + slot as u32
}

fn session(role: u32, slot: usize) -> Session {
    Session {
        role,
        database: 5,
        address: None,
        started: 0,
        walsender: false,
        exempt: false,
        arrival: slot as u64,
    }
}

/// At most `max` sessions of the role.
fn at_most(max: u32, role: u32) -> Limit {
    Limit {
        scope: Scope {
            who: Who::Role(role),
            database: None,
            network: None,
        },
        per: Per::Role,
        unit: Unit::Session,
        across: Across::Server,
        max,
        source: Source::MaxSessionsPerRole,
        on_excess: OnExcess::Refuse,
        max_wait: Duration::from_secs(1),
        place: None,
        enforced: true,
    }
}

/// Tries every order of the processes' steps in which at most `switches` times a process that could go on is
/// interrupted. Without that bound three processes would take hours.
fn every_order(switches: usize, processes: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(switches);
    builder.max_branches = 100_000;
    builder.check(processes);
}

fn spawn(server: &Arc<Server>, process: impl FnOnce(&Server) + 'static) -> JoinHandle<()> {
    let server = Arc::clone(server);
    thread::spawn(move || process(&server))
}

fn join(processes: impl IntoIterator<Item = JoinHandle<()>>) {
    for process in processes {
        process.join().expect("no process panics");
    }
}

#[test]
fn a_waiter_finds_the_room_that_a_session_leaves() {
    every_order(4, || {
        let server = Server::start(&[ALICE], 1);
        let waits = spawn(&server, |server| {
            server.log_in(1, ALICE, &[at_most(1, ALICE)]);
        });
        server.leave(0, ALICE);
        join([waits]);
    });
}

#[test]
fn two_waiters_for_the_room_of_one_both_get_in() {
    every_order(2, || {
        let server = Server::start(&[ALICE], 2);
        let waits = [1, 2].map(|slot| {
            spawn(&server, move |server| {
                server.log_in(slot, ALICE, &[at_most(1, ALICE)]);
                server.leave(slot, ALICE);
            })
        });
        server.leave(0, ALICE);
        join(waits);
    });
}

#[test]
fn two_sessions_leave_at_once() {
    every_order(2, || {
        let server = Server::start(&[ALICE, ALICE], 2);
        let waits = [2, 3].map(|slot| {
            spawn(&server, move |server| {
                server.log_in(slot, ALICE, &[at_most(2, ALICE)]);
            })
        });
        let leaves = spawn(&server, |server| server.leave(0, ALICE));
        server.leave(1, ALICE);
        join(waits.into_iter().chain([leaves]));
    });
}

#[test]
fn a_first_waiter_that_finds_no_room_wakes_the_one_that_does() {
    every_order(2, || {
        let server = Server::start(&[ALICE, BOB], 2);
        let alice = spawn(&server, |server| {
            server.log_in(2, ALICE, &[at_most(1, ALICE)]);
        });
        let bob = spawn(&server, |server| {
            server.log_in(3, BOB, &[at_most(1, BOB)]);
        });
        server.leave(1, BOB);
        // Alice's session stays until bob is in, whichever of the two waiters is first.
        join([bob]);
        server.leave(0, ALICE);
        join([alice]);
    });
}

#[test]
fn a_waiter_that_gives_up_wakes_the_next_one() {
    every_order(2, || {
        let server = Server::start(&[ALICE], 2);
        let gives_up = spawn(&server, |server| {
            server.log_in_and_give_up(1, ALICE, &[at_most(1, ALICE)]);
        });
        let waits = spawn(&server, |server| {
            server.log_in(2, ALICE, &[at_most(1, ALICE)]);
        });
        server.leave(0, ALICE);
        join([gives_up, waits]);
    });
}

#[test]
fn a_waiter_that_waits_for_something_else_from_now_on_lets_the_next_one_go_first() {
    every_order(1, || {
        let server = Server::start(&[ALICE, BOB], 3);
        // The queue: alice, and two of bob's.
        let (alices, bobs) = ([at_most(1, ALICE)], [at_most(1, BOB)]);
        for (slot, role, limits) in [(2, ALICE, &alices), (3, BOB, &bobs), (4, BOB, &bobs)] {
            assert_eq!(server.decide(slot, role, limits), Verdict::Waiting);
        }
        // Woken, because there is room for bob, it finds that another limit applies meanwhile, which is full.
        let changes = spawn(&server, |server| {
            server.latches[3].wait();
            let other = [at_most(1, ALICE)];
            assert_eq!(server.decide(3, BOB, &other), Verdict::Waiting);
        });
        let is_in = Arc::new(AtomicBool::new(false));
        let bob_is_in = Arc::clone(&is_in);
        let bob = spawn(&server, move |server| {
            server.log_in(4, BOB, &bobs);
            bob_is_in.store(true, Ordering::Release);
            server.latches[2].notify();
        });
        server.leave(1, BOB);
        // Alice is first, and stays: whenever she is woken, she wakes those behind her.
        loop {
            server.latches[2].wait();
            if is_in.load(Ordering::Acquire) {
                break;
            }
            assert_eq!(server.decide(2, ALICE, &alices), Verdict::Waiting);
        }
        join([changes, bob]);
    });
}

/// A process gives back its PGPROC, which is its slot, before it frees its claim.
#[test]
fn the_slot_of_a_session_that_leaves_has_a_new_owner_before_the_claim_is_free() {
    every_order(3, || {
        let server = Server::start(&[ALICE], 1);
        let waits = spawn(&server, |server| {
            server.log_in(1, ALICE, &[at_most(1, ALICE)]);
        });
        let next = spawn(&server, |server| {
            server.log_in(0, BOB, &[at_most(1, BOB)]);
        });
        server.leave(0, ALICE);
        join([waits, next]);
    });
}
