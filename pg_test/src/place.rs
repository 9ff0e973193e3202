//! Where the bench keeps its things, and as whom it runs a server.
//!
//! All is under `target/pg_test` of the checkout. PostgreSQL refuses to run as root, so root runs
//! it as `nobody`; where `nobody` cannot enter the checkout, or its path is too long for a
//! Unix-domain socket's, servers and clusters are in the temporary directory instead.

use crate::{run, say};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The root of the checkout.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the bench is a folder of the checkout")
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
        let outside = std::env::temp_dir().join(format!(
            "session_limit.{}",
            rustix::process::getuid().as_raw()
        ));
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
        fs::create_dir_all(&outside).expect("create a directory for servers");
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o755)).expect("open it");
        outside
    })
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
