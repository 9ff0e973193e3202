//! `cargo regress`: do PostgreSQL's own regression tests pass with the library preloaded and limits set?
//!
//! Each suite runs twice: on a server without the library and on one with it. What fails only with it is our
//! fault.

use pg_test::regress::{ISOLATION, REGRESS, Tests};
use pg_test::{place, say, server};
use std::path::PathBuf;
use std::process::exit;

fn main() {
    let chosen = match std::env::args_os().skip(1).collect::<Vec<_>>().as_slice() {
        [] => None,
        [dir] => Some(PathBuf::from(dir)),
        _ => {
            eprintln!("the only argument is the folder of PostgreSQL's tests, or of its source");
            exit(2);
        }
    };
    let mut broken = false;
    for server in server::servers() {
        let work = place::servers().join(format!("{}/regress", server.major));
        let Some(tests) = Tests::get(&server, chosen.as_deref(), &work) else {
            println!(
                "PostgreSQL {}: neither its installation nor Debian's archive has its tests; \
                 `cargo regress DIR` takes those of its source",
                server.major
            );
            continue;
        };
        let (version, origin) = (server.config("--version"), &tests.origin);
        say(format_args!("{version}, {origin}"));
        for suite in [REGRESS, ISOLATION] {
            if !tests.has(&suite) {
                continue;
            }
            let compared = tests.compare(&server, &suite, None);
            println!(
                "\n{version}, {}, {origin}\n{}",
                suite.name,
                compared.summary()
            );
            broken |= !compared.broken().is_empty();
        }
    }
    exit(broken.into());
}
