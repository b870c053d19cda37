//! What the tables of layers promise.

use super::*;

#[test]
fn conv3d_extents_and_gflop_agree_with_the_formula() {
    let workloads = conv3d();
    assert_eq!(workloads.len(), CONV3D.lines().count() + CONV3D_FEW_TILES.lines().count() - 2);
    assert!(workloads.len() >= 80);
    for Conv3dWorkload { case, output, gflop, .. } in workloads {
        assert_eq!(case.output_extents(), output, "{case}");
        assert_eq!((case.c % case.groups, case.o % case.groups), (0, 0), "{case}");
        let exact = 2e-9 * case.macs() as f64;
        assert!((exact - gflop).abs() <= 0.0051, "{exact} GFLOP, not {gflop}, in {case}");
        if case.name.starts_with("few_") {
            let positions = case.n * output.iter().product::<usize>();
            assert!((1000..=8200).contains(&positions), "{positions} positions in {case}");
            assert_eq!((case.kernel, case.groups), ([3; 3], 1), "{case}");
        }
    }
}

/// Channels, frames, scale of the frames, output channels, taps.
type Layer = (usize, usize, usize, usize, [usize; 3]);

/// Wan 2.1's decoder as `examples/video-vae/src/wan` builds it (dim 96, `dim_mult` 1, 2, 4, 4, two
/// residual blocks, upsampling in time in the first two stages), one latent frame behind the clip's
/// first.
fn wan_decoder() -> Vec<Layer> {
    const CAUSAL: [usize; 3] = [3; 3];
    let mut layers = vec![(16, 1, 1, 16, [1; 3]), (16, 1, 1, 384, CAUSAL)];
    layers.extend([(384, 1, 1, 384, CAUSAL); 4]);
    layers.extend([(384, 1, 1, 1152, [1; 3]), (384, 1, 1, 384, [1; 3])]);
    let (mut channels, mut frames, mut scale) = (384, 1, 1);
    for (multiple, upsampling) in [(4, Some(true)), (4, Some(true)), (2, Some(false)), (1, None)] {
        let width = 96 * multiple;
        for block in 0..3 {
            let input = if block == 0 { channels } else { width };
            layers.extend([(input, frames, scale, width, CAUSAL), (width, frames, scale, width, CAUSAL)]);
            layers.extend((input != width).then_some((input, frames, scale, width, [1; 3])));
        }
        channels = width;
        if let Some(in_time) = upsampling {
            if in_time {
                layers.push((width, frames, scale, 2 * width, [3, 1, 1]));
                frames *= 2;
            }
            (channels, scale) = (width / 2, 2 * scale);
            layers.push((width, frames, scale, channels, [1, 3, 3]));
        }
    }
    layers.push((96, frames, scale, 3, CAUSAL));
    layers
}

#[test]
fn causal_conv3d_rows_are_the_decoder_s() {
    let workloads = causal_conv3d();
    assert_eq!(workloads.len(), CAUSAL_CONV3D.lines().count() - 1);
    for (step, [height, width]) in
        [("wan2_1_decode_480x832", [60, 104]), ("wan2_1_decode_720x1280", [90, 160])]
    {
        let mut rows: Vec<Layer> = Vec::new();
        for workload in workloads.iter().filter(|workload| workload.step == step) {
            let case = &workload.case;
            let [frames, h, w] = case.output_extents();
            let scale = h / height;
            assert_eq!([case.h, case.w, h, w], [[height, width].map(|size| size * scale); 2].concat()[..]);
            rows.extend(vec![(case.c, frames, scale, case.o, case.kernel); workload.calls]);
        }
        let mut decoder = wan_decoder();
        rows.sort_unstable();
        decoder.sort_unstable();
        assert_eq!(rows, decoder, "{step}");
    }
    assert!(workloads.iter().any(|workload| workload.gradients));
}

#[test]
fn causal_conv1d_rows_are_read() {
    let cases: Vec<_> = causal_conv1d().into_iter().map(|workload| workload.case).collect();
    assert_eq!(cases.len(), CAUSAL_CONV1D.lines().count() - 1);
    let find = |name: &str| cases.iter().find(|case| case.name == name).expect(name);
    let mamba = find("mamba_130m");
    assert_eq!((mamba.b, mamba.c, mamba.t, mamba.w, mamba.bias, mamba.silu), (8, 1536, 2048, 4, true, true));
    let qwen = find("qwen3_next");
    assert_eq!((qwen.bias, qwen.silu), (false, true));
    assert!(!find("hyena_w128").silu);
}

#[test]
fn rope_grids_hold_the_tokens() {
    let workloads = rope();
    assert_eq!(workloads.len(), ROPE.lines().count() - 1);
    for RopeWorkload { name, tokens, head_dim, frames, rows, columns, .. } in workloads {
        assert!(head_dim % 2 == 0 && tokens > 0, "{name}");
        assert!(frames == 0 || frames * rows * columns == tokens, "{name}");
    }
}

#[test]
fn rope2d_grids_hold_the_tokens() {
    let workloads = rope2d();
    assert_eq!(workloads.len(), ROPE2D.lines().count() - 1);
    for workload in workloads {
        let (case, [rows, columns]) = (&workload.case, workload.grid);
        assert!(case.d % 4 == 0 && rows * columns <= case.n, "{}", case.name);
        let positions = workload.positions();
        assert_eq!(positions.len(), case.b * case.n * 2);
        let special = case.n - rows * columns;
        let last = [rows, columns].map(|extent| (extent - 1 + usize::from(special > 0)) as i64);
        assert_eq!(positions[positions.len() - 2..], last, "{}", case.name);
        assert_eq!(positions[2 * special..2 * special + 2], [i64::from(special > 0); 2], "{}", case.name);
    }
}
