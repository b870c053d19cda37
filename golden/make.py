"""Makes the golden vectors of this folder with PyTorch on the CPU.

    python3 -m venv /tmp/golden-venv
    /tmp/golden-venv/bin/pip install torch numpy safetensors
    /tmp/golden-venv/bin/python golden/make.py            # writes *.safetensors next to this file, prints the README table

Every problem is computed in float64 with autograd from seeded data, so the kernels' references are checked against an
implementation that shares no code with them. The schema of the files is in README.md. Inputs are the same on every
machine; results may differ in the last bits with another CPU or PyTorch version.
"""

import hashlib
import json
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save as to_bytes

HERE = Path(__file__).parent


def normal(seed, *shape):
    """N(0, 1) data in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def leaf(seed, *shape):
    return normal(seed, *shape).requires_grad_()


def activate(pre, activation):
    return {"none": lambda v: v, "relu": F.relu, "silu": F.silu}[activation](pre)


def save(name, tensors, problems=None):
    """Writes one file; the problem parameters and versions go to its metadata."""
    metadata = {"torch": torch.__version__, "made_by": "golden/make.py"}
    if problems is not None:
        metadata["problems"] = json.dumps(problems, separators=(",", ":"))
    path = HERE / f"{name}.safetensors"
    data = to_bytes({key: value.detach().contiguous() for key, value in tensors.items()}, metadata)
    # The library writes the metadata in hash order; sorted, the same run gives the same bytes.
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    header = json.dumps(header, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[length:])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    count = "-" if problems is None else len(problems)
    print(f"| `{path.name}` | {count} | {path.stat().st_size:,} | `{digest}` |")


# --- conv3d ---------------------------------------------------------------------------------------------------------


def conv3d_problem(name, x, o, kernel, stride=1, padding=0, dilation=1, groups=1, replicate=False, bias=True,
                   activation="none"):
    """Parameters of one problem. `padding` is a number, one number per axis, or a (begin, end) pair per axis."""

    def each(value):
        return [value] * 3 if isinstance(value, int) else list(value)

    n, c, d, h, w = x
    pairs = [[p, p] if isinstance(p, int) else list(p) for p in each(padding)]
    return dict(name=name, n=n, c=c, d=d, h=h, w=w, o=o, kernel=each(kernel), stride=each(stride), padding=pairs,
                dilation=each(dilation), groups=groups, replicate=replicate, bias=bias, activation=activation)


def conv3d_problems():
    p = conv3d_problem
    small = (1, 3, 4, 5, 6)
    problems = [
        p("plain", small, 4, 3),
        p("plain_no_bias", small, 4, 3, bias=False),
        p("all_sizes_one", (1, 1, 1, 1, 1), 1, 1),
        p("pointwise", (2, 5, 2, 3, 4), 6, 1),
        p("pointwise_strided", (1, 4, 5, 4, 5), 3, 1, stride=2),
        p("pointwise_padded", (1, 2, 2, 2, 3), 3, 1, padding=(1, 0, 2)),
        p("kernel_is_input", (2, 3, 2, 3, 4), 5, (2, 3, 4)),
        p("padding_1", small, 4, 3, padding=1),
        p("padding_mixed", small, 4, 3, padding=(0, 2, 1)),
        p("padding_asymmetric", small, 4, 3, padding=((1, 0), (0, 2), (2, 1))),
        p("padding_causal", small, 4, 3, padding=((2, 0), (1, 1), (1, 1))),
        p("padding_above_kernel", (1, 2, 2, 3, 2), 3, 2, padding=((3, 0), (0, 4), (3, 3))),
        p("kernel_above_input", (1, 2, 2, 1, 3), 3, (5, 3, 5), padding=(2, 1, 1)),
        p("replicate_1", small, 4, 3, padding=1, replicate=True),
        p("replicate_asymmetric", small, 3, (3, 2, 3), padding=((2, 0), (0, 1), (1, 2)), replicate=True),
        p("replicate_above_input", (1, 2, 2, 1, 3), 3, 2, padding=((4, 0), (0, 3), (5, 4)), replicate=True),
        p("replicate_strided", (2, 2, 4, 5, 5), 3, 3, stride=2, padding=((1, 2), (2, 1), (1, 1)), replicate=True),
        p("replicate_dilated", (1, 2, 4, 5, 5), 3, 3, dilation=2, padding=((2, 3), (2, 2), (3, 1)), replicate=True),
        p("replicate_grouped_silu", (1, 4, 3, 4, 4), 6, 3, padding=1, groups=2, replicate=True, activation="silu"),
        p("replicate_causal_relu", (1, 3, 3, 4, 4), 4, 3, padding=((2, 0), (1, 1), (1, 1)), replicate=True,
          activation="relu"),
        p("stride_2", (1, 3, 5, 6, 7), 4, 3, stride=2),
        p("stride_2_padding_1", (2, 3, 4, 6, 5), 4, 3, stride=2, padding=1),
        p("stride_mixed", (1, 3, 5, 7, 8), 4, (2, 3, 3), stride=(1, 2, 3), padding=(0, 1, 1)),
        p("stride_above_kernel", (1, 3, 6, 7, 8), 4, 2, stride=(3, 4, 3)),
        p("stride_above_input", (1, 2, 3, 4, 4), 3, 2, stride=7),
        p("stride_is_kernel", (1, 3, 4, 6, 6), 5, (2, 3, 3), stride=(2, 3, 3)),
        p("stride_leaves_a_remainder", (1, 2, 6, 6, 8), 3, 3, stride=2, padding=((0, 0), (1, 0), (0, 0))),
        p("dilation_2", (1, 3, 5, 6, 7), 4, 3, dilation=2),
        p("dilation_mixed", (1, 2, 5, 5, 7), 3, (3, 2, 3), dilation=(1, 3, 2), padding=(1, 1, 0)),
        p("dilation_above_input", (1, 2, 3, 3, 4), 3, 3, dilation=(3, 2, 3), padding=(3, 2, 3)),
        p("dilation_2_stride_2", (1, 3, 6, 6, 6), 3, 3, dilation=2, stride=2, padding=2),
        p("dilation_3_stride_2", (1, 2, 7, 6, 7), 3, (3, 2, 3), dilation=3, stride=2, padding=((3, 2), (1, 2), (3, 3))),
        p("groups_2", (2, 4, 3, 4, 4), 6, 3, padding=1, groups=2),
        p("groups_3_strided", (1, 6, 4, 5, 5), 3, 3, padding=1, stride=2, groups=3),
        p("depthwise", (1, 5, 3, 4, 5), 5, 3, padding=1, groups=5),
        p("depthwise_multiplier_2", (1, 3, 3, 4, 5), 6, (2, 3, 3), padding=(0, 1, 1), groups=3),
        p("depthwise_strided_dilated", (2, 3, 5, 5, 6), 3, 3, padding=2, stride=(1, 2, 2), dilation=2, groups=3),
        p("depthwise_no_bias_silu", (1, 4, 3, 5, 5), 4, (3, 5, 5), padding=(1, 2, 2), groups=4, bias=False,
          activation="silu"),
        p("relu", small, 4, 3, padding=1, activation="relu"),
        p("relu_no_bias", small, 4, 3, activation="relu", bias=False),
        p("silu", small, 4, 3, padding=1, activation="silu"),
        p("silu_strided", (2, 3, 4, 5, 5), 4, 3, stride=2, padding=1, activation="silu"),
        p("plane_1x3x3", (2, 3, 3, 5, 6), 4, (1, 3, 3), padding=(0, 1, 1)),
        p("plane_depth_stride", (1, 3, 5, 4, 4), 4, 3, stride=(2, 1, 1), padding=1),
        p("plane_depth_dilation", (1, 3, 5, 4, 5), 4, 3, dilation=(2, 1, 1), padding=((2, 1), (1, 1), (1, 1))),
        p("plane_depth_taps_7", (1, 2, 5, 4, 4), 3, (7, 3, 3), padding=(3, 1, 1)),
        p("plane_7x6_batch_3", (3, 2, 2, 7, 6), 3, (2, 3, 3), padding=(0, 1, 1), activation="relu"),
        p("depth_only", (1, 4, 6, 2, 3), 5, (3, 1, 1), padding=(1, 0, 0)),
        p("width_only", (1, 2, 1, 1, 24), 3, (1, 1, 5), padding=((0, 0), (0, 0), (4, 0))),
        p("large_kernel_strided", (1, 3, 6, 9, 9), 2, (3, 7, 7), stride=2, padding=((1, 1), (2, 3), (2, 3))),
        p("channels_17_to_9", (1, 17, 2, 3, 3), 9, (2, 3, 3), padding=(0, 1, 1)),
        p("batch_5", (5, 2, 2, 3, 3), 3, 2),
    ]
    tensors = {}
    for i, q in enumerate(problems):
        groups, kernel = q["groups"], q["kernel"]
        x = leaf(1000 + 10 * i, q["n"], q["c"], q["d"], q["h"], q["w"])
        w = leaf(1001 + 10 * i, q["o"], q["c"] // groups, *kernel)
        b = leaf(1002 + 10 * i, q["o"]) if q["bias"] else None
        # F.pad wants the last axis first.
        flat = [amount for pair in reversed(q["padding"]) for amount in pair]
        padded = F.pad(x, flat, mode="replicate") if q["replicate"] else F.pad(x, flat)
        pre = F.conv3d(padded, w, b, stride=q["stride"], dilation=q["dilation"], groups=groups)
        y = activate(pre, q["activation"])
        dy = normal(1003 + 10 * i, *y.shape)
        y.backward(dy)
        tensors |= {f"{i}.x": x, f"{i}.w": w, f"{i}.dy": dy, f"{i}.y": y, f"{i}.dx": x.grad, f"{i}.dw": w.grad}
        if b is not None:
            tensors |= {f"{i}.b": b, f"{i}.db": b.grad}
    save("conv3d", tensors, problems)


# --- causal conv1d --------------------------------------------------------------------------------------------------


def causal_conv1d(x, w, b, silu, initial=None, seq_idx=None):
    """The definition: taps reach W-1 steps back, into the initial state or zeros; ids keep sequences apart."""
    batch, channels, steps = x.shape
    width = w.shape[1]
    history = x.new_zeros(batch, channels, width - 1) if initial is None else initial
    joined = torch.cat([history, x], dim=2)
    if seq_idx is None:
        pre = F.conv1d(joined, w[:, None, :], b, groups=channels)
    else:
        # The initial state belongs to the sequence of the first step.
        ids = torch.cat([seq_idx[:, :1].expand(batch, width - 1), seq_idx], dim=1)
        pre = torch.zeros_like(x) if b is None else b[None, :, None].expand_as(x)
        for k in range(width):
            same = (ids[:, k : k + steps] == seq_idx)[:, None, :]
            pre = pre + torch.where(same, w[None, :, k, None] * joined[:, :, k : k + steps], 0.0)
    y = F.silu(pre) if silu else pre
    if seq_idx is not None:
        y = torch.where((seq_idx < 0)[:, None, :], 0.0, y)
    return y, joined[:, :, steps:]


def ids_of(runs, batch):
    """Ids from (id, length) runs; row r of the batch starts r runs later and goes round, with ids of its own."""
    rows = []
    for row in range(batch):
        turned = runs[row:] + runs[:row]
        rows.append([i + 100 * row if i >= 0 else i for i, length in turned for _ in range(length)])
    return torch.tensor(rows, dtype=torch.int32)


def causal_conv1d_problems():
    def p(name, b, c, t, w, bias=True, silu=False, initial=False, final=False, runs=None):
        return dict(name=name, kind="forward", b=b, c=c, t=t, w=w, bias=bias, silu=silu, initial=initial, final=final,
                    seq_idx=runs is not None), runs

    problems = [
        p("width_1", 2, 3, 5, 1),
        p("width_2", 2, 3, 9, 2, final=True),
        p("width_3_silu", 2, 3, 9, 3, silu=True),
        p("width_4", 2, 3, 9, 4),
        p("width_4_silu", 2, 3, 9, 4, silu=True),
        p("width_4_silu_no_bias", 1, 5, 17, 4, bias=False, silu=True),
        p("width_5_no_bias", 1, 2, 16, 5, bias=False),
        p("width_6_silu", 1, 2, 33, 6, silu=True),
        p("width_7_final", 1, 3, 15, 7, final=True),
        p("width_8_silu_final", 2, 2, 20, 8, silu=True, final=True),
        p("width_16", 1, 2, 40, 16),
        p("one_step", 3, 4, 1, 4, silu=True, initial=True, final=True),
        p("one_step_without_state", 2, 4, 1, 4, final=True),
        p("initial", 2, 3, 10, 4, initial=True),
        p("initial_silu", 2, 3, 10, 4, silu=True, initial=True),
        p("initial_final", 2, 3, 10, 3, initial=True, final=True),
        p("initial_final_silu", 2, 3, 10, 4, silu=True, initial=True, final=True),
        p("initial_final_width_8", 1, 3, 12, 8, bias=False, silu=True, initial=True, final=True),
        p("short_2_of_4", 2, 3, 2, 4, final=True),
        p("short_2_of_4_initial", 2, 3, 2, 4, silu=True, initial=True, final=True),
        p("short_3_of_8_initial", 1, 2, 3, 8, silu=True, initial=True, final=True),
        p("short_6_of_8", 1, 2, 6, 8, silu=True, final=True),
        p("as_long_as_the_state", 1, 2, 3, 4, initial=True, final=True),
        p("ids_one_sequence", 2, 3, 8, 4, runs=[(0, 8)]),
        p("ids_three_sequences", 1, 3, 12, 4, runs=[(0, 5), (1, 2), (2, 5)]),
        p("ids_batch_silu", 2, 3, 12, 4, silu=True, runs=[(3, 1), (1, 6), (7, 5)]),
        p("ids_width_8", 2, 2, 20, 8, silu=True, runs=[(0, 3), (1, 10), (2, 7)]),
        p("ids_each_step", 1, 2, 6, 3, runs=[(i, 1) for i in range(6)]),
        p("ids_initial", 2, 3, 12, 4, silu=True, initial=True, runs=[(0, 5), (1, 2), (2, 5)]),
        p("ids_padding_at_end", 1, 3, 12, 4, silu=True, runs=[(0, 5), (1, 3), (-1, 4)]),
        p("ids_padding_between", 2, 3, 14, 4, silu=True, runs=[(0, 4), (-1, 2), (1, 4), (-1, 4)]),
        p("ids_padding_no_silu", 2, 3, 14, 3, runs=[(-1, 3), (0, 4), (-7, 2), (1, 5)]),
        p("ids_padding_first_initial", 1, 3, 9, 4, initial=True, silu=True, runs=[(-1, 2), (0, 4), (1, 3)]),
        p("ids_padding_initial", 2, 2, 9, 5, initial=True, bias=False, runs=[(0, 2), (-1, 3), (1, 4)]),
        p("ids_only_padding", 1, 2, 5, 4, silu=True, runs=[(-1, 5)]),
    ]
    tensors, records = {}, []
    for i, (q, runs) in enumerate(problems):
        b, c, t, w = q["b"], q["c"], q["t"], q["w"]
        x, weight = leaf(20000 + 10 * i, b, c, t), leaf(20001 + 10 * i, c, w)
        bias = leaf(20002 + 10 * i, c) if q["bias"] else None
        initial = leaf(20003 + 10 * i, b, c, w - 1) if q["initial"] else None
        ids = None if runs is None else ids_of(runs, b)
        y, final = causal_conv1d(x, weight, bias, q["silu"], initial, ids)
        if q["name"] == "ids_one_sequence":
            plain, _ = causal_conv1d(x, weight, bias, q["silu"], initial)
            torch.testing.assert_close(y, plain, rtol=1e-14, atol=1e-14)
        dy = normal(20004 + 10 * i, *y.shape)
        loss = (y * dy).sum()
        named = dict(x=x, w=weight, b=bias, initial=initial, seq_idx=ids, dy=dy, y=y)
        if q["final"]:
            dfinal = normal(20005 + 10 * i, *final.shape)
            loss = loss + (final * dfinal).sum()
            named |= dict(final=final, dfinal=dfinal)
        loss.backward()
        for key, value in (("dx", x), ("dw", weight), ("db", bias), ("dinitial", initial)):
            # Where nothing depends on an operand, autograd leaves no gradient.
            named[key] = None if value is None else torch.zeros_like(value) if value.grad is None else value.grad
        tensors |= {f"{i}.{key}": value for key, value in named.items() if value is not None}
        records.append(q)
    # One decoding step: the state holds the last S inputs, S >= W - 1.
    for w, s, bias, silu in [(1, 1, True, False), (2, 1, True, True), (3, 2, False, True), (4, 3, True, True),
                             (4, 4, True, True), (4, 4, False, False), (4, 7, True, True), (8, 7, True, False)]:
        i = len(records)
        x, state, weight = normal(20000 + 10 * i, 2, 3), normal(20001 + 10 * i, 2, 3, s), normal(20002 + 10 * i, 3, w)
        offset = normal(20003 + 10 * i, 3) if bias else None
        joined = torch.cat([state, x[:, :, None]], dim=2)
        y = F.conv1d(joined, weight[:, None, :], offset, groups=3)[:, :, -1]
        named = dict(x=x, state=state, w=weight, b=offset, y=F.silu(y) if silu else y, new_state=joined[:, :, -s:])
        tensors |= {f"{i}.{key}": value for key, value in named.items() if value is not None}
        records.append(dict(name=f"update_w{w}_s{s}", kind="update", b=2, c=3, w=w, s=s, bias=bias, silu=silu))
    save("causal_conv1d", tensors, records)


# --- RoPE2D ---------------------------------------------------------------------------------------------------------


def rope2d(x, positions, base, f0):
    """Each half of the head turns by one coordinate; element i of a half pairs with i + D/4."""
    quarter = x.shape[-1] // 4
    frequency = f0 * base ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    parts = []
    for half, coordinate in zip(x.split(2 * quarter, dim=-1), positions.unbind(-1)):
        angle = coordinate[:, None, :, None].double() * frequency
        u, v = half.split(quarter, dim=-1)
        parts += [u * angle.cos() - v * angle.sin(), v * angle.cos() + u * angle.sin()]
    return torch.cat(parts, dim=-1)


def rope2d_problems():
    def p(name, b, h, n, d, base=100.0, f0=1.0, lo=0, hi=32):
        return dict(name=name, b=b, h=h, n=n, d=d, base=base, f0=f0, lo=lo, hi=hi)

    problems = [
        p("dim_4", 1, 1, 5, 4),
        p("dim_8", 2, 3, 7, 8),
        p("dim_12", 2, 2, 5, 12),
        p("dim_20", 1, 3, 6, 20),
        p("dim_64", 1, 2, 9, 64),
        p("dim_128", 1, 1, 4, 128),
        p("one_token", 2, 2, 1, 16),
        p("origin", 1, 2, 4, 16, lo=0, hi=0),
        p("negative", 2, 2, 7, 16, lo=-40, hi=40),
        p("far", 1, 2, 6, 16, lo=400, hi=700),
        p("base_10000", 1, 2, 7, 32, base=10000.0),
        p("f0_half", 2, 1, 7, 16, f0=0.5),
        p("f0_reversed", 1, 2, 7, 16, f0=-1.0),
        p("base_7_5_negative", 1, 2, 6, 24, base=7.5, f0=1.25, lo=-16, hi=15),
        p("heads_12", 1, 12, 4, 16),
    ]
    tensors = {}
    for i, q in enumerate(problems):
        shape = q["b"], q["h"], q["n"], q["d"]
        x, dy = leaf(30000 + 10 * i, *shape), normal(30001 + 10 * i, *shape)
        generator = torch.Generator().manual_seed(30002 + 10 * i)
        positions = torch.randint(q.pop("lo"), q.pop("hi") + 1, (q["b"], q["n"], 2), generator=generator)
        y = rope2d(x, positions, q["base"], q["f0"])
        y.backward(dy)
        tensors |= {f"{i}.x": x, f"{i}.positions": positions, f"{i}.dy": dy, f"{i}.y": y, f"{i}.dx": x.grad}
    save("rope2d", tensors, problems)


# --- state dict -----------------------------------------------------------------------------------------------------


def state_dict():
    """What a PyTorch user has on disk: parameters in float32 under nn.Module names, plus inputs and outputs."""
    torch.manual_seed(4000)
    nn = torch.nn
    video = nn.Sequential(OrderedDict(
        stem=nn.Conv3d(3, 8, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2)),
        grouped=nn.Conv3d(8, 12, 3, padding=1, groups=4, bias=False),
        depthwise=nn.Conv3d(12, 12, 3, stride=2, padding=1, groups=12),
        dilated=nn.Conv3d(12, 6, 3, padding=2, dilation=2, padding_mode="replicate"),
        head=nn.Conv3d(6, 5, 1),
    ))
    # As in Mamba: padded on both sides, then cut back to the length of the input.
    conv1d = nn.Conv1d(6, 6, 4, groups=6, padding=3)
    tensors = {**video.state_dict(), **{f"conv1d.{key}": value for key, value in conv1d.state_dict().items()}}
    tensors = {key: value.clone() for key, value in tensors.items()}

    clip, sequence = normal(4001, 1, 3, 4, 10, 9).float(), normal(4002, 2, 6, 11).float()
    tensors |= {"input.video": clip, "input.conv1d": sequence}
    # Outputs are computed in float64 from the float32 parameters and rounded once.
    value = clip.double()
    for name, layer in video.double().named_children():
        value = layer(value)
        tensors[f"output.{name}"] = value.float()
    pre = conv1d.double()(sequence.double())[..., : sequence.shape[2]]
    tensors |= {"output.conv1d": pre.float(), "output.conv1d_silu": F.silu(pre).float()}
    save("state_dict", tensors)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}\n\n| file | problems | bytes | sha256 |\n| --- | --- | --- | --- |")
    conv3d_problems()
    causal_conv1d_problems()
    rope2d_problems()
    state_dict()
