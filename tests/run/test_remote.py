"""Words and variables arrive on other hosts as they are and unseen, or are refused."""

import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from deepspeed.launcher.multinode_runner import PDSHRunner

from poa_ds import cli
from poa_ds.run import remote
from poa_ds.system.errors import UsageError

SAFE = [
    *("--config", "ds_configs/photos.yaml", "output_dir=runs/x-1_2", "seed=0", "mlflow.run_name="),
    *("backbone.width={min: 32, max: 48, step: 16}", "heads.prototypes=[32,48]", 'a=x y\'s "z"'),
    *("crops.global_scale=[0.2, 1]", "data.train=pipe:cat x*.tar", "backbone.names={}", "o=a~b"),
    *("a=b;touch trap", "a=b\\ c"),
    *("mlflow.uri=http://localhost:5000/x", "b={a: 1}", "optimizer.eps=1e-8", "a=b=c"),
]
TAKEN = [
    *("output_dir=`touch trap`", "output_dir=$(touch trap)", "output_dir=a`touch trap` b"),
    *("output_dir=a $(touch trap)", "output_dir=$HOME", "output_dir=$HOME/with space"),
    *("a=b;true", "a=b&", "a=b|true", "a=b>trap", "a=<trap", "a='b'", 'a="b"'),
    *(
        "a=b\\c",
        "a=b\\\\ c",
        "a=b c\\",
        'a=b \\"c',
        "a=(b)",
        "batch={slots:2,images_per_slot:4}",
        "a={1..3}",
        "",
        "a=\tb",
    ),
    *("a=x*", "a=x?", "#a=b", "~/x", "a=b\ntouch"),
]


def arrived(words: list[str], shell: str, folder: Path) -> list[str]:
    """What a program gets whose command line deepspeed's own runner made, by way of a shell."""
    runner = object.__new__(PDSHRunner)
    runner.args = Namespace(user_args=words)
    program = f"{sys.executable} -c 'import json,sys; print(json.dumps(sys.argv[1:]))'"
    line = " ".join([program, *runner.parse_user_args()])
    done = subprocess.run([shell, "-c", line], capture_output=True, text=True, cwd=folder)
    return json.loads(done.stdout) if done.returncode == 0 and done.stdout else []


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_words_that_are_let_through_arrive_as_they_are(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell}")
    remote.check(SAFE, {})
    assert arrived(SAFE, shell, tmp_path) == SAFE
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", TAKEN)
def test_words_that_a_shell_would_take_are_refused(word: str, tmp_path: Path) -> None:
    (tmp_path / "a=xx").touch()
    with pytest.raises(UsageError, match="shells of other hosts"):
        remote.check(["seed=1", word], {})
    assert arrived(["seed=1", word], "bash", tmp_path) != ["seed=1", word]  # not for nothing


@pytest.mark.parametrize("word", ["output_dir=run%h", "output_dir=run %n", "output_dir=100%%"])
def test_words_that_pdsh_would_take_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match="%"):
        remote.check([word], {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_TRACKING_PASSWORD", "hunter2"),
        ("MLFLOW_TRACKING_TOKEN", "hunter2"),
        ("MLFLOW_GATEWAY_API_KEY", "hunter2"),
        ("MLFLOW_TRACKING_URI", "postgresql://me:hunter2@db/mlflow"),
        ("UCX_SECRET", "hunter2"),
        ("PYTHONPATH", "$(touch hunter2)"),
        ("MLFLOW_EXPERIMENT_NAME", "`touch hunter2`"),
    ],
)
def test_variables_that_would_be_seen_or_run_are_refused_without_their_value(
    name: str, value: str
) -> None:
    with pytest.raises(UsageError) as error:
        remote.check([], {name: value})
    assert name in str(error.value) and "hunter2" not in str(error.value)


def test_other_variables_pass() -> None:
    remote.check(
        [],
        {
            "MLFLOW_TRACKING_URI": "http://localhost:5000",
            "MLFLOW_TRACKING_PASSWORD": "",
            "MLFLOW_TRACKING_USERNAME": "me",
            "PYTHONPATH": "a:b c",
            "AWS_SECRET_ACCESS_KEY": "stays here",  # the launcher does not carry it
            "PYTHON_KEYRING_BACKEND": "x",
        },
    )


def test_a_supervised_run_over_hosts_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hosts").write_text("node1 slots=1\nnode2 slots=1\n")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    words = ["launch", "--hostfile", str(tmp_path / "hosts"), "--", "--config"]
    words += ["ds_configs/photos.yaml", f"output_dir={tmp_path}", "mlflow.run_name=`touch trap`"]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "MLFLOW_TRACKING_PASSWORD" in said and "~/.mlflow/credentials" in said
    assert "touch trap" in said and "hunter2" not in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"# hosts\n\nnode1 slots=8\r\n  node2\tslots=04 # big\n", ""),
        (b"", "names no host"),
        (b"# node1 slots=8\n", "names no host"),
        (b"node1\n", "line 1: 'node1' is not `name slots=N`"),
        (b"a slots=1\n\nb slots=0\n", "line 3: 'b slots=0' is not `name slots=N`"),
        (b"a slots=two\n", "line 1: 'a slots=two' is not"),
        (b"a slots=1\na slots=1\n", "line 2: 'a slots=1' is a host for the second time"),
        (b"\xff\xfe", "it is no text"),
        (None, "No such file"),
    ],
)
def test_a_hostfile_that_starts_nobody_is_refused_by_its_line(
    content: bytes | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "hosts"
    if content is not None:
        path.write_bytes(content)
    if not said:
        remote.check_hostfile(path)
        return
    with pytest.raises(UsageError) as error:
        remote.check_hostfile(path)
    assert said in str(error.value) and "hosts" in str(error.value)


def test_secrets_in_the_launchers_file_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\nAWS_SECRET_ACCESS_KEY=hunter2\n")
    [first, _] = remote.secrets_in_file({})
    assert first.endswith(".deepspeed_env: AWS_SECRET_ACCESS_KEY")
    assert remote.secrets_in_file({"DS_ENV_FILE": "absent"}) == []


def through_a_launcher(name: str, how: str) -> subprocess.CompletedProcess:
    """A rank as the launcher starts it on another host, and what it finds about itself."""
    program = "import os; from poa_ds.run import remote; print(remote.check_arrival(os.environ))"
    # the launcher's own name stands in the line; the last command keeps the shell there
    line = how.format(name=name, program=f'{sys.executable} -c "{program}"')
    environment = {k: v for k, v in os.environ.items() if "MLFLOW" not in k} | {"OTHER_KEY": "x"}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment)


OVER_SSH = "export {name}=hunter2; : -m deepspeed.launcher.launch; {program}; exit $?"


def test_a_rank_refuses_a_password_that_came_over_a_command_line() -> None:
    done = through_a_launcher("MLFLOW_TRACKING_PASSWORD", OVER_SSH)
    assert done.returncode and "UsageError: MLFLOW_TRACKING_PASSWORD stands on the" in done.stderr
    assert "~/.mlflow/credentials" in done.stderr and "hunter2" not in done.stderr


def test_a_rank_names_other_secrets_that_did_and_is_silent_where_none_did() -> None:
    done = through_a_launcher("AWS_SECRET_ACCESS_KEY", OVER_SSH)
    assert "AWS_SECRET_ACCESS_KEY stands on the command line of process" in done.stdout
    assert "hunter2" not in done.stdout and not done.returncode
    assert through_a_launcher("OMP_NUM_THREADS", OVER_SSH).stdout == "[]\n"
    unseen = "read {name} <<< hunter2; export {name}; : deepspeed.launcher.launch; {program}; exit"
    assert through_a_launcher("MLFLOW_TRACKING_PASSWORD", unseen).stdout == "[]\n"
