//! Clips are cut into the chunks that a model takes, and files that cannot be used are named.

use super::*;

/// Grey frames of 5 x 6 pixels.
fn frames(greys: std::ops::Range<u8>) -> Frames {
    Box::new(greys.map(|grey| Ok(RgbImage::from_pixel(5, 6, image::Rgb([grey; 3])))))
}

fn chunks(count: u8, latents: usize, per_latent: usize) -> Vec<(Vec<u8>, usize, bool)> {
    let mut chunks = Chunks::new(Path::new("clip"), frames(0..count), latents, per_latent, 2);
    let mut all = Vec::new();
    while let Some(chunk) = chunks.next().unwrap() {
        let greys = chunk.images.iter().map(|image| image.get_pixel(0, 0)[0]).collect();
        assert_eq!(chunk.tensor(&Device::flex()).dims(), [1, 3, chunk.length, 6, 4]);
        all.push((greys, chunk.length, chunk.last));
    }
    all
}

#[test]
fn chunks_stand_for_whole_latents_and_the_first_frame_for_one() {
    let all = [(vec![0], 1, false), (vec![1, 2, 3, 4], 4, false), (vec![5, 6], 4, true)];
    assert_eq!(chunks(7, 1, 4), all);
    assert_eq!(chunks(7, 2, 4), [(vec![0, 1, 2, 3, 4], 5, false), (vec![5, 6], 4, true)]);
    assert_eq!(chunks(1, 3, 4), [(vec![0], 1, true)]);
    assert_eq!(chunks(3, 2, 1), [(vec![0, 1], 2, false), (vec![2], 1, true)]);
}

#[test]
fn a_tensor_repeats_the_last_frame_and_becomes_images_again() {
    let chunk = Chunk {
        images: vec![
            RgbImage::from_pixel(2, 1, image::Rgb([0, 51, 255])),
            RgbImage::from_fn(2, 1, |x, _| image::Rgb([x as u8, 0, 0])),
        ],
        length: 3,
        last: true,
    };
    let tensor = chunk.tensor(&Device::flex());
    let blue = tensor.clone().narrow(1, 2, 1).try_into_vec_as::<f32>().unwrap();
    assert_eq!(blue, [1.0, 1.0, -1.0, -1.0, -1.0, -1.0]);
    let images = to_images(tensor).unwrap();
    assert_eq!(images[..2], chunk.images);
    assert_eq!(images[2], chunk.images[1]);
}

#[test]
fn a_clip_that_changes_its_size_or_is_too_small_is_named() {
    let mixed = frames(0..1).chain(std::iter::once(Ok(RgbImage::new(4, 6))));
    let mut chunks = Chunks::new(Path::new("films/one"), Box::new(mixed), 2, 2, 2);
    let error = chunks.next().err().unwrap().to_string();
    assert_eq!(error, "frame 2 of clip films/one is 4 x 6, the first is 5 x 6");
    let mut chunks = Chunks::new(Path::new("films/one"), frames(0..1), 1, 4, 8);
    let error = chunks.next().err().unwrap().to_string();
    assert_eq!(error, "clip films/one is 5 x 6, the model takes multiples of 8");
    let mut chunks = Chunks::new(Path::new("films/none"), frames(0..0), 1, 4, 8);
    assert_eq!(chunks.next().err().unwrap().to_string(), "clip films/none holds no frames");
}

#[test]
fn frames_written_to_a_folder_and_a_gif_are_read_back() {
    let dir = tempfile::tempdir().unwrap();
    for (name, count) in [("folder", Some(3)), ("clip.gif", None)] {
        let path = dir.path().join(name);
        let mut writer = Writer::create(&path, 16).unwrap();
        for image in frames(100..103) {
            writer.push(&image.unwrap()).unwrap();
        }
        drop(writer);
        let (read, known) = open(&path).unwrap();
        assert_eq!(known, count);
        let greys: Vec<u8> = read.map(|frame| frame.unwrap().get_pixel(1, 1)[0]).collect();
        assert_eq!(greys, [100, 101, 102], "{name}");
    }
    let error = Writer::create(&dir.path().join("folder"), 16).err().unwrap().to_string();
    assert!(error.ends_with("folder is not an empty folder"), "{error}");
}

#[test]
fn a_file_that_is_no_clip_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("clip.gif");
    let error = open(&path).err().unwrap().to_string();
    assert!(error.ends_with("clip.gif is missing"), "{error}");
    std::fs::write(&path, b"GIF89a").unwrap();
    let error = format!("{:#}", open(&path).err().unwrap());
    assert!(error.contains("clip.gif cannot be decoded: "), "{error}");
}
