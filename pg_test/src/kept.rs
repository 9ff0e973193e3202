//! A program beside a cluster, gone when it is dropped, and when the bench dies.

use rustix::process::Pid;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Runs a program until its input ends, that is until the bench is no more. A test may have stopped it.
const KEEPER: &str = r#"
trap '' INT HUP QUIT
log=$1; shift
"$@" </dev/null >"$log" 2>&1 & kept=$!
echo $kept
exec >/dev/null
read -r _
kill -TERM $kept 2>/dev/null
kill -CONT $kept 2>/dev/null
wait $kept
"#;

pub struct Kept {
    keeper: Child,
    pub pid: Pid,
}

/// A command to which the program and its arguments are added, and that [`Kept::start`] runs. What the program prints
/// goes to this file.
pub fn keeper(log: &str) -> Command {
    let mut keeper = Command::new("sh");
    keeper.args(["-c", KEEPER, "sh", log]);
    keeper
}

impl Kept {
    pub fn start(keeper: &mut Command) -> Kept {
        let keeper = keeper
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut keeper = keeper.expect("run sh");
        let output = keeper.stdout.take().expect("the keeper's output");
        let pid = BufReader::new(output).lines().next();
        let pid = pid.expect("a line").expect("a line");
        Kept {
            keeper,
            pid: pid
                .parse()
                .ok()
                .and_then(Pid::from_raw)
                .expect("a process ID"),
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
