//! What is kept of a decision: counted (`stats`), remembered and logged (`events`).

pub mod decision;
pub mod events;
mod json;
pub mod seats;
mod stats;

use crate::pg::backend;
use decision::Decision;
use model::limit::Object;
pub use stats::swept;

/// Counts a login that is refused for the sake of a label that cannot be read.
pub fn unreadable_label(object: Object) {
    backend::uninterrupted(|| stats::unreadable_label(object));
}

/// Keeps how a login ended. A session that is told to end meanwhile ends when nothing is left to record.
pub fn decided(decision: &Decision) {
    backend::uninterrupted(|| {
        stats::decided(decision);
        events::decided(decision);
    });
}
