//! What the benchmarks have in common: variants that take turns in random order, and what is said of their
//! figures.

use crate::{place, say};
use serde_json::{Map, Value, json};
use std::fs;
use std::time::{Duration, SystemTime};

/// An order of so many variants, another each time it is asked for: xorshift, seeded by the clock.
pub struct Shuffle(u64);

impl Shuffle {
    pub fn new() -> Shuffle {
        let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO);
        Shuffle(seed.as_nanos() as u64 | 1)
    }

    pub fn order(&mut self, length: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..length).collect();
        for index in (1..length).rev() {
            order.swap(index, self.below(index + 1));
        }
        order
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

impl Default for Shuffle {
    fn default() -> Shuffle {
        Shuffle::new()
    }
}

/// Figures of one variant, one a round.
#[derive(Clone, Debug, Default)]
pub struct Figures(Vec<f64>);

impl Figures {
    pub fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// The figure that this part of them, of a hundred, is not above.
    pub fn part(&self, of_hundred: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted
            .get(last * of_hundred / 100)
            .copied()
            .unwrap_or(f64::NAN)
    }

    pub fn median(&self) -> f64 {
        self.part(50)
    }

    /// Each round's figure divided by another variant's of the same round: what slows all variants of a
    /// round falls out.
    pub fn over(&self, other: &Figures) -> Figures {
        Figures(
            self.0
                .iter()
                .zip(&other.0)
                .map(|(one, two)| one / two)
                .collect(),
        )
    }

    pub fn json(&self) -> Value {
        json!({"median": self.median(), "p10": self.part(10), "p90": self.part(90), "all": self.0})
    }
}

/// Writes what a benchmark found to `target/bench/NAME.json`, a member for each major, and keeps those
/// of the majors that were not measured this time.
pub fn keep(name: &str, major: u32, found: Value) {
    let dir = place::checkout().join("target/bench");
    let file = dir.join(name).with_extension("json");
    let kept = fs::read(&file)
        .ok()
        .and_then(|json| serde_json::from_slice(&json).ok());
    let mut all: Map<String, Value> = kept.unwrap_or_default();
    all.insert(major.to_string(), found);
    let json = serde_json::to_string_pretty(&all).expect("JSON");
    fs::create_dir_all(&dir)
        .and_then(|()| fs::write(&file, json))
        .expect("write the figures");
    say(format_args!("the figures are in {}", file.display()));
}
