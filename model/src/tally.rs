//! Counting different roles or client addresses, as some limits do: how many there are among some sessions, and whether
//! one more session would add one.
//!
//! **A successor and its victims** (see [`crate::table`]) are a matter of their own here. It is open whether the victims
//! leave, or the successor gives up and they stay. A limit must be met either way. So the addresses of both count,
//! except where they cannot both be there: an address from which all sessions are victims of one successor, and that
//! successor's, if no other session comes from there, count as one. A login from either of them would change that, so
//! to it they are not counted already.
//!
//! A [`Tally`] is memory that is allocated before the lock is taken. Each count is one pass over the sessions. While no
//! session is a victim, roles and IPv4 addresses are only noted in a set of numbers, which is faster.

use crate::limit::Unit;
use crate::session::Session;
use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;
use std::net::IpAddr;

/// Sessions with the same value count as one.
pub type Value = u128;

/// Of sessions over a Unix-domain socket. No client has this address.
const SOCKET: Value = u128::MAX;

/// Above the bits of a role or an IPv4 address, as in an IPv4-mapped IPv6 address: no other one begins like that.
const NUMBER: Value = 0xffff << 32;

impl Unit {
    /// None if each session counts.
    pub fn value(self, session: &Session) -> Option<Value> {
        match self {
            Unit::Session => None,
            Unit::Role => Some(of_number(session.role)),
            Unit::Address { ipv6_prefix_length } => {
                Some(of_address(session.address, ipv6_prefix_length))
            }
        }
    }
}

fn of_address(address: Option<IpAddr>, ipv6_prefix_length: u8) -> Value {
    match address.map(|address| address.to_canonical()) {
        None => SOCKET,
        Some(IpAddr::V4(address)) => of_number(address.to_bits()),
        Some(IpAddr::V6(address)) => {
            let host_bits = 128_u32.saturating_sub(ipv6_prefix_length.into());
            address.to_bits() & u128::MAX.checked_shl(host_bits).unwrap_or(0)
        }
    }
}

/// The value of sessions of this role, or from this IPv4 address.
pub fn of_number(number: u32) -> Value {
    NUMBER | Value::from(number)
}

/// The role or IPv4 address whose value this is, if it is such a one's.
fn number_of(value: Value) -> Option<u32> {
    (value >> 32 == NUMBER >> 32).then_some(value as u32)
}

/// What a session with a value is.
#[derive(Clone, Copy, PartialEq)]
pub enum Part {
    /// A session like any other.
    Stays,
    /// A victim of the pending successor at this slot.
    VictimOf(usize),
}

/// Which sessions of the login that asks are counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum View {
    /// Those that there are.
    Now,
    /// As if the login at this slot had not claimed it, and had no victims.
    Without(usize),
    /// As if the victims of the login at this slot were gone.
    Complete(usize),
}

/// How a limit stands that counts different roles or addresses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Different {
    pub in_use: u32,
    /// How many more there will be when the waiters that go first have gone in.
    pub ahead: u32,
    /// How many there will be with the login, too.
    pub with: u32,
    /// Whether the login's is there already, but each of its sessions may go: it was told to end, is a victim, or waits for
    /// its victims.
    pub(crate) leaves: bool,
}

impl Different {
    fn adds(&self) -> bool {
        self.with > self.in_use + self.ahead
    }

    /// Whether a limit of `max` has room for the login. Under a limit of 0 there is room for nobody.
    pub fn has_room(&self, max: u32) -> bool {
        let number = self.in_use + self.ahead;
        if self.adds() {
            number < max
        } else {
            // Another session makes it stay. So there must be room for it as if nobody had gone.
            max > 0 && (!self.leaves || number <= max)
        }
    }
}

/// What is known of one value.
#[derive(Clone, Copy)]
struct Entry {
    value: Value,
    /// The round of the tally in which it was made; of an earlier one: free.
    round: u32,
    /// How many sessions have the value.
    sessions: u32,
    /// How many of them are victims.
    victims: u32,
    /// Whose, by slot; [`SEVERAL`] if not all of one.
    successor: u32,
}

const FREE: Entry = Entry {
    value: 0,
    round: 0,
    sessions: 0,
    victims: 0,
    successor: 0,
};

const SEVERAL: u32 = u32::MAX;

/// A table of values, by their hash, with linear probing.
#[derive(Default)]
pub struct Tally {
    /// A power of two of entries, at least twice as many as there can be values; none if it has no memory.
    entries: Vec<Entry>,
    /// As many numbers of roles or IPv4 addresses, each below the round in which it was noted.
    noted: Vec<u64>,
    round: u32,
    /// How many values there are.
    number: u32,
    key: Key,
}

/// Of the hash. Nobody knows it: a client may choose among many addresses, and must not find some that fall on one place.
type Key = [u64; 2];

impl Tally {
    /// With memory for the sessions and waiters in so many slots, and one login more. Allocates.
    pub fn for_slots(slots: usize) -> Tally {
        let mut entries = vec![FREE; (2 * (slots + 1)).next_power_of_two()];
        // Written to, as all memory of a counter is, before the lock is taken.
        black_box(&mut entries).fill(FREE);
        let mut noted = vec![0; entries.len()];
        black_box(&mut noted).fill(0);
        let random = RandomState::new();
        Tally {
            entries,
            noted,
            round: 0,
            number: 0,
            key: [random.hash_one(0), random.hash_one(1)],
        }
    }

    pub fn has_memory(&self) -> bool {
        !self.entries.is_empty()
    }

    /// Forgets all values.
    pub fn clear(&mut self) {
        if self.round == u32::MAX {
            self.entries.fill(FREE);
            self.noted.fill(0);
            self.round = 0;
        }
        self.round += 1;
        self.number = 0;
    }

    /// How many different values there are.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Notes that a session has the value of this role or IPv4 address, and is no victim. To be called before any
    /// session with this value is added.
    #[inline]
    pub fn note(&mut self, number: u32) {
        let wanted = noted_in(self.round, number);
        let Some(mask) = self.noted.len().checked_sub(1) else {
            return;
        };
        let mut at = hash(number.into(), self.key) & mask;
        while let Some(noted) = self.noted.get_mut(at) {
            if *noted == wanted {
                return;
            }
            if *noted >> 32 != wanted >> 32 {
                *noted = wanted;
                self.number += 1;
                return;
            }
            at = (at + 1) & mask;
        }
    }

    fn is_noted(&self, value: Value) -> bool {
        let (Some(number), Some(mask)) = (number_of(value), self.noted.len().checked_sub(1)) else {
            return false;
        };
        let wanted = noted_in(self.round, number);
        let mut at = hash(number.into(), self.key) & mask;
        while let Some(noted) = self.noted.get(at) {
            if *noted >> 32 != wanted >> 32 {
                return false;
            }
            if *noted == wanted {
                return true;
            }
            at = (at + 1) & mask;
        }
        false
    }

    /// Adds a session with this value.
    pub fn add(&mut self, value: Value, part: Part) {
        if self.is_noted(value) {
            return;
        }
        let round = self.round;
        let Some(entry) = entry_of(&mut self.entries, self.key, round, value) else {
            return;
        };
        if entry.round != round {
            *entry = Entry {
                value,
                round,
                ..FREE
            };
            self.number += 1;
        }
        entry.sessions += 1;
        if let Part::VictimOf(slot) = part {
            let is_same = entry.victims == 0 || entry.successor == slot as u32;
            entry.successor = if is_same { slot as u32 } else { SEVERAL };
            entry.victims += 1;
        }
    }

    /// Takes back the latest session that was added and not taken back; it stays.
    pub fn take_back(&mut self, value: Value) {
        if self.is_noted(value) {
            return;
        }
        let round = self.round;
        if let Some(entry) = entry_of(&mut self.entries, self.key, round, value)
            && entry.round == round
        {
            entry.sessions -= 1;
            if entry.sessions == 0 {
                // Nothing was put behind it since.
                entry.round = 0;
                self.number -= 1;
            }
        }
    }

    /// Whether a session has this value, and no other has.
    pub fn is_alone(&mut self, value: Value) -> bool {
        self.known(value).is_some_and(|entry| entry.sessions == 1)
    }

    /// Whether all sessions with this value are victims of the successor at this slot.
    pub fn leaves_to(&mut self, value: Value, successor: usize) -> bool {
        let all =
            |entry: Entry| entry.victims == entry.sessions && entry.successor == successor as u32;
        self.known(value).is_some_and(all)
    }

    fn known(&mut self, value: Value) -> Option<Entry> {
        let round = self.round;
        let entry = entry_of(&mut self.entries, self.key, round, value).copied();
        entry.filter(|entry| entry.round == round)
    }
}

fn noted_in(round: u32, number: u32) -> u64 {
    (u64::from(round) << 32) | u64::from(number)
}

/// The halves of a product on which all bits of the value have an influence.
fn hash(value: Value, [low, high]: Key) -> usize {
    let product = u128::from(value as u64 ^ low) * u128::from((value >> 64) as u64 ^ high);
    (product as u64 ^ (product >> 64) as u64) as usize
}

/// The entry of the value, or the free one where it belongs.
#[inline]
fn entry_of(entries: &mut [Entry], key: Key, round: u32, value: Value) -> Option<&mut Entry> {
    let mask = entries.len().checked_sub(1)?;
    let mut at = hash(value, key) & mask;
    loop {
        let entry = entries.get(at)?;
        if entry.round != round || entry.value == value {
            return entries.get_mut(at);
        }
        at = (at + 1) & mask;
    }
}
