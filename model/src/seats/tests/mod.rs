//! The cases that have a name.

mod any_steps;

use super::*;
use std::collections::HashMap;

const PLACES: usize = 6;
const BACKENDS: usize = 5;
const LONG: u64 = 1_000_000;

impl<K: Copy + Eq + std::hash::Hash> Map<K> for HashMap<K, u32> {
    fn get(&self, key: &K) -> Option<u32> {
        HashMap::get(self, key).copied()
    }

    fn insert(&mut self, key: &K, number: u32) -> bool {
        assert!(self.len() < PLACES, "never more than there are places");
        HashMap::insert(self, *key, number).is_none()
    }

    fn remove(&mut self, key: &K) {
        assert!(HashMap::remove(self, key).is_some(), "it was there");
    }
}

type Maps = (HashMap<Key, u32>, HashMap<Id, u32>);

struct Memory {
    places: [Place; PLACES],
    known: [KeyInUse; PLACES],
    backends: [Backend; BACKENDS],
    heap: [Deadline; PLACES],
    of_seats: [u32; PLACES],
}

impl Memory {
    fn new() -> Memory {
        Memory {
            places: [Place::FREE; PLACES],
            known: [KeyInUse::FREE; PLACES],
            backends: [Backend::NONE; BACKENDS],
            heap: [Deadline::NONE; PLACES],
            of_seats: [0; PLACES],
        }
    }

    fn seats(&mut self) -> Seats<'_, HashMap<Key, u32>, HashMap<Id, u32>> {
        let deadlines = Deadlines::new(&mut self.heap, &mut self.of_seats);
        let maps = Maps::default();
        Seats::new(
            &mut self.places,
            &mut self.known,
            &mut self.backends,
            deadlines,
            maps,
        )
    }
}

fn key(number: u8) -> Key {
    Key::new(1, &[number]).expect("short")
}

fn at(tick: u64) -> Now {
    Now {
        tick,
        time: tick as i64,
    }
}

fn id(number: u8) -> Id {
    [number; 16]
}

/// A request of the backend with this number, whose role has the same number, for a seat of the key 1.
fn request(slot: u32, name: u8, max: u32) -> Request {
    Request {
        key: key(1),
        id: id(name),
        holder: Holder {
            role: slot,
            pid: 100 + slot,
            slot,
            session: u64::from(slot),
            address: None,
        },
        max,
        ttl_us: None,
        replaces: false,
    }
}

fn naming(slot: u32, name: u8) -> Named {
    Named {
        id: id(name),
        database: 1,
        role: slot,
    }
}

#[test]
fn a_key_is_a_text_in_a_database() {
    let one = Key::new(7, b"bob").expect("short");
    assert_eq!((one.database(), one.text()), (7, b"bob".as_slice()));
    assert_ne!(Key::new(8, b"bob"), Some(one));
    assert_ne!(Key::new(7, b"bob\0"), Some(one));
    assert_eq!(Key::new(7, b""), None);
    assert_eq!(Key::new(7, &[b'x'; MAX_KEY + 1]), None);
    let long = Key::new(7, &[b'x'; MAX_KEY]).expect("just so");
    assert_eq!(long.text().len(), MAX_KEY);
}

#[test]
fn who_waits_gets_the_seat_in_the_order_of_arrival() {
    let mut memory = Memory::new();
    let mut seats = memory.seats();
    let mut found = Found::with_room(BACKENDS);
    let mut take = |seats: &mut Seats<_, _>, request: &Request, may_wait| {
        found.clear();
        let taking = seats.take(at(10), request, may_wait, &mut found);
        (taking.expect("no crowd"), found.wake.clone())
    };
    let [first, second, third] = [1, 2, 3].map(|slot| request(slot, slot as u8, 1));
    assert_eq!(take(&mut seats, &first, true).0, Taking::Taken);
    assert_eq!(take(&mut seats, &second, true).0, Taking::Waiting(None));
    assert_eq!(take(&mut seats, &third, true).0, Taking::Waiting(None));
    let mut found = Found::with_room(BACKENDS);
    let released = seats.release(at(11), naming(1, 1), &mut found);
    assert_eq!(released, Answer::Done);
    // The one that has the seat, and the one that is first now.
    assert_eq!(found.wake, [3, 2]);
    assert_eq!(take(&mut seats, &first, false).0, Taking::Refused(1));
    assert_eq!(take(&mut seats, &second, true).0, Taking::Taken);
    assert_eq!(take(&mut seats, &third, true).0, Taking::Waiting(None));
}

#[test]
fn the_first_that_waits_wakes_when_a_lease_ends() {
    let mut memory = Memory::new();
    let mut seats = memory.seats();
    let mut found = Found::with_room(BACKENDS);
    let lease = |slot, max, ttl_us| Request {
        ttl_us: Some(ttl_us),
        ..request(slot, slot as u8, max)
    };
    let mut take = |tick, request: &Request| {
        found.clear();
        let taking = seats.take(at(tick), request, true, &mut found);
        (taking.expect("no crowd"), found.wake.clone())
    };
    assert_eq!(take(0, &request(0, 0, 1)).0, Taking::Taken);
    assert_eq!(take(0, &request(1, 1, 1)).0, Taking::Waiting(None));
    assert_eq!(take(0, &request(2, 2, 1)).0, Taking::Waiting(None));
    // A lease comes that ends before they would look.
    assert_eq!(take(1, &lease(3, 2, 100)), (Taking::Taken, vec![1]));
    assert_eq!(take(1, &request(1, 1, 1)).0, Taking::Waiting(Some(101)));
    assert_eq!(take(1, &request(2, 2, 1)).0, Taking::Waiting(None));
    assert_eq!(take(100, &request(4, 4, 2)).0, Taking::Waiting(None));
    assert_eq!(take(101, &request(1, 1, 1)).0, Taking::Waiting(None));
    // The place of the lease was for the last, whose max is larger.
    assert_eq!(take(101, &request(4, 4, 2)).0, Taking::Taken);
}

#[test]
fn a_lease_that_ends_sooner_wakes_the_first_that_waits() {
    let mut memory = Memory::new();
    let mut seats = memory.seats();
    let mut found = Found::with_room(BACKENDS);
    let lease = Request {
        ttl_us: Some(LONG),
        ..request(1, 1, 1)
    };
    let mut take = |seats: &mut Seats<_, _>, request| seats.take(at(0), request, true, &mut found);
    assert_eq!(take(&mut seats, &lease), Ok(Taking::Taken));
    let waits = Ok(Taking::Waiting(Some(LONG)));
    assert_eq!(take(&mut seats, &request(2, 2, 1)), waits);
    let mut found = Found::with_room(BACKENDS);
    let renewed = seats.renew(at(5), naming(1, 1), Some(10), &mut found);
    assert_eq!(
        (renewed, found.wake.as_slice()),
        (Answer::Done, [2].as_slice())
    );
    found.clear();
    let renewed = seats.renew(at(14), naming(1, 1), None, &mut found);
    assert_eq!(
        (renewed, found.wake.as_slice()),
        (Answer::Done, [].as_slice())
    );
    assert_eq!(
        seats.renew(at(24), naming(1, 1), None, &mut found),
        Answer::Gone
    );
}

#[test]
fn only_seats_of_the_own_role_are_replaced_and_all_or_none() {
    let mut memory = Memory::new();
    let mut seats = memory.seats();
    let mut found = Found::with_room(BACKENDS);
    for (slot, name) in [(1, 1), (2, 2), (1, 3)] {
        let taking = seats.take(at(0), &request(slot, name, 3), false, &mut found);
        assert_eq!(taking, Ok(Taking::Taken));
    }
    let replacing = |max| Request {
        replaces: true,
        ..request(1, 9, max)
    };
    let taking = seats.take(at(1), &replacing(1), false, &mut found);
    assert_eq!(taking, Ok(Taking::Refused(3)));
    assert_eq!((found.ended.len(), found.oldest.len()), (0, 3));
    let taking = seats.take(at(1), &replacing(2), false, &mut found);
    assert_eq!(taking, Ok(Taking::Replaced(2)));
    let ended: Vec<Id> = found.ended.iter().map(|ended| ended.seat.id).collect();
    assert_eq!(ended, [id(1), id(3)]);
}

#[test]
fn who_has_not_learnt_of_its_seat_leaves_none() {
    let mut memory = Memory::new();
    let mut seats = memory.seats();
    let mut found = Found::with_room(BACKENDS);
    let lease = Request {
        ttl_us: Some(LONG),
        ..request(2, 2, 1)
    };
    let _ = seats.take(at(0), &request(1, 1, 1), false, &mut found);
    let _ = seats.take(at(0), &lease, true, &mut found);
    let _ = seats.release(at(1), naming(1, 1), &mut found);
    assert_eq!(seats.held(0..PLACES, 1).count(), 1, "the lease");
    assert!(seats.leave(at(2), 2, &mut found));
    assert_eq!(seats.held(0..PLACES, 2).count(), 0);
    // Of one that has learnt of it the lease stays.
    assert_eq!(
        seats.take(at(3), &lease, true, &mut found),
        Ok(Taking::Taken)
    );
    assert!(seats.leave(at(4), 2, &mut found));
    assert_eq!(seats.held(0..PLACES, 4).count(), 1);
}

#[test]
fn an_eviction_spares_who_comes_after_it() {
    let mut memory = Memory::new();
    let mut seats = memory.seats();
    let mut found = Found::with_room(BACKENDS);
    let _ = seats.take(at(0), &request(1, 1, 1), false, &mut found);
    let _ = seats.take(at(0), &request(2, 2, 1), true, &mut found);
    let taken = seats.taken();
    assert_eq!(seats.evict(at(1), &key(1), taken, &mut found), Ok(1));
    assert_eq!(seats.evict(at(1), &key(1), taken, &mut found), Ok(0));
    let taking = seats.take(at(1), &request(2, 2, 1), true, &mut found);
    assert_eq!(taking, Ok(Taking::Taken));
}

#[test]
fn a_lease_begins_when_its_holder_learns_of_it() {
    let mut memory = Memory::new();
    let mut seats = memory.seats();
    let mut found = Found::with_room(BACKENDS);
    let lease = Request {
        ttl_us: Some(10),
        ..request(2, 2, 1)
    };
    let _ = seats.take(at(0), &request(1, 1, 1), false, &mut found);
    let _ = seats.take(at(0), &lease, true, &mut found);
    let _ = seats.release(at(1), naming(1, 1), &mut found);
    // It runs late, and has its seat all the same.
    assert_eq!(
        seats.take(at(100), &request(3, 3, 1), false, &mut found),
        Ok(Taking::Refused(1))
    );
    assert_eq!(
        seats.take(at(200), &lease, false, &mut found),
        Ok(Taking::Taken)
    );
    assert_eq!(
        seats.renew(at(209), naming(2, 2), None, &mut found),
        Answer::Done
    );
    assert_eq!(
        seats.renew(at(219), naming(2, 2), None, &mut found),
        Answer::Gone
    );
}

#[test]
fn an_eviction_takes_as_many_holds_as_it_needs() {
    let mut memory = Memory::new();
    let mut seats = memory.seats();
    let mut found = Found::with_room(BACKENDS);
    for name in 0..2 {
        let lease = Request {
            ttl_us: Some(10),
            ..request(0, name, 9)
        };
        assert_eq!(
            seats.take(at(0), &lease, false, &mut found),
            Ok(Taking::Taken)
        );
    }
    for name in 2..5 {
        let taken = seats.take(at(0), &request(0, name, 9), false, &mut found);
        assert_eq!(taken, Ok(Taking::Taken));
    }
    // As many leases are due as end in one hold.
    let taken = seats.taken();
    let mut evict = || {
        found.clear();
        seats.evict(at(10), &key(1), taken, &mut found)
    };
    assert_eq!(
        [evict(), evict(), evict(), evict()],
        [Err(Again), Ok(2), Ok(1), Ok(0)]
    );
}
