//! A PgBouncer before a throwaway cluster, gone when it is dropped, and when the bench dies.

use crate::client::{Endpoint, Target};
use crate::cluster::Cluster;
use crate::packages::{self, copy_once};
use crate::{place, wait_for};
use rustix::process::Pid;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Runs a program until its input ends, that is until the bench is no more.
const KEEPER: &str = r#"
trap '' INT HUP QUIT
"$1" "$2" </dev/null >/dev/null 2>&1 & pooler=$!
echo $pooler
exec >/dev/null
read -r _
kill -TERM $pooler 2>/dev/null
wait $pooler
"#;

pub struct Pooler {
    keeper: Child,
    pub pid: Pid,
    /// Of its socket, which is beside the server's.
    pub port: u16,
    /// To the pool, by its Unix-domain socket.
    pub target: Target,
}

impl Pooler {
    /// With a pool of so many sessions of this role, given to clients for a `transaction` or a `session`.
    pub fn start(cluster: &Cluster, role: &str, mode: &str, sessions: usize) -> Pooler {
        let dir = cluster.dir.display();
        let port = cluster.port ^ 1;
        let configuration = format!(
            "[databases]
            postgres = host={dir} port={} dbname=postgres user={role}
            [pgbouncer]
            unix_socket_dir = {dir}
            listen_port = {port}
            logfile = {dir}/pgbouncer.log
            auth_type = any
            pool_mode = {mode}
            default_pool_size = {sessions}
            max_client_conn = 1000
            query_wait_timeout = 0
            log_connections = 0
            log_disconnections = 0
            ",
            cluster.port
        );
        let file = cluster.dir.join("pgbouncer.ini");
        let lines = configuration.lines().map(|line| line.trim().to_string());
        fs::write(&file, lines.collect::<Vec<_>>().join("\n")).expect("write pgbouncer.ini");
        let (program, libraries) = pgbouncer();
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "sh"]).arg(program).arg(file);
        keeper.env("LD_LIBRARY_PATH", libraries);
        let keeper = place::as_server_user(&mut keeper)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut keeper = keeper.expect("run sh");
        let pid = first_line(&mut keeper);
        let socket = cluster.dir.join(format!(".s.PGSQL.{port}"));
        wait_for("PgBouncer to accept connections", || {
            UnixStream::connect(&socket).ok()
        });
        Pooler {
            keeper,
            pid: pid
                .parse()
                .ok()
                .and_then(Pid::from_raw)
                .expect("a process ID"),
            port,
            target: Target {
                endpoint: Endpoint::Unix(socket),
                ..cluster.login_of(role)
            },
        }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

fn first_line(child: &mut Child) -> String {
    use std::io::{BufRead, BufReader};
    let output = child.stdout.take().expect("the keeper's output");
    let mut lines = BufReader::new(output).lines();
    lines.next().expect("a line").expect("a line")
}

/// What it says of itself.
pub fn version() -> String {
    let (program, libraries) = pgbouncer();
    let mut command = Command::new(program);
    command.arg("--version").env("LD_LIBRARY_PATH", libraries);
    let printed = crate::run(place::as_server_user(&mut command));
    printed.lines().next().unwrap_or_default().to_string()
}

/// The program, where the servers' user can read it, and the folder of its libraries.
fn pgbouncer() -> (PathBuf, PathBuf) {
    let _lock = packages::lock();
    let copy = place::servers().join("pgbouncer");
    let unpacked = packages::pgbouncer().unwrap_or_else(|why| panic!("{why}"));
    copy_once(&unpacked, &copy);
    (
        copy.join("usr/sbin/pgbouncer"),
        packages::debian_libraries(&copy),
    )
}
