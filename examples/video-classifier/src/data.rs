//! Reading a folder of labelled clips.
//!
//! ```text
//! root/<class>/<clip>/*.png          a clip as numbered frames
//! root/<class>/<clip>.gif            a clip as one animated GIF
//! root/{train,test}/<class>/...      the same, with the split made by hand
//! ```
//!
//! Without a hand-made split a fifth of every class is held out, chosen by a hash of the clip's name, so the
//! choice does not change between runs or machines. Every clip becomes `frames` x `size` x `size` RGB bytes:
//! longer clips are sampled evenly, shorter ones repeat their last frame, frames of another size are resized
//! to the square. A file that cannot be decoded is an error that names it, never a skipped clip.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use example_common::cli::plural;
use example_common::images::{entries, file_name, frame_files, has_extension, read_png, squared};
use image::codecs::gif::GifDecoder;
use image::{AnimationDecoder, DynamicImage, RgbImage};

/// What every clip is brought to: `frames` frames of `size` x `size` pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClipShape {
    /// Number of frames, D of the tensor.
    pub(crate) frames: usize,
    /// Height and width in pixels, H and W of the tensor.
    pub(crate) size: usize,
}

impl ClipShape {
    /// Bytes of one clip: `frames * size * size * 3`.
    pub(crate) fn bytes(self) -> usize {
        self.frames * self.size * self.size * 3
    }
}

/// One clip on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Clip {
    /// A folder of PNG frames, or an animated GIF.
    pub(crate) path: PathBuf,
    /// Index into [`ClipFolder::classes`].
    pub(crate) label: usize,
}

/// What [`scan`] found.
#[derive(Debug)]
pub(crate) struct ClipFolder {
    /// Class names in alphabetical order.
    pub(crate) classes: Vec<String>,
    /// Clips to train on.
    pub(crate) train: Vec<Clip>,
    /// Clips held out.
    pub(crate) test: Vec<Clip>,
    /// Files that are neither a clip folder nor a GIF; left alone.
    pub(crate) ignored: Vec<PathBuf>,
}

/// Lists the clips under `root` without decoding them.
///
/// Fails, naming the folder, when there is no folder, fewer than two classes, a class without clips, or a
/// class with clips on one side of the split only.
pub(crate) fn scan(root: &Path) -> Result<ClipFolder> {
    ensure!(root.is_dir(), "{} is not a folder of clips", root.display());
    let mut ignored = Vec::new();
    let split_by_hand = root.join("train").is_dir() && root.join("test").is_dir();
    let (classes, train, test) = if split_by_hand {
        let (classes, train) = list_classes(&root.join("train"), &mut ignored)?;
        let (test_classes, test) = list_classes(&root.join("test"), &mut ignored)?;
        ensure!(
            classes == test_classes,
            "{} has train/ classes {} but test/ classes {}",
            root.display(),
            classes.join(", "),
            test_classes.join(", ")
        );
        (classes, train, test)
    } else {
        let (classes, clips) = list_classes(root, &mut ignored)?;
        let (train, test) = split_by_hash(&classes, clips)?;
        (classes, train, test)
    };
    Ok(ClipFolder { classes, train, test, ignored })
}

/// The classes under `root` and their clips in a fixed order.
fn list_classes(root: &Path, ignored: &mut Vec<PathBuf>) -> Result<(Vec<String>, Vec<Clip>)> {
    let mut classes = Vec::new();
    let mut clips = Vec::new();
    for class in entries(root)? {
        if !class.is_dir() {
            ignored.push(class);
            continue;
        }
        let label = classes.len();
        let before = clips.len();
        for path in entries(&class)? {
            if path.is_dir() || has_extension(&path, "gif") {
                clips.push(Clip { path, label });
            } else {
                ignored.push(path);
            }
        }
        ensure!(
            clips.len() > before,
            "{} holds no clips: a clip is a folder of PNG frames or an animated GIF",
            class.display()
        );
        classes.push(file_name(&class));
    }
    ensure!(
        classes.len() >= 2,
        "{} holds {} class folder{}, at least 2 are needed (DIR/<class>/<clip>/*.png or \
         DIR/<class>/<clip>.gif)",
        root.display(),
        classes.len(),
        plural(classes.len())
    );
    Ok((classes, clips))
}

/// Holds out a fifth of every class (at least one clip): those whose names have the smallest hashes.
fn split_by_hash(classes: &[String], clips: Vec<Clip>) -> Result<(Vec<Clip>, Vec<Clip>)> {
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for (label, class) in classes.iter().enumerate() {
        let mut of_class: Vec<Clip> = clips.iter().filter(|clip| clip.label == label).cloned().collect();
        ensure!(
            of_class.len() >= 2,
            "class {class} holds 1 clip, at least 2 are needed: one to train on and one to hold out"
        );
        of_class.sort_by_key(|clip| fnv1a(&format!("{class}/{}", file_name(&clip.path))));
        let held_out = of_class.len().div_ceil(5);
        train.extend(of_class.split_off(held_out));
        test.extend(of_class);
    }
    train.sort_by(|a, b| a.path.cmp(&b.path));
    test.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((train, test))
}

/// FNV-1a, 64 bits: a hash whose value is fixed by its definition, unlike the standard library's.
fn fnv1a(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Decodes one clip to `frames * size * size * 3` bytes, order `[D, H, W, RGB]`.
pub(crate) fn read_clip(path: &Path, shape: ClipShape) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(shape.bytes());
    if path.is_dir() {
        let files = frame_files(path)?;
        for index in sample(files.len(), shape.frames) {
            push_frame(&mut bytes, read_png("frame", &files[index])?, shape.size);
        }
    } else {
        let frames = read_gif(path)?;
        for index in sample(frames.len(), shape.frames) {
            push_frame(&mut bytes, frames[index].clone(), shape.size);
        }
    }
    Ok(bytes)
}

/// Which of `available` frames stand for `wanted` ones: evenly spaced, the last one repeated when there are
/// too few.
fn sample(available: usize, wanted: usize) -> impl Iterator<Item = usize> {
    (0..wanted).map(move |i| {
        if available >= wanted { (i * available + available / 2) / wanted } else { i.min(available - 1) }
    })
}

fn read_gif(path: &Path) -> Result<Vec<RgbImage>> {
    let decode = || -> Result<Vec<RgbImage>> {
        let decoder = GifDecoder::new(BufReader::new(File::open(path)?))?;
        let to_rgb = |frame: image::Frame| DynamicImage::ImageRgba8(frame.into_buffer()).to_rgb8();
        decoder.into_frames().map(|frame| Ok(to_rgb(frame?))).collect()
    };
    let frames = decode().with_context(|| format!("clip {} cannot be decoded", path.display()))?;
    ensure!(!frames.is_empty(), "clip {} holds no frames", path.display());
    Ok(frames)
}

/// Appends one frame as `[H, W, RGB]`.
fn push_frame(bytes: &mut Vec<u8>, frame: RgbImage, size: usize) {
    bytes.extend_from_slice(squared(frame, size).as_raw());
}

/// Decodes many clips on all cores, in order; the error is the first one in that order, with the count of the
/// others.
pub(crate) fn read_clips(clips: &[Clip], shape: ClipShape, tick: impl Fn() + Sync) -> Result<Vec<Vec<u8>>> {
    use rayon::prelude::*;
    let mut failed = 0;
    let mut first = None;
    let mut pixels = Vec::with_capacity(clips.len());
    let results: Vec<Result<Vec<u8>>> = clips
        .par_iter()
        .map(|clip| {
            let clip = read_clip(&clip.path, shape);
            tick();
            clip
        })
        .collect();
    for result in results {
        match result {
            Ok(bytes) => pixels.push(bytes),
            Err(error) => {
                failed += 1;
                first.get_or_insert(error);
            }
        }
    }
    match first {
        None => Ok(pixels),
        Some(error) if failed == 1 => Err(error),
        Some(error) => bail!(anyhow!("{error:#} (and {} more clips that cannot be read)", failed - 1)),
    }
}

#[cfg(test)]
#[path = "data_tests.rs"]
mod tests;
