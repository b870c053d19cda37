//! ResNet-18's training steps.
//!
//! Its gradients are not continuous: where a ReLU's input is within rounding of zero, two runs differ in
//! whether it is open, and elements of their gradients by up to twice their size. Plain Burn does so when its
//! inputs move by one ulp. What a run is compared with therefore has that run's ReLUs and maxima:
//!
//! ```text
//! truth   Flex in f64 with the run's parameters and inputs, its ReLUs as masks, its maxima as indices
//! bound   SPREAD times the largest change of plain Burn's gradients, masks and indices fixed, when every
//!         input moves by one ulp
//! ```
//!
//! What is before a ReLU is continuous and is held to `TOLERANCE`, so masks differ from the truth's within
//! that alone. The bound is as wide as it is because batch normalization over the 16 elements of the last
//! blocks' channels amplifies rounding.

use crate::alike::{Named, TOLERANCE, backward};
use crate::compare::LEARNING_RATE;
use crate::support::{assert_all_served, assert_close, counted, difference, gpu, owned, set_patched, values};
use bunsen::blocks::conv::ConvBlock2d;
use bunsen::burner::module::ModuleInit;
use bunsen::kits::images::resnet::blocks::ResidualBlock;
use bunsen::kits::images::resnet::{ResNet, ResNetContractConfig};
use burn::module::{Module, ModuleMapper, Param};
use burn::nn::norm::Normalization;
use burn::optim::{ModuleOptimizer, SgdConfig};
use burn::tensor::activation::relu;
use burn::tensor::module::max_pool2d_with_indices;
use burn::tensor::ops::MaxPoolOptions;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use conv_cases::fill;

/// As many times the change by one ulp of the inputs may a gradient be from the truth: each of the 20 layers
/// rounds as much again, in either of the two that are compared.
const SPREAD: f64 = 4.0;
/// In the second, on lavapipe, one ReLU of the patched run and of two runs with moved inputs differs from
/// Burn's, the same in all.
const STEPS: u64 = 2;
const IMAGES: [usize; 4] = [4, 3, 64, 64];

/// What is before each ReLU, and which pixels are the largest.
#[derive(Default)]
struct Region {
    before: Vec<TensorData>,
    largest: Vec<i64>,
}

/// A forward pass that notes its region, with the ReLUs and maxima of another where there is one.
struct Pass<'a> {
    follows: Option<&'a Region>,
    own: Region,
}

impl Pass<'_> {
    fn relu(&mut self, x: Tensor<4>) -> Tensor<4> {
        let index = self.own.before.len();
        self.own.before.push(owned(x.clone().inner()));
        let Some(follows) = self.follows else { return relu(x) };
        let open =
            values(&follows.before[index]).iter().map(|value| f64::from(u8::from(*value > 0.0))).collect();
        x.clone() * Tensor::from_data(TensorData::new::<f64, _>(open, x.dims()), (&x.device(), x.dtype()))
    }

    /// The stem's pool: 3x3, stride 2.
    fn pool(&mut self, model: &ResNet, x: Tensor<4>) -> Tensor<4> {
        let options = MaxPoolOptions::new([3, 3]).with_stride([2, 2]).with_padding_pairs([(1, 1); 2]);
        let indices = max_pool2d_with_indices(x.clone().inner(), options).1.into_data();
        self.own.largest = indices.convert::<i64>().try_to_vec().expect("i64 after conversion");
        let pooled = model.input_pool.forward(x.clone());
        let Some(follows) = self.follows else { return pooled };
        let [n, c, h, w] = x.dims();
        let indices = TensorData::new(follows.largest.clone(), [n, c, h * w / 4]);
        let indices = Tensor::<3, Int>::from_data(indices, &x.device());
        let followed = x.reshape([n, c, h * w]).gather(2, indices).reshape([n, c, h / 2, w / 2]);
        assert_close("maxima", &owned(followed.clone().inner()), &owned(pooled.inner()), TOLERANCE);
        followed
    }

    fn normalized(block: &ConvBlock2d, x: Tensor<4>) -> Tensor<4> {
        let Some(Normalization::Batch(norm)) = &block.norm else { panic!("ResNet has batch normalization") };
        norm.forward(block.conv.forward(x))
    }

    /// What `ResNet::forward` computes.
    fn logits(&mut self, model: &ResNet, x: Tensor<4>) -> Tensor<2> {
        let stem = self.relu(Self::normalized(&model.input_cb, x));
        let mut x = self.pool(model, stem);
        for block in model.layers.iter().flat_map(|layer| &layer.blocks) {
            let ResidualBlock::Basic(block) = block else { panic!("ResNet-18 has basic blocks") };
            let shortcut = |x: Tensor<4>| match &block.downsample {
                Some(downsample) => Self::normalized(downsample, x),
                None => x,
            };
            let y = self.relu(Self::normalized(&block.cb1, x.clone()));
            x = self.relu(Self::normalized(&block.cb2, y) + shortcut(x));
        }
        model.output_fc.forward(model.output_pool.forward(x).flatten(1, 3))
    }
}

/// Copies parameters to a device in another type.
struct Copy<'a>(&'a Device, DType);

impl ModuleMapper for Copy<'_> {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = parameter.consume();
        let tracked = tensor.is_require_grad();
        let copy = Tensor::from_data(owned(tensor), (self.0, self.1)).set_require_grad(tracked);
        Param::from_mapped_value(id, copy, mapper)
    }
}

/// One step: loss and gradients, the region, and the trained model.
struct Step {
    results: Named,
    region: Region,
    trained: ResNet,
}

fn step(model: &ResNet, images: &[f32], device: &Device, dtype: DType, follows: Option<&Region>) -> Step {
    // Clones share running statistics, `valid` copies them.
    let model = model.valid().train().map(&mut Copy(device, dtype));
    let images = Tensor::from_data(TensorData::new(images.to_vec(), IMAGES), (device, dtype));
    let mut pass = Pass { follows, own: Region::default() };
    let logits = pass.logits(&model, images.clone());
    if follows.is_none() {
        // Bit by bit up to the fusion of what is read between.
        assert_close("logits", &owned(logits.clone().inner()), &owned(model.forward(images).inner()), 1e-5);
    }
    let (results, gradients) = backward(&model, (logits - 1.0).square().mean());
    let mut optimizer: ModuleOptimizer = SgdConfig::new().init();
    let trained = optimizer.step(LEARNING_RATE, model, gradients);
    Step { results, region: pass.own, trained }
}

/// The largest difference of any tensor, and its name.
fn largest(got: &Step, want: &Step) -> (f64, String) {
    assert_eq!(got.results.len(), want.results.len());
    let differences = got.results.iter().zip(&want.results);
    let differences = differences.map(|((name, got), (_, want))| (difference(got, want), name.clone()));
    differences.max_by(|(a, _), (b, _)| a.total_cmp(b)).expect("there are parameters")
}

/// Each number one ulp up or down.
fn moved(images: &[f32], seed: u64) -> Vec<f32> {
    let up = |index| fill::hash(seed, index) & 1 == 1;
    let moved =
        |(index, value): (usize, &f32)| if up(index as u64) { value.next_up() } else { value.next_down() };
    images.iter().enumerate().map(moved).collect()
}

/// Where the signs of what is before ReLUs differ.
fn switched(got: &Region, want: &Region) -> usize {
    let layers = got.before.iter().zip(&want.before);
    let differ = |(got, want): (&f64, &f64)| (*got > 0.0) != (*want > 0.0);
    layers.map(|(got, want)| values(got).iter().zip(&values(want)).filter(|pair| differ(*pair)).count()).sum()
}

pub(crate) fn resnet_18_trains_alike() {
    let (device, flex) = (gpu().autodiff(), Device::flex().autodiff());
    device.seed(1);
    let mut model = ResNetContractConfig::resnet18(10).init(&device);
    for seed in 0..STEPS {
        let images = fill::normal(seed, IMAGES.iter().product());
        let on_gpu = |images: &[f32], follows| step(&model, images, &device, DType::F32, follows);
        set_patched(false);
        let burns = on_gpu(&images, None);
        let spreads = (1..3).map(|each| {
            let images = moved(&images, 100 + each);
            let free = on_gpu(&images, None);
            let switches = switched(&free.region, &burns.region);
            println!("inputs moved, {switches} ReLUs switch: {:?} from Burn's", largest(&free, &burns));
            largest(&on_gpu(&images, Some(&burns.region)), &burns).0
        });
        let spread = spreads.fold(0.0, f64::max);
        set_patched(true);
        let (ours, report) = counted(|| on_gpu(&images, None));
        // Two forward passes, the input gradients without the stem's, the weight gradients.
        assert_all_served("ResNet-18, a step", &report, 2 * 20 + 19 + 20);
        let switches = switched(&ours.region, &burns.region);
        println!("step {}: {switches} ReLUs switch, {:?} from Burn's", seed + 1, largest(&ours, &burns));
        for (whose, run) in [("Burn's", &burns), ("ours", &ours)] {
            let truth = step(&model, &images, &flex, DType::F64, Some(&run.region));
            for (got, want) in run.region.before.iter().zip(&truth.region.before) {
                assert_close(&format!("{whose} before a ReLU"), got, want, TOLERANCE);
            }
            let (most, name) = largest(run, &truth);
            println!("{whose}: {most:.1e} from the truth ({name}), of {SPREAD} times {spread:.1e}");
            assert!(most <= SPREAD * spread, "{whose}: {name} is {most:.1e} from the truth");
        }
        model = burns.trained;
    }
}
