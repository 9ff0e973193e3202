//! What is counted of each login, and of the sweep.

use crate::pg::backend::now;
use crate::record::decision::{Decision, Outcome};
use crate::shmem;
use model::counters::{CountedLogin, CountedOutcome, How, Pair};
use model::limit::{Limit, Object};
use model::limit_counters::{Counted, Happened, WhyRefused};

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
        Outcome::Refused(..) => CountedOutcome::Refused,
        Outcome::Abandoned => CountedOutcome::Abandoned,
    };
    let login = CountedLogin {
        at: now(),
        outcome,
        waited: decision.waited,
        deciding: decision.deciding,
    };
    shmem::change_statistics(|statistics| {
        statistics.count(pair, &login);
        under_limits(decision, |limit, happened| {
            let counted = Counted::Limit(*limit);
            statistics.limits.count(counted, happened, login.at);
        });
    });
}

/// What happened under each limit.
fn under_limits(decision: &Decision, mut happened: impl FnMut(&Limit, Happened)) {
    let admission = match decision.outcome {
        Outcome::Refused(excess, why) => return happened(&excess.limit, Happened::Refused(why)),
        Outcome::Abandoned => return,
        Outcome::Replaced(admission, _, excess) => {
            happened(&excess.limit, Happened::Replaced);
            admission
        }
        Outcome::Admitted(admission) => admission,
    };
    if let Some((excess, ended)) = &admission.over {
        let would = match ended.number {
            0 => Happened::WouldRefuse,
            _ => Happened::WouldReplace,
        };
        happened(&excess.limit, would);
    }
    for (limit, in_use) in decision.limits.iter().zip(decision.in_use) {
        happened(limit, Happened::Admitted(in_use.get().unwrap_or(0)));
    }
}

/// Counts a session that the sweep has told to end.
pub fn swept(limit: &Limit) {
    count(Counted::Limit(*limit), Happened::Swept);
}

pub fn unreadable_label(object: Object) {
    let why = Happened::Refused(WhyRefused::UnreadableLabel);
    count(Counted::UnreadableLabel(object), why);
}

fn count(counted: Counted, happened: Happened) {
    let at = now();
    shmem::change_statistics(|statistics| statistics.limits.count(counted, happened, at));
}
