//! The device's index arithmetic against the host's. For random problems a kernel notes what every pair of an
//! output position and a (channel, tap) reads, where the position's result is and where the tap's weight is;
//! [`AxisGather`] and the reference's [`source`] say what they have to be.

use super::gather::{AxisGather, gather_args, gathers, positions, taps};
use super::index::{ChannelTap, GatherArgs, RANGE_BIT};
use super::tap_check::{TapCheck, padding_of};
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::{Conv3dProblem, PaddingMode, Window};
use crate::conv3d::reference::source;
use crate::dtype::FloatType;
use crate::operand::Operand;
use cubecl::ir::AddressType;
use cubecl::prelude::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::cell::RefCell;
use std::collections::HashMap;

const THREADS: usize = 64;

/// What a pair of a position and a tap notes: source offset, result offset, weight offset. A source offset
/// of [`OUTSIDE`] reads nothing.
const NOTES: usize = 3;
const OUTSIDE: u32 = u32::MAX;

#[cube]
fn tap(
    gather: &GatherArgs,
    k: u32,
    pairs: u32,
    #[comptime] pass: Pass,
    #[comptime] check: TapCheck,
) -> ChannelTap {
    if comptime!(pass == Pass::WeightGradient) {
        gather.weight_gradient_tap(k, check)
    } else {
        gather.channel_tap(k, k < pairs, pass, check)
    }
}

/// One thread per pair. Of the K indices one more than there are is noted; it must read nothing.
#[cube(launch_unchecked, address_type = "dynamic")]
fn note_kernel(
    notes: &mut [u32],
    gather: GatherArgs,
    rows: u32,
    pairs: u32,
    #[comptime] pass: Pass,
    #[comptime] check: TapCheck,
) {
    let index = ABSOLUTE_POS as u32;
    let weight_gradient = comptime!(pass == Pass::WeightGradient);
    let columns = pairs + comptime!(if weight_gradient { 0u32 } else { 1u32 });
    let (row, k) = (index / columns, index % columns);
    if row >= rows + comptime!(if weight_gradient { 1u32 } else { 0u32 }) {
        terminate!();
    }
    let mut position = gather.position(min(row, rows - 1u32), check);
    if weight_gradient {
        // As the table of a weight gradient stores them: its K indices are positions.
        position.mask |= select(row < rows, RANGE_BIT, 0u32);
    }
    let tap = tap(&gather, k, pairs, pass, check);
    let (at, inside) = gather.load_offset(&position, &tap, check);
    let first = index as usize * NOTES;
    notes[first] = select(inside, at as u32, OUTSIDE);
    notes[first + 1] = position.out as u32;
    notes[first + 2] = tap.weight as u32;
}

fn client() -> Client {
    use cubecl::device::WgpuDeviceKind::{Cpu, DefaultDevice};
    let open = |kind| std::panic::catch_unwind(|| cubecl::Device::wgpu(kind).ok()).ok().flatten();
    let device = open(DefaultDevice).or_else(|| open(Cpu));
    device.expect("a GPU adapter: `cargo xtask test` installs a software one").client()
}

const REFLECT_ZEROS_CIRCULAR: [PaddingMode; 3] =
    [PaddingMode::Reflect, PaddingMode::Zeros, PaddingMode::Circular];
const CIRCULAR_REPLICATE_REFLECT: [PaddingMode; 3] =
    [PaddingMode::Circular, PaddingMode::Replicate, PaddingMode::Reflect];

/// Extent, kernel, stride, dilation and padding.
type Axis = (usize, usize, usize, usize, (usize, usize));

/// Problems of a few thousand pairs, with more taps along W than a mask has bits in some of them.
fn problems() -> impl Strategy<Value = Conv3dProblem> {
    use PaddingMode::{Replicate, Zeros};
    let axis = || (1usize..6, 1usize..4, 1usize..4, 1usize..3, (0usize..4, 0usize..4));
    let wide = (1usize..14, 1usize..14, 1usize..4, 1usize..3, (0usize..9, 0usize..9));
    let long = (4usize..14, 11usize..14, 1usize..3, Just(1usize), (1usize..9, 0usize..9));
    let modes = prop_oneof![
        4 => Just([Zeros; 3]),
        1 => Just([Replicate; 3]),
        1 => Just(REFLECT_ZEROS_CIRCULAR),
        1 => Just(CIRCULAR_REPLICATE_REFLECT),
    ];
    (
        axis(),
        axis(),
        prop_oneof![axis().boxed(), wide.boxed(), long.boxed()],
        (1usize..3, 1usize..3, 1usize..3),
        modes,
    )
        .prop_filter_map("the window fits", |(d, h, w, (batch, channels, outputs), padding_mode)| {
            let axes: [Axis; 3] = [d, h, w];
            let [x, kernel] = [axes.map(|axis| axis.0), axes.map(|axis| axis.1)];
            let window = Window {
                stride: axes.map(|axis| axis.2),
                dilation: axes.map(|axis| axis.3),
                padding: axes.map(|axis| axis.4),
                padding_mode,
                ..Window::default()
            };
            let weight = [outputs, channels, kernel[0], kernel[1], kernel[2]];
            let x = [batch, channels, x[0], x[1], x[2]];
            Conv3dProblem::new(x, weight, None, window, FloatType::F32).ok()
        })
}

/// A tensor of which only shape and strides count: its axes from outermost to innermost, with gaps.
fn view(client: &Client, shape: [usize; 5], order: [usize; 5]) -> Operand {
    let mut view = Operand::contiguous(client.empty(16), &shape, FloatType::F32);
    let mut next = 1;
    for axis in order.into_iter().rev() {
        view.strides[axis] = next;
        next = next * shape[axis] + 1;
    }
    view
}

/// The axis of a linear index, width fastest: `[rest, d, h, w]`.
fn split(index: usize, extents: [usize; 3]) -> [usize; 4] {
    let [d, h, w] = extents.map(|extent| extent.max(1));
    [index / (d * h * w), index / (h * w) % d, index / w % h, index % w]
}

/// Compares every pair of a pass; counts pairs that read something and pairs that do not, by check.
fn compare(
    client: &Client,
    problem: &Conv3dProblem,
    pass: Pass,
    counts: &RefCell<HashMap<(Pass, TapCheck), [usize; 2]>>,
) -> Result<(), TestCaseError> {
    // The weight gradient gathers as the forward pass does.
    let gathered = if pass == Pass::InputGradient { pass } else { Pass::Forward };
    let shapes = [problem.x_shape(), problem.y_shape()];
    let [from, to] = if pass == Pass::InputGradient { [shapes[1], shapes[0]] } else { shapes };
    let operands = [
        view(client, from, [0, 2, 3, 4, 1]),
        view(client, problem.weight_shape(), [0, 1, 2, 3, 4]),
        view(client, to, [4, 1, 0, 3, 2]),
    ];
    let [x, weight, out] = &operands;
    for gather in gathers(problem, gathered) {
        let check = TapCheck::of(&gather, padding_of(problem, pass));
        let rows = problem.batch * positions(&gather);
        let channels = from[1];
        let pairs = channels * taps(&gather);
        let weight_gradient = pass == Pass::WeightGradient;
        let [all_rows, columns] =
            [rows + usize::from(weight_gradient), pairs + usize::from(!weight_gradient)];
        if rows == 0 || columns == 0 || all_rows * columns > 200_000 {
            continue;
        }
        let args = gather_args(problem, gathered, &gather, [x, weight, out]);
        let handle = client.empty((all_rows * columns).next_multiple_of(THREADS) * NOTES * 4);
        let count = CubeCount::new_1d((all_rows * columns).div_ceil(THREADS) as u32);
        let dim = CubeDim::new_1d(THREADS as u32);
        // SAFETY: the buffer holds the notes of every thread; nothing else is accessed.
        unsafe {
            let notes = BufferArg::from_raw_parts(handle.clone(), all_rows * columns * NOTES);
            let address = AddressType::U32;
            note_kernel::launch_unchecked(
                client,
                count,
                dim,
                address,
                notes,
                args,
                rows as u32,
                pairs as u32,
                pass,
                check,
            );
        }
        let bytes = client.read_one(handle).expect("the notes");
        let words: Vec<u32> = bytes
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
            .collect();
        let mut counts = counts.borrow_mut();
        let counted = counts.entry((pass, check)).or_default();
        for index in 0..all_rows * columns {
            let (row, k) = (index / columns, index % columns);
            let [got_source, got_out, got_weight] =
                [0, 1, 2].map(|note| words[index * NOTES + note] as usize);
            let [n, place @ ..] = split(row.min(rows - 1), gather.map(|axis| axis.positions));
            let [c, tap @ ..] = split(k, gather.map(|axis| axis.taps));
            let mut read = (row < rows && k < pairs).then(|| n * x.strides[0] + c * x.strides[1]);
            let mut result = n * out.strides[0];
            let mut parameter =
                if pass == Pass::InputGradient { c * weight.strides[0] } else { c * weight.strides[1] };
            for (
                axis,
                AxisGather { scale, origin, step, first_tap, tap_step, first_out, out_step, extent, .. },
            ) in gather.into_iter().enumerate()
            {
                let coordinate = (place[axis] * scale + tap[axis] * step) as i64 + origin;
                let element = if pass == Pass::InputGradient {
                    usize::try_from(coordinate).ok().filter(|element| *element < extent)
                } else {
                    source(problem, axis, coordinate)
                };
                read = read.zip(element).map(|(at, element)| at + element * x.strides[axis + 2]);
                result += (first_out + place[axis] * out_step) * out.strides[axis + 2];
                let taps = tap[axis] * tap_step;
                let at =
                    if pass == Pass::InputGradient { first_tap.wrapping_sub(taps) } else { first_tap + taps };
                parameter = parameter.wrapping_add(at.wrapping_mul(weight.strides[axis + 2]));
            }
            counted[usize::from(read.is_none())] += 1;
            let what = (pass, check, row, k);
            prop_assert_eq!(got_source, read.unwrap_or(OUTSIDE as usize), "the source of {:?}", what);
            prop_assert_eq!(got_out, result, "the result of {:?}", what);
            if k < pairs {
                prop_assert_eq!(got_weight, parameter, "the weight of {:?}", what);
            }
        }
    }
    Ok(())
}

#[test]
fn the_device_s_offsets_are_the_host_s() {
    let client = client();
    let counts = RefCell::new(HashMap::new());
    let config = Config { cases: 200, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let passes = [Pass::Forward, Pass::InputGradient, Pass::WeightGradient];
    runner
        .run(&problems(), |problem| {
            // Input gradients are launched with zeros alone.
            let zeros = problem.window.padding_mode == [PaddingMode::Zeros; 3];
            let mut here = passes.into_iter().filter(|pass| zeros || *pass != Pass::InputGradient);
            here.try_for_each(|pass| compare(&client, &problem, pass, &counts))
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let counts = counts.into_inner();
    println!("pairs that read, and that do not: {counts:?}");
    for pass in passes {
        let zeros = [TapCheck::Masks, TapCheck::Coordinates];
        let maps = [REFLECT_ZEROS_CIRCULAR, CIRCULAR_REPLICATE_REFLECT].map(TapCheck::Map);
        let others = [&maps[..], &[TapCheck::Clamp]].concat();
        let checks = zeros.into_iter().chain(others.into_iter().filter(|_| pass != Pass::InputGradient));
        for check in checks {
            let [read, outside] = counts.get(&(pass, check)).copied().unwrap_or_default();
            assert!(read > 1000 && outside > 100, "{pass:?} {check:?}: {read} pairs read, {outside} do not");
        }
    }
}
