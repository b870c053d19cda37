//! From a count of cubes to launches a device accepts: grids folded below the per-axis limit, work split so
//! that no dispatch runs for longer than an operating system's watchdog allows.
//!
//! A kernel sees a *span* of the linear cube index: `cube = span.first + CUBE_POS`, idle when
//! `cube >= span.end`.

use crate::limits::Limits;
use cubecl::prelude::*;

/// One launch: the cubes `first..end` of the work, and the grid that covers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dispatch {
    pub(crate) first: usize,
    pub(crate) end: usize,
    pub(crate) grid: (u32, u32, u32),
}

impl Dispatch {
    pub(crate) fn count(&self) -> CubeCount {
        CubeCount::Static(self.grid.0, self.grid.1, self.grid.2)
    }

    pub(crate) fn span(&self) -> SpanLaunch {
        SpanLaunch::new(self.first, self.end)
    }
}

/// The part of the linear cube index that one launch covers.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Span {
    first: usize,
    end: usize,
}

#[cube]
impl Span {
    /// This cube's place in the whole work.
    pub(crate) fn cube(&self) -> usize {
        self.first + CUBE_POS
    }

    /// Whether this cube has work; the folded grid may be a little larger than the span.
    pub(crate) fn is_idle(&self) -> bool {
        self.first + CUBE_POS >= self.end
    }
}

/// How many times a launch may pass its operations to fill the device. (H200, f16, dw of 512 -> 512,
/// 41x120x208, where a cube has 4.5 GFLOP: 255 ms in launches of 55 cubes.)
const MOST_FOR_FULL: f64 = 10.0;

/// Splits `cubes` cubes of `operations` arithmetic operations each into launches that fill the device as
/// often as a launch may compute, or once where that is more. No cubes, no launches.
pub(crate) fn dispatches(cubes: usize, operations: f64, limits: &Limits) -> Vec<Dispatch> {
    let axis = limits.cubes_per_axis as usize;
    let by_time = limits.dispatch_operations / operations.max(1.0);
    let full = limits.cubes_in_flight.max(1);
    // `as` saturates here, and a value above `by_grid` is cut right after.
    let by_time = if by_time < full as f64 {
        full.min((MOST_FOR_FULL * by_time) as usize).max(1)
    } else {
        by_time as usize / full * full
    };
    let by_grid = axis.saturating_mul(axis).saturating_mul(axis);
    let step = by_time.min(by_grid);
    (0..cubes)
        .step_by(step)
        .map(|first| {
            let end = cubes.min(first + step);
            Dispatch { first, end, grid: fold(end - first, axis) }
        })
        .collect()
}

/// A grid of at least `cubes` cubes, each axis at most `axis` long, with few cubes to spare.
fn fold(cubes: usize, axis: usize) -> (u32, u32, u32) {
    let z = cubes.div_ceil(axis * axis).max(1);
    let plane = cubes.div_ceil(z);
    let y = plane.div_ceil(axis).max(1);
    let x = plane.div_ceil(y);
    (x as u32, y as u32, z as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dispatches_fill_the_device() {
        let limits = Limits { dispatch_operations: 1000.0, cubes_in_flight: 16, ..Limits::apple_m1() };
        let sizes = |operations| {
            let parts = dispatches(100, operations, &limits);
            parts.iter().map(|part| part.end - part.first).collect::<Vec<_>>()
        };
        assert_eq!(sizes(20.0), [48, 48, 4], "fifty rounded down");
        assert_eq!(sizes(200.0), [16, 16, 16, 16, 16, 16, 4], "five would leave it idle");
        assert_eq!(sizes(1000.0)[0], 10, "ten times the operations at most");
        assert_eq!(sizes(1e9)[0], 1);
    }

    #[test]
    fn the_folded_grid_covers_the_cubes_within_the_axis_limit() {
        for axis in [1usize, 2, 7, 65_535] {
            for cubes in [1usize, 2, 3, 6, 7, 8, 48, 49, 50, 342, 343, 65_535, 65_536, 65_537, 1 << 31] {
                if cubes > axis.saturating_mul(axis).saturating_mul(axis) {
                    continue;
                }
                let (x, y, z) = fold(cubes, axis);
                let (x, y, z) = (x as usize, y as usize, z as usize);
                assert!(x <= axis && y <= axis && z <= axis, "{cubes} cubes, axis {axis}: {x} {y} {z}");
                assert!(x * y * z >= cubes, "{cubes} cubes, axis {axis}: {x} {y} {z}");
                assert!(x * y * z - cubes < y * z + x * y, "{cubes} cubes waste too many: {x} {y} {z}");
            }
        }
    }

    #[test]
    fn dispatches_tile_the_work_and_keep_the_operation_budget() {
        for (cubes, operations, in_flight) in [
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
            let parts = dispatches(cubes, operations, &limits);
            let mut next = 0;
            for part in &parts {
                assert_eq!(part.first, next);
                assert!(part.end > part.first);
                let size = part.end - part.first;
                let most = if size > in_flight { 1.0 } else { MOST_FOR_FULL };
                assert!(size == 1 || size as f64 * operations <= most * limits.dispatch_operations);
                assert!(size <= 64);
                next = part.end;
            }
            assert_eq!(next, cubes);
        }
    }
}
