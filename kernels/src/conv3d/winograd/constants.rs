//! The transform matrices of F(m x m, 3 x 3), as exact rationals from their interpolation points.
//!
//! Correlating with 3 taps for m outputs takes t = m + 2 products: `G` and `B^T` evaluate taps and inputs at
//! t points, the values are multiplied point by point, `A^T` interpolates:
//!
//! ```text
//! y = A^T [ (G g) . (B^T d) ]                               t - 1 finite points a_i and infinity
//! A^T[j][i] = a_i^j                  infinity: 1 in the last row
//! G[i][k]   = a_i^k / f_i            infinity: 1 in the last column         f_i = prod_{j != i} (a_i - a_j)
//! B^T[i]    = coefficients of prod_{j != i} (x - a_j)       infinity: of prod_j (x - a_j)
//! ```
//!
//! The weight gradient uses the same points for F(3, m): dy takes the filter's place with m taps, and the 3
//! outputs are the filter's taps. `G` then has m columns and `A^T` 3 rows.
//!
//! The points decide the rounding error. F(2x2) has 0, 1, -1: every coefficient is dyadic, so small integers
//! stay exact. F(4x4) has 0, 1, -1, 2, -1/2, with a third of the worst output error of the usual 0, 1, -1, 2,
//! -2. F(6x6) has 0, 1, -1, 2, -2, 1/2, -1/2.
//!
//! A transform's sums are larger than its inputs. Both factors are therefore divided by a power of two first
//! ([`scale_exponent`]), which keeps every sum finite, and the result is multiplied back ([`rescale`]).
//! Powers of two round nothing.

use crate::tolerance::Guard;
use num_rational::Ratio;

type Rational = Ratio<i64>;

/// Outputs per tile and axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WinogradTile {
    /// 2 x 2 outputs from 4 x 4 inputs: 2.25 times fewer products than a direct convolution.
    F2x2,
    /// 4 x 4 outputs from 6 x 6 inputs: 4 times fewer.
    F4x4,
    /// 6 x 6 outputs from 8 x 8 inputs: 5.06 times fewer, with the largest error of the three.
    F6x6,
}

impl WinogradTile {
    /// Every tile.
    pub const ALL: [Self; 3] = [Self::F2x2, Self::F4x4, Self::F6x6];

    /// Outputs of a tile along one axis, m.
    pub fn outputs(self) -> usize {
        match self {
            Self::F2x2 => 2,
            Self::F4x4 => 4,
            Self::F6x6 => 6,
        }
    }

    /// Inputs of a tile along one axis, t = m + 2: also the points of the transform domain.
    pub fn inputs(self) -> usize {
        self.outputs() + 2
    }

    /// Name in tables and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::F2x2 => "winograd_2x2",
            Self::F4x4 => "winograd_4x4",
            Self::F6x6 => "winograd_6x6",
        }
    }

    /// Expected error of results kept in fp32.
    pub fn guard(self) -> Guard {
        match self {
            Self::F2x2 => Guard::SUM,
            Self::F4x4 => Guard::WINOGRAD_4X4,
            Self::F6x6 => Guard::WINOGRAD_6X6,
        }
    }

    fn points(self) -> Vec<Rational> {
        let halves: &[i64] = match self {
            Self::F2x2 => &[0, 2, -2],
            Self::F4x4 => &[0, 2, -2, 4, -1],
            Self::F6x6 => &[0, 2, -2, 4, -4, 1, -1],
        };
        halves.iter().map(|half| Rational::new(*half, 2)).collect()
    }
}

/// A transform matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Matrix {
    /// B^T, t x t.
    Input,
    /// G, t x 3.
    Filter,
    /// A^T, m x t.
    Output,
    /// G of a tile of dy, t x m.
    Gradient,
    /// A^T for the filter taps of dw, 3 x t.
    Taps,
}

/// The matrix, row by row.
pub(crate) fn matrix(tile: WinogradTile, which: Matrix) -> Vec<Vec<Rational>> {
    let points = tile.points();
    let (zero, one) = (Rational::from(0), Rational::from(1));
    let others = |i: usize| points.iter().enumerate().filter(move |(j, _)| *j != i).map(|(_, point)| *point);
    let scale = |i: usize| others(i).fold(one, |product, other| product * (points[i] - other));
    // Coefficients of the monic polynomial with these roots, lowest power first, zero-padded to t.
    let polynomial = |roots: Vec<Rational>| {
        let mut coefficients = vec![one];
        for root in roots {
            coefficients.insert(0, zero);
            for power in 0..coefficients.len() - 1 {
                let lower = coefficients[power + 1];
                coefficients[power] -= root * lower;
            }
        }
        coefficients.resize(tile.inputs(), zero);
        coefficients
    };
    match which {
        Matrix::Input => {
            let mut rows: Vec<_> = (0..points.len()).map(|i| polynomial(others(i).collect())).collect();
            rows.push(polynomial(points.clone()));
            rows
        }
        Matrix::Filter | Matrix::Gradient => {
            let length = if which == Matrix::Filter { 3 } else { tile.outputs() };
            let mut rows: Vec<Vec<_>> = (0..points.len())
                .map(|i| (0..length).map(|power| points[i].pow(power as i32) / scale(i)).collect())
                .collect();
            rows.push((1..=length).map(|power| if power == length { one } else { zero }).collect());
            rows
        }
        Matrix::Output | Matrix::Taps => {
            let length = if which == Matrix::Taps { 3 } else { tile.outputs() };
            (0..length)
                .map(|power| {
                    let mut row: Vec<_> = points.iter().map(|point| point.pow(power as i32)).collect();
                    row.push(if power + 1 == length { one } else { zero });
                    row
                })
                .collect()
        }
    }
}

/// One coefficient, rounded to fp32.
pub(crate) fn coefficient(tile: WinogradTile, which: Matrix, row: usize, column: usize) -> f32 {
    let value = matrix(tile, which)[row][column];
    (*value.numer() as f64 / *value.denom() as f64) as f32
}

/// log2 of the divisor of a transform's input: large enough that no sum of a forward transform exceeds its
/// largest input, and no sum of an inverse transform the largest product. For the inverse transforms: of both
/// factors together.
pub(crate) fn scale_exponent(tile: WinogradTile, which: Matrix) -> u32 {
    let [input, filter, gradient] = match tile {
        WinogradTile::F2x2 => [5, 2, 1],
        WinogradTile::F4x4 => [8, 2, 3],
        WinogradTile::F6x6 => [12, 1, 2],
    };
    match which {
        Matrix::Input => input,
        Matrix::Filter => filter,
        Matrix::Gradient => gradient,
        Matrix::Output => input + filter,
        Matrix::Taps => input + gradient,
    }
}

/// Multiplier of an inverse transform's results that undoes the scaling of both factors.
pub(crate) fn rescale(tile: WinogradTile, which: Matrix) -> f32 {
    2f32.powi(scale_exponent(tile, which) as i32)
}

/// The matrix in f64, for the reference.
pub(crate) fn matrix_f64(tile: WinogradTile, which: Matrix) -> Vec<Vec<f64>> {
    let to_f64 = |value: &Rational| *value.numer() as f64 / *value.denom() as f64;
    matrix(tile, which).iter().map(|row| row.iter().map(to_f64).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The identity holds for every pair of unit vectors, hence for every filter and input.
    #[test]
    fn the_identity_holds_exactly() {
        let directions = [(Matrix::Output, Matrix::Filter), (Matrix::Taps, Matrix::Gradient)];
        for (tile, (outputs, factors)) in
            WinogradTile::ALL.iter().flat_map(|tile| directions.map(|direction| (*tile, direction)))
        {
            let (a, b, g) = (matrix(tile, outputs), matrix(tile, Matrix::Input), matrix(tile, factors));
            assert_eq!(a.len() + g[0].len() - 1, tile.inputs(), "{tile:?} {outputs:?}");
            for (output, row) in a.iter().enumerate() {
                for factor in 0..g[0].len() {
                    for input in 0..tile.inputs() {
                        let points = row.iter().zip(&g).zip(&b);
                        let sum: Rational = points.map(|((a, g), b)| a * g[factor] * b[input]).sum();
                        let expected = Rational::from(i64::from(output + factor == input));
                        assert_eq!(sum, expected, "{tile:?} {outputs:?} {output}, {factor}, input {input}");
                    }
                }
            }
        }
    }

    /// With the largest factors and the worst signs, no intermediate value exceeds the product of the largest
    /// input and the largest factor, rounding included.
    #[test]
    fn no_intermediate_exceeds_the_largest_product() {
        let room = 1.0 + 2f64.powi(-10);
        for (tile, (outputs, factors)) in WinogradTile::ALL.iter().flat_map(|tile| {
            [(Matrix::Output, Matrix::Filter), (Matrix::Taps, Matrix::Gradient)].map(|each| (*tile, each))
        }) {
            let norms = |which| -> Vec<f64> {
                let rows = matrix_f64(tile, which);
                rows.iter().map(|row| row.iter().map(|value| value.abs()).sum()).collect()
            };
            let scale_of = |which| 2f64.powi(-(scale_exponent(tile, which) as i32));
            let (inputs, of_factors) = (norms(Matrix::Input), norms(factors));
            for (which, norms) in [(Matrix::Input, &inputs), (factors, &of_factors)] {
                let largest = norms.iter().fold(0.0f64, |most, norm| most.max(*norm));
                assert!(largest * largest * scale_of(which) * room <= 1.0, "{tile:?} {which:?}: {largest}");
            }
            // The first row of A^T is ones: at least as large as the largest point's products.
            let back = matrix_f64(tile, outputs).into_iter().map(|row| -> f64 {
                row.iter().zip(&inputs).zip(&of_factors).map(|((a, b), g)| a.abs() * b * g).sum()
            });
            let points = inputs.iter().zip(&of_factors).map(|(b, g)| b * g);
            let largest = back.chain(points).fold(0.0f64, f64::max);
            let scale = scale_of(Matrix::Input) * scale_of(factors);
            assert!(largest * largest * scale * room <= 1.0, "{tile:?} {outputs:?}: {largest}");
            assert_eq!(scale * f64::from(rescale(tile, outputs)), 1.0, "{tile:?} {outputs:?}");
        }
    }

    /// Input and output transforms are exact in fp32, F(2x2)'s filter transform too.
    #[test]
    fn which_coefficients_are_dyadic() {
        let dyadic = |tile, which| {
            matrix(tile, which).iter().flatten().all(|value| (*value.denom() as u64).is_power_of_two())
        };
        for tile in WinogradTile::ALL {
            assert!(dyadic(tile, Matrix::Input) && dyadic(tile, Matrix::Output), "{tile:?}");
        }
        assert!(dyadic(WinogradTile::F2x2, Matrix::Filter) && dyadic(WinogradTile::F2x2, Matrix::Gradient));
        assert!(!dyadic(WinogradTile::F4x4, Matrix::Filter));
    }
}
