//! Any sequence of steps, compared with a plain list of who holds what and who waits.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

/// Takes a step as often as it needs; what wakes is kept.
fn again<T>(found: &mut Found, mut step: impl FnMut(&mut Found) -> Result<T, Again>) -> T {
    let mut woken = Vec::new();
    loop {
        match step(found) {
            Ok(result) => {
                found.wake.extend(woken);
                return result;
            }
            Err(Again) => {
                woken.extend(found.wake.iter().copied());
                found.clear();
            }
        }
    }
}

/// A step of the property test. Names, slots and times are taken modulo what there is.
#[derive(Clone, Debug)]
enum Step {
    Take {
        slot: u32,
        key: u8,
        max: u32,
        ttl: Option<u64>,
        replaces: bool,
        waits: bool,
    },
    /// A waiter looks again.
    Look {
        slot: u32,
        waits: bool,
    },
    GiveUp {
        slot: u32,
    },
    Renew {
        name: usize,
        role: u32,
        ttl: Option<u64>,
    },
    Release {
        name: usize,
        role: u32,
    },
    Evict {
        key: u8,
    },
    Leave {
        slot: u32,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let slot = 0..BACKENDS as u32;
    let ttl = || proptest::option::of(1..40u64);
    prop_oneof![
        6 => (slot.clone(), 0..3u8, 0..4u32, ttl(), any::<bool>(), any::<bool>()).prop_map(
            |(slot, key, max, ttl, replaces, waits)| Step::Take { slot, key, max, ttl, replaces, waits }
        ),
        3 => (slot.clone(), any::<bool>()).prop_map(|(slot, waits)| Step::Look { slot, waits }),
        1 => slot.clone().prop_map(|slot| Step::GiveUp { slot }),
        2 => (0..50usize, 0..3u32, ttl()).prop_map(|(name, role, ttl)| Step::Renew { name, role, ttl }),
        3 => (0..50usize, 0..3u32).prop_map(|(name, role)| Step::Release { name, role }),
        1 => (0..3u8).prop_map(|key| Step::Evict { key }),
        1 => slot.prop_map(|slot| Step::Leave { slot }),
    ]
}

/// The same, said plainly.
#[derive(Default)]
struct Plain {
    /// In the order of taking.
    held: Vec<(Request, Option<u64>)>,
    /// In the order of arrival.
    waiting: Vec<Request>,
}

impl Plain {
    fn number(&self, key: &Key) -> u32 {
        self.held.iter().filter(|(it, _)| it.key == *key).count() as u32
    }

    fn hold(&mut self, now: u64, request: Request) {
        self.held
            .push((request, request.ttl_us.map(|ttl| now + ttl)));
    }

    /// Until it has learnt of it, its lease does not begin.
    fn give(&mut self, request: Request) {
        self.held.push((request, None));
    }

    fn end(&mut self, id: Id) {
        self.held.retain(|(it, _)| it.id != id);
        self.grant();
    }

    fn grant(&mut self) {
        let fits = |waiter: &Request| self.number(&waiter.key) < waiter.max;
        if let Some(place) = self.waiting.iter().position(fits) {
            let request = self.waiting.remove(place);
            self.give(request);
            self.grant();
        }
    }

    fn expire(&mut self, now: u64) {
        loop {
            let due = self
                .held
                .iter()
                .filter_map(|(it, ends)| Some(((*ends)?, it.id)));
            let Some((_, id)) = due.filter(|(ends, _)| *ends <= now).min_by_key(|it| it.0) else {
                return;
            };
            self.end(id);
        }
    }

    fn take(&mut self, now: u64, request: Request, waits: bool) -> Taking {
        if let Some((_, ends)) = self.held.iter_mut().find(|(it, _)| it.id == request.id) {
            *ends = ends.or(request.ttl_us.map(|ttl| now + ttl));
            return Taking::Taken;
        }
        let number = self.number(&request.key);
        if number < request.max {
            if self.held.len() == PLACES {
                return Taking::Full;
            }
            self.hold(now, request);
            return Taking::Taken;
        }
        if request.max > 0 && waits {
            if !self.waiting.iter().any(|it| it.id == request.id) {
                self.waiting.push(request);
            }
            return Taking::Waiting(None);
        }
        self.waiting.retain(|it| it.id != request.id);
        let own = self.held.iter().map(|(it, _)| it);
        let own = own.filter(|it| it.key == request.key && it.holder.role == request.holder.role);
        let needed = (number + 1).saturating_sub(request.max) as usize;
        let ids: Vec<Id> = own.take(needed).map(|it| it.id).collect();
        let replaces = request.replaces && request.max > 0;
        if !replaces || ids.len() < needed {
            return Taking::Refused(number);
        }
        self.held.retain(|(it, _)| !ids.contains(&it.id));
        self.hold(now, request);
        self.grant();
        Taking::Replaced(needed as u32)
    }

    /// The seat as a caller names it.
    fn find(&self, naming: Named) -> Result<usize, Answer> {
        let place = self.held.iter().position(|(it, _)| it.id == naming.id);
        let place = place.filter(|_| naming.database == 1).ok_or(Answer::Gone)?;
        match self.held[place].0.holder.role {
            role if role == naming.role => Ok(place),
            role => Err(Answer::OfRole(role)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn any_steps_are_as_the_plain_list_says(steps in vec((step(), 0..15u64), 0..120)) {
        let mut memory = Memory::new();
        let mut seats = memory.seats();
        let mut plain = Plain::default();
        let mut found = Found::with_room(BACKENDS);
        // What each backend waits for, and everything that was ever asked for.
        let mut waits_for: [Option<Request>; BACKENDS] = [None; BACKENDS];
        let mut names: Vec<Request> = Vec::new();
        // When each waiter looks again by itself.
        let mut alarms = [None; BACKENDS];
        let mut now = 0;
        for (step, later) in steps {
            now += later;
            // Who sleeps until then, or was woken, looks before anything else happens.
            for slot in 0..BACKENDS {
                let due = alarms[slot].is_some_and(|alarm| alarm <= now);
                if let Some(request) = waits_for[slot].filter(|_| due) {
                    found.clear();
                    let taking = again(&mut found, |found| seats.take(at(now), &request, true, found));
                    plain.expire(now);
                    let same = plain.take(now, request, true);
                    alarms[slot] = None;
                    match taking {
                        Taking::Waiting(alarm) => alarms[slot] = alarm,
                        _ => waits_for[slot] = None,
                    }
                    prop_assert_eq!(kind(taking), kind(same));
                    for slot in &found.wake {
                        alarms[*slot as usize] = Some(now);
                    }
                }
            }
            // Only those who never look may have missed an end: here somebody always looks in time.
            let first_lease = |key: Key| plain.held.iter().filter(|(it, _)| it.key == key).filter_map(|(_, ends)| *ends).min();
            for waiter in &plain.waiting {
                if let Some(ends) = first_lease(waiter.key).filter(|ends| *ends > now) {
                    let of_key = |slot: &usize| waits_for[*slot].is_some_and(|it| it.key == waiter.key);
                    let first = (0..BACKENDS).filter(of_key).filter_map(|slot| alarms[slot]).min();
                    prop_assert!(first.is_some_and(|first| first <= ends), "nobody looks at {} {:?}", ends, alarms);
                }
            }
            plain.expire(now);
            found.clear();
            again(&mut found, |found| seats.expire(at(now), found));
            for slot in &found.wake {
                alarms[*slot as usize] = Some(now);
            }
            found.clear();
            match step {
                Step::Take { slot, key: name, max, ttl, replaces, waits } => {
                    if waits_for[slot as usize].is_some() {
                        continue;
                    }
                    let request = Request {
                        key: key(name),
                        ttl_us: ttl,
                        replaces,
                        holder: Holder { role: slot % 3, ..request(slot, 0, max).holder },
                        ..request(slot, names.len() as u8, max)
                    };
                    names.push(request);
                    let taking = again(&mut found, |found| seats.take(at(now), &request, waits, found));
                    let same = plain.take(now, request, waits);
                    prop_assert_eq!(kind(taking), kind(same));
                    if let Taking::Waiting(alarm) = taking {
                        waits_for[slot as usize] = Some(request);
                        alarms[slot as usize] = alarm;
                    }
                }
                Step::Look { slot, waits } => {
                    if let Some(request) = waits_for[slot as usize] {
                        let taking = again(&mut found, |found| seats.take(at(now), &request, waits, found));
                        let same = plain.take(now, request, waits);
                        prop_assert_eq!(kind(taking), kind(same));
                        alarms[slot as usize] = None;
                        match taking {
                            Taking::Waiting(alarm) => alarms[slot as usize] = alarm,
                            _ => waits_for[slot as usize] = None,
                        }
                    }
                }
                Step::GiveUp { slot } => {
                    if let Some(request) = waits_for[slot as usize].take() {
                        seats.give_up(at(now), &request, &mut found);
                        plain.waiting.retain(|it| it.id != request.id);
                        plain.end(request.id);
                    }
                }
                Step::Renew { name, role, ttl } => {
                    let Some(request) = names.get(name % names.len().max(1)) else { continue };
                    let naming = Named { id: request.id, database: 1, role };
                    let renewed = seats.renew(at(now), naming, ttl, &mut found);
                    let same = match plain.find(naming) {
                        Err(why) => why,
                        Ok(place) => match (&mut plain.held[place], ttl) {
                            ((_, None), Some(_)) => Answer::NoLease,
                            ((_, None), None) => Answer::Done,
                            ((request, ends), ttl) => {
                                request.ttl_us = ttl.or(request.ttl_us);
                                *ends = request.ttl_us.map(|ttl| now + ttl);
                                Answer::Done
                            }
                        },
                    };
                    prop_assert_eq!(renewed, same);
                }
                Step::Release { name, role } => {
                    let Some(request) = names.get(name % names.len().max(1)) else { continue };
                    let naming = Named { id: request.id, database: 1, role };
                    let released = seats.release(at(now), naming, &mut found);
                    let same = plain.find(naming).map_or_else(|why| why, |_| Answer::Done);
                    prop_assert_eq!(released, same);
                    if same == Answer::Done {
                        plain.end(request.id);
                    }
                }
                Step::Evict { key: name } => {
                    let taken = seats.taken();
                    let mut evicted = 0;
                    loop {
                        let more = again(&mut found, |found| seats.evict(at(now), &key(name), taken, found));
                        found.ended.clear();
                        evicted += more;
                        if more == 0 {
                            break;
                        }
                    }
                    let of_key = |it: &&(Request, _)| it.0.key == key(name);
                    let ids: Vec<Id> = plain.held.iter().filter(of_key).map(|(it, _)| it.id).collect();
                    prop_assert_eq!(evicted, ids.len() as u32);
                    ids.into_iter().for_each(|id| plain.end(id));
                }
                Step::Leave { slot } => {
                    while !seats.leave(at(now), slot, &mut found) {}
                    // What it was given and has not seen goes with it.
                    if let Some(request) = waits_for[slot as usize].take() {
                        plain.waiting.retain(|it| it.id != request.id);
                        plain.end(request.id);
                    }
                    let own = |it: &&(Request, Option<u64>)| it.0.holder.slot == slot && it.1.is_none();
                    let ids: Vec<Id> = plain.held.iter().filter(own).map(|(it, _)| it.id).collect();
                    ids.into_iter().for_each(|id| plain.end(id));
                }
            }
            for slot in &found.wake {
                alarms[*slot as usize] = Some(now);
            }
            prop_assert!(found.wake.len() < found.wake.capacity());
            // Whoever has got a seat is awake.
            for slot in 0..BACKENDS {
                let has = |request: &Request| plain.held.iter().any(|(it, _)| it.id == request.id);
                if waits_for[slot].as_ref().is_some_and(has) {
                    prop_assert_eq!(alarms[slot], Some(now), "{} sleeps on", slot);
                }
            }
            let mut held: Vec<(Id, Key, i64)> = seats.held(0..PLACES, now).map(|(key, held)| {
                (held.id, *key, held.lease.map_or(-1, |lease| lease.ends as i64))
            }).collect();
            let mut same: Vec<(Id, Key, i64)> = plain.held.iter().map(|(it, ends)| {
                (it.id, it.key, ends.map_or(-1, |ends| ends as i64))
            }).collect();
            held.sort_by_key(|it| it.0);
            same.sort_by_key(|it| it.0);
            prop_assert_eq!(held, same);
        }
    }
}

/// Without when a waiter looks again.
fn kind(taking: Taking) -> Taking {
    match taking {
        Taking::Waiting(_) => Taking::Waiting(None),
        other => other,
    }
}
