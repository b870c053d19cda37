//! Pairs of views: reading a folder of them, and cutting them into batches of patches.
//!
//! ```text
//! root/<pair>/*.png        two pictures of one scene, in the order of their names
//! ```
//!
//! Every tenth pair is held out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, ensure};
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_conv_ops::nn::Rope2d;
use example_common::cli::plural;
use example_common::images;
use example_common::loader::EpochLoader;
use example_common::random::stream;
use rand::Rng;
use rand::seq::SliceRandom;

/// Height and width of a patch in pixels.
pub(crate) const PATCH: usize = 4;
/// Numbers of a patch: its pixels' red, green and blue.
pub(crate) const PATCH_VALUES: usize = 3 * PATCH * PATCH;

/// A square picture as RGB bytes `[H, W, 3]`.
type Picture = Vec<u8>;

/// The pairs of a folder, decoded.
#[derive(Debug)]
pub(crate) struct Pairs {
    /// To train on.
    pub(crate) train: Vec<[Picture; 2]>,
    /// Held out.
    pub(crate) test: Vec<[Picture; 2]>,
}

/// Reads the pairs under `root`, each picture as a square of `size` pixels. A pair that is not two readable
/// pictures is an error that names it.
pub(crate) fn read(root: &Path, size: usize) -> Result<Pairs> {
    use rayon::prelude::*;
    ensure!(root.is_dir(), "{} is not a folder of pairs", root.display());
    let folders: Vec<PathBuf> = images::entries(root)?.into_iter().filter(|path| path.is_dir()).collect();
    ensure!(
        folders.len() >= 2,
        "{} holds {} pair folder{}, at least 2 are needed (DIR/<pair>/*.png, two pictures each)",
        root.display(),
        folders.len(),
        plural(folders.len())
    );
    let pairs: Vec<Result<[Picture; 2]>> = folders.par_iter().map(|folder| read_pair(folder, size)).collect();
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for (number, pair) in pairs.into_iter().enumerate() {
        if number % 10 == 0 { &mut test } else { &mut train }.push(pair?);
    }
    Ok(Pairs { train, test })
}

fn read_pair(folder: &Path, size: usize) -> Result<[Picture; 2]> {
    let files: Vec<PathBuf> =
        images::entries(folder)?.into_iter().filter(|path| images::has_extension(path, "png")).collect();
    let [first, second] = files.as_slice() else {
        anyhow::bail!("pair {} holds {} PNG pictures, it needs 2", folder.display(), files.len());
    };
    let read = |file| anyhow::Ok(images::squared(images::read_png("picture", file)?, size).into_raw());
    Ok([read(first)?, read(second)?])
}

/// How pictures become patches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patches {
    /// Patches per row and per column.
    pub(crate) side: usize,
    /// How many of a picture's patches are masked.
    pub(crate) masked: usize,
}

impl Patches {
    /// Patches of a picture.
    pub(crate) fn count(self) -> usize {
        self.side * self.side
    }
}

/// A picture's patches in row-major order, each its pixels' values from 0 to 1 in row-major order. `mirrored`
/// swaps left and right.
fn cut(picture: &[u8], side: usize, mirrored: bool) -> Vec<f32> {
    let size = side * PATCH;
    let mut values = Vec::with_capacity(picture.len());
    for patch in 0..side * side {
        for pixel in 0..PATCH * PATCH {
            let y = patch / side * PATCH + pixel / PATCH;
            let x = patch % side * PATCH + pixel % PATCH;
            let x = if mirrored { size - 1 - x } else { x };
            values.extend(picture[3 * (y * size + x)..][..3].iter().map(|&byte| f32::from(byte) / 255.0));
        }
    }
    values
}

/// One batch. V patches of the first view are visible and M are not; N = V + M.
#[derive(Clone, Debug)]
pub(crate) struct PairBatch {
    /// `[B, V, PATCH_VALUES]`, 0 to 1.
    pub(crate) visible: Tensor<3>,
    /// (row, column) of the visible patches, `[B, V, 2]`.
    pub(crate) visible_positions: Tensor<3, Int>,
    /// What is to be predicted, `[B, M, PATCH_VALUES]`.
    pub(crate) masked: Tensor<3>,
    /// `[B, M, 2]`
    pub(crate) masked_positions: Tensor<3, Int>,
    /// All patches of the second view in row-major order, `[B, N, PATCH_VALUES]`.
    pub(crate) second: Tensor<3>,
    /// `[B, N, 2]`
    pub(crate) second_positions: Tensor<3, Int>,
}

/// Batches that train: in every epoch another mask, the views in either order, mirrored or not.
pub(crate) fn training_batches(
    pairs: Arc<Vec<[Picture; 2]>>,
    patches: Patches,
    batch_size: usize,
    seed: u64,
) -> EpochLoader<PairBatch> {
    let count = pairs.len();
    EpochLoader::new(count, "pairs", batch_size, move |epoch, items, device| {
        let samples = items.iter().map(|&item| {
            // One stream per pair and epoch: the draws depend on nothing else.
            let mut rng = stream(seed, epoch * count + item);
            let (first, mirrored) = (rng.random_range(0..2), rng.random_bool(0.5));
            let view = |view: usize| cut(&pairs[item][view], patches.side, mirrored);
            (view(first), view(1 - first), permutation(patches, &mut rng))
        });
        Ok(batch(samples, patches, device))
    })
    .shuffled(seed)
}

/// Batches that test: each pair as it is, with a mask of its own that never changes.
pub(crate) fn test_batches(
    pairs: Arc<Vec<[Picture; 2]>>,
    patches: Patches,
    batch_size: usize,
    seed: u64,
) -> EpochLoader<PairBatch> {
    EpochLoader::new(pairs.len(), "pairs", batch_size, move |_, items, device| {
        let samples = items.iter().map(|&item| {
            let [first, second] = &pairs[item];
            let order = permutation(patches, &mut stream(seed, item));
            (cut(first, patches.side, false), cut(second, patches.side, false), order)
        });
        Ok(batch(samples, patches, device))
    })
}

/// A random order of the patches: the visible ones first.
fn permutation(patches: Patches, rng: &mut impl Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..patches.count()).collect();
    order.shuffle(rng);
    order
}

/// Both views and the order of the first one's patches become tensors.
fn batch(
    samples: impl Iterator<Item = (Vec<f32>, Vec<f32>, Vec<usize>)>,
    patches: Patches,
    device: &Device,
) -> PairBatch {
    let visible_count = patches.count() - patches.masked;
    let (mut values, mut positions) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let mut seconds = Vec::new();
    let mut count = 0;
    for (first, second, order) in samples {
        for (place, &patch) in order.iter().enumerate() {
            let part = usize::from(place >= visible_count);
            values[part].extend_from_slice(&first[patch * PATCH_VALUES..][..PATCH_VALUES]);
            positions[part].extend([(patch / patches.side) as i32, (patch % patches.side) as i32]);
        }
        seconds.extend(second);
        count += 1;
    }
    let patch_tensor = |values: Vec<f32>| {
        let each = values.len() / (count * PATCH_VALUES);
        Tensor::<3>::from_data(TensorData::new(values, [count, each, PATCH_VALUES]), device)
    };
    let position_tensor = |pairs: Vec<i32>| {
        let each = pairs.len() / (count * 2);
        Tensor::<3, Int>::from_data(TensorData::new(pairs, [count, each, 2]), device)
    };
    let ([visible, masked], [visible_positions, masked_positions]) = (values, positions);
    PairBatch {
        visible: patch_tensor(visible),
        visible_positions: position_tensor(visible_positions),
        masked: patch_tensor(masked),
        masked_positions: position_tensor(masked_positions),
        second: patch_tensor(seconds),
        second_positions: Rope2d::grid(count, patches.side, patches.side, device),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::data::dataloader::DataLoader;
    use image::{Rgb, RgbImage};

    const PATCHES: Patches = Patches { side: 2, masked: 3 };

    /// A picture whose pixels tell their place.
    fn picture(blue: u8) -> Picture {
        RgbImage::from_fn(8, 8, |x, y| Rgb([x as u8, y as u8, blue])).into_raw()
    }

    fn bytes(tensor: Tensor<3>) -> Vec<u8> {
        let values = tensor.try_into_vec_as::<f32>().unwrap();
        values.iter().map(|value| (value * 255.0).round() as u8).collect()
    }

    #[test]
    fn patches_hold_the_pixels_that_their_positions_say() {
        let pairs = Arc::new(vec![[picture(1), picture(2)], [picture(3), picture(4)]]);
        let batch = test_batches(pairs, PATCHES, 2, 1).iter().next().unwrap().unwrap();
        assert_eq!(batch.visible.dims(), [2, 1, PATCH_VALUES]);
        assert_eq!(batch.masked.dims(), [2, 3, PATCH_VALUES]);
        let mut seen = std::collections::BTreeSet::new();
        for (values, positions) in [
            (batch.visible, batch.visible_positions),
            (batch.masked, batch.masked_positions),
            (batch.second, batch.second_positions),
        ] {
            let (values, positions) = (bytes(values), positions.try_into_vec_as::<i32>().unwrap());
            for (patch, position) in values.chunks(PATCH_VALUES).zip(positions.chunks(2)) {
                for (pixel, rgb) in patch.chunks(3).enumerate() {
                    let [row, column] = [position[0], position[1]].map(|index| index as usize * PATCH);
                    assert_eq!(rgb[..2], [(column + pixel % PATCH) as u8, (row + pixel / PATCH) as u8]);
                }
                seen.insert((patch[2], position.to_vec()));
            }
        }
        assert_eq!(seen.len(), 16, "each patch of each view once: {seen:?}");
    }

    #[test]
    fn masks_change_from_epoch_to_epoch_in_training_only() {
        // One pair, so that only the mask can change.
        let pairs = Arc::new(vec![[picture(1), picture(2)]]);
        let masks = |loader: EpochLoader<PairBatch>| -> std::collections::BTreeSet<Vec<i32>> {
            let mask = |_| loader.iter().next().unwrap().unwrap().visible_positions;
            (0..8).map(mask).map(|positions| positions.try_into_vec_as::<i32>().unwrap()).collect()
        };
        assert!(masks(training_batches(pairs.clone(), PATCHES, 1, 1)).len() > 1);
        assert_eq!(masks(test_batches(pairs, PATCHES, 1, 1)).len(), 1);
    }

    #[test]
    fn training_swaps_and_mirrors_both_views_together() {
        let pairs = Arc::new(vec![[picture(1), picture(2)]; 60]);
        let batch = training_batches(pairs, PATCHES, 60, 1).iter().next().unwrap().unwrap();
        let (first, second) = (bytes(batch.visible), bytes(batch.second));
        let mut seen = std::collections::BTreeSet::new();
        for (first, second) in first.chunks(PATCH_VALUES).zip(second.chunks(4 * PATCH_VALUES)) {
            let mirrored = |patch: &[u8]| patch[3] < patch[0];
            assert_eq!(mirrored(first), mirrored(second));
            assert_eq!(first[2] + second[2], 3, "one of each view");
            seen.insert((first[2], mirrored(first)));
        }
        assert_eq!(seen.len(), 4, "{seen:?}");
    }

    #[test]
    fn pairs_are_read_and_what_is_none_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = |text: &str| {
            let error = format!("{:#}", read(root.path(), 16).unwrap_err());
            assert!(error.contains(text), "{error}");
        };
        error("holds 0 pair folders, at least 2 are needed");
        for pair in 0..11 {
            let folder = root.path().join(format!("{pair:02}"));
            std::fs::create_dir(&folder).unwrap();
            for view in ["a.png", "b.png"] {
                RgbImage::from_pixel(20, 10, Rgb([pair; 3])).save(folder.join(view)).unwrap();
            }
        }
        let pairs = read(root.path(), 16).unwrap();
        assert_eq!((pairs.train.len(), pairs.test.len()), (9, 2));
        assert_eq!((pairs.test[0][0][0], pairs.test[1][1][0], pairs.train[0][0].len()), (0, 10, 16 * 16 * 3));
        std::fs::write(root.path().join("03/b.png"), "no picture").unwrap();
        error("03/b.png cannot be decoded");
        std::fs::remove_file(root.path().join("03/b.png")).unwrap();
        error("03 holds 1 PNG pictures, it needs 2");
    }
}
