//! The atomics: those of `std`, or, for `tests/interleavings.rs`, those of `loom`, which tries every order of steps.

#[cfg(feature = "loom")]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(feature = "loom"))]
pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
