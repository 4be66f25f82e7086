"""What `deepspeed --hostfile` hands to other hosts: through their shells, on command lines.

Everybody on those hosts can read a command line, and the launcher prints it. So no password may go
that way, and no word that a shell would change or run.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from poa_ds.system.addresses import Address
from poa_ds.system.errors import UsageError

# what the launcher carries; NCCL: on GPUs
CARRIED = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")
SECRET = re.compile(r"PASSWORD|PASSWD|SECRET|CREDENTIAL|(^|_)(TOKEN|KEY|PWD)(_|$)")
# words with a space come in double quotes, others as they are
IN_QUOTES = re.compile(r"[`$]|\\(?=[\"\\]|$)")
BARE = re.compile(r"[`$\\\"';&|<>()*?\s]|^[#~]|^$|\{.*(,|\.\.).*\}")
BY_PDSH = re.compile(r"%[hun%]")  # replaced by host, user, number
REMEDY = (
    "unset it where the launcher is started, and write it on the first host into the file"
    " ~/.mlflow/credentials (lines [mlflow], mlflow_tracking_username = ..., "
    "mlflow_tracking_password = ...)"
)


def check(words: Sequence[str], environment: Mapping[str, str]) -> None:
    """UsageError with everything that would not arrive as it is, or would be seen."""
    problems = [*_words(words), *_variables(environment), *_places()]
    if problems:
        raise UsageError("\n".join(problems))


def check_hostfile(path: Path) -> None:
    """UsageError unless the launcher can start ranks by it: `name slots=N`, each host once."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or "it is no text"
        raise UsageError(f"--hostfile {path} cannot be read: {cause}") from error
    hosts: set[str] = set()
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        found = re.match(r"(\S+)\s+slots=0*([1-9]\d*)(\s|$)", line)
        if not found or found[1] in hosts:
            cause = "a host for the second time" if found else "not `name slots=N` with N from 1 on"
            raise UsageError(f"--hostfile {path}, line {number}: {line[:80]!r} is {cause}")
        hosts.add(found[1])
    if not hosts:
        raise UsageError(f"--hostfile {path} names no host: one per line, `name slots=N`")


def is_secret(name: str, value: str) -> bool:
    return bool(value) and (bool(SECRET.search(name.upper())) or Address(value).has_password)


def _words(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        found = (IN_QUOTES if " " in word else BARE).search(word) or BY_PDSH.search(word)
        if Address(word).has_password:
            yield f"{word} holds a password, which command lines on other hosts would show"
        elif found:
            yield (
                f"{word!r}: the shells of other hosts would take {found[0]!r} for themselves:"
                " write the value into the recipe"
                + (", or a space behind the comma" if found[0].startswith("{") else "")
            )


def _variables(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        if not name.startswith(CARRIED):
            continue
        if is_secret(name, value):
            yield (
                f"{name} would be printed by the launcher and stand on command lines of other hosts"
                f" (so would a line of .deepspeed_env): {REMEDY}"
            )
        elif found := re.search(r"[`$\\\"]", value):
            yield f"{name}: the shells of other hosts would take {found[0]!r} in it for themselves"


def _places() -> Iterator[str]:
    for what, place in (("working directory", os.getcwd()), ("Python", sys.executable)):
        if re.search(r"[^\w@%+=:,./-]", place):
            yield f"the {what} {place} cannot be named in the shells of other hosts: move it"


def secrets_in_file(environment: Mapping[str, str]) -> list[str]:
    """The names of secrets in the files that the launcher puts on command lines as well."""
    name = environment.get("DS_ENV_FILE", ".deepspeed_env")
    found = []
    for path in (Path.home() / name, Path(name)):
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        pairs = [line.partition("=") for line in lines]
        found += [f"{path}: {key}" for key, _, value in pairs if is_secret(key.strip(), value)]
    return found


def check_arrival(environment: Mapping[str, str]) -> list[str]:
    """The secrets of a rank that came over a command line of the launcher's, for a warning.

    UsageError: MLflow's are among them, for which there is a file.
    """
    names = [name for name, value in environment.items() if is_secret(name, value)]
    found = [
        f"{name} stands on the command line of process {process}, where everybody on this host"
        " reads it, and in the launcher's output"
        for process, command in _ancestors()
        if "deepspeed.launcher.launch" in command
        for name in names
        if re.search(rf"\bexport {re.escape(name)}=", command)
    ]
    if refused := [line for line in found if line.startswith("MLFLOW")]:
        raise UsageError(f"{refused[0]}: {REMEDY}")
    return found


def _ancestors() -> Iterator[tuple[int, str]]:
    """(number, command line) of this process's parents, where the system tells."""
    process = os.getppid()
    while process > 1:
        place = Path("/proc") / str(process)
        try:
            command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            above = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended, or there is no /proc
            return
        yield process, command
        process = above
