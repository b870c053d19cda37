//! The devices that problems run on, and the limits of smaller devices to impose on them.

use anyhow::{Result, anyhow};
use clap::ValueEnum;
use conv_kernels::{FloatType, Limits};
use cubecl::prelude::*;
use msl_host::Recorder;

/// Which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The emitted Metal text, executed on this CPU.
    Metal,
    /// A software adapter through wgpu (lavapipe).
    Software,
    /// The best adapter there is: through SPIR-V in a build with the feature `vulkan`, else as wgpu's
    /// default.
    Vulkan,
}

/// An opened device.
pub struct Device {
    /// Its name in reports.
    pub name: &'static str,
    /// Its client.
    pub client: Client,
    /// Its limits.
    pub limits: Limits,
    recorder: Option<Recorder>,
}

impl Device {
    /// Opens a device.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn open(kind: Kind) -> Result<Self> {
        use cubecl::device::WgpuDeviceKind::{Cpu, DefaultDevice};
        if kind == Kind::Metal {
            let recorder = Recorder::executing();
            let client = recorder.client().clone();
            let limits = Limits::of(&client);
            return Ok(Self { name: "metal", client, limits, recorder: Some(recorder) });
        }
        #[cfg(feature = "vulkan")]
        let open = cubecl::Device::vulkan;
        #[cfg(not(feature = "vulkan"))]
        let open = cubecl::Device::wgpu;
        let (name, adapter) =
            if kind == Kind::Software { ("software", Cpu) } else { ("vulkan", DefaultDevice) };
        let device = open(adapter).map_err(|error| anyhow!("there is no {name} adapter ({error})"))?;
        let client = device.client();
        let limits = Limits::of(&client);
        Ok(Self { name, client, limits, recorder: None })
    }

    /// Multiply-accumulates that a plan may execute in one case: more would take seconds.
    pub fn most_work(&self) -> usize {
        match self.name {
            "metal" => 400_000,
            "software" => 8_000_000,
            _ => 2_000_000_000,
        }
    }

    /// Clears the record of launches.
    pub fn forget(&self) {
        if let Some(recorder) = &self.recorder {
            let _ = self.client.flush();
            recorder.log().launches.clear();
        }
    }

    /// A launch since [`forget`](Self::forget) that exceeds `limits`, if the device keeps a record.
    pub fn over(&self, limits: &Limits) -> Option<String> {
        let recorder = self.recorder.as_ref()?;
        let _ = self.client.flush();
        let log = recorder.log();
        for launch in &log.launches {
            let kernel = &log.kernels[launch.kernel];
            let Ok(lowered) = &kernel.lowered else { continue };
            let name = kernel.id.short_name();
            let (bytes, threads) = (lowered.facts.threadgroup_bytes, lowered.thread_count());
            if bytes > limits.shared_bytes {
                return Some(format!(
                    "{name} takes {bytes} bytes of threadgroup memory, the device has {}",
                    limits.shared_bytes
                ));
            }
            if threads > u64::from(limits.units_per_cube) {
                return Some(format!(
                    "{name} takes {threads} threads, the device has {}",
                    limits.units_per_cube
                ));
            }
            let bindings = lowered.facts.bindings;
            if bindings > limits.bindings {
                return Some(format!("{name} binds {bindings} buffers, the device has {}", limits.bindings));
            }
            if let Some(bytes) = launch.buffers.iter().find(|bytes| **bytes > limits.buffer_bytes) {
                return Some(format!(
                    "{name} binds {bytes} bytes, the device has buffers of {}",
                    limits.buffer_bytes
                ));
            }
        }
        None
    }
}

/// Classes of limits: the device's own; 16 KiB of threadgroup memory and 256 threads; no matrix units; little
/// workspace; small dispatches; one threadgroup fills the device; thousands do; no buffer much larger than
/// the tensors; short loops only; 64-bit offsets from 20 elements on; no 16-bit pairs in 32-bit words; no
/// f16; 8 buffer bindings; buffers of 128 MiB; what WebGPU promises, which is both of these and little
/// threadgroup memory, few threads, 32-bit offsets and no matrix units.
pub const CLASSES: &[&str] = &[
    "device",
    "small",
    "no_matrices",
    "workspace",
    "dispatches",
    "one_in_flight",
    "many_in_flight",
    "buffers",
    "turns",
    "wide",
    "no_words",
    "no_f16",
    "bindings",
    "mib_128",
    "webgpu",
];

/// Buffers that a kernel may bind by WebGPU's default limits.
const WEBGPU_BINDINGS: usize = 8;

/// Bytes of a buffer that a kernel may bind by WebGPU's default limits.
const WEBGPU_BUFFER: u64 = 128 << 20;

/// Classes on which some problems have no plan.
pub fn may_refuse(class: &str) -> bool {
    matches!(class, "buffers" | "turns" | "no_f16")
}

/// The limits of a class on this device, for a problem whose largest tensor has `bytes` bytes.
pub fn limits(class: &str, device: &Limits, bytes: usize) -> Limits {
    let mut limits = device.clone();
    let few_threads = |limits: Limits| Limits { shared_bytes: 16 << 10, units_per_cube: 256, ..limits };
    match class {
        "small" => limits = few_threads(limits),
        "no_matrices" => limits.matrices.clear(),
        "workspace" => limits.workspace_bytes = 4096,
        "dispatches" => {
            limits.cubes_per_axis = 3;
            limits.dispatch_operations = 6000.0;
        }
        "one_in_flight" => limits.cubes_in_flight = 1,
        "many_in_flight" => limits.cubes_in_flight = 2000,
        // Launches bind the guard zones as well.
        "buffers" => limits.buffer_bytes = (bytes + 4096) as u64,
        "turns" => limits.loop_iterations = Some(60),
        "wide" if limits.wide_index => limits.narrow_elements = 20,
        "no_words" => limits.halves_in_words = false,
        "no_f16" => limits.dtypes.retain(|dtype| *dtype != FloatType::F16),
        "bindings" => limits.bindings = WEBGPU_BINDINGS,
        "mib_128" => limits.buffer_bytes = WEBGPU_BUFFER,
        "webgpu" => {
            limits = Limits {
                bindings: WEBGPU_BINDINGS,
                buffer_bytes: WEBGPU_BUFFER,
                matrices: Vec::new(),
                wide_index: false,
                halves_in_words: false,
                ..few_threads(limits)
            }
        }
        _ => {}
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_changes_a_limit() {
        let m1 = Limits::apple_m1();
        assert_eq!(limits(CLASSES[0], &m1, 100), m1);
        for class in &CLASSES[1..] {
            assert_ne!(limits(class, &m1, 100), m1, "{class}");
        }
    }
}
