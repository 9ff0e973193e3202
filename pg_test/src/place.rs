//! Where the bench keeps its things, and as whom it runs a server.
//!
//! All is under `target/pg_test` of the checkout. PostgreSQL refuses to run as root, so root runs
//! it as `nobody`; where `nobody` cannot enter the checkout, or its path is too long for a
//! Unix-domain socket's, servers and clusters are in the temporary directory instead.

use crate::{run, say};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The root of the checkout.
pub fn checkout() -> &'static Path {
    static CHECKOUT: OnceLock<PathBuf> = OnceLock::new();
    CHECKOUT.get_or_init(|| {
        // Cargo says where it is now, which need not be where it was built.
        let bench = std::env::var_os("CARGO_MANIFEST_DIR");
        let bench = bench.map_or(PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        bench
            .parent()
            .expect("the bench is a folder of the checkout")
            .to_path_buf()
    })
}

/// Downloads and builds.
pub fn target() -> PathBuf {
    checkout().join("target/pg_test")
}

/// The longest path below [`servers`] that a socket is made at.
const SOCKET_BELOW: usize = "/run/4194304-1000/.s.PGSQL.65535".len();

/// `sizeof(sockaddr_un.sun_path)`, less its final zero.
const SOCKET_PATH: usize = 107;

/// Servers and clusters.
pub fn servers() -> &'static Path {
    static SERVERS: OnceLock<PathBuf> = OnceLock::new();
    SERVERS.get_or_init(|| {
        let inside = target();
        fs::create_dir_all(&inside).expect("create target/pg_test");
        let fits = inside.as_os_str().len() + SOCKET_BELOW <= SOCKET_PATH;
        let open = |dir: &Path| fs::metadata(dir).is_ok_and(|dir| dir.mode() & 0o001 != 0);
        if fits && (server_user().is_none() || inside.ancestors().all(open)) {
            return inside;
        }
        let outside = outside();
        say(format_args!(
            "{} {}: servers go to {}",
            inside.display(),
            if fits {
                "cannot be entered by nobody"
            } else {
                "is too long for a socket's path"
            },
            outside.display()
        ));
        outside
    })
}

/// A directory for this checkout in the temporary one.
fn outside() -> PathBuf {
    let mut hash = DefaultHasher::new();
    checkout().hash(&mut hash);
    let user = rustix::process::getuid().as_raw();
    let name = format!("session_limit.{user}.{:08x}", hash.finish() as u32);
    let outside = std::env::temp_dir().join(name);
    let _ = fs::DirBuilder::new().mode(0o755).create(&outside);
    let ours = fs::symlink_metadata(&outside).is_ok_and(|dir| dir.is_dir() && dir.uid() == user);
    assert!(ours, "{} is not a directory of ours", outside.display());
    outside
}

/// User and group IDs to run a server as, if not our own.
pub fn server_user() -> Option<(u32, u32)> {
    static USER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *USER.get_or_init(|| {
        let id = |flag| {
            let id = run(Command::new("id").args([flag, "nobody"]));
            id.trim().parse().expect("a number from id")
        };
        rustix::process::getuid()
            .is_root()
            .then(|| (id("-u"), id("-g")))
    })
}

/// Makes the command run as the user that runs the servers, with no setting of the caller's own in
/// the way.
pub fn as_server_user(command: &mut Command) -> &mut Command {
    if let Some((user, group)) = server_user() {
        command.uid(user).gid(group);
    }
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command
        .env("LC_ALL", "C")
        .env_remove("LD_PRELOAD")
        .current_dir(servers())
}

/// Creates a directory that the servers' user owns.
pub fn server_dir(path: &Path) {
    fs::create_dir_all(path).expect("create a directory");
    if let Some((user, group)) = server_user() {
        std::os::unix::fs::chown(path, Some(user), Some(group))
            .expect("give it to the servers' user");
    }
}
