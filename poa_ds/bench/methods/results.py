"""What the runs of a table have given so far, read from their folders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from poa_ds.bench import cost
from poa_ds.bench.methods.runs import Run
from poa_ds.evaluate import results
from poa_ds.system.errors import UserError
from poa_ds.system.run_folder import RunFolder


@dataclass(frozen=True)
class Result:
    """Of one variant and seed, by as many runs as it takes. knn: size -> percent at report_k.

    before: the same before the first step, of runs that were measured there (evaluation.at_start).
    seconds: of the steps alone. whole: no run of it is missing.
    """

    variant: str
    seed: int
    knn: Mapping[str, float]
    protocol: Mapping[str, Any]
    runs: int
    images: int
    flops: float
    seconds: float
    whole: bool
    before: Mapping[str, float] = field(default_factory=dict)


def read(runs: Sequence[Run]) -> list[Result]:
    """Of every variant and seed that has one finished run at least, in the order of the runs.

    UserError: they were not all measured by one protocol.
    """
    found = []
    for variant, seed in dict.fromkeys((run.variant, run.seed) for run in runs):
        of_both = [run for run in runs if (run.variant, run.seed) == (variant, seed)]
        done = [run for run in of_both if run.done]
        if done:
            found.append(_result(done, whole=len(done) == len(of_both)))
    known = [result for result in found if result.protocol]  # none: no features were finite
    for result in known:
        if result.protocol != known[0].protocol:
            raise UserError(
                f"{result.variant}, seed {result.seed}, was measured in another way than"
                f" {known[0].variant}, seed {known[0].seed}: their k-NN cannot be compared"
            )
    return found


def _result(done: Sequence[Run], *, whole: bool) -> Result:
    knn: dict[str, float] = {}
    before: dict[str, float] = {}
    protocol: Mapping[str, Any] = {}
    for run in done:
        rows = results.read(RunFolder(run.folder).knn)
        for step, into in ((0, before), (run.steps, knn)):
            newest = results.newest(rows, step)
            for size in run.sizes:
                if size in newest:  # one whose features were not finite is not
                    accuracies, protocol = newest[size]
                    into[size] = accuracies[run.recipe.evaluation.report_k]
    return Result(
        done[0].variant,
        done[0].seed,
        knn,
        protocol,
        len(done),
        sum(run.images for run in done),
        sum(run.flops() or 0.0 for run in done),
        sum(max(cost.seconds(RunFolder(r.folder).metrics).values(), default=0.0) for r in done),
        whole,
        before,
    )
