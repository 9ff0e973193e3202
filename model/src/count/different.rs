//! Counting different roles or addresses: what [`Tally`] needs for that, slot by slot.

use super::{SessionCounter, part};
use crate::limit::Unit;
use crate::members::{Missing, SessionFilter};
use crate::session::Session;
use crate::table::{PENDING, TILE, TOLD, Table};
use crate::tally::{Different, Part, Tally, View};

impl SessionCounter<'_> {
    /// How a limit stands that counts different roles or addresses, and how for a login when the waiters at the slots
    /// `first` have gone in.
    pub fn different(
        &self,
        table: &Table,
        filter: SessionFilter,
        unit: Unit,
        view: View,
        first: &[usize],
        login: Option<&Session>,
    ) -> Result<Different, Missing> {
        // Taken out of its cell, so that it can be changed; it is put back below.
        let mut tally = self.tally.take();
        if !tally.has_memory() {
            return Err(Missing::Tally);
        }
        let wanted = (filter.scope, filter.walsenders, unit, view);
        if self.tallied.get() != Some(wanted) {
            self.fill(&mut tally, table, filter, unit, view);
            self.tallied.set(Some(wanted));
        }
        let number = |tally: &mut Tally| {
            let shared = self.shared_places(tally, table, filter, unit, view);
            tally.number().saturating_sub(shared)
        };
        let value = |slot: &usize| {
            let session = table.session(*slot)?;
            unit.value(&session).filter(|_| filter.covers(&session))
        };
        let first = || first.iter().filter_map(value);
        let in_use = number(&mut tally);
        first().for_each(|value| tally.add(value, Part::Stays));
        let then = number(&mut tally);
        let own = login.and_then(|session| unit.value(session));
        own.iter().for_each(|value| tally.add(*value, Part::Stays));
        let with = number(&mut tally);
        own.iter().for_each(|value| tally.take_back(*value));
        first().rev().for_each(|value| tally.take_back(value));
        self.tally.set(tally);
        let stays = |slot: usize| {
            let mark = table.columns.marks.get(slot);
            let successor = table.shared.successor(slot);
            mark.is_some_and(|mark| mark & (TOLD | PENDING) == 0)
                && successor.is_none_or(|login| view == View::Without(login))
                && view != View::Without(slot)
                && value(&slot) == own
        };
        let is_known = own.is_some() && with == then && self.marks & (TOLD | PENDING) != 0;
        Ok(Different {
            in_use,
            ahead: then.saturating_sub(in_use),
            with,
            leaves: is_known && !self.covered(table, filter).any(stays),
        })
    }

    fn fill(
        &self,
        tally: &mut Tally,
        table: &Table,
        filter: SessionFilter,
        unit: Unit,
        view: View,
    ) {
        tally.clear();
        if view == View::Now && self.marks & PENDING == 0 {
            return self.note_all(tally, table, filter, unit);
        }
        for slot in self.covered(table, filter) {
            let value = table.session(slot).and_then(|it| unit.value(&it));
            let part = match view {
                View::Without(login) if login == slot => continue,
                _ => match table.shared.successor(slot) {
                    Some(login) if view == View::Complete(login) => continue,
                    Some(login) if view == View::Without(login) => Part::Stays,
                    Some(successor) if table.is_pending(successor) => Part::VictimOf(successor),
                    _ => Part::Stays,
                },
            };
            value.into_iter().for_each(|value| tally.add(value, part));
        }
    }

    /// The same as `fill`, if no session is a victim.
    fn note_all(&self, tally: &mut Tally, table: &Table, filter: SessionFilter, unit: Unit) {
        let numbers = match unit {
            Unit::Role => self.roles.as_slice(),
            _ => &*table.columns.hosts,
        };
        let mut hits = [0; TILE];
        for tile in 0..self.roles.len() / TILE {
            let found = self.find(table, filter, tile, &mut hits);
            let (Some(_), Some(numbers)) = (found, part(numbers, tile)) else {
                continue;
            };
            let covered = (tile * TILE..).zip(hits.iter().zip(numbers));
            for (slot, (_, number)) in covered.filter(|(_, (hit, _))| **hit != 0) {
                match number {
                    // Not from an IPv4 address.
                    0 => {
                        let value = table.session(slot).and_then(|it| unit.value(&it));
                        value
                            .into_iter()
                            .for_each(|value| tally.add(value, Part::Stays));
                    }
                    number => tally.note(*number),
                }
            }
        }
    }

    /// How many pending successors count as one with places that are left to them.
    fn shared_places(
        &self,
        tally: &mut Tally,
        table: &Table,
        filter: SessionFilter,
        unit: Unit,
        view: View,
    ) -> u32 {
        if self.marks & PENDING == 0 {
            return 0;
        }
        let value = |slot: usize| {
            let is_there = self.roles.get(slot).is_some_and(|role| *role != 0);
            let session = table.session(slot).filter(|_| is_there)?;
            unit.value(&session).filter(|_| filter.covers(&session))
        };
        self.left_out
            .iter()
            .for_each(|left_out| left_out.set(false));
        let mut number = 0;
        for (slot, successor) in table.shared.successors() {
            if matches!(view, View::Without(login) | View::Complete(login) if login == successor)
                || !table.is_pending(successor)
            {
                continue;
            }
            let (Some(left), Some(taken)) = (value(slot), value(successor)) else {
                continue;
            };
            if tally.is_alone(taken)
                && tally.leaves_to(left, successor)
                && let Some(left_out) = self.left_out.get(successor)
                && !left_out.replace(true)
            {
                number += 1;
            }
        }
        number
    }
}
