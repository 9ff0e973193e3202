//! A client of etcd's JSON gateway, as small as limits that count over several servers need it: it sends one request and
//! says what came back. It knows neither PostgreSQL nor what the requests mean.
//!
//! It is a library of its own because only one process needs it: session_limit's second worker, which loads it when it starts
//! ([`abi`]). No login maps it. It starts no thread, writes to no log, and reads no environment variable.

#![deny(unsafe_code)]
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![warn(clippy::indexing_slicing)]

#[allow(unsafe_code)]
pub mod abi;
mod addresses;
mod config;
mod etcd;
mod patience;
mod tls;

pub use config::{BadConfig, Config};
pub use etcd::{Etcd, Failure};
