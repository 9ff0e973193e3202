//! What `session_limit` decides, and how. Nothing here knows PostgreSQL, and nothing here is unsafe: the tables are
//! slices that somebody else keeps, in shared memory or not, and locks.
//!
//! Read in this order: `limit` and `network` are the words; `label` is how users write them, and `precedence` says
//! which limits apply to a login. `session`, `members` and `table` say who is in, `queue` who waits, and `atomics` what
//! of both needs no lock. `count` counts, fast. `decide` is what becomes of a login (an `attempt`), `replace` whose
//! session ends for it, and `sweep` whose session ends because a limit was lowered. `event`, `ring`, `throttle` and
//! `counters` keep what was decided.

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

pub mod atomics;
pub mod attempt;
pub mod count;
pub mod counters;
pub mod decide;
pub mod event;
pub mod label;
pub mod label_changes;
pub mod label_target;
pub mod limit;
pub mod members;
pub mod network;
pub mod order;
pub mod own_table;
pub mod precedence;
pub mod queue;
pub mod replace;
pub mod ring;
pub mod session;
pub mod sweep;
mod sync;
pub mod table;
pub mod throttle;
pub mod verdict;

#[cfg(test)]
mod tests;
