"""Makes the golden models `wan22_*` and `ltx_causal_*` of this folder with diffusers on the CPU.

    pip install torch numpy safetensors diffusers
    python golden/make_vae.py

Random weights; computed in float64, stored in float32.
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLLTXVideo, AutoencoderKLWan
from safetensors.torch import save_file

HERE = Path(__file__).parent

WAN22 = {
    "base_dim": 4, "decoder_base_dim": 6, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1,
    "attn_scales": [], "temperal_downsample": [False, True], "is_residual": True,
    "in_channels": 12, "out_channels": 12, "patch_size": 2,
}
# The other of the two modes on either side, blocks that change the channels, residual upsampling, patches.
LTX = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 6,
    "block_out_channels": [4, 6, 6, 6], "layers_per_block": [1, 1, 1, 1, 1],
    "spatio_temporal_scaling": [True, True, False, False],
    "decoder_block_out_channels": [8, 8, 6], "decoder_layers_per_block": [1, 2, 1, 1],
    "decoder_spatio_temporal_scaling": [True, True, False], "decoder_inject_noise": [False] * 4,
    "upsample_residual": [True, True, False], "upsample_factor": [2, 1, 1],
    "timestep_conditioning": False, "patch_size": 2, "patch_size_t": 1,
    "encoder_causal": False, "decoder_causal": True,
}


def make(name, kind, config, shape):
    torch.manual_seed(1)
    model = kind(**config)
    for key, parameter in model.named_parameters():
        if key.endswith("gamma") or key.endswith("norm3.weight"):
            parameter.data = 1 + 0.2 * torch.randn_like(parameter)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    video = torch.rand(*shape) * 2 - 1
    model = model.double().eval()
    with torch.no_grad():
        latent_mean = model.encode(video.double()).latent_dist.mean.float()
        decoded = model.decode(latent_mean.double()).sample.float()
    (HERE / f"{name}_config.json").write_text(json.dumps({"_class_name": kind.__name__, **config}) + "\n")
    save_file(weights, HERE / f"{name}_weights.safetensors")
    tensors = {"video": video, "latent_mean": latent_mean, "decoded": decoded}
    save_file({key: value.contiguous() for key, value in tensors.items()}, HERE / f"{name}_io.safetensors")


make("wan22", AutoencoderKLWan, WAN22, (1, 3, 13, 32, 16))
make("ltx_causal", AutoencoderKLLTXVideo, LTX, (1, 3, 17, 16, 24))
