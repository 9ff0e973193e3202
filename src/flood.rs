//! Keeps a storm of one event out of the server log: so many lines a second, then how many were left
//! out. Pure: shared memory and its lock are `shmem`'s.

use crate::ring::{Kind, Name, Text};

/// Of one cause. The next are left out.
pub const LINES_A_SECOND: u32 = 10;

/// What makes events alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cause {
    pub kind: Kind,
    pub role: u32,
    /// Empty if nobody knew it.
    pub role_name: Name,
    /// Where the limit is set; empty if none decided.
    pub source: Text<96>,
}

/// The lines of one cause in one second.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    cause: Option<Cause>,
    second: i64,
    written: u32,
    left_out: u32,
}

impl Entry {
    pub const FREE: Entry = Entry {
        cause: None,
        second: i64::MIN,
        written: 0,
        left_out: 0,
    };

    fn take(&mut self) -> Option<LeftOut> {
        let number = std::mem::take(&mut self.left_out);
        let cause = self.cause.filter(|_| number > 0)?;
        Some(LeftOut { cause, number })
    }
}

/// So many lines were left out, which is now to be said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeftOut {
    pub cause: Cause,
    pub number: u32,
}

/// The causes of the latest lines.
pub struct Flood<'a> {
    entries: &'a mut [Entry],
}

impl<'a> Flood<'a> {
    pub fn new(entries: &'a mut [Entry]) -> Self {
        Flood { entries }
    }

    /// Whether another line of this cause may be written in this second, and what has to be said
    /// before: a second is over, or the cause takes another one's place. With more causes in a second
    /// than there are places, each new one has its first line.
    pub fn admit(&mut self, cause: &Cause, second: i64) -> (bool, Option<LeftOut>) {
        let known = |entry: &Entry| entry.cause.as_ref() == Some(cause);
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
                cause: Some(*cause),
                second,
                ..Entry::FREE
            };
        }
        let fits = entry.written < LINES_A_SECOND;
        match fits {
            true => entry.written += 1,
            false => entry.left_out = entry.left_out.saturating_add(1),
        }
        (fits, earlier)
    }

    /// Something that was left out, and that nobody has said: not in this second, which goes on.
    pub fn take(&mut self, except: Option<i64>) -> Option<LeftOut> {
        let over = |entry: &&mut Entry| Some(entry.second) != except;
        self.entries.iter_mut().filter(over).find_map(Entry::take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(role: u32) -> Cause {
        Cause {
            kind: Kind::Refused,
            role,
            role_name: Text::EMPTY,
            source: Text::EMPTY,
        }
    }

    /// So many events; how many lines there are, and what was said before.
    fn lines(flood: &mut Flood, cause: &Cause, second: i64, events: u32) -> (u32, Vec<LeftOut>) {
        let (mut written, mut said) = (0, Vec::new());
        for _ in 0..events {
            let (line, left_out) = flood.admit(cause, second);
            written += u32::from(line);
            said.extend(left_out);
        }
        (written, said)
    }

    fn left_out(cause: Cause, number: u32) -> LeftOut {
        LeftOut { cause, number }
    }

    #[test]
    fn so_many_lines_a_second_and_then_the_number_left_out() {
        let mut entries = [Entry::FREE; 4];
        let mut flood = Flood::new(&mut entries);
        let alice = cause(1);
        assert_eq!(lines(&mut flood, &alice, 7, 60), (10, vec![]));
        assert_eq!(flood.take(Some(7)), None, "the second goes on");
        let said = vec![left_out(alice, 50)];
        assert_eq!(lines(&mut flood, &alice, 8, 12), (10, said));
        assert_eq!(flood.take(Some(9)), Some(left_out(alice, 2)));
        assert_eq!(flood.take(Some(9)), None, "said once");
        assert_eq!(lines(&mut flood, &alice, 20, 10), (10, vec![]));
        assert_eq!(lines(&mut flood, &alice, 21, 1), (1, vec![]));
    }

    #[test]
    fn each_cause_has_its_own_lines() {
        let mut entries = [Entry::FREE; 4];
        let mut flood = Flood::new(&mut entries);
        let source = Text::new(b"label on role team").expect("short");
        let causes = [
            cause(1),
            cause(2),
            Cause {
                kind: Kind::WouldRefuse,
                ..cause(1)
            },
            Cause { source, ..cause(1) },
        ];
        for cause in &causes {
            assert_eq!(lines(&mut flood, cause, 7, 11), (10, vec![]));
        }
        for cause in causes {
            assert_eq!(flood.take(None), Some(left_out(cause, 1)));
        }
        assert_eq!(flood.take(None), None);
    }

    #[test]
    fn what_is_told_at_the_end_does_not_open_the_second_again() {
        let mut entries = [Entry::FREE; 1];
        let mut flood = Flood::new(&mut entries);
        assert_eq!(lines(&mut flood, &cause(1), 7, 11), (10, vec![]));
        assert_eq!(flood.take(None), Some(left_out(cause(1), 1)));
        assert_eq!(lines(&mut flood, &cause(1), 7, 2), (0, vec![]));
        assert_eq!(flood.take(None), Some(left_out(cause(1), 2)));
    }

    #[test]
    fn a_new_cause_takes_the_oldest_place_and_nothing_is_lost() {
        let mut entries = [Entry::FREE; 2];
        let mut flood = Flood::new(&mut entries);
        assert_eq!(lines(&mut flood, &cause(1), 7, 13), (10, vec![]));
        assert_eq!(lines(&mut flood, &cause(2), 8, 14), (10, vec![]));
        let said = vec![left_out(cause(1), 3)];
        assert_eq!(lines(&mut flood, &cause(3), 8, 1), (1, said));
        assert_eq!(flood.take(None), Some(left_out(cause(2), 4)));
    }

    #[test]
    fn a_clock_that_is_set_back_holds_no_line_up() {
        let mut entries = [Entry::FREE; 1];
        let mut flood = Flood::new(&mut entries);
        assert_eq!(lines(&mut flood, &cause(1), 7000, 11), (10, vec![]));
        let said = vec![left_out(cause(1), 1)];
        assert_eq!(lines(&mut flood, &cause(1), 7, 11), (10, said));
    }

    #[test]
    fn without_room_every_line_is_written() {
        assert_eq!(
            lines(&mut Flood::new(&mut []), &cause(1), 7, 11),
            (11, vec![])
        );
    }
}
