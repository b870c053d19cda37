"""Makes rope.safetensors: rotary embeddings of published models, each from its model's formula, as make.py does.

    /tmp/golden-venv/bin/python golden/make_rope.py       # writes rope.safetensors, prints the row of the README table

Float64 throughout, gradients by autograd. Each function takes tokens [B, H, N, D] and positions [B, N, axes].
"""

import torch

from make import leaf, normal, save


def inverse_frequencies(dim, base):
    return base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def rotate_half(x):
    """Of [x1, x2]: [-x2, x1]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def rotate_every_two(x):
    """Of x0 x1 x2 x3 ..: -x1 x0 -x3 x2 .."""
    pairs = x.unflatten(-1, (-1, 2))
    return torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)


def llama(x, positions, base, scaling=None, factor=1.0):
    dim = x.shape[-1]
    if scaling == "ntk":
        base = base * factor ** (dim / (dim - 2))
    angles = positions[..., :1].double() * inverse_frequencies(dim, base)
    if scaling == "linear":
        angles = angles / factor
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return x * angles.cos() + rotate_half(x) * angles.sin()


def gpt_j(x, positions, base, rotated):
    angles = positions[..., :1].double() * inverse_frequencies(rotated, base)
    angles = angles.repeat_interleave(2, dim=-1)[:, None]
    turned, rest = x[..., :rotated], x[..., rotated:]
    return torch.cat([turned * angles.cos() + rotate_every_two(turned) * angles.sin(), rest], dim=-1)


def qwen2_vl(x, positions, base, sections):
    """Angles of all axes for all frequencies; the sections say which axis' chunk is taken."""
    angles = positions.double().movedim(-1, 0)[..., None] * inverse_frequencies(x.shape[-1], base)
    angles = torch.cat([angles, angles], dim=-1)
    chunks = angles.split(sections + sections, dim=-1)
    angles = torch.cat([chunk[i % 3] for i, chunk in enumerate(chunks)], dim=-1)[:, None]
    return x * angles.cos() + rotate_half(x) * angles.sin()


def qwen3_vl(x, positions, base, sections):
    """Begins with the angles of time; rows and columns overwrite every third."""
    every = positions.double().movedim(-1, 0)[..., None] * inverse_frequencies(x.shape[-1], base)
    angles = every[0].clone()
    for axis in (1, 2):
        places = slice(axis, 3 * sections[axis], 3)
        angles[..., places] = every[axis][..., places]
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return x * angles.cos() + rotate_half(x) * angles.sin()


def video(x, positions, base, dims):
    """One embedding for each axis, neighbours turn as complex numbers."""
    parts = []
    for axis, part in enumerate(x.split(dims, dim=-1)):
        angles = (positions[..., axis, None].double() * inverse_frequencies(dims[axis], base))[:, None]
        number = torch.view_as_complex(part.unflatten(-1, (-1, 2)).contiguous())
        parts.append(torch.view_as_real(number * torch.polar(torch.ones_like(angles), angles)).flatten(-2))
    return torch.cat(parts, dim=-1)


MODELS = dict(llama=llama, gpt_j=gpt_j, qwen2_vl=qwen2_vl, qwen3_vl=qwen3_vl, video=video)


def problems():
    def p(name, model, b, h, n, d, axes=1, lo=0, hi=64, **options):
        return dict(name=name, model=model, b=b, h=h, n=n, d=d, axes=axes, lo=lo, hi=hi, options=options)

    return [
        p("llama", "llama", 2, 3, 7, 32, base=10000.0),
        p("llama_3", "llama", 1, 2, 5, 128, hi=8192, base=500000.0),
        p("llama_head_6", "llama", 1, 2, 5, 6, lo=-9, base=10000.0),
        p("llama_far", "llama", 1, 2, 5, 64, lo=1 << 19, hi=1 << 20, base=10000.0),
        p("llama_linear_4", "llama", 1, 2, 6, 32, base=10000.0, scaling="linear", factor=4.0),
        p("llama_ntk_2", "llama", 1, 2, 6, 32, base=10000.0, scaling="ntk", factor=2.0),
        p("gpt_j", "gpt_j", 2, 2, 6, 32, base=10000.0, rotated=32),
        p("gpt_j_part", "gpt_j", 1, 2, 6, 40, base=10000.0, rotated=16),
        p("qwen2_vl", "qwen2_vl", 1, 2, 6, 128, axes=3, base=1000000.0, sections=[16, 24, 24]),
        p("qwen2_vl_small", "qwen2_vl", 2, 2, 7, 16, axes=3, base=10000.0, sections=[2, 3, 3]),
        p("qwen3_vl", "qwen3_vl", 1, 2, 6, 128, axes=3, base=5000000.0, sections=[24, 20, 20]),
        p("qwen3_vl_small", "qwen3_vl", 2, 2, 7, 24, axes=3, base=10000.0, sections=[6, 3, 3]),
        p("hunyuan_video", "video", 1, 2, 6, 128, axes=3, base=256.0, dims=[16, 56, 56]),
        p("wan", "video", 1, 1, 7, 128, axes=3, base=10000.0, dims=[44, 42, 42]),
        p("cog_video_x", "video", 2, 2, 5, 64, axes=3, base=10000.0, dims=[16, 24, 24]),
        p("two_axes", "video", 1, 2, 6, 20, axes=2, lo=-20, base=100.0, dims=[8, 12]),
    ]


def main():
    tensors, records = {}, problems()
    for i, q in enumerate(records):
        shape = q["b"], q["h"], q["n"], q["d"]
        x, dy = leaf(40000 + 10 * i, *shape), normal(40001 + 10 * i, *shape)
        generator = torch.Generator().manual_seed(40002 + 10 * i)
        shape = q["b"], q["n"], q.pop("axes")
        positions = torch.randint(q.pop("lo"), q.pop("hi") + 1, shape, generator=generator)
        y = MODELS[q["model"]](x, positions, **q["options"])
        y.backward(dy)
        tensors |= {f"{i}.x": x, f"{i}.positions": positions, f"{i}.dy": dy, f"{i}.y": y, f"{i}.dx": x.grad}
    save("rope", tensors, records)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
