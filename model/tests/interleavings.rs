//! `cargo interleavings`: whether a login that waits is ever forgotten, and a limit ever exceeded, in every order in which
//! a few processes can take their steps.
//!
//! The processes run the decisions and the atomics of the extension. Only what the server gives is made here: the lock,
//! the latch, and the end of a process. If all that is left are processes that sleep, one of them was forgotten: loom
//! says "deadlock". Without any one of the three fences, with a weaker one, or with a step of `leave`, `leave_queue` or
//! `decide` left out or swapped, these tests fail: each was tried.

use loom::sync::{Arc, Mutex, Notify};
use loom::thread::{self, JoinHandle};
use model::attempt::{Attempt, Replacing, Rules};
use model::count::SessionCounter;
use model::decide::attempt;
use model::limit::{Limit, OnExcess, Per, Scope, Source, Who};
use model::members::Members;
use model::own_table::{OwnAtomics, OwnRows, OwnTable};
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
    /// With these sessions, each in a slot of its own, and room for so many processes besides.
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

    /// As `slot::decide`.
    fn decide(&self, slot: usize, role: u32, limits: &[Limit]) -> Verdict {
        let members = Members::default();
        let shared = self.atomics.shared();
        let mut counter = SessionCounter::new(shared, &members, false);
        let login = Attempt {
            slot,
            pid: pid(slot),
            session: session(role, slot),
            limits,
            members: &members,
            idle: None,
            rules: RULES,
        };
        let verdict = {
            let mut rows = self.rows.lock().expect("nobody panics");
            attempt(&mut rows.table(shared), &mut counter, &login).expect("nothing is missing")
        };
        self.wake(counter.wake.iter().copied());
        verdict
    }

    /// A login that waits until it is in.
    fn log_in(&self, slot: usize, role: u32, limits: &[Limit]) {
        loop {
            match self.decide(slot, role, limits) {
                Verdict::Admitted(_) => return self.check(limits),
                Verdict::Waiting => self.latches[slot].wait(),
                other => panic!("{other:?}"),
            }
        }
    }

    /// A login that is told to stop once it waits, before it was woken or after.
    fn log_in_and_give_up(&self, slot: usize, role: u32, limits: &[Limit]) {
        match self.decide(slot, role, limits) {
            Verdict::Admitted(_) => self.leave(slot, role),
            Verdict::Waiting => self.leave_queue(slot),
            other => panic!("{other:?}"),
        }
    }

    /// As `session_limit_leave_queue`.
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

    /// As `slot::release`: the session's process ends.
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
    may_wait: Some(true),
    tried: Duration::ZERO,
    max_waiters: 100,
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

/// At most so many sessions of a role.
fn at_most(max: u32, role: u32) -> Limit {
    Limit {
        scope: Scope {
            who: Who::Role(role),
            database: None,
            network: None,
        },
        per: Per::Role,
        max,
        source: Source::MaxSessionsPerRole,
        on_excess: OnExcess::Refuse,
        max_wait: Duration::from_secs(1),
        enforced: true,
    }
}

/// Tries every order of the processes' steps. With so many switches at the most where one that need not be is made: all
/// orders of three processes would take hours.
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
fn a_place_that_becomes_free_is_found() {
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
fn two_wait_for_one_place_and_both_get_in() {
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
fn two_places_become_free_at_once() {
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
fn the_first_waits_for_another_limit_than_the_one_that_has_room() {
    every_order(2, || {
        let server = Server::start(&[ALICE, BOB], 2);
        let alice = spawn(&server, |server| {
            server.log_in(2, ALICE, &[at_most(1, ALICE)]);
        });
        let bob = spawn(&server, |server| {
            server.log_in(3, BOB, &[at_most(1, BOB)]);
        });
        server.leave(1, BOB);
        // Alice's session stays until bob is in, whoever of the two came first.
        join([bob]);
        server.leave(0, ALICE);
        join([alice]);
    });
}

#[test]
fn who_gives_up_hands_on_that_it_was_woken() {
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
fn who_waits_for_something_else_from_now_on_lets_the_next_one_go_first() {
    every_order(2, || {
        let server = Server::start(&[ALICE, BOB], 3);
        // The queue: alice, and two of bob's.
        let (alices, bobs) = ([at_most(1, ALICE)], [at_most(1, BOB)]);
        for (slot, role, limits) in [(2, ALICE, &alices), (3, BOB, &bobs), (4, BOB, &bobs)] {
            assert_eq!(server.decide(slot, role, limits), Verdict::Waiting);
        }
        let alice = spawn(&server, move |server| server.log_in(2, ALICE, &alices));
        // Woken, because there is room for bob, it finds that its limit was lowered meanwhile.
        let changes = spawn(&server, |server| {
            server.latches[3].wait();
            let lowered = [at_most(0, BOB)];
            assert_eq!(server.decide(3, BOB, &lowered), Verdict::Waiting);
        });
        let bob = spawn(&server, move |server| server.log_in(4, BOB, &bobs));
        server.leave(1, BOB);
        join([changes, bob]);
        server.leave(0, ALICE);
        join([alice]);
    });
}

/// The process that has left gave its PGPROC back before it gave its claim up.
#[test]
fn the_slot_of_a_leaver_is_given_to_another_before_its_claim_is_gone() {
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
        let claim = server.atomics.shared().claim(0);
        assert_eq!(claim, Some(Claim::new(pid(0), BOB)), "the next owner's");
    });
}
