//! The most recent events. Shared memory and the lock are the caller's.

use crate::event::Record;
use std::ops::Range;

/// Keeps the latest records, as many as there is room for.
pub struct Ring<'a> {
    records: &'a mut [Record],
    /// How many records have ever been pushed. They are numbered from 0, so this is the next one's number.
    pushed: &'a mut u64,
}

impl<'a> Ring<'a> {
    pub fn new(records: &'a mut [Record], pushed: &'a mut u64) -> Self {
        Ring { records, pushed }
    }

    /// Adds a record; the oldest makes room for it.
    pub fn push(&mut self, record: &Record) {
        let index = self.pushed.checked_rem(self.records.len() as u64);
        if let Some(oldest) = index.and_then(|index| self.records.get_mut(index as usize)) {
            *oldest = *record;
            *self.pushed += 1;
        }
    }

    /// One more than the number of the latest record.
    pub fn end(&self) -> u64 {
        *self.pushed
    }

    /// Copies the records with these numbers into `into`, the oldest first. Returns the numbers of those it has copied:
    /// the oldest may be gone, the latest may not have been pushed yet, and `into` may be too short for all.
    pub fn read(&self, numbers: Range<u64>, into: &mut [Record]) -> Range<u64> {
        let size = self.records.len() as u64;
        let start = numbers.start.max(self.pushed.saturating_sub(size));
        let end = numbers.end.min(*self.pushed).min(start + into.len() as u64);
        for (number, copy) in (start..end).zip(into) {
            if let Some(record) = self.records.get((number % size) as usize) {
                *copy = *record;
            }
        }
        start..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventKind, FixedText};
    use std::net::IpAddr;

    /// A record whose every field depends on the number.
    fn record(number: u32) -> Record {
        let text = number.to_string();
        Record {
            time: i64::from(number),
            kind: EventKind::Refused,
            role: number,
            role_name: FixedText::new(text.as_bytes()).expect("short"),
            database: FixedText::new(text.repeat(3).as_bytes()).expect("short"),
            address: Some(IpAddr::from(number.to_be_bytes())),
            pid: number,
            detail: FixedText::new(text.repeat(80).as_bytes()).expect("short"),
        }
    }

    fn all(ring: &Ring, at_once: usize) -> Vec<u32> {
        let mut next = 0;
        let mut batch = vec![Record::EMPTY; at_once];
        let mut numbers = Vec::new();
        loop {
            let read = ring.read(next..ring.end(), &mut batch);
            for copy in &batch[..(read.end - read.start) as usize] {
                assert_eq!(*copy, record(copy.pid), "not torn");
                numbers.push(copy.pid);
            }
            if read.is_empty() {
                return numbers;
            }
            next = read.end;
        }
    }

    #[test]
    fn keeps_the_latest_and_shows_the_oldest_of_them_first() {
        let (mut records, mut pushed) = ([Record::EMPTY; 5], 0);
        let mut ring = Ring::new(&mut records, &mut pushed);
        assert!(all(&ring, 2).is_empty());
        for number in 1..=12 {
            ring.push(&record(number));
            let oldest = number.saturating_sub(4).max(1);
            let kept: Vec<u32> = (oldest..=number).collect();
            for at_once in 1..7 {
                assert_eq!(all(&ring, at_once), kept);
            }
        }
    }

    #[test]
    fn a_reader_passes_over_records_that_are_gone_meanwhile() {
        let (mut records, mut pushed) = ([Record::EMPTY; 3], 0);
        let mut ring = Ring::new(&mut records, &mut pushed);
        let mut batch = [Record::EMPTY; 2];
        (0..3).for_each(|number| ring.push(&record(number)));
        assert_eq!(ring.read(0..9, &mut batch), 0..2);
        (3..7).for_each(|number| ring.push(&record(number)));
        assert_eq!(ring.read(2..9, &mut batch), 4..6);
        assert_eq!(batch.map(|record| record.pid), [4, 5]);
        assert_eq!(ring.read(6..9, &mut batch), 6..7);
        assert!(ring.read(7..9, &mut batch).is_empty());
        assert_eq!(ring.read(5..6, &mut batch), 5..6, "no more than asked for");
        assert!(ring.read(1..3, &mut batch).is_empty(), "they are gone");
    }

    #[test]
    fn a_ring_without_room_keeps_nothing() {
        let mut pushed = 0;
        let mut ring = Ring::new(&mut [], &mut pushed);
        ring.push(&record(1));
        assert!(ring.read(0..1, &mut [Record::EMPTY; 2]).is_empty());
    }

    #[test]
    fn a_fixed_text_is_never_cut() {
        assert_eq!(
            FixedText::<3>::new(b"abc").map(|text| text.bytes().to_vec()),
            Some(b"abc".to_vec())
        );
        assert_eq!(FixedText::<3>::new(b"abcd"), None);
        assert_eq!(FixedText::<3>::new(b""), Some(FixedText::EMPTY));
    }
}
