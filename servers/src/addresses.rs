//! The addresses of the endpoints' hosts. ureq's own resolver starts a thread for each call that has a timeout.

use crate::config::host;
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Asks the system in this thread, which may take seconds where its name servers do not answer, whatever the timeout of the
/// call. So it is asked as seldom as can be: once, and again when an endpoint has failed, which may be elsewhere now.
#[derive(Clone, Debug, Default)]
pub struct Addresses(Arc<Mutex<HashMap<String, Known>>>);

/// How long the system is not asked again for the same host.
const PAUSE: Duration = Duration::from_secs(60);

/// What ureq takes.
const MOST_ADDRESSES: usize = 16;

#[derive(Debug)]
struct Known {
    addresses: Vec<SocketAddr>,
    asked: Instant,
    doubted: bool,
}

impl Addresses {
    /// The endpoint did not answer: ask before the next call to it, unless that was done a moment ago.
    pub fn doubt(&self, uri: &Uri) {
        if let Some(known) = self.known().get_mut(&name(uri)) {
            known.doubted = true;
        }
    }

    fn of(
        &self,
        uri: &Uri,
        now: Instant,
        ask: impl FnOnce() -> io::Result<Vec<SocketAddr>>,
    ) -> io::Result<Vec<SocketAddr>> {
        let mut known = self.known();
        let known_of_it = known.get_mut(&name(uri));
        if let Some(known) = &known_of_it
            && !(known.doubted && now.saturating_duration_since(known.asked) >= PAUSE)
        {
            return Ok(known.addresses.clone());
        }
        match (ask(), known_of_it) {
            (Ok(addresses), _) => {
                let new = Known {
                    addresses: addresses.clone(),
                    asked: now,
                    doubted: false,
                };
                known.insert(name(uri), new);
                Ok(addresses)
            }
            // Better the old ones than none.
            (Err(_), Some(known)) => {
                known.asked = now;
                Ok(known.addresses.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolver for Addresses {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let ask = || {
            // Those without a port are refused before.
            let authority = uri.authority().ok_or(io::ErrorKind::InvalidInput)?;
            let port = uri.port_u16().ok_or(io::ErrorKind::InvalidInput)?;
            Ok((host(authority.host()), port).to_socket_addrs()?.collect())
        };
        let addresses = self.of(uri, Instant::now(), ask)?;
        let mut found = self.empty();
        for address in addresses.into_iter().take(MOST_ADDRESSES) {
            found.push(address);
        }
        if found.is_empty() {
            return Err(Error::HostNotFound);
        }
        Ok(found)
    }
}

fn name(uri: &Uri) -> String {
    uri.authority().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Vec<SocketAddr> {
        vec![SocketAddr::from(([10, 0, 0, last], 2379))]
    }

    fn refuses_to_ask() -> io::Result<Vec<SocketAddr>> {
        unreachable!("asked")
    }

    #[test]
    fn the_system_is_asked_once() {
        let (addresses, uri) = (Addresses::default(), Uri::from_static("http://a:2379"));
        let now = Instant::now();
        let late = now + 100 * PAUSE;
        assert_eq!(
            addresses.of(&uri, now, || Ok(address(1))).ok(),
            Some(address(1))
        );
        assert_eq!(
            addresses.of(&uri, late, refuses_to_ask).ok(),
            Some(address(1))
        );
    }

    #[test]
    fn and_again_after_a_failure_and_a_pause() {
        let (addresses, uri) = (Addresses::default(), Uri::from_static("http://a:2379"));
        let now = Instant::now();
        assert!(addresses.of(&uri, now, || Ok(address(1))).is_ok());
        addresses.doubt(&uri);
        let soon = now + PAUSE / 2;
        assert_eq!(
            addresses.of(&uri, soon, refuses_to_ask).ok(),
            Some(address(1))
        );
        let later = now + PAUSE;
        assert_eq!(
            addresses.of(&uri, later, || Ok(address(2))).ok(),
            Some(address(2))
        );
        let late = now + 100 * PAUSE;
        assert_eq!(
            addresses.of(&uri, late, refuses_to_ask).ok(),
            Some(address(2))
        );
    }

    #[test]
    fn what_is_known_serves_while_the_system_cannot_say() {
        let (addresses, uri) = (Addresses::default(), Uri::from_static("http://a:2379"));
        let now = Instant::now();
        let cannot_say = || Err(io::Error::other("no name server"));
        assert!(addresses.of(&uri, now, cannot_say).is_err());
        assert!(addresses.of(&uri, now, || Ok(address(1))).is_ok());
        addresses.doubt(&uri);
        let later = now + PAUSE;
        assert_eq!(addresses.of(&uri, later, cannot_say).ok(), Some(address(1)));
        // Not in each call.
        let soon = later + PAUSE / 2;
        assert_eq!(
            addresses.of(&uri, soon, refuses_to_ask).ok(),
            Some(address(1))
        );
    }
}
