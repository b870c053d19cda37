//! Case number n of a seed.
//!
//! Cases come in families: one random stream determines what the kernels of a family are compiled for,
//! another each case's shape.

mod conv3d;
mod sequence;

use crate::device::CLASSES;
use crate::random::Random;
use crate::text::{Case, Op};
use conv_cases::fill::hash;

/// Cases of a family.
const FAMILY: u64 = 16;

/// Case number `n` of a seed.
pub fn case(seed: u64, n: u64) -> Case {
    case_of(seed, n, &Op::ALL)
}

/// [`case`], restricted to some ops.
pub fn case_of(seed: u64, n: u64, ops: &[Op]) -> Case {
    let mut family = Random::new(hash(seed, n / FAMILY));
    let mut each = Random::new(hash(hash(seed, 1 << 40), n));
    let op = family.pick(&[
        Op::Conv3d,
        Op::Conv3d,
        Op::Conv3d,
        Op::Conv3d,
        Op::Conv3d,
        Op::CausalConv1d,
        Op::CausalConv1d,
        Op::Rope,
        Op::Rope,
        Op::Update,
        Op::Packed,
    ]);
    let op = if ops.contains(&op) { op } else { family.pick(ops) };
    let mut case = match op {
        Op::Conv3d => conv3d::random(&mut family, &mut each),
        Op::CausalConv1d => sequence::causal_conv1d(&mut family, &mut each),
        Op::Update => sequence::update(&mut family, &mut each),
        Op::Packed => sequence::packed(&mut family, &mut each),
        Op::Rope => sequence::rope(&mut family, &mut each),
    };
    case.set("seed", &[each.range(1, 999)]);
    case
}

/// A word for the storage type.
fn dtype(family: &mut Random) -> &'static str {
    family.pick(&["f32", "f32", "f32", "f16", "f16", "bf16"])
}

/// The device itself, or a class of limits to impose on it.
fn class(family: &mut Random) -> &'static str {
    if family.once_in(2) { CLASSES[0] } else { family.pick(CLASSES) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_survives_its_line() {
        for n in 0..4000 {
            let case = case(5, n);
            let line = case.to_string();
            assert_eq!(Case::parse(&line), Ok(case), "{line}");
        }
    }

    #[test]
    fn the_nth_case_depends_on_the_seed_and_n_alone() {
        let lines = |seed: u64| -> Vec<String> { (0..200).map(|n| case(seed, n).to_string()).collect() };
        assert_eq!(lines(3), lines(3));
        assert_ne!(lines(3), lines(4));
        for op in Op::ALL {
            assert!((0..200).all(|n| case_of(7, n, &[op]).op == op));
        }
    }
}
