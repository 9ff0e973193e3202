//! What is kept of seats.

use crate::pg::backend;
use crate::record::events::{self, Seat};
use crate::shmem;
use model::counters::{Pair, SeatCounters};
use model::event::EventKind;
use model::seats::{Ended, Holder, Key, Request, Taking, Why};
use std::time::Duration;

/// How a call for a seat ended.
pub fn called(request: &Request, taking: Taking, waited: Option<Duration>) {
    let (kind, in_use) = match (taking, waited) {
        (Taking::Refused(in_use), _) => (EventKind::SeatRefused, Some(in_use)),
        (Taking::Taken | Taking::Replaced(_), None) => (EventKind::SeatTaken, None),
        (Taking::Taken | Taking::Replaced(_), Some(_)) => (EventKind::SeatWaited, None),
        (Taking::Full | Taking::Waiting(_), _) => return,
    };
    count(
        &request.key,
        &request.holder,
        SeatCounters {
            taken: in_use.is_none().into(),
            refused: in_use.is_some().into(),
            waited: waited.is_some().into(),
            replaced: match taking {
                Taking::Replaced(number) => number.into(),
                _ => 0,
            },
            ..SeatCounters::default()
        },
    );
    let seat = Seat::new(&request.key, request.max).of_call(in_use, waited);
    events::seat(kind, &request.key, &request.holder, seat);
}

/// Seats that ended though nobody released them. Those that were replaced are counted by the call that did it.
pub fn ended(ended: &[Ended]) {
    for Ended { why, key, seat } in ended {
        let count = |more| count(key, &seat.holder, more);
        let event = Seat::new(key, seat.max);
        let (kind, event) = match why {
            Why::Expired => {
                count(SeatCounters {
                    expired: 1,
                    ..SeatCounters::default()
                });
                (EventKind::SeatExpired, event)
            }
            Why::Replaced => (EventKind::SeatReplaced, event.ended_by_me()),
            Why::Evicted => {
                count(SeatCounters {
                    evicted: 1,
                    ..SeatCounters::default()
                });
                (EventKind::SeatEvicted, event.ended_by_me())
            }
        };
        events::seat(kind, key, &seat.holder, event);
    }
}

fn count(key: &Key, holder: &Holder, more: SeatCounters) {
    let pair = Pair {
        role: holder.role,
        database: key.database(),
    };
    backend::uninterrupted(|| {
        shmem::change_statistics(|statistics| statistics.count_seats(pair, &more));
    });
}
