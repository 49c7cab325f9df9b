# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The converged site of molecule's scenario `exactness`: lab-forge alone, with every kind of item (inventory/)."""

from __future__ import annotations

import json
import typing as t

import pytest

from ..conftest import Outcome, Site

FORGE = "host_vars/lab-forge/zz_test.yml"

# Everything on the host that check mode must not touch, as one JSON object. Not the journal, nor what runs by itself.
FINGERPRINT = r"""
import glob, hashlib, json, os, subprocess
def run(*argv):
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout
def listed(*argv):
    return sorted(run(*argv).splitlines())  # podman lists in no order
files = {}
for top in ("/etc", "/var/lib/hearth", "/usr/local", "/root", "/home", "/srv", "/var/lib/containers/storage/secrets"):
    for directory, _names, names in os.walk(top):
        for path in (directory, *(os.path.join(directory, name) for name in names)):
            try:
                found = os.lstat(path)
                content = ""
                if os.path.isfile(path) and not os.path.islink(path):
                    with open(path, "rb") as stream:
                        content = hashlib.sha256(stream.read()).hexdigest()
                files[path] = [found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, found.st_ino, content]
            except FileNotFoundError:
                pass
units = run("systemctl", "show", "--property=Id,InvocationID,ActiveState,UnitFileState", "--", *UNITS)
psql = "SELECT rolname, rolpassword, rolsuper, rolcanlogin FROM pg_authid; SELECT datname, datdba FROM pg_database; "
psql += "SELECT roleid, member, grantor, admin_option FROM pg_auth_members;"
print(json.dumps({
    "files": files,
    "units": units,
    "postgresql": run("runuser", "-u", "postgres", "--", "psql", "-XAtc", psql),
    "ruleset": run("nft", "-s", "list", "ruleset"),
    "packages": run("dpkg-query", "-W"),
    "containers": listed("podman", "ps", "--all", "--format", "{{.ID}} {{.Names}}"),
    "images": listed("podman", "images", "--no-trunc", "--format", "{{.ID}} {{.Names}}"),
    "secrets": listed("podman", "secret", "ls", "--format", "{{.ID}} {{.Name}}"),
    "networks": listed("podman", "network", "ls", "--format", "{{.ID}} {{.Name}}"),
    "hostname": run("hostname"),
    "sysctl": [open(path).read() for path in sorted(glob.glob("/proc/sys/net/ipv4/*ttl"))],
    "locales": run("locale", "-a"),
}))
"""


class Exact:
    """Ways to compare what check mode says with what a run does."""

    def __init__(self, site: Site) -> None:
        self.site = site

        #: What check mode said before the first run on a fresh host, and what that did; None: it was not fresh.
        self.first: tuple[Outcome, Outcome] | None = None

    def sh(self, command: str, **options: t.Any) -> str:
        return self.site.ssh("lab-forge", command, **options)

    def manifest(self) -> dict[str, t.Any]:
        return t.cast("dict[str, t.Any]", self.site.generation()["manifest"])

    def fingerprint(self) -> dict[str, t.Any]:
        units = sorted(item["name"] for item in self.manifest()["items"] if item["kind"] == "unit")
        script = f"UNITS = {units!r}\n{FINGERPRINT}"
        return t.cast("dict[str, t.Any]", json.loads(self.sh("python3 -I -", stdin=script)))

    def check(self, *arguments: str, **options: t.Any) -> Outcome:
        """Check mode with differences; it must leave the host as it is."""
        before = self.fingerprint()
        outcome = self.site.play("--check", "--diff", *arguments, **options)
        after = self.fingerprint()
        for what, found in before.items():
            if isinstance(found, dict):
                changed = {key for key in {*found, *after[what]} if found.get(key) != after[what].get(key)}
                assert not changed, f"check mode changed {sorted(changed)[:10]}"
            assert found == after[what], f"check mode changed the {what}"
        return outcome

    def settled(self) -> None:
        """Nothing is left to do, found out in one exchange."""
        result = self.site.play("--diff").converge()
        assert not result["changed"], [(a["operation"], a["id"], a["reason"]) for a in result["actions"]]
        assert result["unknown"] == []
        assert result["exchanges"] == 1


def unknown(outcome: Outcome) -> set[str]:
    return {notice["item"] for notice in outcome.converge()["unknown"]}


def reasons(outcome: Outcome) -> dict[str, str]:
    return {f"{a['operation']} {a['id']}": a["reason"] for a in outcome.converge()["actions"]}


@pytest.fixture(scope="session")
def exact(site: Site) -> Exact:
    """The host, converged: a fresh one is checked first, and what was said and done is kept for test_fresh.py."""
    found = Exact(site)
    if not found.sh("ls /var/lib/hearth/generations/current 2>/dev/null", check=False):
        found.first = (site.play("--check", "--diff"), site.play("--diff"))
    return found
