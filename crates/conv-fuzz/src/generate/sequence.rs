//! Random problems of the ops over sequences.

use super::{class, dtype};
use crate::causal_conv1d::{BAD, IDS};
use crate::random::Random;
use crate::rope::{ANGLES, POSITION_KINDS};
use crate::tensors::{OUTPUT_VIEWS, VIEWS};
use crate::text::{Case, Op};

/// Channels around vectors and threadgroups.
const CHANNELS: [i64; 14] = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33, 64, 65, 130];

/// One random case of causal conv1d.
pub(super) fn causal_conv1d(family: &mut Random, each: &mut Random) -> Case {
    let mut case = Case::new(Op::CausalConv1d);
    let narrow = !family.once_in(3);
    let w = if narrow { family.range(1, 8) } else { family.pick(&[9, 10, 12, 16, 17, 20, 31, 33, 40]) };
    case.set_word("type", dtype(family));
    if family.once_in(4) {
        case.set_word("w_type", family.pick(&["f32", "f16"]));
    }
    case.set_word("layout", family.pick(&["bct", "btc"]));
    case.set_word("act", family.pick(&["none", "silu", "silu", "relu"]));
    case.set_word("limits", class(family));
    case.set_word("data", family.pick(&["normal", "normal", "integers"]));
    let ids = family.once_in(2);
    case.set_word("id_type", family.pick(&["i32", "i32", "i64"]));
    if family.once_in(2) {
        for name in ["x_view", "w_view", "dy_view"] {
            case.set_word(name, family.pick(VIEWS));
        }
        case.set_word("out_view", family.pick(OUTPUT_VIEWS));
    }
    for name in ["bias", "initial", "residual", "dfinal"] {
        case.set(name, &[each.range(0, 1)]);
    }
    if ids {
        case.set_word("ids", each.pick(&IDS[1..]));
    }
    if each.once_in(8) {
        case.set_word("data", "normal");
        case.set_word("act", "none");
        case.set_word("bad", each.pick(BAD));
    }
    let edge = each.pick(&[8, 16, 32, 64, 128, 256]) + each.range(-1, 1);
    let t = each.pick(&[1, 2, 3, w - 1, w, w + 1, 2 * w, 2 * w + 1, edge, edge, each.clone().range(1, 70)]);
    let mut c = each.pick(&CHANNELS);
    while c > 1 && c * t * w > 20_000 {
        c /= 2;
    }
    case.set("b", &[each.pick(&[1, 1, 2, 3])]);
    case.set("c", &[c]);
    case.set("t", &[t]);
    case.set("w", &[w]);
    if t > 1 && each.once_in(3) {
        case.set("cut", &[each.range(1, t - 1)]);
    }
    if family.once_in(3) {
        case.set_word("state_type", "f32");
    }
    case
}

/// One random case of decoding steps.
pub(super) fn update(family: &mut Random, each: &mut Random) -> Case {
    let mut case = Case::new(Op::Update);
    case.set_word("type", dtype(family));
    if family.once_in(4) {
        case.set_word("w_type", family.pick(&["f32", "f16"]));
    }
    case.set_word("id_type", family.pick(&["i32", "i32", "i64"]));
    case.set_word("act", each.pick(&["none", "silu", "relu"]));
    for name in ["bias", "ring", "slots", "in_place"] {
        case.set(name, &[each.range(0, 1)]);
    }
    if each.once_in(2) {
        for name in ["x_view", "w_view"] {
            case.set_word(name, each.pick(VIEWS));
        }
        case.set_word("out_view", each.pick(OUTPUT_VIEWS));
    }
    case.set("b", &[each.pick(&[1, 2, 3, 5])]);
    case.set("c", &[each.pick(&CHANNELS)]);
    case.set("w", &[each.pick(&[1, 2, 3, 4, 4, 5, 8, 9, 16])]);
    case.set("extra", &[each.pick(&[0, 0, 1, 1, 3, 9])]);
    case.set("steps", &[each.pick(&[1, 1, 2, 3, 5, 11])]);
    case.set("rows", &[each.range(0, 4)]);
    if family.once_in(3) {
        case.set_word("state_type", "f32");
    }
    case
}

/// One random case of packed sequences.
pub(super) fn packed(family: &mut Random, each: &mut Random) -> Case {
    let mut case = Case::new(Op::Packed);
    case.set_word("type", dtype(family));
    case.set_word("layout", each.pick(&["bct", "btc"]));
    case.set_word("id_type", family.pick(&["i32", "i64"]));
    case.set("c", &[each.pick(&CHANNELS)]);
    case.set("t", &[each.pick(&[1, 2, 5, 17, 64, 255, 256, 257, 600])]);
    case.set("s", &[each.pick(&[1, 2, 3, 7, 9])]);
    case.set("bounds", &[each.pick(&[1, 2, 3, 5, 9, 40])]);
    case.set_word("x_view", each.pick(&["plain", "reversed", "gaps", "inner"]));
    case.set_word("out_view", each.pick(OUTPUT_VIEWS));
    case
}

/// One random rotation.
pub(super) fn rope(family: &mut Random, each: &mut Random) -> Case {
    let mut case = Case::new(Op::Rope);
    case.set_word("type", dtype(family));
    case.set_word("limits", class(family));
    case.set_word("positions", family.pick(&["grid", "offset", "i32", "i64", "float", "float"]));
    case.set("pair", &[family.range(0, 1)]);
    case.set_word("angles", family.pick(ANGLES));
    case.set_word("scaling", each.pick(&["none", "none", "linear", "ntk"]));
    let q = family.pick(&[1, 2, 3, 4, 5, 8, 16, 24]);
    case.set("q", &[q]);
    case.set("base", &[each.pick(&[1000, 1000, 100_000, 10_000_000, 75, 10])]);
    case.set("f0", &[each.pick(&[100, 100, 50, -200, 628, 3700, 100_000, 10_000_000])]);
    case.set("inverse", &[each.range(0, 1)]);
    case.set("in_place", &[each.range(0, 1)]);
    case.set("copied", &[each.pick(&[0, 0, 1, 3, q])]);
    case.set("prefix", &[each.pick(&[0, 0, 1, 5])]);
    case.set_word("layout", each.pick(&["bhnd", "bnhd"]));
    case.set_word("places", each.pick(POSITION_KINDS));
    case.set("reach", &[each.pick(&[0, 1, 20, 20, 2049, 70_000, 1 << 20, 123_456_789])]);
    case.set("b", &[each.pick(&[1, 1, 2, 3])]);
    case.set("h", &[each.pick(&[1, 2, 3, 5])]);
    case.set("rows", &[each.pick(&[1, 2, 3, 7])]);
    case.set("columns", &[each.pick(&[1, 2, 3, 5, 16])]);
    if each.once_in(2) {
        case.set_word("x_view", each.pick(VIEWS));
        case.set_word("out_view", each.pick(OUTPUT_VIEWS));
    }
    case
}
