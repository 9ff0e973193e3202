//! Choices that are the same for the same seed.

use fastrand::Rng;

/// Another sequence for each of these: the seed, and whose choices they are.
pub fn of(parts: &[u64]) -> Rng {
    let mix = |seed: u64, part: &u64| Rng::with_seed(seed ^ part).u64(..);
    Rng::with_seed(parts.iter().fold(0, mix))
}

pub fn one_in(random: &mut Rng, times: usize) -> bool {
    random.usize(..times) == 0
}

pub fn one_of<T: Copy>(random: &mut Rng, these: &[T]) -> T {
    *random.choice(these).expect("something to choose")
}
