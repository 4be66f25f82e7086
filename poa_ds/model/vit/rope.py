"""The angles of rotary positions, as DINOv3 has them: of rows and columns, at any resolution alike.

Periods and coordinates are rounded to float32, as timm computes them (Meta's files hold periods
that were rounded to bfloat16); what follows is as fine as the network.
"""

from math import pi

import torch
from torch import Tensor

BASE = 100.0  # of the periods


def angles(rows: int, columns: int, head_dim: int, like: Tensor) -> Tensor:
    """(2, rows x columns, head_dim / 2): cosines and sines of each patch, float32 or better.

    A side runs from -1 to 1, at the middle of its patches. The first half of the angles belongs to
    the row, the other to the column; their periods grow from 1 towards BASE. like: a tensor of the
    network. Source: DINOv3 (arXiv 2508.10104), section 3.2.
    """
    kind = torch.float64 if like.dtype == torch.float64 else torch.float32
    powers = torch.arange(head_dim // 4, device=like.device, dtype=torch.float32)
    periods = BASE ** (2 * powers / (head_dim // 2))

    def of(side: int) -> Tensor:
        places = (torch.arange(side, device=like.device, dtype=torch.float32) + 0.5) / side
        return 2 * pi * (2 * places - 1).to(kind)[:, None] / periods.to(kind)  # (side, D / 4)

    down = of(rows)[:, None].expand(-1, columns, -1)
    across = of(columns)[None].expand(rows, -1, -1)
    found = torch.cat((down, across), dim=-1).flatten(0, 1)
    return torch.stack((found.cos(), found.sin()))
