//! What packagers rely on.

use pg_test::{licences, place};
use std::fs;

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
    for other in ["model/Cargo.toml", "pg_test/Cargo.toml"] {
        assert!(!read(other).contains("\nversion"), "{other}");
    }
}

/// What stands there after this, up to a blank or what ends a version.
fn after(text: &str, before: &str) -> String {
    let (_, rest) = text
        .split_once(before)
        .unwrap_or_else(|| panic!("no {before} in: {text}"));
    let end = |character: char| character.is_whitespace() || "\"'-".contains(character);
    rest.split(end).next().unwrap_or_default().to_string()
}
