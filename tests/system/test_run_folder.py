"""The names below a run's output_dir, which nothing else may spell out."""

import ast
import re
from pathlib import Path

from poa_ds.system.run_folder import RunFolder
from tests.test_architecture import modules


def test_a_run_of_an_older_revision_has_its_things_at_these_places() -> None:
    run = RunFolder(Path(__file__).parents[1] / "run" / "run_of_61a1063" / "run")
    there = {run.recipe, run.deepspeed, run.derived, run.metrics, run.knn, run.ended}
    assert {*run.path.iterdir()} == there | {run.checkpoints, run.teachers}
    assert run.teacher(8).is_dir()
    assert RunFolder.around(run.teacher(8)).knn == run.knn


def test_a_teacher_that_stands_alone_has_its_own_evaluations() -> None:
    assert RunFolder.around(Path("taken_out")).knn == Path("taken_out/knn.jsonl")


def test_only_the_owner_of_the_names_spells_them_out() -> None:
    names = {Path(value).name for value in vars(RunFolder(Path("run"))).values()} - {"run"}
    spelled = re.compile(rf"^/?({'|'.join(map(re.escape, sorted(names)))}|bad_step.*)$")
    wrong = [
        f"{name}:{node.lineno}: {text.value}"
        for name, path in modules().items()
        if name.startswith("poa_ds") and name != "poa_ds.system.run_folder"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.BinOp | ast.FormattedValue | ast.JoinedStr)
        for text in ast.walk(node.right if isinstance(node, ast.BinOp) else node)
        if isinstance(text, ast.Constant) and spelled.match(str(text.value))
    ]
    assert not wrong
