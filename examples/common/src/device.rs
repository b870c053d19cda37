//! Choice of the device.
//!
//! `auto` takes a GPU only where there is real hardware behind it. CubeCL would come up on a software
//! rasterizer (lavapipe) where nothing else is installed; Burn's Flex backend is the better use of a CPU, so
//! the adapters are listed first and a software one is taken only when it is asked for by name.

use anyhow::{Result, bail};
use burn::tensor::{Device, DeviceKind};
use clap::ValueEnum;
use cubecl::wgpu::{AutoGraphicsApi, wgpu};

use crate::cli::plural;

/// `--device`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    /// Metal on macOS, else a hardware GPU through wgpu, else the CPU
    Auto,
    /// The CPU, through Burn's Flex backend
    Flex,
    /// A hardware GPU through wgpu
    Wgpu,
    /// The GPU of a Mac, through Metal
    Metal,
    /// A hardware GPU through Vulkan and SPIR-V (build with --features vulkan)
    Vulkan,
    /// An NVIDIA GPU through CUDA (build with --features cuda)
    Cuda,
    /// A software rasterizer such as lavapipe; slow, for tests
    Software,
}

/// A device and what to call it.
pub struct Picked {
    /// Where tensors live, without autodiff.
    pub device: Device,
    /// What to call it.
    pub name: String,
}

/// Finds the device.
///
/// # Errors
/// In one sentence, when this machine or this build does not have it.
pub fn pick(choice: DeviceChoice) -> Result<Picked> {
    match choice {
        DeviceChoice::Flex => Ok(cpu()),
        DeviceChoice::Auto => Ok(gpu().unwrap_or_else(cpu)),
        DeviceChoice::Wgpu => match gpu() {
            Some(picked) => Ok(picked),
            None => bail!(
                "wgpu finds no hardware GPU here (adapters: {}); --device flex runs on the CPU",
                describe(&adapters())
            ),
        },
        DeviceChoice::Software => software(),
        DeviceChoice::Metal => metal(),
        DeviceChoice::Vulkan => vulkan(),
        DeviceChoice::Cuda => cuda(),
    }
}

/// Finds `count` devices of a kind, to train on all of them.
///
/// # Errors
/// In one sentence, when there are fewer.
pub fn pick_several(choice: DeviceChoice, count: usize) -> Result<Vec<Picked>> {
    // Says what is missing where there is none at all.
    let first = pick(choice)?;
    let mut all = if count == 1 { vec![first] } else { alike(choice, first) };
    if count > all.len() {
        let names: Vec<_> = all.iter().map(|picked| picked.name.as_str()).collect();
        bail!(
            "--devices asks for {count} devices, there {} here: {}",
            if all.len() == 1 { "is 1".to_owned() } else { format!("are {}", all.len()) },
            names.join(", ")
        );
    }
    all.truncate(count);
    Ok(all)
}

/// All devices like `first`, which is among them: the GPUs of its kind. CubeCL opens a software adapter as
/// two devices where there is no GPU.
fn alike(choice: DeviceChoice, first: Picked) -> Vec<Picked> {
    match choice {
        DeviceChoice::Software if best_gpu(&adapters()).is_none() => {
            let second = Picked { device: Device::wgpu(DeviceKind::DefaultDevice), name: first.name.clone() };
            vec![first, second]
        }
        DeviceChoice::Auto | DeviceChoice::Wgpu | DeviceChoice::Vulkan if !first.name.contains("Flex") => {
            let kinds = like_the_best(&adapters());
            kinds.into_iter().map(|(kind, adapter)| of_adapter(kind, &adapter)).collect()
        }
        _ => vec![first],
    }
}

fn cpu() -> Picked {
    let threads = rayon::current_num_threads();
    let name = format!("the CPU (Flex, {threads} thread{})", plural(threads));
    Picked { device: Device::flex(), name }
}

fn gpu() -> Option<Picked> {
    let (kind, info) = best_gpu(&adapters())?;
    Some(of_adapter(kind, &info))
}

fn of_adapter(kind: DeviceKind, info: &Adapter) -> Picked {
    #[cfg(feature = "vulkan")]
    if info.api == wgpu::Backend::Vulkan {
        return Picked { device: Device::vulkan(kind), name: info.to_string() };
    }
    Picked { device: Device::wgpu(kind), name: info.to_string() }
}

fn software() -> Result<Picked> {
    let adapters = adapters();
    let Some(info) = adapters.iter().find(|adapter| adapter.kind == wgpu::DeviceType::Cpu) else {
        bail!(
            "no software adapter is installed (adapters: {}); on Debian and Ubuntu: apt-get install \
             mesa-vulkan-drivers",
            describe(&adapters)
        );
    };
    Ok(Picked { device: Device::wgpu(DeviceKind::Cpu), name: format!("{info}, in software") })
}

#[cfg(target_os = "macos")]
fn metal() -> Result<Picked> {
    match best_gpu(&adapters()) {
        Some((_, info)) => {
            Ok(Picked { device: Device::metal(DeviceKind::DefaultDevice), name: info.to_string() })
        }
        None => bail!("this Mac offers no Metal device; --device flex runs on the CPU"),
    }
}

#[cfg(not(target_os = "macos"))]
fn metal() -> Result<Picked> {
    bail!("Metal exists on macOS only; --device auto takes the best device of this machine")
}

#[cfg(feature = "vulkan")]
fn vulkan() -> Result<Picked> {
    let adapters: Vec<Adapter> =
        adapters().into_iter().filter(|adapter| adapter.api == wgpu::Backend::Vulkan).collect();
    match best_gpu(&adapters) {
        Some((kind, info)) => Ok(Picked { device: Device::vulkan(kind), name: info.to_string() }),
        None => bail!("Vulkan offers no hardware GPU here (adapters: {})", describe(&adapters)),
    }
}

#[cfg(not(feature = "vulkan"))]
fn vulkan() -> Result<Picked> {
    bail!("this build has no SPIR-V compiler; build it with --features vulkan, or use --device wgpu")
}

#[cfg(feature = "cuda")]
fn cuda() -> Result<Picked> {
    Ok(Picked { device: Device::cuda(0), name: "CUDA device 0".to_owned() })
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<Picked> {
    bail!("this build has no CUDA; build it with --features cuda, or use --device wgpu")
}

/// One adapter that wgpu lists.
#[derive(Clone, Debug)]
struct Adapter {
    name: String,
    kind: wgpu::DeviceType,
    api: wgpu::Backend,
}

impl std::fmt::Display for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({:?})", self.name, self.api)
    }
}

fn describe(adapters: &[Adapter]) -> String {
    let all: Vec<String> = adapters.iter().map(Adapter::to_string).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

/// The adapters of the first graphics API that has a GPU, in CubeCL's order of preference; failing that, all
/// software adapters. OpenGL is left out: too many of its drivers cannot run compute kernels.
fn adapters() -> Vec<Adapter> {
    let mut software = Vec::new();
    for api in AutoGraphicsApi::chain().into_iter().filter(|api| *api != wgpu::Backend::Gl) {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: api.into(),
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let found: Vec<Adapter> = cubecl::future::block_on(instance.enumerate_adapters(api.into()))
            .iter()
            .map(|adapter| adapter.get_info())
            .map(|info| Adapter { name: info.name, kind: info.device_type, api })
            .collect();
        if found.iter().any(|adapter| adapter.kind != wgpu::DeviceType::Cpu) {
            return found;
        }
        software.extend(found);
    }
    software
}

/// The first discrete GPU, else the first integrated, else the first virtual one.
fn best_gpu(adapters: &[Adapter]) -> Option<(DeviceKind, Adapter)> {
    like_the_best(adapters).into_iter().next()
}

/// The discrete GPUs, else the integrated, else the virtual ones, as CubeCL numbers them: each kind counts
/// from zero on its own.
fn like_the_best(adapters: &[Adapter]) -> Vec<(DeviceKind, Adapter)> {
    use wgpu::DeviceType::{DiscreteGpu, IntegratedGpu, VirtualGpu};
    let of_kind = |kind: wgpu::DeviceType| -> Vec<_> {
        let found = adapters.iter().filter(|adapter| adapter.kind == kind).enumerate();
        let numbered = |index| match kind {
            DiscreteGpu => DeviceKind::DiscreteGpu(index),
            IntegratedGpu => DeviceKind::IntegratedGpu(index),
            _ => DeviceKind::VirtualGpu(index),
        };
        found.map(|(index, adapter)| (numbered(index), adapter.clone())).collect()
    };
    let kinds = [DiscreteGpu, IntegratedGpu, VirtualGpu];
    kinds.into_iter().map(of_kind).find(|found| !found.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgpu::DeviceType;

    fn adapters(kinds: &[DeviceType]) -> Vec<Adapter> {
        let adapter = |kind: &DeviceType| Adapter {
            name: format!("{kind:?}"),
            kind: *kind,
            api: wgpu::Backend::Vulkan,
        };
        kinds.iter().map(adapter).collect()
    }

    #[test]
    fn a_software_adapter_is_no_gpu() {
        assert!(best_gpu(&adapters(&[])).is_none());
        assert!(best_gpu(&adapters(&[DeviceType::Cpu])).is_none());
        assert!(best_gpu(&adapters(&[DeviceType::Cpu, DeviceType::Other])).is_none());
    }

    #[test]
    fn a_discrete_gpu_comes_before_an_integrated_one() {
        let all = adapters(&[DeviceType::Cpu, DeviceType::IntegratedGpu, DeviceType::DiscreteGpu]);
        let (kind, info) = best_gpu(&all).unwrap();
        assert_eq!((kind, info.name.as_str()), (DeviceKind::DiscreteGpu(0), "DiscreteGpu"));
        let (kind, _) = best_gpu(&all[..2]).unwrap();
        assert_eq!(kind, DeviceKind::IntegratedGpu(0));
    }

    #[test]
    fn several_gpus_are_of_one_kind() {
        let all = [DeviceType::DiscreteGpu, DeviceType::IntegratedGpu, DeviceType::DiscreteGpu];
        let kinds: Vec<_> = like_the_best(&adapters(&all)).into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [DeviceKind::DiscreteGpu(0), DeviceKind::DiscreteGpu(1)]);
    }

    #[test]
    fn more_devices_than_there_are_is_an_error_with_the_numbers() {
        assert_eq!(pick_several(DeviceChoice::Flex, 1).unwrap().len(), 1);
        let error = pick_several(DeviceChoice::Flex, 3).err().unwrap().to_string();
        assert!(error.starts_with("--devices asks for 3 devices, there is 1 here: the CPU (Flex"), "{error}");
    }

    #[test]
    fn flex_is_always_there() {
        let picked = pick(DeviceChoice::Flex).unwrap();
        assert_eq!(picked.device, Device::flex());
        assert!(picked.name.contains("CPU"), "{}", picked.name);
    }

    #[cfg(not(any(feature = "vulkan", feature = "cuda", target_os = "macos")))]
    #[test]
    fn what_the_build_lacks_is_said_with_the_remedy() {
        let message = |choice| format!("{:#}", pick(choice).err().unwrap());
        assert!(message(DeviceChoice::Vulkan).contains("--features vulkan"));
        assert!(message(DeviceChoice::Cuda).contains("--features cuda"));
        assert!(message(DeviceChoice::Metal).contains("macOS only"));
    }
}
