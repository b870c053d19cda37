//! The orders in which threadgroups and threads run: upwards, downwards, or shuffled, another for every
//! launch. The same launches get the same orders.

/// The orders of one launch.
#[derive(Clone, Copy)]
pub(super) struct Orders {
    groups: Walk,
    threads: Walk,
}

#[derive(Clone, Copy)]
enum Walk {
    Up,
    Down,
    Shuffled(u64),
}

impl Orders {
    pub(super) fn of(launch: u64) -> Self {
        let walk = |number: u64| match number % 3 {
            0 => Walk::Up,
            1 => Walk::Down,
            _ => Walk::Shuffled(launch.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        };
        Self { groups: walk(launch / 3), threads: walk(launch) }
    }

    /// `count` threadgroups, in their order.
    pub(super) fn groups(&self, count: usize) -> Vec<usize> {
        self.groups.order(count)
    }

    /// `count` threads of a threadgroup, in their order.
    pub(super) fn threads(&self, count: usize) -> Vec<usize> {
        self.threads.order(count)
    }
}

impl Walk {
    fn order(self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        match self {
            Self::Up => {}
            Self::Down => order.reverse(),
            Self::Shuffled(seed) => {
                let mut state = seed;
                for index in (1..count).rev() {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    order.swap(index, (state % (index as u64 + 1)) as usize);
                }
            }
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_has_everyone_once() {
        let mut seen = std::collections::HashSet::new();
        for launch in 0..9 {
            let orders = Orders::of(launch);
            for order in [orders.groups(37), orders.threads(37)] {
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..37).collect::<Vec<_>>());
                seen.insert(order);
            }
        }
        assert!(seen.len() > 5, "{} orders", seen.len());
    }
}
