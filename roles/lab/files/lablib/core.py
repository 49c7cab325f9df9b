# Copyright: hearth.homelab contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Commands, files, processes and control groups: what everything else is made of."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# Every process of a lab carries this variable with the lab's directory as its value. It is the record of what was
# started that survives whatever happens to the program that started it; nothing without it is ever signalled.
OWNER = "HEARTH_LAB_OWNER"
PART = "HEARTH_LAB_PART"
WORK = "work"  # the part of a command that this program waits for
CONSOLE_TAIL = 40


class LabError(Exception):
    """A failure whose message already says what, where and what to do."""


def say(message: str) -> None:
    print(message, flush=True)


def environment(**extra: str) -> dict[str, str]:
    """A clean environment: a locale, proxy or Python setting of the caller must not reach the hosts or the services."""
    base = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}
    return base | extra


def find_tool(name: str) -> str | None:
    if name.startswith("/"):
        return name if os.path.exists(name) else None
    return shutil.which(name, path=environment()["PATH"])


def run(
    argv: Sequence[str | Path], *, check: bool = True, stdin: str = "", owner: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. With `owner` it carries the mark: it may outlive a killed run of this program."""
    command = [str(part) for part in argv]
    marks = {OWNER: str(owner), PART: WORK} if owner else {}
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        input=stdin,
        env=environment(DEBIAN_FRONTEND="noninteractive", **marks),
    )
    if check and done.returncode != 0:
        raise LabError(f"`{shlex.join(command)}` failed with status {done.returncode}:\n{done.stderr.strip()[-2000:]}")
    return done


def run_with_progress(
    what: str, argv: Sequence[str | Path], log: Path, owner: Path, base: Mapping[str, str] | None = None
) -> None:
    """Run a long command; print what it is doing at least every 10 seconds, keep its output in a log. `base`: its environment."""
    started = time.monotonic()
    command = [str(part) for part in argv]
    marks = {OWNER: str(owner), PART: WORK}
    env = environment(DEBIAN_FRONTEND="noninteractive", **marks) if base is None else {**base, **marks}
    last = ""
    with log.open("w", encoding="utf-8") as sink:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )

        def read() -> None:
            nonlocal last
            for line in process.stdout or ():
                sink.write(line)
                if line.strip():
                    last = line.strip()[:100]

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        while True:
            try:
                status = process.wait(timeout=10)
                break
            except subprocess.TimeoutExpired:
                say(f"  {what}: {time.monotonic() - started:.0f} s ({last})")
        reader.join(timeout=5)
    if status != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        raise LabError(f"{what} failed (`{shlex.join(command)}`, status {status}). The end of {log}:\n{tail}")
    say(f"  {what}: done in {time.monotonic() - started:.0f} s")


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file as a whole: a reader, or a run after a crash, sees the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(mode)
    temporary.replace(path)


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("w", encoding="utf-8") as handle:
        waited = 0
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waited % 15 == 0:
                    say(f"  waiting for another run that holds {what} ({path})")
                waited += 1
                time.sleep(1)
        yield


def remove_tree(path: Path) -> None:
    """Delete a directory of ours; never through a mount that somebody left below it."""
    below = f"{path}/"
    mounts = [point for point in mount_points() if point == str(path) or point.startswith(below)]
    for point in sorted(mounts, reverse=True):
        run(["umount", "--lazy", point])
    if path.exists():
        run(["rm", "-rf", "--one-file-system", "--", path])


def mount_points() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return [line.split()[4].replace("\\040", " ") for line in lines]


# --- processes


@dataclasses.dataclass(frozen=True)
class Process:
    pid: int
    part: str
    started: str  # field 22 of /proc/PID/stat: tells a process from a later one with the same number

    def alive(self) -> bool:
        return _start_time(self.pid) == self.started


def _start_time(pid: int) -> str | None:
    """When a process started, or None when it is gone (a zombie holds nothing and counts as gone)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def processes_of(directory: Path) -> list[Process]:
    wanted = f"{OWNER}={directory}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            variables = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted not in variables:
            continue
        part = next((v[len(PART) + 1 :].decode() for v in variables if v.startswith(f"{PART}=".encode())), "")
        started = _start_time(int(entry))
        if started is not None:
            found.append(Process(int(entry), part, started))
    return found


def spawn(
    directory: Path, part: str, argv: Sequence[str | Path], log: Path, extra: Mapping[str, str] | None = None
) -> None:
    """Start a process that outlives this program and its terminal (its own session), marked as belonging to the lab."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as sink:
        # Not waited for on purpose: it is meant to run on after this program has ended.
        subprocess.Popen(
            [str(part_) for part_ in argv],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            cwd="/",
            env=environment(**{OWNER: str(directory), PART: part}, **(extra or {})),
        )


def end(processes: Sequence[Process], *, grace: float) -> None:
    """Ask, then insist. The caller passes only processes it found by the lab's mark."""
    for process in processes:
        if process.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM if grace else signal.SIGKILL)
    if grace and not wait_gone(processes, grace):
        end(processes, grace=0)
    elif not grace and not wait_gone(processes, 10):
        left = ", ".join(f"{process.pid} ({process.part})" for process in processes if process.alive())
        raise LabError(f"processes {left} do not end; look at them with `ps` and run this again")


def wait_gone(processes: Sequence[Process], seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while any(process.alive() for process in processes):
        if time.monotonic() > limit:
            return False
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        time.sleep(0.05)
    return True


def listens(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


def wait_for_port(address: str, port: int, what: str, log: Path) -> None:
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        if listens(address, port):
            return
        time.sleep(0.1)
    raise LabError(f"{what} does not listen on {address} port {port} after 20 s. The end of {log}:\n{tail(log)}")


def tail(log: Path, lines: int = CONSOLE_TAIL) -> str:
    if not log.exists():
        return "(empty)"
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]) or "(empty)"


# --- control groups: which processes belong to a host
#
# A killed nspawn leaves its host's PID 1 running, and two hosts below one control group would manage each other's
# units. So every host has a group of its own, and what is in it is what has to end with it.


def cgroup_roots() -> list[Path]:
    """Where groups are made: the v2 hierarchy, and on a hybrid machine systemd's v1 one, which nspawn keeps in step."""
    unified = Path("/sys/fs/cgroup/unified")
    if unified.is_dir():
        return [path for path in (unified, Path("/sys/fs/cgroup/systemd")) if path.is_dir()]
    return [Path("/sys/fs/cgroup")]


# The group of all labs, and what the machine's own groups had before there was any. Gone after a reboot, as they are.
LABS_CGROUP = "hearth-lab"
CONTROLLERS = Path("/run/hearth-lab-controllers")


@contextlib.contextmanager
def _groups_locked() -> Iterator[None]:
    """One at a time, over all caches, makes the first group or removes the last one. No lock file is left behind."""
    handle = os.open(cgroup_roots()[0], os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def own_cgroup(path: str) -> None:
    """Move this process into its own group; systemd-run has done that already where systemd is PID 1."""
    with _groups_locked():
        for root in cgroup_roots():
            group = root / path
            given = root / "cgroup.subtree_control"
            if given.exists() and not (root / LABS_CGROUP).is_dir():
                write(CONTROLLERS, given.read_text(encoding="utf-8"), 0o600)
            group.mkdir(parents=True, exist_ok=True)
            for parent in [*reversed(group.relative_to(root).parents)]:
                with contextlib.suppress(OSError):  # a controller that the machine keeps elsewhere
                    (root / parent / "cgroup.subtree_control").write_text("+cpu +memory +pids", encoding="utf-8")
            (group / "cgroup.procs").write_text(str(os.getpid()), encoding="utf-8")


def added_controllers(before: str, now: str) -> str:
    """What to write to cgroup.subtree_control so that it has again what it had; empty when it has."""
    return " ".join(f"-{name}" for name in sorted({*now.split()} - {*before.split()}))


def _leave_cgroups() -> None:
    """After the last lab: the controllers that were given to its group are taken back from the machine's."""
    if any((root / LABS_CGROUP).is_dir() for root in cgroup_roots()) or not CONTROLLERS.exists():
        return
    before = CONTROLLERS.read_text(encoding="utf-8")
    for root in cgroup_roots():
        given = root / "cgroup.subtree_control"
        if given.exists() and (change := added_controllers(before, given.read_text(encoding="utf-8"))):
            with contextlib.suppress(OSError):  # somebody else uses one by now
                given.write_text(change, encoding="utf-8")
    CONTROLLERS.unlink()


def end_cgroup(path: str) -> None:
    """Kill everything in a group and remove it. Nothing of a host outlives this."""
    if not path.strip("/"):
        return
    limit = time.monotonic() + 15
    for root in cgroup_roots():
        group = root / path.strip("/")
        while group.is_dir():
            folders = sorted((Path(folder) for folder, _, _ in os.walk(group)), reverse=True)
            for folder in folders:
                with contextlib.suppress(OSError):
                    for pid in (folder / "cgroup.procs").read_text(encoding="utf-8").split():
                        os.kill(int(pid), signal.SIGKILL)
            for folder in folders:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            if not group.is_dir():
                break
            if time.monotonic() > limit:
                raise LabError(f"processes in {group} do not end; look at {group}/cgroup.procs and run this again")
            time.sleep(0.05)
    # The groups above, made for all labs, go with the last one.
    with _groups_locked():
        for root in cgroup_roots():
            parent = (root / path.strip("/")).parent
            while parent != root and LABS_CGROUP in parent.relative_to(root).parts:
                try:
                    parent.rmdir()
                except OSError:
                    break
                parent = parent.parent
        _leave_cgroups()
