//! What can be seen only in a process of its own: these run the test binary again, with one ignored test.

use crate::abi;
use crate::server::Server;
use session_limit_servers::{Config, Etcd};
use std::process::{Command, Output};
use std::{env, fs, hint};

/// So much that no thread has its stack.
const TOO_MUCH: &str = "100000000000000";

fn run(test: &str, variables: &[(&str, &str)]) -> Output {
    let mut test_alone = Command::new(env::current_exe().expect("this program"));
    test_alone.args([
        "--ignored",
        "--exact",
        "--nocapture",
        "--test-threads=1",
        test,
    ]);
    test_alone.envs(variables.iter().copied());
    test_alone.output().expect("run this program")
}

/// A thread that ureq or the standard library would start fails there; and no proxy of the environment is asked.
#[test]
fn no_thread_is_started_and_no_proxy_asked() {
    let server = Server::always(200, "{}");
    let endpoint = server.endpoint.replace("127.0.0.1", "localhost");
    let output = run(
        "alone::calls_alone",
        &[
            ("ENDPOINT", &endpoint),
            ("RUST_MIN_STACK", TOO_MUCH),
            ("http_proxy", "http://127.0.0.1:1"),
            ("all_proxy", "http://127.0.0.1:1"),
        ],
    );
    assert!(output.status.success(), "{output:?}");
    assert_eq!(server.connections(), 1);
}

#[test]
#[ignore = "run by another test"]
fn calls_alone() {
    let Ok(endpoint) = env::var("ENDPOINT") else {
        return;
    };
    let config = Config {
        endpoints: vec![endpoint],
        timeout: 60_000,
        ..Config::default()
    };
    let mut etcd = Etcd::new(&config).expect("a client");
    for _ in 0..3 {
        assert_eq!(etcd.call("/v3/kv/range", "{}"), Ok("{}".to_string()));
    }
    assert_eq!(fs::read_dir("/proc/self/task").expect("read").count(), 1);
    // The test of the test.
    let thread = std::thread::Builder::new().spawn(|| {});
    assert!(thread.is_err());
}

#[test]
fn a_failed_allocation_calls_who_opened() {
    let output = run("alone::allocates_too_much", &[("ENDPOINT", "")]);
    assert_eq!(
        output.status.code(),
        Some(abi::NO_MEMORY_STATUS),
        "{output:?}"
    );
}

#[test]
#[ignore = "run by another test"]
fn allocates_too_much() {
    if env::var("ENDPOINT").is_err() {
        return;
    }
    let client = abi::open(r#"{"endpoints": ["http://127.0.0.1:1"], "timeout": 1000}"#);
    hint::black_box(Vec::<u8>::with_capacity(1 << 60));
    drop(client);
}
