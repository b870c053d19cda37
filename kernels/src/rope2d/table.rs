//! Tables of cosines and sines of the angles of position digits, computed in f64 and kept on the device in
//! fp32.
//!
//! A position's magnitude, up to 2^31, is written in base 2^`bits`; level l holds the angle of every digit
//! times 2^(l * bits). Where positions are fp32, levels of the digits behind the point follow, and the step
//! of the last of them:
//!
//! ```text
//! rows   level 0: 0, 1, .. 2^bits - 1 | level 1: 0, 2^bits, .. | .. | last level: up to 2^31 | a row of NaN
//!        level -1: 0, 2^-bits, .. | .. | level -L | one row of angles: those of 2^(-L * bits)
//! row    Q cosines, then Q sines
//! ```
//!
//! 11 bits, so that positions below 2048 need one row, make 4610 rows: 0.6 MB at head dimension 64, and 2049
//! or 4097 more for fp32 positions. Wider heads get fewer bits and more levels, 8 MB at most up to head
//! dimension 4096. Negative positions use cos(-t) = cos t and sin(-t) = -sin t; the NaN row is for positions
//! outside i32.
//!
//! Error of an angle, u = 2^-24: a row is rounded to 0.71 u, the product of two rotations to 2.24 u (sqrt 5).
//! An integer has up to 3 digits of 11 bits, 4 of 8 or 6 of 6: 15.5 u at most. The 24 bits of an fp32 number
//! lie in up to 4 digits of 11 or 8 bits, 5 of 6. What the last level leaves turns by at most 2^-7
//! ([`Digits::of`]) and is 1 - t^2/2 and t: to 2^-21/6 = 1.33 u, and 0.5 u for the rounding. With the product
//! 4.1 u for that, and at most 4 digits before it: 13.7 u, or 12.5 u for 5 digits and nothing left. All are
//! below 16.7 u = 1e-6. Beyond an angle of 2^29, f64's own resolution adds to it: |theta| * 2^-52.

use super::{Rope2dProblem, reference::frequency};
use cubecl::device::DeviceId;
use cubecl::prelude::*;
use cubecl::server::Handle;
use std::any::TypeId;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Combinations whose tables are kept, over all devices.
const CAPACITY: usize = 16;

/// The largest angle, in radians, that is left to the Taylor series.
const REST: f64 = 1.0 / 128.0;

/// What a table depends on: the device, the runtime that opened it, and the numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Key {
    device: DeviceId,
    service: TypeId,
    base: u32,
    f0: u32,
    frequencies: usize,
    fractions: bool,
}

/// How positions are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Digits {
    /// Bits of a digit.
    pub(crate) bits: u32,
    /// Digits behind the point: none of integers.
    pub(crate) fraction_levels: u32,
}

/// What a row of the table holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Row {
    /// Cosines and sines of this position.
    Position(f64),
    /// NaN.
    Nan,
    /// Angles of this position.
    Step(f64),
}

impl Digits {
    /// The split for a problem whose positions are fp32 `numbers` or integers.
    pub(crate) fn of(problem: &Rope2dProblem, numbers: bool) -> Self {
        let bits = match problem.frequencies() {
            0..=128 => 11,
            129..=1024 => 8,
            _ => 6,
        };
        let mut fraction_levels = u32::from(numbers);
        let left = |levels: u32| problem.fastest() / 2f64.powi((bits * levels) as i32);
        while numbers && left(fraction_levels) > REST {
            fraction_levels += 1;
        }
        Self { bits, fraction_levels }
    }

    /// Number of digits of 2^31.
    pub(crate) fn levels(self) -> u32 {
        32u32.div_ceil(self.bits)
    }

    /// Digits of one level.
    fn radix(self) -> u32 {
        1 << self.bits
    }

    /// Digits of the last level: 0 to that of 2^31.
    fn last(self) -> u32 {
        (1u32 << 31 >> (self.bits * (self.levels() - 1))) + 1
    }

    /// The row of NaN, behind those of the whole digits.
    pub(crate) fn nan_row(self) -> u32 {
        (self.levels() - 1) * self.radix() + self.last()
    }

    /// Rows of the whole table.
    fn rows(self) -> u32 {
        let fractions = self.fraction_levels * self.radix();
        self.nan_row() + 1 + fractions + u32::from(fractions > 0)
    }

    /// `[rows, 2, Q]`.
    pub(crate) fn table_shape(self, problem: &Rope2dProblem) -> [usize; 3] {
        [self.rows() as usize, 2, problem.frequencies()]
    }

    /// What a row holds.
    fn row(self, row: u32) -> Row {
        let power = |level: i32| 2f64.powi(self.bits as i32 * level);
        if row < self.nan_row() {
            let level = (row / self.radix()).min(self.levels() - 1);
            return Row::Position(f64::from(row - level * self.radix()) * power(level as i32));
        }
        if row == self.nan_row() {
            return Row::Nan;
        }
        let behind = row - self.nan_row() - 1;
        let (level, digit) = (behind / self.radix(), behind % self.radix());
        if level == self.fraction_levels {
            return Row::Step(power(-(level as i32)));
        }
        Row::Position(f64::from(digit) * power(-(level as i32) - 1))
    }
}

/// The tables made last, newest at the back.
static TABLES: Mutex<VecDeque<(Key, Handle)>> = Mutex::new(VecDeque::new());

/// The table `[rows, 2, Q]` of the problem on the client's device in fp32, made and uploaded when it is not
/// there. Uploading does not wait for the device.
pub(crate) fn get(client: &Client, problem: &Rope2dProblem, fractions: bool) -> Handle {
    let service = client.service_id();
    let key = Key {
        device: service.device,
        service: service.service,
        base: problem.base.to_bits(),
        f0: problem.f0.to_bits(),
        frequencies: problem.frequencies(),
        fractions,
    };
    let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(place) = tables.iter().position(|(other, _)| *other == key)
        && let Some((key, table)) = tables.remove(place)
    {
        tables.push_back((key, table.clone()));
        return table;
    }
    let values = values(problem, Digits::of(problem, fractions));
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    let table = client.create_from_slice(&bytes);
    if tables.len() == CAPACITY {
        tables.pop_front();
    }
    tables.push_back((key, table.clone()));
    table
}

/// `[rows, 2, Q]`.
fn values(problem: &Rope2dProblem, digits: Digits) -> Vec<f32> {
    let frequencies: Vec<f64> = (0..problem.frequencies()).map(|i| frequency(problem, i)).collect();
    let mut values = Vec::with_capacity(digits.table_shape(problem).iter().product());
    for row in (0..digits.rows()).map(|row| digits.row(row)) {
        let angle = |position: f64, frequency: &f64| f64::from(problem.f0) * position * frequency;
        let pairs = frequencies.iter().map(|frequency| match row {
            Row::Position(position) => angle(position, frequency).sin_cos(),
            Row::Nan => (f64::NAN, f64::NAN),
            Row::Step(step) => (angle(step, frequency), 0.0),
        });
        let (sines, cosines): (Vec<f64>, Vec<f64>) = pairs.unzip();
        values.extend(cosines.into_iter().chain(sines).map(|value| value as f32));
    }
    values
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
