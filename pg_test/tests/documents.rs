//! The documents hang together: every link leads somewhere, every page is in the book, and the README stays short.

use pg_test::place;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Files and folders below a folder, but for those that a build makes.
fn everything(folder: &Path) -> Vec<PathBuf> {
    let mut everything = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            everything.extend(self::everything(&path));
        }
        everything.push(path);
    }
    everything
}

/// The Markdown files among them.
fn pages(folder: &Path) -> Vec<PathBuf> {
    let is_page = |path: &PathBuf| path.extension().is_some_and(|it| it == "md");
    everything(folder).into_iter().filter(is_page).collect()
}

/// The lines that are no code.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    page.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// What the links of a page lead to: `[text](target)`, also of pictures.
fn targets(page: &str) -> Vec<String> {
    let text = prose(page).collect::<Vec<_>>().join("\n");
    let mut targets = Vec::new();
    for paragraph in text.split("\n\n") {
        // Links may have code in their text, but code has no links.
        let parts: Vec<&str> = paragraph.split('`').collect();
        assert!(parts.len() % 2 == 1, "code without an end: {paragraph}");
        let no_code = parts.into_iter().step_by(2).collect::<String>();
        let found = no_code.split("](").skip(1);
        targets.extend(found.map(|rest| rest.split(')').next().unwrap_or_default().to_string()));
    }
    targets
}

/// The anchors of a page's headings, as GitHub and mdBook make them.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut seen = BTreeMap::new();
    let headings = prose(page).filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| -> String {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = |char: &char| char.is_alphanumeric() || "_- ".contains(*char);
        text.chars()
            .filter(kept)
            .collect::<String>()
            .replace(' ', "-")
    };
    let numbered = headings.map(|heading| {
        let anchor = anchor(heading);
        let number = seen.entry(anchor.clone()).or_insert(0);
        *number += 1;
        match *number {
            1 => anchor,
            more => format!("{anchor}-{}", more - 1),
        }
    });
    numbered.collect()
}

/// Without `.` and `..`.
fn tidy(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                tidy.pop();
            }
            part => tidy.push(part),
        }
    }
    tidy
}

/// What is wrong with a link; None if it leads somewhere.
fn trouble(page: &Path, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = match file {
        "" => page.to_path_buf(),
        file => tidy(&page.parent().expect("a folder").join(file)),
    };
    if !path.exists() {
        return Some("there is no such file".to_string());
    }
    let is_there = anchor.is_empty() || anchors(&read(&path)).contains(anchor);
    (!is_there).then(|| "there is no such heading".to_string())
}

#[test]
fn every_link_leads_somewhere() {
    let mut dead = Vec::new();
    let mut links = 0;
    for page in pages(place::checkout()) {
        for target in targets(&read(&page)) {
            links += 1;
            if let Some(trouble) = trouble(&page, &target) {
                dead.push(format!("{}: ({target}): {trouble}", page.display()));
            }
        }
    }
    assert!(links > 100, "{links}");
    assert!(dead.is_empty(), "\n{}", dead.join("\n"));
}

/// A file or folder is named by the end of its path.
#[test]
fn whoever_changes_something_finds_the_file() {
    let there = everything(place::checkout());
    let is_path = |word: &&str| {
        let is_plain = word
            .chars()
            .all(|it| it.is_alphanumeric() || "_./-".contains(it));
        is_plain && !word.starts_with("target/") && (word.ends_with(".rs") || word.ends_with('/'))
    };
    for page in ["ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = read(&place::checkout().join(page));
        let prose: String = prose(&text).map(|line| format!("{line}\n")).collect();
        let code: Vec<&str> = prose.split('`').skip(1).step_by(2).collect();
        let named: Vec<&str> = code.into_iter().filter(is_path).collect();
        assert!(named.len() > 20, "{page}: {named:?}");
        for name in named {
            let is_there = there.iter().any(|path| path.ends_with(name));
            assert!(is_there, "{page}: there is no {name}");
        }
    }
}

#[test]
fn the_book_has_every_page_once() {
    let docs = place::checkout().join("docs");
    let summary = docs.join("SUMMARY.md");
    let mut listed = targets(&read(&summary));
    listed.sort();
    let relative = |page: PathBuf| {
        page.strip_prefix(&docs)
            .expect("a page")
            .display()
            .to_string()
    };
    let there = pages(&docs).into_iter().filter(|page| *page != summary);
    let mut there: Vec<String> = there.map(relative).collect();
    there.sort();
    assert_eq!(listed, there);
}

/// What it leaves out is in the book.
#[test]
fn the_readme_is_read_in_ten_minutes() {
    let words = read(&place::checkout().join("README.md"))
        .split_whitespace()
        .count();
    assert!(words <= 2000, "{words} words");
}
