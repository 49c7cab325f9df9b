# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller is killed, or loses its connection, at the phases of a run: the host finishes by itself, and the next
run says so. One small service of the lab's inventory, so that a run is short."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import typing as t
from pathlib import Path

import pytest

from ..conftest import BIN, ROOT, Site, wait_until
from .conftest import LabHost

FORGE = "host_vars/lab-forge/zz_test.yml"
UNIT = "[Unit]\nDescription={0}\n[Service]\nExecStart=/usr/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
GO = "/run/thing-go"


def thing(text: str, held: bool = False) -> dict[str, t.Any]:
    """A service of one unit; ``held``: it is healthy once the file GO is there, so that its run lasts until then."""
    return {
        "hearth_services__test": {
            "thing": {
                "contribution": {
                    "summary": "A test service",
                    "tier": "services",
                    "run": {"native": {"units": ["thing.service"]}},
                    "files": [{"path": "/etc/systemd/system/thing.service", "content": UNIT.format(text)}],
                    "health": {
                        "command": {"argv": ["/usr/bin/test", "-e", GO if held else "/run"]},
                        "start_period": "120s",
                    },
                }
            }
        }
    }


def play(site: Site, **more: t.Any) -> t.Any:
    return site.play(variables={"only": ["thing"]}, **more)


def begin(site: Site, text: str, held: bool = False) -> subprocess.Popen[str]:
    """A controller that converges, in a session of its own."""
    site.set_vars(FORGE, thing(text, held))
    argv = [str(BIN / "ansible-playbook"), "-i", str(site.inventory), "site.yml", "-l", "lab-forge"]
    argv += ["-e", json.dumps({"only": ["thing"]})]
    return subprocess.Popen(argv, cwd=ROOT, env=site.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            stdin=subprocess.DEVNULL, text=True, start_new_session=True)  # fmt: skip


def kill(pid: int) -> None:
    """kill -9 of a controller with its workers, which have sessions of their own."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(word) for word in task.read_text().split()]
    for one in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def started(host: LabHost, known: str, condition: str) -> str:
    """Waits on the host until a new run is there and a shell condition on it holds; the run's name."""
    script = (
        f"known='{' '.join(known.split())}'; for i in $(seq 2000); do for r in $(ls /var/lib/hearth/runs); do "
        f'case " $known " in *" $r "*) ;; *) if {condition}; then echo $r; exit; fi;; esac; done; sleep 0.02; done; exit 1'
    )
    return host.sh(script).strip()


def ended(host: LabHost, run: str) -> dict[str, t.Any]:
    path = f"/var/lib/hearth/runs/{run}/result.json"
    wait_until(f"run {run} ends", lambda: host.sh(f"ls {path}", check=False), 90, 0.5)
    return t.cast("dict[str, t.Any]", json.loads(host.sh(f"cat {path}")))


def description(host: LabHost) -> str:
    return host.sh("systemctl show -P Description thing.service").strip()


def known_runs(host: LabHost) -> str:
    return host.sh("mkdir -p /var/lib/hearth/runs; ls /var/lib/hearth/runs")


APPLIES = "grep -qs '\"prepare\"' /var/lib/hearth/runs/$r/journal.jsonl"
WATCHES = "grep -qs '\"services\"' /var/lib/hearth/runs/$r/journal.jsonl"


@pytest.mark.parametrize(
    ("phase", "condition"),
    [("it has just sent everything", "true"), ("the host applies", APPLIES), ("it watches", WATCHES)],
    ids=("sent", "applying", "watching"),
)
def test_the_controller_is_killed_when(site: Site, host: LabHost, phase: str, condition: str) -> None:
    text, watches = f"killed when {phase}", condition == WATCHES
    known = known_runs(host)
    host.sh(f"rm -f {GO}")
    with begin(site, text, held=watches) as controller:
        run = started(host, known, condition)
        if watches:
            # Meanwhile another controller is told who holds the lock.
            refused = play(site, expect=2)
            assert f"is applying run {run} on this host since" in refused.message
        kill(controller.pid)
        controller.communicate()
    host.sh(f"touch {GO}")
    assert ended(host, run)["ok"]
    assert description(host) == text
    found = play(site)
    said = [notice["message"] for notice in found.converge()["notices"]]
    assert any(
        f"run {run} of " in text and "ended while nobody watched it: it was finished" in text for text in said
    ), said
    assert not found.converge()["changed"]
    if watches:
        assert not any("nobody watched" in n["message"] for n in play(site).converge()["notices"])  # said once


def test_a_lost_connection_is_found_again(site: Site, host: LabHost) -> None:
    """Every SSH session of the host ends in mid-run; the controller comes back and has the result."""
    known = known_runs(host)
    host.sh(f"rm -f {GO}")
    with begin(site, "lost", held=True) as controller:
        run = started(host, known, WATCHES)
        # A unit of its own, so that it outlives the session that asks for it.
        host.sh("systemd-run --quiet --collect pkill -KILL sshd-session", check=False)
        wait_until("the host answers", lambda: host.sh(f"touch {GO} && echo done", check=False), 30, 0.5)
        out, _none = controller.communicate(timeout=120)
    assert controller.returncode == 0, out
    assert ended(host, run)["ok"]
    assert description(host) == "lost"
    assert not play(site).converge()["changed"]
