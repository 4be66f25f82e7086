"""A Swin transformer that needs torch alone: the network whose weights lie beside this file.

    from model import load
    network = load()                           # or load("folder")
    features = network(images)                 # (B, in_chans, S, S), normalised -> (B, C)
    maps = network.forward_features(images)    # -> (B, rows, columns, C)

It differs from the usual Swin in what config.json says: which blocks shift their windows, and how
many channels the norm of the patches sees before the first `width` of them go on. Windows are
never made smaller, and always shifted, however small the map is.

This file is copied whole into every export, so that it repeats what its siblings have as well.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS, APART = 1e-5, -100.0


class Patches(nn.Module):
    """Images -> (B, rows, columns, width); normalised over `projected` >= width channels."""

    def __init__(self, projected: int, width: int, patch_size: int, in_chans: int) -> None:
        super().__init__()
        self.projected, self.width = projected, width
        self.proj = nn.Conv2d(in_chans, projected, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(width, EPS)

    def forward(self, images: Tensor) -> Tensor:
        x = self.proj(images).permute(0, 2, 3, 1)
        x = F.layer_norm(x, (self.projected,), eps=EPS)[..., : self.width]
        return x * self.norm.weight + self.norm.bias


class Attention(nn.Module):
    """Attention inside windows of a map (B, rows, columns, C)."""

    def __init__(self, dim: int, head_dim: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = dim // head_dim, window, shift
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window - 1) ** 2, self.heads)
        )
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
        apart = at.flatten(1)[:, :, None] - at.flatten(1)[:, None, :] + window - 1
        index = apart[0] * (2 * window - 1) + apart[1]
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        (rows, columns), dim = x.shape[1:3], self.proj.in_features
        w, s = self.window, self.shift
        high, wide = (rows + w - 1) // w * w, (columns + w - 1) // w * w
        x = F.pad(x, (0, 0, 0, wide - columns, 0, high - rows))  # padding takes part
        x = torch.roll(x, (-s, -s), (1, 2)) if s else x
        x = x.reshape(-1, high // w, w, wide // w, w, dim).transpose(2, 3)
        x = x.reshape(-1, w * w, dim)  # (B x windows, places, C)
        qkv = self.qkv(x).reshape(-1, w * w, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        logits = q @ k.transpose(-2, -1) / math.sqrt(dim // self.heads)
        logits = logits + self.relative_position_bias_table[self.index].permute(2, 0, 1)
        if s:
            mask = self.mask(high, wide).to(x)
            logits = logits.reshape(-1, mask.shape[0], self.heads, w * w, w * w) + mask[:, None]
            logits = logits.reshape(-1, self.heads, w * w, w * w)
        x = (logits.softmax(-1) @ v).transpose(1, 2).reshape(-1, w * w, dim)
        x = self.proj(x).reshape(-1, high // w, wide // w, w, w, dim).transpose(2, 3)
        x = x.reshape(-1, high, wide, dim)
        x = torch.roll(x, (s, s), (1, 2)) if s else x
        return x[:, :rows, :columns]

    def mask(self, high: int, wide: int) -> Tensor:
        """(windows, places, places): APART for tokens that only the shift made neighbours."""
        w, s = self.window, self.shift

        def part(size: int) -> Tensor:
            place = torch.arange(size)
            return (place >= size - w).long() + (place >= size - s).long()

        region = 3 * part(high)[:, None] + part(wide)[None, :]
        region = region.reshape(high // w, w, wide // w, w).transpose(1, 2).reshape(-1, w * w)
        return APART * (region[:, None, :] != region[:, :, None]).float()


class Block(nn.Module):
    def __init__(self, dim: int, head_dim: int, window: int, mlp_ratio: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, EPS), nn.LayerNorm(dim, EPS)
        self.attn = Attention(dim, head_dim, window, shift)
        self.fc1, self.fc2 = nn.Linear(dim, mlp_ratio * dim), nn.Linear(mlp_ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Merge(nn.Module):
    """2 x 2 tokens -> one, in the order (0,0), (0,1), (1,0), (1,1) of (row, column)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, EPS)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, columns % 2, 0, rows % 2))
        corners = [x[:, r::2, c::2] for r in (0, 1) for c in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class Swin(nn.Module):
    """shifted: for each stage, of each block, whether its windows are shifted."""

    def __init__(
        self,
        *,
        width: int,
        projected: int,
        shifted: list[list[bool]],
        patch_size: int = 4,
        head_dim: int = 16,
        window: int = 7,
        mlp_ratio: int = 4,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.embed = Patches(projected, width, patch_size, in_chans)
        layers: list[nn.Module] = []
        for stage, shifts in enumerate(shifted):
            dim = width * 2**stage
            layers += [Merge(dim // 2)] if stage else []
            layers += [
                Block(dim, head_dim, window, mlp_ratio, window // 2 if shift else 0)
                for shift in shifts
            ]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width * 2 ** (len(shifted) - 1), EPS)

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised tokens of the last map (B, rows, columns, C)."""
        return self.norm(self.layers(self.embed(images)))

    @property
    def strides(self) -> list[int]:
        """Pixels of the images from one place of each of the maps to the next."""
        merges = sum(isinstance(layer, Merge) for layer in self.layers)
        return [self.embed.proj.stride[0] * 2**stage for stage in range(merges + 1)]

    def maps(self, images: Tensor) -> list[Tensor]:
        """A map (B, C, rows, columns) of each stage, the last one normalised."""
        x, found = self.embed(images), []
        for layer in self.layers:
            found += [x] if isinstance(layer, Merge) else []
            x = layer(x)
        return [x.permute(0, 3, 1, 2) for x in (*found, self.norm(x))]

    def branches(self) -> list[list[nn.Module]]:
        """Of each block the modules whose outputs are added to its input."""
        return [[layer.attn, layer.fc2] for layer in self.layers if isinstance(layer, Block)]

    def forward(self, images: Tensor) -> Tensor:
        """The class feature (B, C): the mean token."""
        return self.forward_features(images).mean((1, 2))


Network = Swin


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


def load(folder: str | Path | None = None) -> Swin:
    """The network of a folder (default: this file's) in eval mode, float32, on the CPU."""
    folder = Path(folder or Path(__file__).parent)
    network = Swin(**json.loads((folder / "config.json").read_text())["model_args"])
    network.load_state_dict(read(folder / "state_dict.safetensors"))
    return network.eval()
