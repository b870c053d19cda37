//! Random numbers that a seed and a number decide, whichever thread draws them and in whatever order.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// The random numbers of one of the many items that a seed gives.
#[must_use]
pub fn stream(seed: u64, item: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(item as u64);
    rng
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn seeds_and_items_have_numbers_of_their_own() {
        let first = |seed, item| stream(seed, item).random::<u64>();
        assert_eq!(first(1, 2), first(1, 2));
        assert_ne!(first(1, 2), first(1, 3));
        assert_ne!(first(1, 2), first(2, 2));
    }
}
