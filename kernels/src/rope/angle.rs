//! Positions and angles on the device: cos and sin of position * frequency without an error that grows with
//! either.
//!
//! Frequencies are fixed point in turns (`frequencies.rs`). A position is an integer m times 2^-shift: m is
//! the magnitude of an integer, or the mantissa of an fp32 number.
//!
//! ```text
//!   phase = m * (frequency >> shift) mod 1, in units of 2^-32 turn: two wrapping 32-bit products
//!   quadrant = the nearest quarter turn           rest = phase - quadrant, at most an eighth of a turn
//!   cos, sin = polynomials of degree 6 and 7 in the rest, exchanged and negated as the quadrant says
//! ```
//!
//! Integer arithmetic keeps whole turns out, so there is nothing for fast math to reorder. Errors: of the
//! phase 2 units (3e-9 radians) where m is below 2^31, of the polynomials 1.1e-8, and fp32's rounding, about
//! 1e-7 in all. Phase 0 gives exactly 1 and 0.

use super::args::RotationArgs;
use cubecl::prelude::*;

/// Sources of positions.
pub(super) const INT32: u32 = 0;
pub(super) const INT64: u32 = 1;
pub(super) const FLOAT32: u32 = 2;
/// One axis without a tensor, or all axes with the same position; two; three.
pub(super) const LINE: u32 = 3;
pub(super) const GRID: u32 = 4;
pub(super) const VOLUME: u32 = 5;

/// Bits of a frequency's third word: whole turns, sign and axis.
pub(super) const TURNS_MASK: u32 = (1 << 29) - 1;
pub(super) const SIGN_BIT: u32 = 29;
pub(super) const AXIS_BIT: u32 = 30;

/// What all angles of a launch share.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct AngleArgs {
    /// 1 for the inverse rotation.
    pub(super) inverse: u32,
    /// The bits of a NaN. An argument, because compilers may assume that no constant is one.
    pub(super) nan: u32,
}

/// A token's position along an axis.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Place {
    magnitude: u32,
    shift: u32,
    /// 1 for a negative angle.
    negative: u32,
    /// 1 if the position is outside the range of i32; there is no angle then.
    none: u32,
}

/// The position of a token along `axis`.
#[cube]
pub(super) fn place_of(
    positions: &[u32],
    args: &RotationArgs,
    angles: &AngleArgs,
    b: u32,
    n: u32,
    axis: u32,
) -> Place {
    let mut none = 0u32;
    let bits = if args.source >= LINE {
        let (rest, x) = args.columns.div_mod(n - min(args.prefix, n));
        let (z, y) = args.rows.div_mod(rest);
        // The last axis is x, whatever their number.
        let last = args.source - LINE;
        let back = last - min(axis, last);
        let along = select(back == 0u32, x, select(back == 1u32, y, z));
        let first = select(axis == 0u32, args.first_0, select(axis == 1u32, args.first_1, args.first_2));
        u32::cast_from(first) + along
    } else {
        let axis = min(axis, args.last_axis);
        let at =
            b as usize * args.position_b + n as usize * args.position_n + axis as usize * args.position_axis;
        let bits = positions[at];
        if args.source == INT64 {
            // The upper word repeats the sign of the lower one.
            let sign = select(bits >= 0x8000_0000u32, 0xFFFF_FFFFu32, 0u32);
            none = select(positions[at + 1] == sign, 0u32, 1u32);
        }
        bits
    };
    let negative = bits >> 31u32;
    let mut magnitude = select(negative == 1u32, 0u32 - bits, bits);
    let mut shift = 0u32;
    if args.source == FLOAT32 {
        let size = bits & 0x7FFF_FFFFu32;
        // Below 2^31, or -2^31 itself.
        none = select(size < 0x4F00_0000u32 || bits == 0xCF00_0000u32, 0u32, 1u32);
        let exponent = size >> 23u32;
        let mantissa = (size & 0x007F_FFFFu32) + select(exponent == 0u32, 0u32, 0x0080_0000u32);
        // The number is mantissa * 2^(exponent - 150).
        let exponent = max(exponent, 1u32);
        shift = 150u32 - min(exponent, 150u32);
        magnitude = mantissa << ((max(exponent, 150u32) - 150u32) % 32u32);
    }
    Place { magnitude, shift, negative: negative ^ angles.inverse, none }
}

/// The axis whose positions count for a pair whose frequency is `words`.
#[cube]
pub(super) fn axis_of(words: Vector<u32, Const<4>>) -> u32 {
    words.extract(2usize) >> AXIS_BIT
}

/// cos and sin of the angle at `place` of a pair whose frequency is `words`.
#[cube]
pub(super) fn cos_and_sin(place: &Place, words: Vector<u32, Const<4>>, angles: &AngleArgs) -> (f32, f32) {
    let about = words.extract(2usize);
    let (magnitude, shift) = (place.magnitude, place.shift);

    let mut low = words.extract(0usize);
    let mut high = words.extract(1usize);
    if shift > 0u32 {
        let whole = about & TURNS_MASK;
        let (drop, bits) = (shift / 32u32, shift % 32u32);
        let back = 31u32 - bits;
        let (zero, one) = (drop == 0u32, drop == 1u32);
        let a = select(zero, low, select(one, high, select(drop == 2u32, whole, 0u32)));
        let b = select(zero, high, select(one, whole, 0u32));
        let c = select(zero, whole, 0u32);
        // In two steps, because a shift by 32 has no meaning.
        low = (a >> bits) | ((b << 1u32) << back);
        high = (b >> bits) | ((c << 1u32) << back);
    }
    let phase = magnitude * high + magnitude.mul_hi(low);
    let negative = place.negative ^ ((about >> SIGN_BIT) & 1u32);
    let phase = select(negative == 1u32, 0u32 - phase, phase);
    let (cos, sin) = of_phase(phase);
    let nan = f32::reinterpret(angles.nan);
    (select(place.none == 1u32, nan, cos), select(place.none == 1u32, nan, sin))
}

/// cos and sin of `phase` * 2^-32 turns. The coefficients are a least-squares fit at Chebyshev nodes.
#[cube]
fn of_phase(phase: u32) -> (f32, f32) {
    let quadrant = (phase + 0x2000_0000u32) >> 30u32;
    let rest = i32::cast_from(phase - (quadrant << 30u32));
    let x = f32::cast_from(rest) * 1.462_918_1e-9f32;
    let z = x * x;
    let sine = x + x * z * (-1.666_666_5e-1f32 + z * (8.332_749e-3f32 - z * 1.958_795e-4f32));
    let cosine = 1.0f32 - z * (0.5f32 - z * (4.166_665e-2f32 - z * (1.388_831_2e-3f32 - z * 2.454_91e-5f32)));
    let odd = quadrant % 2u32 == 1u32;
    let (c, s) = (select(odd, sine, cosine), select(odd, cosine, sine));
    // cos is negative in the quadrants 1 and 2, sin in 2 and 3.
    let (c_sign, s_sign) = (((quadrant + 1u32) & 2u32) << 30u32, (quadrant & 2u32) << 30u32);
    (f32::reinterpret(u32::reinterpret(c) ^ c_sign), f32::reinterpret(u32::reinterpret(s) ^ s_sign))
}
