//! What users call: the label provider behind `SECURITY LABEL`, and the functions under the extension's SQL.

mod edit_label;
mod explain;
pub mod label_provider;
mod limits;
mod stats;
mod viewer;
mod views;
