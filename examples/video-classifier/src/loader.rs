//! Batches of clips for burn-train.
//!
//! Burn's own shuffling loader draws its orders from one random stream, so a resumed run would see the orders
//! of its first epochs again. This one derives the order of an epoch from the seed and the number of the
//! epoch alone: a run that is interrupted and resumed sees exactly the batches it would have seen.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::data::{Clip, ClipShape, read_clips};

/// Decoded clips up to this many bytes are kept in memory; larger sets are decoded again for every batch.
const KEEP_BYTES: usize = 2 << 30;

/// A list of clips, decoded once where they fit in memory.
#[derive(Debug)]
pub(crate) struct Clips {
    clips: Vec<Clip>,
    shape: ClipShape,
    pixels: Option<Vec<Vec<u8>>>,
}

impl Clips {
    /// Decodes `clips` now, if together they are small enough to keep; `tick` is called after each.
    pub(crate) fn load(clips: Vec<Clip>, shape: ClipShape, tick: impl Fn() + Sync) -> Result<Self> {
        let keep = clips.len().saturating_mul(shape.bytes()) <= KEEP_BYTES;
        let pixels = if keep { Some(read_clips(&clips, shape, tick)?) } else { None };
        Ok(Self { clips, shape, pixels })
    }

    /// Number of clips.
    pub(crate) fn len(&self) -> usize {
        self.clips.len()
    }

    /// Whether the clips were too many to keep in memory.
    pub(crate) fn read_from_disk(&self) -> bool {
        self.pixels.is_none()
    }

    /// The clips of `indices` as one batch on `device`.
    fn batch(&self, indices: &[usize], device: &Device) -> Result<ClipBatch> {
        let read;
        let clips: Vec<&[u8]> = match &self.pixels {
            Some(pixels) => indices.iter().map(|&i| pixels[i].as_slice()).collect(),
            None => {
                let wanted: Vec<Clip> = indices.iter().map(|&i| self.clips[i].clone()).collect();
                read = read_clips(&wanted, self.shape, || {})?;
                read.iter().map(Vec::as_slice).collect()
            }
        };
        let ClipShape { frames, size } = self.shape;
        let mut values = vec![0.0f32; clips.len() * self.shape.bytes()];
        for (clip, out) in clips.iter().zip(values.chunks_exact_mut(self.shape.bytes())) {
            for (channel, plane) in out.chunks_exact_mut(frames * size * size).enumerate() {
                for (value, pixel) in plane.iter_mut().zip(clip.chunks_exact(3)) {
                    // Bytes to about -2..2: the mean and spread of natural images.
                    *value = (f32::from(pixel[channel]) / 255.0 - 0.5) * 4.0;
                }
            }
        }
        let labels: Vec<i32> = indices.iter().map(|&i| self.clips[i].label as i32).collect();
        Ok(ClipBatch {
            clips: Tensor::from_data(TensorData::new(values, [clips.len(), 3, frames, size, size]), device),
            labels: Tensor::from_data(TensorData::new(labels, [clips.len()]), device),
        })
    }
}

/// One batch.
#[derive(Clone, Debug)]
pub(crate) struct ClipBatch {
    /// `[N, 3, D, H, W]`, about -2..2.
    pub(crate) clips: Tensor<5>,
    /// `[N]`, index of the class.
    pub(crate) labels: Tensor<1, Int>,
}

/// A [`DataLoader`] over [`Clips`].
pub(crate) struct ClipLoader {
    clips: Arc<Clips>,
    range: Range<usize>,
    batch_size: usize,
    /// Seed of an order of its own for every epoch; `None` takes the clips as listed.
    shuffle: Option<u64>,
    /// Number of the epoch that the next call of `iter` serves.
    epoch: AtomicUsize,
    device: Device,
}

impl ClipLoader {
    /// A loader whose first pass is epoch `first_epoch`, over at most `max_batches` batches.
    pub(crate) fn new(
        clips: Arc<Clips>,
        batch_size: usize,
        shuffle: Option<u64>,
        first_epoch: usize,
        max_batches: Option<usize>,
    ) -> Self {
        let count = max_batches.map_or(clips.len(), |max| clips.len().min(max.saturating_mul(batch_size)));
        Self {
            range: 0..count,
            clips,
            batch_size,
            shuffle,
            epoch: AtomicUsize::new(first_epoch),
            device: Device::flex(),
        }
    }

    fn with(&self, range: Range<usize>, device: &Device) -> Arc<dyn DataLoader<ClipBatch>> {
        Arc::new(Self {
            clips: self.clips.clone(),
            range,
            batch_size: self.batch_size,
            shuffle: self.shuffle,
            epoch: AtomicUsize::new(self.epoch.load(Ordering::Relaxed)),
            device: device.clone(),
        })
    }

    /// The clips of one epoch in order.
    fn indices(&self, epoch: usize) -> Vec<usize> {
        let mut indices: Vec<usize> = (0..self.clips.len()).collect();
        if let Some(seed) = self.shuffle {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(epoch as u64);
            indices.shuffle(&mut rng);
        }
        indices[self.range.clone()].to_vec()
    }
}

impl DataLoader<ClipBatch> for ClipLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<ClipBatch> + 'a> {
        let epoch = self.epoch.fetch_add(1, Ordering::Relaxed);
        Box::new(ClipIterator { loader: self, indices: self.indices(epoch), served: 0 })
    }

    fn num_items(&self) -> usize {
        self.range.len()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<ClipBatch>> {
        self.with(self.range.clone(), device)
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<ClipBatch>> {
        self.with(self.range.start + start..self.range.start + end, &self.device)
    }
}

struct ClipIterator<'a> {
    loader: &'a ClipLoader,
    indices: Vec<usize>,
    served: usize,
}

impl Iterator for ClipIterator<'_> {
    type Item = std::result::Result<ClipBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.indices[self.served..];
        let batch = &rest[..rest.len().min(self.loader.batch_size)];
        if batch.is_empty() {
            return None;
        }
        self.served += batch.len();
        let batch = self.loader.clips.batch(batch, &self.loader.device);
        Some(batch.map_err(|error| DatasetError::new(std::io::Error::other(format!("{error:#}")))))
    }
}

impl DataLoaderIterator<ClipBatch> for ClipIterator<'_> {
    fn progress(&self) -> Progress {
        Progress::new(self.served, self.indices.len(), Some("clips".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clips(count: usize) -> Arc<Clips> {
        let shape = ClipShape { frames: 2, size: 1 };
        let clip = |i: usize| Clip { path: format!("{i}").into(), label: i };
        let pixels = (0..count).map(|i| vec![0, 51, 255, i as u8, 0, 0]).collect();
        Arc::new(Clips { clips: (0..count).map(clip).collect(), shape, pixels: Some(pixels) })
    }

    fn labels(loader: &ClipLoader) -> Vec<Vec<i32>> {
        let batches = loader.iter().map(|batch| batch.unwrap().labels.try_into_vec_as::<i32>().unwrap());
        batches.collect()
    }

    #[test]
    fn a_batch_holds_pixels_as_ncdhw() {
        let loader = ClipLoader::new(clips(2), 2, None, 1, None);
        let batch = loader.iter().next().unwrap().unwrap();
        assert_eq!(batch.clips.dims(), [2, 3, 2, 1, 1]);
        let values = batch.clips.try_into_vec_as::<f32>().unwrap();
        let expected = |byte: f32| (byte / 255.0 - 0.5) * 4.0;
        // Clip 0: red of both frames, green of both frames, blue of both frames; then clip 1.
        let bytes = [0.0, 0.0, 51.0, 0.0, 255.0, 0.0, 0.0, 1.0, 51.0, 0.0, 255.0, 0.0];
        assert_eq!(values, bytes.map(expected));
    }

    #[test]
    fn every_epoch_serves_every_clip_once_and_the_last_batch_is_short() {
        let loader = ClipLoader::new(clips(7), 3, Some(1), 1, None);
        for _ in 0..3 {
            let batches = labels(&loader);
            assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1]);
            let mut all = batches.concat();
            all.sort_unstable();
            assert_eq!(all, (0..7).collect::<Vec<i32>>());
        }
    }

    #[test]
    fn the_order_depends_on_seed_and_epoch_only() {
        let order = |seed, first_epoch| ClipLoader::new(clips(40), 40, Some(seed), first_epoch, None);
        let from_start = order(5, 1);
        let first = labels(&from_start);
        let second = labels(&from_start);
        assert_ne!(first, second);
        assert_eq!(labels(&order(5, 2)), second, "a run resumed at epoch 2 must see the order of epoch 2");
        assert_ne!(labels(&order(6, 1)), first);
    }

    #[test]
    fn a_limit_of_batches_still_draws_from_all_clips() {
        let loader = ClipLoader::new(clips(100), 4, Some(3), 1, Some(2));
        assert_eq!(loader.num_items(), 8);
        let seen = labels(&loader).concat();
        assert_eq!(seen.len(), 8);
        assert!(seen.iter().any(|&label| label >= 8), "only the first clips were drawn: {seen:?}");
    }

    #[test]
    fn clips_too_large_for_memory_are_read_when_used_and_errors_name_the_file() {
        let shape = ClipShape { frames: 64, size: 1024 };
        let count = KEEP_BYTES / shape.bytes() + 1;
        let list = vec![Clip { path: "no/such/clip.gif".into(), label: 0 }; count];
        let clips = Clips::load(list, shape, || {}).unwrap();
        assert!(clips.read_from_disk());
        let loader = ClipLoader::new(Arc::new(clips), 2, None, 1, None);
        let error = loader.iter().next().unwrap().unwrap_err().to_string();
        assert!(error.contains("no/such/clip.gif"), "{error}");
    }
}
