"""How alike two networks see images: linear CKA, from sums over batches of their features."""

from torch import Tensor


class Alike:
    """Sums over rows of features x (N, C) and y (N, D) of the same images, in float64."""

    def __init__(self) -> None:
        self.rows = 0
        self.sums: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        x, y = x.double(), y.double()
        found = [x.sum(0), y.sum(0), x.T @ x, y.T @ y, x.T @ y]
        self.sums = [a + b for a, b in zip(self.sums, found, strict=True)] if self.rows else found
        self.rows += len(x)

    def cka(self) -> float:
        """0 to 1: |X'Y|^2 / (|X'X| |Y'Y|) of the centred features, Frobenius norms; 1 is the same
        up to rotation and scale. NaN where one of them is constant.

        Source: Kornblith et al., arXiv 1905.00414, eq. 4.
        """
        x, y, xx, yy, xy = self.sums
        of = [
            moments - a[:, None] * b / self.rows
            for moments, a, b in ((xx, x, x), (yy, y, y), (xy, x, y))
        ]
        own, other, both = (matrix.norm() for matrix in of)
        return (both**2 / (own * other)).item() if own * other > 0 else float("nan")
