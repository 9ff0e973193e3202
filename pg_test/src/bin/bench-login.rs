//! `cargo bench-login`: what a login costs with the library, beside servers without it.
//!
//! Each variant is a server of its own; they take turns in random order, short ones, so that what slows the
//! machine for a while slows all. A turn is some logins, one after the other, over a Unix-domain socket with
//! `trust` or over TCP with SCRAM. The figures are those of a round of many turns: the time by the client's clock,
//! and the CPU time of the server's processes that have ended, which the kernel shows in hundredths of a second.
//! For each round all servers are started anew: where the kernel maps a server's code makes as much of a difference
//! from one start to the next as some variants do.
//! The server with a library whose hook does nothing says how much of a difference is noise.

use pg_test::bench::{self, Best, Figures, Table};
use pg_test::client::Target;
use pg_test::cluster::{Cluster, Stop};
use pg_test::server::{self, Server};
use pg_test::{say, wait_for};
use std::time::{Duration, Instant};

const TURNS: usize = 100;
const LOGINS: usize = 10;

struct Variant {
    name: &'static str,
    cluster: Cluster,
    /// For each way to log in.
    time: [Figures; 2],
    cpu: [Figures; 2],
    /// In this round.
    busy: Duration,
}

const WAYS: [&str; 2] = ["trust, Unix-domain socket", "scram-sha-256, TCP"];

fn main() {
    let rounds = bench::rounds(15, 2);
    for server in server::servers() {
        let mut variants = variants(&server);
        say(format_args!(
            "PostgreSQL {}: {rounds} rounds of {} logins each",
            server.major,
            TURNS * LOGINS
        ));
        for round in 1..=rounds {
            variants.iter_mut().for_each(Variant::start_again);
            for way in 0..WAYS.len() {
                let before: Vec<f64> = variants.iter().map(Variant::cpu).collect();
                for _ in 0..TURNS {
                    for turn in bench::shuffled(variants.len()) {
                        variants[turn].take_a_turn(way);
                    }
                }
                for (variant, before) in variants.iter_mut().zip(before) {
                    variant.end_round(way, before);
                }
            }
            say(format_args!("{round} of {rounds}"));
        }
        report(&server, rounds, &variants);
    }
}

/// The first is the baseline.
fn variants(server: &Server) -> Vec<Variant> {
    let library = |settings| Cluster::start(server, settings);
    let labels = library(&[]);
    labels.sql(&[
        "CREATE ROLE alice LOGIN PASSWORD 'secret'",
        "CREATE ROLE team ROLE alice",
        r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"limits": [{"max": 1000}, {"max": 1000, "per": "address"}]}'"#,
        r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"max": 1000, "per": "group"}'"#,
        r#"SECURITY LABEL FOR session_limit ON DATABASE postgres IS '{"max": 1000}'"#,
    ]);
    let mut all = vec![
        ("no library", Cluster::plain(server, &[])),
        (
            "a hook that does nothing",
            Cluster::plain(
                server,
                &[("shared_preload_libraries", "session_limit_noop")],
            ),
        ),
        ("CONNECTION LIMIT alone", Cluster::plain(server, &[])),
        (
            "session_limit, off",
            library(&[("session_limit.enforcement", "off")]),
        ),
        (
            "session_limit, max_sessions_per_role",
            library(&[("session_limit.max_sessions_per_role", "1000")]),
        ),
        ("session_limit, role, group and database labels", labels),
    ];
    if server.major >= 17 {
        all.push(("a login trigger that counts", Cluster::plain(server, &[])));
    }
    let variants = all.into_iter().map(|(name, cluster)| {
        if !name.contains("labels") {
            cluster.sql(&["CREATE ROLE alice LOGIN PASSWORD 'secret'"]);
        }
        match name {
            "CONNECTION LIMIT alone" => cluster.sql(&["ALTER ROLE alice CONNECTION LIMIT 1000"]),
            "a login trigger that counts" => cluster.sql(&[
                "CREATE FUNCTION count_sessions() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
                    IF (SELECT count(*) FROM pg_stat_activity WHERE usename = session_user) > 1000 THEN
                        RAISE EXCEPTION 'too many connections';
                    END IF; END $$",
                "CREATE EVENT TRIGGER count_sessions ON login EXECUTE FUNCTION count_sessions()",
            ]),
            _ => {}
        }
        cluster.require_passwords();
        // Its workers' CPU time would be counted.
        cluster.set(&[("autovacuum", "off")]);
        Variant {
            name,
            cluster,
            time: Default::default(),
            cpu: Default::default(),
            busy: Duration::ZERO,
        }
    });
    variants.collect()
}

impl Variant {
    fn start_again(&mut self) {
        self.cluster.stop(Stop::Fast);
        self.cluster.start_again();
        for way in 0..WAYS.len() {
            self.take_a_turn(way);
        }
        self.busy = Duration::ZERO;
    }

    fn take_a_turn(&mut self, way: usize) {
        let target = match way {
            0 => self.cluster.login_of("alice"),
            _ => Target {
                password: Some("secret".to_string()),
                ..self.cluster.tcp_login_of("alice")
            },
        };
        let start = Instant::now();
        for _ in 0..LOGINS {
            target.login().expect("room").close();
        }
        self.busy += start.elapsed();
        wait_for("the last backends to end", || {
            self.cluster
                .processes("postgres: alice")
                .is_empty()
                .then_some(())
        });
    }

    fn cpu(&self) -> f64 {
        self.cluster.cpu_of_children()
    }

    fn end_round(&mut self, way: usize, cpu_before: f64) {
        let per_login = 1000.0 / (TURNS * LOGINS) as f64;
        let time = std::mem::take(&mut self.busy);
        self.time[way].push(time.as_secs_f64() * per_login);
        self.cpu[way].push((self.cpu() - cpu_before) * per_login);
    }
}

fn report(server: &Server, rounds: usize, variants: &[Variant]) {
    let table = |(way, title): (usize, &&str)| {
        let mut table = Table::new(*title, variants.iter().map(|variant| variant.name));
        table.noise = Some(1);
        let first = &variants[0];
        let all = |figures: fn(&Variant) -> &[Figures; 2]| {
            variants.iter().map(move |it| figures(it)[way].clone())
        };
        let over = |figures: fn(&Variant) -> &[Figures; 2]| {
            let ratio = move |it| figures(it)[way].over(&figures(first)[way]);
            variants.iter().map(ratio)
        };
        table.column("CPU, ms", 3, Best::None, all(|it| &it.cpu));
        table
            .column("CPU, ratio", 3, Best::None, over(|it| &it.cpu))
            .picture();
        table.column("time, ms", 3, Best::None, all(|it| &it.time));
        table.column("time, ratio", 3, Best::None, over(|it| &it.time));
        table
    };
    bench::report(
        "login",
        server,
        format!(
            "{rounds} rounds of {} logins for each variant and way to log in",
            TURNS * LOGINS
        ),
        WAYS.iter().enumerate().map(table).collect(),
    );
}
