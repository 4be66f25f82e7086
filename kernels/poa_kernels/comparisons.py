"""What the benchmark compares: each operator beside PyTorch's and the published code's way.

Sizes of the ViT-L recipe: 50 images, 2 x 197 + 8 x 37 tokens, 80 % of the sequences kept.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from poa_kernels import (
    add_ln,
    attention,
    photometric,
    prototype_ce,
    rope,
    sinkhorn,
    two_stream_linear,
)
from poa_kernels.contest import Comparison, Scene, as_list, in_mode, ways
from poa_kernels.gelu import gelu


def all_of(scene: Scene) -> Iterator[Comparison]:
    """Every comparison; each is made when its turn comes, so that memory is free again."""
    for make in (linears, attentions, turnings, seams, gelus, sinkhorns, cross_entropies, colours):
        yield from make(scene)


def linears(scene: Scene) -> Iterator[Comparison]:
    """The three products of the four layers of a block at three widths."""
    width = 128 if scene.small else 1024
    rows = 70 if scene.small else 27600
    widths = (64,) if scene.small else (384, 640, 1024)
    for (layer, up, down), narrow in itertools.product(
        (("qkv", 3, 1), ("proj", 1, 1), ("fc1", 4, 1), ("fc2", 1, 4)), widths
    ):
        sizes = (up * width, down * width, up * narrow, down * narrow)
        # torch.compile changes no product: one width of one layer shows it
        late = layer == "qkv" and narrow == widths[len(widths) // 2]
        yield from _products(scene, f"{layer} {narrow}", rows, *sizes, compiled=late)


def _products(
    scene: Scene, name: str, rows: int, height: int, width: int, out: int, narrow: int, *,
    compiled: bool,
) -> Iterator[Comparison]:  # fmt: skip
    w, b = scene.randn(height, width) / width**0.5, scene.randn(height)
    x0, x1, g0, g1 = (scene.randn(rows, n) for n in (width, narrow, height, out))
    scale, flops = width / narrow, 2.0 * rows * (height * width + out * narrow)

    def forward(w, b, x0, x1, g0, g1) -> list[Tensor]:
        return [F.linear(x0, w, b), F.linear(x1 * scale, w[:out, :narrow], b[:out])]

    def of_input(w, b, x0, x1, g0, g1) -> list[Tensor]:
        return [g0 @ w, (g1 @ w[:out, :narrow]) * scale]

    def of_weight(w, b, x0, x1, g0, g1) -> list[Tensor]:
        part = torch.zeros_like(w)
        part[:out, :narrow] = g1.t() @ (x1 * scale)
        return [(g0.t() @ x0).add_(part)]

    arguments = {
        "forward": (forward, ((x0, x1), w, b, (height, out))),
        "input": (of_input, ((g0, g1), w, (width, narrow))),
        "weight": (of_weight, ((g0, g1), (x0, x1), w)),
    }
    tensors = (w, b, x0, x1, g0, g1)
    for kind, (published, given) in arguments.items():
        contenders = {"published": partial(published, *tensors)}
        for use in ("library", "triton", "descriptors"):
            contenders[use] = as_list(two_stream_linear.PRODUCTS[kind, use], given)
        yield Comparison(
            f"linear {name} {kind}",
            contenders,
            partial(published, *[t.float() for t in tensors]),
            lines=(f"{two_stream_linear.OPERATOR}.{kind}/{two_stream_linear.shape_class(w)}",),
            flops=flops,
            threshold=1.03,
            compiled={"compiled": partial(torch.compile(published), *tensors)} if compiled else {},
        )


def attentions(scene: Scene) -> Iterator[Comparison]:
    """Local crops at two widths."""
    for n, tokens, heads in ((2, 9, 2),) if scene.small else ((320, 37, 16), (320, 37, 10)):
        qkv = scene.randn(n * tokens, 3 * heads * 64, leaf=True)

        def ours(x: Tensor, n=n, tokens=tokens) -> list[Tensor]:
            return [attention.attention(x, [(n, tokens)], 64)]

        def published(x: Tensor, shape=(n, tokens, heads, 3, 64)) -> list[Tensor]:
            mixed = F.scaled_dot_product_attention(*x.view(shape).permute(3, 0, 2, 1, 4))
            return [mixed.transpose(1, 2).reshape(len(x), -1)]

        yield Comparison(
            f"attention {tokens} tokens, {heads} heads",
            **ways(ours, published, [qkv]),
            lines=(attention.OPERATOR,),
            bytes=(8 + 14) / 2 * qkv.element_size() * n * tokens * heads * 64,
        )


def turnings(scene: Scene) -> Iterator[Comparison]:
    """Rotary positions of both crops, of DINOv3 L."""
    heads, crops = (2, ((2, 9), (1, 21))) if scene.small else (16, ((100, 201), (400, 41)))
    rows, registers = sum(n * tokens for n, tokens in crops), 4
    qkv, places = scene.randn(rows, 3 * heads * 64, leaf=True), []
    for _, tokens in crops:
        angles = torch.randn(tokens - 1 - registers, 32, device=scene.device)
        places.append(torch.stack((angles.cos(), angles.sin())))

    def published(x: Tensor) -> list[Tensor]:
        parts, turned = x.split([n * tokens for n, tokens in crops]), []
        for part, (n, tokens), (cos, sin) in zip(parts, crops, places, strict=True):
            q, k, v = part.view(n, tokens, heads, 3, 64).permute(3, 0, 2, 1, 4)
            both, first = torch.stack((q, k)), tokens - len(cos)
            a, b = both[..., first:, :].float().chunk(2, dim=-1)
            done = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
            both = torch.cat((both[..., :first, :], done), dim=-2)
            whole = torch.cat((both, v[None])).permute(1, 3, 2, 0, 4)
            turned.append(whole.reshape(n * tokens, -1))
        return [torch.cat(turned)]

    yield Comparison(
        f"rotary positions, {heads} heads",
        **ways(lambda x: [rope.rotate(x, crops, 64, places)], published, [qkv]),
        lines=(rope.OPERATOR,),
        bytes=2.0 * qkv.element_size() * qkv.numel(),
    )


def seams(scene: Scene) -> Iterator[Comparison]:
    """Residual of one branch and norm of the next."""
    rows, width = (64, 48) if scene.small else (34500, 1024)
    for part in (width,) if scene.small else (384, 640, width):
        kept = [
            torch.randperm(rows, device=scene.device)[: rows * 4 // 5].sort()[0] for _ in range(2)
        ]
        factor = torch.full((len(kept[0]),), 1.25, device=scene.device)
        added = add_ln.Rows.of(kept[0], rows, factor)
        taken = add_ln.Rows.of(kept[1], rows)
        leaves = [scene.randn(rows, part, leaf=True), scene.randn(len(kept[0]), part, leaf=True)]
        leaves += [scene.randn(width, leaf=True) for _ in range(3)]

        def seam(*x: Tensor, added=added, taken=taken) -> Sequence[Tensor]:
            return add_ln.add_norm_rows(*x, eps=1e-6, added=added, taken=taken)

        def published(*leaves: Tensor, added=added, taken=taken) -> Sequence[Tensor]:
            x, branch, gamma, weight, bias = leaves
            width = x.shape[1]
            x = x.index_add(0, added.rows, branch * gamma[:width], alpha=1.25)
            y = F.layer_norm(x[taken.rows], (width,), weight[:width], bias[:width], 1e-6)
            return x, y

        yield Comparison(
            f"residual + norm {part}",
            **ways(seam, published, leaves),
            lines=(add_ln.OPERATOR,),
            bytes=(7.2 + 10.8) / 2 * leaves[0].element_size() * rows * part,
        )


def gelus(scene: Scene) -> Iterator[Comparison]:
    """GELU, and the bias gradient of the layer before it."""
    rows, width = (40, 64) if scene.small else (27600, 4096)
    leaves = [scene.randn(rows, width, leaf=True), scene.randn(width, leaf=True)]

    def published(h: Tensor, b: Tensor) -> list[Tensor]:
        return [F.gelu(h + (b - b.detach()))]  # the bias is already inside

    yield Comparison(
        f"gelu {width}",
        **ways(lambda h, b: [gelu(h, b)], published, leaves),
        lines=("gelu",),
        bytes=5.0 * leaves[0].element_size() * rows * width,
    )


def sinkhorns(scene: Scene) -> Iterator[Comparison]:
    """Three iterations over the masked patches of one head."""
    rows, prototypes = (40, 192) if scene.small else (2940, 65536)
    scores = (scene.unit(rows, 64) @ scene.unit(prototypes, 64).t()).float()
    low = scores.half()

    def published(scores: Tensor) -> list[Tensor]:
        q = torch.exp(scores / 0.06).t()
        q = q / q.sum()
        for _ in range(3):
            q = q / q.sum(1, keepdim=True) / q.shape[0]
            q = q / q.sum(0, keepdim=True) / q.shape[1]
        return [(q * q.shape[1]).t()]

    def balanced(x: Tensor) -> list[Tensor]:
        bias, lse = torch.zeros(x.shape[1], device=x.device), None
        for _ in range(3):
            bias = bias - sinkhorn.column_mass(x, 0.06, bias, lse).log()
            lse = sinkhorn.row_lse(x, 0.06, bias)
        return [torch.exp(scores / 0.06 + bias - lse[:, None])]

    def products() -> list[Tensor]:
        return [torch.softmax(scores / 0.06 + sinkhorn.reference(scores, 0.06, 3), 1)]

    yield Comparison(
        f"sinkhorn {prototypes}",
        {
            "published": partial(published, scores),
            "products": products,
            "triton": in_mode("triton", lambda: balanced(scores)),
            "triton fp16": in_mode("triton", lambda: balanced(low)),
        },
        truth=partial(published, scores.double()),
        lines=(sinkhorn.ROWS, sinkhorn.COLUMNS),
        bytes=6.0 * scores.element_size() * scores.numel(),
        floor=3e-3,  # scores rounded to fp16, divided by the temperature
        compiled={"compiled": torch.compile(products)},
    )


def cross_entropies(scene: Scene) -> Iterator[Comparison]:
    """Rows of one student against the teacher's, a small and the largest head."""
    rows, width = (40, 32) if scene.small else (3440, 256)
    for prototypes in (192,) if scene.small else (8192, 65536):
        leaves = [scene.unit(rows, width, leaf=True), scene.unit(prototypes, width, leaf=True)]
        z, w = scene.unit(rows, width), scene.unit(prototypes, width)
        index = torch.arange(rows, device=scene.device, dtype=torch.int32)[:, None]
        bias = torch.zeros(prototypes, device=scene.device)

        def targets(x: Tensor, teacher=(z, w), rest=(0.06, bias, index)) -> list:
            return [prototype_ce.Target(*[t.to(x.dtype) for t in teacher], *rest)]

        def ours(x: Tensor, p: Tensor, targets=targets) -> list[Tensor]:
            return [prototype_ce.prototype_ce(x, p, targets(x), 0.1)]

        def published(x: Tensor, p: Tensor, targets=targets) -> list[Tensor]:
            return [prototype_ce.reference(x, p, targets(x), 0.1)]

        yield Comparison(
            f"prototype cross-entropy {prototypes}",
            **ways(ours, published, leaves),
            lines=(prototype_ce.OPERATOR,),
            flops=3 * 2.0 * rows * prototypes * width,
            floor=3e-3,
        )


def colours(scene: Scene) -> Iterator[Comparison]:
    """All changes of the global crops, beside one crop after the other; decides nothing."""
    count, side = (2, 9) if scene.small else (100, 224)
    place = {"device": scene.device}
    crops = torch.randint(0, 256, (count, 3, side, side), **place).to(torch.uint8)
    order = torch.arange(4, dtype=torch.int32, **place).repeat(count, 1)
    factors = torch.tensor([1.2, 0.8, 1.1, 0.05], **place).repeat(count, 1)
    every = torch.ones(count, dtype=torch.bool, **place)
    sigma, still = torch.ones(count, **place), torch.zeros_like(every)
    changes = photometric.Changes(factors, order, every, sigma, still)

    def run() -> list[Tensor]:
        normal = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
        return [photometric.photometric(crops, changes, taps=9, **normal)]

    eager = in_mode("reference", run)
    yield Comparison(
        f"colours of {count} crops",
        {"crop by crop": eager, "triton": in_mode("triton", run)},
        eager,
        bytes=(2 * 1 + 5 * 4.0) * crops.numel(),
    )
