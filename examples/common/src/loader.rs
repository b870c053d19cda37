//! Batches for burn-train in an order that depends on the seed and the number of the epoch alone.
//!
//! Burn's own shuffling loader draws its orders from one random stream, so a resumed run would see the orders
//! of its first epochs again. With this one a run that is interrupted and resumed sees exactly the batches it
//! would have seen.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::Device;
use rand::seq::SliceRandom;

use crate::random::stream;

/// Makes the batch of these items in this epoch on a device.
type MakeBatch<B> = dyn Fn(usize, &[usize], &Device) -> Result<B> + Send + Sync;

/// A [`DataLoader`] over items that have nothing but a number.
pub struct EpochLoader<B> {
    items: usize,
    /// What progress calls the items.
    unit: &'static str,
    /// Items of an epoch's order that are served in all.
    served: usize,
    /// Devices that an epoch is dealt to.
    parts: usize,
    /// Which part of the dealt order is served here.
    range: Range<usize>,
    batch_size: usize,
    shuffle: Option<u64>,
    /// Number of the epoch that the next call of `iter` serves.
    epoch: AtomicUsize,
    device: Device,
    make: Arc<MakeBatch<B>>,
}

impl<B> EpochLoader<B> {
    /// Batches of `items` items, which progress calls `unit`. `make` gets the epoch, the items of a batch and
    /// the device.
    pub fn new(
        items: usize,
        unit: &'static str,
        batch_size: usize,
        make: impl Fn(usize, &[usize], &Device) -> Result<B> + Send + Sync + 'static,
    ) -> Self {
        Self {
            items,
            unit,
            served: items,
            parts: 1,
            range: 0..items,
            batch_size,
            shuffle: None,
            epoch: AtomicUsize::new(1),
            device: Device::flex(),
            make: Arc::new(make),
        }
    }

    /// Gives every epoch an order of its own, all from one seed.
    #[must_use]
    pub fn shuffled(self, seed: u64) -> Self {
        Self { shuffle: Some(seed), ..self }
    }

    /// Serves at most this many batches per epoch.
    #[must_use]
    pub fn at_most(self, batches: usize) -> Self {
        let served = self.items.min(batches.saturating_mul(self.batch_size));
        Self { served, range: 0..served, ..self }
    }

    /// Deals batches to `parts` devices in turn, so that in each step all of them have one, and equally many
    /// items: what does not divide evenly is left out of the epoch. Burn gives each device a contiguous
    /// slice.
    #[must_use]
    pub fn dealt(self, parts: usize) -> Self {
        let served = self.served - self.served % parts;
        Self { served, parts, range: 0..served, ..self }
    }

    /// Begins with another epoch than the first.
    #[must_use]
    pub fn from_epoch(self, epoch: usize) -> Self {
        Self { epoch: AtomicUsize::new(epoch), ..self }
    }

    /// Batches per epoch.
    #[must_use]
    pub fn batches(&self) -> usize {
        self.range.len().div_ceil(self.batch_size)
    }

    /// The items of one epoch in order.
    fn order(&self, epoch: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.items).collect();
        if let Some(seed) = self.shuffle {
            order.shuffle(&mut stream(seed, epoch));
        }
        order.truncate(self.served);
        let share = self.served / self.parts;
        let mut dealt = Vec::with_capacity(self.served);
        for part in 0..self.parts {
            for start in (0..share).step_by(self.batch_size) {
                let size = self.batch_size.min(share - start);
                let place = start * self.parts + part * size;
                dealt.extend_from_slice(&order[place..place + size]);
            }
        }
        dealt[self.range.clone()].to_vec()
    }
}

impl<B: 'static> EpochLoader<B> {
    fn with(&self, range: Range<usize>, device: &Device) -> Arc<dyn DataLoader<B>> {
        Arc::new(Self {
            items: self.items,
            unit: self.unit,
            served: self.served,
            parts: self.parts,
            range,
            batch_size: self.batch_size,
            shuffle: self.shuffle,
            epoch: AtomicUsize::new(self.epoch.load(Ordering::Relaxed)),
            device: device.clone(),
            make: self.make.clone(),
        })
    }
}

impl<B: 'static> DataLoader<B> for EpochLoader<B> {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<B> + 'a> {
        let epoch = self.epoch.fetch_add(1, Ordering::Relaxed);
        Box::new(EpochIterator { loader: self, epoch, order: self.order(epoch), served: 0 })
    }

    fn num_items(&self) -> usize {
        self.range.len()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<B>> {
        self.with(self.range.clone(), device)
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<B>> {
        self.with(self.range.start + start..self.range.start + end, &self.device)
    }
}

struct EpochIterator<'a, B> {
    loader: &'a EpochLoader<B>,
    epoch: usize,
    order: Vec<usize>,
    served: usize,
}

impl<B> Iterator for EpochIterator<'_, B> {
    type Item = std::result::Result<B, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.order[self.served..];
        let items = &rest[..rest.len().min(self.loader.batch_size)];
        if items.is_empty() {
            return None;
        }
        self.served += items.len();
        let batch = (self.loader.make)(self.epoch, items, &self.loader.device);
        Some(batch.map_err(|error| DatasetError::new(std::io::Error::other(format!("{error:#}")))))
    }
}

impl<B> DataLoaderIterator<B> for EpochIterator<'_, B> {
    fn progress(&self) -> Progress {
        Progress::new(self.served, self.order.len(), Some(self.loader.unit.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loader whose batches are the items themselves.
    fn loader(items: usize, batch_size: usize) -> EpochLoader<Vec<usize>> {
        EpochLoader::new(items, "items", batch_size, |_, items, _| Ok(items.to_vec()))
    }

    fn batches(loader: &EpochLoader<Vec<usize>>) -> Vec<Vec<usize>> {
        loader.iter().map(Result::unwrap).collect()
    }

    #[test]
    fn every_epoch_serves_every_item_once_and_the_last_batch_is_short() {
        let loader = loader(7, 3).shuffled(1);
        assert_eq!(loader.batches(), 3);
        for _ in 0..3 {
            let batches = batches(&loader);
            assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1]);
            let mut all = batches.concat();
            all.sort_unstable();
            assert_eq!(all, (0..7).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_order_depends_on_seed_and_epoch_only() {
        let order = |seed, epoch| loader(40, 40).shuffled(seed).from_epoch(epoch);
        let from_start = order(5, 1);
        let first = batches(&from_start);
        let second = batches(&from_start);
        assert_ne!(first, second);
        assert_eq!(batches(&order(5, 2)), second, "a run resumed at epoch 2 must see the order of epoch 2");
        assert_ne!(batches(&order(6, 1)), first);
    }

    #[test]
    fn a_limit_of_batches_still_draws_from_all_items() {
        let loader = loader(100, 4).shuffled(3).at_most(2);
        assert_eq!((loader.num_items(), loader.batches()), (8, 2));
        let seen = batches(&loader).concat();
        assert_eq!(seen.len(), 8);
        assert!(seen.iter().any(|&item| item >= 8), "only the first items were drawn: {seen:?}");
    }

    #[test]
    fn parts_take_batches_in_turn() {
        // Batches of 2 for 2 parts: 0 1 | 2 3, 4 5 | 6 7, 8 | 9; the eleventh item is left out.
        let loader = loader(11, 2).dealt(2);
        assert_eq!(loader.num_items(), 10);
        let part = |start| -> Vec<_> { loader.slice(start, start + 5).iter().map(Result::unwrap).collect() };
        assert_eq!(part(0), [vec![0, 1], vec![4, 5], vec![8]]);
        assert_eq!(part(5), [vec![2, 3], vec![6, 7], vec![9]]);
    }

    #[test]
    fn a_batch_knows_its_epoch_and_a_slice_its_part() {
        let loader =
            EpochLoader::new(4, "items", 2, |epoch, items, _| Ok((epoch, items.to_vec()))).from_epoch(6);
        let of_slice: Vec<_> = loader.slice(1, 4).iter().map(Result::unwrap).collect();
        assert_eq!(of_slice, [(6, vec![1, 2]), (6, vec![3])]);
        loader.iter().for_each(drop);
        assert_eq!(loader.iter().next().unwrap().unwrap().0, 7);
    }
}
