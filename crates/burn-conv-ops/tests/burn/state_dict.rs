//! State dicts that PyTorch wrote (golden/state_dict.safetensors) load through burn-store, and the loaded
//! modules compute what PyTorch computed.

use crate::support::{assert_close, devices, upload, values};
use burn::module::Module;
use burn::store::{ModuleSnapshot, SafetensorsStore};
use burn::tensor::Device;
use burn_conv_ops::nn::{CausalConv1d, CausalConv1dConfig, Conv3d, Conv3dConfig};
use burn_conv_ops::{Activation, PaddingMode};
use safetensors::SafeTensors;
use std::path::PathBuf;

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden/state_dict.safetensors")
}

/// The layers of both models in the file, named as there.
#[derive(Module, Debug)]
struct Model {
    stem: Conv3d,
    grouped: Conv3d,
    depthwise: Conv3d,
    dilated: Conv3d,
    head: Conv3d,
    conv1d: CausalConv1d,
}

impl Model {
    fn new(device: &Device) -> Self {
        Self {
            stem: Conv3dConfig::new([3, 8], [3, 5, 5])
                .with_stride([1, 2, 2])
                .with_padding([1, 2, 2])
                .init(device),
            grouped: Conv3dConfig::new([8, 12], [3; 3])
                .with_padding([1; 3])
                .with_groups(4)
                .with_bias(false)
                .init(device),
            depthwise: Conv3dConfig::new([12, 12], [3; 3])
                .with_stride([2; 3])
                .with_padding([1; 3])
                .with_groups(12)
                .init(device),
            dilated: Conv3dConfig::new([12, 6], [3; 3])
                .with_padding([2; 3])
                .with_dilation([2; 3])
                .with_padding_mode(PaddingMode::Replicate)
                .init(device),
            head: Conv3dConfig::new([6, 5], [1; 3]).init(device),
            conv1d: CausalConv1dConfig::new(6, 4).init(device),
        }
    }
}

#[test]
fn a_pytorch_state_dict_loads_and_computes_the_same() {
    let bytes = std::fs::read(path()).unwrap_or_else(|error| panic!("{}: {error}", path().display()));
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let read = |name: &str| -> (Vec<f32>, Vec<usize>) {
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (chunks, rest) = tensor.data().as_chunks::<4>();
        assert!(rest.is_empty(), "{name}");
        (chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(), tensor.shape().to_vec())
    };
    for (on, device) in devices() {
        let mut model = Model::new(&device);
        let result = model.load_from(&mut SafetensorsStore::from_file(path())).expect("the state dict fits");
        assert!(result.is_success() && result.missing.is_empty(), "{on}: {result}");
        assert_eq!(result.applied.len(), 11, "{on}: {result}");

        let check = |name: &str, got: Vec<f64>| {
            let want: Vec<f64> = read(name).0.into_iter().map(f64::from).collect();
            assert_close(&format!("{on} {name}"), &got, &want, 1e-5);
        };
        let (clip, shape) = read("input.video");
        let shape: [usize; 5] = shape.try_into().expect("five axes");
        let mut value = upload(&clip, shape, &device);
        for (name, layer) in [
            ("stem", &model.stem),
            ("grouped", &model.grouped),
            ("depthwise", &model.depthwise),
            ("dilated", &model.dilated),
            ("head", &model.head),
        ] {
            value = layer.forward(value);
            check(&format!("output.{name}"), values(value.clone()));
        }

        let (sequence, shape) = read("input.conv1d");
        let shape: [usize; 3] = shape.try_into().expect("three axes");
        let sequence = upload(&sequence, shape, &device);
        check("output.conv1d", values(model.conv1d.forward(sequence.clone())));
        let silu = CausalConv1d { activation: Activation::Silu, ..model.conv1d };
        check("output.conv1d_silu", values(silu.forward(sequence)));
    }
}
