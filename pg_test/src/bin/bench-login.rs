//! `cargo bench-login`: what a login costs with the library, beside servers without it.
//!
//! Each variant is a server of its own; they take turns in random order. A turn is so many logins, one
//! after the other, over a Unix-domain socket with `trust` or over TCP with SCRAM; its figures are the time
//! by the client's clock, and the CPU time of the server's processes that have ended. The server with a
//! library whose hook does nothing says how much of a difference is noise.

use pg_test::bench::{self, Figures, Shuffle};
use pg_test::client::Target;
use pg_test::cluster::Cluster;
use pg_test::server::{self, Server};
use pg_test::{say, wait_for};
use serde_json::{Map, Value, json};
use std::time::Instant;

const ROUNDS: usize = 15;
const LOGINS: usize = 300;

struct Variant {
    name: &'static str,
    cluster: Cluster,
    /// For each way to log in.
    time: [Figures; 2],
    cpu: [Figures; 2],
}

const WAYS: [&str; 2] = ["trust, Unix-domain socket", "scram-sha-256, TCP"];

fn main() {
    for server in server::servers() {
        let mut variants = variants(&server);
        say(format_args!(
            "PostgreSQL {}: {ROUNDS} rounds of {LOGINS} logins each",
            server.major
        ));
        let mut shuffle = Shuffle::new();
        for round in 1..=ROUNDS {
            for way in 0..WAYS.len() {
                for turn in shuffle.order(variants.len()) {
                    variants[turn].take_a_turn(way);
                }
            }
            say(format_args!("{round} of {ROUNDS}"));
        }
        report(server.major, &variants);
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
        Variant {
            name,
            cluster,
            time: Default::default(),
            cpu: Default::default(),
        }
    });
    variants.collect()
}

impl Variant {
    fn take_a_turn(&mut self, way: usize) {
        let target = match way {
            0 => self.cluster.login_of("alice"),
            _ => Target {
                password: Some("secret".to_string()),
                ..self.cluster.tcp_login_of("alice")
            },
        };
        let (cpu, start) = (self.cluster.cpu_of_children(), Instant::now());
        for _ in 0..LOGINS {
            target.login().expect("room").close();
        }
        let time = start.elapsed();
        wait_for("the last backends to end", || {
            self.cluster
                .processes("postgres: alice")
                .is_empty()
                .then_some(())
        });
        let per_login = 1000.0 / LOGINS as f64;
        self.time[way].push(time.as_secs_f64() * per_login);
        self.cpu[way].push((self.cluster.cpu_of_children() - cpu) * per_login);
    }
}

fn report(major: u32, variants: &[Variant]) {
    let mut found = Map::new();
    for (way, title) in WAYS.iter().enumerate() {
        println!(
            "\nPostgreSQL {major}, {title}, {ROUNDS} rounds of {LOGINS} logins: a login's CPU and clock time, ms"
        );
        println!(
            "{:<50}{:>8}{:>8}{:>8}{:>8}{:>8}{:>8}",
            "", "CPU", "ratio", "10 %", "90 %", "time", "ratio"
        );
        let mut rows = Vec::new();
        for variant in variants {
            let cpu = variant.cpu[way].over(&variants[0].cpu[way]);
            let time = variant.time[way].over(&variants[0].time[way]);
            println!(
                "{:<50}{:>8.3}{:>8.3}{:>8.3}{:>8.3}{:>8.3}{:>8.3}",
                variant.name,
                variant.cpu[way].median(),
                cpu.median(),
                cpu.part(10),
                cpu.part(90),
                variant.time[way].median(),
                time.median()
            );
            rows.push(json!({
                "name": variant.name,
                "cpu_ms": variant.cpu[way].json(),
                "cpu_ratio": cpu.json(),
                "time_ms": variant.time[way].json(),
                "time_ratio": time.json(),
            }));
        }
        found.insert(title.to_string(), Value::Array(rows));
    }
    bench::keep(
        "login",
        major,
        json!({"rounds": ROUNDS, "logins": LOGINS, "ways": found}),
    );
}
