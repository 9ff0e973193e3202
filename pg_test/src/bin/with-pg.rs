//! `cargo with-pg COMMAND …`: runs a command once for each major of `PG_MAJORS`, in the environment
//! that the extension needs to be built or checked in. `{pg}` in an argument becomes `pg18` and the
//! like.

use pg_test::server;
use std::process::{Command, exit};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((program, arguments)) = arguments.split_first() else {
        eprintln!("usage: cargo with-pg COMMAND [ARGUMENT …]");
        exit(2);
    };
    for server in server::servers() {
        let arguments = arguments
            .iter()
            .map(|argument| argument.replace("{pg}", &format!("pg{}", server.major)));
        let mut command = Command::new(program);
        let status = command.args(arguments).envs(server.environment()).status();
        let status = status.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
        if !status.success() {
            exit(status.code().unwrap_or(1));
        }
    }
}
