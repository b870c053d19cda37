//! Trials, devices, data, what launches and what is compared. Used by `crates/third-party-models` too.

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_conv_ops::patch::{Report, report};
use burn_conv_ops::{PatchOptions, patch, unpatch};
use burn_cubecl::{CubeDevice, cubecl::device::WgpuDeviceKind};
use conv_cases::fill;
use cubecl_runtime::logging::{LaunchObservation, LaunchObserver};
use libtest_mimic::{Arguments, Trial};
use std::sync::{Arc, Mutex, OnceLock};

/// A test by name.
pub(crate) fn trial((name, test): (&str, fn())) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// Runs the tests that the command line names, one after the other: what is counted is counted for the
/// process.
pub(crate) fn run_serially(trials: Vec<Trial>) -> ! {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit()
}

/// The GPU devices of this machine: the best there is, and the software rasterizer. On a machine without a
/// hardware GPU both are the rasterizer, as two devices.
pub(crate) fn cube_devices() -> Vec<CubeDevice> {
    let kinds = [WgpuDeviceKind::DefaultDevice, WgpuDeviceKind::Cpu];
    kinds.into_iter().filter_map(|kind| CubeDevice::wgpu(kind).ok()).collect()
}

/// The device of this project's tests: the best there is.
pub(crate) fn cube() -> CubeDevice {
    cube_devices()
        .into_iter()
        .next()
        .expect("no GPU adapter was found: install a Vulkan driver, or run `cargo xtask test`, which does it")
}

pub(crate) fn gpu() -> Device {
    static GPU: OnceLock<Device> = OnceLock::new();
    GPU.get_or_init(|| Device::new(DispatchDevice::Cube(cube()))).clone()
}

pub(crate) fn normal<const D: usize>(seed: u64, shape: [usize; D], device: &Device) -> Tensor<D> {
    let values = fill::normal(seed, shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

pub(crate) fn values(data: &TensorData) -> Vec<f64> {
    data.clone().convert::<f64>().try_to_vec::<f64>().expect("f64 after conversion")
}

/// The values, copied: where host and device share memory, what `into_data` gives is the tensor's buffer, and
/// an optimizer writes over it.
pub(crate) fn owned<const D: usize>(tensor: Tensor<D>) -> TensorData {
    let data = tensor.into_data();
    TensorData::new(values(&data), data.shape().clone())
}

/// Patches all kinds, or leaves all to Burn, from the next operation on.
pub(crate) fn set_patched(on: bool) {
    gpu().sync().expect("the device works");
    if on {
        patch(PatchOptions::all().with_device(gpu())).expect("this process is patched");
    } else {
        unpatch();
    }
}

/// What `run` gives and what was counted meanwhile.
pub(crate) fn counted<T>(run: impl FnOnce() -> T) -> (T, Report) {
    gpu().sync().expect("the device works");
    let before = report();
    let result = run();
    gpu().sync().expect("the device works");
    (result, report().since(&before))
}

/// Names of the kernels that were launched.
#[derive(Default)]
struct Launches(Mutex<Vec<&'static str>>);

impl LaunchObserver for Launches {
    fn launched(&self, kernel: &'static str) {
        self.0.lock().unwrap().push(kernel);
    }
}

/// What `run` gives and the names of the kernels that it launched.
pub(crate) fn launches<T>(run: impl FnOnce() -> T) -> (T, Vec<&'static str>) {
    gpu().sync().expect("the device works");
    let launches = Arc::new(Launches::default());
    let observation = LaunchObservation::new(launches.clone());
    let result = run();
    gpu().sync().expect("the device works");
    drop(observation);
    let names = std::mem::take(&mut *launches.0.lock().unwrap());
    (result, names)
}

/// Whether a kernel is this project's.
pub(crate) fn is_ours(kernel: &&'static str) -> bool {
    kernel.contains("conv_kernels")
}

/// The error of each element, over the sum of its size and the RMS of all. NaN where an element is not a
/// number, or infinite in both.
fn errors<'a>(got: &'a [f64], want: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
    let rms = (want.iter().map(|value| value * value).sum::<f64>() / want.len().max(1) as f64).sqrt();
    got.iter().zip(want).map(move |(got, want)| match (got - want).abs() {
        0.0 => 0.0,
        error => error / (rms + want.abs()),
    })
}

/// Fails when an element is further from `want` than `tolerance` times the sum of its size and the RMS.
pub(crate) fn assert_close(what: &str, got: &TensorData, want: &TensorData, tolerance: f64) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let (got, want) = (values(got), values(want));
    for (index, error) in errors(&got, &want).enumerate() {
        // NaN is an error too.
        let (got, want) = (got[index], want[index]);
        assert!(error <= tolerance, "{what}: element {index} is {got}, expected {want}");
    }
}

/// The largest error of an element in the units of `assert_close`; NaN where one is NaN.
pub(crate) fn difference(got: &TensorData, want: &TensorData) -> f64 {
    let larger = |most: f64, each: f64| if each > most || each.is_nan() { each } else { most };
    errors(&values(got), &values(want)).fold(0.0, larger)
}

/// Every convolution that Burn ran was served.
pub(crate) fn assert_all_served(what: &str, report: &Report, convolutions: u64) {
    assert_eq!(report.recorded(), convolutions, "{what}\n{report}");
    assert_eq!(report.served(), convolutions, "{what}\n{report}");
    assert_eq!((report.declined(), report.missed()), (0, 0), "{what}\n{report}");
}
