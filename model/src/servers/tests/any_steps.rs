//! Any sequence of steps of servers, clients, the network and etcd: no login goes in over a limit.

use super::fake_etcd::Ignores;
use super::world::{APP, SLOTS, TIMEOUT, World};
use crate::limit::Scope;
use crate::limit::tests::in_database;
use crate::servers::place::OnUnreachable;
use crate::verdict::Verdict;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::time::Duration;

const SERVERS: usize = 3;
const OF_EACH_ROLE: u32 = 2;
const IN_ALL: u32 = 3;
/// A place is not kept for so long, in microseconds.
const LINGER: u64 = 60_000;

/// Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Step {
    LogIn(usize, usize, u32),
    Wake(usize),
    LogOut(usize, usize),
    GiveUp(usize, usize),
    Send(usize),
    /// A request comes to etcd, and its answer to the server.
    Deliver(usize),
    /// Nobody hears the answer.
    DeliverUnheard(usize),
    Lose(usize),
    TimeOut(usize),
    /// A session ends. What the server sends then comes to etcd so late that it has given up, and asked for more: for a
    /// login like this.
    Late(usize, usize, u32),
    /// A login like this on each server: what they send is on its way at the same time.
    Together(usize, u32),
    Pass(u64),
    RestartWorker(usize),
    /// The server crashes and starts again.
    Restart(usize),
    /// The server is cut off for so long that the others take it for gone.
    CutOff(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let server = 0..SERVERS;
    let slot = 0..SLOTS;
    prop_oneof![
        6 => (server.clone(), slot.clone(), 1..3_u32)
            .prop_map(|(server, slot, role)| Step::LogIn(server, slot, role)),
        6 => server.clone().prop_map(Step::Wake),
        3 => (server.clone(), slot.clone()).prop_map(|(server, slot)| Step::LogOut(server, slot)),
        1 => (server.clone(), slot.clone()).prop_map(|(server, slot)| Step::GiveUp(server, slot)),
        1 => (slot.clone(), 1..3_u32).prop_map(|(slot, role)| Step::Together(slot, role)),
        1 => (server.clone(), slot, 1..3_u32)
            .prop_map(|(server, slot, role)| Step::Late(server, slot, role)),
        12 => server.clone().prop_map(Step::Send),
        12 => any::<usize>().prop_map(Step::Deliver),
        1 => any::<usize>().prop_map(Step::DeliverUnheard),
        1 => any::<usize>().prop_map(Step::Lose),
        2 => server.clone().prop_map(Step::TimeOut),
        4 => (1..30_u64).prop_map(|ms| Step::Pass(ms * 1000)),
        1 => (1..10_u64).prop_map(|s| Step::Pass(s * 500_000)),
        1 => server.clone().prop_map(Step::RestartWorker),
        1 => server.clone().prop_map(Step::Restart),
        1 => server.prop_map(Step::CutOff),
    ]
}

/// What is wrong with a verdict on a login at this server, if something is.
fn wrong(world: &mut World, index: usize, verdict: &Verdict) -> Result<(), String> {
    if !matches!(verdict, Verdict::Admitted(_)) {
        return Ok(());
    }
    if !world.is_in(index) {
        return Err(format!(
            "server {index} lets in while others take it for gone"
        ));
    }
    for ((scope, max), excused) in world.limits.clone().into_iter().zip(world.excused.clone()) {
        let living: Vec<usize> = (0..SERVERS).filter(|index| world.is_in(*index)).collect();
        let sessions = living.iter().map(|index| world.sessions(*index, scope));
        let sessions: u32 = sessions.sum();
        if sessions > max + excused {
            return Err(format!(
                "{sessions} sessions under a limit of {max} for {scope:?}"
            ));
        }
    }
    Ok(())
}

/// What a server holds covers its sessions, and is what etcd says, or less.
fn check_held(world: &mut World, index: usize, scope: Scope) -> Result<(), String> {
    let sessions = world.sessions(index, scope);
    let is_in = world.is_in(index);
    let Some((held, in_etcd)) = world.held(index, scope).filter(|_| is_in) else {
        return Ok(());
    };
    if sessions > held {
        return Err(format!(
            "server {index} has {sessions} sessions on {held} places"
        ));
    }
    if held > in_etcd {
        return Err(format!("server {index} holds {held}, etcd says {in_etcd}"));
    }
    Ok(())
}

fn take(world: &mut World, step: &Step) -> Result<(), String> {
    let letter = |number: &usize, world: &World| number.checked_rem(world.letters.len());
    let mut verdicts = Vec::new();
    match step {
        Step::LogIn(index, slot, role) => {
            let verdict = world.log_in(*index, *slot, *role);
            verdicts.extend(verdict.map(|verdict| (*index, verdict)));
        }
        Step::Wake(index) => {
            let woken = world.wake_all(*index).into_iter();
            verdicts.extend(woken.map(|(_, verdict)| (*index, verdict)));
        }
        Step::LogOut(index, slot) => {
            world.log_out(*index, *slot);
        }
        Step::GiveUp(index, slot) => world.give_up(*index, *slot),
        Step::Send(index) => {
            world.send(*index);
        }
        Step::Deliver(number) => {
            let letter = letter(number, world);
            letter.into_iter().for_each(|it| world.deliver(it, true));
        }
        Step::DeliverUnheard(number) => {
            let letter = letter(number, world);
            letter.into_iter().for_each(|it| world.deliver(it, false));
        }
        Step::Lose(number) => {
            if let Some(letter) = letter(number, world) {
                world.letters.remove(letter);
            }
        }
        Step::TimeOut(index) => world.time_out(*index),
        Step::Late(index, slot, role) => {
            // Usually a place is given back.
            world.log_out(*index, *slot);
            for _ in 0..2 {
                if world.send(*index) {
                    world.deliver(world.letters.len() - 1, true);
                }
            }
            world.now += LINGER;
            world.send(*index);
            let late = world.letters.iter().rposition(|it| it.from == *index);
            let late = late.map(|letter| world.letters.remove(letter));
            world.time_out(*index);
            // It is in touch again.
            if world.send(*index) {
                world.deliver(world.letters.len() - 1, true);
            }
            let verdict = world.log_in(*index, *slot, *role);
            verdicts.extend(verdict.map(|verdict| (*index, verdict)));
            for _ in 0..3 {
                if world.send(*index) {
                    world.deliver(world.letters.len() - 1, true);
                }
                let woken = world.wake_all(*index).into_iter();
                verdicts.extend(woken.map(|(_, verdict)| (*index, verdict)));
            }
            if let Some(late) = late {
                world.letters.push(late);
                world.deliver(world.letters.len() - 1, false);
            }
        }
        Step::Together(slot, role) => {
            for index in 0..SERVERS {
                let verdict = world.log_in(index, *slot, *role);
                verdicts.extend(verdict.map(|verdict| (index, verdict)));
            }
            for _ in 0..3 {
                (0..SERVERS).for_each(|index| {
                    world.send(index);
                });
                while !world.letters.is_empty() {
                    world.deliver(0, true);
                }
                for index in 0..SERVERS {
                    let woken = world.wake_all(index).into_iter();
                    verdicts.extend(woken.map(|(_, verdict)| (index, verdict)));
                }
            }
        }
        Step::Pass(time) => world.now += time,
        Step::CutOff(index) => {
            // The others are in touch, whatever they waited for.
            (0..SERVERS).for_each(|index| world.time_out(index));
            world.servers[*index].pending = Some(u64::MAX);
            for _ in 0..12 {
                world.now += TIMEOUT.as_micros() as u64 / 10;
                for (index, _, verdict) in world.rest() {
                    wrong(world, index, &verdict)?;
                }
            }
            world.time_out(*index);
        }
        Step::RestartWorker(index) => world.restart_worker(*index),
        Step::Restart(index) => {
            let server = world.start(*index);
            world.servers[*index] = server;
        }
    }
    for (index, verdict) in &verdicts {
        wrong(world, *index, verdict)?;
    }
    for index in 0..SERVERS {
        for (scope, _) in world.limits.clone() {
            check_held(world, index, scope)?;
        }
    }
    Ok(())
}

/// Takes the steps; the error says what went wrong, and after which step.
fn run(steps: &[Step], ignores: Ignores, never_invalid: bool) -> Result<(), String> {
    let mut world = World::new(SERVERS, OF_EACH_ROLE, IN_ALL, ignores);
    world.never_invalid = never_invalid;
    // They have joined. How they do, `Step::Restart` tries.
    world.rest();
    for (number, step) in steps.iter().enumerate() {
        take(&mut world, step).map_err(|why| format!("after step {number}: {why}"))?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(Config { cases: 400, max_shrink_iters: 20_000, ..Config::default() })]

    #[test]
    fn no_login_goes_in_over_a_limit(steps in vec(step(), 1..400)) {
        run(&steps, Ignores::Nothing, false).map_err(TestCaseError::fail)?;
    }

    /// When all is well again, whoever waits gets in, as far as the limits allow.
    #[test]
    fn whatever_happened_places_are_not_lost(steps in vec(step(), 1..200)) {
        let mut world = World::new(SERVERS, OF_EACH_ROLE, IN_ALL, Ignores::Nothing);
        for step in &steps {
            take(&mut world, step).map_err(TestCaseError::fail)?;
        }
        for index in 0..SERVERS {
            world.time_out(index);
        }
        world.letters.clear();
        for index in 0..SERVERS {
            for slot in 0..SLOTS {
                world.give_up(index, slot);
                world.log_out(index, slot);
            }
        }
        // Whoever is gone is taken for gone, and spare places go back.
        for _ in 0..20 {
            world.now += TIMEOUT.as_micros() as u64 / 8;
            world.rest();
        }
        let last = SERVERS - 1;
        for slot in 0..3 {
            let role = 1 + slot as u32 / 2;
            world.log_in(last, slot, role);
            world.rest();
        }
        prop_assert_eq!(world.servers[last].sessions.len(), 3);
    }
}

/// All is well with the network and etcd, and logins wait for other things, too.
#[derive(Clone, Debug)]
enum Quiet {
    Step(Step),
    /// A limit is another one from now on.
    Limit(usize, u32),
    /// Whatever was sent is answered before the time passes.
    Rest(u64),
}

fn quiet_step() -> impl Strategy<Value = Quiet> {
    let server = 0..SERVERS;
    let slot = 0..SLOTS;
    prop_oneof![
        6 => (server.clone(), slot.clone(), 1..3_u32)
            .prop_map(|(server, slot, role)| Quiet::Step(Step::LogIn(server, slot, role))),
        6 => server.clone().prop_map(|server| Quiet::Step(Step::Wake(server))),
        4 => (server.clone(), slot.clone())
            .prop_map(|(server, slot)| Quiet::Step(Step::LogOut(server, slot))),
        1 => (server.clone(), slot)
            .prop_map(|(server, slot)| Quiet::Step(Step::GiveUp(server, slot))),
        4 => server.prop_map(|server| Quiet::Step(Step::Send(server))),
        4 => any::<usize>().prop_map(|letter| Quiet::Step(Step::Deliver(letter))),
        1 => (0..3_usize, 1..=IN_ALL).prop_map(|(limit, max)| Quiet::Limit(limit, max)),
        4 => (1..150_u64).prop_map(|ms| Quiet::Rest(ms * 10_000)),
    ]
}

proptest! {
    #![proptest_config(Config { cases: 400, max_shrink_iters: 20_000, ..Config::default() })]

    /// Nobody goes in as if etcd were silent.
    #[test]
    fn while_etcd_answers_nobody_goes_in_unasked(steps in vec(quiet_step(), 1..200)) {
        let mut world = World::new(SERVERS, OF_EACH_ROLE, IN_ALL, Ignores::Nothing);
        world.on_unreachable = OnUnreachable::Local;
        world.max_wait = Duration::from_secs(10);
        world.alone.push((in_database(APP), 2));
        world.rest();
        let mut most: Vec<u32> = world.limits.iter().map(|(_, max)| *max).collect();
        for step in &steps {
            match step {
                Quiet::Step(step) => take(&mut world, step).map_err(TestCaseError::fail)?,
                Quiet::Limit(limit, max) => {
                    world.limits[*limit].1 = *max;
                    most[*limit] = most[*limit].max(*max);
                    // What is lowered ends nobody's session.
                    world.excused[*limit] = most[*limit] - max;
                }
                Quiet::Rest(time) => {
                    while !world.letters.is_empty() {
                        world.deliver(0, true);
                    }
                    world.rest();
                    world.now += time;
                }
            }
            for ((scope, _), most) in world.limits.clone().into_iter().zip(&most) {
                let sessions: u32 = (0..SERVERS).map(|index| world.sessions(index, scope)).sum();
                prop_assert!(sessions <= *most, "{} under {} for {:?}", sessions, most, scope);
            }
        }
    }
}

/// Looks for a sequence that goes wrong, among the same ones each time.
fn is_found(ignores: Ignores, never_invalid: bool) -> bool {
    let config = Config {
        cases: 1_000,
        max_shrink_iters: 0,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&vec(step(), 100..400), |steps| {
        run(&steps, ignores, never_invalid).map_err(TestCaseError::fail)
    });
    result.is_err()
}

#[test]
fn without_the_condition_on_all_places_it_goes_wrong() {
    assert!(is_found(Ignores::Range, false));
}

#[test]
fn without_the_condition_on_the_own_place_it_goes_wrong() {
    assert!(is_found(Ignores::Own, false));
}

#[test]
fn without_the_condition_on_being_alive_it_goes_wrong() {
    assert!(is_found(Ignores::Member, false));
}

#[test]
fn without_an_end_to_what_is_held_it_goes_wrong() {
    assert!(is_found(Ignores::Nothing, true));
}
