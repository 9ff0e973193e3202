//! What many tests do.

use pg_test::client::{Refusal, Session, Target};
use pg_test::cluster::Cluster;
use pg_test::wait_for;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;

/// The session of a login that must be let in.
pub fn admitted(target: &Target) -> Session {
    let outcome = target.login();
    outcome.unwrap_or_else(|refusal| panic!("{target:?}: {refusal:?}"))
}

/// What a login is told that must be refused.
pub fn refused(target: &Target) -> Refusal {
    let refusal = target.login().err();
    refusal.unwrap_or_else(|| panic!("{target:?} was admitted"))
}

pub const TERMINATED: &str = "terminating connection due to administrator command";

/// What a session is told that was ended.
pub fn told(session: &mut Session) -> Refusal {
    let told = session.try_query("SELECT 1").expect_err("an ended session");
    assert_eq!((told.sqlstate(), told.message()), ("57P01", TERMINATED));
    told
}

pub fn set_label(object: &str, json: &str) -> String {
    format!("SECURITY LABEL FOR session_limit ON {object} IS $label${json}$label$")
}

pub fn remove_label(object: &str) -> String {
    format!("SECURITY LABEL FOR session_limit ON {object} IS NULL")
}

/// Waits until a query has this value.
pub fn wait_until(session: &mut Session, sql: &str, value: &str) {
    wait_for(&format!("{value}: {sql}"), || {
        (session.value(sql) == value).then_some(())
    });
}

/// Waits until so many of the role's sessions are left.
pub fn wait_until_left(cluster: &Cluster, user: &str, number: usize) {
    let mut session = cluster.superuser();
    let sql = format!("SELECT count(*) FROM session_limit.sessions WHERE usename = '{user}'");
    wait_until(&mut session, &sql, &number.to_string());
    session.end();
}

pub fn process(session: &Session) -> Pid {
    Pid::from_raw(session.pid).expect("a process ID")
}

/// What the kernel says of a process.
pub fn status(process: Pid) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero()));
    status.expect("a process")
}

/// Stops it as by a debugger: it gets no signal but SIGCONT and SIGKILL. Returns when it is stopped: of
/// two signals that arrive before it runs again it would get SIGTERM first.
pub fn stop(process: Pid) {
    kill_process(process, Signal::STOP).expect("stop a process");
    wait_for("the process to be stopped", || {
        status(process).contains("State:\tT").then_some(())
    });
}

pub fn go_on(process: Pid) {
    kill_process(process, Signal::CONT).expect("let a process go on");
}

/// `kill -9` of a backend: the server starts all anew, and is back when this returns.
pub fn crash(cluster: &Cluster, session: &Session) {
    kill_process(process(session), Signal::KILL).expect("kill -9");
    wait_for("the crash", || {
        let log = cluster.log();
        log.contains("all server processes terminated")
            .then_some(())
    });
    let superuser = cluster.login_of("postgres");
    wait_for("the restart", || superuser.login().ok()).end();
}
