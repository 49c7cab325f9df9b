# Copyright: hearth.homelab contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The Python packages that a lab offers its hosts: wheels, fetched once by the machine's own pip.

pip on the machine knows where packages come from (indexes, folders, proxies, certificates, credentials); none of that
reaches the hosts. They see a list of files, exactly those that the lab was asked for and what these depend on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lablib.core import LabError, end, locked, processes_of, remove_tree, run_with_progress, say
from lablib.image import architecture
from lablib.machine import Cache

#: Wheels that no lab has asked for in this long are removed.
KEPT = 30 * 86400


def read_requirements(path: Path) -> tuple[str, ...]:
    """The requirements of a file, in order of their names. Each is pinned: what is cached is then what was meant."""
    try:
        lines = [line.partition(" #")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise LabError(f"--python-requirements {path}: {error.strerror}") from error
    found = sorted(line for line in lines if line and not line.startswith("#"))
    for line in found:
        if line.startswith("-") or "==" not in line:
            raise LabError(f"{path}: {line!r}: only lines of the form NAME==VERSION are allowed")
    return tuple(found)


def python_of(tree: Path) -> str:
    """The version of Debian's Python in a tree, as pip names it: 3.13."""
    return os.readlink(tree / "usr/bin/python3").removeprefix("python")


def wheels_key(requirements: Sequence[str], python: str) -> str:
    inputs = {"requirements": list(requirements), "python": python, "architecture": architecture()}
    return f"python{python}-" + hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def ensure_wheels(cache: Cache, requirements: Sequence[str], python: str) -> Path:
    """The folder of wheels for these requirements and the hosts' Python; downloaded when there is none."""
    folder = cache.wheels / wheels_key(requirements, python)
    with locked(cache.lock("wheels"), "the Python packages"):
        end(processes_of(cache.wheels), grace=0)  # what a killed run left at work
        for leftover in cache.wheels.glob(".build-*"):
            remove_tree(leftover)
        if not folder.exists():
            if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
                raise LabError(f"{sys.executable} has no pip to fetch {', '.join(requirements)} with: use .venv's")
            say(f"Fetching Python packages for the hosts (once; kept in {folder})")
            build = cache.wheels / f".build-{folder.name}"
            build.mkdir(parents=True)
            # The environment markers of a package are judged by the machine's Python, not the hosts' (pip issue 11010):
            # what is missing for that reason fails at the installation in the host, and is then added by name.
            argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet",
                    f"--python-version={python}", "--only-binary=:all:", f"--dest={build}", *requirements]  # fmt: skip
            # The caller's own environment: this is the one program here whose settings are meant to be the machine's.
            run_with_progress("pip download", argv, cache.log("pip-download"), cache.wheels, os.environ)
            build.rename(folder)
        os.utime(folder)
        for other in cache.wheels.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - other.stat().st_mtime > KEPT:
                    remove_tree(other)
    return folder
