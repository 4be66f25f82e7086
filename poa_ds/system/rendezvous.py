"""Where the ranks of a run meet: what a launcher says about it, and whether the port is free."""

import errno
import os
import socket
from collections.abc import Mapping

from poa_ds.system.errors import UserError


def complete_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The rendezvous variables that any launcher's environment amounts to.

    torchrun and deepspeed set them; under srun they come from SLURM_*; a plain python is one
    process on a free port.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if all(name in environment for name in names):
        found = {name: environment[name] for name in names}
    elif "SLURM_PROCID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
        slurm = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
        found = dict(zip(names, (environment[name] for name in slurm), strict=True))
    else:
        found = dict(zip(names, ("0", "1", "0"), strict=True))
    alone = found["WORLD_SIZE"] == "1"
    found["MASTER_ADDR"] = environment.get("MASTER_ADDR") or _master(environment)
    found["MASTER_PORT"] = environment.get("MASTER_PORT") or ("0" if alone else "29500")
    return found


def _master(environment: Mapping[str, str]) -> str:
    """The first host of a Slurm job (`node[03-05,9]` -> node03), else this one."""
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
    if not nodes or environment.get("SLURM_NTASKS", "1") == "1":
        return "127.0.0.1"
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return nodes.split(",")[0]
    first = rest.split("]")[0].split(",")[0].split("-")[0]
    return head + first


def prepare_environment() -> None:
    """Set the rendezvous variables of this process, whatever started it."""
    os.environ.update(complete_environment(os.environ))


def check_port(environment: Mapping[str, str]) -> None:
    """UserError where rank 0 cannot open the port that the others will ask.

    environment: with the rendezvous variables. torchrun's own process keeps the port of its ranks.
    """
    kept = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if environment["RANK"] != "0" or environment["WORLD_SIZE"] == "1" or kept:
        return
    port = environment["MASTER_PORT"]
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"MASTER_PORT {port!r}: a number from 1 to 65535")
    with socket.socket() as probe:
        # as the store does: connections of a run that has just ended are no obstacle. Nor is it
        # listened to, or an eager rank would talk to the probe
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            cause = "another program has it, perhaps another run" if taken else error.strerror
            raise UserError(
                f"port {port} of this machine, by which ranks find each other, cannot be opened: "
                f"{cause}. Take another one (deepspeed, torchrun: --master_port N; srun: "
                "MASTER_PORT=N), or start with `poa-ds launch`, which takes a free one"
            ) from error
