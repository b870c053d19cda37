//! One labelled picture: a slice of each held-out volume, its truth, and what was predicted before and after
//! training.

use std::path::Path;

use anyhow::Result;
use example_common::sheet::Sheet;
use image::{Rgb, RgbImage};

use crate::data::Case;

const COLUMNS: [[&str; 2]; 4] = [["slice", ""], ["truth", ""], ["before", "training"], ["after", "training"]];
/// Colours of the classes but the background, in turn: Okabe and Ito's, told apart by every kind of colour
/// vision.
const COLOURS: [[u8; 3]; 6] =
    [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [213, 94, 0], [204, 121, 167]];
/// Part of a voxel's picture that is its class's colour, in quarters.
const OPACITY: u16 = 2;

/// A held-out volume and its predicted classes.
pub(crate) struct Row<'a> {
    pub(crate) case: &'a Case,
    /// Before training.
    pub(crate) before: &'a [u8],
    /// After training.
    pub(crate) after: &'a [u8],
}

/// Writes a row per volume.
pub(crate) fn write(rows: &[Row<'_>], path: &Path) -> Result<()> {
    let mut sheet = Sheet::new(&COLUMNS, rows.len());
    for (number, &Row { case, before, after }) in rows.iter().enumerate() {
        let z = telling_slice(case);
        let grey = grey(case, z);
        for (column, classes) in
            [None, Some(&*case.classes), Some(before), Some(after)].into_iter().enumerate()
        {
            let classes = classes.map(|classes| of_slice(case, classes, z));
            sheet.set(number, column, &square(&overlay(&grey, classes, case.shape)));
        }
    }
    sheet.save(path)
}

/// The part of a volume's values that is one slice.
fn of_slice<'a, T>(case: &Case, values: &'a [T], z: usize) -> &'a [T] {
    let plane = case.shape[1] * case.shape[2];
    &values[z * plane..][..plane]
}

/// The slice with the most classes, and of those the one with the most voxels that are no background.
fn telling_slice(case: &Case) -> usize {
    let tells = |z: &usize| {
        let mut seen = [false; 256];
        let mut labelled = 0;
        for &class in of_slice(case, &case.classes, *z) {
            seen[usize::from(class)] = true;
            labelled += usize::from(class != 0);
        }
        (seen.into_iter().filter(|seen| *seen).count(), labelled)
    };
    (0..case.shape[0]).max_by_key(tells).unwrap_or(0)
}

/// A slice's values as brightness; a hundredth of them at either end is cut off.
fn grey(case: &Case, z: usize) -> Vec<u8> {
    let values = of_slice(case, &case.image, z);
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    let cut = sorted.len() / 100;
    let (dark, bright) = (sorted[cut], sorted[sorted.len() - 1 - cut]);
    let unit = if bright > dark { 255.0 / (bright - dark) } else { 0.0 };
    values.iter().map(|value| ((value - dark) * unit).round().clamp(0.0, 255.0) as u8).collect()
}

/// Brightness with the classes' colours over it.
fn overlay(grey: &[u8], classes: Option<&[u8]>, [_, height, width]: [usize; 3]) -> RgbImage {
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let pixel = y as usize * width + x as usize;
        let level = grey[pixel];
        match classes.map_or(0, |classes| classes[pixel]) {
            0 => Rgb([level; 3]),
            class => {
                let colour = COLOURS[(usize::from(class) - 1) % COLOURS.len()];
                let mixed = |over: u8| (OPACITY * u16::from(over) + (4 - OPACITY) * u16::from(level)) / 4;
                Rgb(colour.map(|over| mixed(over) as u8))
            }
        }
    })
}

/// The picture in the middle of a black square, so that its aspect is kept.
fn square(picture: &RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    let side = width.max(height);
    let mut square = RgbImage::new(side, side);
    let (left, top) = ((side - width) / 2, (side - height) / 2);
    image::imageops::replace(&mut square, picture, i64::from(left), i64::from(top));
    square
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_the_slice_its_truth_and_both_predictions() {
        // Three slices of 2 x 4 voxels; the middle one has both classes.
        let classes = [[0, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1, 2], [2; 8]].concat();
        let image = (0..24).map(|voxel| (voxel % 8) as f32).collect();
        let case = Case { name: "case".into(), shape: [3, 2, 4], image, classes };
        assert_eq!(telling_slice(&case), 1);
        let (before, after) = (vec![0; 24], vec![2; 24]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sheet.png");
        write(&[Row { case: &case, before: &before, after: &after }], &path).unwrap();
        let sheet = image::open(&path).unwrap().to_rgb8();
        let at = |column, x: u32, y: u32| {
            let [left, top] = Sheet::corner(0, column);
            sheet.get_pixel(left + 32 * x + 16, top + 32 * y + 16).0
        };
        // The slice fills the middle two of four rows.
        assert_eq!([at(0, 0, 0), at(0, 3, 3)], [[0; 3]; 2]);
        assert_eq!([at(0, 0, 1), at(0, 3, 2)], [[0; 3], [255; 3]]);
        assert_eq!(at(1, 2, 2), [224, 189, 109], "class 1 over a brightness of 219");
        assert_eq!(at(1, 3, 2), [170, 217, 244]);
        assert_eq!([at(2, 0, 1), at(2, 3, 2)], [[0; 3], [255; 3]]);
        assert_eq!(at(3, 0, 1), [43, 90, 116]);
    }
}
