//! The way of one server to etcd: a TCP proxy for each member, which fails as networks do.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// What becomes of what is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Flow {
    #[default]
    Passes,
    /// Requests are held back. They arrive later, and not before those that are sent meanwhile, though who sent them may have
    /// given up.
    RequestsWait,
    /// Requests arrive, and the answers are held back.
    AnswersWait,
    /// All connections are cut, and nobody gets another one.
    Closed,
}

/// What was held back arrives so long after others can pass again.
const ARRIVES_LATER: Duration = Duration::from_millis(200);

/// Etcd may not do what was asked over a connection that is closed at once.
const CLOSE_LATER: Duration = Duration::from_millis(300);

pub struct Link {
    way: Arc<Way>,
    ports: Vec<u16>,
}

#[derive(Default)]
struct Way {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    flow: Flow,
    over: bool,
    /// The two ends of each.
    connections: HashMap<u64, [TcpStream; 2]>,
    /// So many were made.
    made: u64,
    /// When the requests were sent that etcd has done, in order.
    contacts: Vec<Instant>,
}

impl Link {
    /// To the members that listen on these ports.
    pub fn to(members: &[u16]) -> Link {
        let way = Arc::new(Way::default());
        let listen = |member: &u16| {
            let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
            let port = listener.local_addr().expect("an address").port();
            let (way, member) = (way.clone(), *member);
            thread::spawn(move || way.listen(&listener, member));
            port
        };
        let ports = members.iter().map(listen).collect();
        Link { way, ports }
    }

    /// What the server is told to connect to.
    pub fn endpoints(&self) -> String {
        let endpoints = self.ports.iter();
        let endpoints = endpoints.map(|port| format!("http://127.0.0.1:{port}"));
        endpoints.collect::<Vec<_>>().join(",")
    }

    pub fn set(&self, flow: Flow) {
        self.way.lock().flow = flow;
        self.way.changed.notify_all();
        if flow == Flow::Closed {
            self.cut();
        }
    }

    /// Ends all connections. New ones can be made.
    pub fn cut(&self) {
        let mut state = self.way.lock();
        state.connections.drain().for_each(|(_, ends)| close(&ends));
    }

    /// When the last request was sent that etcd has done.
    pub fn contact(&self) -> Option<Instant> {
        self.way.lock().contacts.last().copied()
    }

    /// Whether since then no time as long as `silence` has passed in which no request was sent that etcd has done.
    pub fn is_in_touch_since(&self, since: Instant, silence: Duration) -> bool {
        let state = self.way.lock();
        let mut next = Instant::now();
        for contact in state.contacts.iter().rev() {
            if next.saturating_duration_since(*contact) >= silence {
                return false;
            }
            if *contact <= since {
                return true;
            }
            next = *contact;
        }
        false
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.way.lock().over = true;
        self.set(Flow::Closed);
        for port in &self.ports {
            // The listener wakes up, and finds that it is over.
            let _ = TcpStream::connect(("127.0.0.1", *port));
        }
    }
}

impl Way {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the state of a link")
    }

    fn listen(self: Arc<Way>, listener: &TcpListener, member: u16) {
        for server in listener.incoming() {
            if self.lock().over {
                return;
            }
            let etcd = TcpStream::connect(("127.0.0.1", member));
            if let (Ok(server), Ok(etcd)) = (server, etcd) {
                self.connect(server, etcd);
            }
        }
    }

    fn connect(self: &Arc<Way>, server: TcpStream, etcd: TcpStream) {
        let mut state = self.lock();
        if state.flow == Flow::Closed {
            return;
        }
        state.made += 1;
        let number = state.made;
        let copy = |stream: &TcpStream| stream.try_clone().expect("a socket");
        let ends = [copy(&server), copy(&etcd)];
        state.connections.insert(number, ends);
        let sent = Arc::new(Mutex::new(None));
        for (from, to, is_request) in [(copy(&server), copy(&etcd), true), (etcd, server, false)] {
            let (way, sent) = (self.clone(), sent.clone());
            thread::spawn(move || way.carry(number, from, to, is_request, &sent));
        }
    }

    /// Carries what is sent in one direction. `sent`: when the request was sent that is not answered yet.
    fn carry(
        &self,
        number: u64,
        mut from: TcpStream,
        mut to: TcpStream,
        is_request: bool,
        sent: &Mutex<Option<Instant>>,
    ) {
        let _ = to.set_nodelay(true);
        let mut bytes = [0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut bytes) {
            let bytes = &bytes[..length];
            let mut sent = sent.lock().expect("a time");
            if is_request {
                sent.get_or_insert_with(Instant::now);
            } else if let Some(sent) = sent.take() {
                self.note(sent, bytes);
            }
            drop(sent);
            self.wait(is_request);
            if to.write_all(bytes).is_err() {
                break;
            }
        }
        if is_request {
            thread::sleep(CLOSE_LATER);
        }
        if let Some(ends) = self.lock().connections.remove(&number) {
            close(&ends);
        }
    }

    /// Notes when this was sent, if the answer begins as one that says that it was done.
    fn note(&self, sent: Instant, answer: &[u8]) {
        let mut state = self.lock();
        let is_news = state.contacts.last().is_none_or(|last| *last < sent);
        if is_news && answer.starts_with(b"HTTP/1.1 200") {
            state.contacts.push(sent);
        }
    }

    /// Returns when it may pass.
    fn wait(&self, is_request: bool) {
        let held = match is_request {
            true => Flow::RequestsWait,
            false => Flow::AnswersWait,
        };
        let state = self.lock();
        if state.flow != held {
            return;
        }
        let waits = |state: &mut State| state.flow == held;
        drop(self.changed.wait_while(state, waits));
        if is_request {
            thread::sleep(ARRIVES_LATER);
        }
    }
}

fn close(ends: &[TcpStream; 2]) {
    for end in ends {
        let _ = end.shutdown(Shutdown::Both);
    }
}
