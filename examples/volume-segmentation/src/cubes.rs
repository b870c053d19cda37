//! Cubes of volumes as batches: at random places for training, the middle for measuring, tiles for a whole
//! volume.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use example_common::loader::EpochLoader;
use example_common::random::stream;
use rand::Rng;

use crate::data::Case;

/// A cube of a volume; what reaches beyond the volume is background of the mean brightness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cube {
    /// z, y, x of the first voxel; negative where the volume is smaller than the cube.
    pub(crate) corner: [isize; 3],
    /// Voxels along each edge.
    pub(crate) size: usize,
    /// Axes that are reversed.
    mirrored: [bool; 3],
}

impl Cube {
    /// Not mirrored.
    fn at(corner: [isize; 3], size: usize) -> Self {
        Self { corner, size, mirrored: [false; 3] }
    }

    /// In the middle of a volume.
    fn middle(shape: [usize; 3], size: usize) -> Self {
        // Volumes have less than 2^15 voxels along an axis, cubes at most 1024.
        Self::at(shape.map(|extent| (extent as isize - size as isize).div_euclid(2)), size)
    }

    /// At a random place, every other one about a voxel that is no background; mirrored at random.
    fn random(case: &Case, size: usize, rng: &mut impl Rng) -> Self {
        let mut cube = Self::middle(case.shape, size);
        cube.mirrored = [0; 3].map(|_| rng.random());
        let about = if rng.random() { labelled_voxel(case, rng) } else { None };
        for axis in 0..3 {
            let Some(most) = case.shape[axis].checked_sub(size) else { continue };
            let corner = match about {
                Some(voxel) => voxel[axis].saturating_sub(size / 2).min(most),
                None => rng.random_range(0..=most),
            };
            cube.corner[axis] = corner as isize;
        }
        cube
    }

    /// Cubes that cover a volume, overlapping by half where there is more than one along an axis.
    pub(crate) fn tiles(shape: [usize; 3], size: usize) -> Vec<Self> {
        let middle = Self::middle(shape, size).corner;
        let starts = [0, 1, 2].map(|axis| match shape[axis].checked_sub(size) {
            None => vec![middle[axis]],
            // The last one ends with the volume.
            Some(last) => (0..last).step_by(size.div_ceil(2)).chain([last]).map(|z| z as isize).collect(),
        });
        let mut tiles = Vec::new();
        for &z in &starts[0] {
            for &y in &starts[1] {
                tiles.extend(starts[2].iter().map(|&x| Self::at([z, y, x], size)));
            }
        }
        tiles
    }

    /// For every voxel of the cube, z innermost last, where it is in the volume.
    pub(crate) fn voxels(self, shape: [usize; 3]) -> impl Iterator<Item = Option<usize>> {
        let Self { corner, size, mirrored } = self;
        let place = move |axis: usize, index: usize| {
            let index = if mirrored[axis] { size - 1 - index } else { index };
            let place = corner[axis].checked_add_unsigned(index)?;
            usize::try_from(place).ok().filter(|&place| place < shape[axis])
        };
        (0..size * size * size).map(move |voxel| {
            let [z, y, x] =
                [place(0, voxel / (size * size)), place(1, voxel / size % size), place(2, voxel % size)];
            Some((z? * shape[1] + y?) * shape[2] + x?)
        })
    }

    /// The values of the cube.
    pub(crate) fn image(self, case: &Case) -> Vec<f32> {
        self.voxels(case.shape).map(|voxel| voxel.map_or(0.0, |voxel| case.image[voxel])).collect()
    }

    /// The classes of the cube.
    fn classes(self, case: &Case) -> Vec<u8> {
        self.voxels(case.shape).map(|voxel| voxel.map_or(0, |voxel| case.classes[voxel])).collect()
    }
}

/// z, y, x of a voxel that is no background, if some tries find one.
fn labelled_voxel(case: &Case, rng: &mut impl Rng) -> Option<[usize; 3]> {
    let [_, height, width] = case.shape;
    // From a random voxel to the next labelled one: few labels are found as surely as many.
    let start = rng.random_range(0..case.classes.len());
    let (before, after) = case.classes.split_at(start);
    let next = after.iter().chain(before).position(|&class| class != 0)?;
    let voxel = (start + next) % case.classes.len();
    Some([voxel / (height * width), voxel / width % height, voxel % width])
}

/// One batch. K classes, cubes of S voxels along each edge.
#[derive(Clone, Debug)]
pub(crate) struct CubeBatch {
    /// `[N, 1, S, S, S]`
    pub(crate) images: Tensor<5>,
    /// 1 for the class of a voxel and 0 for the others, `[N, K, S, S, S]`.
    pub(crate) truth: Tensor<5>,
}

/// Batches that train: in every epoch another cube of each volume.
pub(crate) fn training_batches(
    cases: Arc<Vec<Case>>,
    classes: usize,
    size: usize,
    batch_size: usize,
    seed: u64,
) -> EpochLoader<CubeBatch> {
    let count = cases.len();
    EpochLoader::new(count, "volumes", batch_size, move |epoch, items, device| {
        let cubes = items.iter().map(|&item| {
            // One stream per volume and epoch: the draws depend on nothing else.
            let mut rng = stream(seed, epoch * count + item);
            (&cases[item], Cube::random(&cases[item], size, &mut rng))
        });
        Ok(batch(cubes, classes, size, device))
    })
    .shuffled(seed)
}

/// Batches that measure: the middle of each volume.
pub(crate) fn test_batches(
    cases: Arc<Vec<Case>>,
    classes: usize,
    size: usize,
    batch_size: usize,
) -> EpochLoader<CubeBatch> {
    EpochLoader::new(cases.len(), "volumes", batch_size, move |_, items, device| {
        let cubes = items.iter().map(|&item| (&cases[item], Cube::middle(cases[item].shape, size)));
        Ok(batch(cubes, classes, size, device))
    })
}

fn batch<'a>(
    cubes: impl Iterator<Item = (&'a Case, Cube)>,
    classes: usize,
    size: usize,
    device: &Device,
) -> CubeBatch {
    let (mut images, mut truth) = (Vec::new(), Vec::new());
    let mut count = 0;
    for (case, cube) in cubes {
        images.extend(cube.image(case));
        let found = cube.classes(case);
        for class in 0..classes {
            truth.extend(found.iter().map(|&other| f32::from(u8::from(usize::from(other) == class))));
        }
        count += 1;
    }
    let shape = |channels| [count, channels, size, size, size];
    CubeBatch {
        images: Tensor::from_data(TensorData::new(images, shape(1)), device),
        truth: Tensor::from_data(TensorData::new(truth, shape(classes)), device),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::data::dataloader::DataLoader;

    /// A volume whose values tell their place, labelled in one voxel.
    fn case(shape: [usize; 3], labelled: usize) -> Case {
        let count = shape.iter().product::<usize>();
        let image = (0..count).map(|voxel| voxel as f32 + 1.0).collect();
        let classes = (0..count).map(|voxel| u8::from(voxel == labelled) * 2).collect();
        Case { name: "case".into(), shape, image, classes }
    }

    #[test]
    fn a_cube_holds_the_voxels_at_its_place_and_nothing_beyond() {
        let case = case([2, 3, 4], 5);
        let cube = Cube::at([0, 1, 2], 2);
        assert_eq!(cube.image(&case), [7.0, 8.0, 11.0, 12.0, 19.0, 20.0, 23.0, 24.0]);
        let mirrored = |mirrored| Cube { mirrored, ..cube }.image(&case);
        assert_eq!(mirrored([false, false, true]), [8.0, 7.0, 12.0, 11.0, 20.0, 19.0, 24.0, 23.0]);
        assert_eq!(mirrored([true, false, false]), [19.0, 20.0, 23.0, 24.0, 7.0, 8.0, 11.0, 12.0]);
        let beyond = Cube::at([1, -1, 3], 2);
        assert_eq!(beyond.image(&case), [0.0, 0.0, 16.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(Cube::at([0, 1, 0], 2).classes(&case), [0, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Cube::middle([2, 3, 4], 2).corner, [0, 0, 1]);
        assert_eq!(Cube::middle([2, 3, 4], 5).corner, [-2, -1, -1]);
    }

    #[test]
    fn tiles_cover_every_voxel_and_end_with_the_volume() {
        let corners =
            |shape, size| Cube::tiles(shape, size).into_iter().map(|tile| tile.corner).collect::<Vec<_>>();
        assert_eq!(corners([4, 4, 4], 4), [[0; 3]]);
        assert_eq!(corners([2, 4, 10], 4), [[-1, 0, 0], [-1, 0, 2], [-1, 0, 4], [-1, 0, 6]]);
        for shape in [[1, 4, 9], [5, 6, 7], [8, 3, 13]] {
            let mut covered = vec![false; shape.iter().product()];
            for tile in Cube::tiles(shape, 4) {
                tile.voxels(shape).flatten().for_each(|voxel| covered[voxel] = true);
            }
            assert!(covered.into_iter().all(|covered| covered), "{shape:?}");
        }
    }

    #[test]
    fn training_finds_the_labelled_voxels_of_a_large_volume() {
        // A labelled voxel in 27,000: a cube at a random place holds it once in 200 times.
        let (far, near) = (case([30; 3], 29 * 900 + 15 * 30 + 7), case([30; 3], 0));
        let cases = Arc::new(vec![far, near]);
        let loader = training_batches(cases.clone(), 3, 4, 1, 1);
        let mut found = 0;
        for _ in 0..50 {
            for batch in loader.iter() {
                let truth = batch.unwrap().truth;
                assert_eq!(truth.dims(), [1, 3, 4, 4, 4]);
                let sums = truth.sum_dims(&[0, 2, 3, 4]).try_into_vec_as::<f32>().unwrap();
                assert_eq!((sums[0] + sums[1] + sums[2], sums[1]), (64.0, 0.0));
                found += usize::from(sums[2] == 1.0);
            }
        }
        assert!((30..70).contains(&found), "{found} of 100");
        let nothing = Case { classes: vec![0; 27_000], ..cases[0].clone() };
        let mut rng = stream(1, 0);
        assert!(
            (0..9).all(|_| Cube::random(&nothing, 4, &mut rng).corner.iter().all(|&c| (0..=26).contains(&c)))
        );
    }

    #[test]
    fn measuring_sees_the_same_cubes_every_time() {
        let loader = test_batches(Arc::new(vec![case([4; 3], 21), case([2; 3], 0)]), 3, 2, 2);
        for _ in 0..2 {
            let batch = loader.iter().next().unwrap().unwrap();
            let images = batch.images.try_into_vec_as::<f32>().unwrap();
            assert_eq!(images[..8], [22.0, 23.0, 26.0, 27.0, 38.0, 39.0, 42.0, 43.0]);
            assert_eq!(images[8..], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
            let truth = batch.truth.try_into_vec_as::<f32>().unwrap();
            let ones: Vec<usize> = (0..48).filter(|&i| truth[i] == 1.0).collect();
            // Class 2 of the first voxel of both, class 0 of the others.
            assert_eq!(ones, [1, 2, 3, 4, 5, 6, 7, 16, 25, 26, 27, 28, 29, 30, 31, 40]);
        }
    }
}
