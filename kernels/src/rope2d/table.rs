//! Tables of cosines and sines of the angles of position digits, computed in f64 and kept on the device in fp32.
//!
//! A position's magnitude, up to 2^31, is written in base 2^`bits`; level l holds the angle of every digit times
//! 2^(l * bits):
//!
//! ```text
//! rows   level 0: 0, 1, .. 2^bits - 1 | level 1: 0, 2^bits, .. | .. | last level: up to 2^31 | one row of NaN
//! row    Q cosines, then Q sines
//! ```
//!
//! 11 bits, so that positions below 2048 need one row, make 4610 rows: 0.6 MB at head dimension 64. Wider heads get
//! fewer bits and more levels, 8 MB at most up to head dimension 4096. Negative positions use cos(-t) = cos t and
//! sin(-t) = -sin t; the NaN row is for positions outside i32. Where positions are fp32, rows for the fractions 0/2048 to
//! 2048/2048 follow, between which the kernel interpolates: to f0^2 * 3e-8.

use super::{Rope2dProblem, reference::frequency};
use cubecl::device::DeviceId;
use cubecl::prelude::*;
use cubecl::server::Handle;
use std::any::TypeId;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Combinations whose tables are kept, over all devices.
const CAPACITY: usize = 16;

/// Steps of the table of fractions.
pub(super) const FRACTIONS: u32 = 2048;

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
}

impl Digits {
    /// The split for Q frequencies.
    pub(crate) fn of(frequencies: usize) -> Self {
        Self {
            bits: match frequencies {
                0..=128 => 11,
                129..=1024 => 8,
                _ => 4,
            },
        }
    }

    /// Number of digits of 2^31.
    pub(crate) fn levels(self) -> u32 {
        32u32.div_ceil(self.bits)
    }

    /// Digits of one level.
    pub(crate) fn radix(self) -> u32 {
        1 << self.bits
    }

    /// Digits of the last level: 0 to that of 2^31.
    fn last(self) -> u32 {
        (1u32 << 31 >> (self.bits * (self.levels() - 1))) + 1
    }

    /// The row of NaN, the last.
    pub(crate) fn nan_row(self) -> u32 {
        (self.levels() - 1) * self.radix() + self.last()
    }

    /// Rows of the whole table.
    pub(crate) fn rows(self, fractions: bool) -> u32 {
        self.nan_row() + 1 + if fractions { FRACTIONS + 1 } else { 0 }
    }

    /// The position that a row stands for; none for the row of NaN.
    fn position(self, row: u32) -> Option<f64> {
        if row > self.nan_row() {
            return Some(f64::from(row - self.nan_row() - 1) / f64::from(FRACTIONS));
        }
        let level = (row / self.radix()).min(self.levels() - 1);
        let digit = row - level * self.radix();
        (row < self.nan_row()).then(|| f64::from(digit) * f64::from(1u32 << (self.bits * level)))
    }
}

/// The tables made last, newest at the back.
static TABLES: Mutex<VecDeque<(Key, Handle)>> = Mutex::new(VecDeque::new());

/// The table `[rows, 2, Q]` of the problem on the client's device in fp32, made and uploaded when it is not there. Uploading
/// does not wait for the device.
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
    let digits = Digits::of(problem.frequencies());
    let values = values(problem, digits, digits.rows(fractions));
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    let table = client.create_from_slice(&bytes);
    if tables.len() == CAPACITY {
        tables.pop_front();
    }
    tables.push_back((key, table.clone()));
    table
}

/// `[rows, 2, Q]`.
fn values(problem: &Rope2dProblem, digits: Digits, rows: u32) -> Vec<f32> {
    let frequencies: Vec<f64> = (0..problem.frequencies()).map(|i| frequency(problem, i)).collect();
    let mut values = Vec::with_capacity(rows as usize * frequencies.len() * 2);
    for row in 0..rows {
        let angles = frequencies.iter().map(|frequency| match digits.position(row) {
            Some(position) => (f64::from(problem.f0) * position * frequency).sin_cos(),
            None => (f64::NAN, f64::NAN),
        });
        let (sines, cosines): (Vec<f64>, Vec<f64>) = angles.unzip();
        values.extend(cosines.into_iter().chain(sines).map(|value| value as f32));
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_is_the_sum_of_the_positions_of_its_digits() {
        for frequencies in [1usize, 16, 128, 129, 1024, 1025] {
            let digits = Digits::of(frequencies);
            for position in
                [0u32, 1, 15, 16, 255, 256, 2047, 2048, 4_194_303, 4_194_304, (1 << 31) - 1, 1 << 31]
            {
                let mut sum = 0.0;
                for level in 0..digits.levels() {
                    let rest = position >> (digits.bits * level);
                    let digit = if level + 1 < digits.levels() { rest % digits.radix() } else { rest };
                    sum += digits.position(level * digits.radix() + digit).unwrap();
                }
                assert_eq!(sum, f64::from(position), "{digits:?}");
            }
            assert_eq!(digits.position(digits.nan_row()), None);
            let bytes = (digits.nan_row() as usize + 1) * frequencies * 8;
            assert!(bytes <= 8 << 20, "{bytes} bytes for {frequencies} frequencies");
        }
    }
}
