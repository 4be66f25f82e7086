"""A template from matrices that are there: Tucker's form of them by their singular vectors.

The higher-order singular value decomposition (De Lathauwer et al., 2000): along each of the three
modes the leading left singular vectors, and the core that these leave. At full ranks it is exact;
below, its squared error is at most the sum of the squared singular values cut off in the modes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from poa_ds.model.tucker.shape import Ranks
from poa_ds.model.tucker.template import Matrices, Template


def decompose(whole: Tensor, ranks: Ranks) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """(core (r1, r2, r3), bases (n, r)) of a tensor (n1, n2, n3), in its precision.

    The bases have orthonormal columns.
    """
    bases = [_leading(whole, mode, rank) for mode, rank in enumerate(ranks)]
    core = torch.einsum("mab,mi,aj,bk->ijk", whole, *bases)
    return core, (bases[0], bases[1], bases[2])


def _leading(whole: Tensor, mode: int, rank: int) -> Tensor:
    """Left singular vectors of an unfolding: eigenvectors of its products with itself."""
    unfolded = whole.movedim(mode, 0).flatten(1)
    _, vectors = torch.linalg.eigh(unfolded @ unfolded.T)  # in ascending order
    return vectors[:, -rank:].flip(1)


@torch.no_grad()
def fill(template: Template, blocks: Sequence[Matrices]) -> float:
    """Let the template make these matrices as well as its ranks can; their relative error.

    The scalers of blocks get the size that they have at the start of a training.
    """
    whole = torch.cat([template.slices(block).double() for block in blocks])
    core, (first, rows, columns) = decompose(whole, template.ranks)
    made = torch.einsum("ijk,mi,aj,bk->mab", core, first, rows, columns)
    size = (len(whole) / first.shape[1]) ** 0.5
    scalers = (first * size).chunk(template.depth)
    pairs = [(template.core, core / size), *zip(template.block_factors(), scalers, strict=True)]
    pairs += [(template.row_factor, rows), (template.column_factor, columns)]
    for parameter, value in pairs:
        parameter.copy_(value)
    return ((whole - made).norm() / whole.norm()).item()
