"""PyTorch, MLX and Dao-AILab's causal-conv1d on the problems of the benchmark program.

`cargo xtask bench --peers` starts this script, writes a JSON object per line to its standard input and reads one per line back.
Inputs are computed here from the program's samples and seeds; the program compares each result with its f64 truth and writes the
record. A peer that cannot be imported is named once; a problem that it refuses is named and has no row.

First line in:   folder, samples, warm_up_ms, software, tables (dtype -> file of fp32 samples)
First line out:  peers (name, device, backend), missing (sentences)
Then in:         op, pass, dtype, shapes and options of the problem, seeds, positions (per result: file of places, or null for all)
Then out:        answers (peer, and either plan and milliseconds, or error); values in FOLDER/PEER-INDEX.bin as float64

fp32 is true fp32 (TF32 off) and cuDNN chooses by measuring. CUDA is timed by its events, all else by the host's clock.
"""

import json
import os
import platform
import subprocess
import sys
import time

WINDOW_MS = 3.0
MOST_REPEATS = 32
LONG_MS = 1000.0
WALL_CLOCK = ", wall clock"


def log(*words):
    print("peers:", *words, file=sys.stderr, flush=True)


def fill(seed, shape, samples):
    """The tensor that the program computes from the same seed: a hash of the index picks a sample."""
    length = int(np.prod(shape))
    out = np.empty(length, dtype=np.float32)
    step = 1 << 22
    for start in range(0, length, step):
        index = np.arange(start, min(start + step, length), dtype=np.uint64)
        z = (index ^ np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
        out[start : start + len(index)] = samples[(z >> np.uint64(48)).astype(np.int64)]
    return out.reshape(shape)


def host_name():
    """What the machine's processor calls itself."""
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "Apple"
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or "CPU"


def rope_tables(problem):
    """Cosines and sines [B, 1, N, D] as float64."""
    b, _, n, d = problem["x"]
    positions = np.fromfile(problem["tokens"], dtype=np.int64).reshape(b, 1, n, 2)
    angles = problem["f0"] * positions[..., None] * np.array(problem["frequencies"])
    angles = np.repeat(angles[..., None, :], 2, axis=-2).reshape(b, 1, n, d)
    return np.cos(angles), np.sin(angles)


def axes_tables(problem):
    """Cosines and sines [B, 1, N, D] as float64 of pairs with a frequency and an axis each."""
    b, _, n, _ = problem["x"]
    axes, frequencies = (np.array(problem[name]) for name in ("axes", "frequencies"))
    positions = np.fromfile(problem["tokens"], dtype=np.int64).reshape(b, 1, n, -1)
    angles = positions[..., axes] * frequencies
    angles = np.repeat(angles, 2, axis=-1) if problem["neighbours"] else np.concatenate([angles, angles], axis=-1)
    return np.cos(angles), np.sin(angles)


class Torch:
    """PyTorch on CUDA, Metal or the CPU."""

    name = "pytorch"

    def __init__(self, software):
        import torch

        self.torch = torch
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        version = f"PyTorch {torch.__version__}"
        if torch.cuda.is_available() and not software:
            self.device, self.label = "cuda", torch.cuda.get_device_name()
            self.backend = f"{version} CUDA, cuDNN {torch.backends.cudnn.version()}"
        elif torch.backends.mps.is_available() and not software:
            self.device, self.label, self.backend = "mps", host_name(), f"{version} MPS{WALL_CLOCK}"
        else:
            self.device, self.label, self.backend = "cpu", host_name(), f"{version} CPU{WALL_CLOCK}"
        self.dtypes = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

    def tensor(self, values, dtype):
        return self.torch.from_numpy(np.ascontiguousarray(values)).to(self.dtypes[dtype]).to(self.device)

    def to_host(self, tensor):
        return tensor.detach().float().cpu().numpy()

    def synchronize(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        elif self.device == "mps":
            self.torch.mps.synchronize()

    def window(self, run, repeats):
        """Milliseconds of one of some calls that follow each other."""
        self.synchronize()
        if self.device == "cuda":
            start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(repeats):
                run()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / repeats
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        self.synchronize()
        return (time.perf_counter() - start) * 1e3 / repeats

    def clean_up(self):
        if self.device == "cuda":
            self.torch.cuda.empty_cache()

    def conv3d(self, problem, inputs):
        torch, F = self.torch, self.torch.nn.functional
        x, w, dy = (inputs(name) for name in ("x", "w", "dy"))
        low, high = zip(*problem["padding"])
        plan = "conv3d"
        if low != high:
            # Before the timed call; the gradient's margin is cut off behind it.
            padding, plan = [0, 0, 0], "conv3d, padded before"
            x = F.pad(x, [p for pair in reversed(problem["padding"]) for p in pair])
        else:
            padding = list(low)
        settings = (problem["stride"], padding, problem["dilation"])
        groups = problem["groups"]

        def gradients(mask):
            return torch.ops.aten.convolution_backward(
                dy, x, w, None, *settings, False, [0, 0, 0], groups, mask
            )[:2]

        def cut(dx):
            if low == high:
                return dx
            d, h, width = problem["x"][2:]
            return dx[:, :, low[0] : low[0] + d, low[1] : low[1] + h, low[2] : low[2] + width]

        forward = lambda: F.conv3d(x, w, None, *settings, groups)
        passes = {
            "fwd": lambda: [forward()],
            "dx": lambda: [cut(gradients([True, False, False])[0])],
            "dw": lambda: [gradients([False, True, False])[1]],
            "db": lambda: [dy.sum((0, 2, 3, 4))],
            "bwd": lambda: (lambda dx, dw: [cut(dx), dw])(*gradients([True, True, False])),
        }
        passes["fwd_bwd"] = lambda: [forward(), *passes["bwd"]()]
        return "sum" if problem["pass"] == "db" else plan, passes[problem["pass"]]

    def causal_conv3d(self, problem, inputs):
        torch, F = self.torch, self.torch.nn.functional
        joined, w, dy = (inputs(name) for name in ("x", "w", "dy"))
        held, (_, height, width) = problem["cached"], problem["padding"]
        plane = [*width, *height]
        # What is timed begins with two tensors.
        cache, x = (part.contiguous() for part in (joined[:, :, :held], joined[:, :, held:]))
        del joined
        pad = problem["pad"]

        def function(cache, x, w):
            frames = torch.cat([cache, x], 2) if held else x
            padding = [0, *(low for low, _ in (height, width))]
            if not pad:
                return F.conv3d(frames, w, None, 1, padding), frames
            return F.conv3d(F.pad(frames, plane) if any(plane) else frames, w, None, 1, 0), frames

        def forward():
            y, frames = function(cache, x, w)
            # Published decoders copy the frames that they keep.
            return [y, frames[:, :, frames.shape[2] - held :].clone()] if held else [y]

        plan = "conv3d" if not held else "pad+cat+conv3d" if pad else "cat+conv3d"
        if problem["pass"] == "fwd":
            return plan, forward
        leaves = [w] if problem["pass"] == "dw" else [cache, x] if held else [x]
        for leaf in leaves:
            leaf.requires_grad_()
        y, _ = function(cache, x, w)
        return plan, lambda: list(torch.autograd.grad(y, leaves, dy, retain_graph=True))

    def causal(self, problem, inputs, function):
        """The passes of a function of x, weight and bias."""
        leaves = [inputs(name) for name in ("x", "weight", "bias") if name in problem["seeds"]]
        which = problem["pass"]
        if which == "fwd":
            return lambda: [function(*leaves)]
        dy = inputs("dy")
        for leaf in leaves:
            leaf.requires_grad_()
        gradient = lambda y, keep: list(self.torch.autograd.grad(y, leaves, dy, retain_graph=keep))
        if which == "bwd":
            y = function(*leaves)
            return lambda: gradient(y, True)

        def both():
            y = function(*leaves)
            return [y, *gradient(y, False)]

        return both

    def causal_conv1d(self, problem, inputs):
        F = self.torch.nn.functional
        channels, length, width = problem["x"][1], problem["x"][2], problem["width"]

        def function(x, weight, bias=None):
            y = F.conv1d(x, weight[:, None], bias, padding=width - 1, groups=channels)[..., :length]
            return F.silu(y) if problem["silu"] else y

        return "conv1d+silu" if problem["silu"] else "conv1d", self.causal(problem, inputs, function)

    def causal_conv1d_update(self, problem, inputs):
        torch, F = self.torch, self.torch.nn.functional
        x, state, weight = (inputs(name) for name in ("x", "state", "weight"))
        bias = inputs("bias") if "bias" in problem["seeds"] else None

        def run():
            seen = torch.cat([state, x[..., None]], 2)
            y = F.conv1d(seen, weight[:, None], bias, groups=x.shape[1])[..., 0]
            return [F.silu(y) if problem["silu"] else y, seen[..., 1:]]

        return "cat+conv1d", run

    def rope2d(self, problem, inputs):
        torch = self.torch
        cos, sin = (self.tensor(table.astype(np.float32), problem["dtype"]) for table in rope_tables(problem))

        def rotate(x):
            a, b, c, d = x.chunk(4, dim=-1)
            return x * cos + torch.cat([-b, a, -d, c], dim=-1) * sin

        return "rotate_half", self.rotation(problem, inputs("x"), rotate)

    def rope(self, problem, inputs):
        torch = self.torch
        cos, sin = (self.tensor(table.astype(np.float32), problem["dtype"]) for table in axes_tables(problem))

        def rotate_half(x):
            a, b = x.chunk(2, dim=-1)
            return x * cos + torch.cat([-b, a], dim=-1) * sin

        def rotate_pairs(x):
            turned = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
            return x * cos + turned * sin

        rotate = rotate_pairs if problem["neighbours"] else rotate_half
        return rotate.__name__, self.rotation(problem, inputs("x"), rotate)

    def rotation(self, problem, x, rotate):
        """The passes of a rotation: forward of x, and backward of x as the result's gradient."""
        if problem["pass"] == "fwd":
            return lambda: [rotate(x)]
        leaf = self.torch.zeros_like(x, requires_grad=True)
        y = rotate(leaf)
        return lambda: [self.torch.autograd.grad(y, leaf, x, retain_graph=True)[0]]


class CausalConv1d(Torch):
    """Dao-AILab's CUDA kernels."""

    name = "causal-conv1d"

    def __init__(self, software):
        import causal_conv1d

        super().__init__(software)
        if self.device != "cuda":
            raise ImportError("it needs a CUDA device")
        self.module = causal_conv1d
        self.backend = f"causal-conv1d {getattr(causal_conv1d, '__version__', '')}, {self.backend}"

    conv3d = causal_conv3d = rope2d = rope = None

    def causal_conv1d(self, problem, inputs):
        activation = "silu" if problem["silu"] else None
        function = lambda x, weight, bias=None: self.module.causal_conv1d_fn(x, weight, bias, activation=activation)
        return "causal_conv1d_fn", self.causal(problem, inputs, function)

    def causal_conv1d_update(self, problem, inputs):
        x, state, weight = (inputs(name) for name in ("x", "state", "weight"))
        bias = inputs("bias") if "bias" in problem["seeds"] else None
        activation = "silu" if problem["silu"] else None
        # In place; only the first call's result is compared.
        return "causal_conv1d_update", lambda: [
            self.module.causal_conv1d_update(x, state, weight, bias, activation),
            state,
        ]


class Mlx:
    """MLX, with channels last, which is its own order."""

    name = "mlx"

    def __init__(self, software):
        import mlx.core as mx

        self.mx = mx
        if software and hasattr(mx, "cpu"):
            mx.set_default_device(mx.cpu)
        device = str(mx.default_device())
        self.label = host_name()
        self.backend = f"MLX {mx.__version__} {'CPU' if 'cpu' in device else 'GPU'}{WALL_CLOCK}"
        self.dtypes = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}

    def tensor(self, values, dtype):
        return self.mx.array(np.ascontiguousarray(values)).astype(self.dtypes[dtype])

    def to_host(self, tensor):
        return np.array(tensor.astype(self.mx.float32))

    def window(self, run, repeats):
        self.mx.synchronize()
        start = time.perf_counter()
        self.mx.eval([run() for _ in range(repeats)])
        self.mx.synchronize()
        return (time.perf_counter() - start) * 1e3 / repeats

    def clean_up(self):
        getattr(self.mx, "clear_cache", self.mx.metal.clear_cache if hasattr(self.mx, "metal") else int)()

    def moved(self, tensor, order):
        """A copy with another order of axes, made before anything is timed."""
        tensor = self.mx.contiguous(self.mx.transpose(tensor, order))
        self.mx.eval(tensor)
        return tensor

    def passes(self, problem, function, leaves, dy):
        """The passes of a function: evaluated is only what a pass asks for."""
        which = problem["pass"]
        if which == "fwd":
            return lambda: [function(*leaves)]
        vjp = lambda: self.mx.vjp(function, leaves, [dy()])
        if which == "fwd_bwd":
            return lambda: (lambda y, gradients: [*y, *gradients])(*vjp())
        wanted = {"dx": [0], "dw": [1]}.get(which, range(len(leaves)))
        return lambda: [vjp()[1][index] for index in wanted]

    def conv3d(self, problem, inputs):
        mx, last = self.mx, (0, 2, 3, 4, 1)
        x, w, dy = (self.moved(inputs(name), last) for name in ("x", "w", "dy"))
        first = lambda tensors: [mx.transpose(tensor, (0, 4, 1, 2, 3)) for tensor in tensors]
        low, high = zip(*problem["padding"])
        padding = list(low) if low == high else [0, 0, 0]

        def function(x, w):
            if low != high:
                x = mx.pad(x, [(0, 0), *map(tuple, problem["padding"]), (0, 0)])
            return mx.conv3d(x, w, problem["stride"], padding, problem["dilation"], problem["groups"])

        if problem["pass"] == "db":
            return "sum", lambda: [mx.sum(dy, (0, 1, 2, 3))], lambda tensors: tensors
        plan = "conv3d" if low == high else "pad+conv3d"
        return plan, self.passes(problem, function, [x, w], lambda: dy), first

    def causal_conv3d(self, problem, inputs):
        mx, last = self.mx, (0, 2, 3, 4, 1)
        joined, w, dy = (self.moved(inputs(name), last) for name in ("x", "w", "dy"))
        held, pad, (_, height, width) = problem["cached"], problem["pad"], problem["padding"]
        # What is timed begins with two tensors.
        cache, x = (mx.contiguous(part) for part in (joined[:, :held], joined[:, held:]))
        mx.eval(cache, x)
        del joined

        def function(cache, x, w):
            frames = mx.concatenate([cache, x], axis=1) if held else x
            if pad and any((*height, *width)):
                padded = mx.pad(frames, [(0, 0), (0, 0), tuple(height), tuple(width), (0, 0)])
                return mx.conv3d(padded, w), frames
            return mx.conv3d(frames, w, padding=[0, *(low for low, _ in (height, width))]), frames

        def forward():
            y, frames = function(cache, x, w)
            return [y, mx.contiguous(frames[:, frames.shape[1] - held :])] if held else [y]

        plan = "conv3d" if not held else "pad+cat+conv3d" if pad else "cat+conv3d"
        first = lambda tensors: [mx.transpose(tensor, (0, 4, 1, 2, 3)) for tensor in tensors]
        if problem["pass"] == "fwd":
            return plan, forward, first
        result = lambda *leaves: function(*leaves)[0]
        gradients = lambda: mx.vjp(result, [cache, x, w], [dy])[1]
        if problem["pass"] == "dw":
            return plan, lambda: [gradients()[2]], first
        return plan, lambda: list(gradients()[:2] if held else gradients()[1:2]), first

    def causal_conv1d(self, problem, inputs):
        mx, (_, channels, length), width = self.mx, problem["x"], problem["width"]
        x = self.moved(inputs("x"), (0, 2, 1))
        weight = inputs("weight")[..., None]
        leaves = [x, weight] + ([inputs("bias")] if "bias" in problem["seeds"] else [])
        dy = None if problem["pass"] == "fwd" else self.moved(inputs("dy"), (0, 2, 1))

        def function(x, weight, bias=None):
            y = mx.conv1d(mx.pad(x, [(0, 0), (width - 1, 0), (0, 0)]), weight, groups=channels)
            y = y if bias is None else y + bias
            return y * mx.sigmoid(y) if problem["silu"] else y

        shape = problem["x"][0], length, channels

        def first(tensors):
            return [mx.transpose(t, (0, 2, 1)) if tuple(t.shape) == shape else t for t in tensors]

        plan = "pad+conv1d+silu" if problem["silu"] else "pad+conv1d"
        return plan, self.passes(problem, function, leaves, lambda: dy), first

    def causal_conv1d_update(self, problem, inputs):
        mx = self.mx
        x, state, weight = (inputs(name) for name in ("x", "state", "weight"))
        bias = inputs("bias") if "bias" in problem["seeds"] else 0

        def run():
            seen = mx.concatenate([state, x[..., None]], axis=2)
            y = (seen * weight).sum(-1) + bias
            return [y * mx.sigmoid(y) if problem["silu"] else y, seen[..., 1:]]

        return "concatenate+sum", run, lambda tensors: tensors

    def rope2d(self, problem, inputs):
        mx = self.mx
        cos, sin = (self.tensor(table.astype(np.float32), problem["dtype"]) for table in rope_tables(problem))
        x = inputs("x")

        @mx.compile
        def rotate(x):
            a, b, c, d = mx.split(x, 4, axis=-1)
            return x * cos + mx.concatenate([-b, a, -d, c], axis=-1) * sin

        return "rotate_half", self.rotation(problem, rotate, x), lambda tensors: tensors

    def rope(self, problem, inputs):
        mx, x, neighbours = self.mx, inputs("x"), problem["neighbours"]
        if "base" in problem:
            # MLX's own kernel knows one axis.
            settings = {"base": problem["base"], "scale": 1.0, "offset": problem["offset"]}
            fast = lambda x: mx.fast.rope(x, x.shape[-1], traditional=neighbours, **settings)
            return "fast.rope", self.rotation(problem, fast, x), lambda tensors: tensors
        cos, sin = (self.tensor(table.astype(np.float32), problem["dtype"]) for table in axes_tables(problem))

        @mx.compile
        def rotate_half(x):
            a, b = mx.split(x, 2, axis=-1)
            return x * cos + mx.concatenate([-b, a], axis=-1) * sin

        @mx.compile
        def rotate_pairs(x):
            turned = mx.stack([-x[..., 1::2], x[..., 0::2]], axis=-1).reshape(x.shape)
            return x * cos + turned * sin

        plan, rotate = ("rotate_pairs", rotate_pairs) if neighbours else ("rotate_half", rotate_half)
        return plan, self.rotation(problem, rotate, x), lambda tensors: tensors

    def rotation(self, problem, rotate, x):
        """The passes of a rotation: forward of x, and backward of x as the result's gradient."""
        problem = {**problem, "pass": "fwd" if problem["pass"] == "fwd" else "dx"}
        return self.passes(problem, rotate, [x], lambda: x)


def measure(peer, run, settings):
    """Milliseconds of each sample."""
    peer.window(run, 1)
    started = time.perf_counter()
    estimate = peer.window(run, 1)
    repeats = lambda: max(1, min(MOST_REPEATS, int(WINDOW_MS / max(estimate, 1e-6)) + 1))
    while estimate < LONG_MS and (time.perf_counter() - started) * 1e3 < settings["warm_up_ms"]:
        estimate = peer.window(run, repeats())
    samples = min(3, settings["samples"]) if estimate > LONG_MS else settings["samples"]
    return [peer.window(run, repeats()) for _ in range(samples)]


def answer(peer, problem, settings):
    """Computes, saves what the program compares, and times."""
    prepare = getattr(peer, problem["op"])
    if prepare is None:
        return None
    samples = np.fromfile(settings["tables"][problem["dtype"]], dtype=np.float32)
    shapes = problem["shapes"]
    problem["x"] = shapes["x"]
    inputs = lambda name: peer.tensor(fill(problem["seeds"][name], shapes[name], samples), problem["dtype"])
    plan, run, *logical = prepare(problem, inputs)
    results = run()
    results = logical[0](results) if logical else results
    if len(results) != len(problem["positions"]):
        raise RuntimeError(f"{len(results)} results, expected {len(problem['positions'])}")
    for index, (result, positions) in enumerate(zip(results, problem["positions"])):
        values = np.ascontiguousarray(peer.to_host(result)).reshape(-1)
        if not np.isfinite(values).all():
            raise RuntimeError(f"result {index} has elements that are not finite")
        if positions is not None:
            values = values[np.fromfile(positions, dtype=np.int64)]
        values.astype(np.float64).tofile(os.path.join(settings["folder"], f"{peer.name}-{index}.bin"))
    return {"peer": peer.name, "plan": plan, "milliseconds": measure(peer, run, settings)}


def main():
    # What a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    say = lambda value: print(json.dumps(value), file=answers, flush=True)
    settings = json.loads(sys.stdin.readline())
    peers, missing = [], []
    for kind in (Torch, Mlx, CausalConv1d):
        if np is None:
            missing.append(f"{kind.name}: NumPy is missing")
            continue
        try:
            peers.append(kind(settings["software"]))
        except Exception as error:  # A broken installation is a missing peer too.
            missing.append(f"{kind.name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    say({"peers": [{"name": p.name, "device": p.label, "backend": p.backend} for p in peers], "missing": missing})
    for line in sys.stdin:
        problem = json.loads(line)
        replies = []
        for peer in peers:
            try:
                replies.append(answer(peer, problem, settings))
            except Exception as error:
                text = str(error).strip().splitlines()
                replies.append({"peer": peer.name, "error": text[0] if text else type(error).__name__})
            peer.clean_up()
        say({"answers": [reply for reply in replies if reply is not None]})


try:
    import numpy as np
except ImportError:
    np = None

if __name__ == "__main__":
    main()
