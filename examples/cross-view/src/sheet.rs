//! One labelled picture with what went in, what came out before and after training, and what was wanted.

use std::path::Path;

use anyhow::{Context, Result};
use burn::tensor::{Int, Tensor};
use example_common::sheet::Sheet;
use image::{Rgb, RgbImage};

use crate::pairs::{PATCH, PATCH_VALUES, PairBatch};

const COLUMNS: [[&str; 2]; 5] =
    [["input:", "masked"], ["before", "training"], ["after", "training"], ["target", ""], ["second", "view"]];
/// Colour of what the network does not see.
const MASKED: Rgb<u8> = Rgb([128; 3]);

/// Writes a row per pair of `batch`; `before` and `after` are the network's predictions of its masked
/// patches.
pub(crate) fn write(batch: &PairBatch, before: Tensor<3>, after: Tensor<3>, path: &Path) -> Result<()> {
    let [pairs, patches, _] = batch.second.dims();
    let side = patches.isqrt();
    let visible = Placed::read(batch.visible.clone(), batch.visible_positions.clone())?;
    let at_masked = |values| Placed::read(values, batch.masked_positions.clone());
    let (before, after, target) = (at_masked(before)?, at_masked(after)?, at_masked(batch.masked.clone())?);
    let second = Placed::read(batch.second.clone(), batch.second_positions.clone())?;

    let mut sheet = Sheet::new(&COLUMNS, pairs);
    for pair in 0..pairs {
        let cells = [
            vec![&visible],
            vec![&visible, &before],
            vec![&visible, &after],
            vec![&visible, &target],
            vec![&second],
        ];
        for (column, parts) in cells.into_iter().enumerate() {
            let mut view = RgbImage::from_pixel((side * PATCH) as u32, (side * PATCH) as u32, MASKED);
            parts.into_iter().for_each(|part| part.paint(pair, &mut view));
            sheet.set(pair, column, &view);
        }
    }
    sheet.save(path)
}

/// Patches and where they belong, for every pair of a batch.
struct Placed {
    /// Patches per pair.
    count: usize,
    values: Vec<f32>,
    positions: Vec<i32>,
}

impl Placed {
    fn read(values: Tensor<3>, positions: Tensor<3, Int>) -> Result<Self> {
        Ok(Self {
            count: values.dims()[1],
            values: values.try_into_vec_as::<f32>().context("patches")?,
            positions: positions.try_into_vec_as::<i32>().context("positions")?,
        })
    }

    /// Puts the patches of one pair into its picture.
    fn paint(&self, pair: usize, picture: &mut RgbImage) {
        for patch in pair * self.count..(pair + 1) * self.count {
            let [row, column] = [0, 1].map(|axis| self.positions[2 * patch + axis] as u32 * PATCH as u32);
            let values = &self.values[patch * PATCH_VALUES..][..PATCH_VALUES];
            for (pixel, rgb) in values.chunks_exact(3).enumerate() {
                let (y, x) = ((pixel / PATCH) as u32, (pixel % PATCH) as u32);
                let bytes =
                    [rgb[0], rgb[1], rgb[2]].map(|value| (value.clamp(0.0, 1.0) * 255.0).round() as u8);
                picture.put_pixel(column + x, row + y, Rgb(bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use example_common::sheet::CELL;

    #[test]
    fn every_cell_shows_its_patches_where_they_belong() {
        let device = Device::flex();
        // Two patches per side; patches 3 and 0 of the first view are visible.
        let patches = |levels: &[f32]| {
            let values: Vec<f32> = levels.iter().flat_map(|&level| [level; PATCH_VALUES]).collect();
            Tensor::<1>::from_floats(values.as_slice(), &device).reshape([1, levels.len(), PATCH_VALUES])
        };
        let positions = |pairs: [i32; 4]| Tensor::<1, Int>::from_ints(pairs, &device).reshape([1, 2, 2]);
        let batch = PairBatch {
            visible: patches(&[0.2, 0.4]),
            visible_positions: positions([1, 1, 0, 0]),
            masked: patches(&[0.6, 0.8]),
            masked_positions: positions([0, 1, 1, 0]),
            second: patches(&[0.0, 0.1, 0.3, 1.0]),
            second_positions: burn_conv_ops::nn::Rope2d::grid(1, 2, 2, &device),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sheet.png");
        write(&batch, patches(&[-1.0, 2.0]), patches(&[0.7, 0.9]), &path).unwrap();
        let sheet = image::open(&path).unwrap().to_rgb8();
        let cell = |column| {
            let [left, top] = Sheet::corner(0, column);
            let at = |x, y| sheet.get_pixel(left + x, top + y)[0];
            [at(1, 1), at(CELL - 2, 1), at(1, CELL - 2), at(CELL - 2, CELL - 2)]
        };
        assert_eq!(cell(0), [102, 128, 128, 51]);
        assert_eq!(cell(1), [102, 0, 255, 51]);
        assert_eq!(cell(2), [102, 179, 230, 51]);
        assert_eq!(cell(3), [102, 153, 204, 51]);
        assert_eq!(cell(4), [0, 26, 77, 255]);
    }
}
