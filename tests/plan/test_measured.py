"""Constants that were measured on a GPU take the place of the assumed ones, and say so."""

import dataclasses
import json
import statistics
from pathlib import Path

import pytest

from poa_ds.bench.contenders import Job, ProcessMemory, Sample
from poa_ds.bench.gpu import constants, figures, parts
from poa_ds.bench.gpu.calls import Outcome, Scene
from poa_ds.bench.report import Machine, Report, Result
from poa_ds.cli import main
from poa_ds.plan import measured, state, step_time
from poa_ds.plan.constants import GPUS
from poa_ds.plan.state import Layout
from poa_ds.plan.step_time import Cluster, Draws
from poa_ds.recipe import derived, ds_json, load

RATES = {"processor": "NVIDIA H100 80GB HBM3", figures.COPY: 2.9, figures.PRODUCT: 700.0}


def record_of(seconds: list[float]) -> dict:
    """As `poa-ds bench step --json` writes it, of a ViT-L whose elastic student is 640x17."""
    recipe = load.recipe(Path("ds_configs/vit_l16_in1k.yaml"), ["batch.slots=1", "precision=bf16"])
    job = Job(recipe, {}, derived.space(recipe).parse("640x17"), "cuda")
    first, *steps = [Sample(value, value, 1.0, {"backbone": 1.0}) for value in [9.0, *seconds]]
    result = Result([first], steps, ProcessMemory(0, 1, 1))
    machine = Machine(RATES["processor"], 8, 1, "2.11", "0.19.8", 0.0, "2026-11-27")
    report = Report("--config vit_l16_in1k", job, machine, {"ours": result}, in_turns=False)
    return json.loads(json.dumps(report.record()))


def test_the_plan_of_a_measured_step_has_its_time() -> None:
    seconds = [0.21, 0.2, 0.25]
    record = record_of(seconds)
    kind, found = constants.of_records(record, RATES, "today")
    assert kind == "h100" and "vit_l16_in1k" in found["efficiency"].source
    recipe = load.from_dict(record["config"])
    network = state.network(recipe)
    ds_config = ds_json.resolved(recipe, {"zero_optimization": {"stage": 2}}, 1)
    share = derived.space(recipe).cost(derived.space(recipe).parse("640x17"))
    one = Layout(2, 1, 1, "bf16", ds_config)
    cluster = Cluster(kind, 1, 1, 400.0, found)
    planned = step_time.step_time(recipe, network, one, cluster, Draws(share, share))
    assert planned.total == pytest.approx(statistics.median(seconds))
    assert 0.2 < found["efficiency"].value < 0.6


def test_the_constants_are_those_of_the_folder_that_was_measured(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "cuda", smoke=False)
    for name in ("parts", "records"):
        (tmp_path / name).mkdir()
    assert "have to be measured" in constants.of_scene(scene)[1]
    step = parts.step_record(scene, parts.VIT, parts.PUBLISHED)
    step.write_text(json.dumps(record_of([0.2])))
    scene.record("machine").write_text(json.dumps(RATES))
    scene.keep("step", {parts.PUBLISHED_CALL: Outcome("failed", date="2026-11-27", commit="abc")})
    kind, found = constants.of_scene(scene)
    assert kind == "h100" and "2026-11-27, commit abc" in found["bandwidth"].source
    smoke = dataclasses.replace(scene, smoke=True)
    assert constants.of_scene(smoke) == (None, "no full run on a GPU")


def test_a_gpu_that_the_plan_does_not_know_has_no_constants() -> None:
    for name in ("NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB", "NVIDIA H200 NVL", "AMD EPYC"):
        kind, why = constants.of_records({}, RATES | {"processor": name}, "")
        assert kind is None and name in why
    assert measured.kind_of("NVIDIA A100-SXM4-80GB") == "a100-80g"
    assert measured.kind_of("NVIDIA H200") == "h200"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    kind, found = constants.of_records(record_of([0.2]), RATES, "2026-11-27, commit abc")
    path = tmp_path / "plan.json"
    path.write_text(measured.text(kind, found))
    return path


def planned(*words: str) -> list[str]:
    base = ["plan", "--config", "ds_configs/photos.yaml", "--nodes", "1", "--gpus", "1"]
    return [*base, "--images", "5000", *words]


def test_the_plan_says_what_was_measured(written: Path, capsys) -> None:
    assert main(planned("--gpu", "h100", "--measured", str(written))) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "not measured but for efficiency, bandwidth, bandwidth_share of this GPU" in printed
    assert "2.9 TB/s: measured: `poa-ds bench gpu`, NVIDIA H100 80GB HBM3" in printed
    assert main(planned("--gpu", "h100")) == 0
    assert "not measured on this GPU" in capsys.readouterr().out


def test_what_is_measured_in_half_precision_says_nothing_of_fp32(written: Path) -> None:
    with_it = Cluster("h100", 1, 1, 1.0, measured.of_kind("h100", written))
    without = Cluster("h100", 1, 1, 1.0)
    assert with_it.flops_per_second("fp32") == without.flops_per_second("fp32")
    assert with_it.flops_per_second("bf16") != without.flops_per_second("bf16")


def test_the_file_that_is_shipped_needs_no_name(written: Path, monkeypatch) -> None:
    monkeypatch.setattr(measured, "SHIPPED", written)
    assert measured.of_kind("h100", None)["bandwidth"].value == 2.9
    assert measured.of_kind("h200", None) == {}
    monkeypatch.setattr(measured, "SHIPPED", written.with_name("absent"))
    assert measured.of_kind("h100", None) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("[]", "no file of `poa-ds bench gpu`: it is a list"),
        ("{", "no file of `poa-ds bench gpu`"),
        ('{"h200": {}}', "has constants of h200, --gpu is h100"),
        ('{"h100": {"memory": {"value": 1}}}', "memory is none of efficiency, bandwidth"),
        ('{"h100": {"efficiency": 0.5}}', "no file of"),
        ('{"h100": {"efficiency": {"value": 1.5, "unit": "", "source": ""}}}', "at most 1"),
        ('{"h100": {"bandwidth": {"value": NaN, "unit": "", "source": ""}}}', "bandwidth is nan"),
    ],
)
def test_a_file_that_is_none_is_refused(text: str | None, message: str, tmp_path, capsys) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    assert main(planned("--gpu", "h100", "--measured", str(path))) == 2
    assert message in capsys.readouterr().err
    assert GPUS["h100"].efficiency.value < 1
