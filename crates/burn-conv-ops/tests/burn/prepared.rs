//! Filters that a [`Conv3d`] keeps from one call to the next: the same bits as without them, of the present
//! weight only, without gradients only, in no record.

use crate::support::{assert_close, bits, gpu, normal, values};
use burn::module::{Module, Param, Reparameterization, Reparameterizer};
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::store::ModuleSnapshot;
use burn::tensor::{DType, Device, Tensor};
use burn_conv_ops::nn::{Conv3d, Conv3dConfig};
use burn_conv_ops::{Activation, Algorithm, WinogradTile};

/// A layer that Winograd serves, with the same weights each time.
fn layer(device: &Device) -> Conv3d {
    let mut layer = Conv3dConfig::new([3, 5], [3; 3])
        .with_padding([1; 3])
        .with_activation(Activation::Relu)
        .with_algorithm(Algorithm::Winograd(WinogradTile::F4x4))
        .with_reuse_filters(true)
        .init(device);
    layer.weight = Param::from_tensor(normal(1, [5, 3, 3, 3, 3], device));
    layer.bias = Some(Param::from_tensor(normal(2, [5], device)));
    layer
}

fn clip(seed: u64, frames: usize, device: &Device) -> Tensor<5> {
    normal(seed, [1, 3, frames, 6, 7], device)
}

/// What the layer computes without kept filters.
fn unprepared(layer: &Conv3d, x: Tensor<5>) -> Vec<u32> {
    let layer = Conv3d { reuse_filters: false, ..layer.clone() };
    let y = bits(layer.forward(x));
    assert!(!layer.holds_filters());
    y
}

#[test]
fn calls_with_kept_filters_have_the_same_bits() {
    let device = gpu();
    let layer = layer(&device);
    assert!(!layer.holds_filters());
    for (seed, frames) in [(3, 1), (4, 2), (5, 1)] {
        let x = clip(seed, frames, &device);
        let expected = unprepared(&layer, x.clone());
        assert_eq!(bits(layer.forward(x)), expected, "{frames} frames");
        assert!(layer.holds_filters());
    }
    // From another thread too, where Burn gives the tensor another identity.
    let x = clip(6, 1, &device);
    let expected = unprepared(&layer, x.clone());
    std::thread::scope(|scope| {
        let other = scope.spawn(|| bits(layer.forward(x)));
        assert_eq!(other.join().expect("no panic"), expected);
    });
    layer.release_filters();
    assert!(!layer.holds_filters());
}

#[test]
fn half_weights_have_fp32_filters() {
    let device = gpu();
    let layer = layer(&device);
    let half = |tensor: Tensor<5>| tensor.cast(DType::F16);
    let layer = Conv3d {
        weight: layer.weight.map(half),
        bias: layer.bias.map(|b| b.map(|b| b.cast(DType::F16))),
        ..layer
    };
    let x = half(clip(3, 2, &device));
    let expected = unprepared(&layer, x.clone());
    for _ in 0..2 {
        assert_eq!(bits(layer.forward(x.clone())), expected);
    }
    assert!(layer.holds_filters());
}

/// Whatever changes the weight: the next result is that of the new one.
#[test]
fn a_changed_weight_has_new_filters() {
    let device = gpu();
    let x = clip(3, 1, &device);
    let changed = |what: &str, layer: &Conv3d, before: &[u32]| {
        assert!(!layer.holds_filters(), "{what}");
        let y = bits(layer.forward(x.clone()));
        assert!(y != before, "{what}");
        assert_eq!(y, unprepared(layer, x.clone()), "{what}");
        assert!(layer.holds_filters(), "{what}");
        y
    };
    let mut layer = layer(&device);
    let first = bits(layer.forward(x.clone()));

    layer.weight = Param::from_tensor(normal(7, [5, 3, 3, 3, 3], &device));
    let second = changed("an assignment", &layer, &first);

    let id = layer.weight.id;
    layer.weight = layer.weight.map(|weight| weight * 2.0);
    assert_eq!(layer.weight.id, id);
    let third = changed("the same parameter, mapped", &layer, &second);

    let other = self::layer(&device);
    let result = layer.apply(other.collect(None, None, false), None, None, false);
    assert_eq!(result.applied.len(), 2, "{result}");
    assert_eq!(changed("a record", &layer, &third), first);
}

/// A clone keeps its filters; a layer on another device has none until it is called there.
#[test]
fn copies_and_devices() {
    let device = gpu();
    let x = clip(3, 1, &device);
    let layer = layer(&device);
    let expected = bits(layer.forward(x.clone()));
    let mut copy = layer.clone();
    assert!(copy.holds_filters());
    copy.weight = Param::from_tensor(Tensor::zeros([5, 3, 3, 3, 3], &device));
    assert!(!copy.holds_filters() && layer.holds_filters());
    assert!(bits(copy.forward(x.clone())) != expected);
    assert_eq!(bits(layer.forward(x.clone())), expected);

    let cpu = Device::flex();
    let on_cpu = layer.clone().to_device(&cpu);
    let y = values(on_cpu.forward(clip(3, 1, &cpu)));
    assert!(!on_cpu.holds_filters(), "the CPU backend has no Winograd plan");
    let back = on_cpu.fork(&device);
    assert_eq!(bits(back.forward(x)), expected);
    assert!(back.holds_filters());
    assert_eq!(y.len(), expected.len());
}

/// Training knows no filters, and what it changes has new ones after it.
#[test]
fn training_is_unaffected() {
    let device = gpu().autodiff();
    let x = clip(3, 2, &device);
    let step = |layer: Conv3d| {
        let gradients = GradientsParams::from_grads(layer.forward(x.clone()).mean().backward(), &layer);
        assert!(!layer.holds_filters());
        let dw = gradients.get::<5>(layer.weight.id).expect("tracked");
        let mut optimizer: ModuleOptimizer = SgdConfig::new().init();
        (bits(dw), optimizer.step(10.0, layer, gradients))
    };
    let trained = layer(&device);
    let (expected_dw, expected) = step(Conv3d { reuse_filters: false, ..trained.clone() });
    let before = trained.valid();
    let plain = clip(3, 2, &gpu());
    let first = bits(before.forward(plain.clone()));
    assert!(before.holds_filters());
    // The layer goes on from evaluation to training and back.
    let (dw, after) = step(before.train());
    assert_eq!(dw, expected_dw);
    // A GPU's compiler may contract the optimizer's product and sum where Burn fuses them, and Burn does not
    // fuse the same call every time.
    let weight = |layer: &Conv3d| values(layer.weight.val().inner());
    assert_close("weight after the step", &weight(&after), &weight(&expected), 1e-6);
    let after = after.valid();
    assert!(!after.holds_filters());
    let second = bits(after.forward(plain.clone()));
    assert!(second != first);
    assert_eq!(second, unprepared(&after, plain));
}

#[test]
fn records_hold_parameters_only() {
    let device = gpu();
    let layer = layer(&device);
    let names = || -> Vec<String> {
        layer.collect(None, None, false).iter().map(|tensor| tensor.name.clone()).collect()
    };
    let before = names();
    layer.forward(clip(3, 1, &device));
    assert!(layer.holds_filters());
    assert_eq!((names(), before.len()), (before, 2));
    assert_eq!(layer.num_params(), 5 * 3 * 27 + 5);
}

/// `factor * weight` with a factor of its own.
#[derive(Module, Debug)]
struct Scaled {
    factor: Param<Tensor<1>>,
}

impl Reparameterization for Scaled {
    const NAME: &'static str = "scaled";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let factor = self.factor.val().reshape([1; D]);
        base * factor
    }
}

struct Scale(f32);

impl Reparameterizer for Scale {
    type Reparam = Scaled;

    fn reparameterize<const D: usize>(
        &mut self,
        _path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<Scaled>) {
        let factor = Tensor::from_floats([self.0], &param.base().device());
        (param, (D == 5).then(|| Scaled { factor: Param::from_tensor(factor) }))
    }
}

/// The factor may change while the stored weight stays.
#[test]
fn composed_weights_keep_no_filters() {
    let device = gpu();
    let x = clip(3, 1, &device);
    let plain = layer(&device);
    plain.forward(x.clone());
    let composed = plain.clone().apply_reparameterization(Scale(2.0));
    composed.release_filters();
    let y = bits(composed.forward(x.clone()));
    assert_eq!(y, unprepared(&composed, x.clone()));
    assert!(y != bits(plain.forward(x)));
    assert!(!composed.holds_filters() && plain.holds_filters());
}

/// Whichever of the three tensors is on a device with gradients: an ordinary tracked call, no filters.
#[test]
fn one_tensor_with_gradients_makes_an_ordinary_call() {
    let (plain, tracking) = (gpu(), gpu().autodiff());
    let want = unprepared(&layer(&plain), clip(3, 1, &plain));
    for place in 1..8 {
        let device = |bit: usize| if place >> bit & 1 == 1 { &tracking } else { &plain };
        let (mut mixed, biases) = (layer(device(1)), layer(device(2)));
        mixed.bias = biases.bias;
        let x = clip(3, 1, device(0));
        let y = mixed.try_forward(x.clone()).expect("served");
        assert_eq!(bits(y.clone().inner()), want, "{place}");
        assert_eq!(bits(mixed.forward(x.clone()).inner()), want, "{place}");
        assert!(!mixed.holds_filters(), "{place}");
        let x = if place & 1 == 1 { x.require_grad() } else { x };
        let grads = mixed.forward(x.clone()).mean().backward();
        let weight = (place >> 1 & 1 == 1).then(|| mixed.weight.val().grad(&grads)).flatten();
        assert_eq!(weight.is_some(), place >> 1 & 1 == 1, "{place}");
        if place & 1 == 1 {
            assert!(x.grad(&grads).is_some(), "{place}");
        }
    }
}
