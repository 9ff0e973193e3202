//! The functions of the library, called as the worker calls them.

use crate::nobody;
use crate::server::Server;
use rcgen::generate_simple_self_signed;
use serde_json::json;
use session_limit_servers::abi::{
    ANSWERED, Answer, BAD_CONFIG, BROKEN, Client, NO_ANSWER, REFUSED, VERSION,
    session_limit_servers_call, session_limit_servers_close, session_limit_servers_open,
    session_limit_servers_version,
};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::{process, slice, str};

pub const NO_MEMORY_STATUS: i32 = 97;

extern "C" fn no_memory(_: usize) -> ! {
    process::exit(NO_MEMORY_STATUS)
}

thread_local! {
    /// The calls of this thread are given up when this was asked so often.
    static PATIENCE: Cell<u32> = const { Cell::new(u32::MAX) };
}

extern "C" fn gives_up() -> bool {
    PATIENCE.set(PATIENCE.get() - 1);
    PATIENCE.get() == 0
}

pub struct Opened {
    client: *mut Client,
    kind: u32,
    text: String,
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: it is open until here.
        unsafe { session_limit_servers_close(self.client) };
    }
}

pub fn open(config: &str) -> Opened {
    let mut answer = MaybeUninit::uninit();
    // SAFETY: all that is passed is there during the call, which writes the answer.
    let (client, answer) = unsafe {
        let (text, len) = (config.as_ptr(), config.len());
        let client =
            session_limit_servers_open(text, len, no_memory, gives_up, answer.as_mut_ptr());
        (client, answer.assume_init())
    };
    assert_eq!((answer.status, answer.endpoint_len), (0, 0));
    Opened {
        client,
        kind: answer.kind,
        text: text(answer.text, answer.text_len),
    }
}

/// Kind, status, text and endpoint.
fn call(opened: &Opened, path: &str, body: &str) -> (u32, u32, String, String) {
    let mut answer = MaybeUninit::<Answer>::uninit();
    let (len, body_len) = (path.len(), body.len());
    // SAFETY: the client is open; all that is passed is there during the call, which writes the answer.
    let answer = unsafe {
        let (path, body) = (path.as_ptr(), body.as_ptr());
        session_limit_servers_call(
            opened.client,
            path,
            len,
            body,
            body_len,
            answer.as_mut_ptr(),
        );
        answer.assume_init()
    };
    let endpoint = text(answer.endpoint, answer.endpoint_len);
    let text = text(answer.text, answer.text_len);
    (answer.kind, answer.status, text, endpoint)
}

fn text(text: *const u8, len: usize) -> String {
    // SAFETY: of an answer, before the client's next call.
    let bytes = unsafe { slice::from_raw_parts(text, len) };
    str::from_utf8(bytes).expect("UTF-8").to_string()
}

#[test]
fn a_client_answers_refuses_and_fails() {
    assert_eq!(session_limit_servers_version(), VERSION);
    let server = Server::start(|connection| {
        while let Some(request) = connection.request() {
            if request.path == "/v3/no" {
                connection.refuse(403, "permission denied");
            } else {
                connection.answer(200, &request.body);
            }
        }
    });
    let endpoint = server.endpoint.as_str();
    let config = format!(r#"{{"endpoints": ["{endpoint}"], "timeout": 60000, "user": ""}}"#);
    let opened = open(&config);
    assert_eq!((opened.kind, &*opened.text), (ANSWERED, ""));
    for body in ["{}", r#"{"a": "ä"}"#, "{}"] {
        let answer = (ANSWERED, 200, body.to_string(), String::new());
        assert_eq!(call(&opened, "/v3/kv/range", body), answer);
    }
    let denied = "etcdserver: permission denied".to_string();
    let answer = (REFUSED, 403, denied, endpoint.to_string());
    assert_eq!(call(&opened, "/v3/no", "{}"), answer);

    let nobody = nobody();
    let opened = open(&format!(
        r#"{{"endpoints": ["{nobody}"], "timeout": 60000}}"#
    ));
    let answer = (NO_ANSWER, 0, "Connection refused".to_string(), nobody);
    assert_eq!(call(&opened, "/v3/kv/range", "{}"), answer);
}

#[test]
fn a_bad_configuration_is_said() {
    for (config, text) in [
        ("", "configuration: EOF"),
        ("\u{1}", "configuration: expected value"),
        (
            r#"{"endpoint": []}"#,
            "configuration: unknown field `endpoint`",
        ),
        (r#"{"endpoints": []}"#, "endpoints: there is none"),
        (
            r#"{"endpoints": ["http://a:1"], "timeout": 0}"#,
            "timeout: ",
        ),
    ] {
        let opened = open(config);
        assert_eq!(opened.kind, BAD_CONFIG);
        assert!(opened.text.starts_with(text), "{}", opened.text);
        assert_eq!(call(&opened, "/v3/kv/range", "{}").0, BROKEN);
    }
}

/// With the longest timeout there is.
#[test]
fn a_call_is_given_up_when_the_program_wants_to_end() {
    let silent = Server::start(|connection| {
        connection.request();
        connection.wait_until_the_client_leaves();
    });
    // Nobody accepts the connection: the system does.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let tls = format!("https://{}", listener.local_addr().expect("an address"));
    let ca = std::env::temp_dir().join(format!("session_limit-ca-{}", process::id()));
    let key = generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
    std::fs::write(&ca, key.cert.pem()).expect("write a file");
    for endpoint in [&silent.endpoint, &tls] {
        let config = json!({"endpoints": [endpoint], "timeout": 60_000, "ca_file": ca});
        let opened = open(&config.to_string());
        assert_eq!((opened.kind, &*opened.text), (ANSWERED, ""));
        // It is asked before it connects, before it waits for an answer, and after a while.
        PATIENCE.set(3);
        let answer = call(&opened, "/v3/kv/range", "{}");
        PATIENCE.set(u32::MAX);
        let given_up = "the call was given up".to_string();
        assert_eq!(answer, (NO_ANSWER, 0, given_up, endpoint.clone()));
    }
    std::fs::remove_file(ca).expect("remove a file");
}
