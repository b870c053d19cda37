//! Tests of the clip reader: every message a user can meet, and what resizing and sampling do.

use std::path::{Path, PathBuf};

use image::codecs::gif::GifEncoder;
use image::{Frame, Rgb, RgbImage, Rgba, RgbaImage};
use tempfile::TempDir;

use super::*;

const SHAPE: ClipShape = ClipShape { frames: 4, size: 8 };

/// Writes `frames` PNGs of `side` x `side`; frame i is filled with the grey value 10 * i.
fn write_png_clip(folder: &Path, frames: u8, side: u32) {
    std::fs::create_dir_all(folder).unwrap();
    for i in 0..frames {
        let image = RgbImage::from_pixel(side, side, Rgb([10 * i; 3]));
        image.save(folder.join(format!("{i}.png"))).unwrap();
    }
}

fn write_gif_clip(file: &Path, greys: &[u8], side: u32) {
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let mut encoder = GifEncoder::new(File::create(file).unwrap());
    for &grey in greys {
        let image = RgbaImage::from_pixel(side, side, Rgba([grey, grey, grey, 255]));
        encoder.encode_frame(Frame::new(image)).unwrap();
    }
}

/// A folder of two classes with `clips` good clips each.
fn two_classes(clips: usize) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for class in ["left", "right"] {
        for clip in 0..clips {
            write_png_clip(&root.path().join(class).join(format!("{clip:02}")), 4, 8);
        }
    }
    root
}

fn scan_error(root: &Path) -> String {
    format!("{:#}", scan(root).unwrap_err())
}

fn read_error(path: &Path) -> String {
    format!("{:#}", read_clip(path, SHAPE).unwrap_err())
}

/// The red value in the middle of each frame.
fn greys(bytes: &[u8]) -> Vec<u8> {
    let frame = SHAPE.size * SHAPE.size * 3;
    assert_eq!(bytes.len() % frame, 0);
    bytes.chunks(frame).map(|frame| frame[frame.len() / 2]).collect()
}

#[test]
fn classes_are_folders_and_a_fifth_of_each_is_held_out() {
    let root = two_classes(10);
    let folder = scan(root.path()).unwrap();
    assert_eq!(folder.classes, ["left", "right"]);
    for label in 0..2 {
        let count = |clips: &[Clip]| clips.iter().filter(|clip| clip.label == label).count();
        assert_eq!((count(&folder.train), count(&folder.test)), (8, 2));
    }
    let again = scan(root.path()).unwrap();
    assert_eq!((again.train, again.test), (folder.train, folder.test));
}

#[test]
fn the_split_by_hash_is_fixed() {
    let clip = |i: usize| Clip { path: PathBuf::from(format!("anywhere/{i:02}")), label: 0 };
    let (_, test) = split_by_hash(&["left".to_owned()], (0..10).map(clip).collect()).unwrap();
    let held_out: Vec<String> = test.iter().map(|clip| file_name(&clip.path)).collect();
    // Written down from the definition of FNV-1a, computed apart from this program.
    assert_eq!(held_out, HELD_OUT_OF_TEN);
    assert_eq!(fnv1a("a"), 0xaf63_dc4c_8601_ec8c);
}
const HELD_OUT_OF_TEN: [&str; 2] = ["06", "07"];

#[test]
fn a_split_made_by_hand_is_kept() {
    let root = tempfile::tempdir().unwrap();
    for (split, clips) in [("train", 3), ("test", 1)] {
        for class in ["a", "b"] {
            for clip in 0..clips {
                write_gif_clip(&root.path().join(split).join(class).join(format!("{clip}.gif")), &[0], 8);
            }
        }
    }
    let folder = scan(root.path()).unwrap();
    assert_eq!((folder.train.len(), folder.test.len()), (6, 2));
    assert!(folder.test.iter().all(|clip| clip.path.starts_with(root.path().join("test"))));
    std::fs::rename(root.path().join("test/b"), root.path().join("test/c")).unwrap();
    let error = scan_error(root.path());
    assert!(error.contains("train/ classes a, b") && error.contains("test/ classes a, c"), "{error}");
}

#[test]
fn a_folder_without_classes_says_what_was_expected() {
    let root = tempfile::tempdir().unwrap();
    let error = scan_error(root.path());
    assert!(error.contains("holds 0 class folders") && error.contains("<class>/<clip>"), "{error}");
    write_png_clip(&root.path().join("only/clip"), 1, 8);
    assert!(scan_error(root.path()).contains("holds 1 class folder,"));
    let missing = root.path().join("missing");
    assert!(scan_error(&missing).contains("missing is not a folder of clips"));
}

#[test]
fn a_class_without_clips_or_with_one_clip_is_named() {
    let root = two_classes(2);
    std::fs::create_dir(root.path().join("up")).unwrap();
    let error = scan_error(root.path());
    assert!(error.contains("up holds no clips"), "{error}");
    write_png_clip(&root.path().join("up/0"), 1, 8);
    let error = scan_error(root.path());
    assert!(error.contains("class up holds 1 clip"), "{error}");
}

#[test]
fn other_files_are_reported_and_hidden_ones_are_not() {
    let root = two_classes(2);
    std::fs::write(root.path().join("left/notes.txt"), "").unwrap();
    std::fs::write(root.path().join("left/.DS_Store"), "").unwrap();
    let folder = scan(root.path()).unwrap();
    assert_eq!(folder.ignored, [root.path().join("left/notes.txt")]);
    assert_eq!(folder.train.len() + folder.test.len(), 4);
}

#[test]
fn a_clip_of_the_right_shape_is_read_unchanged() {
    let root = tempfile::tempdir().unwrap();
    write_png_clip(root.path(), 4, 8);
    let bytes = read_clip(root.path(), SHAPE).unwrap();
    assert_eq!(bytes.len(), SHAPE.bytes());
    assert_eq!(greys(&bytes), [0, 10, 20, 30]);
}

#[test]
fn long_clips_are_sampled_and_short_ones_repeat_their_last_frame() {
    let root = tempfile::tempdir().unwrap();
    write_png_clip(&root.path().join("long"), 12, 8);
    // Twelve frames in four groups of three, the middle of each; 10.png comes after 9.png.
    assert_eq!(greys(&read_clip(&root.path().join("long"), SHAPE).unwrap()), [10, 40, 70, 100]);
    write_png_clip(&root.path().join("short"), 2, 8);
    assert_eq!(greys(&read_clip(&root.path().join("short"), SHAPE).unwrap()), [0, 10, 10, 10]);
    for available in 1..40 {
        for wanted in 1..20 {
            let picked: Vec<usize> = sample(available, wanted).collect();
            assert!(picked.iter().all(|&i| i < available) && picked.is_sorted());
            assert!(available > wanted || picked[..available].iter().copied().eq(0..available));
        }
    }
}

#[test]
fn frames_of_other_sizes_are_resized_also_within_one_clip() {
    let root = tempfile::tempdir().unwrap();
    for (i, (width, height)) in [(8, 8), (16, 16), (5, 9), (1, 1)].into_iter().enumerate() {
        let image = RgbImage::from_pixel(width, height, Rgb([40 + i as u8; 3]));
        image.save(root.path().join(format!("{i}.png"))).unwrap();
    }
    let bytes = read_clip(root.path(), SHAPE).unwrap();
    assert_eq!(bytes.len(), SHAPE.bytes());
    assert_eq!(greys(&bytes), [40, 41, 42, 43]);
}

#[test]
fn grey_and_transparent_frames_become_rgb() {
    let root = tempfile::tempdir().unwrap();
    image::GrayImage::from_pixel(8, 8, image::Luma([9])).save(root.path().join("0.png")).unwrap();
    RgbaImage::from_pixel(8, 8, Rgba([9, 8, 7, 255])).save(root.path().join("1.png")).unwrap();
    let bytes = read_clip(root.path(), ClipShape { frames: 2, size: 8 }).unwrap();
    assert_eq!(bytes[..3], [9, 9, 9]);
    assert_eq!(bytes[8 * 8 * 3..][..3], [9, 8, 7]);
}

#[test]
fn an_animated_gif_is_a_clip() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("clip.GIF");
    write_gif_clip(&file, &[0, 80, 160, 240], 8);
    assert_eq!(greys(&read_clip(&file, SHAPE).unwrap()), [0, 80, 160, 240]);
    write_gif_clip(&file, &[50], 20);
    assert_eq!(greys(&read_clip(&file, SHAPE).unwrap()), [50; 4]);
}

#[test]
fn an_empty_clip_folder_is_named() {
    let root = tempfile::tempdir().unwrap();
    let clip = root.path().join("left/07");
    std::fs::create_dir_all(&clip).unwrap();
    let error = read_error(&clip);
    assert!(error.contains("left/07 holds no PNG frames"), "{error}");
}

#[test]
fn a_corrupt_png_is_named() {
    let root = tempfile::tempdir().unwrap();
    write_png_clip(root.path(), 4, 8);
    let file = root.path().join("2.png");
    let good = std::fs::read(&file).unwrap();
    for bad in [&b""[..], b"not an image", &good[..good.len() / 2]] {
        std::fs::write(&file, bad).unwrap();
        let error = read_error(root.path());
        assert!(error.contains("2.png cannot be decoded: "), "{error}");
    }
}

#[test]
fn a_corrupt_gif_is_named() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("jump.gif");
    write_gif_clip(&file, &[0, 100, 200], 16);
    let good = std::fs::read(&file).unwrap();
    for bad in [&b""[..], b"GIF89a", &good[..good.len() / 2]] {
        std::fs::write(&file, bad).unwrap();
        let error = read_error(&file);
        assert!(error.contains("jump.gif") && !error.contains("No such file"), "{error}");
    }
}

#[test]
fn of_many_unreadable_clips_the_first_is_named_and_the_others_counted() {
    let root = two_classes(4);
    let clips = scan(root.path()).unwrap().train;
    assert_eq!(read_clips(&clips, SHAPE, || {}).unwrap().len(), clips.len());
    for clip in &clips[1..4] {
        std::fs::write(clip.path.join("1.png"), "").unwrap();
    }
    let error = format!("{:#}", read_clips(&clips, SHAPE, || {}).unwrap_err());
    let first = clips[1].path.join("1.png").display().to_string();
    assert!(error.contains(&first) && error.contains("2 more clips"), "{error}");
}
