//! Reading folders of pictures.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageReader, RgbImage};

/// The visible entries of a folder in byte order of their names.
///
/// # Errors
/// When the folder cannot be listed.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut paths = list().with_context(|| format!("{} cannot be listed", folder.display()))?;
    paths.retain(|path| !file_name(path).starts_with('.'));
    paths.sort();
    Ok(paths)
}

/// The last part of a path.
#[must_use]
pub fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whether a name ends in `.wanted`, in whatever case.
#[must_use]
pub fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(wanted))
}

/// The PNG files of a clip folder in the order of their numbers (`frame2` before `frame10`).
///
/// # Errors
/// When there are none, or the folder cannot be listed.
pub fn frame_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let files = numbered_png_files(folder)?;
    ensure!(!files.is_empty(), "clip {} holds no PNG frames", folder.display());
    Ok(files)
}

/// The PNG files of a folder in the order of their numbers.
///
/// # Errors
/// When the folder cannot be listed.
pub fn numbered_png_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> =
        entries(folder)?.into_iter().filter(|path| has_extension(path, "png")).collect();
    files.sort_by_key(|path| number_key(&file_name(path)));
    Ok(files)
}

/// Sort key that compares digit runs by value: text and numbers in turn.
fn number_key(name: &str) -> Vec<(String, u64)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (text, tail) = rest.split_at(text_end);
        let digits_end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
        let (digits, tail) = tail.split_at(digits_end);
        key.push((text.to_owned(), digits.parse().unwrap_or(u64::MAX)));
        rest = tail;
    }
    key
}

/// Decodes a file to red, green and blue; the error calls it `what`.
///
/// # Errors
/// When it cannot be read or decoded.
pub fn read_png(what: &str, path: &Path) -> Result<RgbImage> {
    Ok(read_picture(what, path)?.to_rgb8())
}

/// Decodes a file as it is; the error calls it `what`.
///
/// # Errors
/// When it cannot be read or decoded.
pub fn read_picture(what: &str, path: &Path) -> Result<DynamicImage> {
    // The name decides nothing: a JPEG called .png would be guessed, then refused as a format that is not
    // built in.
    ImageReader::open(path)
        .and_then(|reader| reader.with_guessed_format())
        .map_err(anyhow::Error::from)
        .and_then(|reader| Ok(reader.decode()?))
        .with_context(|| format!("{what} {} cannot be decoded", path.display()))
}

/// The image as a square of `size` pixels, resized without regard to its aspect where it has another size.
#[must_use]
pub fn squared(image: RgbImage, size: usize) -> RgbImage {
    // `size` comes from the command line, where it is limited to 1024.
    let side = size as u32;
    if image.dimensions() == (side, side) {
        image
    } else {
        imageops::resize(&image, side, side, FilterType::Triangle)
    }
}
