//! Lists of things that lie in an array: each knows the numbers of those before and behind it, so that it leaves a list at
//! once, wherever it stands.

/// The number of nothing.
pub const NONE: u32 = u32::MAX;

/// A list: the numbers of its first and its last.
#[derive(Clone, Copy, Debug)]
pub struct List {
    pub first: u32,
    pub last: u32,
}

/// Where something stands in a list: the numbers of its neighbours.
#[derive(Clone, Copy, Debug)]
pub struct Links {
    before: u32,
    pub behind: u32,
}

impl Links {
    pub const NONE: Links = Links {
        before: NONE,
        behind: NONE,
    };
}

impl List {
    pub const EMPTY: List = List {
        first: NONE,
        last: NONE,
    };

    /// Adds `number`, which is in no such list, at the end.
    pub fn push<T>(&mut self, all: &mut [T], links: fn(&mut T) -> &mut Links, number: u32) {
        let before = self.last;
        if let Some(it) = all.get_mut(number as usize) {
            *links(it) = Links {
                before,
                behind: NONE,
            };
        }
        match all.get_mut(before as usize) {
            Some(it) => links(it).behind = number,
            None => self.first = number,
        }
        self.last = number;
    }

    /// Removes `number`, which is in the list.
    pub fn remove<T>(&mut self, all: &mut [T], links: fn(&mut T) -> &mut Links, number: u32) {
        let Some(it) = all.get_mut(number as usize) else {
            return;
        };
        let Links { before, behind } = std::mem::replace(links(it), Links::NONE);
        match all.get_mut(before as usize) {
            Some(it) => links(it).behind = behind,
            None => self.first = behind,
        }
        match all.get_mut(behind as usize) {
            Some(it) => links(it).before = before,
            None => self.last = before,
        }
    }
}
