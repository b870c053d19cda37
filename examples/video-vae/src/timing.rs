//! `time`: how long a model takes to decode a clip, with random weights and latents, and how much memory.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use clap::ValueEnum;

use crate::stream::Stream;
use crate::vae::{Config, Vae};
use crate::wan::WanConfig;

/// What is timed.
#[derive(Clone, Debug)]
pub(crate) struct Timing {
    /// Of the model; Wan 2.1 where absent.
    pub(crate) config: Option<PathBuf>,
    /// Height and width.
    pub(crate) size: [usize; 2],
    /// Frames at least.
    pub(crate) frames: usize,
    pub(crate) dtype: Storage,
    /// Latent frames per chunk.
    pub(crate) chunk: usize,
    /// Times that the clip is decoded after the first one.
    pub(crate) repeats: usize,
    /// Frames of a second of video.
    pub(crate) frames_per_second: usize,
}

/// The type of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Storage {
    F32,
    F16,
    Bf16,
}

impl Storage {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    fn burn(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::F16 => FloatDType::F16,
            Self::Bf16 => FloatDType::BF16,
        }
    }
}

/// Height and width, from `480x832`.
pub(crate) fn size(text: &str) -> Result<[usize; 2], String> {
    let wrong = || "it must be HEIGHTxWIDTH in pixels, such as 480x832".to_owned();
    let (height, width) = text.split_once('x').ok_or_else(wrong)?;
    let number = |text: &str| text.parse::<usize>().ok().filter(|pixels| (1..=16_384).contains(pixels));
    Ok([number(height).ok_or_else(wrong)?, number(width).ok_or_else(wrong)?])
}

/// What decoding a clip took.
struct Decoded {
    frames: usize,
    time: Duration,
    /// What each chunk but the first took; the last one is shorter where the chunks do not divide the clip.
    later_chunks: Vec<Duration>,
    /// Bytes that the layers kept between the last two chunks.
    kept: usize,
    /// Bytes that the device's allocator held at most behind a chunk, temporaries included, and those in use.
    memory: Option<[u64; 2]>,
}

/// Times the decoder and prints what it took.
pub(crate) fn run(timing: &Timing, mut device: Device) -> Result<()> {
    let config = match &timing.config {
        Some(path) => Config::read(path)?,
        None => Config::Wan(WanConfig::default()),
    };
    let (per_latent, pixels) = (config.frames_per_latent(), config.pixels_per_latent());
    let [height, width] = timing.size;
    ensure!(
        height % pixels == 0 && width % pixels == 0,
        "a latent of this model has {pixels}x{pixels} pixels, of which {height}x{width} is no multiple"
    );
    device.configure(timing.dtype.burn())?;
    let latents = 1 + (timing.frames - 1).div_ceil(per_latent);
    let vae = config.init(&device);
    let normal = Distribution::Normal(0.0, 1.0);
    let shape = [1, config.latent_channels(), latents, height / pixels, width / pixels];
    let clip = Tensor::<5>::random(shape, normal, &device);
    device.sync()?;

    println!(
        "Random weights and latents in {}: {latents} latent frames, {} at a time, of {height}x{width} pixels.",
        timing.dtype.name(),
        timing.chunk
    );
    let first = decode(&vae, &clip, timing.chunk, &device)?;
    println!("First decoding, kernels compiled and tuned on the way: {:.2} s.", first.time.as_secs_f64());
    // What tuning took is given back.
    device.memory_cleanup();
    let later: Vec<Decoded> =
        (0..timing.repeats).map(|_| decode(&vae, &clip, timing.chunk, &device)).collect::<Result<_>>()?;
    let mut times: Vec<Duration> = later.iter().map(|decoded| decoded.time).collect();
    times.sort();
    let median = times[times.len() / 2].as_secs_f64();
    let seconds = first.frames as f64 / timing.frames_per_second as f64;
    println!(
        "Then {median:.3} s (median of {}, from {:.3} to {:.3} s) for {} frames: {:.3} s per second of video at {} \
         frames/s.",
        times.len(),
        times[0].as_secs_f64(),
        times[times.len() - 1].as_secs_f64(),
        first.frames,
        median / seconds,
        timing.frames_per_second
    );
    let mut chunks: Vec<Duration> = later.iter().flat_map(|decoded| decoded.later_chunks.clone()).collect();
    chunks.sort();
    if let Some(chunk) = chunks.get(chunks.len() / 2) {
        println!("A chunk after the first one: {:.1} ms (median of {}).", ms(*chunk), chunks.len());
    }
    println!("The layers kept {:.1} MB between chunks.", first.kept as f64 / 1e6);
    let peak = |decoded: &[Decoded]| -> Option<[u64; 2]> {
        decoded.iter().filter_map(|decoded| decoded.memory).reduce(largest)
    };
    for (when, memory) in [("at first", first.memory), ("then", peak(&later))] {
        if let Some([reserved, used]) = memory {
            println!(
                "Device memory {when}: the allocator held {:.2} GB at most, of which {:.2} GB between chunks.",
                reserved as f64 / 1e9,
                used as f64 / 1e9
            );
        }
    }
    if let Some(bytes) = peak_of_the_process() {
        println!("Memory of the process at its peak: {:.2} GB.", bytes as f64 / 1e9);
    }
    Ok(())
}

/// Decodes a clip chunk by chunk. A chunk ends when its frames are in the device's memory.
fn decode(vae: &Vae, clip: &Tensor<5>, length: usize, device: &Device) -> Result<Decoded> {
    let latents = clip.dims()[2];
    let mut stream = Stream::default();
    let (mut frames, mut kept, mut times, mut memory) = (0, 0, Vec::new(), None);
    for first in (0..latents).step_by(length) {
        let started = Instant::now();
        let length = length.min(latents - first);
        let last = first + length == latents;
        stream.chunk(last);
        let decoded = vae.decode(clip.clone().narrow(2, first, length), &mut stream);
        device.sync()?;
        times.push(started.elapsed());
        let usage = device.memory_pool_usage().map(|usage| [usage.bytes_reserved, usage.bytes_in_use]);
        memory = [memory, usage].into_iter().flatten().reduce(largest);
        // The frames are alive until here: a fusing backend drops what nobody holds.
        frames += decoded.map_or(0, |frames| frames.dims()[2]);
        if !last {
            kept = stream.bytes();
        }
    }
    let time = times.iter().sum();
    Ok(Decoded { frames, time, later_chunks: times.split_off(1), kept, memory })
}

fn largest(a: [u64; 2], b: [u64; 2]) -> [u64; 2] {
    [a[0].max(b[0]), a[1].max(b[1])]
}

fn ms(time: Duration) -> f64 {
    1e3 * time.as_secs_f64()
}

/// The most memory that the process has held, where the system says so (Linux).
fn peak_of_the_process() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_height_and_width() {
        assert_eq!(size("480x832"), Ok([480, 832]));
        for wrong in ["480", "480x", "x832", "0x832", "480x832x3", "480X832", "99999x8"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
