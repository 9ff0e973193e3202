//! The house keeps its order: no files of the extension, or of the model, import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

type Imports = BTreeMap<String, BTreeSet<String>>;

#[test]
fn nothing_imports_in_a_circle() {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for sources in ["src", "model/src"] {
        let root = checkout.join(sources);
        let mut imports = Imports::new();
        read(&root, &root, &mut imports);
        assert!(imports.len() > 15, "{sources}: {imports:?}");
        for file in imports.keys() {
            let circle = way_back(&imports, file);
            assert!(
                circle.is_none(),
                "{sources}: {}",
                circle.unwrap_or_default()
            );
        }
    }
}

/// What each module imports of its crate, without what its unit tests do.
fn read(root: &Path, folder: &Path, imports: &mut Imports) {
    for entry in fs::read_dir(folder).expect("read a folder of sources") {
        let path = entry.expect("read a folder of sources").path();
        if path.is_dir() {
            read(root, &path, imports);
            continue;
        }
        let module = path
            .strip_prefix(root)
            .expect("below the root")
            .with_extension("");
        let module = module
            .to_string_lossy()
            .replace('/', "::")
            .replace("::mod", "");
        if module == "lib" || module.starts_with("tests") {
            continue;
        }
        let source = fs::read_to_string(&path).expect("read a source");
        let code = source.split("#[cfg(test)]").next().unwrap_or_default();
        imports.insert(module, imported(code));
    }
}

/// The modules that `use crate::…` names, those in braces, too.
fn imported(code: &str) -> BTreeSet<String> {
    let statements = code.split("use crate::").skip(1);
    let paths = statements.flat_map(|rest| {
        let statement = rest.split(';').next().unwrap_or_default();
        match statement.split_once('{') {
            Some((before, items)) => {
                let items = items.trim_end_matches('}').split(',');
                items
                    .map(|item| format!("{before}{}", item.trim()))
                    .collect()
            }
            None => vec![statement.to_string()],
        }
    });
    // Of `pg::catalog::Role` the first two parts may be a module, and the first.
    let parts = paths.flat_map(|path| {
        let parts: Vec<&str> = path.split("::").collect();
        let two = parts.iter().take(2).copied().collect::<Vec<_>>().join("::");
        [two, parts[0].to_string()]
    });
    parts.collect()
}

fn way_back(imports: &Imports, start: &str) -> Option<String> {
    let mut ways = vec![vec![start.to_string()]];
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop() {
        let here = way.last()?.clone();
        for next in imports.get(&here).into_iter().flatten() {
            if next == start {
                return Some([way.join(" imports "), start.to_string()].join(" imports "));
            }
            if imports.contains_key(next) && seen.insert(next.clone()) {
                ways.push(way.iter().cloned().chain([next.clone()]).collect());
            }
        }
    }
    None
}
