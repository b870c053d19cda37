//! Tests of the loss, the Dice coefficient and whole volumes.

use super::*;
use burn::data::dataloader::DataLoader;
use burn::module::Module;

/// Logits `[1, K, 1, 1, V]` or a truth of that shape, by class.
fn volume(rows: &[&[f32]]) -> Tensor<5> {
    let values: Vec<f32> = rows.concat();
    let flat = Tensor::<1>::from_floats(values.as_slice(), &Device::flex());
    flat.reshape([1, rows.len(), 1, 1, rows[0].len()])
}

fn loss(logits: Tensor<5>, truth: Tensor<5>) -> f32 {
    segmented(logits, truth).loss.into_scalar::<f32>()
}

#[test]
fn the_loss_is_cross_entropy_and_soft_dice() {
    let truth = volume(&[&[1.0, 0.0], &[0.0, 1.0]]);
    // Both voxels are given the parts 1/4 and 3/4.
    let logits = volume(&[&[0.0, 0.0], &[3f32.ln(), 3f32.ln()]]);
    let cross_entropy = -(0.25f32.ln() + 0.75f32.ln()) / 2.0;
    let dice = (2.0 * 0.75 + 1.0) / (1.5 + 1.0 + 1.0);
    assert!((loss(logits, truth.clone()) - (cross_entropy + 1.0 - dice)).abs() < 1e-5);
    let right = volume(&[&[50.0, 0.0], &[0.0, 50.0]]);
    assert!(loss(right.clone(), truth).abs() < 1e-5);
    let wrong = volume(&[&[0.0, 1.0], &[1.0, 0.0]]);
    assert!(loss(right, wrong) > 40.0);
}

#[test]
fn the_overlap_counts_voxels_by_class() {
    // Predicted: 0, 1, 2, 2; true: 0, 2, 2, 1.
    let logits = volume(&[&[3.0, 0.0, 0.0, -1.0], &[0.0, 2.0, 0.0, -2.0], &[0.0, 0.0, 1.0, 0.0], &[-9.0; 4]]);
    let truth = volume(&[&[1.0, 0.0, 0.0, 0.0], &[0.0, 0.0, 0.0, 1.0], &[0.0, 1.0, 1.0, 0.0], &[0.0; 4]]);
    let counted = Overlap::of(&[0, 1, 2, 2], &[0, 2, 2, 1], 4);
    assert_eq!(counted.0, [[1.0; 3], [0.0, 1.0, 1.0], [1.0, 2.0, 2.0], [0.0; 3]]);
    assert_eq!(counted.dice(), [Some(1.0), Some(0.0), Some(0.5), None]);

    let metadata = MetricMetadata {
        progress: burn::data::dataloader::Progress::new(1, 1, None),
        iteration: None,
        lr: None,
    };
    let mut metric = DiceMetric::new();
    metric.update(&segmented(logits, truth).overlap, &metadata).unwrap();
    assert_eq!(metric.batch, counted);
    assert_eq!(metric.running_value().unwrap().current(), 0.25, "the mean without background and absent");
    // A perfect batch: over both 2 * 3 of 8 voxels of class 2, none of class 1.
    let (right, truth) =
        (volume(&[&[0.0; 2], &[0.0; 2], &[9.0; 2]]), volume(&[&[0.0; 2], &[0.0; 2], &[1.0; 2]]));
    let line = metric.update(&segmented(right, truth).overlap, &metadata).unwrap();
    assert_eq!(metric.value().unwrap().current(), 1.0);
    assert_eq!(metric.final_value().current(), (0.0 + 0.75) / 2.0);
    assert_eq!(line.formatted, "epoch 0.375 - batch 1.000");
    metric.clear();
    assert!(metric.final_value().current().is_nan());
}

#[test]
fn a_few_steps_fit_one_volume_and_tiles_make_it_whole() {
    use burn::optim::{GradientsParams, ModuleOptimizer};
    // A bright box in one corner.
    let shape = [12, 10, 8];
    let classes: Vec<u8> =
        (0..960).map(|voxel| u8::from(voxel / 80 < 5 && voxel / 8 % 10 < 6 && voxel % 8 < 5)).collect();
    let image = classes.iter().map(|&class| f32::from(class) * 2.0 - 1.0).collect();
    let case = Case { name: "box".into(), shape, image, classes };

    let device = Device::flex().autodiff();
    device.seed(3);
    let mut network = UNet::new(4, 2, &device);
    let mut optimizer: ModuleOptimizer = AdamWConfig::new().init();
    let cases = Arc::new(vec![case.clone()]);
    let loader = crate::cubes::training_batches(cases, 2, 8, 1, 1).to_device(&device);
    let mut losses = Vec::new();
    for _ in 0..60 {
        let batch = loader.iter().next().unwrap().unwrap();
        let output = segmented(network.forward(batch.images), batch.truth);
        losses.push(output.loss.clone().into_scalar::<f32>());
        let gradients = GradientsParams::from_grads(output.loss.backward(), &network);
        network = optimizer.step(1e-2, network, gradients);
    }
    assert!(losses[59] < 0.5 * losses[0], "the loss does not fall: {losses:?}");
    let found = predict(&network.valid(), &case, 8, 2, &Device::flex()).unwrap();
    assert_eq!(found.len(), 960);
    let dice = Overlap::of(&found, &case.classes, 2).dice()[1].unwrap();
    assert!(dice > 0.8, "Dice {dice} after {losses:?}");
}
