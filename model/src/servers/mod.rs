//! Limits that count over several servers: the places that each holds in etcd.
//!
//! [`counter`] names a count, [`place`] says how many sessions may be here under it, `entry` who has them, and [`round`] asks etcd for more, and
//! gives back. [`member`] says who lives, `tidying` deletes what the others left. [`protocol`] puts these in order, and speaks in [`transaction`]s, which
//! [`etcd_json`] writes.

pub mod counter;
mod entry;
pub mod etcd_json;
pub mod member;
pub mod place;
pub mod protocol;
mod round;
mod tidying;
pub mod transaction;

#[cfg(test)]
mod tests;
