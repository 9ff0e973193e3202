//! Keeps a storm of one event out of the server log: so many lines a second, then how many were left
//! out. Pure: shared memory and its lock are `shmem`'s.

use crate::event::{EventKind, FixedText, Name};

/// Of one key. The next are left out.
pub const LINES_A_SECOND: u32 = 10;

/// What makes events alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LineKey {
    pub kind: EventKind,
    pub role: u32,
    /// Empty if nobody knew it.
    pub role_name: Name,
    /// Where the limit is set; empty if none decided.
    pub source: FixedText<96>,
}

/// The lines of one key in one second.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    key: Option<LineKey>,
    second: i64,
    written: u32,
    suppressed: u32,
}

impl Entry {
    pub const FREE: Entry = Entry {
        key: None,
        second: i64::MIN,
        written: 0,
        suppressed: 0,
    };

    fn take(&mut self) -> Option<Suppressed> {
        let number = std::mem::take(&mut self.suppressed);
        let key = self.key.filter(|_| number > 0)?;
        Some(Suppressed { key, number })
    }
}

/// So many lines were left out, which is now to be said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Suppressed {
    pub key: LineKey,
    pub number: u32,
}

/// The keys of the latest lines.
pub struct Throttle<'a> {
    entries: &'a mut [Entry],
}

impl<'a> Throttle<'a> {
    pub fn new(entries: &'a mut [Entry]) -> Self {
        Throttle { entries }
    }

    /// Whether another line of this key may be written in this second, and what has to be said
    /// before: a second is over, or the key takes another one's place. With more keys in a second
    /// than there are places, each new one has its first line.
    pub fn admit(&mut self, key: &LineKey, second: i64) -> (bool, Option<Suppressed>) {
        let known = |entry: &Entry| entry.key.as_ref() == Some(key);
        let place = self.entries.iter().position(known).or_else(|| {
            let ages = self.entries.iter().enumerate();
            ages.min_by_key(|(_, entry)| entry.second)
                .map(|(place, _)| place)
        });
        let Some(entry) = place.and_then(|place| self.entries.get_mut(place)) else {
            return (true, None);
        };
        let mut earlier = None;
        if !known(entry) || entry.second != second {
            earlier = entry.take();
            *entry = Entry {
                key: Some(*key),
                second,
                ..Entry::FREE
            };
        }
        let fits = entry.written < LINES_A_SECOND;
        match fits {
            true => entry.written += 1,
            false => entry.suppressed = entry.suppressed.saturating_add(1),
        }
        (fits, earlier)
    }

    /// Something that was left out, and that nobody has said: not in this second, which goes on.
    pub fn take(&mut self, except: Option<i64>) -> Option<Suppressed> {
        let over = |entry: &&mut Entry| Some(entry.second) != except;
        self.entries.iter_mut().filter(over).find_map(Entry::take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(role: u32) -> LineKey {
        LineKey {
            kind: EventKind::Refused,
            role,
            role_name: FixedText::EMPTY,
            source: FixedText::EMPTY,
        }
    }

    /// So many events; how many lines there are, and what was said before.
    fn lines(
        throttle: &mut Throttle,
        key: &LineKey,
        second: i64,
        events: u32,
    ) -> (u32, Vec<Suppressed>) {
        let (mut written, mut said) = (0, Vec::new());
        for _ in 0..events {
            let (line, suppressed) = throttle.admit(key, second);
            written += u32::from(line);
            said.extend(suppressed);
        }
        (written, said)
    }

    fn suppressed(key: LineKey, number: u32) -> Suppressed {
        Suppressed { key, number }
    }

    #[test]
    fn so_many_lines_a_second_and_then_the_number_left_out() {
        let mut entries = [Entry::FREE; 4];
        let mut throttle = Throttle::new(&mut entries);
        let alice = key(1);
        assert_eq!(lines(&mut throttle, &alice, 7, 60), (10, vec![]));
        assert_eq!(throttle.take(Some(7)), None, "the second goes on");
        let said = vec![suppressed(alice, 50)];
        assert_eq!(lines(&mut throttle, &alice, 8, 12), (10, said));
        assert_eq!(throttle.take(Some(9)), Some(suppressed(alice, 2)));
        assert_eq!(throttle.take(Some(9)), None, "said once");
        assert_eq!(lines(&mut throttle, &alice, 20, 10), (10, vec![]));
        assert_eq!(lines(&mut throttle, &alice, 21, 1), (1, vec![]));
    }

    #[test]
    fn each_cause_has_its_own_lines() {
        let mut entries = [Entry::FREE; 4];
        let mut throttle = Throttle::new(&mut entries);
        let source = FixedText::new(b"label on role team").expect("short");
        let keys = [
            key(1),
            key(2),
            LineKey {
                kind: EventKind::WouldRefuse,
                ..key(1)
            },
            LineKey { source, ..key(1) },
        ];
        for key in &keys {
            assert_eq!(lines(&mut throttle, key, 7, 11), (10, vec![]));
        }
        for key in keys {
            assert_eq!(throttle.take(None), Some(suppressed(key, 1)));
        }
        assert_eq!(throttle.take(None), None);
    }

    #[test]
    fn what_is_told_at_the_end_does_not_open_the_second_again() {
        let mut entries = [Entry::FREE; 1];
        let mut throttle = Throttle::new(&mut entries);
        assert_eq!(lines(&mut throttle, &key(1), 7, 11), (10, vec![]));
        assert_eq!(throttle.take(None), Some(suppressed(key(1), 1)));
        assert_eq!(lines(&mut throttle, &key(1), 7, 2), (0, vec![]));
        assert_eq!(throttle.take(None), Some(suppressed(key(1), 2)));
    }

    #[test]
    fn a_new_cause_takes_the_oldest_place_and_nothing_is_lost() {
        let mut entries = [Entry::FREE; 2];
        let mut throttle = Throttle::new(&mut entries);
        assert_eq!(lines(&mut throttle, &key(1), 7, 13), (10, vec![]));
        assert_eq!(lines(&mut throttle, &key(2), 8, 14), (10, vec![]));
        let said = vec![suppressed(key(1), 3)];
        assert_eq!(lines(&mut throttle, &key(3), 8, 1), (1, said));
        assert_eq!(throttle.take(None), Some(suppressed(key(2), 4)));
    }

    #[test]
    fn a_clock_that_is_set_back_holds_no_line_up() {
        let mut entries = [Entry::FREE; 1];
        let mut throttle = Throttle::new(&mut entries);
        assert_eq!(lines(&mut throttle, &key(1), 7000, 11), (10, vec![]));
        let said = vec![suppressed(key(1), 1)];
        assert_eq!(lines(&mut throttle, &key(1), 7, 11), (10, said));
    }

    #[test]
    fn without_room_every_line_is_written() {
        assert_eq!(
            lines(&mut Throttle::new(&mut []), &key(1), 7, 11),
            (11, vec![])
        );
    }
}
