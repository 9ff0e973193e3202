//! Tests of several modules together.

mod properties;
mod replacing;
