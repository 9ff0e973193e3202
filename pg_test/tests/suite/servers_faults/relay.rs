//! Stands before an etcd, passes on what it is asked, and may say that etcd is large.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::{io, thread};

pub struct Relay {
    pub endpoint: String,
    shared: Arc<Shared>,
}

struct Shared {
    /// Host and port of etcd.
    etcd: String,
    is_large: AtomicBool,
    transactions: AtomicUsize,
}

impl Relay {
    pub fn start(etcd: &str) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let shared = Arc::new(Shared {
            etcd: etcd.trim_start_matches("http://").to_string(),
            is_large: AtomicBool::new(false),
            transactions: AtomicUsize::new(0),
        });
        let for_all = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = for_all.clone();
                // Who leaves in between is no matter.
                thread::spawn(move || shared.serve(client));
            }
        });
        Relay { endpoint, shared }
    }

    pub fn say_that_it_is_large(&self, is_large: bool) {
        self.shared.is_large.store(is_large, Ordering::SeqCst);
    }

    /// How many were asked for.
    pub fn transactions(&self) -> usize {
        self.shared.transactions.load(Ordering::SeqCst)
    }
}

impl Shared {
    /// Answers one request.
    fn serve(&self, client: TcpStream) -> io::Result<()> {
        let mut client = BufReader::new(client);
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let begin = head.len();
            if client.read_line(&mut head)? == 0 {
                return Ok(());
            }
            let line = head[begin..].to_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        let mut body = vec![0; length];
        client.read_exact(&mut body)?;
        let path = head.split(' ').nth(1).unwrap_or_default();
        if path == "/v3/kv/txn" {
            self.transactions.fetch_add(1, Ordering::SeqCst);
        }
        let is_large = self.is_large.load(Ordering::SeqCst);
        let answer = if is_large && path == "/v3/maintenance/status" {
            let size = r#"{"dbSize": "2147483648", "dbSizeInUse": "1073741824"}"#;
            let length = size.len();
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}");
            format!("{head}\r\n\r\n{size}").into_bytes()
        } else {
            self.ask_etcd(path, &body)?
        };
        client.get_mut().write_all(&answer)
    }

    fn ask_etcd(&self, path: &str, body: &[u8]) -> io::Result<Vec<u8>> {
        let mut etcd = TcpStream::connect(&self.etcd)?;
        let head = format!("POST {path} HTTP/1.1\r\nHost: etcd\r\nConnection: close");
        let length = body.len();
        write!(etcd, "{head}\r\nContent-Length: {length}\r\n\r\n")?;
        etcd.write_all(body)?;
        let mut answer = Vec::new();
        etcd.read_to_end(&mut answer)?;
        Ok(answer)
    }
}
