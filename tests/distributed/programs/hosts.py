"""Two hosts on one machine: each with a network, a name, processes and an ssh server of its own.

A host is a set of Linux namespaces; a virtual cable joins the two. The file system is the same on
both, as on a cluster with shared folders. Everything ends with the test, however that ends: a host
lives until its standard input is closed.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.distributed.programs.launch import ROOT

PROGRAMS = ("ip", "nsenter", "pdsh", "ssh", "ssh-keygen", "sshd", "unshare")
NAMESPACES = ("--net", "--uts", "--pid", "--mount", "--ipc")
ADDRESSES = {"node1": "10.77.0.1", "node2": "10.77.0.2"}
SEARCHED = os.environ | {"PATH": f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"}
# the first line read gives it the address, the end of its input ends it; FOLDER, NAME and ADDRESS
BOOT = """set -e
hostname $2
mount --bind $1/hosts /etc/hosts
mount --bind $1/ssh_config /etc/ssh/ssh_config
mount -t tmpfs tmpfs /run && mkdir /run/sshd
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
echo apart
read
ip address add $3/24 dev eth0
ip link set eth0 up
$(command -v sshd) -f $1/sshd_config -o ListenAddress=$3
echo up
read"""


def missing() -> str:
    """Why hosts cannot be made here; empty where they can."""
    if os.geteuid():
        return "hosts of their own need root"
    absent = [name for name in PROGRAMS if not shutil.which(name, path=SEARCHED["PATH"])]
    if absent:
        packages = "iproute2 openssh-client openssh-server pdsh util-linux"
        return f"no {', '.join(absent)} here (packages: {packages})"
    words = ["unshare", *NAMESPACES, "--fork", "true"]
    tried = subprocess.run(words, capture_output=True, text=True, env=SEARCHED)
    return f"namespaces are not permitted: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass(frozen=True)
class Host:
    """process: `unshare`, whose only child is the host's first process."""

    name: str
    process: subprocess.Popen

    def command(self, *words: str) -> list[str]:
        """`words`, to be run on this host from the root of the checkout."""
        own = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return ["nsenter", "--target", own.strip(), *NAMESPACES, f"--wd={ROOT}", "--", *words]

    def cut_off(self) -> None:
        """Take the network interface down: no connection is closed, nothing arrives any more."""
        self._link("down")

    def bring_back(self) -> None:
        self._link("up")

    def _link(self, state: str) -> None:
        subprocess.run(self.command("ip", "link", "set", "eth0", state), check=True, env=SEARCHED)

    def tell(self, answer: str) -> None:
        """Let BOOT go on (unless it has just begun) until it says `answer`."""
        if answer != "apart":
            self.process.stdin.write("go on\n")
            self.process.stdin.flush()
        said = self.process.stdout.readline().strip()
        assert said == answer, f"{self.name}: {said or 'ended'} instead of {answer}"


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """node1 and node2, reachable from each other by name; `folder` gets a file HOSTS."""
    _write_settings(folder)
    hosts = tuple(_boot(folder, name) for name in ADDRESSES)
    try:
        for host in hosts:
            host.tell("apart")
        ends = [str(host.process.pid) for host in hosts]
        cable = ["eth0", "netns", ends[0], "type", "veth", "peer", "eth0", "netns", ends[1]]
        subprocess.run(["ip", "link", "add", *cable], check=True, env=SEARCHED)
        for host in hosts:
            host.tell("up")
        yield hosts
    finally:
        for host in hosts:
            host.process.stdin.close()
            host.process.wait(timeout=60)
            host.process.stdout.close()


def _boot(folder: Path, name: str) -> Host:
    words = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc"]
    words += ["bash", "-c", BOOT, "bash", str(folder), name, ADDRESSES[name]]
    pipe = subprocess.PIPE
    return Host(name, subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=SEARCHED))


def _write_settings(folder: Path) -> None:
    """Keys, the two sides of ssh, names and the list of hosts."""
    for key in ("key", "host_key"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(words, check=True)
    names = "".join(f"{address} {name}\n" for name, address in ADDRESSES.items())
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    (folder / "HOSTS").write_text("".join(f"{name} slots=1\n" for name in ADDRESSES))
    (folder / "ssh_config").write_text(
        f"Host *\nIdentityFile {folder}/key\nIdentitiesOnly yes\nStrictHostKeyChecking no\n"
        "UserKnownHostsFile /dev/null\nLogLevel ERROR\n"
    )
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/key.pub\nStrictModes no\n"
        "UsePAM no\nPermitRootLogin prohibit-password\nPidFile none\nLogLevel ERROR\n"
    )
