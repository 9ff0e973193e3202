//! When leases end: a binary heap, the earliest first, in which each seat's place is known, so that a lease that is renewed
//! or released is found at once.

/// The end of one lease.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// The tick.
    at: u64,
    seat: u32,
}

impl Deadline {
    /// Memory that no lease is in yet.
    pub const NONE: Deadline = Deadline { at: 0, seat: 0 };
}

/// The ends of all leases. Both slices have room for every seat.
pub struct Deadlines<'a> {
    heap: &'a mut [Deadline],
    /// Where each seat's deadline is in the heap.
    places: &'a mut [u32],
    number: usize,
}

impl<'a> Deadlines<'a> {
    pub fn new(heap: &'a mut [Deadline], places: &'a mut [u32]) -> Deadlines<'a> {
        Deadlines {
            heap,
            places,
            number: 0,
        }
    }

    /// The earliest tick at which a lease ends, and whose.
    pub fn first(&self) -> Option<(u64, u32)> {
        let first = self.heap.first().filter(|_| self.number > 0)?;
        Some((first.at, first.seat))
    }

    /// The lease of `seat`, which has none, ends at this tick.
    pub fn add(&mut self, seat: u32, at: u64) {
        let place = self.number;
        self.number += 1;
        self.put(place, Deadline { at, seat });
        self.rise(place);
    }

    /// The lease of `seat` ends at another tick.
    pub fn change(&mut self, seat: u32, at: u64) {
        if let Some(place) = self.place(seat) {
            self.put(place, Deadline { at, seat });
            self.settle(place);
        }
    }

    /// `seat` has no lease any more.
    pub fn remove(&mut self, seat: u32) {
        let Some(place) = self.place(seat) else {
            return;
        };
        self.number -= 1;
        if let Some(last) = self.heap.get(self.number).copied()
            && place < self.number
        {
            self.put(place, last);
            self.settle(place);
        }
    }

    fn place(&self, seat: u32) -> Option<usize> {
        let place = *self.places.get(seat as usize)? as usize;
        (self.at(place)?.seat == seat).then_some(place)
    }

    fn at(&self, place: usize) -> Option<Deadline> {
        let deadline = self.heap.get(place).copied();
        deadline.filter(|_| place < self.number)
    }

    fn put(&mut self, place: usize, deadline: Deadline) {
        if let Some(free) = self.heap.get_mut(place) {
            *free = deadline;
        }
        if let Some(known) = self.places.get_mut(deadline.seat as usize) {
            *known = place as u32;
        }
    }

    fn settle(&mut self, place: usize) {
        let place = self.rise(place);
        self.sink(place);
    }

    /// Whether the deadline at `place` is before the one at `other`.
    fn is_before(&self, place: usize, other: usize) -> bool {
        self.at(place)
            .zip(self.at(other))
            .is_some_and(|(one, other)| one.at < other.at)
    }

    fn swap(&mut self, place: usize, other: usize) {
        if let Some((one, two)) = self.at(place).zip(self.at(other)) {
            self.put(place, two);
            self.put(other, one);
        }
    }

    /// Exchanges it with those above that are later. Returns its place.
    fn rise(&mut self, mut place: usize) -> usize {
        while place > 0 && self.is_before(place, (place - 1) / 2) {
            self.swap(place, (place - 1) / 2);
            place = (place - 1) / 2;
        }
        place
    }

    /// Exchanges it with those below that are earlier.
    fn sink(&mut self, mut place: usize) {
        loop {
            let (left, right) = (2 * place + 1, 2 * place + 2);
            let earlier = if self.is_before(right, left) {
                right
            } else {
                left
            };
            if !self.is_before(earlier, place) {
                return;
            }
            self.swap(place, earlier);
            place = earlier;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn is_a_sorted_set(steps in vec((0..20u32, 0..50u64, 0..3), 0..300)) {
            let (mut heap, mut places) = ([Deadline::NONE; 20], [0; 20]);
            let mut deadlines = Deadlines::new(&mut heap, &mut places);
            let mut plain = BTreeSet::new();
            for (seat, at, step) in steps {
                let known = plain.iter().copied().find(|(_, other)| *other == seat);
                plain.retain(|(_, other)| *other != seat);
                match (step, known) {
                    (0, _) => deadlines.remove(seat),
                    (_, Some(_)) => deadlines.change(seat, at),
                    (_, None) => deadlines.add(seat, at),
                }
                if step > 0 {
                    plain.insert((at, seat));
                }
                let earliest = deadlines.first();
                prop_assert_eq!(earliest.map(|(at, _)| at), plain.first().map(|(at, _)| *at));
                prop_assert!(earliest.is_none_or(|first| plain.contains(&first)));
            }
            while let Some(first) = deadlines.first() {
                prop_assert!(plain.remove(&first));
                deadlines.remove(first.1);
            }
            prop_assert!(plain.is_empty());
        }
    }
}
