//! The text: its characters as numbers, and batches of windows.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, Int, Tensor, TensorData};
use example_common::loader::EpochLoader;
use example_common::random::stream;
use rand::Rng;

/// The documentation of this workspace, what is learned where no text is given.
const DOCUMENTATION: [&str; 3] = [
    include_str!("../../../README.md"),
    include_str!("../../../ARCHITECTURE.md"),
    include_str!("../../../CHANGELOG.md"),
];

/// Reads the user's text, or the documentation.
pub(crate) fn read(path: Option<&Path>) -> Result<String> {
    let Some(path) = path else { return Ok(DOCUMENTATION.join("\n")) };
    let bytes = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8 text", path.display()))
}

/// A text as numbers: first what is learned, then the last tenth, which is held out.
#[derive(Debug)]
pub(crate) struct Text {
    /// Every different character, in order.
    pub(crate) vocabulary: Vec<char>,
    /// The text as indices into the vocabulary.
    pub(crate) characters: Vec<i32>,
    /// Where the held-out part begins.
    pub(crate) held_out: usize,
}

impl Text {
    /// Numbers the characters of `text` and holds out its end. Both parts must hold a window of `length`
    /// characters and the one after it.
    pub(crate) fn new(text: &str, length: usize) -> Result<Self> {
        let distinct: BTreeSet<char> = text.chars().collect();
        let vocabulary: Vec<char> = distinct.into_iter().collect();
        let characters = encode(&vocabulary, text)?;
        let held_out = characters.len() - (characters.len() / 10).max(length + 1).min(characters.len());
        ensure!(
            held_out > length,
            "the text has {} characters, at least {} are needed: {} to learn from and as many to hold out",
            characters.len(),
            2 * (length + 1),
            length + 1
        );
        Ok(Self { vocabulary, characters, held_out })
    }

    /// The loss on the held-out part, in nats per character, of knowing nothing but how often each character
    /// occurs in the part to learn from. Each is counted once more than it occurs, so that none is
    /// impossible.
    pub(crate) fn frequency_loss(&self) -> f64 {
        let mut counts = vec![1.0f64; self.vocabulary.len()];
        for &character in &self.characters[..self.held_out] {
            counts[character as usize] += 1.0;
        }
        let total: f64 = counts.iter().sum();
        let losses =
            self.characters[self.held_out..].iter().map(|&next| (total / counts[next as usize]).ln());
        losses.sum::<f64>() / self.tail().len() as f64
    }

    /// The held-out part.
    fn tail(&self) -> Range<usize> {
        self.held_out..self.characters.len()
    }

    /// The windows that begin at `starts`, as a batch.
    fn batch(&self, starts: &[usize], length: usize, device: &Device) -> TextBatch {
        let windows = |shift: usize| {
            let values: Vec<i32> = starts
                .iter()
                .flat_map(|start| &self.characters[start + shift..start + shift + length])
                .copied()
                .collect();
            Tensor::from_data(TensorData::new(values, [starts.len(), length]), device)
        };
        TextBatch { characters: windows(0), next: windows(1) }
    }
}

/// The text as indices into the vocabulary.
pub(crate) fn encode(vocabulary: &[char], text: &str) -> Result<Vec<i32>> {
    let index = |character: char| {
        let found = vocabulary.binary_search(&character).ok();
        found.map(|index| index as i32).with_context(|| format!("{character:?} does not occur in the text"))
    };
    text.chars().map(index).collect()
}

/// The indices as text.
pub(crate) fn decode(vocabulary: &[char], characters: &[i32]) -> String {
    characters.iter().map(|&index| vocabulary[index as usize]).collect()
}

/// Windows and, shifted by one, the characters to predict.
#[derive(Clone, Debug)]
pub(crate) struct TextBatch {
    /// `[B, T]`
    pub(crate) characters: Tensor<2, Int>,
    /// `[B, T]`
    pub(crate) next: Tensor<2, Int>,
}

/// `steps` batches per epoch of windows that begin anywhere in the part to learn from, drawn anew in every
/// epoch.
pub(crate) fn training_windows(
    text: Arc<Text>,
    length: usize,
    batch_size: usize,
    steps: usize,
    seed: u64,
) -> EpochLoader<TextBatch> {
    let windows = steps * batch_size;
    EpochLoader::new(windows, "windows", batch_size, move |epoch, items, device| {
        let start = |item: &usize| {
            // One stream per window: the draw depends on the seed, the epoch and the item alone.
            stream(seed, epoch * windows + item).random_range(0..text.held_out - length)
        };
        let starts: Vec<usize> = items.iter().map(start).collect();
        Ok(text.batch(&starts, length, device))
    })
}

/// The held-out part, cut into windows.
pub(crate) fn held_out_windows(text: Arc<Text>, length: usize, batch_size: usize) -> EpochLoader<TextBatch> {
    let tail = text.tail();
    let windows = (tail.len() - 1) / length;
    EpochLoader::new(windows, "windows", batch_size, move |_, items, device| {
        let starts: Vec<usize> = items.iter().map(|item| tail.start + item * length).collect();
        Ok(text.batch(&starts, length, device))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::data::dataloader::DataLoader;

    const ALPHABET: &str = "abcdefghijklmnopqrstuvwxyz";

    fn windows(loader: &EpochLoader<TextBatch>) -> Vec<Vec<i32>> {
        let values = |tensor: Tensor<2, Int>| tensor.try_into_vec_as::<i32>().unwrap();
        loader
            .iter()
            .flat_map(|batch| {
                let batch = batch.unwrap();
                let [count, length] = batch.characters.dims();
                let (characters, next) = (values(batch.characters), values(batch.next));
                for row in 0..count {
                    let row = row * length..(row + 1) * length;
                    assert_eq!(characters[row.clone()][1..], next[row][..length - 1]);
                }
                characters.chunks(length).map(<[i32]>::to_vec).collect::<Vec<_>>()
            })
            .collect()
    }

    #[test]
    fn characters_survive_the_numbers() {
        let text = Text::new("naïve 😀 naïve 😀", 3).unwrap();
        assert_eq!(decode(&text.vocabulary, &text.characters), "naïve 😀 naïve 😀");
        assert_eq!(text.vocabulary.len(), 7);
        let error = encode(&text.vocabulary, "x").unwrap_err().to_string();
        assert_eq!(error, "'x' does not occur in the text");
    }

    #[test]
    fn training_never_sees_the_held_out_part_and_epochs_differ() {
        let text = Arc::new(Text::new(ALPHABET, 4).unwrap());
        assert_eq!(text.held_out, 21);
        let training = training_windows(text.clone(), 4, 8, 25, 1);
        let first = windows(&training);
        assert_eq!(first.len(), 200);
        assert!(first.iter().flatten().all(|&character| character <= 19));
        assert!(first.iter().any(|window| window[0] == 0) && first.iter().any(|window| window[3] == 19));
        assert_ne!(windows(&training), first);
        assert_eq!(windows(&held_out_windows(text, 4, 8)), [[21, 22, 23, 24]]);
    }

    #[test]
    fn the_frequency_loss_is_that_of_the_counts() {
        // a occurs 5 and b 3 times, the held-out part is a b: of 10 counts, 6 and 4.
        let text = Text::new("aaaaabbbab", 1).unwrap();
        assert_eq!(text.held_out, 8);
        let expected = ((10.0f64 / 6.0).ln() + (10.0f64 / 4.0).ln()) / 2.0;
        assert!((text.frequency_loss() - expected).abs() < 1e-12);
    }

    #[test]
    fn a_short_text_is_refused_with_the_numbers() {
        let error = Text::new("too short", 4).unwrap_err().to_string();
        assert_eq!(
            error,
            "the text has 9 characters, at least 10 are needed: 5 to learn from and as many to hold out"
        );
        Text::new("long enough", 4).unwrap();
    }
}
