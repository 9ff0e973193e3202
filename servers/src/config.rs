//! What the client is told when it is made, and what can be wrong with it.

use rustls::pki_types::ServerName;
use serde::Deserialize;
use std::fmt::{Display, Formatter, Result as Written};
use std::io;
use std::path::Path;
use ureq::http::Uri;

/// An empty text stands for what is not set. It has a password, so nothing prints it.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Such as `https://etcd1:2379`; any member of the cluster will do.
    pub endpoints: Vec<String>,
    /// PEM: the authorities that an `https://` endpoint's certificate may be of.
    pub ca_file: String,
    /// PEM: the certificate that is shown to etcd, and its key.
    pub cert_file: String,
    pub key_file: String,
    pub user: String,
    /// The password itself, not a file.
    pub password: String,
    /// Milliseconds that a call may take.
    pub timeout: u32,
}

/// What is wrong with a configuration. It names the setting that says so: `session_limit.etcd_…` without this beginning.
#[derive(Debug, PartialEq, Eq)]
pub struct BadConfig {
    pub setting: &'static str,
    pub reason: String,
}

impl BadConfig {
    pub(crate) fn new(setting: &'static str, reason: impl Into<String>) -> BadConfig {
        let reason = reason.into();
        BadConfig { setting, reason }
    }
}

impl Display for BadConfig {
    fn fmt(&self, f: &mut Formatter) -> Written {
        write!(f, "{}: {}", self.setting, self.reason)
    }
}

impl Config {
    /// The endpoints, as URLs without a path; the rest is looked at, too, but for what is in files.
    pub(crate) fn checked(&self) -> Result<Vec<Uri>, BadConfig> {
        let endpoints = self.endpoints.iter().map(|text| endpoint(text.trim()));
        let endpoints: Vec<Uri> = endpoints.collect::<Result<_, _>>()?;
        if endpoints.is_empty() {
            return Err(BadConfig::new("endpoints", "there is none"));
        }
        let tls = endpoints.iter().find(|uri| is_tls(uri));
        if let (Some(uri), true) = (tls, self.ca_file.is_empty()) {
            let reason = format!(
                "\"{}\" needs a file of certificates to be verified by",
                shown(uri)
            );
            return Err(BadConfig::new("ca_file", reason));
        }
        let pairs = [
            ("cert_file", &self.cert_file, "key_file", &self.key_file),
            ("user", &self.user, "password_file", &self.password),
        ];
        for (one, its_value, other, other_value) in pairs {
            match (its_value.is_empty(), other_value.is_empty()) {
                (false, true) => {
                    let reason = format!("must be set, as etcd_{one} is");
                    return Err(BadConfig::new(other, reason));
                }
                (true, false) => {
                    let reason = format!("must be set, as etcd_{other} is");
                    return Err(BadConfig::new(one, reason));
                }
                _ => {}
            }
        }
        if self.timeout == 0 {
            return Err(BadConfig::new("timeout", "must be more than 0"));
        }
        Ok(endpoints)
    }
}

fn endpoint(text: &str) -> Result<Uri, BadConfig> {
    let wrong = |why: &str| BadConfig::new("endpoints", format!("\"{text}\": {why}"));
    let form = "must be like https://etcd.example.com:2379";
    let uri: Uri = text.parse().map_err(|_| wrong(form))?;
    let Some(authority) = uri.authority() else {
        return Err(wrong(form));
    };
    if !["http", "https"].contains(&uri.scheme_str().unwrap_or_default()) {
        return Err(wrong(form));
    }
    if authority.as_str().contains('@') {
        return Err(BadConfig::new(
            "endpoints",
            "a user and password are not part of an endpoint",
        ));
    }
    // The path of a URL without one is "/", too.
    let rest = text.split_once("://").map(|(_, rest)| rest);
    if rest != Some(authority.as_str()) {
        return Err(wrong("must have no path"));
    }
    // HTTP's own would be another one than etcd's.
    if authority.as_str() == authority.host() {
        return Err(wrong("must have a port, such as etcd's 2379"));
    }
    if authority.port_u16().is_none_or(|port| port == 0) {
        return Err(wrong("the port must be a number from 1 to 65535"));
    }
    if is_tls(&uri) && ServerName::try_from(host(authority.host())).is_err() {
        return Err(wrong("no certificate can be for such a host"));
    }
    Ok(uri)
}

pub(crate) fn is_tls(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

/// An IPv6 address without its brackets.
pub(crate) fn host(host: &str) -> &str {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    bare.unwrap_or(host)
}

/// An endpoint as the user has written it.
pub(crate) fn shown(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or_default();
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    format!("{scheme}://{authority}")
}

/// A file's content. What is no file, such as a pipe, might never end.
pub(crate) fn read(setting: &'static str, file: &str) -> Result<Vec<u8>, BadConfig> {
    let file = Path::new(file);
    let content = std::fs::metadata(file).and_then(|about| {
        if about.is_file() {
            std::fs::read(file)
        } else {
            Err(io::Error::other("it is no regular file"))
        }
    });
    content.map_err(|error| {
        let error = said(&error);
        let reason = format!("could not read file \"{}\": {error}", file.display());
        BadConfig::new(setting, reason)
    })
}

/// What the system says, without the number that Rust adds.
pub(crate) fn said(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((words, _)) => words.to_string(),
        None => text,
    }
}
