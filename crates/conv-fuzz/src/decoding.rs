//! Decoding steps (shifted states, ring buffers, slots, in place), sequence ids and last states of packed
//! sequences.

use crate::device::Device;
use crate::outcome::{LAUNCH, Outcome, PANIC, REFUSED, WRONG, caught};
use crate::tensors::{self, OUTPUT_VIEWS, TYPES, VIEWS, dtype};
use crate::text::{Case, Field};
use conv_cases::fill::{hash, integer};
use conv_kernels::causal_conv1d::{
    Conv1dLayout, DecodingSteps, UpdateProblem, last_states, reference, sequence_ids, update_steps,
};
use conv_kernels::conv3d::Activation;
use conv_kernels::tolerance::Expected;
use conv_kernels::{IndexOperand, IndexType};
use conv_testing::buffer::{Buffer, try_read_all, upload_indices};

/// The fields of a case of decoding steps. `extra`: columns of the state beyond W-1; `rows`: slots beyond
/// those of the batch.
pub const UPDATE_FIELDS: &[Field] = &[
    Field::numbers("b", &[1]),
    Field::numbers("c", &[1]),
    Field::numbers("w", &[1]),
    Field::numbers("extra", &[0]),
    Field::numbers("steps", &[1]),
    Field::numbers("bias", &[0]),
    Field::words("act", &["none", "relu", "silu"]),
    Field::numbers("ring", &[0]),
    Field::numbers("slots", &[0]),
    Field::numbers("rows", &[0]),
    Field::numbers("in_place", &[0]),
    Field::words("id_type", &["i32", "i64"]),
    Field::words("type", TYPES),
    Field::words("w_type", &["same", "f32", "f16"]),
    Field::words("state_type", &["same", "f32"]),
    Field::numbers("seed", &[1]),
    Field::words("x_view", VIEWS),
    Field::words("w_view", VIEWS),
    Field::words("out_view", OUTPUT_VIEWS),
];

/// The fields of a case of packed sequences. `bounds`: their number; `s`: steps of a state.
pub const PACKED_FIELDS: &[Field] = &[
    Field::numbers("c", &[1]),
    Field::numbers("t", &[1]),
    Field::numbers("s", &[1]),
    Field::numbers("bounds", &[1]),
    Field::words("layout", &["bct", "btc"]),
    Field::words("id_type", &["i32", "i64"]),
    Field::words("type", TYPES),
    Field::numbers("seed", &[1]),
    Field::words("x_view", VIEWS),
    Field::words("out_view", OUTPUT_VIEWS),
];

fn index_type(device: &Device, case: &Case) -> IndexType {
    let wide = case.word("id_type") == "i64" && IndexType::I64.served_by(&device.client);
    if wide { IndexType::I64 } else { IndexType::I32 }
}

/// Runs a case of decoding steps.
pub fn run_update(device: &Device, case: &Case) -> Outcome {
    let [b, c, w, extra, length, more] =
        ["b", "c", "w", "extra", "steps", "rows"].map(|name| case.extent(name));
    let s = (w + extra).saturating_sub(1);
    let (ring, slotted) = (case.is("ring"), case.is("slots"));
    let rows = if slotted { b + more } else { b };
    let activation = match case.word("act") {
        "relu" => Activation::Relu,
        "silu" => Activation::Silu,
        _ => Activation::None,
    };
    let of = dtype(case.word("type"));
    let of_weight = if case.word("w_type") == "same" { of } else { dtype(case.word("w_type")) };
    if [of, of_weight].iter().any(|dtype| !device.limits.dtypes.contains(dtype)) {
        return Outcome::Skipped("the device lacks the type".into());
    }
    if b * c * (length + s) * w > 2_000_000 || b * c * length == 0 || (ring && s == 0) {
        return Outcome::Skipped("the problem is too large or empty".into());
    }
    let bias = case.is("bias").then_some(c);
    let of_state = if case.word("state_type") == "same" { of } else { dtype(case.word("state_type")) };
    let problem = UpdateProblem::with_slots([b, c], [rows, c, s], [c, w], bias, activation, of, of_weight)
        .and_then(|problem| problem.with_state_dtype(of_state));
    let problem = match problem {
        Ok(problem) => problem,
        Err(error) => return Outcome::Skipped(error.to_string()),
    };
    let (client, seed) = (&device.client, case.number("seed"));
    let upload = |tensor: u64, shape: &[usize], view: &str, dtype| {
        let values = tensors::values("normal", seed, tensor, shape.iter().product());
        tensors::upload(client, &values, shape, view, dtype)
    };
    let x = upload(1, &[b, c, length], case.word("x_view"), of);
    let weight = upload(2, &[c, w], case.word("w_view"), of_weight);
    let bias = bias.map(|c| upload(3, &[c], "plain", of_weight));
    // Slots are a permutation, with some missing.
    let mut order: Vec<i64> = (0..rows as i64).collect();
    order.sort_by_key(|slot| hash(seed as u64, *slot as u64));
    let missing = |row: usize| slotted && hash(seed as u64, 500 + row as u64).is_multiple_of(5);
    let slots: Vec<i64> = (0..b).map(|row| if missing(row) { -1 } else { order[row] }).collect();
    let lengths: Vec<i64> = (0..b as u64).map(|row| integer(seed as u64, row, 0, 3 * s as i64 + 2)).collect();
    let index = |values: &[i64]| upload_indices(client, values, &[b], &[1], index_type(device, case));
    let (lengths_on, slots_on) = (index(&lengths), index(&slots));
    let in_place = ring || slotted || case.is("in_place");
    let state_view = if in_place { case.word("out_view") } else { case.word("x_view") };
    let state = upload(4, &[rows, c, s], state_view, of_state);
    let y = tensors::output(client, &[b, c, length], case.word("out_view"), of);
    let apart = tensors::output(client, &[rows, c, s], case.word("out_view"), of_state);
    let new_state = if in_place { &state } else { &apart };
    let steps = DecodingSteps {
        x: x.operand(),
        state: state.operand(),
        weight: weight.operand(),
        bias: bias.as_ref().map(Buffer::operand),
        lengths: ring.then_some(&lengths_on),
        slots: slotted.then_some(&slots_on),
        y: y.operand(),
        new_state: new_state.operand(),
    };
    match caught(|| update_steps(client, &device.limits, &problem, &steps)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Outcome::failed(case, REFUSED, error.to_string()),
        Err(panic) => return Outcome::failed(case, PANIC, panic),
    }
    let got = match caught(|| try_read_all(client, &[&y, new_state])).and_then(|read| read) {
        Ok(got) => got,
        Err(error) => return Outcome::failed(case, LAUNCH, error),
    };
    let reference = |problem: &UpdateProblem, of: &dyn Fn(&Buffer) -> Vec<f64>| {
        let (ring, slots) = (ring.then_some(&lengths[..]), slotted.then_some(&slots[..]));
        let bias = bias.as_ref().map(of);
        reference::update_steps(problem, &of(&x), &of(&state), &of(&weight), bias.as_deref(), ring, slots)
    };
    let (values, want) = reference(&problem, &Buffer::values);
    let linear = UpdateProblem { activation: Activation::None, ..problem };
    let absolute = |buffer: &Buffer| buffer.values().into_iter().map(f64::abs).collect();
    let (magnitudes, _) = reference(&linear, &absolute);
    let silu = activation == Activation::Silu;
    let (terms, slope) = if silu { (w + 25, 1.1) } else { (w + 1, 1.0) };
    let expected = Expected { values: &values, magnitudes: &magnitudes, terms, dtype: of, slope };
    if let Err(error) = expected.check(&got[0], None) {
        return Outcome::failed(case, WRONG, format!("y: {error}"));
    }
    if let Some(at) = (0..want.len()).find(|at| got[1][*at] != want[*at]) {
        return Outcome::failed(
            case,
            WRONG,
            format!("the new state at {at}: {}, not {}", got[1][at], want[at]),
        );
    }
    Outcome::Passed(vec![("y", "update".into()), ("state", "update".into())])
}

/// Runs a case of packed sequences.
pub fn run_packed(device: &Device, case: &Case) -> Outcome {
    let [c, t, s, count] = ["c", "t", "s", "bounds"].map(|name| case.extent(name));
    let of = dtype(case.word("type"));
    if !device.limits.dtypes.contains(&of) || c * (t + s * count) > 1 << 20 || count == 0 {
        return Outcome::Skipped("the device lacks the type, or the problem is too large".into());
    }
    let (client, seed) = (&device.client, case.number("seed"));
    let mut bounds: Vec<i64> =
        (0..count as u64).map(|index| integer(seed as u64, index, 0, t as i64)).collect();
    bounds.sort_unstable();
    let index = index_type(device, case);
    let on_device = upload_indices(client, &bounds, &[count], &[1 + count % 2], index);
    let (layout, shape) = match case.word("layout") {
        "btc" => (Conv1dLayout::Btc, [1, t, c]),
        _ => (Conv1dLayout::Bct, [1, c, t]),
    };
    let values = tensors::values("normal", seed, 1, c * t);
    let x = tensors::upload(client, &values, &shape, case.word("x_view"), of);
    let states = tensors::output(client, &[count - 1, c, s], case.word("out_view"), of);
    let ids = IndexOperand::contiguous(client.empty(t.max(1) * index.size()), &[1, t], index);
    let launched = caught(|| {
        last_states(client, &device.limits, layout, x.operand(), &on_device, states.operand())?;
        sequence_ids(client, &device.limits, &on_device, &ids)
    });
    match launched {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Outcome::failed(case, REFUSED, error.to_string()),
        Err(panic) => return Outcome::failed(case, PANIC, panic),
    }
    let got = match caught(|| try_read_all(client, &[&states])).and_then(|read| read) {
        Ok(mut got) => got.remove(0),
        Err(error) => return Outcome::failed(case, LAUNCH, error),
    };
    let values = x.values();
    for (index, got) in got.into_iter().enumerate() {
        let (sequence, channel, m) = (index / s / c, index / s % c, index % s);
        let at = bounds[sequence + 1] - s as i64 + m as i64;
        let want = match layout.step_axis() {
            _ if at < bounds[sequence] => 0.0,
            1 => values[at as usize * c + channel],
            _ => values[channel * t + at as usize],
        };
        if got != want {
            let message =
                format!("last state of {sequence}, channel {channel}, column {m}: {got}, not {want}");
            return Outcome::failed(case, WRONG, message);
        }
    }
    let bytes = match client.read_one(ids.handle.clone()) {
        Ok(bytes) => bytes,
        Err(error) => return Outcome::failed(case, LAUNCH, error.to_string()),
    };
    for (at, bytes) in bytes.chunks_exact(index.size()).take(t).enumerate() {
        let got = match *bytes {
            [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
            _ => bytes.try_into().map_or(i64::MIN, i64::from_le_bytes),
        };
        let reached = bounds.iter().filter(|bound| **bound <= at as i64).count();
        let want = if reached == count { -1 } else { reached as i64 - 1 };
        if got != want {
            return Outcome::failed(case, WRONG, format!("id of step {at} of {bounds:?}: {got}, not {want}"));
        }
    }
    Outcome::Passed(vec![("last states", "packed".into()), ("ids", "packed".into())])
}
