//! Devices, deterministic tensors, and comparison with the f64 references.

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_cubecl::{CubeDevice, cubecl::device::WgpuDeviceKind};
use conv_cases::fill;
use conv_kernels::Limits;
use conv_kernels::tolerance::Expected;
use std::sync::OnceLock;

/// The GPU device under test: the best there is, else the software rasterizer.
pub(crate) fn gpu() -> Device {
    static GPU: OnceLock<Option<Device>> = OnceLock::new();
    GPU.get_or_init(|| {
        let kinds = [WgpuDeviceKind::DefaultDevice, WgpuDeviceKind::Cpu];
        let device = kinds.into_iter().find_map(|kind| CubeDevice::wgpu(kind).ok())?;
        Some(Device::new(DispatchDevice::Cube(device)))
    })
    .clone()
    .unwrap_or_else(|| {
        panic!(
            "no GPU adapter was found: install a Vulkan driver (Debian and Ubuntu: `apt-get install \
             mesa-vulkan-drivers`, or run `cargo xtask test`, which does it)"
        )
    })
}

/// Every device the tests run on. Flex has no fusion layer: in a build without fusion the quick tier runs the
/// GPU only.
pub(crate) fn devices() -> Vec<(&'static str, Device)> {
    let mut devices = vec![("gpu", gpu())];
    if cfg!(feature = "fusion") || conv_testing::is_full() {
        devices.push(("flex", Device::flex()));
    }
    devices
}

/// [`devices`] with gradients, each without and with checkpointing.
pub(crate) fn tracking() -> Vec<(String, Device)> {
    devices()
        .into_iter()
        .flat_map(|(on, device)| {
            let plain = device.autodiff();
            let checkpointing = plain.clone().gradient_checkpointing();
            [(on.to_string(), plain), (format!("{on}, checkpointing"), checkpointing)]
        })
        .collect()
}

/// Loop iterations after which the device ends a thread's loops; none on Flex and where it does not.
pub(crate) fn loop_iterations(device: &Device) -> Option<usize> {
    match device.as_dispatch() {
        DispatchDevice::Cube(device) => Limits::of(&device.client()).loop_iterations,
        _ => None,
    }
}

/// N(0, 1) data of a seed.
pub(crate) fn normal<const D: usize>(seed: u64, shape: [usize; D], device: &Device) -> Tensor<D> {
    upload(&fill::normal(seed, shape.iter().product()), shape, device)
}

/// A tensor of these values in row-major order, f32.
pub(crate) fn upload<const D: usize>(values: &[f32], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (device, DType::F32))
}

/// A tensor of these integers in row-major order, in the device's own integer type.
pub(crate) fn int_upload<const D: usize>(
    values: &[i64],
    shape: [usize; D],
    device: &Device,
) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// The elements in row-major order.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    let data = tensor.into_data().convert::<f64>();
    data.try_to_vec::<f64>().expect("f64 after conversion")
}

/// The values' magnitudes.
pub(crate) fn absolute(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| value.abs()).collect()
}

/// The elements' bits in row-major order, for bitwise comparison. Halves are exact in f32.
pub(crate) fn bits<const D: usize>(tensor: Tensor<D>) -> Vec<u32> {
    let data = tensor.into_data().convert::<f32>();
    data.try_to_vec::<f32>().expect("f32 after conversion").into_iter().map(f32::to_bits).collect()
}

/// As the kernels' tests, with a name for the report.
pub(crate) fn check(what: &str, expected: &Expected, got: &[f64]) {
    if let Err(report) = expected.check(got, None) {
        panic!("{what}: {report}");
    }
}

/// Fails when an element is further than `tolerance` times the RMS of `want` from it.
pub(crate) fn assert_close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: number of elements");
    let rms = (want.iter().map(|value| value * value).sum::<f64>() / want.len().max(1) as f64).sqrt();
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got - want).abs();
        // NaN is an error too.
        assert!(error <= tolerance * (rms + want.abs()), "{what}: element {index} is {got}, expected {want}");
    }
}
