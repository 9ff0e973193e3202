//! What users call: the label provider behind `SECURITY LABEL`, and the functions under the extension's SQL.

mod edit_label;
mod explain;
mod in_force;
pub mod label_provider;
mod limit_stats;
mod limits;
mod released;
mod seats;
mod servers;
mod standings;
mod stats;
mod status;
mod subject;
mod usage;
mod viewer;
mod views;

use crate::pg::memory;
use pgrx::iter::TableIterator;

/// The rows of a function. The server takes them one by one, and keeps them: each is made only if there is memory for it.
fn in_memory<Row: 'static>(rows: impl Iterator<Item = Row>) -> TableIterator<'static, Row> {
    let mut all = Vec::new();
    memory::extend(&mut all, rows);
    TableIterator::new(all.into_iter().inspect(|_| memory::require(0)))
}
