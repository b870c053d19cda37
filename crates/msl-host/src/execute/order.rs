//! The orders in which threadgroups and threads run: ascending, descending, or shuffled, changing with every
//! launch. Deterministic: the same sequence of launches gets the same orders.

/// The orders of one launch.
#[derive(Clone, Copy)]
pub(super) struct LaunchOrders {
    groups: Order,
    threads: Order,
}

#[derive(Clone, Copy)]
enum Order {
    Up,
    Down,
    Shuffled(u64),
}

impl LaunchOrders {
    pub(super) fn of(launch: u64) -> Self {
        let order_of = |number: u64| match number % 3 {
            0 => Order::Up,
            1 => Order::Down,
            _ => Order::Shuffled(launch.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        };
        Self { groups: order_of(launch / 3), threads: order_of(launch) }
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

impl Order {
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
    fn every_order_is_a_permutation() {
        let mut seen = std::collections::HashSet::new();
        for launch in 0..9 {
            let orders = LaunchOrders::of(launch);
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
