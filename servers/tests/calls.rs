//! The client against a small server in the test, which says what etcd, or what is there in its stead, may say.

#[path = "calls/abi.rs"]
mod abi;
#[path = "calls/alone.rs"]
mod alone;
#[path = "calls/config.rs"]
mod config;
#[path = "calls/server.rs"]
mod server;

use server::{Connection, Server};
use session_limit_servers::{Config, Etcd, Failure};
use std::collections::HashSet;
use std::net::TcpListener;

/// Longer than any machine is busy; what must time out has a timeout of its own.
const TIMEOUT: u32 = 60_000;

fn client(endpoints: &[&str]) -> Etcd {
    client_with(Config::default(), endpoints)
}

fn client_with(config: Config, endpoints: &[&str]) -> Etcd {
    let config = Config {
        endpoints: endpoints.iter().map(ToString::to_string).collect(),
        timeout: match config.timeout {
            0 => TIMEOUT,
            timeout => timeout,
        },
        ..config
    };
    Etcd::new(&config).expect("a client")
}

fn with_user() -> Config {
    Config {
        user: "pg".to_string(),
        password: "se\"cret".to_string(),
        ..Config::default()
    }
}

/// An endpoint at which nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("an address"))
}

fn no_answer(result: Result<String, Failure>) -> (String, String) {
    match result {
        Err(Failure::NoAnswer { endpoint, reason }) => (endpoint, reason),
        other => panic!("not without an answer: {other:?}"),
    }
}

fn refused(result: Result<String, Failure>) -> (u16, String) {
    match result {
        Err(Failure::Refused {
            status, message, ..
        }) => (status, message),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn one_connection_serves_many_calls() {
    let server = Server::start(|connection| {
        while let Some(request) = connection.request() {
            assert_eq!(request.path, "/v3/kv/range");
            assert_eq!(request.header("authorization"), None);
            connection.answer(200, &format!("{{\"got\": {}}}", request.body));
        }
    });
    let mut etcd = client(&[&server.endpoint]);
    for number in 0..5 {
        let body = number.to_string();
        let answer = etcd.call("/v3/kv/range", &body);
        assert_eq!(answer, Ok(format!("{{\"got\": {number}}}")));
    }
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_connection_that_etcd_has_closed_is_not_used_again() {
    let server = Server::start(|connection| {
        connection.request();
        connection.answer(200, "{}");
    });
    let mut etcd = client(&[&server.endpoint]);
    for number in 1..4 {
        assert_eq!(etcd.call("/v3/kv/range", "{}"), Ok("{}".to_string()));
        server.wait_for_closed(number);
    }
}

#[test]
fn an_answer_may_come_in_pieces() {
    let server = Server::start(|connection| {
        connection.request();
        connection.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        for piece in ["{\"a\":", " \"ä", "\"}\n"] {
            connection.write(&format!("{:x}\r\n{piece}\r\n", piece.len()));
        }
        connection.write("0\r\n\r\n");
    });
    let mut etcd = client(&[&server.endpoint]);
    assert_eq!(
        etcd.call("/v3/kv/range", "{}"),
        Ok("{\"a\": \"ä\"}\n".to_string())
    );
}

#[test]
fn after_a_failure_the_next_endpoint_is_asked_and_stays() {
    let server = Server::always(200, "{}");
    for _ in 0..4 {
        let nobody = nobody();
        let mut etcd = client(&[&nobody, &server.endpoint]);
        let first = etcd.call("/v3/kv/range", "{}");
        if first.is_err() {
            assert_eq!(no_answer(first), (nobody, "Connection refused".to_string()));
        }
        for _ in 0..5 {
            assert_eq!(etcd.endpoint(), server.endpoint);
            assert!(etcd.call("/v3/kv/range", "{}").is_ok());
        }
    }
}

#[test]
fn clients_begin_anywhere() {
    let begins = (0..200).map(|_| client(&["http://a:1", "http://b:1", "http://c:1"]).endpoint());
    assert_eq!(begins.collect::<HashSet<_>>().len(), 3);
}

#[test]
fn who_says_nothing_is_left_in_time() {
    let silent = Server::start(|connection| {
        connection.request();
        connection.wait_until_the_client_leaves();
    });
    // Half an answer is none, either.
    let halting = Server::start(|connection| {
        connection.request();
        connection.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{");
        connection.wait_until_the_client_leaves();
    });
    let config = Config {
        timeout: 100,
        ..Config::default()
    };
    let mut etcd = client_with(config, &[&silent.endpoint, &halting.endpoint]);
    let mut asked = HashSet::new();
    for _ in 0..4 {
        let (endpoint, reason) = no_answer(etcd.call("/v3/kv/range", "{}"));
        assert_eq!(reason, "no answer within 100 ms");
        asked.insert(endpoint);
    }
    assert_eq!(asked.len(), 2);
}

/// A server with a user whose tokens are numbered: only the last one is good, and none if it is `broken`.
fn with_tokens(connection: &mut Connection) {
    while let Some(request) = connection.request() {
        let good = format!("token.{}", connection.count("logins"));
        match &*request.path {
            "/v3/auth/authenticate" if request.body.contains(r#""se\"cret""#) => {
                let token = format!("token.{}", connection.raise("logins"));
                connection.answer(200, &format!(r#"{{"token": "{token}"}}"#));
            }
            "/v3/auth/authenticate" => connection.refuse(400, "authentication failed"),
            "/v3/old" if connection.raise("old") == 1 => {
                connection.refuse(400, "revision of auth store is old");
            }
            _ if connection.count("broken") == 0
                && request.header("authorization") == Some(&good) =>
            {
                connection.answer(200, "{}");
            }
            _ => connection.refuse(401, "invalid auth token"),
        }
    }
}

#[test]
fn a_user_logs_in_once_and_again_for_a_new_token() {
    let server = Server::start(with_tokens);
    let mut etcd = client_with(with_user(), &[&server.endpoint]);
    for _ in 0..2 {
        assert_eq!(etcd.call("/v3/kv/range", "{}"), Ok("{}".to_string()));
    }
    assert_eq!(server.count("logins"), 1);
    // Etcd has forgotten the token.
    server.raise("logins");
    assert_eq!(etcd.call("/v3/kv/range", "{}"), Ok("{}".to_string()));
    assert_eq!(server.count("logins"), 3);
    assert_eq!(etcd.call("/v3/old", "{}"), Ok("{}".to_string()));
    assert_eq!(server.count("logins"), 4);
    // Once in a call, not more.
    server.raise("broken");
    let (status, message) = refused(etcd.call("/v3/kv/range", "{}"));
    assert_eq!((status, &*message), (401, "etcdserver: invalid auth token"));
    assert_eq!(server.count("logins"), 5);
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_wrong_password_is_refused() {
    let server = Server::start(with_tokens);
    let config = Config {
        password: "wrong".to_string(),
        ..with_user()
    };
    let mut etcd = client_with(config, &[&server.endpoint]);
    let (status, message) = refused(etcd.call("/v3/kv/range", "{}"));
    assert_eq!(
        (status, &*message),
        (400, "etcdserver: authentication failed")
    );
}

#[test]
fn a_login_without_a_token_is_no_login() {
    let server = Server::always(200, "{}");
    let mut etcd = client_with(with_user(), &[&server.endpoint]);
    let (_, reason) = no_answer(etcd.call("/v3/kv/range", "{}"));
    assert!(reason.contains("no token"), "{reason}");
}

/// A login is part of the call, and so of its time.
#[test]
fn time_goes_on_after_a_login() {
    let server = Server::start(|connection| {
        connection.request();
        connection.answer(200, r#"{"token": "a"}"#);
        connection.request();
        connection.wait_until_the_client_leaves();
    });
    let config = Config {
        timeout: 500,
        ..with_user()
    };
    let mut etcd = client_with(config, &[&server.endpoint]);
    let (_, reason) = no_answer(etcd.call("/v3/kv/range", "{}"));
    assert_eq!(reason, "no answer within 500 ms");
}

#[test]
fn refusals_say_what_etcd_says() {
    let server = Server::start(|connection| {
        connection.request();
        connection.refuse(429, "mvcc: database\n space exceeded");
    });
    let mut etcd = client(&[&server.endpoint, &server.endpoint]);
    let (status, message) = refused(etcd.call("/v3/kv/range", "{}"));
    assert_eq!(status, 429);
    assert_eq!(message, "etcdserver: mvcc: database  space exceeded");
}

#[test]
fn who_is_in_trouble_or_no_etcd_is_left() {
    let no_leader = Server::always(503, r#"{"message": "etcdserver: no leader", "code": 14}"#);
    let no_etcd = Server::always(404, "<html>\nnot here</html>");
    let good = Server::always(400, r#"{"message": "etcdserver: key is not provided"}"#);
    let endpoints = [&no_leader, &no_etcd, &good].map(|server| &*server.endpoint);
    let mut etcd = client(&endpoints);
    let mut answers = HashSet::new();
    for _ in 0..6 {
        answers.insert(refused(etcd.call("/v3/kv/range", "{}")));
    }
    assert!(answers.is_superset(&HashSet::from([(
        400,
        "etcdserver: key is not provided".to_string()
    ),])));
    assert_eq!(etcd.endpoint(), good.endpoint);
    let mut begun_elsewhere = client(&endpoints[..2]);
    let both = [0, 1].map(|_| refused(begun_elsewhere.call("/v3/kv/range", "{}")));
    assert_eq!(
        HashSet::from(both),
        HashSet::from([
            (503, "etcdserver: no leader".to_string()),
            (404, "<html> not here</html>".to_string()),
        ])
    );
}

/// Nobody gets the token but the endpoints.
#[test]
fn no_redirection_is_followed() {
    let elsewhere = Server::always(200, "{}");
    let location = elsewhere.endpoint.clone();
    let server = Server::start(move |connection| {
        connection.request();
        connection.write(&format!(
            "HTTP/1.1 307 Temporary Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
        ));
    });
    let mut etcd = client(&[&server.endpoint]);
    assert_eq!(refused(etcd.call("/v3/kv/range", "{}")).0, 307);
    assert_eq!(elsewhere.connections(), 0);
}

#[test]
fn garbage_is_no_answer() {
    let garbage: [(&str, &[u8]); 8] = [
        ("nothing", b""),
        ("no HTTP", b"\x16\x03\x01\x00\xff\xfe not HTTP\r\n\r\n"),
        ("half a head", b"HTTP/1.1 200 OK\r\nContent-"),
        (
            "half a body",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        ),
        (
            "half a piece",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{}",
        ),
        (
            "no JSON",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        ),
        (
            "no UTF-8",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{\xff}",
        ),
        ("no body", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ];
    for (what, bytes) in garbage {
        let server = Server::start(move |connection| {
            connection.request();
            connection.write_bytes(bytes);
        });
        let mut etcd = client(&[&server.endpoint]);
        let (endpoint, reason) = no_answer(etcd.call("/v3/kv/range", "{}"));
        assert_eq!(endpoint, server.endpoint, "{what}");
        assert!(!reason.is_empty(), "{what}");
    }
}

#[test]
fn an_answer_without_end_is_no_answer() {
    let server = Server::start(|connection| {
        connection.request();
        connection.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let piece = format!("100000\r\n{}\r\n", " ".repeat(0x100000));
        while connection.tries_to_write(piece.as_bytes()) {}
    });
    let mut etcd = client(&[&server.endpoint]);
    let (_, reason) = no_answer(etcd.call("/v3/kv/range", "{}"));
    assert!(reason.contains("limit"), "{reason}");
}
