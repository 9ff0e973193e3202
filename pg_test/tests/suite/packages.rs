//! What docs/packaging.md promises to packagers.

use crate::scene::{admitted, refused};
use pg_test::cluster::Cluster;
use pg_test::packages::{self, fresh};
use pg_test::server::Server;
use pg_test::{place, run, say, try_run};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

tests![a_package_of_debian, an_extension_image];

/// Built by the Makefile and `debian/`, installed, installed again under the running server, and removed; in a Debian of its
/// own. The libraries are built outside of it, where Rust is.
fn a_package_of_debian(server: &Server) {
    // The major of Debian 12.
    if server.major != 15 {
        return;
    }
    let root = match in_namespaces("true", Path::new("/")).and_then(|_| packages::debian_root()) {
        Ok(root) => root,
        Err(why) => return say(format_args!("{why}\nno package was made or installed")),
    };
    let here = place::servers().join(format!("run/{}-packages", std::process::id()));
    fresh(&here);
    run(Command::new("cp")
        .arg("-a")
        .arg(&root)
        .arg(here.join("root")));
    let root = here.join("root");
    let libraries = built_by_make(server);
    copy_source(&root.join("session_limit"), &libraries);
    let script = place::checkout().join("pg_test/tests/suite/packages.sh");
    fs::copy(script, root.join("packages.sh")).expect("copy the script");
    let said = in_namespaces(
        "mount -t proc proc proc && mount -t tmpfs tmpfs dev/shm && exec chroot . /bin/sh /packages.sh",
        &root,
    );
    let said = said.unwrap_or_else(|why| panic!("{why}"));
    assert!(said.ends_with("all is well\n"), "{said}");
    fs::remove_dir_all(here).expect("remove the Debian");
}

/// Runs a script of the shell, in a folder. Its mounts and its processes end with it.
fn in_namespaces(script: &str, folder: &Path) -> Result<String, String> {
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--ipc", "--fork", "--kill-child"]);
    unshare
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8");
    try_run(unshare.args(["sh", "-c", script]).current_dir(folder))
}

/// The libraries for packages, which name no folder of this machine.
fn built_by_make(server: &Server) -> [PathBuf; 2] {
    let target = place::target().join("15-package");
    let assigned = |name: &str, value: &Path| format!("{name}={}", value.display());
    let mut make = Command::new("make");
    make.current_dir(place::checkout())
        .envs(server.environment());
    make.arg(assigned("PG_CONFIG", &server.pg_config))
        .arg(assigned("TARGET", &target));
    run(make.args(["CARGO_FLAGS=--quiet", "all"]));
    let names = ["libsession_limit.so", "libsession_limit_servers.so"];
    let libraries = names.map(|name| target.join("release").join(name));
    libraries
        .iter()
        .for_each(|library| names_no_folder(library));
    libraries
}

fn names_no_folder(library: &Path) {
    let bytes = fs::read(library).expect("read the library");
    let text = String::from_utf8_lossy(&bytes);
    let home = std::env::var("HOME").expect("HOME");
    assert!(text.contains("cargo/registry/src/"), "panics name no files");
    for folder in [place::checkout().to_string_lossy(), home.into()] {
        let named = text
            .find(&*folder)
            .map(|at| text[at..].chars().take(100).collect::<String>());
        assert_eq!(named, None, "{}", library.display());
    }
}

/// The source without what is built of it, but for the libraries of 15, where the Makefile has them.
fn copy_source(to: &Path, libraries: &[PathBuf]) {
    let release = to.join("target/pg15/release");
    fs::create_dir_all(&release).expect("create a folder");
    for entry in fs::read_dir(place::checkout())
        .expect("read the checkout")
        .flatten()
    {
        if entry.file_name() != "target" && entry.file_name() != OsStr::new(".git") {
            run(Command::new("cp").arg("-a").arg(entry.path()).arg(to));
        }
    }
    run(Command::new("cp").arg("-p").args(libraries).arg(release));
}

/// The layout of an extension image: the server is told where the files are, by settings alone.
fn an_extension_image(server: &Server) {
    if server.major < 18 {
        return;
    }
    let image = place::servers().join(format!("run/{}-image", std::process::id()));
    let (library, files) = (image.join("lib"), image.join("share/extension"));
    fs::create_dir_all(&library).expect("create a folder");
    fs::create_dir_all(&files).expect("create a folder");
    let checkout = place::checkout();
    for name in ["session_limit", "session_limit_servers"] {
        run(Command::new("cp").arg(server.library(name)).arg(&library));
    }
    run(Command::new("cp")
        .arg("-r")
        .arg(checkout.join("sql/."))
        .arg(&files));
    let control = fs::read_to_string(checkout.join("session_limit.control")).expect("read it");
    let control = control.replace("comment = 'limits", "comment = 'an image that limits");
    fs::write(files.join("session_limit.control"), control).expect("write it");
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(&image));

    // Before the server's own folders, which have ours, too.
    let share = format!("{}:$system", image.join("share").display());
    let libraries = format!("{}:$libdir", library.display());
    let cluster = Cluster::start(
        server,
        &[
            ("extension_control_path", &share),
            ("dynamic_library_path", &libraries),
        ],
    );
    cluster.sql(&["CREATE EXTENSION session_limit", "CREATE ROLE alice LOGIN"]);
    let maps = fs::read_to_string(format!("/proc/{}/maps", cluster.pid().as_raw_nonzero()));
    assert!(maps.expect("maps").contains(&*library.to_string_lossy()));
    let mut superuser = cluster.superuser();
    let comment =
        superuser.value("SELECT comment FROM pg_available_extensions WHERE name = 'session_limit'");
    assert!(comment.starts_with("an image"), "{comment}");
    superuser.end();

    cluster.sql(&["SELECT session_limit.set_limit(role => 'alice', max => 1)"]);
    let alice = cluster.login_of("alice");
    let _session = admitted(&alice);
    assert_eq!(refused(&alice).sqlstate(), "53300");
    fs::remove_dir_all(image).expect("remove the image");
}
