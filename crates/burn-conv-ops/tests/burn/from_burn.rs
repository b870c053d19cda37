//! Burn's own modules as this crate's: the same source, the same records, the same results.

use crate::support::{assert_close, normal, values};
use burn::module::Module;
use burn::nn::conv::{Conv1d, Conv1dConfig, Conv3d as BurnConv3d, Conv3dConfig as BurnConv3dConfig};
use burn::nn::{PaddingConfig1d, PaddingConfig3d};
use burn::store::ModuleRecord;
use burn::tensor::{Device, Tensor};
use burn_conv_ops::nn::{CausalConv1d, Conv3d, Conv3dConfig, Conv3dPadding};
use burn_conv_ops::{Activation, PaddingMode};

/// One model's source with the import of its layers as all that differs.
macro_rules! model {
    ($name:ident, $($import:ident)::+) => {
        mod $name {
            use burn::module::Module;
            use burn::nn::PaddingConfig3d;
            use burn::tensor::{Device, Tensor, activation::relu};
            use $($import)::+::{Conv3d, Conv3dConfig};

            #[derive(Module, Debug)]
            pub(super) struct Model {
                stem: Conv3d,
                grouped: Conv3d,
            }

            impl Model {
                pub(super) fn new(device: &Device) -> Self {
                    let stem = Conv3dConfig::new([2, 4], [1, 3, 3]).with_padding(PaddingConfig3d::Same);
                    let grouped = Conv3dConfig::new([4, 6], [3, 3, 3]).with_stride([1, 2, 2]).with_groups(2);
                    let grouped = grouped.with_padding(PaddingConfig3d::Explicit(1, 1, 1)).with_bias(false);
                    Self { stem: stem.init(device), grouped: grouped.with_dilation([1, 2, 1]).init(device) }
                }

                pub(super) fn forward(&self, x: Tensor<5>) -> Tensor<5> {
                    self.grouped.forward(relu(self.stem.forward(x)))
                }
            }
        }
    };
}

model!(with_burns_layers, burn::nn::conv);
model!(with_our_layers, burn_conv_ops::nn);

/// The record as it is read from a file.
fn stored<M: Module>(model: M) -> ModuleRecord {
    let bytes = model.into_record().into_bytes().expect("a record is writable");
    ModuleRecord::from_bytes(bytes).expect("what was written is readable")
}

#[test]
fn records_load_whichever_import_the_source_has() {
    let device = Device::flex();
    let (burns, ours) = (with_burns_layers::Model::new(&device), with_our_layers::Model::new(&device));
    let x = || normal(1, [2, 2, 3, 7, 8], &device);
    let results = [values(burns.forward(x())), values(ours.forward(x()))];
    assert_ne!(results[0], results[1], "fresh parameters are random");
    let record = stored(burns.clone());
    assert_eq!(record.len(), 3);
    let loaded = with_our_layers::Model::new(&device).load_record(record);
    assert_close("Burn's record", &values(loaded.forward(x())), &results[0], 1e-5);
    let loaded = burns.load_record(stored(ours));
    assert_close("this crate's record", &values(loaded.forward(x())), &results[1], 1e-5);
}

fn same(what: &str, burns: &BurnConv3d, ours: &Conv3d, device: &Device) {
    assert_eq!(ours.weight.id, burns.weight.id, "{what}");
    for [d, h, w] in [[5, 9, 7], [4, 8, 6], [7, 7, 9]] {
        let x = normal(1, [2, 4, d, h, w], device);
        let (got, want) = (ours.forward(x.clone()), burns.forward(x));
        assert_eq!(got.dims(), want.dims(), "{what}");
        assert_close(what, &values(got), &values(want), 1e-5);
    }
}

#[test]
fn conv3d_is_burns_and_back() {
    let device = Device::flex();
    let base = BurnConv3dConfig::new([4, 6], [3, 1, 5]);
    let padding = PaddingConfig3d::Explicit(2, 0, 1);
    let configs = [
        base.clone(),
        base.clone().with_groups(2).with_stride([1, 3, 2]).with_padding(padding).with_bias(false),
        base.clone().with_padding(PaddingConfig3d::Same),
        base.clone().with_padding(PaddingConfig3d::Same).with_dilation([1, 4, 1]),
        // Burn pads by 1 and 2, whatever the dilation.
        base.with_padding(PaddingConfig3d::Same).with_dilation([2, 1, 1]),
    ];
    for config in configs {
        let what = format!("{config}");
        let burns = config.init(&device);
        let ours = Conv3d::try_from(burns.clone()).expect("it can be had");
        same(&what, &burns, &ours, &device);
        let back = BurnConv3d::try_from(ours.clone()).expect("it can be had");
        same(&what, &back, &ours, &device);
    }
}

/// The sentence of the error.
fn refusal<T, U: TryFrom<T, Error = burn_conv_ops::ConvError>>(module: T) -> String {
    match U::try_from(module) {
        Ok(_) => panic!("it was taken"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_one_conv3d_lacks_is_an_error() {
    let device = Device::flex();
    let same = BurnConv3dConfig::new([2, 2], [3; 3]).with_padding(PaddingConfig3d::Same);
    let text = refusal::<_, Conv3d>(same.with_dilation([1, 2, 1]).with_stride([2, 1, 1]).init(&device));
    assert!(text.contains("the dilation [1, 2, 1]") && text.contains("the stride [2, 1, 1]"), "{text}");
    let base = Conv3dConfig::new([2, 2], [3, 2, 1]);
    for (config, part) in [
        (base.clone().with_activation(Activation::Silu), "activation, this one has Silu"),
        (base.clone().with_padding_mode(PaddingMode::Replicate), "padding mode, this one has Replicate"),
        (base.clone().with_padding([(2, 0), (0, 0), (0, 0)]), "this one has [(2, 0), (0, 0), (0, 0)]"),
        (base.with_padding(Conv3dPadding::Same), "Same padding of [3, 2, 1] taps"),
    ] {
        let text = refusal::<_, BurnConv3d>(config.init(&device));
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_depthwise_conv1d_is_causal_where_it_pads_so() {
    let device = Device::flex();
    let base = Conv1dConfig::new(3, 3, 4).with_groups(3);
    let x = || -> Tensor<3> { normal(1, [2, 3, 9], &device) };
    for behind in [0, 3] {
        let burns = base.clone().with_padding(PaddingConfig1d::Explicit(3, behind)).init(&device);
        let want = burns.forward(x()).narrow(2, 0, 9);
        let ours = CausalConv1d::try_from(burns).expect("it is causal");
        assert_close("y", &values(ours.forward(x())), &values(want), 1e-5);
    }
    let explicit = |before, behind| base.clone().with_padding(PaddingConfig1d::Explicit(before, behind));
    let refused: [(Conv1dConfig, &str); 7] = [
        (base.clone(), "pads 0 elements before and 0 behind"),
        (explicit(3, 1), "pads 3 elements before and 1 behind"),
        (explicit(2, 0), "a causal one of 4 taps 3 before"),
        (base.clone().with_padding(PaddingConfig1d::Same), "pads 1 elements before and 2 behind"),
        (explicit(3, 0).with_stride(2), "the stride 2 and the dilation 1"),
        (explicit(3, 0).with_dilation(2), "the stride 1 and the dilation 2"),
        (
            Conv1dConfig::new(4, 8, 4).with_groups(4).with_padding(PaddingConfig1d::Explicit(3, 0)),
            "4 input channels, 8 output channels and 4 groups",
        ),
    ];
    for (config, part) in refused {
        let text = refusal::<Conv1d, CausalConv1d>(config.init(&device));
        assert!(text.contains(part), "{text}");
    }
}
