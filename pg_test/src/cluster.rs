//! A throwaway cluster: its own data directory, socket and port, gone when it is dropped, and when
//! the bench dies.

use crate::client::{Endpoint, Session, Target};
use crate::server::Server;
use crate::{place, run, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs a server until its input ends, that is until it is told to or the bench is no more; then it
/// leaves nothing behind. Ctrl-C, or closing the terminal, reaches the server, too, and must not end this first. SIGINT is a
/// fast shutdown; a server that is so young that it still ignores that one, as the shell has it, is
/// ended by SIGTERM, and one that is stuck by SIGQUIT.
const KEEPER: &str = r#"
trap '' INT HUP QUIT
"$1" -D "$2/data" </dev/null >>"$2/log" 2>&1 & server=$!
read -r answer
kill -TERM $server 2>/dev/null
kill -INT $server 2>/dev/null
(sleep 60 & nap=$!; trap 'kill $nap; exit' TERM; wait $nap; kill -QUIT $server; kill -CONT $server) 2>/dev/null & late=$!
wait $server
kill $late
[ "$answer" = keep ] || rm -rf "$2"
"#;

/// So many data directories of each server are kept to be used again.
const SPARES: usize = 4;

pub struct Cluster {
    pub server: Server,
    /// Holds the data directory, the socket and the log.
    pub dir: PathBuf,
    pub port: u16,
    keeper: Option<Child>,
    /// What is done to its processes; see `probe/stage.c`.
    stage: Option<File>,
}

/// How a server is stopped: the signal that it is sent.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    Fast,
    Immediate,
}

impl Cluster {
    /// A cluster with the extension preloaded and these settings besides.
    pub fn start(server: &Server, settings: &[(&str, &str)]) -> Cluster {
        let mut all = vec![("shared_preload_libraries", "session_limit")];
        all.extend(settings);
        Cluster::plain(server, &all)
    }

    /// The same, with a wall clock that can be set, and processes that can be stopped.
    pub fn on_stage(server: &Server, settings: &[(&str, &str)]) -> Cluster {
        let mut all = vec![("shared_preload_libraries", "session_limit")];
        all.extend(settings);
        let mut cluster = Cluster::configured(server, &all);
        let stage = File::create(cluster.dir.join("stage")).expect("create a file");
        cluster.stage = Some(stage);
        cluster.direct(0, false);
        cluster.start_on_a_free_port();
        cluster
    }

    /// From now on the wall clock is ahead by so many seconds, and a login stops when it has decided whose place it takes,
    /// before it looks whether its client is still there.
    pub fn direct(&self, ahead: i64, stop_before_look: bool) {
        let words = [ahead, i64::from(stop_before_look)].map(i64::to_ne_bytes);
        let stage = self.stage.as_ref().expect("a cluster on stage");
        stage
            .write_all_at(&words.concat(), 0)
            .expect("write a file");
    }

    /// A cluster with these settings only.
    pub fn plain(server: &Server, settings: &[(&str, &str)]) -> Cluster {
        let mut cluster = Cluster::configured(server, settings);
        cluster.start_on_a_free_port();
        cluster
    }

    fn configured(server: &Server, settings: &[(&str, &str)]) -> Cluster {
        let cluster = Cluster::new(server);
        cluster.copy_template();
        let mut configuration: Vec<(&str, &str)> = vec![
            ("listen_addresses", "127.0.0.1"),
            ("fsync", "off"),
            ("shared_buffers", "16MB"),
            ("max_connections", "80"),
            ("log_line_prefix", "%m [%p] "),
        ];
        let (port, dir) = (cluster.port.to_string(), cluster.dir.display().to_string());
        configuration.extend([
            ("port", port.as_str()),
            ("unix_socket_directories", dir.as_str()),
        ]);
        configuration.extend(settings);
        cluster.append("postgresql.conf", &lines(&configuration));
        // initdb lets in 127.0.0.1 only.
        cluster.append("pg_hba.conf", "host all all 127.0.0.0/8 trust\n");
        cluster
    }

    /// A streaming standby of another cluster, with its settings.
    pub fn standby_of(primary: &Cluster) -> Cluster {
        Cluster::standby_with(primary, &[])
    }

    /// The same, with these settings of its own.
    pub fn standby_with(primary: &Cluster, settings: &[(&str, &str)]) -> Cluster {
        let mut standby = Cluster::new(&primary.server);
        run(primary
            .client("pg_basebackup")
            .args(["-R", "-c", "fast", "-D"])
            .arg(standby.dir.join("data")));
        let (port, dir) = (standby.port, standby.dir.display());
        let own = format!("port = {port}\nunix_socket_directories = '{dir}'\n");
        standby.append("postgresql.conf", &own);
        standby.append("postgresql.conf", &lines(settings));
        standby.start_on_a_free_port();
        standby
    }

    fn new(server: &Server) -> Cluster {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let runs = place::servers().join("run");
        place::server_dir(&runs);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        if number == 0 {
            remove_leftovers(&runs);
        }
        let dir = runs.join(format!("{}-{number}", std::process::id()));
        place::server_dir(&dir);
        Cluster {
            server: server.clone(),
            dir,
            port: free_port(number),
            keeper: None,
            stage: None,
        }
    }

    /// Makes the data directory, over one that was used before if there is one: ext4 makes a thousand files seven times as
    /// slowly when others were removed within the last minute.
    fn copy_template(&self) {
        let (template, data) = (&self.server.template, self.dir.join("data"));
        // Whoever comes second for one does not find it any more.
        let takes = |spare: PathBuf| fs::rename(spare, &data).is_ok();
        if self.spares().into_iter().any(takes) {
            remove_others(&data, template);
        }
        run(Command::new("cp").arg("-afT").arg(template).arg(&data));
    }

    /// Keeps the data directory to be used again, if it is one of few.
    fn keep_data(&self) {
        let data = self.dir.join("data");
        // A server that was killed may have left processes behind.
        if data.join("postmaster.pid").exists() || self.spares().len() >= SPARES {
            return;
        }
        let folder = self.spare_folder();
        let name = self.dir.file_name().unwrap_or_default();
        // At worst it is removed.
        let _ = fs::create_dir_all(&folder).and_then(|()| fs::rename(data, folder.join(name)));
    }

    fn spares(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.spare_folder()).into_iter().flatten();
        entries.flatten().map(|entry| entry.path()).collect()
    }

    fn spare_folder(&self) -> PathBuf {
        self.server.template.with_file_name("spare")
    }

    /// The first start: someone else may have taken the port since it was found to be free.
    fn start_on_a_free_port(&mut self) {
        for another in 1.. {
            let started = self.starts();
            let log = self.log();
            if !log.contains("could not bind IPv4 address") {
                assert!(started, "the server does not start:\n{log}");
                break;
            }
            assert!(another < 10, "no port is free:\n{log}");
            self.stop(Stop::Fast);
            fs::remove_file(self.dir.join("log")).expect("remove the log");
            self.port = free_port(another * 1000);
            self.append("postgresql.conf", &format!("port = {}\n", self.port));
        }
    }

    /// Starts the server and returns when it accepts connections, without having made one.
    pub fn start_again(&mut self) {
        assert!(self.starts(), "the server does not start:\n{}", self.log());
    }

    /// Whether the server, once started, accepts connections; else it has given up.
    pub fn starts(&mut self) -> bool {
        let mut keeper = Command::new("sh");
        keeper
            .args(["-c", KEEPER, "sh"])
            .arg(self.server.bin.join("postgres"))
            .arg(&self.dir);
        if let Some(libraries) = self
            .server
            .command("postgres")
            .get_envs()
            .find(|(name, _)| *name == "LD_LIBRARY_PATH")
        {
            keeper.env(libraries.0, libraries.1.unwrap_or_default());
        }
        // Whatever is in its environment, the server tells no client of the library's sources.
        keeper.env("RUST_BACKTRACE", "1");
        place::as_server_user(&mut keeper).stdin(Stdio::piped());
        if self.stage.is_some() {
            let library = self.server.library("session_limit_stage");
            keeper.env("LD_PRELOAD", library);
            keeper.env("SESSION_LIMIT_STAGE", self.dir.join("stage"));
        }
        // Whoever waits for the end of the bench's output is not to wait for the keeper.
        keeper.stdout(Stdio::null()).stderr(Stdio::null());
        let logged = self.log().len();
        self.keeper = Some(keeper.spawn().expect("run sh"));
        wait_for("the server to start or to give up", || {
            let lines = self.pid_file();
            let status = lines.as_ref().and_then(|lines| lines.get(7));
            if status.is_some_and(|status| status.trim() == "ready") {
                return Some(true);
            }
            let ended = lines.is_none() && self.log().split_at(logged).1.contains("is shut down");
            ended.then_some(false)
        })
    }

    /// Stops the server and keeps its data.
    pub fn stop(&mut self, how: Stop) {
        let Some(mut keeper) = self.keeper.take() else {
            return;
        };
        if let Stop::Immediate = how {
            self.signal(Signal::QUIT);
        }
        // Told to keep, the keeper stops the server the fast way; one that is stopping already
        // stays on its way.
        let told = keeper
            .stdin
            .take()
            .expect("the keeper's input")
            .write_all(b"keep\n");
        told.and_then(|()| keeper.wait())
            .expect("wait for the keeper");
    }

    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(self.pid(), signal);
    }

    /// The postmaster's process ID.
    pub fn pid(&self) -> Pid {
        let lines = self.pid_file().expect("a running server");
        let pid = lines
            .first()
            .and_then(|pid| pid.parse().ok())
            .and_then(Pid::from_raw);
        pid.expect("a process ID in postmaster.pid")
    }

    /// Seconds of CPU that the postmaster's children have used that have ended.
    pub fn cpu_of_children(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid().as_raw_nonzero()));
        let stat = stat.expect("the postmaster's figures");
        // The name, in parentheses, may have blanks in it; the figures are the 16th and 17th field.
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        let ticks: f64 = fields
            .split_whitespace()
            .skip(13)
            .take(2)
            .map(|ticks| ticks.parse::<f64>().expect("a number"))
            .sum();
        ticks / rustix::param::clock_ticks_per_second() as f64
    }

    /// Seconds of CPU that the server has used: the postmaster, its children, and those that have ended.
    pub fn cpu(&self) -> f64 {
        let alive = self.processes("").into_iter().chain([self.pid()]);
        alive.map(cpu).sum::<f64>() + self.cpu_of_children()
    }

    /// The server's processes whose title, as `ps` shows it, contains this, such as `
    /// authentication` for logins that are not done. Not every process is in `pg_stat_activity`.
    pub fn processes(&self, title: &str) -> Vec<Pid> {
        let parent = format!("PPid:\t{}\n", self.pid().as_raw_nonzero());
        let all = fs::read_dir("/proc")
            .expect("read /proc")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let child = |pid: &i32| {
            let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            read("cmdline").contains(title) && read("status").contains(&parent)
        };
        all.filter(child).filter_map(Pid::from_raw).collect()
    }

    fn pid_file(&self) -> Option<Vec<String>> {
        let text = fs::read_to_string(self.dir.join("data/postmaster.pid")).ok()?;
        Some(text.lines().map(String::from).collect())
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        let log = fs::read(self.dir.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Adds to a file of the data directory.
    pub fn append(&self, file: &str, text: &str) {
        let file = fs::OpenOptions::new()
            .append(true)
            .open(self.dir.join("data").join(file));
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .expect("write a configuration file");
    }

    /// Replaces a file of the data directory.
    pub fn write(&self, file: &str, text: &str) {
        fs::write(self.dir.join("data").join(file), text).expect("write a configuration file");
    }

    /// Makes a file of the data directory that only the server's user can read.
    pub fn write_secret(&self, file: &str, text: &str) {
        self.write(file, text);
        let path = self.dir.join("data").join(file);
        if let Some((user, group)) = place::server_user() {
            std::os::unix::fs::chown(&path, Some(user), Some(group)).expect("give it away");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("close it");
    }

    /// A login of this role to the database `postgres` over the Unix-domain socket.
    pub fn login_of(&self, user: &str) -> Target {
        Target {
            endpoint: Endpoint::Unix(self.dir.join(format!(".s.PGSQL.{}", self.port))),
            user: user.to_string(),
            database: Some("postgres".to_string()),
            password: None,
            options: Vec::new(),
        }
    }

    /// The same over TCP.
    pub fn tcp_login_of(&self, user: &str) -> Target {
        Target {
            endpoint: Endpoint::Tcp(self.port),
            ..self.login_of(user)
        }
    }

    /// The same over TCP, from this address of the loopback network.
    pub fn login_from(&self, user: &str, address: &str) -> Target {
        let address = address.parse().expect("a client address");
        Target {
            endpoint: Endpoint::TcpFrom(address, self.port),
            ..self.login_of(user)
        }
    }

    /// A session of the superuser.
    pub fn superuser(&self) -> Session {
        self.login_of("postgres")
            .login()
            .unwrap_or_else(|refusal| panic!("superuser: {refusal:?}\n{}", self.log()))
    }

    /// Runs SQL as the superuser, each statement in its own transaction. Like every helper here that
    /// needs a session, it leaves none behind, not even one that is leaving.
    pub fn sql(&self, statements: &[&str]) {
        let mut session = self.superuser();
        for statement in statements {
            session.query(statement);
        }
        session.end();
    }

    /// Changes settings and returns when new sessions have them.
    pub fn set(&self, settings: &[(&str, &str)]) {
        let mut session = self.superuser();
        for (name, value) in settings {
            session.query(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        }
        session.end();
        self.reload();
    }

    /// Reloads the configuration and returns when new sessions have it.
    pub fn reload(&self) {
        let before = self.load_time();
        self.signal(Signal::HUP);
        self.wait_for_reload(&before);
    }

    /// When the configuration was loaded that new sessions have.
    pub fn load_time(&self) -> String {
        let mut session = self.superuser();
        let time = session.value("SELECT pg_conf_load_time()");
        session.end();
        time
    }

    /// Waits until new sessions have another configuration than that of then.
    pub fn wait_for_reload(&self, before: &str) {
        wait_for("the reload", || (self.load_time() != before).then_some(()));
    }

    /// One of the server's client programs, told where the server is.
    pub fn client(&self, program: &str) -> Command {
        let mut command = self.server.command(program);
        command
            .env("PGHOST", &self.dir)
            .env("PGPORT", self.port.to_string());
        command
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command.stdin(Stdio::null());
        command
    }

    /// What psql prints of a query, with its errors, as this role over the Unix-domain socket.
    pub fn psql(&self, user: &str, sql: &str) -> String {
        printed(
            self.client("psql")
                .env("PGUSER", user)
                .args(["-X", "-c", sql]),
        )
    }

    /// The same over TCP, with a password, and nothing but the values.
    pub fn psql_with_password(&self, user: &str, password: &str, sql: &str) -> String {
        let mut psql = self.client("psql");
        psql.env("PGHOST", "127.0.0.1")
            .env("PGUSER", user)
            .env("PGPASSWORD", password);
        printed(psql.args(["-X", "-A", "-t", "-c", sql]))
    }

    /// From now on TCP needs a password.
    pub fn require_passwords(&self) {
        self.write(
            "pg_hba.conf",
            "local all all trust\nhost all all all scram-sha-256\n",
        );
        self.reload();
    }

    /// Waits until the server has so many processes with such a title. A login that was refused and a
    /// session that was ended hold one of the connections until their process is gone.
    pub fn wait_for_processes(&self, title: &str, number: usize) {
        wait_for(&format!("{number} processes \"{title}\""), || {
            (self.processes(title).len() == number).then_some(())
        });
    }

    /// Waits until neither a process nor a slot of this role is left, so the extension must have been
    /// created.
    pub fn wait_until_gone(&self, user: &str) {
        self.wait_for_processes(&format!("postgres: {user} "), 0);
        let mut session = self.superuser();
        let sql = format!("SELECT count(*) FROM session_limit.sessions WHERE usename = '{user}'");
        wait_for("sessions to end", || {
            (session.value(&sql) == "0").then_some(())
        });
        session.end();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop(Stop::Fast);
        self.keep_data();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Removes what is in the folder, and not in the other or not of the same type.
fn remove_others(folder: &Path, other: &Path) {
    for entry in fs::read_dir(folder).expect("read a folder").flatten() {
        let (path, other) = (entry.path(), other.join(entry.file_name()));
        let kind = entry.file_type().expect("its type");
        let is_same = fs::symlink_metadata(&other).is_ok_and(|it| it.file_type() == kind);
        let done = match (is_same, kind.is_dir()) {
            (true, true) => {
                remove_others(&path, &other);
                Ok(())
            }
            (true, false) => Ok(()),
            (false, true) => fs::remove_dir_all(&path),
            (false, false) => fs::remove_file(&path),
        };
        done.unwrap_or_else(|error| panic!("remove {}: {error}", path.display()));
    }
}

/// Seconds of CPU that a process has used, by its main thread; 0 if it is gone. Not in ticks, as elsewhere: many
/// processes that use little of one use much together.
pub fn cpu(pid: Pid) -> f64 {
    let file = format!("/proc/{}/schedstat", pid.as_raw_nonzero());
    let text = fs::read_to_string(file).unwrap_or_default();
    let nanoseconds = text.split_whitespace().next();
    let nanoseconds = nanoseconds.and_then(|text| text.parse::<f64>().ok());
    nanoseconds.unwrap_or(0.0) / 1e9
}

fn lines(settings: &[(&str, &str)]) -> String {
    let quote = |value: &str| value.replace('\'', "''");
    settings
        .iter()
        .map(|(name, value)| format!("{name} = '{}'\n", quote(value)))
        .collect()
}

/// A port that nobody listens on, nor will before the server does: it is none of those that the system
/// gives to clients and to whoever asks for any, and each cluster of a run begins to look elsewhere.
pub fn free_port(number: usize) -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let given = range.split_whitespace().next();
    let end = given
        .and_then(|port| port.parse().ok())
        .unwrap_or(32768_usize);
    let start = end.saturating_sub(20_000).max(1024);
    let first = std::process::id() as usize * 997 + number * 7;
    (first..first + (end - start))
        .map(|port| (start + port % (end - start)) as u16)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// What a client program prints, its errors first.
pub fn printed(command: &mut Command) -> String {
    let Output { stdout, stderr, .. } = command.output().expect("run a client");
    String::from_utf8_lossy(&[stderr, stdout].concat()).into_owned()
}

/// Removes what runs left behind that were killed together with their keepers.
fn remove_leftovers(runs: &Path) {
    for dir in fs::read_dir(runs).into_iter().flatten().flatten() {
        let name = dir.file_name().to_string_lossy().into_owned();
        let pid = name
            .split('-')
            .next()
            .and_then(|pid| pid.parse().ok())
            .and_then(Pid::from_raw);
        let dead = pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_err());
        if dead && !dir.path().join("data/postmaster.pid").exists() {
            let _ = fs::remove_dir_all(dir.path());
        }
    }
}
