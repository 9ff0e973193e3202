//! `cargo bench-lock`: how long a decision holds the lock, measured on the table alone: without a server, and with warm
//! caches.
//!
//! A measurement is one `decide::attempt`, and giving back what it claimed. Every slot of the table has a session, except
//! those of the login and of the waiters. `bench-scale` runs this benchmark, too, and makes its tables.

use criterion::{Bencher, BenchmarkId, Criterion};
use model::attempt::{Attempt, MayWait, Replacing, Rules};
use model::count::SessionCounter;
use model::decide::attempt;
use model::limit::Condition;
use model::limit::{Across, Limit, OnExcess, Scope, Source, Unit, Who};
use model::members::Members;
use model::network::Network;
use model::own_table::OwnTable;
use model::per::Per;
use model::servers::place::AcrossRules;
use model::session::{Claim, Session};
use model::table::Table;
use model::verdict::Verdict;
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// The first OID that users' objects get. It is the login's own role.
const ROLE: u32 = 16384;
const DATABASE: u32 = 5;
const SMALL_GROUP: u32 = 1;
const LARGE_GROUP: u32 = 2;
/// The login's process ID. The session at slot n has this plus n, which does not matter here.
const LOGIN: u32 = 4_000_000;

/// Whose sessions the table has.
#[derive(Clone, Copy, PartialEq)]
enum Crowd {
    /// Those of 1,000 roles in 10 databases from 250 addresses.
    Many,
    /// Those of one role in one database from one address, as of an application.
    One,
}

fn session(crowd: Crowd, number: u32) -> Session {
    let number = if crowd == Crowd::Many { number } else { 0 };
    Session {
        role: ROLE + number % 1000,
        database: DATABASE + number % 10,
        address: Some(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001 + number % 250))),
        started: 0,
        walsender: false,
        exempt: false,
        arrival: number.into(),
    }
}

fn members() -> Members {
    let mut members = Members::default();
    members.insert(
        SMALL_GROUP,
        (0..10).map(|number| ROLE + 7 * number).collect(),
    );
    members.insert(
        LARGE_GROUP,
        (0..1000).map(|number| ROLE + 7 * number).collect(),
    );
    members
}

fn scope(who: Who, database: Option<u32>, network: Option<Network>) -> Scope {
    Scope {
        who,
        database,
        network,
    }
}

/// What a limit covers, and what it counts as one.
type Covered = (Scope, Unit);

fn kinds() -> Vec<(&'static str, Vec<Covered>)> {
    let address = session(Crowd::Many, 0).address.map(Network::of);
    let network = "10.0.0.0/8".parse().ok();
    let (own, database) = (Who::Role(ROLE), Some(DATABASE));
    let kinds = [
        ("role", scope(own, None, None)),
        ("role per address", scope(own, None, address)),
        ("role in a database", scope(own, database, None)),
        ("network", scope(Who::Anyone, None, network)),
        ("address", scope(Who::Anyone, None, address)),
        (
            "group of 10",
            scope(Who::MembersOf(SMALL_GROUP), None, None),
        ),
        (
            "group of 1,000",
            scope(Who::MembersOf(LARGE_GROUP), None, None),
        ),
        ("database", scope(Who::Anyone, database, None)),
        ("cluster", scope(Who::Anyone, None, None)),
    ];
    let alone = kinds.map(|(name, scope)| (name, vec![(scope, Unit::Session)]));
    let ipv6_prefix_length = 128;
    let (place, everyone) = (Unit::Address { ipv6_prefix_length }, Who::Anyone);
    let different = [
        ("addresses of a role", scope(own, None, None), place),
        ("addresses", scope(everyone, None, None), place),
        ("roles", scope(everyone, None, None), Unit::Role),
        (
            "roles in a database",
            scope(everyone, database, None),
            Unit::Role,
        ),
    ];
    let different = different.map(|(name, scope, unit)| (name, vec![(scope, unit)]));
    let mixed = [
        scope(own, None, None),
        scope(own, None, address),
        scope(Who::MembersOf(LARGE_GROUP), None, None),
        scope(Who::Anyone, database, None),
    ];
    let mixed = mixed.map(|scope| (scope, Unit::Session));
    // None of these has anything in common with another.
    let mixed_different = [
        (scope(own, None, None), place),
        (scope(Who::MembersOf(LARGE_GROUP), None, None), Unit::Role),
        (scope(everyone, database, None), Unit::Role),
        (scope(everyone, None, None), Unit::Role),
    ];
    alone
        .into_iter()
        .chain(different)
        .chain([("mixed roles and addresses", mixed_different.to_vec())])
        .chain([("mixed", mixed.to_vec())])
        .collect()
}

/// `number` limits, with these scopes in turn.
fn limits(scopes: &[Covered], number: usize, max: u32, on_excess: OnExcess) -> Vec<Limit> {
    let limit = |(scope, unit): &Covered| Limit {
        scope: *scope,
        per: Per::Role,
        unit: *unit,
        across: Across::Server,
        max,
        source: Source::MaxSessionsPerRole,
        on_excess,
        max_wait: Duration::ZERO,
        place: None,
        enforced: true,
    };
    scopes.iter().cycle().take(number).map(limit).collect()
}

/// A login to a table with sessions in it, and perhaps waiters.
struct Scene {
    memory: OwnTable,
    members: Members,
    session: Session,
    slot: usize,
}

impl Scene {
    fn new(crowd: Crowd, sessions: usize, waiters: usize) -> Scene {
        let slots = sessions + waiters + 1;
        let mut memory = OwnTable::new(slots, 4 * slots);
        let mut table = memory.table();
        for slot in 0..sessions {
            let session = session(crowd, slot as u32);
            table.claim(slot, LOGIN + slot as u32, session);
        }
        Scene {
            memory,
            members: members(),
            session: Session {
                arrival: u64::MAX,
                ..session(crowd, 0)
            },
            slot: slots - 1,
        }
    }

    /// Adds waiters. Each waits for limits of its own role and address, of a group and of a database; its role's is full.
    fn queue(&mut self, sessions: usize, waiters: usize) {
        let mut table = self.memory.table();
        for number in 0..waiters {
            let waiter = session(Crowd::Many, number as u32 * 10);
            let who = Who::Role(waiter.role);
            let conditions = [
                (scope(who, None, None), 0),
                (scope(who, None, waiter.address.map(Network::of)), 1000),
                (scope(Who::MembersOf(LARGE_GROUP), None, None), 100_000),
                (scope(Who::Anyone, Some(DATABASE), None), 100_000),
            ];
            let conditions = conditions.into_iter().map(|(scope, max)| Condition {
                scope,
                unit: Unit::Session,
                max,
                place: None,
            });
            assert!(table.enqueue(sessions + number, waiter, conditions));
        }
    }

    /// Runs `act` with the login, and with the counter that a process makes before it takes the lock.
    fn with_login<R>(
        &mut self,
        limits: &[Limit],
        act: impl FnOnce(&mut Table, &mut SessionCounter, &Attempt) -> R,
    ) -> R {
        let rules = Rules {
            count_walsenders: false,
            may_wait: Some(MayWait::NOT),
            tried: Duration::ZERO,
            max_waiters: 20,
            tally: false,
            replacing: Replacing {
                allowed: true,
                now: u64::MAX,
                min_age: Duration::ZERO,
                idle_after: Duration::ZERO,
            },
            audit: false,
        };
        let login = Attempt {
            slot: self.slot,
            pid: LOGIN,
            session: self.session,
            limits,
            members: &self.members,
            is_idle: &|_, _| false,
            across: AcrossRules::NONE,
            rules,
        };
        let mut table = self.memory.table();
        let mut counter = SessionCounter::new(table.shared, &self.members, true, login.tallies());
        counter.in_use = vec![Cell::new(None); limits.len()];
        act(&mut table, &mut counter, &login)
    }

    fn measure(&mut self, limits: &[Limit], bencher: &mut Bencher) {
        self.with_login(limits, |table, counter, login| {
            bencher.iter(|| decide(table, counter, login));
        });
    }
}

/// Decides on the login, and gives back what it claimed.
fn decide(table: &mut Table, counter: &mut SessionCounter, login: &Attempt) -> Verdict {
    let verdict = attempt(table, counter, login).expect("all is known");
    match verdict {
        Verdict::Admitted(_) => {
            let claim = Claim::new(login.pid, login.session.role);
            table.shared.release(login.slot, claim);
        }
        Verdict::Replacing(..) => table.roll_back(login.slot),
        Verdict::Waiting | Verdict::Refused(_) => {}
    }
    verdict
}

const SESSIONS: [usize; 4] = [10, 100, 1_000, 10_000];
const NUMBERS: [usize; 3] = [1, 4, 16];

fn kinds_of_limits(criterion: &mut Criterion) {
    for (crowd, suffix) in [(Crowd::Many, ""), (Crowd::One, ", one role")] {
        for (kind, scopes) in kinds() {
            if crowd == Crowd::One && kind != "mixed" {
                continue;
            }
            for number in NUMBERS {
                let of_limits = if number == 1 { "limit" } else { "limits" };
                let name = format!("{kind}{suffix}, {number} {of_limits}");
                let mut group = criterion.benchmark_group(name);
                for sessions in SESSIONS {
                    let limits = limits(&scopes, number, u32::MAX, OnExcess::Refuse);
                    let mut scene = Scene::new(crowd, sessions, 0);
                    let verdict = scene.with_login(&limits, decide);
                    assert!(matches!(verdict, Verdict::Admitted(_)));
                    group.bench_function(BenchmarkId::from_parameter(sessions), |bencher| {
                        scene.measure(&limits, bencher);
                    });
                }
            }
        }
    }
}

/// A login with four limits of different kinds, and what becomes of it.
fn outcomes(criterion: &mut Criterion) {
    let (_, scopes) = kinds().pop().expect("mixed");
    use Crowd::{Many, One};
    use OnExcess::{Refuse, ReplaceOldest};
    // Name; sessions and number of waiters; which of the limits has which `max`, given the number of sessions; policy.
    type Max = fn(u32) -> u32;
    type Outcome = (&'static str, (Crowd, usize), (usize, Max), OnExcess);
    let outcomes: [Outcome; 7] = [
        ("refused", (Many, 0), (0, |_| 1), Refuse),
        ("refused, one role", (One, 0), (0, |all| all), Refuse),
        ("20 waiters", (Many, 20), (0, |_| u32::MAX), Refuse),
        ("500 waiters", (Many, 500), (0, |_| u32::MAX), Refuse),
        (
            "500 waiters, little room",
            (Many, 500),
            (3, |all| all / 10 + 5),
            Refuse,
        ),
        ("replaces one", (One, 0), (0, |all| all), ReplaceOldest),
        ("replaces half", (One, 0), (0, |all| all / 2), ReplaceOldest),
    ];
    for (name, (crowd, waiters), (limit, max), on_excess) in outcomes {
        let mut group = criterion.benchmark_group(name);
        for sessions in SESSIONS {
            let mut limits = limits(&scopes, 4, u32::MAX, on_excess);
            limits[limit].max = max(sessions as u32);
            let mut scene = Scene::new(crowd, sessions, waiters);
            scene.queue(sessions, waiters);
            group.bench_function(BenchmarkId::from_parameter(sessions), |bencher| {
                scene.measure(&limits, bencher);
            });
        }
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300))
        .configure_from_args();
    kinds_of_limits(&mut criterion);
    outcomes(&mut criterion);
}
