#!/usr/bin/env python3
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run `ansible-test sanity` on a copy of the checkout. Further arguments are passed on.

ansible-test refuses a checkout that is reached through a link, so the files of the working tree (what git tracks and what
is new, nothing ignored) are copied to build/ansible_collections/hearth/homelab. It also downloads pip from a host of its own
to start its virtual environments; a script in its cache that runs the same version of pip from the package index replaces
that download, and adds pydantic, which the import test needs and has no setting for. Its environments and caches stay below
build/, the user's home is not touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
COPY = BUILD / "ansible_collections" / "hearth" / "homelab"
HOME = BUILD / "ansible-test-home"
BIN = Path(sys.executable).parent
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

#: Not part of the tarball; a link that leads back into the checkout; and two links to folders, which ansible-test's
#: symlinks test refuses and Ansible needs (it reads group_vars for plays below playbooks/ only beside the inventory).
LEFT_OUT = (".collections", ".ci/", ".gitignore", "inventories/homelab/group_vars", "inventories/homelab/host_vars")

#: Collections whose Python code is imported; they come with the `ansible` package.
COLLECTIONS = ("community",)

#: Tests that are not run, each with the reason.
SKIPPED = {
    "pylint": "ruff checks pylint's rules (PLC, PLE, PLW) on all files at once; this one takes a minute, forbids the name `_` "
    "in a list that cannot be changed, and wants `print`, which is how the agent answers, to be a module's log",
    "changelog": "`make lint` runs the same program, antsibull-changelog lint, in the version that the project pins",
}

#: Tests whose rule is about one part of the tree only: name -> (targets, reason).
LIMITED = {
    "shebang": (("plugins/",), "modules must have none; tools, tests and the lab's files are run as programs"),
}

BOOTSTRAP = '''"""In place of get-pip.py: install pip into a new virtual environment with the pip of a wheel."""
import runpy
import sys

sys.path.insert(0, {wheel!r})
arguments = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
sys.argv = ["pip", "install", *arguments, *{also!r}]
runpy.run_module("pip", run_name="__main__", alter_sys=True)
'''


def files() -> list[str]:
    """What git tracks or would track, as far as it exists."""
    found = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return sorted(
        {name for name in found.split("\0") if name and not name.startswith(LEFT_OUT) and os.path.lexists(ROOT / name)}
    )


def export() -> None:
    if COPY.exists():
        shutil.rmtree(COPY)
    for name in files():
        target = COPY / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    installed = Path(sysconfig.get_path("purelib")) / "ansible_collections"
    for namespace in COLLECTIONS:
        link = BUILD / "ansible_collections" / namespace
        link.unlink(missing_ok=True)
        link.symlink_to(installed / namespace)
    # A repository of its own: ansible-test would ask the checkout's, which ignores everything below build/.
    subprocess.run(["git", "init", "--quiet"], cwd=COPY, check=True)
    subprocess.run(["git", "add", "--all", "--force"], cwd=COPY, check=True)


def pip_version() -> str:
    """The version that this ansible-test wants in its virtual environments."""
    from ansible_test._internal import python_requirements

    class Python:
        version = PYTHON

    return str(python_requirements.get_venv_packages(Python())["pip"])


def prepare_pip() -> None:
    version = pip_version()
    wheels = BUILD / "wheels"
    wheel = wheels / f"pip-{version}-py3-none-any.whl"
    if not wheel.exists():
        print(f"Getting pip {version} from the package index", flush=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps",
             "--only-binary", ":all:", "--dest", str(wheels), f"pip=={version}"],
            check=True,
        )  # fmt: skip
    script = HOME / ".ansible" / "test" / "cache" / f"get_pip_{version.replace('.', '_')}.py"
    also = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("pydantic==")]
    content = BOOTSTRAP.format(wheel=str(wheel), also=also)
    if not script.exists() or script.read_text() != content:
        # Its virtual environments are reused: they must have been started by this very script.
        shutil.rmtree(HOME, ignore_errors=True)
        script.parent.mkdir(parents=True)
        script.write_text(content)


def main() -> int:
    export()
    prepare_pip()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    environment |= {"HOME": str(HOME), "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    base = [str(BIN / "ansible-test"), "sanity", "--local", "--python", PYTHON, "--color", "no"]
    skipped = [argument for name in (*SKIPPED, *LIMITED) for argument in ("--skip-test", name)]
    runs = [[*base, *skipped, *sys.argv[1:]]]
    if len(sys.argv) == 1:
        runs += [[*base, "--test", name, *targets] for name, (targets, _why) in LIMITED.items()]
    return max(subprocess.run(run, cwd=COPY, env=environment, check=False).returncode for run in runs)


if __name__ == "__main__":
    sys.exit(main())
