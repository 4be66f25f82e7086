"""The words of the training program, in every spelling that a launcher or a tutorial gives them."""

from pathlib import Path

import pytest

from poa_ds import train

RECIPE = ("--config", "r.yaml")


@pytest.mark.parametrize(
    "words",
    [
        ["--deepspeed", "--deepspeed_config", "zero2.json"],  # as DeepSpeed's tutorials write it
        ["--deepspeed_config", "zero2.json", "--deepspeed"],
        ["--deepspeed_config=zero2.json"],
        ["--local_rank=1", "--deepspeed", "--deepspeed_config", "zero2.json"],  # its launcher's
        ["--local-rank", "1", "--deepspeed_config", "zero2.json"],  # torch.distributed.launch's
    ],
)
def test_launchers_and_tutorials_may_spell_it_their_way(words: list[str]) -> None:
    args = train.parser().parse_intermixed_args([*words, *RECIPE, "a=b"])
    assert (args.config, args.overrides) == (Path("r.yaml"), ["a=b"])
    assert args.deepspeed_config == Path("zero2.json")


@pytest.mark.parametrize("word", ["--dry", "--deepspeed_conf", "--conf", "--print", "--local"])
def test_abbreviations_are_refused_by_name(word: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        train.parser().parse_intermixed_args([*RECIPE, word])
    assert end.value.code == 2 and word in capsys.readouterr().err
