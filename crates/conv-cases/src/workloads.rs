//! Layer shapes of published models, from the CSV tables in `workloads/`: what benchmarks run and report by
//! name.
//!
//! These are real sizes. Tests take their cases from the conformance tables instead.

use crate::{causal_conv1d, conv3d, rope2d};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error};

const CONV3D: &str = include_str!("../workloads/conv3d.csv");
const CAUSAL_CONV3D: &str = include_str!("../workloads/causal_conv3d.csv");
/// Dense 3x3x3 layers of 96 to 640 channels with 1,000 to 8,200 output positions: few tiles of a product.
const CONV3D_FEW_TILES: &str = include_str!("../workloads/conv3d_few_tiles.csv");
const CAUSAL_CONV1D: &str = include_str!("../workloads/causal_conv1d.csv");
const ROPE: &str = include_str!("../workloads/rope.csv");
const ROPE2D: &str = include_str!("../workloads/rope2d.csv");

/// A conv3d layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Conv3dWorkload {
    /// The layer; it has no bias and no activation.
    pub case: conv3d::Conv3dCase,
    /// OD, OH, OW as the table states them.
    pub output: [usize; 3],
    /// 10^9 floating-point operations of one forward pass, as the table states them (two per
    /// multiply-accumulate).
    pub gflop: f64,
    /// What is special about the layer; often empty.
    pub note: String,
}

/// A convolution of a video decoder that gets a clip in pieces: causal in time, KD - 1 frames in a cache
/// (none for single frames).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CausalConv3dWorkload {
    /// The convolution of \[cache, x\] joined along depth, without padding there; no bias and no activation.
    pub case: conv3d::Conv3dCase,
    /// What runs the layer: one step of a decoder at one size of frames.
    pub step: String,
    /// How many layers of these shapes a step has.
    pub calls: usize,
    /// Whether gradients are of interest too.
    pub gradients: bool,
}

impl CausalConv3dWorkload {
    /// Frames in the cache: KD - 1.
    #[must_use]
    pub fn cached(&self) -> usize {
        self.case.kernel[0] - 1
    }
}

/// A causal conv1d layer on `[B, C, T]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CausalConv1dWorkload {
    /// The layer, without states and sequence ids.
    pub case: causal_conv1d::Case,
}

/// A RoPE application on `[B, H, N, D]` of another kind than RoPE2D.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RopeWorkload {
    /// Unique within the table.
    pub name: String,
    /// The kind: `llama`, `gpt_j`, `qwen2_vl` or `video`.
    pub model: String,
    /// Batch.
    #[serde(rename = "B")]
    pub b: usize,
    /// Heads.
    pub heads: usize,
    /// Tokens.
    pub tokens: usize,
    /// Head dimension.
    pub head_dim: usize,
    /// Frames of the grid; 0 for a sequence.
    pub frames: usize,
    /// Rows of the grid.
    pub rows: usize,
    /// Columns of the grid.
    pub columns: usize,
}

/// A RoPE2D application on `[B, H, N, D]` with base 100.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope2dWorkload {
    /// The application, with 64-bit positions.
    pub case: rope2d::Case,
    /// Rows and columns of the patch grid; tokens beyond rows x columns are special ones at position (0, 0).
    pub grid: [usize; 2],
}

impl Rope2dWorkload {
    /// Positions `[B, N, 2]`: special tokens at (0, 0) come first, then the grid row by row (from 1 when
    /// there are special tokens, as VGGT does).
    #[must_use]
    pub fn positions(&self) -> Vec<i64> {
        let [rows, columns] = self.grid;
        let special = self.case.n - rows * columns;
        let first = usize::from(special > 0);
        let mut row = vec![0; 2 * special];
        for y in 0..rows {
            row.extend((0..columns).flat_map(|x| [(y + first) as i64, (x + first) as i64]));
        }
        row.repeat(self.case.b)
    }
}

/// The conv3d tables: models' layers, then layers of few output positions (`few_..`).
#[must_use]
pub fn conv3d() -> Vec<Conv3dWorkload> {
    [CONV3D, CONV3D_FEW_TILES]
        .into_iter()
        .flat_map(rows::<Conv3dRow>)
        .map(|row| Conv3dWorkload {
            case: conv3d::Conv3dCase {
                stride: [row.sd, row.sh, row.sw],
                padding: [(row.pd0, row.pd1), (row.ph0, row.ph1), (row.pw0, row.pw1)],
                dilation: [row.dilation; 3],
                groups: row.groups,
                bias: false,
                ..conv3d::Conv3dCase::new(
                    &row.name,
                    [row.n, row.c, row.d, row.h, row.w],
                    row.o,
                    [row.kd, row.kh, row.kw],
                )
            },
            output: [row.od, row.oh, row.ow],
            gflop: row.gflop,
            note: row.note,
        })
        .collect()
}

/// The causal conv3d table.
#[must_use]
pub fn causal_conv3d() -> Vec<CausalConv3dWorkload> {
    rows::<CausalConv3dRow>(CAUSAL_CONV3D)
        .into_iter()
        .map(|row| {
            let name = format!("{}_{}", row.step, row.layer);
            let input = [1, row.c, row.kd - 1 + row.frames, row.h, row.w];
            let same = |taps: usize| (taps / 2, taps / 2);
            let case = conv3d::Conv3dCase {
                padding: [(0, 0), same(row.kh), same(row.kw)],
                bias: false,
                ..conv3d::Conv3dCase::new(&name, input, row.o, [row.kd, row.kh, row.kw])
            };
            CausalConv3dWorkload { case, step: row.step, calls: row.calls, gradients: row.gradients == 1 }
        })
        .collect()
}

/// The causal conv1d table.
#[must_use]
pub fn causal_conv1d() -> Vec<CausalConv1dWorkload> {
    rows::<CausalConv1dRow>(CAUSAL_CONV1D)
        .into_iter()
        .map(|row| {
            let case = causal_conv1d::Case::new(&row.name, [row.b, row.c, row.l], row.w);
            CausalConv1dWorkload {
                case: causal_conv1d::Case { bias: row.bias, silu: row.activation, ..case },
            }
        })
        .collect()
}

/// The RoPE table.
#[must_use]
pub fn rope() -> Vec<RopeWorkload> {
    rows(ROPE)
}

/// The RoPE2D table.
#[must_use]
pub fn rope2d() -> Vec<Rope2dWorkload> {
    rows::<Rope2dRow>(ROPE2D)
        .into_iter()
        .map(|row| Rope2dWorkload {
            case: rope2d::Case {
                name: row.name,
                b: row.b,
                h: row.heads,
                n: row.tokens,
                d: row.head_dim,
                bnhd: false,
                base: 100.0,
                f0: 1.0,
                negative: false,
                int64: true,
            },
            grid: [row.grid_h, row.grid_w],
        })
        .collect()
}

/// The rows of a table that is compiled in; the unit tests read every one, so a bad row cannot reach a user.
fn rows<T: DeserializeOwned>(table: &str) -> Vec<T> {
    let rows: Result<_, _> = csv::Reader::from_reader(table.as_bytes()).deserialize().collect();
    rows.unwrap_or_else(|error| panic!("workload table: {error}"))
}

#[derive(Deserialize)]
struct Conv3dRow {
    name: String,
    #[serde(rename = "N")]
    n: usize,
    #[serde(rename = "C")]
    c: usize,
    #[serde(rename = "D")]
    d: usize,
    #[serde(rename = "H")]
    h: usize,
    #[serde(rename = "W")]
    w: usize,
    #[serde(rename = "O")]
    o: usize,
    #[serde(rename = "KD")]
    kd: usize,
    #[serde(rename = "KH")]
    kh: usize,
    #[serde(rename = "KW")]
    kw: usize,
    #[serde(rename = "SD")]
    sd: usize,
    #[serde(rename = "SH")]
    sh: usize,
    #[serde(rename = "SW")]
    sw: usize,
    #[serde(rename = "PD0")]
    pd0: usize,
    #[serde(rename = "PD1")]
    pd1: usize,
    #[serde(rename = "PH0")]
    ph0: usize,
    #[serde(rename = "PH1")]
    ph1: usize,
    #[serde(rename = "PW0")]
    pw0: usize,
    #[serde(rename = "PW1")]
    pw1: usize,
    dilation: usize,
    groups: usize,
    #[serde(rename = "OD")]
    od: usize,
    #[serde(rename = "OH")]
    oh: usize,
    #[serde(rename = "OW")]
    ow: usize,
    #[serde(rename = "GFLOP")]
    gflop: f64,
    note: String,
}

#[derive(Deserialize)]
struct CausalConv3dRow {
    step: String,
    layer: String,
    #[serde(rename = "C")]
    c: usize,
    frames: usize,
    #[serde(rename = "H")]
    h: usize,
    #[serde(rename = "W")]
    w: usize,
    #[serde(rename = "O")]
    o: usize,
    #[serde(rename = "KD")]
    kd: usize,
    #[serde(rename = "KH")]
    kh: usize,
    #[serde(rename = "KW")]
    kw: usize,
    calls: usize,
    gradients: usize,
}

#[derive(Deserialize)]
struct CausalConv1dRow {
    name: String,
    #[serde(rename = "B")]
    b: usize,
    #[serde(rename = "C")]
    c: usize,
    #[serde(rename = "L")]
    l: usize,
    #[serde(rename = "W")]
    w: usize,
    #[serde(deserialize_with = "flag")]
    bias: bool,
    /// Whether the activation is SiLU.
    #[serde(deserialize_with = "flag")]
    activation: bool,
}

#[derive(Deserialize)]
struct Rope2dRow {
    name: String,
    #[serde(rename = "B")]
    b: usize,
    heads: usize,
    tokens: usize,
    head_dim: usize,
    grid_h: usize,
    grid_w: usize,
}

/// A yes or no of the tables: 1 or 0, silu or none.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "1" | "silu" => Ok(true),
        "0" | "none" => Ok(false),
        other => Err(D::Error::custom(format!("expected 0, 1, none or silu, got {other}"))),
    }
}

#[cfg(test)]
#[path = "workloads_tests.rs"]
mod tests;
