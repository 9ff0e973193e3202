//! One login for each user of an application whose users share one role of the database, through a PgBouncer in
//! transaction mode: whoever has a seat has logged in.

use crate::{LOGINS, expect, print_error, psql, title};
use pg_test::client::{Session, Target};
use pg_test::cluster::{Cluster, printed};
use pg_test::pooler::{self, Pooler};
use pg_test::server::Server;
use pg_test::{say, wait_for};
use std::process::Command;
use std::thread;

const ROLE: &str = "webapp";
/// Of the pool.
const SESSIONS: usize = 20;

pub fn show(server: &Server) {
    say("starting a cluster");
    let cluster = Cluster::start(server, &[]);

    title("An administrator lets the application take seats");
    for sql in [
        "CREATE EXTENSION session_limit",
        "CREATE ROLE webapp LOGIN",
        "GRANT EXECUTE ON FUNCTION session_limit.take_seat, session_limit.renew_seat, session_limit.release_seat TO webapp",
    ] {
        expect(!psql(&cluster, "postgres", sql).contains("ERROR"));
    }
    let application = Application::start(&cluster);

    title("bob logs in: the application takes a seat with his name, for 30 minutes");
    let first = application.take("SELECT session_limit.take_seat('bob', ttl => '30 min')");

    title("A second login of bob is refused");
    let refusal = application.psql(&[
        "SELECT session_limit.take_seat('bob', ttl => '30 min')",
        r"\echo SQLSTATE :SQLSTATE",
    ]);
    expect(refusal.contains(r#"ERROR:  too many seats for key "bob""#));
    expect(refusal.contains("DETAIL:  The limit is 1 seat; 1 is in use: pid "));
    expect(refusal.contains("SQLSTATE 53300"));

    title("Each request of bob renews his seat");
    expect(application.says(&format!("SELECT session_limit.renew_seat('{first}')"), "t"));

    newest_wins(&application, &first);
    lapse(&application);

    title(&format!(
        "{LOGINS} logins at the same moment, of a customer with 5 licences: exactly 5 get a seat"
    ));
    storm(&application);

    title("A transaction that is rolled back keeps its seat: only release_seat gives it back");
    let took = application.psql(&[
        "BEGIN",
        "SELECT session_limit.take_seat('dave', ttl => '30 min')",
        "ROLLBACK",
    ]);
    let seat = seat_in(&took);
    let sql =
        "SELECT key, expires_at - taken_at AS ttl FROM session_limit.seats WHERE key = 'dave'";
    expect(application.psql(&[sql]).contains(" dave "));
    expect(application.says(&format!("SELECT session_limit.release_seat('{seat}')"), "t"));
    expect(application.psql(&[sql]).contains("(0 rows)"));
}

/// `first` is bob's seat.
fn newest_wins(application: &Application, first: &str) {
    title("Where the newest login is to win, it takes the seat over");
    let newest = application.take(
        "SELECT session_limit.take_seat('bob', ttl => '30 min', max_wait => '0', on_excess => 'replace_oldest')",
    );

    title("The old login finds out with its next request");
    expect(application.says(&format!("SELECT session_limit.renew_seat('{first}')"), "f"));
    expect(application.says(&format!("SELECT session_limit.renew_seat('{newest}')"), "t"));

    title("bob logs out, and can log in again at once");
    expect(application.says(
        &format!("SELECT session_limit.release_seat('{newest}')"),
        "t",
    ));
    application.take("SELECT session_limit.take_seat('bob', ttl => '30 min', max_wait => '0')");
}

fn lapse(application: &Application) {
    title("carol is gone without logging out, and nobody renews her seat");
    application.take("SELECT session_limit.take_seat('carol', ttl => '2 s')");

    title("Two logins of carol wait until it lapses, and get it in the order in which they came");
    let sql = "SELECT session_limit.take_seat('carol', ttl => '2 s', max_wait => '1 min') AS seat, clock_timestamp() AS got_at";
    let mut superuser = application.cluster.superuser();
    let waiting = "SELECT count(*) FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND wait_event IN ('SessionLimitSeat', 'Extension')";
    let answers: Vec<String> = thread::scope(|scope| {
        let mut clients = Vec::new();
        for number in 1..=2 {
            println!("{} &", application.shown(&[sql]));
            let mut client = application.command(&[sql]);
            clients.push(scope.spawn(move || printed(&mut client)));
            wait_for("the call to wait", || {
                let waiting: usize = superuser.value(waiting).parse().ok()?;
                let answered = clients.iter().filter(|client| client.is_finished());
                (waiting + answered.count() >= number).then_some(())
            });
        }
        let answers = clients.into_iter().map(|client| client.join());
        answers.map(|answer| answer.expect("a client")).collect()
    });
    superuser.end();
    let got_at = |answer: &String| {
        let row = answer.lines().nth(2).unwrap_or_default();
        let time = row.split('|').nth(1).unwrap_or_default();
        time.trim().to_string()
    };
    for (answer, which) in answers.iter().zip(["first", "second"]) {
        println!("\nthe {which}:\n{}", answer.trim_end());
        expect(answer.contains("(1 row)"));
    }
    expect(got_at(&answers[0]) < got_at(&answers[1]));
}

fn storm(application: &Application) {
    let sql = "SELECT session_limit.take_seat('customer 1', max => 5, ttl => '30 min')";
    println!("{LOGINS} clients: {sql}");
    let connections = application.target().storm(LOGINS).into_iter();
    let clients: Vec<Session> = connections.map(|it| it.expect("a connection")).collect();
    let answers: Vec<_> = thread::scope(|scope| {
        let take = |mut client: Session| scope.spawn(move || client.try_query(sql));
        let calls: Vec<_> = clients.into_iter().map(take).collect();
        let answers = calls.into_iter().map(|call| call.join().expect("a client"));
        answers.collect()
    });
    let taken = answers.iter().filter(|answer| answer.is_ok()).count();
    println!(
        "got a seat: {taken}, refused: {}, for example:\n",
        LOGINS - taken
    );
    let refusals = || answers.iter().filter_map(|answer| answer.as_ref().err());
    if let Some(refusal) = refusals().next() {
        print_error("ERROR", refusal);
    }
    println!();
    let seats = application.psql(&[
        "SELECT key, max, count(*) FROM session_limit.seats GROUP BY key, max ORDER BY key",
    ]);
    expect(taken == 5 && refusals().all(|refusal| refusal.sqlstate() == "53300"));
    expect(seats.contains("customer 1 |   5 |     5"));
}

/// The application, each of whose requests is a client of its own.
struct Application<'a> {
    cluster: &'a Cluster,
    /// None: its clients connect to the server.
    pooler: Option<Pooler>,
}

impl Application<'_> {
    fn start(cluster: &Cluster) -> Application<'_> {
        println!();
        let pooler = match Pooler::try_start(cluster, ROLE, "transaction", SESSIONS) {
            Ok(pooler) => {
                println!(
                    "The application's clients come through {} at port {}, with pool_mode = transaction and {SESSIONS} server sessions.",
                    pooler::version(),
                    pooler.port
                );
                Some(pooler)
            }
            Err(why) => {
                let why = why.lines().last().unwrap_or_default();
                println!(
                    "No PgBouncer can be had here, so the application's clients connect to the server: {why}"
                );
                None
            }
        };
        Application { cluster, pooler }
    }

    fn port(&self) -> u16 {
        let pooler = self.pooler.as_ref();
        pooler.map_or(self.cluster.port, |pooler| pooler.port)
    }

    fn target(&self) -> Target {
        let pooler = self.pooler.as_ref();
        pooler.map_or_else(|| self.cluster.login_of(ROLE), |it| it.target.clone())
    }

    fn command(&self, commands: &[&str]) -> Command {
        let mut psql = self.cluster.client("psql");
        psql.env("PGPORT", self.port().to_string());
        psql.env("PGUSER", ROLE).arg("-X");
        for command in commands {
            psql.args(["-c", command]);
        }
        psql
    }

    fn shown(&self, commands: &[&str]) -> String {
        let commands: String = commands
            .iter()
            .map(|command| format!(" -c \"{command}\""))
            .collect();
        format!("$ psql -p {} -U {ROLE}{commands}", self.port())
    }

    /// Runs SQL with a psql and shows both.
    fn psql(&self, commands: &[&str]) -> String {
        println!("{}", self.shown(commands));
        let printed = printed(&mut self.command(commands));
        println!("{}", printed.trim_end());
        printed
    }

    /// Takes a seat, and shows it.
    fn take(&self, sql: &str) -> String {
        seat_in(&self.psql(&[sql])).to_string()
    }

    /// Whether the answer is this value; shows it.
    fn says(&self, sql: &str, value: &str) -> bool {
        let printed = self.psql(&[sql]);
        printed.lines().any(|line| line.trim() == value)
    }
}

/// The seat that psql has printed.
fn seat_in(printed: &str) -> &str {
    let is_uuid = |line: &&str| line.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    let seat = printed.lines().map(str::trim).find(is_uuid);
    expect(seat.is_some());
    seat.unwrap_or_default()
}
