//! Choice of the device.
//!
//! `auto` takes a GPU only where there is real hardware behind it. CubeCL would come up on a software
//! rasterizer (lavapipe) where nothing else is installed; Burn's Flex backend is the better use of a CPU, so
//! the adapters are listed first and a software one is taken only when it is asked for by name.

use anyhow::{Result, bail};
use burn::tensor::{Device, DeviceKind};
use clap::ValueEnum;
use cubecl::wgpu::{AutoGraphicsApi, wgpu};

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

fn cpu() -> Picked {
    let threads = rayon::current_num_threads();
    let name = format!("the CPU (Flex, {threads} thread{})", if threads == 1 { "" } else { "s" });
    Picked { device: Device::flex(), name }
}

fn gpu() -> Option<Picked> {
    let (kind, info) = best_gpu(&adapters())?;
    #[cfg(feature = "vulkan")]
    if info.api == wgpu::Backend::Vulkan {
        return Some(Picked { device: Device::vulkan(kind), name: info.to_string() });
    }
    Some(Picked { device: Device::wgpu(kind), name: info.to_string() })
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

/// The first discrete GPU, else the first integrated, else the first virtual one, as CubeCL numbers them:
/// each kind counts from zero on its own.
fn best_gpu(adapters: &[Adapter]) -> Option<(DeviceKind, Adapter)> {
    let first = |kind: wgpu::DeviceType| adapters.iter().find(|adapter| adapter.kind == kind).cloned();
    None.or_else(|| Some((DeviceKind::DiscreteGpu(0), first(wgpu::DeviceType::DiscreteGpu)?)))
        .or_else(|| Some((DeviceKind::IntegratedGpu(0), first(wgpu::DeviceType::IntegratedGpu)?)))
        .or_else(|| Some((DeviceKind::VirtualGpu(0), first(wgpu::DeviceType::VirtualGpu)?)))
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
