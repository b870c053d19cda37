//! From a number of threadgroups to launches that a device accepts: grids folded below the limit per axis,
//! and work split so that no dispatch runs into an operating system's watchdog.
//!
//! A kernel gets a [`Span`] of the linear threadgroup index:
//!
//! ```text
//! index = span.first + CUBE_POS        idle if index >= span.end: the folded grid may exceed the span
//! ```

use crate::limits::Limits;
use cubecl::prelude::*;

/// One launch: the threadgroups `first..end` of the work, and a grid that covers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dispatch {
    pub(crate) first: usize,
    pub(crate) end: usize,
    pub(crate) grid: (u32, u32, u32),
}

impl Dispatch {
    /// The grid as CubeCL takes it.
    pub(crate) fn count(&self) -> CubeCount {
        CubeCount::Static(self.grid.0, self.grid.1, self.grid.2)
    }

    /// The kernel's argument.
    pub(crate) fn span(&self) -> SpanLaunch {
        SpanLaunch { first: self.first, end: self.end }
    }
}

/// The range of the linear threadgroup index that one launch covers.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Span {
    first: usize,
    end: usize,
}

#[cube]
impl Span {
    /// This threadgroup's index in the whole work.
    pub(crate) fn index(&self) -> usize {
        self.first + CUBE_POS
    }

    /// Whether this threadgroup has no work. Uniform over the threadgroup.
    pub(crate) fn is_idle(&self) -> bool {
        self.first + CUBE_POS >= self.end
    }
}

/// By how much a launch may exceed `Limits::dispatch_operations` to run a full wave.
const MAX_OVER_BUDGET: f64 = 10.0;

/// Splits a grid of `threadgroups`, each of `flop` FLOP, into launches of at most `dispatch_operations` FLOP,
/// rounded down to whole waves. At least one wave each, unless that exceeds the budget [`MAX_OVER_BUDGET`]
/// times. No launches for an empty grid.
pub(crate) fn dispatches(threadgroups: usize, flop: f64, limits: &Limits) -> Vec<Dispatch> {
    let axis = limits.cubes_per_axis as usize;
    let by_flop = limits.dispatch_operations / flop.max(1.0);
    let wave = limits.cubes_in_flight.max(1);
    // `as` saturates, and `by_grid` limits the value below.
    let by_flop = if by_flop < wave as f64 {
        wave.min((MAX_OVER_BUDGET * by_flop) as usize).max(1)
    } else {
        by_flop as usize / wave * wave
    };
    let by_grid = axis.saturating_mul(axis).saturating_mul(axis);
    let step = by_flop.min(by_grid);
    (0..threadgroups)
        .step_by(step)
        .map(|first| {
            let end = threadgroups.min(first + step);
            Dispatch { first, end, grid: fold_grid(end - first, axis) }
        })
        .collect()
}

/// A grid of at least `threadgroups` threadgroups with few to spare, each axis at most `axis` long.
fn fold_grid(threadgroups: usize, axis: usize) -> (u32, u32, u32) {
    let z = threadgroups.div_ceil(axis * axis).max(1);
    let per_slice = threadgroups.div_ceil(z);
    let y = per_slice.div_ceil(axis).max(1);
    let x = per_slice.div_ceil(y);
    (x as u32, y as u32, z as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dispatches_are_whole_waves() {
        let limits = Limits { dispatch_operations: 1000.0, cubes_in_flight: 16, ..Limits::apple_m1() };
        let sizes = |operations| {
            let launches = dispatches(100, operations, &limits);
            launches.iter().map(|launch| launch.end - launch.first).collect::<Vec<_>>()
        };
        assert_eq!(sizes(20.0), [48, 48, 4], "fifty rounded down");
        assert_eq!(sizes(200.0), [16, 16, 16, 16, 16, 16, 4], "five would leave the device idle");
        assert_eq!(sizes(1000.0)[0], 10, "at most ten times the budget");
        assert_eq!(sizes(1e9)[0], 1);
    }

    #[test]
    fn the_folded_grid_covers_the_work_within_the_axis_limit() {
        for axis in [1usize, 2, 7, 65_535] {
            for threadgroups in [1usize, 2, 3, 6, 7, 8, 48, 49, 50, 342, 343, 65_535, 65_536, 65_537, 1 << 31]
            {
                if threadgroups > axis.saturating_mul(axis).saturating_mul(axis) {
                    continue;
                }
                let (x, y, z) = fold_grid(threadgroups, axis);
                let (x, y, z) = (x as usize, y as usize, z as usize);
                assert!(
                    x <= axis && y <= axis && z <= axis,
                    "{threadgroups} threadgroups, axis {axis}: {x} {y} {z}"
                );
                assert!(x * y * z >= threadgroups, "{threadgroups} threadgroups, axis {axis}: {x} {y} {z}");
                assert!(
                    x * y * z - threadgroups < y * z + x * y,
                    "{threadgroups} threadgroups waste too many: {x} {y} {z}"
                );
            }
        }
    }

    #[test]
    fn dispatches_tile_the_work_and_keep_the_operation_budget() {
        for (threadgroups, operations, in_flight) in [
            (0usize, 1.0, 1),
            (1, 1000.0, 1),
            (63, 1.0, 64),
            (64, 1.0, 64),
            (65, 1.0, 64),
            (10, 30.0, 1),
            (40, 300.0, 8),
        ] {
            let small = Limits { cubes_per_axis: 4, dispatch_operations: 100.0, ..Limits::apple_m1() };
            let limits = Limits { cubes_in_flight: in_flight, ..small };
            let launches = dispatches(threadgroups, operations, &limits);
            let mut next = 0;
            for launch in &launches {
                assert_eq!(launch.first, next);
                assert!(launch.end > launch.first);
                let size = launch.end - launch.first;
                let budgets = if size > in_flight { 1.0 } else { MAX_OVER_BUDGET };
                assert!(size == 1 || size as f64 * operations <= budgets * limits.dispatch_operations);
                assert!(size <= 64);
                next = launch.end;
            }
            assert_eq!(next, threadgroups);
        }
    }
}
