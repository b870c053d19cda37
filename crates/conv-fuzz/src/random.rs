//! A counter-based random generator: number `i` of a seed is a hash of both, so a case depends only on its
//! seed.

use conv_cases::fill::hash;

/// Random numbers of a seed.
#[derive(Clone, Debug)]
pub struct Random {
    seed: u64,
    next: u64,
}

impl Random {
    /// The numbers of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed, next: 0 }
    }

    /// Any 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.next += 1;
        hash(self.seed, self.next)
    }

    /// One of `low..=high`.
    pub fn range(&mut self, low: i64, high: i64) -> i64 {
        low + (self.bits() % (high.max(low) - low + 1) as u64) as i64
    }

    /// True with probability `1 / n`.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.bits().is_multiple_of(n)
    }

    /// One of `values`, uniformly.
    pub fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.bits() as usize % values.len()]
    }
}
