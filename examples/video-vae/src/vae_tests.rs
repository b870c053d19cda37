//! Models that diffusers wrote (golden/): loaded by their published names, whole and in chunks.

use super::*;
use example_common::device::{DeviceChoice, pick};
use safetensors::SafeTensors;

/// A golden's model on a device, and the tensors that diffusers computed with it.
struct Golden {
    config: Config,
    vae: Vae,
    io: Vec<u8>,
}

fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(name)
}

impl Golden {
    fn load(name: &str, device: &Device) -> Self {
        let config = Config::read(&golden_path(&format!("{name}_config.json"))).unwrap();
        let mut vae = config.init(device);
        load_weights(&mut vae, &golden_path(&format!("{name}_weights.safetensors"))).unwrap();
        let io = std::fs::read(golden_path(&format!("{name}_io.safetensors"))).unwrap();
        Self { config, vae, io }
    }

    fn tensor(&self, name: &str, device: &Device) -> Tensor<5> {
        let file = SafeTensors::deserialize(&self.io).unwrap();
        let tensor = file.tensor(name).unwrap();
        let data = burn::tensor::TensorData::from_bytes_vec(
            tensor.data().to_vec(),
            tensor.shape().to_vec(),
            DType::F32,
        );
        Tensor::from_data(data, device)
    }

    /// The latents of the golden clip, `chunk` latent frames at a time.
    fn encode(&self, chunk: usize, device: &Device) -> Tensor<5> {
        let video = self.tensor("video", device);
        let per_latent = self.config.frames_per_latent();
        let first = 1 + (chunk - 1) * per_latent;
        stream(video, first, chunk * per_latent, |x, stream| self.vae.encode(x, stream)).0
    }

    /// The frames of the golden latents, `chunk` latent frames at a time, and the bytes kept before the last.
    fn decode(&self, chunk: usize, device: &Device) -> (Tensor<5>, Vec<usize>) {
        let latents = self.tensor("latent_mean", device);
        stream(latents, chunk, chunk, |x, stream| self.vae.decode(x, stream))
    }
}

/// `frames` through `step` in chunks; the results, and the bytes kept after each chunk.
fn stream(
    frames: Tensor<5>,
    mut length: usize,
    chunk: usize,
    step: impl Fn(Tensor<5>, &mut Stream) -> Option<Tensor<5>>,
) -> (Tensor<5>, Vec<usize>) {
    let count = frames.dims()[2];
    let mut stream = Stream::default();
    let (mut parts, mut bytes, mut first) = (Vec::new(), Vec::new(), 0);
    while first < count {
        length = length.min(count - first);
        stream.chunk(first + length == count);
        parts.extend(step(frames.clone().narrow(2, first, length), &mut stream));
        bytes.push(stream.bytes());
        first += length;
        length = chunk;
    }
    (Tensor::cat(parts, 2), bytes)
}

fn assert_near(what: &str, got: Tensor<5>, want: &Tensor<5>, most: f32) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let error = (got - want.clone()).abs().max().into_scalar::<f32>();
    assert!(error <= most, "{what}: off by {error}");
}

/// Encodes and decodes on a device, the whole clip in one chunk or one latent frame at a time.
fn reproduce(choice: DeviceChoice, name: &str, whole: bool) {
    let device = &pick(choice).unwrap().device;
    let golden = Golden::load(name, device);
    let latents = golden.tensor("latent_mean", device);
    let chunk = if whole { latents.dims()[2] } else { 1 };
    assert_near(&format!("{name} encoded by {chunk}"), golden.encode(chunk, device), &latents, 1e-4);
    reproduce_decoded(&golden, chunk, device);
}

fn reproduce_decoded(golden: &Golden, chunk: usize, device: &Device) {
    let decoded = golden.tensor("decoded", device).clamp(-1.0, 1.0);
    assert_near(&format!("decoded by {chunk}"), golden.decode(chunk, device).0, &decoded, 1e-4);
}

#[test]
fn diffusers_models_compute_the_same_on_the_cpu() {
    for name in ["wan", "wan22", "ltx", "ltx_causal"] {
        reproduce(DeviceChoice::Flex, name, true);
        reproduce(DeviceChoice::Flex, name, false);
    }
}

/// On the software driver nearly all of the time goes into compiling kernels, so the quick tier has one pass
/// of the model that needs fewest.
#[test]
fn ltx_decodes_the_same_on_the_software_driver() {
    let device = &pick(DeviceChoice::Software).unwrap().device;
    let golden = Golden::load("ltx", device);
    let whole = golden.tensor("latent_mean", device).dims()[2];
    reproduce_decoded(&golden, whole, device);
}

/// The full tier.
#[test]
fn all_models_compute_the_same_on_the_software_driver() {
    if std::env::var_os("CONV_TESTS").is_some_and(|tier| tier == "full") {
        for name in ["wan", "wan22", "ltx", "ltx_causal"] {
            reproduce(DeviceChoice::Software, name, true);
            reproduce(DeviceChoice::Software, name, false);
        }
    }
}

#[test]
fn what_the_layers_keep_does_not_grow_with_the_clip() {
    let device = &Device::flex();
    let golden = Golden::load("wan22", device);
    let (_, bytes) = golden.decode(1, device);
    // The convolutions' caches are full after the second latent frame, those behind upsampling in time too.
    assert!(bytes[1] > 0 && bytes[2..].iter().all(|&kept| kept == bytes[2]), "{bytes:?}");
    let config = WanConfig { z_dim: 2, base_dim: 2, dim_mult: vec![1, 1, 1, 1], ..WanConfig::default() };
    assert_eq!((config.frames_per_latent(), config.pixels_per_latent()), (4, 8));
}

#[test]
fn a_saved_model_has_the_published_names() {
    let device = &Device::flex();
    let dir = tempfile::tempdir().unwrap();
    let golden = Golden::load("wan", device);
    let (Config::Wan(config), Vae::Wan(vae)) = (golden.config, golden.vae) else { unreachable!() };
    save(dir.path(), &config, &vae).unwrap();
    let names = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut names: Vec<(String, Vec<usize>)> =
            file.iter().map(|(name, tensor)| (name.to_owned(), tensor.shape().to_vec())).collect();
        names.sort();
        names
    };
    assert_eq!(names(&dir.path().join(WEIGHTS)), names(&golden_path("wan_weights.safetensors")));
    assert_eq!(load(dir.path(), device).unwrap().0, Config::Wan(config));
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let device = &Device::flex();
    let Config::Wan(config) = Config::read(&golden_path("wan_config.json")).unwrap() else { unreachable!() };
    let error = |config: WanConfig| {
        let mut vae = Config::Wan(config).init(device);
        load_weights(&mut vae, &golden_path("wan_weights.safetensors")).unwrap_err().to_string()
    };
    let more = error(WanConfig { num_res_blocks: 2, ..config.clone() });
    assert!(more.contains("wan_weights.safetensors lacks decoder.up_blocks.0.resnets.2"), "{more}");
    let fewer = error(WanConfig { temperal_downsample: vec![false; 2], ..config.clone() });
    assert!(fewer.contains("time_conv") && fewer.contains("does not ask for"), "{fewer}");
    let wider = error(WanConfig { z_dim: 5, ..config });
    assert!(wider.contains("does not fit config.json: Shape mismatch for '"), "{wider}");
}
