//! How long is waited: as long as the call may take, unless the program wants to end meanwhile. It is asked in between.
//!
//! ureq itself waits in one piece. That may be a minute, and a signal does not end it.

use std::io;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use ureq::Error;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, NextTimeout, TcpConnector, Transport,
};

/// Says whether calls are to be given up. Not set: they are not.
pub(crate) static GIVES_UP: OnceLock<extern "C" fn() -> bool> = OnceLock::new();

/// How long a connection is waited for before the program is asked; then it is begun anew. So etcd must not be farther away.
const TO_CONNECT: Duration = Duration::from_secs(1);

/// How long an answer is waited for before the program is asked.
const TO_ANSWER: Duration = Duration::from_millis(100);

/// Connects as ureq does.
#[derive(Debug, Default)]
pub struct Connecting(TcpConnector);

/// What comes over the connection is waited for in pieces. What is sent is not: it is far less than what the system takes at once.
#[derive(Debug)]
pub struct Waiting<T>(T);

impl Connector<()> for Connecting {
    type Out = Waiting<<TcpConnector as Connector<()>>::Out>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        _: Option<()>,
    ) -> Result<Option<Self::Out>, Error> {
        let transport = in_pieces(details.timeout, TO_CONNECT, |timeout| {
            let details = ConnectionDetails {
                uri: details.uri,
                addrs: details.addrs.clone(),
                config: details.config,
                request_level: details.request_level,
                resolver: details.resolver,
                now: (details.current_time)(),
                timeout,
                current_time: details.current_time.clone(),
                run_connector: details.run_connector.clone(),
                register_shutdown: details.register_shutdown.clone(),
            };
            self.0.connect(&details, None::<()>)
        })?;
        Ok(transport.map(Waiting))
    }
}

impl<T: Transport> Transport for Waiting<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        in_pieces(timeout, TO_ANSWER, |timeout| self.0.await_input(timeout))
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }

    fn is_tls(&self) -> bool {
        self.0.is_tls()
    }
}

/// Waits until there is a result, or the time is over, or the program says that it is enough.
fn in_pieces<T>(
    timeout: NextTimeout,
    piece: Duration,
    mut wait: impl FnMut(NextTimeout) -> Result<T, Error>,
) -> Result<T, Error> {
    let began = Instant::now();
    loop {
        if GIVES_UP.get().is_some_and(|gives_up| gives_up()) {
            return Err(Error::Io(io::Error::other("the call was given up")));
        }
        let left = timeout.after.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(Error::Timeout(timeout.reason));
        }
        let after = left.min(piece).into();
        match wait(NextTimeout { after, ..timeout }) {
            Err(Error::Timeout(_)) => {}
            result => return result,
        }
    }
}
