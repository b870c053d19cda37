//! Reading a folder of labelled volumes.
//!
//! ```text
//! root/images/<case>.nii.gz     values; also <case>.nii, or a folder <case> of PNG slices
//! root/labels/<case>.nii.gz     a class for each of them, as whole numbers; 0 is background
//! ```
//!
//! Folders named `imagesTr` and `labelsTr`, and images named `<case>_0000`, are found too (Medical
//! Segmentation Decathlon, nnU-Net). Every fifth case is held out. A volume that cannot be read, has no
//! counterpart or other extents than it is an error that names it, never a skipped case.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use example_common::cli::plural;
use example_common::images::{entries, file_name, numbered_png_files, read_picture};
use image::DynamicImage;

use crate::nifti::{self, Numbers};

/// Classes that are still told apart, the background included.
const MOST_CLASSES: usize = 16;

/// A labelled volume.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Case {
    /// Name without its extension.
    pub(crate) name: String,
    /// D, H, W.
    pub(crate) shape: [usize; 3],
    /// W innermost; mean 0 and standard deviation 1 over the volume.
    pub(crate) image: Vec<f32>,
    /// Class of each voxel: 0 is background.
    pub(crate) classes: Vec<u8>,
}

/// The cases of a folder.
#[derive(Debug)]
pub(crate) struct Cases {
    /// The number that labels use for each class.
    pub(crate) labels: Vec<u32>,
    /// To train on.
    pub(crate) train: Vec<Case>,
    /// Held out.
    pub(crate) test: Vec<Case>,
    /// Files that are no volumes; left alone.
    pub(crate) ignored: Vec<PathBuf>,
}

/// Reads the cases under `root`; `tick` is called after each with the number of all.
pub(crate) fn read(root: &Path, tick: impl Fn(u64) + Sync) -> Result<Cases> {
    use rayon::prelude::*;
    let mut ignored = Vec::new();
    let pairs = list(root, &mut ignored)?;
    let read: Vec<Result<Raw>> = pairs
        .par_iter()
        .map(|(name, [image, label])| {
            let raw = Raw::read(name, image, label);
            tick(pairs.len() as u64);
            raw
        })
        .collect();
    let read = read.into_iter().collect::<Result<Vec<Raw>>>()?;
    let found: BTreeSet<u32> = read.iter().flat_map(|raw| raw.labels.iter().copied()).chain([0]).collect();
    ensure!(found.len() > 1, "the labels under {} are 0 everywhere", root.display());
    ensure!(
        found.len() <= MOST_CLASSES,
        "the labels under {} hold {} different numbers, at most {MOST_CLASSES} are told apart",
        root.display(),
        found.len()
    );
    let labels: Vec<u32> = found.into_iter().collect();
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for (number, raw) in read.into_iter().enumerate() {
        if number % 5 == 0 { &mut test } else { &mut train }.push(raw.into_case(&labels));
    }
    Ok(Cases { labels, train, test, ignored })
}

/// Image and label of every case, by name.
fn list(root: &Path, ignored: &mut Vec<PathBuf>) -> Result<Vec<(String, [PathBuf; 2])>> {
    let folder = |names: [&str; 2]| names.map(|name| root.join(name)).into_iter().find(|path| path.is_dir());
    let (Some(images), Some(labels)) = (folder(["images", "imagesTr"]), folder(["labels", "labelsTr"]))
    else {
        bail!("{} is not a folder of volumes: it needs the folders images and labels", root.display());
    };
    let images = volumes(&images, ignored)?;
    let mut labels = volumes(&labels, ignored)?;
    let mut pairs = Vec::with_capacity(images.len());
    for (name, image) in images {
        // nnU-Net numbers the channels of images, not of labels.
        let short = name.strip_suffix("_0000").unwrap_or(&name).to_owned();
        let name = if labels.contains_key(&name) { name } else { short };
        let Some(label) = labels.remove(&name) else {
            bail!("image {} has no label: there is no {name} among the labels", image.display());
        };
        pairs.push((name, [image, label]));
    }
    if let Some((_, label)) = labels.pop_first() {
        bail!("label {} has no image of its name", label.display());
    }
    ensure!(
        pairs.len() >= 2,
        "{} holds {} labelled volume{}, at least 2 are needed",
        root.display(),
        pairs.len(),
        plural(pairs.len())
    );
    Ok(pairs)
}

/// The volumes of a folder by name.
fn volumes(folder: &Path, ignored: &mut Vec<PathBuf>) -> Result<BTreeMap<String, PathBuf>> {
    let mut volumes = BTreeMap::new();
    for path in entries(folder)? {
        let file = file_name(&path);
        let stem = file.strip_suffix(".nii.gz").or_else(|| file.strip_suffix(".nii"));
        let name = match stem {
            Some(stem) => stem.to_owned(),
            None if path.is_dir() => file,
            None => {
                ignored.push(path);
                continue;
            }
        };
        if let Some(other) = volumes.insert(name, path.clone()) {
            bail!("{} and {} are of the same name", other.display(), path.display());
        }
    }
    Ok(volumes)
}

/// A case whose labels are not yet numbered as classes.
struct Raw {
    name: String,
    shape: [usize; 3],
    image: Vec<f32>,
    labels: Vec<u32>,
}

impl Raw {
    fn read(name: &str, image_path: &Path, label_path: &Path) -> Result<Self> {
        let Numbers { shape, values: mut image } = read_volume("image", image_path)?;
        let label = read_volume("label", label_path)?;
        ensure!(
            shape == label.shape,
            "image {} has {shape:?} voxels, its label {} has {:?}",
            image_path.display(),
            label_path.display(),
            label.shape
        );
        if let Some(value) = image.iter().find(|value| !value.is_finite()) {
            bail!("image {} holds the value {value}", image_path.display());
        }
        // Every whole number up to here is an f32.
        let whole = |value: f32| value.fract() == 0.0 && (0.0..16_777_216.0).contains(&value);
        if let Some(value) = label.values.iter().find(|value| !whole(**value)) {
            bail!("label {} holds {value}, which names no class", label_path.display());
        }
        normalise(&mut image);
        let labels = label.values.into_iter().map(|value| value as u32).collect();
        Ok(Self { name: name.to_owned(), shape, image, labels })
    }

    /// `labels` are the numbers of all classes in order.
    fn into_case(self, labels: &[u32]) -> Case {
        // Every label is among them, and there are at most MOST_CLASSES.
        let class = |label: u32| labels.partition_point(|&other| other < label) as u8;
        let classes = self.labels.into_iter().map(class).collect();
        Case { name: self.name, shape: self.shape, image: self.image, classes }
    }
}

/// Brings the values to mean 0 and standard deviation 1; those of a constant volume to 0.
pub(crate) fn normalise(values: &mut [f32]) {
    let count = values.len() as f64;
    let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let variance = values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / count;
    let factor = if variance > 0.0 { 1.0 / variance.sqrt() } else { 0.0 };
    for value in values {
        *value = ((f64::from(*value) - mean) * factor) as f32;
    }
}

/// A NIfTI file, or a folder of PNG slices; errors call it `what`.
fn read_volume(what: &str, path: &Path) -> Result<Numbers> {
    if !path.is_dir() {
        return nifti::read(what, path);
    }
    let files = numbered_png_files(path)?;
    ensure!(!files.is_empty(), "{what} {} holds no PNG slices", path.display());
    let mut first = None;
    let mut values = Vec::new();
    for file in &files {
        let picture = read_picture("slice", file)?;
        let size = (picture.width(), picture.height());
        let (width, height) = *first.get_or_insert(size);
        ensure!(
            size == (width, height),
            "slice {} is {} x {}, the first is {width} x {height}",
            file.display(),
            size.0,
            size.1
        );
        values.extend(grey(picture).with_context(|| format!("slice {}", file.display()))?);
    }
    let (width, height) = first.unwrap_or_default();
    Ok(Numbers { shape: [files.len(), height as usize, width as usize], values })
}

/// The grey levels of a picture as they are stored, 8 or 16 bits.
fn grey(picture: DynamicImage) -> Result<Vec<f32>> {
    Ok(match picture {
        DynamicImage::ImageLuma8(pixels) => pixels.into_raw().into_iter().map(f32::from).collect(),
        DynamicImage::ImageLuma16(pixels) => pixels.into_raw().into_iter().map(f32::from).collect(),
        coloured => {
            let pixels = coloured.into_rgb16();
            ensure!(
                pixels.pixels().all(|pixel| pixel[0] == pixel[1] && pixel[0] == pixel[2]),
                "has colours, slices are grey"
            );
            // 16 bits of an 8-bit level v are 257 v.
            let eight_bits = pixels.pixels().all(|pixel| pixel[0] % 257 == 0);
            let unit = if eight_bits { 257.0 } else { 1.0 };
            pixels.pixels().map(|pixel| f32::from(pixel[0]) / unit).collect()
        }
    })
}

#[cfg(test)]
#[path = "data_tests.rs"]
mod tests;
