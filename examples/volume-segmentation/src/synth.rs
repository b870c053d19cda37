//! The default data set: volumes with blobs and tubes, written to disk as NIfTI.
//!
//! Both are equally bright, and a slice through a tube looks like one through a small blob: what tells them
//! apart is their form in three dimensions.

use std::f32::consts::TAU;
use std::path::Path;

use anyhow::{Context, Result};
use example_common::random::stream;
use example_common::run_folder;
use indicatif::ProgressBar;
use rand::Rng;

use crate::nifti::{self, Voxels};

/// Number of volumes.
pub(crate) const VOLUMES: usize = 50;
/// Voxels along each axis.
pub(crate) const SIZE: usize = 32;
/// Seed of the volumes; it has no option, so that everyone's copy is the same.
const SEED: u64 = 20_261_130;
/// Labels.
const BLOB: u8 = 1;
const TUBE: u8 = 2;
/// Voxels of background between a blob and a tube, at least.
const APART: f32 = 2.0;

/// z, y, x in voxels.
type Point = [f32; 3];

/// Writes the data set to `dir` as `{images,labels}/<number>.nii.gz`, unless it is there already.
///
/// Fails when `dir` holds anything else.
pub(crate) fn make_data(dir: &Path) -> Result<()> {
    if run_folder::generate(dir, &about(), write_volumes)? {
        println!("Wrote {VOLUMES} volumes of blobs and tubes to {}.", dir.display());
    }
    Ok(())
}

fn about() -> String {
    format!(
        "Blobs (label {BLOB}) and tubes (label {TUBE}), written by volume-segmentation (seed {SEED}).\n\
         {VOLUMES} volumes of {SIZE} x {SIZE} x {SIZE} voxels.\n"
    )
}

fn write_volumes(root: &Path) -> Result<()> {
    use rayon::prelude::*;
    for folder in ["images", "labels"] {
        let folder = root.join(folder);
        std::fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    let bar = ProgressBar::new(VOLUMES as u64).with_message("writing volumes");
    (0..VOLUMES).into_par_iter().try_for_each(|number| {
        // One stream per volume: the result does not depend on the order in which threads work.
        let mut rng = stream(SEED, number);
        let (image, labels) = draw(&mut rng);
        let path = |folder: &str| root.join(folder).join(format!("{number:03}.nii.gz"));
        nifti::write(&path("images"), [SIZE; 3], Voxels::I16(&image))?;
        nifti::write(&path("labels"), [SIZE; 3], Voxels::U8(&labels))?;
        bar.inc(1);
        anyhow::Ok(())
    })?;
    bar.finish_and_clear();
    Ok(())
}

/// Distance of every voxel from the surface of the bodies in it, negative inside.
struct Field(Vec<f32>);

impl Field {
    fn empty() -> Self {
        Self(vec![f32::INFINITY; SIZE * SIZE * SIZE])
    }

    /// Adds a body that ends within `reach` voxels of its centre.
    fn add(&mut self, centre: Point, reach: f32, distance: impl Fn(Point) -> f32) {
        let range = |axis: usize| {
            let first = (centre[axis] - reach).max(0.0) as usize;
            first..((centre[axis] + reach + 1.0).max(0.0) as usize).min(SIZE)
        };
        for z in range(0) {
            for y in range(1) {
                for x in range(2) {
                    let offset = [z as f32 - centre[0], y as f32 - centre[1], x as f32 - centre[2]];
                    let value = &mut self.0[(z * SIZE + y) * SIZE + x];
                    *value = value.min(distance(offset));
                }
            }
        }
    }

    /// At the voxel nearest to a point within the volume.
    fn at(&self, point: Point) -> f32 {
        let [z, y, x] = point.map(|place| (place.round() as usize).min(SIZE - 1));
        self.0[(z * SIZE + y) * SIZE + x]
    }
}

fn length(point: Point) -> f32 {
    point.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// Values and labels of one volume.
fn draw(rng: &mut impl Rng) -> (Vec<i16>, Vec<u8>) {
    let (mut blobs, mut tubes) = (Field::empty(), Field::empty());
    for _ in 0..rng.random_range(1..=2) {
        let centre = [0; 3].map(|_| rng.random_range(5.0..SIZE as f32 - 5.0));
        let radii = [0; 3].map(|_| rng.random_range(3.5..6.5f32));
        let least = radii.iter().copied().fold(f32::INFINITY, f32::min);
        blobs.add(centre, 6.5 + APART + 3.0, |offset| {
            (length(std::array::from_fn(|i| offset[i] / radii[i])) - 1.0) * least
        });
    }
    let wanted = rng.random_range(1..=2);
    let mut found = 0;
    // Most tries succeed; a volume whose blobs leave no room for a tube has none.
    for _ in 0..40 {
        let radius = rng.random_range(1.6..2.4);
        let path = path(rng);
        if found == wanted || path.iter().any(|&point| blobs.at(point) < radius + APART) {
            continue;
        }
        found += 1;
        for point in path {
            tubes.add(point, radius + 1.0, |offset| length(offset) - radius);
        }
    }

    let base = rng.random_range(100.0..300.0);
    let contrast = rng.random_range(250.0..350.0f32);
    let slope = [0; 3].map(|_| rng.random_range(-60.0..60.0f32) / SIZE as f32);
    let mut image = Vec::with_capacity(blobs.0.len());
    let mut labels = Vec::with_capacity(blobs.0.len());
    for (voxel, (&blob, &tube)) in blobs.0.iter().zip(&tubes.0).enumerate() {
        let place = [voxel / (SIZE * SIZE), voxel / SIZE % SIZE, voxel % SIZE];
        let light: f32 = place.iter().zip(slope).map(|(&place, slope)| place as f32 * slope).sum();
        let cover = (0.5 - blob.min(tube)).clamp(0.0, 1.0);
        image.push((base + light + cover * contrast + rng.random_range(-60.0..60.0)).round() as i16);
        labels.push(match (blob < 0.0, tube < 0.0) {
            (true, _) => BLOB,
            (false, true) => TUBE,
            (false, false) => 0,
        });
    }
    (image, labels)
}

/// Points of a curved line through the volume, a voxel apart.
fn path(rng: &mut impl Rng) -> Vec<Point> {
    let middle = [0; 3].map(|_| rng.random_range(6.0..SIZE as f32 - 6.0));
    let (up, around) = (rng.random_range(-1.0..1.0f32), rng.random_range(0.0..TAU));
    let flat = (1.0 - up * up).sqrt();
    let direction = [up, flat * around.sin(), flat * around.cos()];
    let bend: Point = [0; 3].map(|_| rng.random_range(-0.06..0.06));
    let mut points = vec![middle];
    for sign in [1.0, -1.0] {
        let (mut point, mut heading) = (middle, direction.map(|x| sign * x));
        // A bend could keep the line inside for long.
        for _ in 0..3 * SIZE {
            point = std::array::from_fn(|i| point[i] + heading[i]);
            if point.iter().any(|&place| !(0.0..SIZE as f32).contains(&place)) {
                break;
            }
            points.push(point);
            let turned: Point = std::array::from_fn(|i| heading[i] + bend[i]);
            heading = turned.map(|x| x / length(turned));
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data;

    #[test]
    fn the_written_volumes_are_read_back_by_the_ordinary_reader() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("volumes");
        make_data(&dir).unwrap();
        let cases = data::read(&dir, |_| {}).unwrap();
        assert_eq!(cases.labels, [0, u32::from(BLOB), u32::from(TUBE)]);
        assert_eq!((cases.train.len(), cases.test.len()), (40, 10));
        // What is written is what is drawn.
        let (image, labels) = draw(&mut stream(SEED, 5));
        let case = &cases.test[1];
        assert_eq!((case.name.as_str(), case.shape), ("005", [SIZE; 3]));
        assert_eq!(case.classes, labels);
        let mut values: Vec<f32> = image.into_iter().map(f32::from).collect();
        data::normalise(&mut values);
        assert_eq!(case.image, values);

        let all = || cases.train.iter().chain(&cases.test);
        let with = |class: u8| all().filter(|case| case.classes.contains(&class)).count();
        assert_eq!(with(BLOB), VOLUMES);
        assert!(with(TUBE) > VOLUMES * 9 / 10, "{} volumes have tubes", with(TUBE));
        // The same again is left alone.
        let file = dir.join("images/000.nii.gz");
        let before = file.metadata().unwrap().modified().unwrap();
        make_data(&dir).unwrap();
        assert_eq!(file.metadata().unwrap().modified().unwrap(), before);
    }

    #[test]
    fn blobs_and_tubes_are_apart_and_equally_bright() {
        let mut means = Vec::new();
        for seed in 0..8 {
            let (image, labels) = draw(&mut stream(seed, 0));
            let of = |class: u8| {
                let values = image.iter().zip(&labels).filter(|(_, label)| **label == class);
                let values: Vec<f32> = values.map(|(&value, _)| f32::from(value)).collect();
                values.iter().sum::<f32>() / values.len() as f32
            };
            means.push((of(0), of(BLOB), of(TUBE)));
            // Neighbours along x are of one class or one of them is background.
            for pair in labels.chunks(SIZE).flat_map(|row| row.windows(2)) {
                assert!(pair[0] == pair[1] || pair.contains(&0), "{pair:?}");
            }
        }
        for (ground, blob, tube) in means {
            assert!(
                blob > ground + 150.0 && (tube.is_nan() || tube > ground + 100.0),
                "{ground} {blob} {tube}"
            );
            assert!(tube.is_nan() || (blob - tube).abs() < 90.0, "{blob} {tube}");
        }
    }
}
