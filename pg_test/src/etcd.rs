//! A throwaway etcd of one or more members, gone when it is dropped, and when the bench dies.

use crate::cluster::free_port;
use crate::kept::{self, Kept};
use crate::packages::{self, copy_once};
use crate::{place, run, try_run, wait_for};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustix::process::{Signal, kill_process, test_kill_process};
use serde_json::Value;
use std::fs;
use std::io::{self, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

pub struct Etcd {
    programs: PathBuf,
    /// Holds the members' data and logs, and the certificates.
    pub dir: PathBuf,
    security: Security,
    /// Of each member, besides the usual ones.
    options: &'static [&'static str],
    members: Vec<Member>,
    auth: bool,
}

/// Who may connect to the members, and how.
#[derive(Clone, Copy, PartialEq)]
pub enum Security {
    Open,
    Tls,
    /// TLS, for clients that have a certificate only.
    ClientCertificates,
}

struct Member {
    /// For clients, and for the other members.
    ports: [u16; 2],
    /// None: it is not running.
    process: Option<Kept>,
    stopped: bool,
}

/// Whom [`Etcd::require_users`] makes, and the password.
pub const USER: &str = "pg";
pub const PASSWORD: &str = "secret";

/// Members are started anew with other ports if someone else takes one of theirs first.
const TRIES: usize = 10;

impl Etcd {
    /// With so many members; or why there is no etcd that runs here.
    pub fn try_start(members: usize, security: Security) -> Result<Etcd, String> {
        Etcd::try_start_with(members, security, &[])
    }

    /// The same, with these options of etcd besides.
    pub fn try_start_with(
        members: usize,
        security: Security,
        options: &'static [&'static str],
    ) -> Result<Etcd, String> {
        let programs = programs()?;
        for _ in 0..TRIES {
            let mut etcd = Etcd::new(programs.clone(), members, security);
            etcd.options = options;
            for member in 0..members {
                etcd.launch(member);
            }
            if etcd.is_up() {
                return Ok(etcd);
            }
        }
        panic!("no ports are free");
    }

    fn new(programs: PathBuf, members: usize, security: Security) -> Etcd {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = place::servers().join(format!("run/{}-etcd{number}", std::process::id()));
        place::server_dir(&dir);
        // Away from those of the clusters, which begin at 0: one that is killed is to find its port free when it is back.
        let mut ports = (0..).map(|port| free_port(1000 + 10 * number + port));
        let mut port = || ports.next().expect("a port");
        let member = |_| Member {
            ports: [port(), port()],
            process: None,
            stopped: false,
        };
        let members = (0..members).map(member).collect();
        if security != Security::Open {
            write_certificates(&dir);
        }
        Etcd {
            programs,
            dir,
            security,
            options: &[],
            members,
            auth: false,
        }
    }

    /// Starts a member without waiting for it, with the settings that a DBA should make.
    fn launch(&mut self, member: usize) {
        let name = |member: usize| format!("m{member}");
        let peer = |member: usize| format!("http://127.0.0.1:{}", self.members[member].ports[1]);
        let all =
            (0..self.members.len()).map(|member| format!("{}={}", name(member), peer(member)));
        let all = all.collect::<Vec<_>>().join(",");
        let log = self.dir.join(name(member)).with_extension("log");
        let mut keeper = kept::keeper(&log.display().to_string());
        keeper.arg(self.programs.join("etcd"));
        keeper.arg("--data-dir").arg(self.dir.join(name(member)));
        let (client, peer) = (self.endpoint(member), peer(member));
        keeper.args(["--name", &name(member), "--initial-cluster", &all]);
        keeper.args(["--listen-client-urls", &client]);
        keeper.args(["--advertise-client-urls", &client]);
        keeper.args(["--listen-peer-urls", &peer]);
        keeper.args(["--initial-advertise-peer-urls", &peer]);
        keeper.args(["--auto-compaction-mode", "periodic"]);
        keeper.args(["--auto-compaction-retention", "10m"]);
        keeper.args(self.options);
        if self.security != Security::Open {
            keeper.arg("--cert-file").arg(self.file("server.pem"));
            keeper.arg("--key-file").arg(self.file("server.key"));
        }
        if self.security == Security::ClientCertificates {
            keeper.arg("--client-cert-auth");
            keeper.arg("--trusted-ca-file").arg(self.file("ca.pem"));
        }
        without_settings(place::as_server_user(&mut keeper));
        // Etcd 3.4 runs there only if it is told to.
        keeper.env("ETCD_UNSUPPORTED_ARCH", "arm64");
        let process = Kept::start(&mut keeper);
        self.members[member].process = Some(process);
        self.members[member].stopped = false;
    }

    /// Waits until all members have found each other; false if someone else has a port of theirs.
    fn is_up(&self) -> bool {
        wait_for("etcd to start or to give up", || {
            let ended = |member: &Member| {
                let process = member.process.as_ref();
                process.is_none_or(|process| test_kill_process(process.pid).is_err())
            };
            if let Some(member) = self.members.iter().position(ended) {
                let log = fs::read_to_string(self.dir.join(format!("m{member}.log")));
                let log = log.unwrap_or_default();
                assert!(log.contains("address already in use"), "etcd ends:\n{log}");
                return Some(false);
            }
            let listens =
                |member: &Member| TcpStream::connect(("127.0.0.1", member.ports[0])).is_ok();
            let all = self.members.iter().all(listens);
            let healthy = all && try_run(self.ctl().args(["endpoint", "health"])).is_ok();
            healthy.then_some(true)
        })
    }

    /// What clients are told to connect to: one of each member.
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len())
            .map(|member| self.endpoint(member))
            .collect()
    }

    /// Where the members listen for clients.
    pub fn ports(&self) -> Vec<u16> {
        self.members.iter().map(|member| member.ports[0]).collect()
    }

    pub fn endpoint(&self, member: usize) -> String {
        let scheme = match self.security {
            Security::Open => "http",
            _ => "https",
        };
        format!("{scheme}://127.0.0.1:{}", self.members[member].ports[0])
    }

    /// `ca.pem`; `client.pem` with its `client.key`; `named.pem` with `named.key`, which has a common name.
    pub fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// The member that leads, and answers.
    pub fn leader(&self) -> usize {
        wait_for("a leader", || {
            (0..self.members.len()).find(|member| self.leads(*member))
        })
    }

    fn leads(&self, member: usize) -> bool {
        let Member {
            process, stopped, ..
        } = &self.members[member];
        if process.is_none() || *stopped {
            return false;
        }
        let mut ctl = self.ctl_of(&[self.endpoint(member)]);
        let status = try_run(ctl.args(["endpoint", "status", "--write-out", "json"]));
        let status: Value = serde_json::from_str(&status.unwrap_or_default()).unwrap_or_default();
        let status = &status[0]["Status"];
        status["leader"].is_u64() && status["leader"] == status["header"]["member_id"]
    }

    /// As a machine does that loses its power.
    pub fn kill(&mut self, member: usize) {
        self.signal(member, Signal::KILL);
        self.members[member].process = None;
    }

    /// As a machine does that hangs: its connections stay, and nothing is answered.
    pub fn stop(&mut self, member: usize) {
        self.signal(member, Signal::STOP);
        self.members[member].stopped = true;
    }

    pub fn go_on(&mut self, member: usize) {
        self.signal(member, Signal::CONT);
        self.members[member].stopped = false;
    }

    /// Starts members with the data that they have, and returns when they answer. They are ended first if they run.
    pub fn restart(&mut self, members: &[usize]) {
        for member in members {
            self.members[*member].process = None;
        }
        for member in members {
            self.launch(*member);
        }
        let endpoints: Vec<String> = members
            .iter()
            .map(|member| self.endpoint(*member))
            .collect();
        wait_for("members to start", || {
            try_run(self.ctl_of(&endpoints).args(["endpoint", "health"])).ok()
        });
    }

    /// How many transactions clients have asked for, those that changed nothing among them, of the members that run, since
    /// these were started.
    pub fn transactions(&self) -> f64 {
        let running = self.members.iter().filter(|it| it.process.is_some());
        running.map(|member| transactions(member.ports[0])).sum()
    }

    fn signal(&self, member: usize, signal: Signal) {
        let process = self.members[member].process.as_ref();
        let process = process.expect("a member that runs");
        kill_process(process.pid, signal).expect("signal a member");
    }

    /// From now on clients log in: as [`USER`], with [`PASSWORD`], who may read and write below this prefix and nothing else.
    pub fn require_users(&mut self, prefix: &str) {
        for words in [
            "user add root:root",
            "role add root",
            "user grant-role root root",
            &format!("user add {USER}:{PASSWORD}"),
            &format!("role add {USER}"),
            &format!("role grant-permission {USER} --prefix=true readwrite {prefix}"),
            &format!("user grant-role {USER} {USER}"),
            "auth enable",
        ] {
            run(self.ctl().args(words.split(' ')));
        }
        self.auth = true;
    }

    /// Runs this text of a document in a shell in which `etcdctl` finds this etcd.
    pub fn shell(&self, script: &str) -> String {
        let programs = self.programs.display();
        let mut shell = Command::new("sh");
        shell.args(["-e", "-c", &format!("PATH={programs}:$PATH\n{script}")]);
        without_settings(&mut shell);
        shell.env("ETCDCTL_ENDPOINTS", self.endpoints().join(","));
        run(&mut shell)
    }

    /// `etcdctl` for all members, as root.
    pub fn ctl(&self) -> Command {
        self.ctl_of(&self.endpoints())
    }

    fn ctl_of(&self, endpoints: &[String]) -> Command {
        let mut ctl = Command::new(self.programs.join("etcdctl"));
        ctl.args(["--endpoints", &endpoints.join(",")]);
        if self.security != Security::Open {
            ctl.args(["--cacert", &self.file("ca.pem")]);
        }
        if self.security == Security::ClientCertificates {
            ctl.args(["--cert", &self.file("client.pem")]);
            ctl.args(["--key", &self.file("client.key")]);
        }
        if self.auth {
            ctl.args(["--user", "root:root"]);
        }
        without_settings(&mut ctl);
        ctl
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // A member that ends in peace looks for a successor first, in vain if it is the last.
        for member in 0..self.members.len() {
            if self.members[member].process.is_some() {
                self.kill(member);
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// By a member's own count.
fn transactions(port: u16) -> f64 {
    let metrics = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        io::read_to_string(stream)
    };
    let metrics = metrics().expect("the metrics of a member");
    let counts = metrics.lines().filter(|line| {
        line.starts_with("grpc_server_handled_total{") && line.contains("grpc_method=\"Txn\"")
    });
    let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    counts.sum()
}

/// The folder of the programs, where the servers' user can read it.
fn programs() -> Result<PathBuf, String> {
    let _lock = packages::lock();
    let copy = place::servers().join("etcd");
    copy_once(&packages::etcd()?, &copy);
    Ok(copy.join("usr/bin"))
}

/// What is in the caller's environment is not meant for this etcd.
fn without_settings(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCD") {
            command.env_remove(name);
        }
    }
    command
}

/// An authority, and what it has signed. Only one of the certificates has a common name: etcd takes it for a user's where users
/// log in, and its gateway refuses it then. The gateway is a client itself, with the members' certificate.
fn write_certificates(dir: &Path) {
    let write = |name: &str, text: &str| fs::write(dir.join(name), text).expect("write a file");
    let key = || KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, key()).expect("a certificate");
    write("ca.pem", &authority.pem());
    for (name, common_name) in [("server", None), ("client", None), ("named", Some(USER))] {
        let mut params = CertificateParams::new(["127.0.0.1".to_string(), "localhost".to_string()])
            .expect("names for a certificate");
        params.distinguished_name = DistinguishedName::new();
        if let Some(common_name) = common_name {
            let of = DnType::CommonName;
            params.distinguished_name.push(of, common_name);
        }
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = key();
        let certificate = params.signed_by(&key, &authority).expect("a certificate");
        write(&format!("{name}.pem"), &certificate.pem());
        write(&format!("{name}.key"), &key.serialize_pem());
    }
}
