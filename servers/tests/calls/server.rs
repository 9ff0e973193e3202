//! A server whose every connection is handled by a function of the test.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

pub struct Server {
    pub endpoint: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    counts: Mutex<HashMap<&'static str, usize>>,
    changed: Condvar,
}

impl Shared {
    fn raise(&self, name: &'static str) -> usize {
        let mut counts = self.counts.lock().expect("counts");
        let count = counts.entry(name).or_default();
        *count += 1;
        let count = *count;
        self.changed.notify_all();
        count
    }

    fn count(&self, name: &'static str) -> usize {
        let counts = self.counts.lock().expect("counts");
        counts.get(name).copied().unwrap_or_default()
    }
}

pub struct Connection {
    stream: BufReader<TcpStream>,
    shared: Arc<Shared>,
}

pub struct Request {
    pub path: String,
    headers: HashMap<String, String>,
    pub body: String,
}

impl Server {
    /// Each connection is closed when the function returns.
    pub fn start(handle: impl Fn(&mut Connection) + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let shared = Arc::new(Shared::default());
        let (handle, for_all) = (Arc::new(handle), shared.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                for_all.raise("connections");
                let (handle, shared) = (handle.clone(), for_all.clone());
                thread::spawn(move || {
                    let mut connection = Connection {
                        stream: BufReader::new(stream),
                        shared: shared.clone(),
                    };
                    handle(&mut connection);
                    drop(connection);
                    shared.raise("closed");
                });
            }
        });
        Server { endpoint, shared }
    }

    /// Every request has the same answer.
    pub fn always(status: u16, body: &'static str) -> Server {
        Server::start(move |connection| {
            while connection.request().is_some() {
                connection.answer(status, body);
            }
        })
    }

    pub fn connections(&self) -> usize {
        self.shared.count("connections")
    }

    /// Adds one to a number that the test has given a name.
    pub fn raise(&self, name: &'static str) -> usize {
        self.shared.raise(name)
    }

    pub fn count(&self, name: &'static str) -> usize {
        self.shared.count(name)
    }

    pub fn wait_for_closed(&self, number: usize) {
        let mut counts = self.shared.counts.lock().expect("counts");
        while counts.get("closed").copied().unwrap_or_default() < number {
            counts = self.shared.changed.wait(counts).expect("counts");
        }
    }
}

impl Connection {
    /// None: the client has left.
    pub fn request(&mut self) -> Option<Request> {
        let first = self.line()?;
        let path = first.strip_prefix("POST ")?.strip_suffix(" HTTP/1.1")?;
        let mut headers = HashMap::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            headers.insert(name.to_lowercase(), value.to_string());
        }
        let len = headers.get("content-length")?.parse().ok()?;
        let mut body = vec![0; len];
        self.stream.read_exact(&mut body).ok()?;
        Some(Request {
            path: path.to_string(),
            headers,
            body: String::from_utf8(body).expect("a body in UTF-8"),
        })
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let len = self.stream.read_line(&mut line).ok()?;
        (len > 0).then(|| line.trim_end().to_string())
    }

    pub fn answer(&mut self, status: u16, body: &str) {
        let len = body.len();
        self.write(&format!(
            "HTTP/1.1 {status} Words\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}"
        ));
    }

    /// As etcd's gateway does it.
    pub fn refuse(&mut self, status: u16, words: &str) {
        let words = format!("etcdserver: {words}").replace('\n', "\\n");
        let body = format!(r#"{{"error": "{words}", "message": "{words}", "code": 3}}"#);
        self.answer(status, &body);
    }

    pub fn write(&mut self, text: &str) {
        self.write_bytes(text.as_bytes());
    }

    pub fn write_bytes(&mut self, bytes: &[u8]) {
        self.tries_to_write(bytes);
    }

    /// False: the client has left.
    pub fn tries_to_write(&mut self, bytes: &[u8]) -> bool {
        self.stream.get_mut().write_all(bytes).is_ok()
    }

    pub fn wait_until_the_client_leaves(&mut self) {
        let _ = self.stream.read_to_end(&mut Vec::new());
    }

    pub fn raise(&self, name: &'static str) -> usize {
        self.shared.raise(name)
    }

    pub fn count(&self, name: &'static str) -> usize {
        self.shared.count(name)
    }
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}
