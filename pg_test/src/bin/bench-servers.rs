//! `cargo bench-servers`: what limits across servers cost: a login, many clients that log in, the loss of etcd's leader, and
//! servers where nothing happens.
//!
//! Two fleets of three servers take turns: the etcd of one has one member, that of the other three. All runs on this machine.
//! etcd writes to the disk as it does elsewhere; PostgreSQL does not.
//!
//! Without etcd nobody gets in under such a limit (`on_unreachable = refuse`), so whoever got in did so by etcd. Whoever is
//! refused tries again at once, and the clock goes on. Each login without company waits until the last one's process is gone.

use pg_test::bench::{self, Best, Figures, Table};
use pg_test::client::{Session, Target};
use pg_test::cluster::{self, Cluster, Stop};
use pg_test::fleet::{Fleet, Servers};
use pg_test::server::{self, Server};
use pg_test::{say, wait_for};
use session_limit_servers::{Config, Etcd as Client};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const SERVERS: usize = 3;
/// Of each server.
const CLIENTS: usize = 8;
/// Of each client. Until it comes back to the first, etcd has that one's place again.
const ROLES: usize = 20;

/// In each round, of logins one after the other.
const TURNS: usize = 8;
const LOGINS: usize = 10;

/// Until each server holds as many places as its clients need at once.
const WARM_UP: Duration = Duration::from_secs(1);
const TURN: Duration = Duration::from_secs(2);
/// Until all places are given back.
const SETTLE: Duration = Duration::from_secs(1);
/// Each server writes a sign of life every 2.5 seconds.
const IDLE: Duration = Duration::from_secs(5);

const SETTINGS: [(&str, &str); 3] = [
    ("session_limit.max_wait", "0"),
    ("session_limit.on_unreachable", "refuse"),
    ("autovacuum", "off"),
];

const NONE: &str = "unlimited";
const LOCAL: &str = "limited";
const ACROSS: &str = "shared";

/// Servers without `etcd_endpoints`, which differ in nothing, and the fleets.
struct World {
    alone: [Cluster; 2],
    sites: [Site; 2],
}

/// A fleet and its etcd.
struct Site {
    name: &'static str,
    fleet: Fleet,
    client: Client,
    /// Of those that are taken in turn.
    next_role: usize,
    idle: Used,
}

/// What a server uses for limits across servers.
#[derive(Default)]
struct Used {
    /// Of the worker that asks etcd, % of a core.
    cpu: Figures,
    /// Of etcd, a second.
    transactions: Figures,
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    /// The first server of those without `etcd_endpoints`, or the second.
    Alone(usize),
    /// A fleet's first server, as this role.
    As(usize, &'static str),
    /// The same, as another role each time: its places are in etcd.
    Asks(usize),
    /// No login but a put to a fleet's etcd.
    Put(usize),
}

/// The first is the baseline, the second is no other: its ratio is noise.
const ONE_BY_ONE: [(&str, What); 9] = [
    ("no etcd_endpoints", What::Alone(0)),
    ("no etcd_endpoints, another server", What::Alone(1)),
    ("etcd_endpoints, no limit", What::As(0, NONE)),
    ("… a limit of this server", What::As(0, LOCAL)),
    (
        "… a limit across servers, a place is held",
        What::As(0, ACROSS),
    ),
    ("… etcd is asked, 1 member", What::Asks(0)),
    ("… etcd is asked, 3 members", What::Asks(1)),
    ("no login but a put to etcd, 1 member", What::Put(0)),
    ("no login but a put to etcd, 3 members", What::Put(1)),
];

/// Milliseconds.
#[derive(Default)]
struct Times {
    all: Figures,
    this_round: Figures,
    /// Of each round.
    medians: Figures,
}

/// What the clients of a fleet log in as.
const TOGETHER: [(&str, Option<&str>); 3] = [
    ("no limit", Some(NONE)),
    ("one limit across servers", Some(ACROSS)),
    ("a limit across servers for each login", None),
];

#[derive(Default)]
struct Together {
    a_second: Figures,
    median: Figures,
    slow: Figures,
    used: Used,
    refused: Figures,
}

/// From the end of the leader, seconds.
#[derive(Default)]
struct Loss {
    first: Figures,
    last: Figures,
}

fn main() {
    let rounds = bench::rounds(5, 1);
    for server in server::servers() {
        let mut world = World::start(&server);
        let mut one_by_one = ONE_BY_ONE.map(|_| Times::default());
        let mut together: Vec<Together> = Vec::new();
        together.resize_with(world.sites.len() * TOGETHER.len(), Together::default);
        let mut loss = Loss::default();
        say(format_args!("PostgreSQL {}: {rounds} rounds", server.major));
        for round in 1..=rounds {
            world.start_again();
            for _ in 0..TURNS {
                for turn in bench::shuffled(ONE_BY_ONE.len()) {
                    world.log_in_one_by_one(ONE_BY_ONE[turn].1, &mut one_by_one[turn]);
                }
            }
            one_by_one.iter_mut().for_each(Times::end_round);
            for turn in bench::shuffled(together.len()) {
                let site = &world.sites[turn / TOGETHER.len()];
                let role = TOGETHER[turn % TOGETHER.len()].1;
                together[turn].take_a_turn(site, role);
            }
            world.rest();
            loss.take_a_turn(&mut world.sites[1]);
            say(format_args!("{round} of {rounds}"));
        }
        report(&server, rounds, &world, &one_by_one, &together, &loss);
    }
}

impl World {
    fn start(server: &Server) -> World {
        let alone = [(); 2].map(|()| {
            let cluster = Cluster::start(server, &SETTINGS);
            cluster.sql(&[&format!("CREATE ROLE {NONE} LOGIN")]);
            cluster
        });
        let sites = [("1 member", 1), ("3 members", 3)]
            .map(|(name, members)| Site::start(server, name, members));
        World { alone, sites }
    }

    /// Where the kernel maps a server's code makes a difference from one start to the next.
    fn start_again(&mut self) {
        let firsts = self
            .sites
            .iter_mut()
            .map(|site| &mut site.fleet.clusters[0]);
        for cluster in self.alone.iter_mut().chain(firsts) {
            cluster.stop(Stop::Fast);
            cluster.start_again();
            cluster.login_of(NONE).login().expect("room").end();
        }
        self.sites.iter().for_each(Site::wait_until_in_touch);
    }

    fn log_in_one_by_one(&mut self, what: What, times: &mut Times) {
        // Not counted. Its place is held for the next.
        if let What::As(_, ACROSS) = what {
            self.login(what);
        }
        for _ in 0..LOGINS {
            times.this_round.push(millis(self.login(what)));
        }
    }

    fn login(&mut self, what: What) -> Duration {
        let target = match what {
            What::Alone(number) => self.alone[number].login_of(NONE),
            What::As(site, role) => self.sites[site].fleet.clusters[0].login_of(role),
            What::Asks(site) => {
                let site = &mut self.sites[site];
                site.next_role = (site.next_role + 1) % (SERVERS * CLIENTS * ROLES);
                site.fleet.clusters[0].login_of(&role(site.next_role))
            }
            What::Put(site) => return self.sites[site].put(),
        };
        let start = Instant::now();
        let (session, _) = get_in(&target);
        let time = start.elapsed();
        session.end();
        time
    }

    /// Nothing happens.
    fn rest(&mut self) {
        thread::sleep(SETTLE);
        let before = self.sites.each_ref().map(Site::used);
        thread::sleep(IDLE);
        for (site, before) in self.sites.iter_mut().zip(before) {
            let after = site.used();
            site.idle.push(before, after);
        }
    }
}

impl Site {
    fn start(server: &Server, name: &'static str, members: usize) -> Site {
        let fleet = Fleet::try_start(server, members, Servers::Primaries(SERVERS), &SETTINGS);
        let fleet = fleet.unwrap_or_else(|why| panic!("there is no etcd: {why}"));
        let label = |role: &str, limit| {
            format!("SECURITY LABEL FOR session_limit ON ROLE {role} IS '{{\"max\": 1000{limit}}}'")
        };
        let across = r#", "across": "servers""#;
        let mut sql: Vec<String> = [NONE, LOCAL, ACROSS]
            .map(|role| format!("CREATE ROLE {role} LOGIN"))
            .into();
        sql.extend([label(LOCAL, ""), label(ACROSS, across)]);
        for role in (0..SERVERS * CLIENTS * ROLES).map(role) {
            sql.extend([format!("CREATE ROLE {role} LOGIN"), label(&role, across)]);
        }
        fleet.sql(&sql.iter().map(String::as_str).collect::<Vec<_>>());
        let client = Client::new(&Config {
            endpoints: fleet.etcd.endpoints(),
            timeout: 1000,
            ..Config::default()
        });
        Site {
            name,
            fleet,
            client: client.expect("endpoints"),
            next_role: 0,
            idle: Used::default(),
        }
    }

    fn wait_until_in_touch(&self) {
        for cluster in &self.fleet.clusters {
            let target = cluster.login_of(ACROSS);
            wait_for("a server to reach etcd", || target.login().ok()).end();
        }
    }

    /// A key to etcd, as the worker sends what it asks, until that is done.
    fn put(&mut self) -> Duration {
        let start = Instant::now();
        // "put" and "1", as etcd wants them.
        let body = r#"{"key": "cHV0", "value": "MQ=="}"#;
        wait_for("etcd", || self.client.call("/v3/kv/put", body).ok());
        start.elapsed()
    }

    /// So far, by all servers together: when, the CPU of the workers in seconds, and how many transactions.
    fn used(&self) -> (Instant, f64, f64) {
        let workers = self.fleet.clusters.iter().map(|cluster| {
            let worker = cluster.processes("session_limit servers");
            cluster::cpu(*worker.first().expect("a worker"))
        });
        (
            Instant::now(),
            workers.sum(),
            self.fleet.etcd.transactions(),
        )
    }
}

impl Used {
    fn push(&mut self, before: (Instant, f64, f64), after: (Instant, f64, f64)) {
        let seconds = (after.0 - before.0).as_secs_f64() * SERVERS as f64;
        self.cpu.push((after.1 - before.1) * 100.0 / seconds);
        self.transactions.push((after.2 - before.2) / seconds);
    }
}

impl Times {
    fn end_round(&mut self) {
        self.medians.push(self.this_round.median());
        self.all.extend(std::mem::take(&mut self.this_round));
    }
}

impl Together {
    /// Each client logs in and closes again and again.
    fn take_a_turn(&mut self, site: &Site, role: Option<&str>) {
        let over = AtomicBool::new(false);
        let (mut logins, mut window) = (Vec::new(), None);
        thread::scope(|scope| {
            let clients = (0..SERVERS * CLIENTS).map(|number| {
                let cluster = &site.fleet.clusters[number / CLIENTS];
                let over = &over;
                scope.spawn(move || client(cluster, number, role, over))
            });
            let clients: Vec<_> = clients.collect();
            thread::sleep(WARM_UP);
            let before = site.used();
            thread::sleep(TURN);
            let after = site.used();
            self.used.push(before, after);
            window = Some(before.0..after.0);
            over.store(true, Ordering::Relaxed);
            for client in clients {
                logins.extend(client.join().expect("a client"));
            }
        });
        let window = window.expect("a window");
        logins.retain(|login| window.contains(&login.end));
        let seconds = (window.end - window.start).as_secs_f64();
        let times = logins.iter().map(|login| millis(login.end - login.start));
        let times: Figures = times.collect();
        self.a_second.push(logins.len() as f64 / seconds);
        self.median.push(times.median());
        self.slow.push(times.part(99));
        let refused: usize = logins.iter().map(|login| login.refused).sum();
        self.refused.push(refused as f64);
    }
}

struct Login {
    start: Instant,
    end: Instant,
    /// How often, before it got in.
    refused: usize,
}

/// Logs in as this role, or as each of its own in turn.
fn client(cluster: &Cluster, number: usize, one: Option<&str>, over: &AtomicBool) -> Vec<Login> {
    let own = (0..ROLES).map(|index| role(number * ROLES + index));
    let roles = one.map_or(own.collect(), |one| vec![one.to_string()]);
    let mut logins = Vec::new();
    for role in roles.iter().cycle() {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let start = Instant::now();
        let (session, refused) = get_in(&cluster.login_of(role));
        let end = Instant::now();
        logins.push(Login {
            start,
            end,
            refused,
        });
        session.close();
    }
    logins
}

impl Loss {
    /// On each server a login begins that needs a place of etcd, when etcd's leader has just been killed.
    fn take_a_turn(&mut self, site: &mut Site) {
        let leader = site.fleet.etcd.leader();
        let start = Instant::now();
        site.fleet.etcd.kill(leader);
        let login = |(number, cluster): (usize, &Cluster)| {
            let (session, _) = get_in(&cluster.login_of(&role(number)));
            let time = start.elapsed().as_secs_f64();
            session.end();
            time
        };
        let times: Figures = thread::scope(|scope| {
            let clusters = site.fleet.clusters.iter().enumerate();
            let logins = clusters.map(|cluster| scope.spawn(move || login(cluster)));
            let logins: Vec<_> = logins.collect();
            logins
                .into_iter()
                .map(|it| it.join().expect("a login"))
                .collect()
        });
        self.first.push(times.part(0));
        self.last.push(times.max());
        site.fleet.etcd.restart(&[leader]);
    }
}

fn role(number: usize) -> String {
    format!("role{number}")
}

/// Tries until it is in. Returns how often it was refused, too.
fn get_in(target: &Target) -> (Session, usize) {
    let mut refused = 0;
    let session = wait_for("a login", || target.login().map_err(|_| refused += 1).ok());
    (session, refused)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn report(
    server: &Server,
    rounds: usize,
    world: &World,
    one_by_one: &[Times],
    together: &[Together],
    loss: &Loss,
) {
    let measured = format!(
        "{rounds} rounds, in each {} logins one after the other for each row, {} s of {} clients, {} s without any, and the loss of a leader",
        TURNS * LOGINS,
        TURN.as_secs(),
        SERVERS * CLIENTS,
        IDLE.as_secs(),
    );
    let tables = vec![
        one_by_one_table(one_by_one),
        together_table(world, together),
        loss_table(loss),
        idle_table(world),
    ];
    bench::report("servers", server, measured, tables);
}

fn one_by_one_table(times: &[Times]) -> Table {
    let names = ONE_BY_ONE.iter().map(|(name, _)| *name);
    let mut table = Table::new("a login, one after the other", names);
    table.noise = Some(1);
    let medians = times.iter().map(|it| it.medians.clone());
    table.column("ms", 2, Best::None, medians).picture();
    let slow = times.iter().map(|it| Figures::from_iter([it.all.part(99)]));
    table.column("99 %, ms", 2, Best::None, slow);
    let base = &times[0].medians;
    let is_put = |row: usize| matches!(ONE_BY_ONE[row].1, What::Put(_));
    let ratios = times.iter().enumerate().map(|(row, it)| match is_put(row) {
        true => Figures::default(),
        false => it.medians.over(base),
    });
    table.column("ratio", 2, Best::None, ratios);
    // What is left when the login without any of it is taken away, and the put.
    let beyond = times.iter().enumerate().map(|(row, it)| {
        let What::Asks(site) = ONE_BY_ONE[row].1 else {
            return Figures::default();
        };
        let put = ONE_BY_ONE
            .iter()
            .position(|(_, what)| *what == What::Put(site));
        let put = &times[put.expect("a put")].medians;
        it.medians.less(base).less(put)
    });
    table.column("beyond the first row and a put, ms", 2, Best::None, beyond);
    table
}

fn together_table(world: &World, together: &[Together]) -> Table {
    let sites = world.sites.iter();
    let names = sites.flat_map(|site| TOGETHER.map(|(name, _)| format!("{}: {name}", site.name)));
    let names: Vec<String> = names.collect();
    let title = format!(
        "{} clients on {SERVERS} servers log in and close",
        SERVERS * CLIENTS
    );
    let mut table = Table::new(title, names.iter().map(String::as_str));
    let all =
        |figures: fn(&Together) -> &Figures| together.iter().map(move |it| figures(it).clone());
    table
        .column(
            "logins a second, all servers",
            0,
            Best::None,
            all(|it| &it.a_second),
        )
        .picture();
    let ratios = together.iter().enumerate().map(|(row, it)| {
        let first = row - row % TOGETHER.len();
        it.a_second.over(&together[first].a_second)
    });
    table.column("ratio to no limit", 2, Best::None, ratios);
    table.column("to be in: median, ms", 1, Best::None, all(|it| &it.median));
    table.column("99 %, ms", 1, Best::None, all(|it| &it.slow));
    used_columns(&mut table, together.iter().map(|it| &it.used));
    table.column("refused", 0, Best::None, all(|it| &it.refused));
    table
}

fn loss_table(loss: &Loss) -> Table {
    let names = ["on the first server", "on the last of the three"];
    let title = "from the end of etcd's leader to a login that needs a new place";
    let mut table = Table::new(title, names);
    let cells = [loss.first.clone(), loss.last.clone()];
    let slowest = cells.each_ref().map(|it| Figures::from_iter([it.max()]));
    table.column("s", 2, Best::None, cells);
    table.column("longest, s", 2, Best::None, slowest);
    table
}

fn idle_table(world: &World) -> Table {
    let names = world.sites.iter().map(|site| site.name);
    let mut table = Table::new("nothing happens", names);
    used_columns(&mut table, world.sites.iter().map(|site| &site.idle));
    table
}

fn used_columns<'a>(table: &mut Table, used: impl Iterator<Item = &'a Used> + Clone) {
    let transactions = used.clone().map(|it| it.transactions.clone());
    table.column(
        "transactions a second, each server",
        1,
        Best::None,
        transactions,
    );
    let cpu = used.map(|it| it.cpu.clone());
    table.column("CPU of its worker, % of a core", 2, Best::None, cpu);
}
