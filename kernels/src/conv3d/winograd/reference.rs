//! The Winograd algorithm in f64. It proves the identity over whole problems; on absolute values it gives the
//! magnitude that bounds the algorithm's own rounding errors (see [`crate::tolerance`]).

use super::constants::{Matrix, WinogradTile, matrix_f64};
use super::region::Correlation;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;

/// The result of `pass` (forward without bias and activation, or input gradient under zero padding), tile by
/// tile; with `absolute`, every number and coefficient is replaced by its absolute value.
pub fn evaluate(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: WinogradTile,
    source: &[f64],
    w: &[f64],
    absolute: bool,
) -> Vec<f64> {
    let correlation = Correlation::of(problem, pass);
    let sign = |value: f64| if absolute { value.abs() } else { value };
    let load = |which| -> Vec<Vec<f64>> {
        matrix_f64(tile, which).into_iter().map(|row| row.into_iter().map(sign).collect()).collect()
    };
    let (a, b, g) = (load(Matrix::Output), load(Matrix::Input), load(Matrix::Filter));
    let [kd, kh, kw] = problem.kernel;
    let [depth, height, width] = correlation.input;
    let [out_depth, out_height, out_width] = correlation.output;
    let (size, outputs) = (tile.inputs(), tile.outputs());
    let (tile_rows, tile_columns) = correlation.tiles(tile);
    let inside = |p: i64, extent: usize| inside(p, extent, correlation.replicate_plane);
    let tap = |o: usize, c: usize, k: usize, i: usize, j: usize| {
        if correlation.mirror {
            w[(((c * correlation.out_channels + o) * kd + (kd - 1 - k)) * kh + 2 - i) * kw + 2 - j]
        } else {
            w[(((o * correlation.in_channels + c) * kd + k) * kh + i) * kw + j]
        }
    };
    let mut filters = Vec::new();
    for o in 0..correlation.out_channels {
        for c in 0..correlation.in_channels {
            for k in 0..kd {
                let square: Vec<Vec<f64>> =
                    (0..3).map(|i| (0..3).map(|j| sign(tap(o, c, k, i, j))).collect()).collect();
                filters.push(both_sides(&g, &square));
            }
        }
    }
    let mut result =
        vec![0.0; correlation.batch * correlation.out_channels * out_depth * out_height * out_width];
    for n in 0..correlation.batch {
        for (th, tw) in (0..tile_rows).flat_map(|th| (0..tile_columns).map(move |tw| (th, tw))) {
            let squares: Vec<Vec<Vec<f64>>> = (0..correlation.in_channels * depth)
                .map(|channel_frame| {
                    let row = |i: usize| {
                        let h = inside((th * outputs + i) as i64 - i64::from(correlation.begin[1]), height);
                        let needed = th * outputs + i < out_height + 2;
                        let value = |j: usize| {
                            let w =
                                inside((tw * outputs + j) as i64 - i64::from(correlation.begin[2]), width);
                            match (h, w) {
                                (Some(h), Some(w)) if needed && tw * outputs + j < out_width + 2 => {
                                    let image_frame = n * correlation.in_channels * depth + channel_frame;
                                    sign(source[(image_frame * height + h) * width + w])
                                }
                                _ => 0.0,
                            }
                        };
                        (0..size).map(value).collect()
                    };
                    both_sides(&b, &(0..size).map(row).collect::<Vec<_>>())
                })
                .collect();
            for o in 0..correlation.out_channels {
                for od in 0..out_depth {
                    let mut sum = vec![vec![0.0; size]; size];
                    for k in 0..kd {
                        let frame = (od * correlation.stride_depth + k * correlation.dilation_depth) as i64
                            - i64::from(correlation.begin[0]);
                        let Some(frame) = self::inside(frame, depth, correlation.replicate_depth) else {
                            continue;
                        };
                        for c in 0..correlation.in_channels {
                            let filter = &filters[(o * correlation.in_channels + c) * kd + k];
                            let square = &squares[c * depth + frame];
                            for i in 0..size {
                                for j in 0..size {
                                    sum[i][j] += filter[i][j] * square[i][j];
                                }
                            }
                        }
                    }
                    for (i, row) in both_sides(&a, &sum).iter().enumerate() {
                        for (j, value) in row.iter().enumerate() {
                            let (h, w) = (th * outputs + i, tw * outputs + j);
                            if h < out_height && w < out_width {
                                let image_frame = (n * correlation.out_channels + o) * out_depth + od;
                                result[(image_frame * out_height + h) * out_width + w] = *value;
                            }
                        }
                    }
                }
            }
        }
    }
    result
}

/// The weight gradient, tile by tile; `absolute` as in [`evaluate`].
pub fn weight_gradient(
    problem: &Conv3dProblem,
    tile: WinogradTile,
    x: &[f64],
    dy: &[f64],
    absolute: bool,
) -> Vec<f64> {
    let correlation = Correlation::of(problem, Pass::WeightGradient);
    let sign = |value: f64| if absolute { value.abs() } else { value };
    let load = |which| -> Vec<Vec<f64>> {
        matrix_f64(tile, which).into_iter().map(|row| row.into_iter().map(sign).collect()).collect()
    };
    let (a, b, g) = (load(Matrix::Taps), load(Matrix::Input), load(Matrix::Gradient));
    let (size, outputs) = (tile.inputs(), tile.outputs());
    let (tile_rows, tile_columns) = correlation.tiles(tile);
    let [out_depth, out_height, out_width] = correlation.output;
    let [channels, out_channels] = [correlation.in_channels, correlation.out_channels];
    let inside = |p: i64, extent: usize| inside(p, extent, correlation.replicate_plane);
    // A square of a frame from (top, left) on; zero outside the frame and past what any output needs.
    let square = |values: &[f64],
                  image_frame: usize,
                  [h, w]: [usize; 2],
                  at: [i64; 2],
                  size: usize,
                  needed: [i64; 2]| {
        let value = |i: usize, j: usize| {
            let place = [at[0] + i as i64, at[1] + j as i64];
            match (inside(place[0], h), inside(place[1], w)) {
                (Some(r), Some(c)) if place[0] < needed[0] && place[1] < needed[1] => {
                    sign(values[(image_frame * h + r) * w + c])
                }
                _ => 0.0,
            }
        };
        (0..size).map(|i| (0..size).map(|j| value(i, j)).collect()).collect::<Vec<Vec<f64>>>()
    };
    let filters = out_channels * channels * correlation.kernel_depth;
    let mut sums = vec![vec![vec![0.0; size]; size]; filters];
    let [depth, height, width] = correlation.input;
    let begin = correlation.begin.map(i64::from);
    let needed = [out_height as i64 + 2 - begin[1], out_width as i64 + 2 - begin[2]];
    for n in 0..correlation.batch {
        for (th, tw) in (0..tile_rows).flat_map(|th| (0..tile_columns).map(move |tw| (th, tw))) {
            let [top, left] = [(th * outputs) as i64, (tw * outputs) as i64];
            let tiles =
                |values, frames, extents, at, size, needed: [i64; 2], matrix: &[Vec<f64>]| -> Vec<_> {
                    let image_frames = n * frames..(n + 1) * frames;
                    image_frames
                        .map(|image_frame| {
                            both_sides(matrix, &square(values, image_frame, extents, at, size, needed))
                        })
                        .collect()
                };
            let at = [top - begin[1], left - begin[2]];
            let v = tiles(x, channels * depth, [height, width], at, size, needed, &b);
            let extents = [out_height, out_width];
            let all = extents.map(|size| size as i64);
            let d = tiles(dy, out_channels * out_depth, extents, [top, left], outputs, all, &g);
            for (o, od, c, k) in indices([out_channels, out_depth, channels, correlation.kernel_depth]) {
                let frame =
                    (od * correlation.stride_depth + k * correlation.dilation_depth) as i64 - begin[0];
                let Some(frame) = self::inside(frame, depth, correlation.replicate_depth) else { continue };
                let (v, d) = (&v[c * depth + frame], &d[o * out_depth + od]);
                let sum = &mut sums[(o * channels + c) * correlation.kernel_depth + k];
                for (sum, (v, d)) in sum.iter_mut().zip(v.iter().zip(d)) {
                    for (sum, (v, d)) in sum.iter_mut().zip(v.iter().zip(d)) {
                        *sum += v * d;
                    }
                }
            }
        }
    }
    sums.iter().flat_map(|sum| both_sides(&a, sum)).flatten().collect()
}

/// The element that a coordinate reads, if there is one.
fn inside(p: i64, extent: usize, replicate: bool) -> Option<usize> {
    let p = if replicate { p.clamp(0, extent as i64 - 1) } else { p };
    usize::try_from(p).ok().filter(|p| *p < extent)
}

/// Every index of four axes, in order.
fn indices([a, b, c, d]: [usize; 4]) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..a * b * c * d).map(move |at| (at / (b * c * d), at / (c * d) % b, at / d % c, at % d))
}

/// `T d T^T`.
fn both_sides(t: &[Vec<f64>], d: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let dot = |row: &[f64], column: &dyn Fn(usize) -> f64| -> f64 {
        row.iter().enumerate().map(|(k, value)| value * column(k)).sum()
    };
    let half: Vec<Vec<f64>> =
        t.iter().map(|row| (0..d[0].len()).map(|j| dot(row, &|k| d[k][j])).collect()).collect();
    half.iter().map(|row| t.iter().map(|other| dot(other, &|k| row[k])).collect()).collect()
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
