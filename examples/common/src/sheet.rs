//! Pictures in a table with labelled columns.

use std::path::Path;

use anyhow::{Context, Result};
use font8x8::legacy::BASIC_LEGACY;
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

/// Height and width of a cell in pixels.
pub const CELL: u32 = 128;
/// Distance between cells.
const GAP: u32 = 8;
/// Pixels per pixel of the font.
const TEXT: u32 = 2;
/// Height of a line of text.
const LINE: u32 = 10 * TEXT;
/// Height of the labels: two lines.
const LABELS: u32 = 2 * LINE + GAP;

/// A table of pictures.
#[derive(Clone, Debug)]
pub struct Sheet {
    picture: RgbImage,
}

impl Sheet {
    /// An empty table. A column has two lines of ASCII text above it, of at most eight characters each.
    #[must_use]
    pub fn new(columns: &[[&str; 2]], rows: usize) -> Self {
        let width = columns.len() as u32 * (CELL + GAP) + GAP;
        let height = LABELS + GAP + rows as u32 * (CELL + GAP);
        let mut sheet = Self { picture: RgbImage::from_pixel(width, height, Rgb([255; 3])) };
        for (column, lines) in columns.iter().enumerate() {
            for (line, text) in lines.iter().enumerate() {
                sheet.label(text, Self::corner(0, column)[0], GAP + line as u32 * LINE);
            }
        }
        sheet
    }

    /// Left and top of a cell.
    #[must_use]
    pub fn corner(row: usize, column: usize) -> [u32; 2] {
        [GAP + column as u32 * (CELL + GAP), LABELS + GAP + row as u32 * (CELL + GAP)]
    }

    /// Puts a picture into a cell, scaled to it without blending pixels.
    pub fn set(&mut self, row: usize, column: usize, picture: &RgbImage) {
        let cell = imageops::resize(picture, CELL, CELL, FilterType::Nearest);
        let [left, top] = Self::corner(row, column);
        imageops::replace(&mut self.picture, &cell, i64::from(left), i64::from(top));
    }

    /// Writes the table.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.picture.save(path).with_context(|| format!("{} cannot be written", path.display()))
    }

    /// Writes text in black.
    fn label(&mut self, text: &str, left: u32, top: u32) {
        for (place, character) in text.bytes().enumerate() {
            for (y, row) in BASIC_LEGACY[usize::from(character)].into_iter().enumerate() {
                for x in (0..8).filter(|x| row >> x & 1 == 1) {
                    for sub in 0..TEXT * TEXT {
                        let x = left + (place as u32 * 8 + x) * TEXT + sub % TEXT;
                        self.picture.put_pixel(x, top + y as u32 * TEXT + sub / TEXT, Rgb([0; 3]));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_fills_its_cell_and_a_label_is_above_its_column() {
        let mut sheet = Sheet::new(&[["", ""], ["after", "training"]], 2);
        sheet.set(1, 1, &RgbImage::from_fn(2, 2, |x, y| Rgb([(100 * x + 50 * y) as u8; 3])));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sheet.png");
        sheet.save(&path).unwrap();
        let found = image::open(&path).unwrap().to_rgb8();
        let [left, top] = Sheet::corner(1, 1);
        let at = |x, y| found.get_pixel(left + x, top + y)[0];
        assert_eq!([at(0, 0), at(127, 0), at(0, 127), at(127, 127)], [0, 100, 50, 150]);
        assert_eq!((at(63, 63), at(64, 64), at(128, 0), at(0, 128)), (0, 150, 255, 255));
        assert_eq!(found.dimensions(), (left + CELL + GAP, top + CELL + GAP));
        let dark = |columns: std::ops::Range<u32>| {
            columns.flat_map(|x| (0..LABELS).map(move |y| (x, y))).any(|(x, y)| found.get_pixel(x, y)[0] == 0)
        };
        assert_eq!((dark(0..left), dark(left..left + CELL)), (false, true));
    }
}
