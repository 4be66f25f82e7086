"""What of a run MLflow shows, and under which names: of the run itself, and of a run per size."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poa_ds.evaluate import results
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe
from poa_ds.system.printable import figure
from poa_ds.system.run_folder import RunFolder
from poa_ds.track.metrics_file import OF_A_SIZE, PIXELS, Floors, size_of

NOTE, SIZE = "mlflow.note.content", "poa.size"
COMMIT = "mlflow.source.git.commit"


class View:
    """The names and the costs of a recipe's sizes, as MLflow shows them."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._shape = recipe, derived.shape(recipe)
        self._space = derived.space(recipe)
        self._names: dict[Subnet, list[str]] = {}
        for name, size in self._space.names.items():
            self._names.setdefault(size, []).append(name)

    def by_run(self, values: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """The metrics of the run itself (key "") and of the sizes' own runs (key: their label).

        A size's own has knn_top1, knn_k10, knn_random, ...; the run has, of each evaluation, the
        best, the named sizes, the floor of raw pixels and the least and most that was gained.
        """
        parts: dict[str, dict[str, float]] = {"": {}}
        for name, value in values.items():
            match = OF_A_SIZE.fullmatch(name)
            if match is not None:
                parts.setdefault(match[2], {})[match[1]] = value
            elif name != PIXELS:
                parts[""][name] = value
        measured = {size_of(label): part for label, part in parts.items() if "knn_top1" in part}
        top1 = {size: part["knn_top1"] for size, part in measured.items()}
        gains = [
            part["knn_top1"] - part["knn_random"]
            for part in measured.values()
            if "knn_random" in part
        ]
        if top1:
            parts[""]["knn/best"] = max(top1.values())
        if gains:
            parts[""] |= {"knn/gain_min": min(gains), "knn/gain_max": max(gains)}
        if PIXELS in values:
            parts[""]["knn/raw_pixels"] = values[PIXELS]
        named = ((size, name) for size in top1 for name in self._names.get(size, ()))
        # the run's own metrics keep their names, whatever sizes are called
        return parts | {"": {f"knn/{name}": top1[size] for size, name in named} | parts[""]}

    def name(self, size: Subnet) -> str:
        """Of a size's run: 384x12, or 384x12 (small)."""
        names = self._names.get(size)
        return f"{size} ({', '.join(names)})" if names else str(size)

    def size_tags(self, size: Subnet) -> dict[str, str]:
        """What runs of sizes can be searched by."""
        return {
            SIZE: str(size),
            "poa.width": str(size.width),
            "poa.depth": size.depth_text,
            "poa.named": ", ".join(self._names.get(size, ())),
        }

    def run_tags(self) -> dict[str, str]:
        """The same of the run itself."""
        return {
            "poa.method": self._recipe.objective.method,
            "poa.backbone": self._recipe.backbone.name,
            "poa.sizes": str(len(self._space.subnets())),
        }

    def costs(self, size: Subnet) -> dict[str, float]:
        """As metrics, which MLflow can draw accuracies over."""
        flops = self._shape.flops(size, self._recipe.evaluation.crop)
        return {"parameters": float(self._shape.parameters(size)), "gflops": flops / 1e9}

    def note(
        self,
        step: int,
        top1: Mapping[Subnet, float],
        floors: Floors,
        protocol: Mapping[str, Any],
        folder: Path,
    ) -> str:
        """The run's description in Markdown: the best and the named sizes, how it was measured."""
        best = max(top1, key=lambda size: top1[size])
        queries = protocol["queries"]["images"]
        lines = [
            f"k-NN top-1 in percent (k = {self._recipe.evaluation.report_k}) at step {step:,},"
            f" {len(top1)} sizes\n",
            "| size | parameters | GFLOPs | top-1 | gained over random weights |",
            "|---|---|---|---|---|",
        ]
        for size in dict.fromkeys([best, *(s for s in self._names if s in top1)]):
            costs, random = self.costs(size), floors.random.get(size)
            gain = "" if random is None else f"{top1[size] - random:+.1f}"
            error = results.error(top1[size], queries)
            lines.append(
                f"| {self.name(size)}{', the best' * (size == best)} | {costs['parameters']:,.0f} "
                f"| {figure(costs['gflops'])} | {top1[size]:.1f} ± {error:.1f} | {gain} |"
            )
        if floors.pixels is not None:
            lines.append(f"\nRaw pixels alone: {floors.pixels:.1f}.")
        how = ", ".join(f"{key} {value}" for key, value in protocol.items())
        lines.append(f"\nMeasured with {how}.")
        report = RunFolder(folder).report
        lines.append(f"\nTo choose a size by: `{report.name}` among the artifacts, or `{report}`.")
        return "\n".join(lines)


def allowed(name: str) -> str:
    """The metric's name without the characters that MLflow refuses."""
    return re.sub(r"[^\w\-./ :]", "_", name)
