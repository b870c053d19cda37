//! Clips as PNG folders and GIFs, read and written one frame at a time.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use example_common::images::{frame_files, has_extension, read_png};
use image::codecs::gif::{GifDecoder, GifEncoder, Repeat};
use image::{AnimationDecoder, Delay, DynamicImage, Frame, RgbImage, imageops};

/// The frames of a clip in order.
pub(crate) type Frames = Box<dyn Iterator<Item = Result<RgbImage>>>;

/// Opens a folder of PNG frames or an animated GIF; also the number of frames, where it is known.
pub(crate) fn open(path: &Path) -> Result<(Frames, Option<usize>)> {
    if path.is_dir() {
        let files = frame_files(path)?;
        let count = files.len();
        return Ok((Box::new(files.into_iter().map(|file| read_png("frame", &file))), Some(count)));
    }
    ensure!(path.exists(), "clip {} is missing", path.display());
    let broken = {
        let path = path.to_owned();
        move || format!("clip {} cannot be decoded", path.display())
    };
    let decoder = File::open(path)
        .map_err(anyhow::Error::from)
        .and_then(|file| Ok(GifDecoder::new(BufReader::new(file))?))
        .with_context(&broken)?;
    let to_rgb = |frame: Frame| DynamicImage::ImageRgba8(frame.into_buffer()).to_rgb8();
    let frames = decoder.into_frames().map(move |frame| Ok(to_rgb(frame.with_context(&broken)?)));
    Ok((Box::new(frames), None))
}

/// A clip in chunks of as many frames as whole latents stand for.
pub(crate) struct Chunks {
    path: PathBuf,
    frames: std::iter::Peekable<Frames>,
    /// Frames of the next chunk: the clip's first frame has a latent of its own.
    next: usize,
    /// Frames of every further one.
    chunk: usize,
    /// Frames per latent.
    per_latent: usize,
    /// Width and height are cut to a multiple of it.
    multiple: u32,
    /// Of the first frame.
    size: Option<(u32, u32)>,
    read: usize,
}

/// Frames that go through a model together.
pub(crate) struct Chunk {
    /// The clip's own frames; [`Chunk::tensor`] repeats the last one up to `length`.
    pub(crate) images: Vec<RgbImage>,
    length: usize,
    /// Whether no frame follows.
    pub(crate) last: bool,
}

impl Chunks {
    /// Chunks of `latents` latents that stand for `per_latent` frames of pixels in multiples of `multiple`.
    pub(crate) fn new(
        path: &Path,
        frames: Frames,
        latents: usize,
        per_latent: usize,
        multiple: usize,
    ) -> Self {
        Self {
            path: path.to_owned(),
            frames: frames.peekable(),
            next: 1 + (latents - 1) * per_latent,
            chunk: latents * per_latent,
            per_latent,
            multiple: multiple as u32,
            size: None,
            read: 0,
        }
    }

    /// The next chunk, none at the clip's end.
    pub(crate) fn next(&mut self) -> Result<Option<Chunk>> {
        let mut images = Vec::new();
        while images.len() < self.next
            && let Some(frame) = self.frames.next()
        {
            images.push(self.cut(frame?)?);
            self.read += 1;
        }
        if images.is_empty() {
            ensure!(self.read > 0, "clip {} holds no frames", self.path.display());
            return Ok(None);
        }
        let first = self.next % self.per_latent;
        let length = first + (images.len() - first).next_multiple_of(self.per_latent);
        self.next = self.chunk;
        Ok(Some(Chunk { images, length, last: self.frames.peek().is_none() }))
    }

    /// The middle of a frame, in a size that the model divides.
    fn cut(&mut self, frame: RgbImage) -> Result<RgbImage> {
        let (width, height) = frame.dimensions();
        let size = *self.size.get_or_insert((width, height));
        if size != (width, height) {
            let (path, number) = (self.path.display(), self.read + 1);
            bail!(
                "frame {number} of clip {path} is {width} x {height}, the first is {} x {}",
                size.0,
                size.1
            );
        }
        let cut = |extent: u32| extent - extent % self.multiple;
        let (wide, high) = (cut(width), cut(height));
        ensure!(
            wide > 0 && high > 0,
            "clip {} is {width} x {height}, the model takes multiples of {}",
            self.path.display(),
            self.multiple
        );
        Ok(imageops::crop_imm(&frame, (width - wide) / 2, (height - high) / 2, wide, high).to_image())
    }
}

impl Chunk {
    /// `[1, 3, T, H, W]`, from -1 to 1.
    pub(crate) fn tensor(&self, device: &Device) -> Tensor<5> {
        let last = self.images.len() - 1;
        let images: Vec<&RgbImage> = (0..self.length).map(|frame| &self.images[frame.min(last)]).collect();
        to_tensor(&images, device)
    }
}

/// `[1, 3, T, H, W]` from -1 to 1 of frames of one size.
pub(crate) fn to_tensor(images: &[&RgbImage], device: &Device) -> Tensor<5> {
    let (width, height) = images[0].dimensions();
    let mut values = Vec::with_capacity(images.len() * (3 * width * height) as usize);
    for channel in 0..3 {
        for image in images {
            values.extend(image.pixels().map(|pixel| f32::from(pixel[channel]) / 127.5 - 1.0));
        }
    }
    let shape = [1, 3, images.len(), height as usize, width as usize];
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// The frames of `[1, 3, T, H, W]`.
pub(crate) fn to_images(frames: Tensor<5>) -> Result<Vec<RgbImage>> {
    let [_, _, count, height, width] = frames.dims();
    let values = frames.try_into_vec_as::<f32>().context("frames")?;
    let plane = height * width;
    let image = |frame: usize| {
        RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let pixel = y as usize * width + x as usize;
            image::Rgb([0, 1, 2].map(|channel| {
                let value = values[(channel * count + frame) * plane + pixel];
                ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8
            }))
        })
    };
    Ok((0..count).map(image).collect())
}

/// Where frames are written.
pub(crate) enum Writer {
    /// `00000.png` and so on in a folder.
    Folder { path: PathBuf, written: usize },
    /// An animated GIF.
    Gif { path: PathBuf, encoder: Box<GifEncoder<File>>, delay: Delay },
}

impl Writer {
    /// A GIF where the name ends in `.gif`, else an empty or new folder.
    pub(crate) fn create(path: &Path, frames_per_second: usize) -> Result<Self> {
        let failed = || format!("{} cannot be written", path.display());
        if has_extension(path, "gif") {
            let mut encoder = GifEncoder::new_with_speed(File::create(path).with_context(failed)?, 10);
            encoder.set_repeat(Repeat::Infinite).with_context(failed)?;
            let delay = Delay::from_numer_denom_ms(1000, frames_per_second as u32);
            return Ok(Self::Gif { path: path.to_owned(), encoder: Box::new(encoder), delay });
        }
        std::fs::create_dir_all(path).with_context(failed)?;
        let mut entries = std::fs::read_dir(path).with_context(failed)?;
        ensure!(entries.next().is_none(), "{} is not an empty folder", path.display());
        Ok(Self::Folder { path: path.to_owned(), written: 0 })
    }

    /// Appends a frame.
    pub(crate) fn push(&mut self, image: &RgbImage) -> Result<()> {
        match self {
            Self::Folder { path, written } => {
                let file = path.join(format!("{written:05}.png"));
                *written += 1;
                image.save(&file).with_context(|| format!("{} cannot be written", file.display()))
            }
            Self::Gif { path, encoder, delay } => {
                let image = DynamicImage::ImageRgb8(image.clone()).to_rgba8();
                encoder
                    .encode_frame(Frame::from_parts(image, 0, 0, *delay))
                    .with_context(|| format!("{} cannot be written", path.display()))
            }
        }
    }
}

#[cfg(test)]
#[path = "clip_tests.rs"]
mod tests;
