//! The reference against PyTorch: RoPE2D, the formulas of language and video models, Wan's embedding.

use crate::conv3d_reference::{assert_same, golden, tensor};
use conv_kernels::FloatType;
use conv_kernels::rope::{
    RopeAngles, RopeAxes, RopeLayout, RopePairs, RopeProblem, RopeScaling, RopeVolume, reference,
};
use safetensors::SafeTensors;
use serde::Deserialize;

/// A problem in the metadata of `golden/rope2d.safetensors`; golden/README.md has the schema.
#[derive(Deserialize)]
struct Golden2d {
    name: String,
    b: usize,
    h: usize,
    n: usize,
    d: usize,
    base: f32,
    f0: f32,
}

/// One of `golden/rope.safetensors`.
#[derive(Deserialize)]
struct Golden {
    name: String,
    model: String,
    b: usize,
    h: usize,
    n: usize,
    d: usize,
    options: Options,
}

#[derive(Deserialize)]
struct Options {
    base: f32,
    rotated: Option<usize>,
    #[serde(default)]
    sections: [usize; 3],
    #[serde(default)]
    dims: Vec<usize>,
    scaling: Option<String>,
    #[serde(default)]
    factor: f32,
}

/// One of `golden/rope3d.safetensors`.
#[derive(Deserialize)]
struct Golden3d {
    base: f32,
    dims: [usize; 3],
    grid: [usize; 3],
}

fn positions(file: &SafeTensors, name: &str) -> Vec<i64> {
    let view = file.tensor(name).expect("the positions");
    view.data().chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().expect("8 bytes"))).collect()
}

fn compare(file: &SafeTensors, index: usize, name: &str, problem: &RopeProblem) {
    let get = |name: &str| tensor(file, &format!("{index}.{name}"));
    let positions = positions(file, &format!("{index}.positions"));
    // PyTorch's angles are rounded to f64: an error that grows with the position, and only that of small ones
    // is below what `assert_same` allows.
    let far = positions.iter().any(|position| *position > 1 << 16);
    let same = |what: String, got: Vec<f64>, want: Vec<f64>| {
        if far {
            assert!(got.iter().zip(&want).all(|(got, want)| (got - want).abs() < 1e-9), "{what}");
        } else {
            assert_same(&what, &got, &want);
        }
    };
    same(format!("{name} y"), reference::rotate(problem, &get("x"), &positions, false), get("y"));
    same(format!("{name} dx"), reference::rotate(problem, &get("dy"), &positions, true), get("dx"));
}

#[test]
fn pytorch_agrees_with_the_reference() {
    let (bytes, problems) = golden::<Golden2d>("rope2d.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    assert!(problems.len() >= 10, "{} problems", problems.len());
    for (index, golden) in problems.iter().enumerate() {
        let &Golden2d { b, h, n, d, base, f0, .. } = golden;
        let problem = RopeProblem::rope2d([b, h, n, d], RopeLayout::Bhnd, base, f0, FloatType::F32);
        compare(&file, index, &golden.name, &problem.expect(&golden.name));
    }
}

#[test]
fn the_formulas_of_models_agree_with_the_reference() {
    let (bytes, problems) = golden::<Golden>("rope.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    assert_eq!(problems.len(), 16);
    for (index, golden) in problems.iter().enumerate() {
        let Golden { name, model, b, h, n, d, options } = golden;
        let mut dims = options.dims.clone();
        dims.resize(3, 0);
        let (axes, pairs) = match model.as_str() {
            "llama" => (RopeAxes::Even(1), RopePairs::Halves),
            "gpt_j" => (RopeAxes::Even(1), RopePairs::Neighbours),
            "qwen2_vl" => (RopeAxes::Sections(options.sections), RopePairs::Halves),
            "qwen3_vl" => (RopeAxes::Interleaved(options.sections), RopePairs::Halves),
            _ => (RopeAxes::Dims([dims[0], dims[1], dims[2]]), RopePairs::Neighbours),
        };
        let scaling = match options.scaling.as_deref() {
            Some("linear") => RopeScaling::Linear(options.factor),
            Some("ntk") => RopeScaling::Ntk(options.factor),
            _ => RopeScaling::None,
        };
        let angles = RopeAngles { axes, pairs, base: [options.base; 3], f0: 1.0, scaling };
        let problem = RopeProblem::new([*b, *h, *n, *d], RopeLayout::Bhnd, angles, FloatType::F32);
        let problem = problem.and_then(|problem| match options.rotated {
            Some(rotated) => problem.with_rotated(rotated),
            None => Ok(problem),
        });
        compare(&file, index, name, &problem.expect(name));
    }
}

/// Wan's embedding over frames, rows and columns: results in f32, from a grid.
#[test]
fn a_volume_agrees_with_the_reference() {
    let (bytes, problems) = golden::<Golden3d>("rope3d.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    assert_eq!(problems.len(), 5);
    for (index, golden) in problems.iter().enumerate() {
        let words = |name: &str| -> (Vec<[u8; 4]>, Vec<usize>) {
            let view = file.tensor(&format!("{index}.{name}")).expect("a tensor of the problem");
            (
                view.data().chunks_exact(4).map(|word| word.try_into().expect("4")).collect(),
                view.shape().to_vec(),
            )
        };
        let floats = |name: &str| -> Vec<f64> {
            words(name).0.into_iter().map(|word| f32::from_le_bytes(word).into()).collect()
        };
        let shape = words("tokens").1;
        let angles = RopeAngles {
            axes: RopeAxes::Dims(golden.dims),
            pairs: RopePairs::Neighbours,
            ..RopeAngles::rope2d(golden.base, 1.0)
        };
        let shape = [shape[0], shape[1], shape[2], shape[3]];
        let problem =
            RopeProblem::new(shape, RopeLayout::Bhnd, angles, FloatType::F32).expect("a sound problem");
        let [frames, rows, columns] = golden.grid;
        let volume = RopeVolume { frames, rows, columns, first: [0; 3] };
        let positions = reference::volume_positions(&problem, volume);
        let given: Vec<i64> =
            words("positions").0.into_iter().map(|word| i32::from_le_bytes(word).into()).collect();
        assert_eq!(positions, given.repeat(problem.batch));
        for (from, to, inverse) in [("tokens", "y", false), ("dy", "dtokens", true)] {
            let got = reference::rotate(&problem, &floats(from), &positions, inverse);
            for (got, want) in got.iter().zip(floats(to)) {
                assert!((got - want).abs() <= 1e-7 * want.abs() + 1e-9, "{index} {to}: {got}, {want}");
            }
        }
    }
}
