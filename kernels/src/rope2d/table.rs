//! Tables of cosines and sines of the angles of position digits, computed in f64 and kept on the device in
//! fp32.
//!
//! A position's magnitude, up to 2^31, is written in base 2^`bits`; level l holds the angle of every digit
//! times 2^(l * bits). For fp32 positions, levels of the fractional digits follow, and the step of the last
//! one:
//!
//! ```text
//! rows   level 0: 0, 1, .. 2^bits - 1 | level 1: 0, 2^bits, .. | .. | last level: up to 2^31 | a row of NaN
//!        level -1: 0, 2^-bits, .. | .. | level -L | one row of angles: those of 2^(-L * bits)
//! row    Q cosines, then Q sines
//! ```
//!
//! 11 bits make 4610 rows, and one row for positions below 2048: 0.6 MB at head dimension 64, plus 2049 or
//! 4097 rows for fp32 positions. Wider heads get fewer bits and more levels: at most 8 MB up to head
//! dimension 4096. Negative positions use cos(-t) = cos t and sin(-t) = -sin t; the NaN row is for positions
//! outside i32.
//!
//! Error of an angle, u = 2^-24: rounding a row gives 0.71 u, a product of two rotations 2.24 u (sqrt 5). An
//! integer has up to 3 digits of 11 bits, 4 of 8 or 6 of 6: 15.5 u at most. The 24 bits of an fp32 number
//! spread over up to 4 digits of 11 or 8 bits, or 5 of 6. The remainder after the last level is at most 2^-7
//! radians ([`Digits::of`]); 1 - t^2/2 and t represent it to 2^-21/6 = 1.33 u, plus 0.5 u for rounding: 4.1 u
//! with its product. With at most 4 digits before it 13.7 u; for 5 digits there is no remainder: 12.5 u. All
//! are below 16.7 u = 1e-6. Beyond an angle of 2^29, f64's own resolution adds |theta| * 2^-52.

use super::{Rope2dProblem, reference::frequency};
use cubecl::device::DeviceId;
use cubecl::prelude::*;
use cubecl::server::Handle;
use std::any::TypeId;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Tables kept, over all devices.
const CAPACITY: usize = 16;

/// Largest remainder for the Taylor series, in radians.
const MAX_REMAINDER: f64 = 1.0 / 128.0;

/// What a table depends on: the device, the runtime that opened it, and the parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Key {
    device: DeviceId,
    service: TypeId,
    base: u32,
    f0: u32,
    frequencies: usize,
    fractions: bool,
}

/// How positions are split into digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Digits {
    /// Bits of a digit.
    pub(crate) bits: u32,
    /// Fractional digits; 0 for integers.
    pub(crate) fraction_levels: u32,
}

/// Contents of a table row.
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
    /// The split for fp32 positions (`fractions`) or integers.
    pub(crate) fn of(problem: &Rope2dProblem, fractions: bool) -> Self {
        let bits = match problem.frequencies() {
            0..=128 => 11,
            129..=1024 => 8,
            _ => 6,
        };
        let mut fraction_levels = u32::from(fractions);
        let left = |levels: u32| problem.fastest() / 2f64.powi((bits * levels) as i32);
        while fractions && left(fraction_levels) > MAX_REMAINDER {
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

    /// The row of NaN, after those of the integer digits.
    pub(crate) fn nan_row(self) -> u32 {
        (self.levels() - 1) * self.radix() + self.last()
    }

    /// Rows of the whole table.
    fn rows(self) -> u32 {
        let fractions = self.fraction_levels * self.radix();
        self.nan_row() + 1 + fractions + u32::from(fractions > 0)
    }

    /// Shape of the table: `[rows, 2, Q]`.
    pub(crate) fn table_shape(self, problem: &Rope2dProblem) -> [usize; 3] {
        [self.rows() as usize, 2, problem.frequencies()]
    }

    /// Contents of a row.
    fn row(self, row: u32) -> Row {
        let power = |level: i32| 2f64.powi(self.bits as i32 * level);
        if row < self.nan_row() {
            let level = (row / self.radix()).min(self.levels() - 1);
            return Row::Position(f64::from(row - level * self.radix()) * power(level as i32));
        }
        if row == self.nan_row() {
            return Row::Nan;
        }
        let after_nan = row - self.nan_row() - 1;
        let (level, digit) = (after_nan / self.radix(), after_nan % self.radix());
        if level == self.fraction_levels {
            return Row::Step(power(-(level as i32)));
        }
        Row::Position(f64::from(digit) * power(-(level as i32) - 1))
    }
}

/// The latest tables, least recently used first.
static TABLES: Mutex<VecDeque<(Key, Handle)>> = Mutex::new(VecDeque::new());

/// The problem's table `[rows, 2, Q]` in fp32 on the client's device, computed and uploaded if not cached.
/// Uploading does not wait for the device.
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

/// The table's values, `[rows, 2, Q]`.
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
