//! A PgBouncer before a throwaway cluster, gone when it is dropped, and when the bench dies.

use crate::client::{Endpoint, Target};
use crate::cluster::Cluster;
use crate::kept::{self, Kept};
use crate::packages::{self, copy_once};
use crate::{place, try_run, wait_for};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

pub struct Pooler {
    pub process: Kept,
    /// Of its socket, which is beside the server's.
    pub port: u16,
    /// To the pool, by its Unix-domain socket.
    pub target: Target,
}

impl Pooler {
    /// With a pool of so many sessions of this role, given to clients for a `transaction` or a `session`.
    pub fn start(cluster: &Cluster, role: &str, mode: &str, sessions: usize) -> Pooler {
        Pooler::try_start(cluster, role, mode, sessions).unwrap_or_else(|why| panic!("{why}"))
    }

    /// The same; else why there is no PgBouncer that runs here.
    pub fn try_start(
        cluster: &Cluster,
        role: &str,
        mode: &str,
        sessions: usize,
    ) -> Result<Pooler, String> {
        try_version()?;
        let (program, libraries) = pgbouncer()?;
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
        let mut keeper = kept::keeper("/dev/null");
        keeper.arg(program).arg(file);
        keeper.env("LD_LIBRARY_PATH", libraries);
        let process = Kept::start(place::as_server_user(&mut keeper));
        let socket = cluster.dir.join(format!(".s.PGSQL.{port}"));
        wait_for("PgBouncer to accept connections", || {
            UnixStream::connect(&socket).ok()
        });
        Ok(Pooler {
            process,
            port,
            target: Target {
                endpoint: Endpoint::Unix(socket),
                ..cluster.login_of(role)
            },
        })
    }
}

/// What it says of itself.
pub fn version() -> String {
    try_version().unwrap_or_else(|why| panic!("{why}"))
}

fn try_version() -> Result<String, String> {
    let (program, libraries) = pgbouncer()?;
    let mut command = Command::new(program);
    command.arg("--version").env("LD_LIBRARY_PATH", libraries);
    let printed = try_run(place::as_server_user(&mut command))?;
    Ok(printed.lines().next().unwrap_or_default().to_string())
}

/// The program, where the servers' user can read it, and the folder of its libraries.
fn pgbouncer() -> Result<(PathBuf, PathBuf), String> {
    let _lock = packages::lock();
    let copy = place::servers().join("pgbouncer");
    let unpacked = packages::pgbouncer()?;
    copy_once(&unpacked, &copy);
    Ok((
        copy.join("usr/sbin/pgbouncer"),
        packages::debian_libraries(&copy),
    ))
}
