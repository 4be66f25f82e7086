"""The README's example as it stands there, on a checkpoint with the published names."""

import re
from pathlib import Path

import pytest
import torch

from poa_ds.export.import_poa import third_major
from poa_ds.model.branch import Branch
from poa_ds.model.heads import HeadBank
from poa_ds.model.space import ElasticSpace
from poa_ds.model.vit.network import ElasticViT

README = Path(__file__).parents[1] / "README.md"


def published(branch: Branch) -> dict[str, torch.Tensor]:
    """The branch's weights as the published code names and lays them out."""
    state = {}
    for name, tensor in branch.state_dict().items():
        if name.startswith("heads."):
            _, head, part, *rest = name.split(".")
            place = {"first": "0.linear", "rest": f"{2 * int(rest[0]) + 2}" if rest[1:] else ""}
            mlp = f"mlp{head}.{place.get(part)}.{rest[-1]}" if rest else ""
            state[f"dino_head.{mlp or f'last_layer{head}.{part}'}"] = tensor
            continue
        name = re.sub(r"^backbone\.embed\.(?!patch)", "backbone.", name)
        name = name.replace("backbone.embed.patch.", "backbone.patch_embed.proj.")
        name = re.sub(r"(norm\d?)\.(weight|bias)$", r"\1.norm.\2", name)
        name = re.sub(r"((?:qkv|attn\.proj|fc\d))\.(weight|bias)$", r"\1.linear.\2", name)
        state[name] = third_major(tensor, 32) if ".qkv." in name else tensor
    return state


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    space = ElasticSpace((32, 64, 96), (2, 3, 4))
    made = Branch(
        ElasticViT(space, image_size=64, head_dim=32),
        HeadBank(96, (16, 24, 32, 48), hidden=64, bottleneck=16),
    )
    monkeypatch.chdir(tmp_path)
    torch.save({"teacher": published(made)}, "teacher_checkpoint.pth")
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert torch.isfinite(names["terms"].koleo)
    before = made.backbone.embed.pos_embed
    assert not torch.equal(names["student"].backbone.embed.pos_embed, before)
    assert not torch.equal(names["teacher"].backbone.embed.pos_embed, before)
    assert names["plain"]["blocks.2.mlp.fc2.weight"].shape == (64, 256)
