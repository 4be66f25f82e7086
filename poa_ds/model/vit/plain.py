"""A vision transformer that needs torch alone: the network whose weights lie beside this file.

    from model import load
    network = load()                           # or load("folder")
    features = network(images)                 # (B, in_chans, S, S), normalised -> (B, C)
    tokens = network.forward_features(images)  # -> (B, 1 + N, C), the class token first; registers
                                               # stand between: network.num_prefix_tokens tokens
                                               # before those of patches

Parameters and arguments have the names of timm. Away from the resolution of the training it
resizes learned positions as the training did, which timm does in another way; rotary ones are of
any resolution.

This file is copied whole into every export, so that it repeats what its siblings have as well.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


class Qkv(nn.Linear):
    """Rows q|k|v. bias: "no_key": of queries and values alone, False: none."""

    def __init__(self, dim: int, bias: bool | str) -> None:
        super().__init__(dim, 3 * dim, bias=bool(bias))
        if bias == "no_key":
            self.bias = nn.Parameter(torch.zeros(2 * dim))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias
        if bias is not None and len(bias) < self.out_features:
            q, v = bias.chunk(2)
            bias = torch.cat((q, torch.zeros_like(q), v))
        return F.linear(x, self.weight, bias)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, bias: bool | str) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Qkv(dim, bias)
        self.proj = nn.Linear(dim, dim)

    def queries_keys_values(self, x: Tensor, angles: Tensor | None) -> tuple[Tensor, ...]:
        """(B, heads, tokens, D) each. angles: of rotary positions, or None."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return (q, k, v) if angles is None else (turned(q, angles), turned(k, angles), v)

    def forward(self, x: Tensor, angles: Tensor | None = None) -> Tensor:
        q, k, v = self.queries_keys_values(x, angles)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """(B, heads, tokens, D), turned. angles: (2, tokens, D / 2), cosines and sines."""
    (a, b), (cos, sin) = x.chunk(2, dim=-1), angles
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class GatedMlp(nn.Module):
    """SwiGLU; hidden: rows of fc1, the gates' before the values'."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class LayerScale(nn.Module):
    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(
        self, attn: nn.Module, mlp: nn.Module, dim: int, init_values: float | None, eps: float
    ) -> None:
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if init_values is None else LayerScale(dim, init_values)

        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attn, self.mlp = attn, mlp
        self.ls1, self.ls2 = scale(), scale()

    def forward(self, x: Tensor, angles: Tensor | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), angles))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, dim: int, patch_size: int, in_chans: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images)


class ViT(nn.Module):
    """init_values: None = no LayerScale. img_size: of the training.

    gated: SwiGLU. no_embed_class: the table of positions has none for the class token. pos_embed:
    "learn", "rope" or "none". qkv_bias: True, False, or "no_key".
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        mlp_ratio: float = 4,
        init_values: float | None = 1e-5,
        reg_tokens: int = 0,
        no_embed_class: bool = False,
        norm_eps: float = EPS,
        gated: bool = False,
        pos_embed: str = "learn",
        qkv_bias: bool | str = True,
    ) -> None:
        super().__init__()
        self.grid = img_size // patch_size
        self.patch_embed = PatchEmbed(embed_dim, patch_size, in_chans)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.reg_token = None
        if reg_tokens:
            self.reg_token = nn.Parameter(torch.zeros(1, reg_tokens, embed_dim))
        self.num_prefix_tokens, self.placed = 1 + reg_tokens, 0 if no_embed_class else 1
        self.turns = embed_dim // num_heads // 2 if pos_embed == "rope" else 0  # angles of a patch
        self.pos_embed = None
        if pos_embed == "learn":
            self.pos_embed = nn.Parameter(torch.zeros(1, self.placed + self.grid**2, embed_dim))
        mlp, hidden = GatedMlp if gated else Mlp, int(embed_dim * mlp_ratio)
        self.blocks = nn.ModuleList(
            Block(
                Attention(embed_dim, num_heads, qkv_bias),
                mlp(embed_dim, hidden),
                embed_dim,
                init_values,
                norm_eps,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, norm_eps)

    def positions(self, rows: int, columns: int) -> Tensor:
        """(1, placed + rows x columns, C): bicubic, in float32, with the offset of the training."""
        side = self.grid
        if rows == columns == side:
            return self.pos_embed
        table = (
            self.pos_embed[:, self.placed :].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
        )
        scale = ((rows + 0.1) / side, (columns + 0.1) / side)
        table = F.interpolate(table, scale_factor=scale, mode="bicubic")
        table = table.permute(0, 2, 3, 1).flatten(1, 2).to(self.pos_embed.dtype)
        return torch.cat((self.pos_embed[:, : self.placed], table), dim=1)

    def angles(self, rows: int, columns: int) -> Tensor:
        """(2, tokens, D / 2): cosines and sines of rotary positions; patches alone are turned."""
        like = self.cls_token
        kind = torch.float64 if like.dtype == torch.float64 else torch.float32
        powers = torch.arange(self.turns // 2, device=like.device, dtype=torch.float32)
        periods = (100.0 ** (2 * powers / self.turns)).to(kind)

        def of(side: int) -> Tensor:
            places = (torch.arange(side, device=like.device, dtype=torch.float32) + 0.5) / side
            return 2 * math.pi * (2 * places - 1).to(kind)[:, None] / periods

        down, across = of(rows)[:, None], of(columns)[None]
        down, across = down.expand(-1, columns, -1), across.expand(rows, -1, -1)
        found = torch.cat((down, across), dim=-1).flatten(0, 1)
        found = F.pad(found, (0, 0, self.num_prefix_tokens, 0))
        return torch.stack((found.cos(), found.sin()))

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised tokens (B, num_prefix_tokens + N, C), the class token first."""
        x = self.patch_embed(images)
        rows, columns = x.shape[2], x.shape[3]
        x = x.flatten(2).transpose(1, 2)
        cls_token = self.cls_token.expand(x.shape[0], -1, -1)
        if self.pos_embed is not None and self.placed:
            x = torch.cat((cls_token, x), dim=1) + self.positions(rows, columns)
            cls_token, x = x[:, :1], x[:, 1:]
        elif self.pos_embed is not None:
            x = x + self.positions(rows, columns)
        if self.reg_token is not None:
            x = torch.cat((self.reg_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = torch.cat((cls_token, x), dim=1)
        angles = self.angles(rows, columns) if self.turns else None
        for block in self.blocks:
            x = block(x, angles)
        return self.norm(x)

    @property
    def strides(self) -> list[int]:
        """Pixels of the images from one place of each of the maps to the next."""
        return [self.patch_embed.proj.stride[0]]

    def maps(self, images: Tensor) -> list[Tensor]:
        """One map (B, C, rows, columns): the normalised tokens of the patches."""
        rows, columns = (side // self.strides[0] for side in images.shape[2:])
        tokens = self.forward_features(images)[:, self.num_prefix_tokens :]
        return [tokens.transpose(1, 2).unflatten(2, (rows, columns))]

    def branches(self) -> list[list[nn.Module]]:
        """Of each block the modules whose outputs are added to its input."""
        return [[block.ls1, block.ls2] for block in self.blocks]

    def forward(self, images: Tensor) -> Tensor:
        """The class feature (B, C): the class token."""
        return self.forward_features(images)[:, 0]


Network = ViT


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, F32 or F16 there, in float32."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    for name, about in json.loads(content[8:start]).items():
        if name != "__metadata__":
            kind = {"F32": torch.float32, "F16": torch.float16}[about["dtype"]]
            first, last = (start + offset for offset in about["data_offsets"])
            numbers = torch.frombuffer(bytearray(content[first:last]), dtype=kind)
            tensors[name] = numbers.reshape(about["shape"]).float()
    return tensors


def load(folder: str | Path | None = None) -> ViT:
    """The network of a folder (default: this file's) in eval mode, float32, on the CPU."""
    folder = Path(folder or Path(__file__).parent)
    network = ViT(**json.loads((folder / "config.json").read_text())["model_args"])
    network.load_state_dict(read(folder / "state_dict.safetensors"))
    return network.eval()
