//! The licences of what is linked into the libraries: which may be, and `debian/copyright`, which names them all.

use crate::{place, try_run};
use serde_json::Value;
use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::iter::Peekable;
use std::path::Path;
use std::process::Command;
use std::str::SplitWhitespace;

/// Those that let code be given away in a library under the PostgreSQL licence, with what they want to be said. Of what a crate
/// offers the first is chosen.
const ALLOWED: &[(&str, &str)] = &[
    ("PostgreSQL", include_str!("../../LICENSE")),
    ("MIT", include_str!("../licences/MIT.txt")),
    ("Zlib", include_str!("../licences/Zlib.txt")),
    ("Unicode-3.0", include_str!("../licences/Unicode-3.0.txt")),
    ("ISC", include_str!("../licences/ISC.txt")),
    ("BSD-3-Clause", include_str!("../licences/BSD-3-Clause.txt")),
    ("Apache-2.0", include_str!("../licences/Apache-2.0.txt")),
];

/// Not that of the machine, so that the list is the same everywhere. On other processors they are the same, or fewer.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// What is said of a crate that is linked in.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Crate {
    name: String,
    licences: BTreeSet<&'static str>,
    copyright: Vec<String>,
}

/// The text of `debian/copyright`; or which crates have licences that do not go with ours.
pub fn copyright() -> Result<String, String> {
    let crates = linked_in()?;
    let licences: BTreeSet<&str> = crates
        .iter()
        .flat_map(|found| found.licences.clone())
        .collect();
    let holders: BTreeSet<&str> = crates
        .iter()
        .flat_map(|found| &found.copyright)
        .map(String::as_str)
        .collect();
    let mut text = HEAD.to_string();
    text += &format!("Copyright: {}\n", lines(holders));
    let names: Vec<&str> = licences.iter().copied().collect();
    text += &format!("License: {}\n{COMMENT}", names.join(" and "));
    for Crate {
        name,
        licences,
        copyright,
    } in &crates
    {
        let licences: Vec<&str> = licences.iter().copied().collect();
        text += &format!(
            " {name}: {}; {}\n",
            licences.join(" and "),
            copyright.join("; ")
        );
    }
    for (name, words) in ALLOWED {
        if *name == "PostgreSQL" || licences.contains(name) {
            text += &format!("\nLicense: {name}\n{}", indented(words));
        }
    }
    Ok(text)
}

const HEAD: &str = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: session_limit
Comment: `cargo licences` made this file.

Files: *
Copyright: 2026, the session_limit authors
License: PostgreSQL

Files: Cargo.lock
";

const COMMENT: &str = "\
Comment: Of what Cargo.lock names this is linked into the libraries. So is Rust's standard library:
 MIT; The Rust Project contributors, and the crates that the file COPYRIGHT-library.html of a Rust
 installation names, with their licences.
 .
";

/// A field of several lines.
fn lines(of: BTreeSet<&str>) -> String {
    of.into_iter().collect::<Vec<_>>().join("\n ")
}

fn indented(text: &str) -> String {
    let line = |line: &str| match line.trim() {
        "" => " .\n".to_string(),
        line => format!(" {line}\n"),
    };
    text.trim().lines().map(line).collect()
}

/// The crates that the code of both libraries depends on, without ours and those that run only while it is built.
fn linked_in() -> Result<Vec<Crate>, String> {
    let edges = ["--edges", "normal,no-proc-macro", "--no-dedupe"];
    let looks = ["--prefix", "none", "--format", "{p}"];
    let mut tree = cargo("tree");
    tree.args(["--package", "session_limit"]);
    tree.args(["--package", "session_limit_servers"]);
    tree.args(["--target", PLATFORM]);
    tree.args(edges).args(looks);
    let tree = try_run(&mut tree)?;
    let linked: BTreeSet<&str> = tree.lines().map(str::trim).collect();
    let mut metadata = cargo("metadata");
    metadata.args(["--format-version", "1", "--filter-platform", PLATFORM]);
    let metadata = try_run(&mut metadata)?;
    let metadata: Value = serde_json::from_str(&metadata).expect("JSON from cargo");
    let packages = metadata["packages"].as_array().expect("packages");
    let is_linked = |package: &&Value| {
        let name = format!("{} v{}", text(&package["name"]), text(&package["version"]));
        !package["source"].is_null() && linked.contains(&*name)
    };
    let mut crates: Vec<Crate> = packages
        .iter()
        .filter(is_linked)
        .map(judged)
        .collect::<Result<_, _>>()?;
    // Two versions of one may differ in nothing that is said here.
    crates.sort();
    crates.dedup();
    Ok(crates)
}

/// A command of cargo that changes nothing.
fn cargo(command: &str) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .current_dir(place::checkout())
        .args([command, "--locked"]);
    cargo
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn judged(package: &Value) -> Result<Crate, String> {
    let (name, expression) = (text(&package["name"]), text(&package["license"]));
    let Some(licences) = chosen(expression) else {
        return Err(format!(
            "{name}: its licence \"{expression}\" is none of those that pg_test/src/licences.rs allows"
        ));
    };
    let manifest = Path::new(text(&package["manifest_path"]));
    let mut copyright = notices(manifest.parent().expect("a folder"));
    if copyright.is_empty() {
        // Its authors without their addresses.
        let authors = package["authors"]
            .as_array()
            .into_iter()
            .flatten()
            .map(text);
        copyright = authors
            .map(|author| author.split(" <").next().unwrap_or_default().to_string())
            .collect();
    }
    if copyright.is_empty() {
        copyright.push(format!("the authors of {name}"));
    }
    Ok(Crate {
        name: name.to_string(),
        licences,
        copyright,
    })
}

/// Who holds the copyright of a crate, as the files in its folder say that are about licences.
fn notices(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder)
        .expect("read a crate's folder")
        .flatten();
    let about_licences = files.map(|file| file.path()).filter(|file| {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_uppercase();
        name.starts_with("LICEN") || name.starts_with("COPY")
    });
    let texts = about_licences.filter_map(|file| fs::read_to_string(file).ok());
    let notices: BTreeSet<String> = texts
        .flat_map(|text| text.lines().filter_map(holder).collect::<Vec<_>>())
        .collect();
    notices.into_iter().collect()
}

/// Of a line such as `Copyright (c) 2014 A. U. Thor <thor@example.org>` what stands before the address. A licence's own words
/// about copyright are no such line, and some notices have a year and no name.
fn holder(line: &str) -> Option<String> {
    let words = line.trim().strip_prefix("Copyright ")?;
    let holder = words.trim_start_matches("(c) ").trim_start_matches("© ");
    let is_notice = holder != words || holder.starts_with(|first: char| first.is_ascii_digit());
    let holder = holder.split(" <").next()?;
    (is_notice && holder.contains(char::is_alphabetic)).then(|| holder.to_string())
}

/// Which licences to go by, if an SPDX expression allows any that are [`ALLOWED`]. A slash is an old way to write OR.
fn chosen(expression: &str) -> Option<BTreeSet<&'static str>> {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let chosen = any_of(&mut words);
    chosen.filter(|_| words.next().is_none())
}

type Words<'a, 'b> = &'a mut Peekable<SplitWhitespace<'b>>;

fn any_of(words: Words) -> Option<BTreeSet<&'static str>> {
    let mut chosen = all_of(words);
    while words.next_if_eq(&"OR").is_some() {
        let other = all_of(words);
        let both = chosen.into_iter().chain(other);
        chosen = both.min_by_key(|licences| licences.iter().map(|name| rank(name)).max());
    }
    chosen
}

/// Where it stands in [`ALLOWED`].
fn rank(name: &str) -> Option<usize> {
    ALLOWED.iter().position(|(known, _)| *known == name)
}

fn all_of(words: Words) -> Option<BTreeSet<&'static str>> {
    let mut chosen = one(words);
    while words.next_if_eq(&"AND").is_some() {
        let (before, other) = (chosen, one(words));
        chosen = before.and_then(|before| Some(&before | &other?));
    }
    chosen
}

fn one(words: Words) -> Option<BTreeSet<&'static str>> {
    if words.next_if_eq(&"(").is_some() {
        let inside = any_of(words);
        return words.next_if_eq(&")").and(inside);
    }
    let name = words.next()?;
    // None of ours has exceptions.
    let exception = words.next_if_eq(&"WITH").and_then(|_| words.next());
    let (known, _) = ALLOWED.iter().find(|(known, _)| *known == name)?;
    exception.is_none().then(|| BTreeSet::from([*known]))
}

#[test]
fn expressions() {
    let names = |expression| chosen(expression).map(|names| names.into_iter().collect::<Vec<_>>());
    assert_eq!(names("MIT"), Some(vec!["MIT"]));
    assert_eq!(names("Apache-2.0 OR MIT"), Some(vec!["MIT"]));
    assert_eq!(names("Apache-2.0/MIT"), Some(vec!["MIT"]));
    assert_eq!(names("Apache-2.0 OR ISC OR MIT"), Some(vec!["MIT"]));
    assert_eq!(names("GPL-3.0-only OR ISC"), Some(vec!["ISC"]));
    assert_eq!(names("Apache-2.0 AND ISC"), Some(vec!["Apache-2.0", "ISC"]));
    assert_eq!(
        names("(MIT OR Apache-2.0) AND Zlib"),
        Some(vec!["MIT", "Zlib"])
    );
    assert_eq!(
        names("Apache-2.0 WITH LLVM-exception OR MIT"),
        Some(vec!["MIT"])
    );
    for refused in [
        "",
        "GPL-3.0-only",
        "MIT AND GPL-3.0-only",
        "MIT WITH something",
        "MIT MIT",
        "(MIT",
    ] {
        assert_eq!(names(refused), None, "{refused}");
    }
}
