//! The table of frequencies, 16 bytes for each pair of a head: fixed point numbers in turns per position.
//!
//! ```text
//! words of a pair   bits 0..32, then 32..64, of the fraction of a turn
//!                   whole turns (29 bits), sign, axis (2 bits)          not used
//! ```
//!
//! A frequency of up to 2^20 radians has 18 bits of whole turns. The fraction's 64 bits leave 2^-33 of a turn
//! for a position of 2^31. f64 has fewer bits than that, so the product with 1 / 2 pi is made of integers.

use super::angle::{AXIS_BIT, SIGN_BIT};
use super::{Frequency, RopeAngles, RopeProblem};
use cubecl::device::DeviceId;
use cubecl::prelude::*;
use cubecl::server::Handle;
use std::any::TypeId;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Tables kept, over all devices.
const CAPACITY: usize = 64;

/// What a table depends on: the device, the runtime that opened it, and the parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Key {
    device: DeviceId,
    service: TypeId,
    angles: RopeAngles,
    rotated: usize,
}

/// The latest tables, least recently used first.
static TABLES: Mutex<VecDeque<(Key, Handle)>> = Mutex::new(VecDeque::new());

/// The problem's table `[pairs, 4]` on the client's device, computed and uploaded if not cached. Uploading
/// does not wait for the device.
pub(super) fn table(client: &Client, problem: &RopeProblem) -> Handle {
    let service = client.service_id();
    let key = Key {
        device: service.device,
        service: service.service,
        angles: problem.angles,
        rotated: problem.rotated,
    };
    let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(place) = tables.iter().position(|(other, _)| *other == key)
        && let Some((key, table)) = tables.remove(place)
    {
        tables.push_back((key, table.clone()));
        return table;
    }
    let words = problem.frequencies().into_iter().flat_map(words);
    let bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
    let table = client.create_from_slice(&bytes);
    keep(&mut tables, key, table.clone());
    table
}

/// Adds a table; the least recently used one makes room for it.
fn keep<K, V>(tables: &mut VecDeque<(K, V)>, key: K, table: V) {
    if tables.len() == CAPACITY {
        tables.pop_front();
    }
    tables.push_back((key, table));
}

/// The words of a frequency.
fn words(frequency: Frequency) -> [u32; 4] {
    let turns = turns(frequency.radians.abs());
    let sign = u32::from(frequency.radians < 0.0) << SIGN_BIT;
    let axis = (frequency.axis as u32) << AXIS_BIT;
    [turns as u32, (turns >> 32) as u32, (turns >> 64) as u32 | sign | axis, 0]
}

/// 2^128 / (2 pi), rounded down.
const TURNS_PER_RADIAN: u128 = 0x28be_60db_9391_054a_7f09_d5f4_7d4d_3770;

/// Turns in `radians`, from 0 to `MAX_RADIANS`, in units of 2^-64, rounded down.
fn turns(radians: f64) -> u128 {
    let bits = radians.to_bits();
    let exponent = (bits >> 52) as i32;
    let mantissa = u128::from(bits & ((1 << 52) - 1)) | (u128::from(exponent > 0) << 52);
    // radians = mantissa * 2^(exponent - 1075), below 2^21: the exponent is at most 1043.
    let upper = mantissa * (TURNS_PER_RADIAN >> 64);
    let lower = mantissa * (TURNS_PER_RADIAN & u128::from(u64::MAX));
    let product = upper + (lower >> 64);
    // product * 2^-64 turns per unit of the mantissa, so that units of 2^-64 turns need the exponent alone.
    let shift = (1075 - exponent.max(1)) as u32;
    product.checked_shr(shift).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::{MAX_RADIANS, RopeAxes, RopePairs, RopeScaling};
    use std::f64::consts::TAU;

    #[test]
    fn turns_are_right_to_their_last_bits() {
        // 22/7 of a radian and others, from their definition in exact arithmetic.
        assert_eq!(turns(0.0), 0);
        assert_eq!(turns(1.0), TURNS_PER_RADIAN >> 64);
        assert_eq!(turns(MAX_RADIANS), TURNS_PER_RADIAN >> 44);
        assert_eq!(turns(2f64.powi(-63)), 0);
        assert_eq!(turns(2f64.powi(-60)), 2, "16 / 2 pi is 2.5");
        for radians in [1.0, 0.75, 1e-3, 12.375, 1e5 / 3.0] {
            let units = turns(radians) as f64;
            let expected = radians / TAU * 2f64.powi(64);
            assert!((units - expected).abs() <= expected * 3e-16 + 1.0, "{radians}: {units}, {expected}");
        }
    }

    #[test]
    fn words_have_sign_axis_and_whole_turns() {
        let [low, high, about, _] = words(Frequency { axis: 2, radians: -3.0 * TAU - 0.5 });
        assert_eq!(about, 3 | 1 << SIGN_BIT | 2 << AXIS_BIT);
        let fraction = (f64::from(high) + f64::from(low) / 2f64.powi(32)) / 2f64.powi(32);
        assert!((fraction * TAU - 0.5).abs() < 1e-14, "{fraction}");
        // Nothing turns in either direction.
        assert_eq!(words(Frequency { axis: 1, radians: 0.0 }), [0, 0, 1 << AXIS_BIT, 0]);
        assert_eq!(words(Frequency { axis: 0, radians: -0.0 }), [0; 4]);
    }

    #[test]
    fn scaling_changes_the_ends_of_the_list() {
        let angles = |scaling| RopeAngles {
            axes: RopeAxes::Even(1),
            pairs: RopePairs::Halves,
            base: [1e4; 3],
            f0: 1.0,
            scaling,
        };
        let ends = |scaling| {
            let list = angles(scaling).frequencies(64);
            [list[0].radians, list[31].radians]
        };
        let [first, last] = ends(RopeScaling::None);
        let [linear, linear_last] = ends(RopeScaling::Linear(4.0));
        assert_eq!([linear, linear_last], [first / 4.0, last / 4.0]);
        let [ntk, ntk_last] = ends(RopeScaling::Ntk(4.0));
        assert_eq!(ntk, first);
        assert!((ntk_last - last / 4.0).abs() < 1e-15 * last, "{ntk_last}");
    }

    #[test]
    fn sections_deal_one_list_to_the_axes() {
        let axes = |axes| -> Vec<usize> {
            let angles = RopeAngles { axes, pairs: RopePairs::Halves, ..RopeAngles::rope2d(1e4, 1.0) };
            assert_eq!(angles.check(), Ok(()));
            angles.frequencies(16).into_iter().map(|each| each.axis).collect()
        };
        assert_eq!(axes(RopeAxes::Sections([2, 3, 3])), [0, 0, 1, 1, 1, 2, 2, 2]);
        assert_eq!(axes(RopeAxes::Interleaved([4, 2, 2])), [0, 1, 2, 0, 1, 2, 0, 0]);
        assert_eq!(axes(RopeAxes::Interleaved([3, 3, 2])), [0, 1, 2, 0, 1, 2, 0, 1]);
    }

    #[test]
    fn the_latest_tables_are_kept() {
        let mut tables = VecDeque::new();
        for key in 0..CAPACITY + 2 {
            keep(&mut tables, key, ());
            assert_eq!(tables.len(), (key + 1).min(CAPACITY));
        }
        let (first, last) = (tables.front().map(|(key, ())| *key), tables.back().map(|(key, ())| *key));
        assert_eq!((first, last), (Some(2), Some(CAPACITY + 1)));
    }
}
