//! The client of etcd, in `servers/`, against a real one.

use pg_test::etcd::{Etcd, PASSWORD, Security, USER};
use pg_test::wait_for;
use serde_json::{Value, json};
use session_limit_servers::{Config, Etcd as Client, Failure};
use std::io::{Write, stderr};

const PREFIX: &str = "/session_limit/";

/// Milliseconds for what must be answered; and for what must not, which is waited for.
const PATIENT: u32 = 60_000;
const SHORT: u32 = 500;

/// None, and a line that says why, if there is no etcd for this machine.
fn start(members: usize, security: Security) -> Option<Etcd> {
    let started = Etcd::try_start(members, security);
    let skip = |why: &String| {
        let last = why.lines().last().unwrap_or_default();
        writeln!(stderr(), "[pg_test] skipped: {last}").expect("say so");
    };
    started.inspect_err(skip).ok()
}

fn config(etcd: &Etcd, timeout: u32) -> Config {
    Config {
        endpoints: etcd.endpoints(),
        timeout,
        ..Config::default()
    }
}

fn with_ca(etcd: &Etcd) -> Config {
    Config {
        ca_file: etcd.file("ca.pem"),
        ..config(etcd, PATIENT)
    }
}

fn with_user(config: Config) -> Config {
    Config {
        user: USER.to_string(),
        password: PASSWORD.to_string(),
        ..config
    }
}

fn with_certificate(etcd: &Etcd, name: &str) -> Config {
    Config {
        cert_file: etcd.file(&format!("{name}.pem")),
        key_file: etcd.file(&format!("{name}.key")),
        ..with_ca(etcd)
    }
}

fn client(config: &Config) -> Client {
    Client::new(config).unwrap_or_else(|why| panic!("{why}"))
}

/// As etcd wants keys and values.
fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for three in text.as_bytes().chunks(3) {
        let bits = three
            .iter()
            .fold(0, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - three.len()));
        for digit in 0..4 {
            let shown = digit <= three.len();
            let digit = DIGITS[(bits >> (18 - 6 * digit) & 63) as usize];
            encoded.push(if shown { char::from(digit) } else { '=' });
        }
    }
    encoded
}

/// All keys that begin so.
fn range(prefix: &str) -> Value {
    let (rest, last) = prefix.split_at(prefix.len() - 1);
    let next = char::from(last.as_bytes()[0] + 1);
    json!({"key": base64(prefix), "range_end": base64(&format!("{rest}{next}"))})
}

fn put(key: &str, value: &str) -> Value {
    json!({"key": base64(key), "value": base64(value)})
}

fn number(value: &Value) -> u64 {
    let text = value.as_str().unwrap_or("0");
    text.parse().expect("a number")
}

/// Puts a key that users may write.
fn write(client: &mut Client) -> Result<String, Failure> {
    let body = put(&format!("{PREFIX}v1/m/a"), "{}");
    client.call("/v3/kv/put", &body.to_string())
}

fn read(client: &mut Client) -> Result<String, Failure> {
    client.call("/v3/kv/range", &range(PREFIX).to_string())
}

fn txn(client: &mut Client, body: &Value) -> Value {
    let answer = client.call("/v3/kv/txn", &body.to_string());
    let answer = answer.unwrap_or_else(|failure| panic!("{body}: {failure:?}"));
    serde_json::from_str(&answer).expect("JSON")
}

fn refused(result: Result<String, Failure>) -> (u16, String) {
    match result {
        Err(Failure::Refused {
            status, message, ..
        }) => (status, message),
        other => panic!("not refused: {other:?}"),
    }
}

fn no_answer(result: Result<String, Failure>) -> (String, String) {
    match result {
        Err(Failure::NoAnswer { endpoint, reason }) => (endpoint, reason),
        other => panic!("not without an answer: {other:?}"),
    }
}

/// The transaction that takes places: for a server that lives, if nobody has changed a place since `view`.
fn raise(born: u64, view: u64, id: &str, places: &str) -> Value {
    let counter = format!("{PREFIX}v1/c/role=alice/");
    let mut unchanged = range(&format!("{counter}p/"));
    unchanged["target"] = json!("MOD");
    unchanged["result"] = json!("LESS");
    unchanged["mod_revision"] = json!((view + 1).to_string());
    json!({
        "compare": [{
            "target": "CREATE",
            "result": "EQUAL",
            "key": base64(&format!("{PREFIX}v1/m/{id}")),
            "create_revision": born.to_string(),
        }],
        "success": [
            {"request_range": range(&format!("{PREFIX}v1/m/"))},
            {"request_txn": {
                "compare": [unchanged],
                "success": [
                    {"request_put": put(&format!("{counter}p/{id}"), places)},
                    {"request_delete_range": {"key": base64(&format!("{counter}w/{id}"))}},
                    {"request_range": range(&counter)},
                ],
                "failure": [{"request_range": range(&counter)}],
            }},
        ],
    })
}

#[test]
fn places_are_taken_in_one_transaction() {
    let Some(etcd) = start(1, Security::Open) else {
        return;
    };
    let mut client = client(&config(&etcd, PATIENT));
    let born = ["a", "b"].map(|id| {
        let put = json!({"request_put": put(&format!("{PREFIX}v1/m/{id}"), "{}")});
        let answer = txn(&mut client, &json!({ "success": [put] }));
        number(&answer["header"]["revision"])
    });
    let nested = |answer: &Value| answer["responses"][1]["response_txn"].clone();

    // Nobody holds anything: what is not there has been changed at revision 0.
    let first = txn(&mut client, &raise(born[0], 0, "a", "1"));
    assert_eq!(first["succeeded"], true);
    let living = &first["responses"][0]["response_range"];
    assert_eq!(living["count"], "2", "{first}");
    let taken = nested(&first);
    assert_eq!(taken["succeeded"], true, "{first}");
    let all = &taken["responses"][2]["response_range"];
    assert_eq!(all["kvs"][0]["value"], base64("1"), "{first}");
    let view = number(&first["header"]["revision"]);

    // Who has not seen that takes nothing, and sees it.
    let late = nested(&txn(&mut client, &raise(born[1], 0, "b", "1")));
    assert_eq!(late["succeeded"], Value::Null, "{late}");
    assert_eq!(late["responses"][0]["response_range"]["count"], "1");
    let again = nested(&txn(&mut client, &raise(born[1], view, "b", "1")));
    assert_eq!(again["succeeded"], true, "{again}");
    assert_eq!(again["responses"][2]["response_range"]["count"], "2");

    // Who has been buried, and has another life, neither.
    let dead = txn(
        &mut client,
        &raise(born[0] + 1, u64::from(u32::MAX), "a", "2"),
    );
    assert_eq!(dead["succeeded"], Value::Null, "{dead}");
    assert_eq!(dead["responses"], Value::Null, "{dead}");
}

#[test]
fn with_tls_a_user_logs_in() {
    let Some(mut etcd) = start(1, Security::Tls) else {
        return;
    };
    let (status, message) = refused(write(&mut client(&with_user(with_ca(&etcd)))));
    assert_eq!(status, 412);
    assert_eq!(message, "etcdserver: authentication is not enabled");
    etcd.require_users(PREFIX);
    let mut user = client(&with_user(with_ca(&etcd)));
    for _ in 0..3 {
        assert!(write(&mut user).is_ok());
    }

    let outside = put("/service/batman/leader", "mine").to_string();
    let (status, message) = refused(user.call("/v3/kv/put", &outside));
    assert_eq!((status, &*message), (403, "etcdserver: permission denied"));
    assert!(write(&mut user).is_ok());

    let wrong = Config {
        password: "wrong".to_string(),
        ..with_user(with_ca(&etcd))
    };
    let (status, message) = refused(write(&mut client(&wrong)));
    assert_eq!(status, 400);
    assert!(message.contains("invalid user ID or password"), "{message}");
    let (status, message) = refused(write(&mut client(&with_ca(&etcd))));
    assert_eq!((status, &*message), (400, "etcdserver: user name is empty"));

    let other_authority = Config {
        ca_file: etcd.file("client.pem"),
        ..with_user(with_ca(&etcd))
    };
    let (_, reason) = no_answer(write(&mut client(&other_authority)));
    assert!(reason.contains("certificate"), "{reason}");
    let other_host = Config {
        endpoints: vec![etcd.endpoint(0).replace("127.0.0.1", "127.0.0.2")],
        ..with_user(with_ca(&etcd))
    };
    // Etcd listens at the first address only; at the second its certificate would not do either.
    no_answer(write(&mut client(&other_host)));
    let without_tls = Config {
        endpoints: vec![etcd.endpoint(0).replace("https", "http")],
        ..with_user(with_ca(&etcd))
    };
    no_answer(write(&mut client(&without_tls)));
}

#[test]
fn a_new_token_replaces_one_that_etcd_has_forgotten() {
    let Some(mut etcd) = start(1, Security::Open) else {
        return;
    };
    etcd.require_users(PREFIX);
    let mut client = client(&with_user(config(&etcd, PATIENT)));
    assert!(write(&mut client).is_ok());
    etcd.restart(&[0]);
    let answer = write(&mut client);
    assert!(answer.is_ok(), "{answer:?}");
}

#[test]
fn certificates_of_clients() {
    let Some(mut etcd) = start(1, Security::ClientCertificates) else {
        return;
    };
    // In the alert of TLS, or because the connection ends before that is read.
    let (_, reason) = no_answer(write(&mut client(&with_ca(&etcd))));
    assert!(reason.to_lowercase().contains("certificate"), "{reason}");
    for name in ["client", "named"] {
        let answer = write(&mut client(&with_certificate(&etcd, name)));
        assert!(answer.is_ok(), "{name}: {answer:?}");
    }
    etcd.require_users(PREFIX);
    let unnamed = with_user(with_certificate(&etcd, "client"));
    let answer = write(&mut client(&unnamed));
    assert!(answer.is_ok(), "{answer:?}");
    let named = with_user(with_certificate(&etcd, "named"));
    let (status, message) = refused(write(&mut client(&named)));
    assert_eq!(status, 400);
    assert!(message.contains("CommonName"), "{message}");
}

#[test]
fn a_member_that_hangs_costs_one_timeout() {
    let Some(mut etcd) = start(3, Security::Open) else {
        return;
    };
    let leader = etcd.leader();
    let follower = (leader + 1) % 3;
    let hanging = etcd.endpoint(follower);
    let at_the_follower = || {
        let mut client = client(&config(&etcd, SHORT));
        let answered = read(&mut client).is_ok() && client.endpoint() == hanging;
        answered.then_some(client)
    };
    let mut client = wait_for("a client that begins there", at_the_follower);
    etcd.stop(follower);
    let (endpoint, reason) = no_answer(read(&mut client));
    assert_eq!(endpoint, hanging);
    assert_eq!(reason, format!("no answer within {SHORT} ms"));
    assert_eq!(client.endpoint(), etcd.endpoint((follower + 1) % 3));
    wait_for("the others to answer", || read(&mut client).ok());
    etcd.go_on(follower);
}

#[test]
fn a_leader_that_is_killed_has_a_successor() {
    let Some(mut etcd) = start(3, Security::Open) else {
        return;
    };
    let mut client = client(&config(&etcd, SHORT));
    wait_for("etcd to write", || write(&mut client).ok());
    let leader = etcd.leader();
    etcd.kill(leader);
    wait_for("the others to write", || write(&mut client).ok());
    assert_ne!(etcd.leader(), leader);
    etcd.restart(&[leader]);
    wait_for("all to write", || write(&mut client).ok());
}

#[test]
fn nobody_answers_and_everybody_again() {
    let Some(mut etcd) = start(3, Security::Open) else {
        return;
    };
    let mut client = client(&config(&etcd, PATIENT));
    let answer = write(&mut client);
    assert!(answer.is_ok(), "{answer:?}");
    for member in 0..3 {
        etcd.kill(member);
    }
    let first = no_answer(write(&mut client));
    let mut asked = vec![first.0];
    for _ in 0..2 {
        let (endpoint, reason) = no_answer(write(&mut client));
        assert_eq!(reason, "Connection refused");
        asked.push(endpoint);
    }
    asked.sort();
    let mut all = etcd.endpoints();
    all.sort();
    assert_eq!(asked, all);
    etcd.restart(&[0, 1, 2]);
    let answer = write(&mut client);
    assert!(answer.is_ok(), "{answer:?}");
}
