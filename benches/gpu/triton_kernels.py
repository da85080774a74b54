"""The operators as hand-written Triton kernels: one program for a row, or for a block of elements. bf16 in, f32 arithmetic."""

import torch
import triton
import triton.language as tl

E4M3_MAX = tl.constexpr(448.0)


@triton.jit
def norm_kernel(x, r, w, b, scale, y, s, q, row_scale, n, eps, ADD: tl.constexpr, LAYER: tl.constexpr,
                QUANT: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    mask = i < n
    at = row * n + i
    v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        v = (v + tl.load(r + at, mask=mask, other=0.0).to(tl.float32)).to(tl.bfloat16)
        tl.store(s + at, v, mask=mask)
        v = v.to(tl.float32)
    if LAYER:
        mean = tl.sum(v, axis=0) / n
        v = tl.where(mask, v - mean, 0.0)
    inverse = tl.rsqrt(tl.sum(v * v, axis=0) / n + eps)
    out = v * inverse * tl.load(w + i, mask=mask, other=0.0).to(tl.float32)
    if LAYER:
        out += tl.load(b + i, mask=mask, other=0.0).to(tl.float32)
    if QUANT == 0:
        tl.store(y + at, out.to(tl.bfloat16), mask=mask)
    else:
        out = out.to(tl.bfloat16).to(tl.float32)
        if QUANT == 1:
            by = tl.load(scale)
        else:
            by = tl.max(tl.abs(out), axis=0) / E4M3_MAX
            tl.store(row_scale + row, by)
            by = tl.where(by == 0.0, 1.0, by)
        code = tl.minimum(tl.maximum(out / by, -E4M3_MAX), E4M3_MAX)
        tl.store(q + at, code.to(tl.float8e4nv), mask=mask)


@triton.jit
def silu_mul_kernel(gate, up, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    g = tl.load(gate + at, mask=mask).to(tl.float32)
    u = tl.load(up + at, mask=mask).to(tl.float32)
    tl.store(y + at, ((g / (1.0 + tl.exp(-g))).to(tl.bfloat16).to(tl.float32) * u).to(tl.bfloat16), mask=mask)


@triton.jit
def softmax_kernel(x, y, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    mask = i < n
    v = tl.load(x + row * n + i, mask=mask, other=-float("inf")).to(tl.float32)
    e = tl.exp(v - tl.max(v, axis=0))
    tl.store(y + row * n + i, (e / tl.sum(e, axis=0)).to(tl.bfloat16), mask=mask)


def norm(eps, x, w, r=None, b=None, scale=None, quant=0, warps=8):
    rows, n = x.shape
    y = torch.empty_like(x) if quant == 0 else None
    s = torch.empty_like(x) if r is not None else None
    q = torch.empty_like(x, dtype=torch.float8_e4m3fn) if quant else None
    row_scale = torch.empty(rows, device=x.device, dtype=torch.float32) if quant == 2 else None
    # Arguments that a kernel does not read still need a pointer.
    some = lambda t: x if t is None else t
    norm_kernel[(rows,)](some(x), some(r), w, some(b), some(scale), some(y), some(s), some(q), some(row_scale), n, eps,
                         ADD=r is not None, LAYER=b is not None, QUANT=quant, BLOCK=triton.next_power_of_2(n),
                         num_warps=warps)
    return tuple(t for t in (y, q, row_scale, s) if t is not None)


def silu_mul(gate, up, warps=8):
    y = torch.empty_like(gate)
    n, block = gate.numel(), 1024 * max(warps // 4, 1)
    silu_mul_kernel[(triton.cdiv(n, block),)](gate, up, y, n, BLOCK=block, num_warps=warps)
    return (y,)


def softmax(x, warps=8):
    y = torch.empty_like(x)
    rows, n = x.shape
    softmax_kernel[(rows,)](x, y, n, BLOCK=triton.next_power_of_2(n), num_warps=warps)
    return (y,)
