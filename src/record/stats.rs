//! What is counted of each login.

use crate::pg::backend::now;
use crate::record::decision::{Decision, Outcome};
use crate::shmem;
use model::counters::{CountedLogin, CountedOutcome, How, Pair};

/// Counts a login.
pub fn decided(decision: &Decision) {
    let pair = Pair {
        role: decision.session.role,
        database: decision.session.database,
    };
    let outcome = match decision.outcome {
        Outcome::Admitted(admission) => CountedOutcome::Admitted {
            sessions: admission.sessions,
            how: match admission.over {
                None => How::Room,
                Some((_, ended)) if ended.number == 0 => How::WouldRefuse,
                Some(_) => How::WouldReplace,
            },
        },
        Outcome::Replaced(admission, ..) => CountedOutcome::Admitted {
            sessions: admission.sessions,
            how: How::Replaced,
        },
        Outcome::Refused(_) => CountedOutcome::Refused,
        Outcome::Abandoned => CountedOutcome::Abandoned,
    };
    let login = CountedLogin {
        at: now(),
        outcome,
        waited: decision.waited,
        deciding: decision.deciding,
    };
    shmem::change_statistics(|statistics| statistics.count(pair, &login));
}
