//! Keeps a storm of like events out of the server log: a few lines of one key are written in each second, and afterwards
//! one that says how many were suppressed. Shared memory and the lock are the caller's.

use crate::event::{EventKind, FixedText, Name};

/// How many lines of one key are written in one second; the rest is suppressed. Ten show what is happening, while
/// clients that try again in a loop could fill the log with hundreds.
pub const LINES_A_SECOND: u32 = 10;

/// Events with the same key are alike: their lines are counted together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LineKey {
    pub kind: EventKind,
    pub role: u32,
    /// Empty if it is not known.
    pub role_name: Name,
    /// Where the limit is set; empty if no limit decided. The longest is `CONNECTION LIMIT of database ` and a name of
    /// 63 bytes.
    pub source: FixedText<96>,
}

/// How many lines one key has had in one second.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    key: Option<LineKey>,
    /// The second, as the caller numbers them.
    second: u64,
    written: u32,
    suppressed: u32,
}

impl Entry {
    /// An entry without a key.
    pub const FREE: Entry = Entry {
        key: None,
        second: 0,
        written: 0,
        suppressed: 0,
    };

    /// How many lines were suppressed that have not been reported; then they have. None if there are none.
    fn take(&mut self) -> Option<Suppressed> {
        let number = std::mem::take(&mut self.suppressed);
        let key = self.key.filter(|_| number > 0)?;
        Some(Suppressed { key, number })
    }
}

/// The number of lines of one key that were suppressed; the caller must log it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Suppressed {
    pub key: LineKey,
    pub number: u32,
}

/// Decides which lines are written. It remembers as many keys as it has entries.
pub struct Throttle<'a> {
    entries: &'a mut [Entry],
}

impl<'a> Throttle<'a> {
    pub fn new(entries: &'a mut [Entry]) -> Self {
        Throttle { entries }
    }

    /// Whether another line of this key may be written in this second, and what to report before it: lines that were
    /// suppressed in an earlier second, or those of the key whose entry this one takes. It takes the entry with the
    /// earliest second. So with more keys in a second than entries, the first line of each key is written all the same.
    pub fn admit(&mut self, key: &LineKey, second: u64) -> (bool, Option<Suppressed>) {
        let is_its = |entry: &Entry| entry.key.as_ref() == Some(key);
        let index = self.entries.iter().position(is_its).or_else(|| {
            let entries = self.entries.iter().enumerate();
            entries
                .min_by_key(|(_, entry)| entry.second)
                .map(|(index, _)| index)
        });
        let Some(entry) = index.and_then(|index| self.entries.get_mut(index)) else {
            return (true, None);
        };
        let mut earlier = None;
        if !is_its(entry) || entry.second != second {
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

    /// Lines of some key that were suppressed and have not been reported, except those of the second `except`, which is
    /// not over yet. None if there are none.
    pub fn take(&mut self, except: Option<u64>) -> Option<Suppressed> {
        let is_over = |entry: &&mut Entry| Some(entry.second) != except;
        self.entries
            .iter_mut()
            .filter(is_over)
            .find_map(Entry::take)
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

    /// Given a number of events with one key, how many lines are written, and what is reported.
    fn lines(
        throttle: &mut Throttle,
        key: &LineKey,
        second: u64,
        events: u32,
    ) -> (u32, Vec<Suppressed>) {
        let (mut written, mut reports) = (0, Vec::new());
        for _ in 0..events {
            let (line, suppressed) = throttle.admit(key, second);
            written += u32::from(line);
            reports.extend(suppressed);
        }
        (written, reports)
    }

    fn suppressed(key: LineKey, number: u32) -> Suppressed {
        Suppressed { key, number }
    }

    #[test]
    fn ten_lines_a_second_are_written_and_then_the_number_suppressed() {
        let mut entries = [Entry::FREE; 4];
        let mut throttle = Throttle::new(&mut entries);
        let alice = key(1);
        assert_eq!(lines(&mut throttle, &alice, 7, 60), (10, vec![]));
        assert_eq!(throttle.take(Some(7)), None, "the second goes on");
        let report = vec![suppressed(alice, 50)];
        assert_eq!(lines(&mut throttle, &alice, 8, 12), (10, report));
        assert_eq!(throttle.take(Some(9)), Some(suppressed(alice, 2)));
        assert_eq!(throttle.take(Some(9)), None, "reported once");
        assert_eq!(lines(&mut throttle, &alice, 20, 10), (10, vec![]));
        assert_eq!(lines(&mut throttle, &alice, 21, 1), (1, vec![]));
    }

    #[test]
    fn each_key_has_its_own_lines() {
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
    fn a_report_within_a_second_does_not_begin_it_anew() {
        let mut entries = [Entry::FREE; 1];
        let mut throttle = Throttle::new(&mut entries);
        assert_eq!(lines(&mut throttle, &key(1), 7, 11), (10, vec![]));
        assert_eq!(throttle.take(None), Some(suppressed(key(1), 1)));
        assert_eq!(lines(&mut throttle, &key(1), 7, 2), (0, vec![]));
        assert_eq!(throttle.take(None), Some(suppressed(key(1), 2)));
    }

    #[test]
    fn a_new_key_takes_the_oldest_entry_and_no_count_is_lost() {
        let mut entries = [Entry::FREE; 2];
        let mut throttle = Throttle::new(&mut entries);
        assert_eq!(lines(&mut throttle, &key(1), 7, 13), (10, vec![]));
        assert_eq!(lines(&mut throttle, &key(2), 8, 14), (10, vec![]));
        let report = vec![suppressed(key(1), 3)];
        assert_eq!(lines(&mut throttle, &key(3), 8, 1), (1, report));
        assert_eq!(throttle.take(None), Some(suppressed(key(2), 4)));
    }

    #[test]
    fn without_entries_every_line_is_written() {
        assert_eq!(
            lines(&mut Throttle::new(&mut []), &key(1), 7, 11),
            (11, vec![])
        );
    }
}
