//! The pages of docs/ as tests run them: their sections, and what is in their fences.

use pg_test::place;
use std::fs;

/// A page, or a section of it.
pub struct Page {
    pub text: String,
}

impl Page {
    /// A page below docs/, with what it includes in the place of mdBook's lines that say so.
    pub fn read(path: &str) -> Page {
        let path = place::checkout().join("docs").join(path);
        let read = |path: &std::path::Path| {
            fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let line = |line: &str| match included(line) {
            Some(file) => read(&path.with_file_name(file)),
            None => format!("{line}\n"),
        };
        Page {
            text: read(&path).lines().map(line).collect(),
        }
    }

    /// The names of its sections.
    pub fn headings(&self) -> Vec<String> {
        let headings = self
            .text
            .lines()
            .filter_map(|line| line.strip_prefix("## "));
        headings.map(String::from).collect()
    }

    /// What is below the heading that begins so.
    pub fn section(&self, heading: &str) -> Page {
        let (_, rest) = self
            .text
            .split_once(&format!("\n## {heading}"))
            .unwrap_or_else(|| panic!("no section \"{heading}\""));
        let section = rest.split("\n## ").next().expect("a section");
        Page {
            text: section.to_string(),
        }
    }

    /// What is in the fences of this language.
    pub fn fences(&self, language: &str) -> Vec<&str> {
        let mut fences = self.text.split("\n```");
        let opened = format!("{language}\n");
        let mut found = Vec::new();
        fences.next();
        // Each second one is what comes after a fence.
        while let (Some(fence), Some(_)) = (fences.next(), fences.next()) {
            found.extend(fence.strip_prefix(opened.as_str()));
        }
        found
    }

    /// The statements of its SQL: each ends with a line, unless that is in a function's body. Without the commands of psql.
    pub fn statements(&self) -> Vec<String> {
        let mut statements = Vec::new();
        for fence in self.fences("sql") {
            let mut statement = String::new();
            for line in fence
                .lines()
                .filter(|line| !line.starts_with("--") && !line.starts_with('\\'))
            {
                statement.push_str(line);
                statement.push('\n');
                if line.ends_with(';') && statement.matches("$$").count().is_multiple_of(2) {
                    statements.push(std::mem::take(&mut statement));
                }
            }
            if !statement.trim().is_empty() {
                statements.push(statement);
            }
        }
        statements
    }
}

/// The file that mdBook puts in the place of a line.
fn included(line: &str) -> Option<&str> {
    line.strip_prefix("{{#include ")?.strip_suffix("}}")
}
