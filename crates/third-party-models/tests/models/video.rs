//! V-JEPA 2.1 (burn_vjepa): clips through conv3d with windows of 2x16x16 pixels, images with windows of
//! 1x16x16, then transformers.

use crate::compare::{Expected, Subject, is_the_same};
use crate::support::{normal, owned};
use burn::tensor::{Device, Tensor, TensorData};
use burn_vjepa::{PatchEmbed3d, VJepa2_1Model, VJepaConfig, make_context_target_masks};

/// Of the crate's own tests: clips of 4 frames of 32x32 pixels.
fn config() -> VJepaConfig {
    VJepaConfig::tiny_for_tests()
}

/// The predictions of the hidden tokens of two clips, the encoder's tokens for them, and those of two images.
fn tokens(model: &VJepa2_1Model, seed: u64, device: &Device) -> [Tensor<3>; 3] {
    let clips = normal(seed, [2, 3, 4, 32, 32], device);
    let images = normal(seed + 100, [2, 3, 32, 32], device);
    let (shown, hidden) = make_context_target_masks(config().token_grid(), 0.5);
    let result = model.forward_sparse(clips, &shown, &hidden).expect("the masks are the grid's");
    [result.predictor.target_predictions, result.target.tokens, model.encode_image(images, None).tokens]
}

impl Subject for VJepa2_1Model {
    fn outputs(&self, seed: u64, device: &Device) -> Vec<TensorData> {
        tokens(self, seed, device).map(owned).into()
    }

    /// Predictions towards the encoder's tokens, which follow, and the images' tokens towards others.
    fn loss(&self, seed: u64, device: &Device) -> Tensor<1> {
        let [predicted, encoded, images] = tokens(self, seed, device);
        let others = normal(seed + 200, images.dims(), device);
        (predicted - encoded).square().mean() + (images - others).square().mean()
    }
}

pub(crate) fn v_jepa_is_the_same() {
    // The encoder sees the clips twice, the images once; nobody asks for the input's gradient.
    let expected = Expected { outputs: 3, step: 3 * 3, gelu: true };
    is_the_same("V-JEPA 2.1", |device| VJepa2_1Model::new(&config(), device), &expected);
}

impl Subject for PatchEmbed3d {
    fn outputs(&self, seed: u64, device: &Device) -> Vec<TensorData> {
        vec![owned(self.forward(normal(seed, [2, 3, 4, 32, 32], device)))]
    }

    fn loss(&self, seed: u64, device: &Device) -> Tensor<1> {
        self.forward(normal(seed, [2, 3, 4, 32, 32], device)).square().mean()
    }
}

/// The convolution alone, whose training Flex can tell.
pub(crate) fn v_jepas_patches_are_the_same() {
    // The width of V-JEPA 2.1's ViT-B.
    let expected = Expected { outputs: 1, step: 3, gelu: false };
    is_the_same("V-JEPA 2.1's patches", |device| PatchEmbed3d::new(3, 768, 16, 2, device), &expected);
}
