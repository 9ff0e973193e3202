//! `cargo licences > debian/copyright`: the licences of all that is linked into the library.

use pg_test::licences;
use std::process::exit;

fn main() {
    match licences::copyright() {
        Ok(text) => print!("{text}"),
        Err(why) => {
            eprintln!("{why}");
            exit(1);
        }
    }
}
