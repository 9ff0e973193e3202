//! The model of `session_limit`: which limits apply to a login, and what becomes of it.
//!
//! This crate knows no PostgreSQL and has no unsafe code. Its tables are slices that the caller owns, in shared memory
//! or not. The caller also takes the lock: exclusively for a `&mut Table`, shared for a `&Table`. What runs under the
//! exclusive lock, [`decide::attempt`] and [`sweep::Sweep::end`], allocates nothing. Roles, groups and databases are
//! OIDs.
//!
//! Read in this order:
//! - [`limit`], [`per`] and [`network`] are the words. [`label`] and [`label_target`] are how users write limits, in whatever
//!   [`encoding`], and [`precedence`] says which limits apply to a login.
//! - [`session`], [`members`] and [`table`] say who is in and whom a limit counts, [`queue`] who waits, and [`atomics`]
//!   what of both needs no lock. [`own_table`] is a table in a process's own memory.
//! - [`count`] counts, fast, and [`tally`] different roles and addresses. [`decide`] turns an [`attempt`] to log in into
//!   a [`verdict`]; [`order`] says which waiters go before it, and [`replace`] whose session ends for it. [`sweep`] says
//!   whose session ends because a limit was lowered.
//! - [`servers`] lets limits count over several servers.
//! - [`event`], [`ring`], [`throttle`], [`counters`] and [`limit_counters`] keep what was decided. [`label_changes`]
//!   spares most logins the look for labels.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

pub mod account;
pub mod atomics;
pub mod attempt;
pub mod count;
pub mod counters;
pub mod decide;
pub mod encoding;
pub mod event;
pub mod json_error;
pub mod label;
pub mod label_changes;
pub mod label_target;
pub mod limit;
pub mod limit_counters;
pub mod members;
pub mod network;
pub mod order;
pub mod own_table;
pub mod per;
pub mod precedence;
pub mod queue;
pub mod replace;
pub mod ring;
pub mod seats;
pub mod servers;
pub mod session;
pub mod sweep;
mod sync;
pub mod table;
pub mod tally;
pub mod throttle;
pub mod verdict;

#[cfg(test)]
mod tests;
