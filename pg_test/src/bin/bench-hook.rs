//! `cargo bench-hook`: how long a login spends in the library, by the clock that `session_limit.stats` shows.
//!
//! The variants take turns in random order, a login each. What is measured is what one login adds to
//! `decision_us`; a new process each time, as logins are.

use pg_test::bench::{self, Best, Figures, Table};
use pg_test::client::Session;
use pg_test::cluster::Cluster;
use pg_test::say;
use pg_test::server::{self, Server};

struct Variant {
    name: &'static str,
    cluster: Cluster,
    superuser: Session,
    figures: Figures,
}

fn main() {
    let logins = bench::rounds(1000, 100);
    for server in server::servers() {
        let mut variants = variants(&server);
        say(format_args!(
            "PostgreSQL {}: {logins} logins each",
            server.major
        ));
        for login in 1..=logins {
            for turn in bench::shuffled(variants.len()) {
                variants[turn].take_a_turn();
            }
            if login % 100 == 0 {
                say(format_args!("{login} of {logins}"));
            }
        }
        report(&server, logins, &variants);
    }
}

fn variants(server: &Server) -> Vec<Variant> {
    let setting = [("session_limit.max_sessions_per_role", "1000")];
    let all: [(&str, Cluster, &[&str]); 5] = [
        (
            "off",
            Cluster::start(server, &[("session_limit.enforcement", "off")]),
            &[],
        ),
        (
            "max_sessions_per_role",
            Cluster::start(server, &setting),
            &[],
        ),
        (
            "CONNECTION LIMIT",
            Cluster::start(server, &[]),
            &["ALTER ROLE alice CONNECTION LIMIT 1000"],
        ),
        (
            "a label on the role",
            Cluster::start(server, &[]),
            &[r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"max": 1000}'"#],
        ),
        (
            "labels on role, group and database",
            Cluster::start(server, &[]),
            &[
                "CREATE ROLE team ROLE alice",
                r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"limits": [{"max": 1000}, {"max": 1000, "per": "address"}]}'"#,
                r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"max": 1000, "per": "group"}'"#,
                r#"SECURITY LABEL FOR session_limit ON DATABASE postgres IS '{"max": 1000}'"#,
            ],
        ),
    ];
    let variants = all.into_iter().map(|(name, cluster, statements)| {
        cluster.sql(&["CREATE EXTENSION session_limit", "CREATE ROLE alice LOGIN"]);
        cluster.sql(statements);
        cluster.login_of("alice").login().expect("room").end();
        Variant {
            name,
            superuser: cluster.superuser(),
            cluster,
            figures: Figures::default(),
        }
    });
    variants.collect()
}

impl Variant {
    fn take_a_turn(&mut self) {
        let before = self.microseconds();
        self.cluster
            .tcp_login_of("alice")
            .login()
            .expect("room")
            .end();
        let after = self.microseconds();
        self.figures.push(after - before);
    }

    fn microseconds(&mut self) -> f64 {
        let sql = "SELECT decision_us FROM session_limit.stats WHERE usename = 'alice'";
        self.superuser.value(sql).parse().expect("a number")
    }
}

fn report(server: &Server, logins: usize, variants: &[Variant]) {
    let mut table = Table::new("a login in the hook", variants.iter().map(|it| it.name));
    let figures = variants.iter().map(|it| it.figures.clone());
    table.column("time, µs", 0, Best::None, figures).picture();
    let slowest = variants
        .iter()
        .map(|it| Figures::from_iter([it.figures.part(99)]));
    table.column("99 %, µs", 0, Best::None, slowest);
    let measured = format!("{logins} logins for each variant, a login each in turn");
    bench::report("hook", server, measured, vec![table]);
}
