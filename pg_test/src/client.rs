//! A client of the server's protocol that shows every field of an error, and sends its startup
//! packet when told to.

use crate::{PATIENCE, wait_for};
use bytes::{Buf, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::{backend, frontend};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, test_kill_process};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// Where to log in, and as whom.
#[derive(Clone, Debug)]
pub struct Target {
    pub endpoint: Endpoint,
    pub user: String,
    /// None: a physical replication connection.
    pub database: Option<String>,
    /// For scram-sha-256.
    pub password: Option<String>,
    /// More parameters of the startup packet.
    pub options: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Endpoint {
    Unix(PathBuf),
    Tcp(u16),
    /// From this address of the loopback network, such as 127.0.0.2.
    TcpFrom(IpAddr, u16),
}

/// The fields of an ErrorResponse by their one-letter codes; none if the server just closed the
/// connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub fields: BTreeMap<char, String>,
    /// Whether AuthenticationOk came first.
    pub authenticated: bool,
}

impl Refusal {
    pub fn sqlstate(&self) -> &str {
        self.field('C')
    }

    pub fn message(&self) -> &str {
        self.field('M')
    }

    pub fn detail(&self) -> &str {
        self.field('D')
    }

    pub fn hint(&self) -> &str {
        self.field('H')
    }

    fn field(&self, code: char) -> &str {
        self.fields.get(&code).map_or("", String::as_str)
    }
}

trait Stream: Read + Write + Send {
    fn close(&self);
}

impl Stream for UnixStream {
    fn close(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

impl Stream for TcpStream {
    fn close(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

/// A connection that has not said yet what it wants.
pub struct Connection {
    stream: Box<dyn Stream>,
    read: BytesMut,
    scram: Option<Box<ScramSha256>>,
}

impl Target {
    /// The same to another database.
    pub fn to(self, database: &str) -> Target {
        Target {
            database: Some(database.to_string()),
            ..self
        }
    }

    /// Connects; the server starts a process, which waits for the startup packet.
    pub fn connect(&self) -> Connection {
        self.try_connect()
            .unwrap_or_else(|error| panic!("connect to {:?}: {error}", self.endpoint))
    }

    /// The same to a server that may be down.
    pub fn try_connect(&self) -> io::Result<Connection> {
        let stream: Box<dyn Stream> = match &self.endpoint {
            Endpoint::Unix(path) => UnixStream::connect(path).and_then(|stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                Ok(Box::new(stream) as Box<dyn Stream>)
            }),
            Endpoint::Tcp(port) => TcpStream::connect(("127.0.0.1", *port)).and_then(boxed),
            Endpoint::TcpFrom(from, port) => connect_from(*from, *port).and_then(boxed),
        }?;
        let password = self.password.as_ref();
        Ok(Connection {
            stream,
            read: BytesMut::new(),
            scram: password.map(|it| {
                let scram = ScramSha256::new(it.as_bytes(), ChannelBinding::unsupported());
                Box::new(scram)
            }),
        })
    }

    /// Logs in.
    pub fn login(&self) -> Result<Session, Refusal> {
        let mut connection = self.connect();
        connection.send_startup(self);
        connection.outcome()
    }

    /// Logs in many times at once: every connection is there before the first startup packet is
    /// sent.
    pub fn storm(&self, logins: usize) -> Vec<Result<Session, Refusal>> {
        let mut connections: Vec<Connection> = (0..logins).map(|_| self.connect()).collect();
        for connection in &mut connections {
            connection.send_startup(self);
        }
        connections.into_iter().map(Connection::outcome).collect()
    }
}

fn boxed(stream: TcpStream) -> io::Result<Box<dyn Stream>> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(Box::new(stream))
}

fn connect_from(address: IpAddr, port: u16) -> io::Result<TcpStream> {
    let (family, server): (_, IpAddr) = match address {
        IpAddr::V4(_) => (AddressFamily::INET, Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(_) => (AddressFamily::INET6, Ipv6Addr::LOCALHOST.into()),
    };
    // A child that inherited the socket would keep the session.
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddr::new(address, 0))?;
    rustix::net::connect(&socket, &SocketAddr::new(server, port))?;
    Ok(TcpStream::from(socket))
}

impl Connection {
    pub fn send_startup(&mut self, target: &Target) {
        let mut parameters = vec![("user", target.user.as_str())];
        match &target.database {
            Some(database) => parameters.push(("database", database)),
            None => parameters.push(("replication", "true")),
        }
        parameters.extend(
            target
                .options
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
        );
        let mut packet = BytesMut::new();
        frontend::startup_message(parameters, &mut packet).expect("a startup packet");
        // A server that is shutting down may have closed the connection: the outcome says so.
        let _ = self.stream.write_all(&packet);
    }

    /// Reads until the server has decided.
    pub fn outcome(mut self) -> Result<Session, Refusal> {
        let (mut authenticated, mut pid) = (false, 0);
        loop {
            match self.next() {
                Some(backend::Message::AuthenticationOk) => authenticated = true,
                Some(backend::Message::AuthenticationSasl(_)) => self.answer(|scram, packet| {
                    frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), packet)
                }),
                Some(backend::Message::AuthenticationSaslContinue(body)) => {
                    self.answer(|scram, packet| {
                        scram.update(body.data())?;
                        frontend::sasl_response(scram.message(), packet)
                    })
                }
                Some(backend::Message::AuthenticationSaslFinal(body)) => {
                    self.answer(|scram, _| scram.finish(body.data()))
                }
                Some(backend::Message::BackendKeyData(key)) => pid = key.process_id(),
                Some(backend::Message::ReadyForQuery(_)) => {
                    return Ok(Session {
                        connection: self,
                        pid,
                    });
                }
                Some(backend::Message::ErrorResponse(error)) => {
                    return Err(Refusal {
                        fields: fields(&error),
                        authenticated,
                    });
                }
                Some(_) => {}
                None => {
                    return Err(Refusal {
                        fields: BTreeMap::new(),
                        authenticated,
                    });
                }
            }
        }
    }

    /// The next message; None when the server has closed the connection.
    fn next(&mut self) -> Option<backend::Message> {
        loop {
            if let Some(message) =
                backend::Message::parse(&mut self.read).expect("the server's protocol")
            {
                return Some(message);
            }
            let mut bytes = [0; 8192];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(length) => self.read.extend_from_slice(&bytes[..length]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("read from the server: {error}"),
            }
        }
    }

    /// Takes the next step of SCRAM.
    fn answer(&mut self, step: impl FnOnce(&mut ScramSha256, &mut BytesMut) -> io::Result<()>) {
        let scram = self.scram.as_mut().expect("a password");
        let mut packet = BytesMut::new();
        step(scram, &mut packet).expect("SCRAM");
        let _ = self.stream.write_all(&packet);
    }

    fn send_query(&mut self, sql: &str) {
        let mut packet = BytesMut::new();
        frontend::query(sql, &mut packet).expect("a query");
        let _ = self.stream.write_all(&packet);
    }
}

fn fields(error: &backend::ErrorResponseBody) -> BTreeMap<char, String> {
    let field = |field: backend::ErrorField<'_>| {
        Ok((
            field.type_() as char,
            String::from_utf8_lossy(field.value_bytes()).into_owned(),
        ))
    };
    error
        .fields()
        .map(field)
        .collect()
        .expect("the fields of an error")
}

/// A session. Dropped, it ends as a client that just closes its socket.
pub struct Session {
    connection: Connection,
    pub pid: i32,
}

impl Session {
    /// Runs SQL and returns the rows; each value as text, null as "".
    pub fn try_query(&mut self, sql: &str) -> Result<Vec<Vec<String>>, Refusal> {
        self.connection.send_query(sql);
        let (mut rows, mut error) = (Vec::new(), None);
        loop {
            match self.connection.next() {
                Some(backend::Message::DataRow(row)) => rows.push(values(&row)),
                Some(backend::Message::ErrorResponse(body)) => {
                    error = Some(Refusal {
                        fields: fields(&body),
                        authenticated: true,
                    });
                }
                Some(backend::Message::ReadyForQuery(_)) => return error.map_or(Ok(rows), Err),
                Some(_) => {}
                None => {
                    let closed = Refusal {
                        fields: BTreeMap::new(),
                        authenticated: true,
                    };
                    return Err(error.unwrap_or(closed));
                }
            }
        }
    }

    /// Sends SQL, and waits for nothing.
    pub fn send(&mut self, sql: &str) {
        self.connection.send_query(sql);
    }

    pub fn query(&mut self, sql: &str) -> Vec<Vec<String>> {
        self.try_query(sql)
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    /// The only value of the only row.
    pub fn value(&mut self, sql: &str) -> String {
        let mut rows = self.query(sql);
        assert!(
            rows.len() == 1 && rows[0].len() == 1,
            "{sql}: not one value but {rows:?}"
        );
        rows.remove(0).remove(0)
    }

    /// Whether the server has not ended the session.
    pub fn is_alive(&mut self) -> bool {
        self.try_query("SELECT 1").is_ok()
    }

    /// Says goodbye, and returns when the backend is no more.
    pub fn end(self) {
        let pid = Pid::from_raw(self.pid).expect("a backend's process ID");
        self.close();
        wait_for("a backend to exit", || {
            test_kill_process(pid).is_err().then_some(())
        });
    }

    /// Says goodbye, and returns at once: the backend is still leaving.
    pub fn close(mut self) {
        let mut packet = BytesMut::new();
        frontend::terminate(&mut packet);
        let _ = self.connection.stream.write_all(&packet);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stream.close();
    }
}

fn values(row: &backend::DataRowBody) -> Vec<String> {
    let buffer = row.buffer();
    let value = |range: Option<std::ops::Range<usize>>| {
        let bytes = range.map_or(&[][..], |range| &buffer.chunk()[range]);
        Ok(String::from_utf8_lossy(bytes).into_owned())
    };
    row.ranges()
        .map(value)
        .collect()
        .expect("the values of a row")
}
