//! The places that this server holds: under each limit across servers so many sessions may be here.
//!
//! A place is entered by counter name; a session has the places of its limits from its login to its end, and a waiter
//! asks for them. Both are lists by slot. What is in use is counted from them each time, as sessions are from the
//! claims: no number is kept beside them. They are part of the [`crate::table::Table`], and change under its lock.
//!
//! `held` is the number that counts here. Only [`super::round`] changes it: it is raised after etcd has confirmed a
//! transaction of ours that put that number, and lowered before the lower number is sent. So it is never more than what
//! etcd says.

use super::counter::Counter;
use std::time::Duration;

/// Under so many limits across servers a login has places at most. Further limits are as if etcd could not be reached.
pub const PLACES_A_SLOT: usize = 8;

/// The number of a place in the table.
pub type Number = u32;

/// There is no room for a place. So etcd cannot be asked for more.
pub const NO_PLACE: Number = Number::MAX;

/// Under one counter.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Place {
    /// The limit, as the last login found it that entered here: the smallest that it must meet.
    pub max: u32,
    /// So many sessions may be here.
    pub held: u32,
    /// So many of the places that are held and become free go to other servers next, whose logins have waited longer.
    pub(crate) yields: u32,
    /// So many places came for logins that wait here, and are not taken yet.
    pub(crate) granted: u32,
    /// So many sessions that the limit counts have no place: they are exempt, or were in before there was the limit.
    pub(crate) extra: u32,
    /// What other servers held at the last look at etcd.
    pub elsewhere: u32,
    /// The server that held most of that.
    pub(crate) holder: Holder,
    /// How many places nobody held at the last look.
    pub(crate) free: u32,
    /// The last look began after every login had arrived that did so until this tick; 0: there was none.
    pub(crate) looked_at: u64,
    /// Since this tick there is a place more than needed; 0: there is none.
    pub(crate) spare_since: u64,
    /// A login that waited took a place that became free here.
    pub(crate) served: bool,
    /// Of its name, so that most others are told apart without that. 0 if it is free.
    hash: u64,
}

/// A server that holds places under a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Holder {
    /// See [`KnownServer::id`].
    pub id: u64,
    pub places: u32,
}

/// What the owner of a slot has to do with places.
#[derive(Clone, Copy, Debug, Default)]
pub struct OfSlot {
    /// Each one more than its number; 0: none.
    pub(crate) numbers: [u32; PLACES_A_SLOT],
    /// Since this tick it waits, and lacks nothing but places, and etcd can be asked; 0: it does not wait for places.
    asks_since: u64,
    /// It waits only for an answer of etcd. That is not counted as waiting for room.
    only_asks: bool,
}

/// What all places have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reach {
    /// What is held counts until then, in microseconds of CLOCK_BOOTTIME.
    pub valid_until: u64,
    /// Whether etcd answered last time, or was not asked yet.
    pub answers: bool,
    /// The life of this server, so that a worker that starts again goes on with it: its id and the revision at which its key
    /// was made. The id is 0 before the first, and after the end of one.
    pub life: (u64, i64),
    /// The number of places that were ever entered at the same time: those behind are free.
    used: u32,
}

impl Reach {
    /// Nothing is known yet.
    pub const NEW: Reach = Reach {
        valid_until: 0,
        answers: true,
        life: (0, 0),
        used: 0,
    };
}

/// Whether places can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact {
    /// From etcd.
    Good,
    /// Not yet, but soon: this server joins the others.
    Joining,
    /// Only those that are held already.
    Silent,
    /// None: what was held is others' by now.
    Lost,
}

impl Contact {
    /// Whether etcd may answer a login that asks now.
    pub fn may_answer(self) -> bool {
        matches!(self, Contact::Good | Contact::Joining)
    }
}

/// What a limit across servers lets in without etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnUnreachable {
    /// As many as if it were a limit of this server.
    Local,
    /// Whoever finds a place that is held; later nobody.
    Refuse,
}

/// A limit across servers that a login must meet.
#[derive(Clone, Copy)]
pub struct Wanted {
    /// Its index among the login's limits.
    pub limit: usize,
    pub(crate) counter: Counter,
    /// Of the counter.
    pub(crate) hash: u64,
    pub(crate) max: u32,
}

/// So many servers that count together are known at most; any number may count.
pub const KNOWN_SERVERS: usize = 64;

/// The longest name of a server, in bytes.
const NAME_LENGTH: usize = 64;

/// A server that lives, this one or another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KnownServer {
    /// Of its life.
    pub id: u64,
    name: [u8; NAME_LENGTH],
    /// Since when its worker has been in touch, in microseconds since 2000-01-01, by its own clock.
    pub since: i64,
    /// At this tick its last sign of life was seen.
    pub last_seen: u64,
    /// How many places it held then, of all counters together.
    pub places: u64,
    pub this: bool,
    /// False for an entry that is not used.
    pub known: bool,
}

impl KnownServer {
    pub const NONE: KnownServer = KnownServer {
        id: 0,
        name: [0; NAME_LENGTH],
        since: 0,
        last_seen: 0,
        places: 0,
        this: false,
        known: false,
    };

    /// UTF-8, cut if it is too long.
    pub fn name(&self) -> &[u8] {
        let end = self.name.iter().position(|byte| *byte == 0);
        self.name
            .get(..end.unwrap_or(NAME_LENGTH))
            .unwrap_or_default()
    }

    pub(crate) fn set_name(&mut self, name: &str) {
        let mut end = name.len().min(NAME_LENGTH);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        self.name = [0; NAME_LENGTH];
        let bytes = name.bytes().take(end);
        self.name
            .iter_mut()
            .zip(bytes)
            .for_each(|(free, byte)| *free = byte);
    }
}

/// All of it; empty if there is no etcd.
pub struct Places<'a> {
    pub(crate) rows: &'a mut [Place],
    pub(crate) names: &'a mut [Counter],
    pub(crate) of_slots: &'a mut [OfSlot],
    pub servers: &'a mut [KnownServer],
    pub reach: &'a mut Reach,
}

impl<'a> Places<'a> {
    /// `rows` and `names` have the same length, `of_slots` that of the slots.
    pub fn new(
        rows: &'a mut [Place],
        names: &'a mut [Counter],
        of_slots: &'a mut [OfSlot],
        servers: &'a mut [KnownServer],
        reach: &'a mut Reach,
    ) -> Places<'a> {
        Places {
            rows,
            names,
            of_slots,
            servers,
            reach,
        }
    }

    pub fn contact(&self, boottime: u64) -> Contact {
        match (boottime < self.reach.valid_until, self.reach.answers) {
            (true, true) => Contact::Good,
            (false, true) => Contact::Joining,
            (true, false) => Contact::Silent,
            (false, false) => Contact::Lost,
        }
    }

    /// The places behind the first so many are free.
    pub(crate) fn used(&self) -> usize {
        self.reach.used as usize
    }

    /// How many counters it has places for.
    pub fn room(&self) -> usize {
        self.rows.len()
    }

    /// How many places are held, of all counters together.
    pub fn held(&self) -> u64 {
        self.rows.iter().map(|place| u64::from(place.held)).sum()
    }

    pub fn get(&self, number: Number) -> Option<&Place> {
        self.rows.get(number as usize)
    }

    /// The places in use, each with its number and name.
    pub fn all(&self) -> impl Iterator<Item = (Number, &Place, &Counter)> {
        let rows = self.rows.iter().zip(self.names.iter());
        let rows = (0..).zip(rows).take(self.used());
        rows.filter(|(_, (_, name))| !name.is_none())
            .map(|(number, (place, name))| (number, place, name))
    }

    pub(crate) fn get_mut(&mut self, number: Number) -> Option<&mut Place> {
        self.rows.get_mut(number as usize)
    }

    /// The numbers of the places that the owner of `slot` has, or asks for.
    pub fn of(&self, slot: usize) -> impl Iterator<Item = Number> + Clone + use<> {
        let numbers = self.of_slots.get(slot).map(|of_slot| of_slot.numbers);
        let numbers = numbers.into_iter().flatten();
        numbers.filter_map(|number| number.checked_sub(1))
    }

    /// Whether the waiter at `slot` lacks nothing but places.
    pub fn asks(&self, slot: usize) -> bool {
        self.asks_since(slot) > 0
    }

    /// Since which tick; 0: it does not.
    pub fn asks_since(&self, slot: usize) -> u64 {
        self.of_slots.get(slot).map_or(0, |it| it.asks_since)
    }

    /// Whether the waiter at `slot` waits only for an answer of etcd.
    pub fn only_asks(&self, slot: usize) -> bool {
        self.of_slots.get(slot).is_some_and(|it| it.only_asks)
    }

    /// The place of this name, if there is one.
    pub fn known(&self, wanted: &Wanted) -> Option<Number> {
        let is_it = |(place, name): (&Place, &Counter)| {
            place.hash == wanted.hash && *name == wanted.counter
        };
        let mut rows = self.rows.iter().zip(self.names.iter()).take(self.used());
        rows.position(is_it).map(|number| number as Number)
    }

    /// The place of this name; a new one if there is none, and room.
    pub(crate) fn find(&mut self, wanted: &Wanted) -> Option<Number> {
        if let Some(number) = self.known(wanted) {
            return Some(number);
        }
        let number = self.rows.iter().position(|place| place.hash == 0)?;
        *self.rows.get_mut(number)? = Place {
            hash: wanted.hash,
            ..Place::default()
        };
        *self.names.get_mut(number)? = wanted.counter;
        self.reach.used = self.reach.used.max(number as u32 + 1);
        Some(number as Number)
    }

    /// The owner of `slot` waits, at this tick.
    pub(crate) fn wait(
        &mut self,
        slot: usize,
        asks: bool,
        only_asks: bool,
        can_ask: bool,
        now: u64,
    ) {
        if let Some(of_slot) = self.of_slots.get_mut(slot) {
            of_slot.only_asks = only_asks;
            of_slot.asks_since = match of_slot.asks_since {
                _ if !asks => 0,
                since if since > 0 && can_ask => since,
                _ => now.max(1),
            };
        }
    }

    /// The owner of `slot` has these places from now on, or asks for them.
    pub(crate) fn set(&mut self, slot: usize, numbers: [u32; PLACES_A_SLOT]) {
        if let Some(of_slot) = self.of_slots.get_mut(slot)
            && of_slot.numbers != numbers
        {
            *of_slot = OfSlot {
                numbers,
                ..OfSlot::default()
            };
        }
    }

    /// The owner of `slot` goes in. `waited`: it was in the queue.
    pub(crate) fn take(&mut self, slot: usize, waited: bool) {
        for number in self.of(slot) {
            if let Some(place) = self.get_mut(number) {
                match place.granted.checked_sub(1) {
                    Some(left) => place.granted = left,
                    None => place.served |= waited,
                }
                place.spare_since = 0;
            }
        }
        self.wait(slot, false, false, false, 0);
    }
}

impl Wanted {
    /// Of the limit with this index.
    pub fn new(limit: usize, counter: Counter, max: u32) -> Wanted {
        // FNV-1a. Names decide, so it need not keep anyone from finding two with the same.
        let bytes = counter.text().bytes();
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Wanted {
            limit,
            counter,
            // 0 says that a place is free.
            hash: hash.max(1),
            max,
        }
    }
}

impl Place {
    /// How many sessions there may be here, under a limit of `max`, while etcd answers.
    pub(crate) fn usable(&self, max: u32) -> u32 {
        let kept = match self.granted {
            0 => self.held.saturating_sub(self.yields),
            _ => self.held,
        };
        // Sessions that others had to be given places for may have made it too many.
        kept.min(max.saturating_sub(self.elsewhere))
    }

    /// So many of the places that are held are not for this server: they go back as soon as they are free.
    pub(crate) fn owed(&self) -> u32 {
        let all = self.held.saturating_add(self.elsewhere);
        let over = all.saturating_sub(self.max);
        self.yields.max(over).min(self.held)
    }

    /// More places came, for waiters of which so many ask.
    pub(crate) fn raise(&mut self, held: u32, asking: u32) {
        if held > self.held {
            self.granted = (self.granted + held - self.held).min(asking);
            self.held = held;
            (self.spare_since, self.served) = (0, false);
        }
    }

    /// Places go back, and only so many are left.
    pub(crate) fn give_back(&mut self, held: u32) {
        let fewer = self.held.saturating_sub(held);
        self.yields = self.yields.saturating_sub(fewer);
        self.held -= fewer;
        self.spare_since = 0;
    }

    pub fn was_looked_at_since(&self, arrival: u64) -> bool {
        self.looked_at >= arrival
    }

    /// Whether there is no place for a login that arrived at this tick: this server holds all that there are, or a look at
    /// etcd that began after the login had arrived found none.
    pub fn is_full(&self, max: u32, arrival: u64) -> bool {
        self.held >= max || self.had_none_free(arrival)
    }

    /// Whether such a look found none.
    pub fn had_none_free(&self, arrival: u64) -> bool {
        self.looked_at >= arrival && self.free == 0
    }
}

/// The settings for limits across servers.
#[derive(Clone, Copy)]
pub struct AcrossRules<'a> {
    /// Reads CLOCK_BOOTTIME, in microseconds. It is asked under the lock.
    pub boottime: &'a dyn Fn() -> u64,
    /// The tick.
    pub now: u64,
    /// A login waits for an answer of etcd at most so long, from when it began to ask.
    pub timeout: Duration,
    pub on_unreachable: OnUnreachable,
}

impl AcrossRules<'_> {
    /// For a login that has no such limit.
    pub const NONE: AcrossRules<'static> = AcrossRules {
        boottime: &|| 0,
        now: 0,
        timeout: Duration::ZERO,
        on_unreachable: OnUnreachable::Local,
    };
}
