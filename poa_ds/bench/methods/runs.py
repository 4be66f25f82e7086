"""The runs of a table: which recipe each has, in which order they come, what each computes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from poa_ds.bench import cost
from poa_ds.bench.methods.table import Equal, Table, Variant
from poa_ds.recipe import derived, load
from poa_ds.recipe.tree import Recipe
from poa_ds.recipe.twin import twin
from poa_ds.run import exit_status
from poa_ds.system.errors import UsageError
from poa_ds.system.run_folder import RunFolder

# of every run: what MLflow and the page would show is in the table
OVERRIDES = ("tracking=none", "report=false", "evaluation.at_start=false")


@dataclass(frozen=True)
class Settings:
    """What the command line says. images: of the training set. steps: None = the recipes'."""

    out: Path
    data: str
    images: int
    seeds: tuple[int, ...]
    variants: tuple[str, ...]
    steps: int | None = None
    equal: Equal = "images"


@dataclass(frozen=True)
class Run:
    """One training. sizes: of the table, those that it measures. needs: the runs before it.

    source: the run that is written in another basis (rebase) to recipe.start before this begins.
    """

    name: str
    variant: str
    seed: int
    sizes: tuple[str, ...]
    recipe: Recipe
    steps: int
    needs: tuple[str, ...] = ()
    source: str = ""
    rebase: str = "none"

    @property
    def folder(self) -> Path:
        return Path(self.recipe.output_dir)

    @property
    def images(self) -> int:
        """How many it learns from, seen again ones counted again."""
        return self.steps * cost.images_per_step(self.recipe)

    @property
    def done(self) -> bool:
        """Whether it has come to its end; one that was stopped has not."""
        ended = exit_status.read(self.folder)
        return bool(ended and ended.status == exit_status.DONE and ended.step == self.steps)

    def flops(self) -> float | None:
        """Counted, two per multiply-add, without evaluations; None while its teacher is missing."""
        if self.needs or self.source:
            teacher = self.recipe.distill.teacher
            if teacher and not _there(Path(teacher)):
                return None
        return self.steps * cost.flops_per_step(self.recipe)


def _there(teacher: Path) -> bool:
    """Whether it is a run that has published, or one network's folder."""
    return RunFolder(teacher).teachers.is_dir() or (teacher / "teacher.safetensors").is_file()


def plan(table: Table, settings: Settings) -> list[Run]:
    """All runs, seed by seed, and of a seed each behind those that it needs."""
    chosen = {name: table.variants[name] for name in settings.variants}
    for name in chosen:
        for other in table.before(name):
            if other not in chosen:
                does = "learns from" if other == chosen[name].teacher else "begins with"
                raise UsageError(
                    f"{name} {does} {other}: give it to --only too (what is done is not repeated)"
                )
    ordered = sorted(chosen.items(), key=lambda item: table.depth(item[0]))
    found = []
    for seed in settings.seeds:
        of_seed = [
            run for name, v in ordered for run in _of_variant(table, name, v, settings, seed)
        ]
        found += _balanced(of_seed, table, settings) if settings.equal == "flops" else of_seed
    if settings.equal == "images" and len({run.images for run in found}) > 1:
        seen = ", ".join(f"{run.name} {run.images:,}" for run in found)
        raise UsageError(f"--equal images: the runs do not see as many (--steps): {seen}")
    return found


def _of_variant(
    table: Table, name: str, variant: Variant, settings: Settings, seed: int
) -> Iterator[Run]:
    runs, data = settings.out / "runs", Path(settings.data)
    overrides = [*OVERRIDES, f"data.train={data / 'train'}", f"evaluation.queries={data / 'val'}"]
    overrides += [
        *table.head.set,
        *variant.set,
        f"seed={seed}",
        f"output_dir={runs / name}_s{seed}",
    ]
    if variant.teacher:
        overrides.append(f"distill.teacher={runs / variant.teacher}_s{seed}")
    source = f"{runs / variant.start}_s{seed}" if variant.start in table.variants else variant.start
    try:
        recipe = load.recipe(Path(variant.recipe or table.head.recipe), overrides)
        if variant.start:
            moved = f"{settings.out / 'starts' / name}_{variant.rebase}_s{seed}"
            recipe = _started(recipe, variant, source if variant.rebase == "none" else moved)
        there = {str(subnet) for subnet in derived.space(recipe).subnets()}
        wanted = variant.sizes or table.head.sizes
        sizes = tuple(size for size in wanted if size in there)
        if not sizes:
            raise UsageError(f"it has none of the sizes {', '.join(wanted)}")
        recipe = _with_steps(recipe, settings.steps)
        if variant.alone:
            for size in sizes:
                own = twin(recipe, derived.space(recipe).parse(size))
                label = f"{name}_{size}_s{seed}"
                own = replace(own, output_dir=str(runs / label))
                yield _run(label, name, own, (size,), settings)
            return
    except UsageError as error:
        raise UsageError(f"variant {name}: {error}") from error
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, sizes=sizes))
    found = _run(f"{name}_s{seed}", name, recipe, sizes, settings)
    found = replace(found, needs=tuple(f"{other}_s{seed}" for other in table.before(name)))
    moves = variant.rebase != "none"
    yield replace(found, source=source, rebase=variant.rebase) if moves else found


def _started(recipe: Recipe, variant: Variant, start: str) -> Recipe:
    """The recipe that begins with `start`, and learns from it where nothing else is named."""
    if recipe.objective.method == "seed" and not variant.teacher:
        recipe = replace(recipe, distill=replace(recipe.distill, teacher=start))
    return replace(recipe, start=start)


def _run(
    label: str, variant: str, recipe: Recipe, sizes: tuple[str, ...], settings: Settings
) -> Run:
    steps = derived.of(recipe, settings.images).steps
    return Run(label, variant, recipe.seed, sizes, recipe, steps)


def _with_steps(recipe: Recipe, steps: float | None) -> Recipe:
    """About so many steps in all: the epochs, which schedules count in, become shorter."""
    if steps is None:
        return recipe
    per_epoch = max(1, round(steps / recipe.schedule.epochs))
    return replace(recipe, schedule=replace(recipe.schedule, steps_per_epoch=per_epoch))


def _balanced(runs: Sequence[Run], table: Table, settings: Settings) -> list[Run]:
    """The runs of a seed with steps that give every variant the FLOPs of table.head.against."""
    if table.head.against not in settings.variants:
        raise UsageError(f"--equal flops: --only needs {table.head.against}, whose FLOPs count")
    if table.variants[table.head.against].needs:
        raise UsageError(
            f"--equal flops: {table.head.against} has a teacher or a start, before whose end its"
            " FLOPs are not known: compare with a variant that has none"
        )
    totals: dict[str, float | None] = {}
    for name in settings.variants:
        counted = [run.flops() for run in runs if run.variant == name]
        totals[name] = None if None in counted else sum(counted)
    found = []
    for run in runs:
        total = totals[run.variant]
        if total is None:  # it cannot begin yet: its teacher comes first
            found.append(run)
            continue
        steps = run.steps * totals[table.head.against] / total
        recipe = _with_steps(run.recipe, steps)
        found.append(replace(run, recipe=recipe, steps=derived.of(recipe, settings.images).steps))
    return found
