//! One request to etcd, one answer.

use crate::addresses::Addresses;
use crate::config::{BadConfig, Config, is_tls, said, shown};
use crate::patience::Connecting;
use crate::tls;
use serde::Deserialize;
use serde_json::json;
use std::hash::{BuildHasher, RandomState};
use std::io::ErrorKind;
use std::time::{Duration, Instant};
use ureq::http::Uri;
use ureq::unversioned::transport::{Connector, RustlsConnector};
use ureq::{Agent, Error};

pub struct Etcd {
    agent: Agent,
    addresses: Addresses,
    has_certificate: bool,
    endpoints: Vec<Uri>,
    /// Which one is asked: that which answered last.
    at: usize,
    user: String,
    password: String,
    token: Option<String>,
    timeout: Duration,
}

/// Why a call has no result.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// Whether etcd has done what the request says is not known.
    NoAnswer { endpoint: String, reason: String },
    /// Etcd, or what is there in its stead, says no: an HTTP status other than 200.
    Refused {
        endpoint: String,
        status: u16,
        message: String,
    },
}

/// More than all keys of limits that anyone will have. Etcd sends what it is asked for, however much that is.
const LONGEST_ANSWER: u64 = 16 << 20;

/// Characters of a message that are passed on. Etcd's own are shorter; what else is there may send pages.
const LONGEST_MESSAGE: usize = 300;

/// How long an idle connection is used again. A network that forgets idle connections does so after minutes, without a word.
const LONGEST_IDLE: Duration = Duration::from_secs(30);

impl Etcd {
    /// Reads the files; connects to nobody.
    pub fn new(config: &Config) -> Result<Etcd, BadConfig> {
        let endpoints = config.checked()?;
        let timeout = Duration::from_millis(config.timeout.into());
        let agent = Agent::config_builder()
            .timeout_global(Some(timeout))
            .tls_config(tls::config(config)?)
            .http_status_as_error(false)
            // Etcd sends nobody elsewhere.
            .max_redirects(0)
            .max_redirects_will_error(false)
            // That of the environment is not meant for a server.
            .proxy(None)
            .max_idle_age(LONGEST_IDLE)
            .user_agent("session_limit")
            .build();
        let addresses = Addresses::default();
        let connector = Connecting::default().chain(RustlsConnector::default());
        Ok(Etcd {
            agent: Agent::with_parts(agent, connector, addresses.clone()),
            addresses,
            has_certificate: !config.cert_file.is_empty(),
            // Not all servers begin with the same member, which may be the one that hangs.
            at: RandomState::new().hash_one(()) as usize % endpoints.len(),
            endpoints,
            user: config.user.clone(),
            password: config.password.clone(),
            token: None,
            timeout,
        })
    }

    /// Sends a request, such as `/v3/kv/txn`, to one endpoint: that which answered last. If it fails, the next call asks the
    /// next one. Logging in, when it is due, is part of the call and of its time.
    pub fn call(&mut self, path: &str, body: &str) -> Result<String, Failure> {
        let mut time = Time {
            end: Instant::now() + self.timeout,
            begun: false,
        };
        if self.token.is_none() && !self.user.is_empty() {
            self.log_in(&mut time)?;
        }
        let answer = self.send(path, body, &mut time);
        match answer {
            Err(Failure::Refused {
                status, message, ..
            }) if self.token.is_some() && is_about_token(status, &message) => {
                self.log_in(&mut time)?;
                self.send(path, body, &mut time)
            }
            answer => answer,
        }
    }

    /// Gets a token. Etcd forgets it after a while, and when it restarts.
    fn log_in(&mut self, time: &mut Time) -> Result<(), Failure> {
        #[derive(Deserialize)]
        struct Answer {
            token: String,
        }
        self.token = None;
        let body = json!({"name": self.user, "password": self.password}).to_string();
        let answer = self.send("/v3/auth/authenticate", &body, time)?;
        match serde_json::from_str(&answer) {
            Ok(Answer { token }) => {
                self.token = Some(token);
                Ok(())
            }
            Err(error) => Err(self.no_answer(format!("no token came for the password: {error}"))),
        }
    }

    fn send(&mut self, path: &str, body: &str, time: &mut Time) -> Result<String, Failure> {
        let (status, text) = match self.exchange(path, body, time) {
            Ok(answer) => answer,
            Err(error) => {
                let mut reason = reason(&error, self.timeout);
                if self.might_want_a_certificate(&error) {
                    reason += "; it may require certificates of its clients";
                }
                return Err(self.no_answer(reason));
            }
        };
        let text = match String::from_utf8(text) {
            Ok(text) if status != 200 || is_object(&text) => text,
            _ => return Err(self.no_answer("what came is not JSON".to_string())),
        };
        if status == 200 {
            return Ok(text);
        }
        let (message, of_etcd) = message(&text);
        let endpoint = self.endpoint();
        // Another member would say the same, unless this one is in trouble, or no etcd.
        if status >= 500 || !of_etcd {
            self.turn();
        }
        Err(Failure::Refused {
            endpoint,
            status,
            message,
        })
    }

    /// The status and the body of what comes back.
    fn exchange(&self, path: &str, body: &str, time: &mut Time) -> Result<(u16, Vec<u8>), Error> {
        let url = self.endpoint() + path;
        let mut request = self.agent.post(url);
        if let Some(token) = &self.token {
            request = request.header("authorization", token);
        }
        request = request.header("content-type", "application/json");
        if let Some(left) = time.left() {
            request = request.config().timeout_global(Some(left)).build();
        }
        let mut answer = request.send(body)?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(LONGEST_ANSWER);
        Ok((status, body.read_to_vec()?))
    }

    /// With TLS 1.3 who has no certificate learns so when the connection has been made, and may find it closed instead.
    fn might_want_a_certificate(&self, error: &Error) -> bool {
        let closed = matches!(error, Error::Io(error) if matches!(
            error.kind(),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof
        ));
        closed && !self.has_certificate && self.endpoints.get(self.at).is_some_and(is_tls)
    }

    fn no_answer(&mut self, reason: String) -> Failure {
        let endpoint = self.endpoint();
        if let Some(uri) = self.endpoints.get(self.at) {
            self.addresses.doubt(uri);
        }
        self.turn();
        Failure::NoAnswer { endpoint, reason }
    }

    fn turn(&mut self) {
        self.at = (self.at + 1) % self.endpoints.len();
    }

    /// Which one the next call asks.
    pub fn endpoint(&self) -> String {
        self.endpoints.get(self.at).map(shown).unwrap_or_default()
    }
}

/// Of a call, for all its requests.
struct Time {
    end: Instant,
    begun: bool,
}

impl Time {
    /// What is left after a first request. The first has ureq's setting: only for such a one does ureq keep what it has prepared
    /// for TLS.
    fn left(&mut self) -> Option<Duration> {
        let first = !std::mem::replace(&mut self.begun, true);
        (!first).then(|| self.end.saturating_duration_since(Instant::now()))
    }
}

fn reason(error: &Error, timeout: Duration) -> String {
    match error {
        Error::Timeout(_) => format!("no answer within {} ms", timeout.as_millis()),
        Error::HostNotFound => "the host has no address".to_string(),
        Error::Io(error) => one_line(&said(error)),
        error => one_line(&error.to_string()),
    }
}

/// Etcd does not know the token, or something has been changed about users and roles since it gave it.
fn is_about_token(status: u16, message: &str) -> bool {
    status == 401 || message.contains("revision of auth store is old")
}

fn is_object(text: &str) -> bool {
    let text = text.trim();
    text.starts_with('{') && text.ends_with('}')
}

/// What the body of a refusal says, and whether it is etcd's gateway that says so.
fn message(text: &str) -> (String, bool) {
    #[derive(Deserialize)]
    struct Said {
        message: String,
    }
    match serde_json::from_str(text) {
        Ok(Said { message }) => (one_line(&message), true),
        Err(_) => (one_line(text), false),
    }
}

fn one_line(text: &str) -> String {
    let blanks = text.trim().chars().take(LONGEST_MESSAGE);
    blanks
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect()
}
