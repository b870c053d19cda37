//! Writing on: the prompt is read at once, then characters are drawn and decoded one by one.

use anyhow::{Context, Result};
use burn::tensor::{Device, Int, Tensor, TensorData};
use example_common::random::stream;
use rand::Rng;
use rand::distr::weighted::WeightedIndex;

use crate::model::MambaText;

/// How characters are drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampling {
    /// How many.
    pub(crate) characters: usize,
    /// Below 1 likely characters become likelier.
    pub(crate) temperature: f64,
    pub(crate) seed: u64,
}

/// The characters that follow `prompt`, which must not be empty.
pub(crate) fn generate(
    network: &MambaText,
    prompt: &[i32],
    sampling: Sampling,
    device: &Device,
) -> Result<Vec<i32>> {
    let read = Tensor::<2, Int>::from_data(TensorData::new(prompt.to_vec(), [1, prompt.len()]), device);
    let (logits, mut state) = network.forward(read, network.empty_state(1));
    let mut logits = logits.narrow(1, prompt.len() - 1, 1).squeeze_dim::<2>(1);
    let mut rng = stream(sampling.seed, 0);
    let mut written = Vec::with_capacity(sampling.characters);
    loop {
        let scores = logits.try_into_vec_as::<f32>().context("logits")?;
        written.push(draw(&scores, sampling.temperature, &mut rng)?);
        if written.len() >= sampling.characters {
            return Ok(written);
        }
        let last = Tensor::<1, Int>::from_ints([written[written.len() - 1]], device);
        (logits, state) = network.step(last, state);
    }
}

/// One character by the softmax of its score over the temperature.
fn draw(scores: &[f32], temperature: f64, rng: &mut impl Rng) -> Result<i32> {
    let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights = scores.iter().map(|score| (f64::from(score - best) / temperature).exp());
    let index = WeightedIndex::new(weights).context("the network's scores are not finite")?;
    Ok(rng.sample(index) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_softmax() {
        let mut rng = stream(1, 0);
        let mut share = |temperature| {
            let draws =
                (0..20_000).map(|_| draw(&[1.0, 2.0, f32::NEG_INFINITY], temperature, &mut rng).unwrap());
            let counts = draws.fold([0; 3], |mut counts: [u32; 3], index| {
                counts[index as usize] += 1;
                counts
            });
            assert_eq!(counts[2], 0);
            f64::from(counts[1]) / 20_000.0
        };
        // e / (1 + e), and e^2 / (1 + e^2) at half the temperature.
        assert!((share(1.0) - 0.7311).abs() < 0.015);
        assert!((share(0.5) - 0.8808).abs() < 0.015);
        assert!(draw(&[f32::NAN], 1.0, &mut rng).is_err());
    }

    #[test]
    fn the_same_seed_writes_the_same_text_and_another_one_does_not() {
        let device = Device::flex();
        device.seed(1);
        let network = MambaText::new(7, &device);
        let write = |seed| {
            let sampling = Sampling { characters: 30, temperature: 1.0, seed };
            generate(&network, &[1, 2, 3], sampling, &device).unwrap()
        };
        assert_eq!(write(1).len(), 30);
        assert_eq!(write(1), write(1));
        assert_ne!(write(1), write(2));
    }
}
