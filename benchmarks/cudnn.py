"""Times PyTorch's conv3d (cuDNN) on the layers of the workload table: the peer of conv3d's figures.

    python3 benchmarks/cudnn.py crates/conv-cases/workloads/conv3d.csv > cudnn.csv

fp32 is true fp32 (TF32 off), f16 accumulates in fp32; cuDNN chooses by measuring (`cudnn.benchmark`). Asymmetric padding is
done before the timed call. Each figure is the median of five windows of at least 3 ms, by CUDA events. Each forward result is
compared with fp64 sums at some elements first.
"""

import csv
import sys

import torch
import torch.nn.functional as F

torch.backends.cudnn.benchmark = True
torch.backends.cudnn.allow_tf32 = False
torch.backends.cuda.matmul.allow_tf32 = False
BACKWARD = torch.ops.aten.convolution_backward


def milliseconds(run):
    """Median time of one call."""

    def window(calls):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / calls

    run()
    torch.cuda.synchronize()
    estimate = min(window(1) for _ in range(3))
    calls = max(1, min(64, int(3.0 / estimate) + 1))
    # An idle device has lowered its clocks.
    for _ in range(max(1, int(60.0 / (estimate * calls)))):
        window(calls)
    return sorted(window(calls) for _ in range(5))[2]


def compare(x, weight, y, stride, padding, dilation, groups):
    """The largest error of some elements of y, as a share of y's RMS."""
    window = F.pad(x, [p for p in reversed(padding) for _ in range(2)])
    generator = torch.Generator().manual_seed(1)
    per_group = weight.shape[0] // groups
    worst = 0.0
    for _ in range(16):
        n, o, d, h, w = (int(torch.randint(size, (1,), generator=generator)) for size in y.shape)
        first = o // per_group * weight.shape[1]
        patch = window[n, first : first + weight.shape[1]]
        for axis, q in enumerate((d, h, w)):
            places = q * stride[axis] + torch.arange(weight.shape[axis + 2], device=x.device) * dilation[axis]
            patch = patch.index_select(axis + 1, places)
        worst = max(worst, abs(float((patch.double() * weight[o].double()).sum()) - float(y[n, o, d, h, w])))
    return worst / float(y.float().pow(2).mean().sqrt())


def main():
    print(f"# {torch.cuda.get_device_name()}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    print("case,dtype,pass,ms,error")
    with open(sys.argv[1], encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    for row in rows:
        number = lambda *names: [int(row[name]) for name in names]
        n, c, o, dilation, groups = number("N", "C", "O", "dilation", "groups")
        extents, kernel = number("D", "H", "W"), number("KD", "KH", "KW")
        stride, begin, end = number("SD", "SH", "SW"), number("PD0", "PH0", "PW0"), number("PD1", "PH1", "PW1")
        dilation = [dilation] * 3
        for dtype in (torch.float32, torch.float16):
            name = "f32" if dtype == torch.float32 else "f16"
            try:
                torch.manual_seed(0)
                x = torch.randn(n, c, *extents, device="cuda", dtype=dtype)
                weight = torch.randn(o, c // groups, *kernel, device="cuda", dtype=dtype)
                padding = begin
                if begin != end:
                    x = F.pad(x, [p for pair in reversed(list(zip(begin, end))) for p in pair])
                    padding = [0, 0, 0]
                settings = (stride, padding, dilation)
                forward = lambda: F.conv3d(x, weight, None, *settings, groups)
                y = forward()
                error = compare(x, weight, y, stride, padding, dilation, groups)
                dy = torch.randn_like(y)
                gradient = lambda mask: BACKWARD(
                    dy, x, weight, None, stride, padding, dilation, False, [0, 0, 0], groups, mask
                )
                passes = {
                    "fwd": forward,
                    "dx": lambda: gradient([True, False, False]),
                    "dw": lambda: gradient([False, True, False]),
                }
                for which, run in passes.items():
                    print(f"{row['name']},{name},{which},{milliseconds(run):.4g},{error:.1e}", flush=True)
            except (RuntimeError, torch.OutOfMemoryError) as error:
                print(f"# {row['name']},{name}: {str(error).splitlines()[0]}", flush=True)
            x = weight = y = dy = None
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
