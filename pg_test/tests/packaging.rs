//! What packagers rely on.

use pg_test::packages::{fresh, walk};
use pg_test::{licences, place, run};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn read(file: &str) -> String {
    let path = place::checkout().join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The licence of everything that is linked in goes with ours, and is in the packages.
#[test]
fn licences_are_named() {
    let named = licences::copyright().unwrap_or_else(|why| panic!("{why}"));
    let listed = read("debian/copyright");
    assert_eq!(listed, named, "`cargo licences > debian/copyright` is due");
}

/// Cargo.toml says which version this is. Formats that want it in other files find the same there.
#[test]
fn the_version_is_that_of_cargo_toml() {
    let version = after(&read("Cargo.toml"), "\nversion = \"");
    assert!(version.starts_with(|first: char| first.is_ascii_digit()));
    let sql = format!("sql/session_limit--{version}.sql");
    let says = |file: &str, before: &str| {
        let said = after(&read(file), before);
        assert_eq!(said, version, "{file}: {before}");
    };
    says("session_limit.control", "default_version = '");
    says("META.json", "\n    \"version\": \"");
    says("META.json", "\n            \"version\": \"");
    says("rpm/session_limit.spec", "\nVersion: ");
    says("debian/changelog", "postgresql-session-limit (");
    assert!(read("META.json").contains(&format!("\"file\": \"{sql}\"")));
    assert!(read("src/lib.rs").contains(&sql));
    let packaging = read("docs/packaging.md");
    assert!(packaging.contains(&format!("/session_limit-{version}.tar.gz")));
    assert!(packaging.contains(&format!("/session_limit:{version}-18")));
    assert!(read("CHANGELOG.md").contains(&format!("\n## {version}")));
    assert!(place::checkout().join(sql).exists());
    for other in [
        "model/Cargo.toml",
        "servers/Cargo.toml",
        "pg_test/Cargo.toml",
    ] {
        assert!(!read(other).contains("\nversion"), "{other}");
    }
}

/// A server that has no more than a `pg_config`, and a cargo that makes empty libraries; gone when it is dropped.
struct Machine(PathBuf);

/// Makes what a build of the package would.
const CARGO: &str = r#"
target=target
while [ $# -gt 0 ]; do
    case $1 in
    --package) package=$2 ;;
    --target-dir) target=$2 ;;
    esac
    shift
done
mkdir -p "$target/release"
echo "$package" > "$target/release/lib$package.so"
"#;

const PG_CONFIG: &str = r#"
case $1 in
--version) echo 'PostgreSQL 18.6 (Debian 18.6-1)' ;;
--pkglibdir) echo "$INSTALLED/lib" ;;
--sharedir) echo "$INSTALLED/share" ;;
--bindir) dirname "$0" ;;
esac
"#;

impl Machine {
    fn new(name: &str) -> Machine {
        let machine = Machine(fresh(&place::target().join("packaging").join(name)));
        let bin = fresh(&machine.0.join("bin"));
        for (program, script) in [
            ("cargo", CARGO),
            ("pg_config", PG_CONFIG),
            ("sudo", "\"$@\"\n"),
        ] {
            let program = bin.join(program);
            fs::write(&program, format!("#!/bin/sh -eu\n{script}")).expect("write a program");
            fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("chmod");
        }
        fs::create_dir_all(machine.0.join("installed/lib")).expect("create a folder");
        machine
    }

    /// Runs commands of the shell in a folder, with its programs first.
    fn shell(&self, folder: &Path, commands: &str) {
        let path = std::env::var("PATH").unwrap_or_default();
        let bin = self.0.join("bin");
        let mut shell = Command::new("sh");
        shell.args(["-eu", "-c", commands]).current_dir(folder);
        shell.env("PATH", format!("{}:{path}", bin.display()));
        shell.env("INSTALLED", self.0.join("installed"));
        run(shell.env("TARGET", self.0.join("target")));
    }

    /// What is installed, and its content if that is a library.
    fn installed(&self) -> Vec<(String, String)> {
        let root = self.0.join("installed");
        let files = walk(&root).into_iter().map(|file| {
            let name = file.strip_prefix(&root).expect("a file in it");
            let text = match file.extension().is_some_and(|end| end == "so") {
                true => fs::read_to_string(&file)
                    .expect("read it")
                    .trim()
                    .to_string(),
                false => String::new(),
            };
            (name.display().to_string(), text)
        });
        let mut files: Vec<(String, String)> = files.collect();
        files.sort();
        files
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn both_libraries() -> [(String, String); 2] {
    ["session_limit", "session_limit_servers"]
        .map(|name| (format!("lib/{name}.so"), name.to_string()))
}

/// What each other way of installing calls: `debian/rules` by pg_buildext, the others by name.
#[test]
fn make_installs_both_libraries() {
    let machine = Machine::new("make");
    let make = |goal: &str| {
        let make = "make PG_CONFIG=pg_config TARGET=\"$TARGET\"";
        machine.shell(place::checkout(), &format!("{make} {goal}"));
    };
    make("all");
    make("install");
    let installed = machine.installed();
    let (libraries, others) = installed.split_at(2);
    assert_eq!(libraries, both_libraries());
    let sql = fs::read_dir(place::checkout().join("sql")).expect("read sql/");
    assert_eq!(others.len(), sql.count() + 1, "{others:?}");
    make("uninstall");
    assert_eq!(machine.installed(), []);

    assert!(read("debian/rules").contains("dh $@ --with pgxs"));
    assert!(read("rpm/session_limit.spec").contains("\nmake install DESTDIR=%{buildroot}"));
    let dockerfile = read("Dockerfile");
    assert!(dockerfile.contains("\nRUN make all install DESTDIR=/files"));
    assert!(
        dockerfile.contains("/lib/session_limit*.so"),
        "both stripped"
    );
    let packaging = read("docs/packaging.md");
    for (library, _) in both_libraries() {
        assert!(packaging.contains(&format!("\n/{library}\n")), "{library}");
    }
}

/// `cargo pgrx install` installs one library. These lines of the page install the other one.
#[test]
fn without_make_the_second_library_has_commands_of_its_own() {
    let page = read("docs/install.md");
    let (_, section) = page.split_once("\n## With cargo-pgrx\n").expect("it");
    let section = section.split("\n## ").next().unwrap_or_default();
    let fences: Vec<&str> = section.split("```").skip(1).step_by(2).collect();
    let [with_pgrx, without] = fences[..] else {
        panic!("not two: {fences:?}");
    };
    assert!(with_pgrx.contains("cargo pgrx install"));
    let machine = Machine::new("pgrx");
    machine.shell(&machine.0, without);
    assert_eq!(machine.installed(), [both_libraries()[1].clone()]);
    let library = machine.0.join("installed/lib/session_limit_servers.so");
    let mode = fs::metadata(library).expect("it").permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
}

/// What stands there after this, up to a blank or what ends a version.
fn after(text: &str, before: &str) -> String {
    let (_, rest) = text
        .split_once(before)
        .unwrap_or_else(|| panic!("no {before} in: {text}"));
    let end = |character: char| character.is_whitespace() || "\"'-".contains(character);
    rest.split(end).next().unwrap_or_default().to_string()
}
