"""A real SLURM on this machine: munge, slurmctld and two node daemons, without systemd and without /etc/slurm.

    python tests/slurm/cluster.py install | start | stop | status | env [--root FOLDER] [--port FIRST]

`install` takes Debian's packages (root). Everything that runs keeps its state below --root; `stop` ends the daemons that
`start` started, by their process ids, and nothing else. `env` prints what clients need in their environment.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
INSTALL_S = 140
"""How long each of apt-get's two commands may take."""
NODES = ("n1", "n2")
GPUS = 2
"""Of each node: null devices that SLURM hands out as if they were GPUs."""
MARK = "# upft test cluster"
PATHS = "/usr/sbin:/sbin"
HOSTS = Path("/etc/hosts")

CONFIG = """ClusterName=upft
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits for cred_expire before it starts again; it must exceed KillWait by 2 s or more, or the node is drained.
AuthInfo=socket={root}/run/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,batch_sched_delay=0,sched_min_interval=0,bf_interval=2
DefMemPerCPU=100
KillWait=2
# As on clusters, what has ended is soon forgotten; new ids start where no cluster before this one has been.
MinJobAge=300
FirstJobId={first}
MaxJobId=60000000
MessageTimeout=30
SlurmdTimeout=300
ReturnToService=2
RebootProgram=/bin/true
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port={ports} CPUs={cpus} RealMemory=64000 Gres=gpu:{gpus} \
State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 State=UP OverSubscribe=NO PriorityTier=1
PartitionName=gpu Nodes=ALL MaxTime=INFINITE DefaultTime=60 State=UP OverSubscribe=NO PriorityTier=1
PartitionName=cpu Nodes=ALL MaxTime=INFINITE DefaultTime=60 State=UP OverSubscribe=NO PriorityTier=1
PartitionName=grace Nodes=ALL MaxTime=INFINITE DefaultTime=60 State=UP OverSubscribe=NO PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefaultTime=60 State=UP OverSubscribe=NO PriorityTier=9 PreemptMode=OFF
"""


class ClusterError(RuntimeError):
    """The cluster cannot be had here, and why."""


def install() -> None:
    """Debian's packages, whose own services are kept from starting. Raises ClusterError where that cannot be done."""
    if all(shutil.which(program, path=f"{os.environ.get('PATH', '')}:{PATHS}") for program in PROGRAMS):
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ClusterError("SLURM is not installed, and only root can install it with apt-get")
    policy = Path("/usr/sbin/policy-rc.d")
    made = not policy.exists()
    if made:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "-o", "DPkg::Lock::Timeout=60",
                                                       "--no-install-recommends", *PACKAGES]):
            try:
                done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=INSTALL_S,
                                      env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
            except subprocess.TimeoutExpired as error:
                raise ClusterError(f"{' '.join(command)} has not ended within {INSTALL_S} s") from error
            if done.returncode:
                raise ClusterError(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
    finally:
        if made:
            policy.unlink()


@dataclass
class Cluster:
    """One cluster. port: the first of three that are free."""

    root: Path
    port: int
    cpus: int = 4

    @property
    def environment(self) -> dict[str, str]:
        """What clients need beside their own environment."""
        return {"SLURM_CONF": str(self.root / "etc" / "slurm.conf")}

    def start(self) -> None:
        """Munge, the controller, two nodes; returns when both are idle. Raises ClusterError, with the logs' end."""
        if (self.root / "run" / "slurmctld.pid").exists():
            raise ClusterError(f"{self.root} has a cluster running: stop it first")
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        self._write()
        run = self.root / "run"
        self._do("munged", f"--key-file={self.root}/etc/munge.key", f"--socket={run}/munge.socket",
                 f"--pid-file={run}/munged.pid", f"--log-file={self.root}/log/munged.log", f"--seed-file={run}/munged.seed")
        self._do("slurmctld", "-c")
        own_names = os.geteuid() == 0 and subprocess.run(["unshare", "--uts", "true"], capture_output=True).returncode == 0
        for node in NODES:
            (self.root / f"spool-{node}").mkdir(exist_ok=True)
            if own_names:  # a hostname for each node, known to this machine
                known = [line for line in HOSTS.read_text().splitlines() if line.strip() and MARK not in line]
                if not any(line.split()[1:2] == [node] for line in known):
                    with HOSTS.open("a") as hosts:
                        hosts.write(f"127.0.0.1 {node} {MARK} {self.root}\n")
                self._do("unshare", "--uts", "sh", "-c", f"hostname {node} && exec slurmd -N {node}")
            else:
                self._do("slurmd", "-N", node)
        if not _wait(20, lambda: len(set(self.ask("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split())) == len(NODES)):
            said = "\n".join(file.read_text()[-600:] for file in sorted((self.root / "log").glob("*.log")))
            raise ClusterError(f"the nodes did not become idle:\n{said}")

    def stop(self) -> None:
        """Cancel every job, end what `start` started."""
        pids = self.root / "run"
        if (pids / "slurmctld.pid").exists():
            for job in set(self.ask("squeue", "-h", "-o", "%A").split()):
                self.ask("scancel", job)
            _wait(15, lambda: not self.ask("squeue", "-h", "-o", "%A").split())
        for file in (*sorted(pids.glob("slurmd-*.pid")), pids / "slurmctld.pid", pids / "munged.pid"):
            _end(file)
        own = f"{MARK} {self.root}"  # another cluster's lines stay
        if os.geteuid() == 0 and own in HOSTS.read_text():  # in place: it may be a mount of its own
            HOSTS.write_text("".join(line for line in HOSTS.read_text().splitlines(keepends=True) if own not in line))

    def ask(self, *command: str) -> str:
        """Output of a client; empty where it fails."""
        return self._run(*command).stdout

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **self.environment, "PATH": f"{os.environ.get('PATH', '')}:{PATHS}"}
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)

    def _do(self, *command: str) -> None:
        done = self._run(*command)
        if done.returncode:
            raise ClusterError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-400:]}")

    def _write(self) -> None:
        for folder in ("etc", "run", "log", "state", "gpus"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        for folder in (self.root, self.root / "run", self.root / "etc"):
            folder.chmod(0o755)
        key = self.root / "etc" / "munge.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(secrets.token_bytes(128))
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        (self.root / "etc" / "slurm.conf").write_text(CONFIG.format(
            host=socket.gethostname().split(".")[0], port=self.port, user=user, root=self.root, nodes=len(NODES),
            ports=f"{self.port + 1}-{self.port + len(NODES)}", cpus=self.cpus, gpus=GPUS,
            first=int(time.time()) % 5_000_000 * 10 + 1))
        for number in range(GPUS):  # gres.conf wants character devices whose names end in their number
            link = self.root / "gpus" / f"nvidia{number}"
            if not link.is_symlink():
                link.symlink_to("/dev/null")
        (self.root / "etc" / "gres.conf").write_text(
            f"NodeName=n[1-{len(NODES)}] Name=gpu File={self.root}/gpus/nvidia[0-{GPUS - 1}]\n")


def _wait(seconds: float, holds: Callable[[], bool]) -> bool:
    """Whether it came to hold in time."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def free_ports() -> int:
    """The first of three ports in a row that nobody listens on: another cluster may be running."""
    for first in range(21817, 29000, 10):
        try:
            for port in range(first, first + 1 + len(NODES)):
                with socket.socket() as one:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    one.bind(("", port))
        except OSError:
            continue
        return first
    raise ClusterError("no three ports in a row are free")


def _end(file: Path) -> None:
    """End the process whose id is in a file."""
    try:
        pid = int(file.read_text())
    except (OSError, ValueError):
        return
    for number, grace in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            break
        if _wait(grace, lambda: _gone(pid)):
            break
    file.unlink(missing_ok=True)


def _gone(pid: int) -> bool:
    """A daemon that nobody reaps stays as a zombie: that is gone, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["install", "start", "stop", "status", "env"])
    parser.add_argument("--root", type=Path, default=Path("/tmp/upft-slurm"))
    parser.add_argument("--port", type=int, help="the first of three (default: free ones)")
    given = parser.parse_args()
    cluster = Cluster(given.root.absolute(), given.port or free_ports())
    try:
        match given.what:
            case "install":
                install()
            case "start":
                cluster.start()
            case "stop":
                cluster.stop()
            case "status":
                print(cluster.ask("sinfo", "-N", "-o", "%N %T %C %G %E") + cluster.ask("squeue"), end="")
            case "env":
                print("\n".join(f"export {name}={value}" for name, value in cluster.environment.items()))
    except ClusterError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
