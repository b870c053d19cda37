//! Tests of reading folders of volumes.

use super::*;
use crate::nifti::Voxels;
use image::{GrayImage, Luma, Rgb, RgbImage};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["images", "labels"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A volume of 2 x 2 x 2 voxels.
    fn write(&self, name: &str, values: [i16; 8]) {
        nifti::write(&self.path(name), [2; 3], Voxels::I16(&values)).unwrap();
    }

    /// As many cases as these, whose labels are 0 and 4.
    fn with_cases(count: usize) -> Self {
        let folder = Self::new();
        for case in 0..count {
            folder.write(&format!("images/{case}.nii.gz"), [10, 20, 10, 20, 10, 20, 10, 20]);
            folder.write(&format!("labels/{case}.nii.gz"), [0, 0, 0, 4, 4, 0, 0, 0]);
        }
        folder
    }

    fn read(&self) -> Result<Cases> {
        read(self.0.path(), |_| {})
    }

    fn refused(&self, parts: &[&str]) {
        let error = format!("{:#}", self.read().unwrap_err());
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn cases_are_paired_normalised_and_split() {
    let folder = Folder::with_cases(11);
    folder.write("labels/3.nii.gz", [0, 0, 0, 9, 4, 0, 0, 0]);
    std::fs::write(folder.path("images/notes.txt"), "").unwrap();
    let Cases { labels, train, test, ignored } = folder.read().unwrap();
    assert_eq!(labels, [0, 4, 9]);
    assert_eq!(ignored, [folder.path("images/notes.txt")]);
    let names = |cases: &[Case]| cases.iter().map(|case| case.name.clone()).collect::<Vec<_>>();
    // 0, 1, 10, 2, .. in the order of names.
    assert_eq!(names(&test), ["0", "4", "9"]);
    assert_eq!(names(&train), ["1", "10", "2", "3", "5", "6", "7", "8"]);
    assert_eq!(train[3].shape, [2, 2, 2]);
    assert_eq!(train[3].classes, [0, 0, 0, 2, 1, 0, 0, 0]);
    assert_eq!(train[3].image, [-1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0]);
}

#[test]
fn slices_and_the_names_of_others_are_read() {
    let folder = Folder::new();
    std::fs::rename(folder.path("images"), folder.path("imagesTr")).unwrap();
    std::fs::rename(folder.path("labels"), folder.path("labelsTr")).unwrap();
    for case in ["a", "b"] {
        for (place, factor) in [(format!("imagesTr/{case}_0000"), 1), (format!("labelsTr/{case}"), 255)] {
            std::fs::create_dir(folder.path(&place)).unwrap();
            for slice in 0..11u32 {
                // The tenth slice comes after the ninth. The image is as red, green and blue in one of them.
                let level = move |x: u32| ((slice + x) * factor / 10) as u8;
                let path = folder.path(&place).join(format!("z{slice}.png"));
                if case == "a" {
                    GrayImage::from_fn(3, 2, |x, _| Luma([level(x)])).save(path).unwrap();
                } else {
                    RgbImage::from_fn(3, 2, |x, _| Rgb([level(x); 3])).save(path).unwrap();
                }
            }
        }
        // Labels are 0 or 255.
        for slice in 0..11u8 {
            let path = folder.path(&format!("labelsTr/{case}/z{slice}.png"));
            GrayImage::from_pixel(3, 2, Luma([if slice > 8 { 255 } else { 0 }])).save(path).unwrap();
        }
    }
    let Cases { labels, train, test, .. } = folder.read().unwrap();
    assert_eq!(labels, [0, 255]);
    assert_eq!((test[0].name.as_str(), test[0].shape), ("a", [11, 2, 3]));
    assert_eq!(test[0].classes, [vec![0; 9 * 6], vec![1; 2 * 6]].concat());
    assert_eq!((&test[0].image, &test[0].classes), (&train[0].image, &train[0].classes));
    let Numbers { values, .. } = read_volume("image", &folder.path("imagesTr/a_0000")).unwrap();
    assert_eq!(values[8 * 6..][..6], [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
    let mut pixels = vec![100.0f32; 7];
    normalise(&mut pixels);
    assert_eq!(pixels, [0.0; 7]);
}

#[test]
fn sixteen_bits_are_kept() {
    let picture = image::ImageBuffer::from_fn(2, 1, |x, _| Luma([1000 * x as u16]));
    assert_eq!(grey(DynamicImage::ImageLuma16(picture)).unwrap(), [0.0, 1000.0]);
}

#[test]
fn what_cannot_be_used_is_named() {
    let folder = Folder::with_cases(1);
    folder.refused(&["holds 1 labelled volume, at least 2 are needed"]);
    let folder = Folder::with_cases(6);
    std::fs::write(folder.path("labels/4.nii.gz"), [0x1f, 0x8b, 8, 0]).unwrap();
    folder.refused(&["label ", "labels/4.nii.gz cannot be read: "]);
    folder.write("labels/4.nii.gz", [0, 0, -1, 0, 0, 0, 0, 0]);
    folder.refused(&["labels/4.nii.gz holds -1, which names no class"]);
    nifti::write(&folder.path("labels/4.nii.gz"), [1, 2, 2], Voxels::U8(&[0; 4])).unwrap();
    folder.refused(&["images/4.nii.gz has [2, 2, 2] voxels, its label ", "has [1, 2, 2]"]);
    std::fs::remove_file(folder.path("labels/4.nii.gz")).unwrap();
    folder.refused(&["images/4.nii.gz has no label: there is no 4 among the labels"]);
    std::fs::remove_file(folder.path("images/4.nii.gz")).unwrap();
    folder.write("labels/7.nii", [0; 8]);
    folder.refused(&["labels/7.nii has no image of its name"]);
    folder.write("labels/7.nii.gz", [0; 8]);
    folder.refused(&["labels/7.nii and ", "labels/7.nii.gz are of the same name"]);
    for name in ["labels/7.nii", "labels/7.nii.gz"] {
        std::fs::remove_file(folder.path(name)).unwrap();
    }
    folder.read().unwrap();

    std::fs::create_dir(folder.path("images/8")).unwrap();
    folder.write("labels/8.nii", [0; 8]);
    folder.refused(&["images/8 holds no PNG slices"]);
    GrayImage::new(2, 2).save(folder.path("images/8/0.png")).unwrap();
    GrayImage::new(2, 3).save(folder.path("images/8/1.png")).unwrap();
    folder.refused(&["images/8/1.png is 2 x 3, the first is 2 x 2"]);
    RgbImage::from_pixel(2, 2, Rgb([1, 2, 3])).save(folder.path("images/8/1.png")).unwrap();
    folder.refused(&["images/8/1.png: has colours"]);
    std::fs::write(folder.path("images/8/1.png"), b"\x89PNG").unwrap();
    folder.refused(&["slice ", "images/8/1.png cannot be decoded: "]);
}

#[test]
fn labels_that_tell_nothing_or_too_much_are_refused() {
    let folder = Folder::with_cases(4);
    for case in 0..4 {
        folder.write(&format!("labels/{case}.nii.gz"), [0; 8]);
    }
    folder.refused(&["are 0 everywhere"]);
    for case in 0..4 {
        let first = 8 * case;
        folder.write(&format!("labels/{case}.nii.gz"), std::array::from_fn(|i| first + i as i16));
    }
    folder.refused(&["hold 32 different numbers, at most 16 are told apart"]);
    std::fs::remove_dir_all(folder.path("labels")).unwrap();
    folder.refused(&["is not a folder of volumes: it needs the folders images and labels"]);
}
