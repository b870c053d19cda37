//! The path of macOS before 15: CubeCL lowers to WGSL, which naga (wgpu's compiler) validates and translates
//! to MSL. Both steps run here. naga's text is not executed: it adds its own checks to every access and loop.

use crate::lower::{Facts, Lowered};
use cubecl::ir::settings::Dim3;
use cubecl_runtime::kernel::{CubeKernel, define_kernel};
use cubecl_server::kernel::CompiledKernel;
use cubecl_wgpu::WgslCompiler;
use naga::back::msl;
use naga::valid::{Capabilities, ValidationFlags, Validator};

/// Lowers `kernel` to WGSL, validates it, and translates it to MSL.
///
/// # Errors
///
/// The refusal of CubeCL's compiler, of naga's parser, validator or translator.
pub(crate) fn lower(kernel: &dyn CubeKernel) -> Result<Lowered, String> {
    let Dim3 { x, y, z } = kernel.id().cube_dim;
    let definition = define_kernel(kernel).map_err(|error| error.to_string())?;
    let compiled = CompiledKernel::compile(kernel, definition, &mut WgslCompiler, &Default::default())
        .map_err(|error| error.to_string())?;
    translate(&compiled.source, (x, y, z))
}

fn translate(wgsl: &str, threads: (u32, u32, u32)) -> Result<Lowered, String> {
    let module = naga::front::wgsl::parse_str(wgsl).map_err(|error| error.emit_to_string(wgsl))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::SHADER_FLOAT16)
        .validate(&module)
        .map_err(|error| error.emit_to_string(wgsl))?;
    let [entry] = &module.entry_points[..] else {
        return Err(format!("the WGSL has {} entry points", module.entry_points.len()));
    };
    let declared = entry.workgroup_size;
    if declared != [threads.0, threads.1, threads.2] {
        return Err(format!("the WGSL declares {declared:?} threads, the launch has {threads:?}"));
    }
    // Metal 2.4 is macOS 12's.
    let options = msl::Options { lang_version: (2, 4), ..msl::Options::default() };
    let (text, translation) = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
        .map_err(|error| error.to_string())?;
    let name = translation.entry_point_names.into_iter().next().ok_or("nothing was translated")?;
    let name = name.map_err(|error| error.to_string())?;

    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).map_err(|error| error.to_string())?;
    let mut threadgroup_bytes = 0usize;
    let mut bindings = 0;
    for (_, variable) in module.global_variables.iter() {
        match variable.space {
            naga::AddressSpace::WorkGroup => {
                let layout = layouter[variable.ty];
                threadgroup_bytes =
                    layout.alignment.round_up(threadgroup_bytes as u32) as usize + layout.size as usize;
            }
            naga::AddressSpace::Storage { .. } | naga::AddressSpace::Uniform => bindings += 1,
            _ => {}
        }
    }
    let facts = Facts {
        entry: name,
        declared_threads: declared.iter().product(),
        threadgroup_bytes,
        bindings,
        barriers: text.matches("threadgroup_barrier(").count(),
        matrices: false,
        simd: false,
        wide: false,
        forbidden: Vec::new(),
    };
    Ok(Lowered { msl: text.into(), source: wgsl.into(), threads, facts })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WGSL: &str = "
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
var<workgroup> tile: array<f32, 64>;
@compute @workgroup_size(64, 1, 1)
fn main(@builtin(local_invocation_index) i: u32) {
    tile[i] = x[i];
    workgroupBarrier();
    y[i] = tile[63u - i];
}
";

    #[test]
    fn the_facts_of_a_small_kernel() {
        let lowered = translate(WGSL, (64, 1, 1)).unwrap();
        assert!(lowered.msl.contains("kernel void"), "{}", lowered.msl);
        let facts = lowered.facts;
        assert_eq!((facts.declared_threads, facts.threadgroup_bytes, facts.bindings), (64, 256, 2));
        assert!(facts.barriers >= 1);
    }

    #[test]
    fn what_naga_refuses_is_an_error() {
        assert!(translate(&WGSL.replace("63u - i", "1.5"), (64, 1, 1)).is_err());
        assert!(translate(&WGSL.replace("y[i] =", "x[i] ="), (64, 1, 1)).is_err());
        assert!(translate(WGSL, (32, 1, 1)).unwrap_err().contains("declares [64, 1, 1] threads"));
    }
}
