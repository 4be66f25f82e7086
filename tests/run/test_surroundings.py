"""What a run says of where it goes on."""

import re
from importlib import metadata

import pytest
import torch

from poa_ds.run import surroundings
from poa_ds.run.surroundings import described


def test_hosts_and_devices_are_counted_and_no_host_is_named() -> None:
    places = [("secret-a", "NVIDIA H100")] * 2 + [("secret-b", "NVIDIA H200")]
    text = described(places)
    assert text.startswith("3 ranks on 2 hosts, 2 x NVIDIA H100, 1 x NVIDIA H200; poa_ds ")
    assert f"torch {metadata.version('torch')}" in text and "secret" not in text


def test_one_rank_says_it_of_itself_and_others_are_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = surroundings.surroundings(torch.device("cpu"))
    assert re.match(r"1 rank on 1 host, 1 x .+; poa_ds ", found)
    monkeypatch.setattr(surroundings.dist, "is_main", lambda: False)
    assert surroundings.surroundings(torch.device("cpu")) == ""
