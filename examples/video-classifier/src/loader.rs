//! Batches of clips for burn-train.

use std::sync::Arc;

use anyhow::Result;
use burn::tensor::{Device, Int, Tensor, TensorData};
use example_common::loader::EpochLoader;
use rayon::prelude::*;

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
        clips.par_iter().zip(values.par_chunks_exact_mut(self.shape.bytes())).for_each(|(clip, out)| {
            for (channel, plane) in out.chunks_exact_mut(frames * size * size).enumerate() {
                for (value, pixel) in plane.iter_mut().zip(clip.chunks_exact(3)) {
                    // Bytes to about -2..2: the mean and spread of natural images.
                    *value = (f32::from(pixel[channel]) / 255.0 - 0.5) * 4.0;
                }
            }
        });
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

/// Batches of `clips`, beginning with epoch `first_epoch`, at most `max_steps` steps per epoch. In each step
/// every one of `parts` devices has a batch of `batch_size`.
pub(crate) fn loader(
    clips: Arc<Clips>,
    (batch_size, parts): (usize, usize),
    seed: u64,
    first_epoch: usize,
    max_steps: Option<usize>,
) -> EpochLoader<ClipBatch> {
    let make = {
        let clips = clips.clone();
        move |_epoch, indices: &[usize], device: &Device| clips.batch(indices, device)
    };
    EpochLoader::new(clips.len(), "clips", batch_size, make)
        .shuffled(seed)
        .from_epoch(first_epoch)
        .at_most(max_steps.map_or(usize::MAX, |steps| steps.saturating_mul(parts)))
        .dealt(parts)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use burn::data::dataloader::DataLoader;

    pub(crate) fn clips(count: usize) -> Arc<Clips> {
        let shape = ClipShape { frames: 2, size: 1 };
        let clip = |i: usize| Clip { path: format!("{i}").into(), label: i };
        let pixels = (0..count).map(|i| vec![0, 51, 255, i as u8, 0, 0]).collect();
        Arc::new(Clips { clips: (0..count).map(clip).collect(), shape, pixels: Some(pixels) })
    }

    #[test]
    fn a_batch_holds_pixels_as_ncdhw() {
        let batch = clips(2).batch(&[0, 1], &Device::flex()).unwrap();
        assert_eq!(batch.clips.dims(), [2, 3, 2, 1, 1]);
        let values = batch.clips.try_into_vec_as::<f32>().unwrap();
        let expected = |byte: f32| (byte / 255.0 - 0.5) * 4.0;
        // Clip 0: red of both frames, green of both frames, blue of both frames; then clip 1.
        let bytes = [0.0, 0.0, 51.0, 0.0, 255.0, 0.0, 0.0, 1.0, 51.0, 0.0, 255.0, 0.0];
        assert_eq!(values, bytes.map(expected));
    }

    #[test]
    fn clips_too_large_for_memory_are_read_when_used_and_errors_name_the_file() {
        let shape = ClipShape { frames: 64, size: 1024 };
        let count = KEEP_BYTES / shape.bytes() + 1;
        let list = vec![Clip { path: "no/such/clip.gif".into(), label: 0 }; count];
        let clips = Clips::load(list, shape, || {}).unwrap();
        assert!(clips.read_from_disk());
        let loader = loader(Arc::new(clips), (2, 1), 1, 1, None);
        let error = loader.iter().next().unwrap().unwrap_err().to_string();
        assert!(error.contains("no/such/clip.gif"), "{error}");
    }
}
