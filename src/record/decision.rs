//! How a login ended.

use crate::pg::client::Client;
use crate::slot::InUse;
use model::limit::Limit;
use model::limit_counters::WhyRefused;
use model::session::Session;
use model::verdict::{Admission, Ended, Excess};
use std::time::Duration;

pub struct Decision<'a> {
    pub client: &'a Client<'a>,
    pub session: Session,
    /// Those that it had to meet.
    pub limits: &'a [Limit],
    /// For each of them how many sessions it counts, if the login was admitted.
    pub in_use: &'a [InUse],
    pub outcome: Outcome<'a>,
    /// None if it did not wait.
    pub waited: Option<Duration>,
    /// How long it took besides.
    pub deciding: Duration,
}

pub enum Outcome<'a> {
    Admitted(&'a Admission),
    /// These sessions have ended for it; else it would have been over that limit.
    Replaced(&'a Admission, &'a Ended, &'a Excess),
    Refused(&'a Excess, WhyRefused),
    /// Its client closed the connection while it waited.
    Abandoned,
}
