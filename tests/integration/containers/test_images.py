# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Images pinned by digest, from a real registry (docker-registry of the lab) to a real podman.

A role of the tests' own has an image there. `make pin` locks it; then what its tag names changes behind it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import typing as t
import urllib.request

import pytest
import yaml

from ..conftest import ROOT, Site

FORGE = "host_vars/lab-forge/zz_images.yml"
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"

CONTRIBUTION: dict[str, t.Any] = {
    "summary": "A pinned image",
    "tier": "services",
    "platforms": ["debian/amd64", "debian/arm64"],
    "run": {
        "container": {
            "image": "{{ pinned_image }}",
            "reason": "a test",
            "environment": {"STANDIN_PORT": "8000", "STANDIN_STATE": "/config"},
        },
        "stop_timeout": "5s",
    },
    "user": {"name": "pinned", "id": 2990},
    "listen": {"http": {"port": "{{ pinned_port }}", "container_port": 8000}},
    "storage": {"state": {"mountpoint": "/var/lib/{{ service.name }}", "target": "/config"}},
    "protect": {"class": "ephemeral"},
    "health": {"http": {"port": "http", "path": "/ping"}, "start_period": "60s"},
}


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry:
    """The lab's registry: what it has under a tag, and other things put there."""

    def __init__(self, site: Site) -> None:
        subnet = yaml.safe_load((site.inventory / "hosts.yml").read_text())["all"]["vars"]["lab_subnet"]
        self.host = f"{subnet.rsplit('.', 1)[0]}.1:5000"
        self.reference = f"{self.host}/pinned/app:1"
        # The registry is on this machine's own bridge: no proxy leads there.
        self.environment = {**os.environ, "no_proxy": self.host.split(":")[0], "NO_PROXY": self.host.split(":")[0]}
        self.open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def ask(self, method: str, path: str, data: bytes | None = None, kind: str = "application/octet-stream") -> bytes:
        """One request of the distribution API; the body of the answer, or where an upload goes."""
        url = path if path.startswith("http:") else f"http://{self.host}/v2/{path}"
        request = urllib.request.Request(url, data=data, method=method, headers={"Accept": MANIFEST})
        if data is not None:
            request.add_header("Content-Type", kind)
        with self.open(request) as answer:
            return t.cast("bytes", answer.headers["Location"].encode() if method == "POST" else answer.read())

    def image(self, stand_in: str, architecture: str) -> dict[str, t.Any]:
        """The stand-in under the tests' own name, as an image of its own; its entry for an index."""
        manifest = json.loads(self.ask("GET", f"standin/{stand_in}/manifests/1"))
        config = json.loads(self.ask("GET", f"standin/{stand_in}/blobs/{manifest['config']['digest']}"))
        config["config"]["Labels"]["pinned"] = "a test"
        for layer in manifest["layers"]:
            self.ask("POST", f"pinned/app/blobs/uploads/?mount={layer['digest']}&from=standin/{stand_in}", b"")
        text = json.dumps(config).encode()
        manifest["config"] |= {"digest": digest(text), "size": len(text)}
        upload = self.ask("POST", "pinned/app/blobs/uploads/", b"").decode()
        self.ask("PUT", f"{upload}&digest={digest(text)}", text)
        body = json.dumps(manifest).encode()
        self.ask("PUT", f"pinned/app/manifests/{digest(body)}", body, MANIFEST)
        platform = {"os": "linux", "architecture": architecture}
        return {"mediaType": MANIFEST, "digest": digest(body), "size": len(body), "platform": platform}

    def put(self, stand_in: str) -> str:
        """Makes tag 1 an index whose image for amd64 is a stand-in; the index's digest."""
        entries = [self.image(stand_in, "amd64"), self.image("plex", "arm64")]
        index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
        self.ask("PUT", "pinned/app/manifests/1", index, INDEX)
        return digest(index)


class Pinned:
    """The role below test, and what is known of it on the host."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.registry = Registry(site)
        self.path = site.directory / "roles" / "pinned"
        self.lock = self.path / "images.lock.yml"

    def make(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        for name, data in (
            ("vars/contribution.yml", {"pinned_contribution": CONTRIBUTION}),
            ("defaults/main.yml", {"pinned_image": self.registry.reference, "pinned_port": 18000}),
        ):
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(data))
        self.enable()

    def enable(self, images: t.Mapping[str, str] | None = None, **others: t.Any) -> None:
        """Three instances of the role, each with the role's own image or another, and further services."""
        services: dict[str, t.Any] = {"pinned": {}}
        for name, port in (("pinned_two", 18001), ("pinned_three", 18002)):
            services[name] = {"role": "pinned", "options": {"port": port}}
        for name, image in (images or {}).items():
            services[name].setdefault("options", {})["image"] = image
        variables = {"hearth_services__images": services | others, "podman_insecure_registries": [self.registry.host]}
        self.site.set_vars(FORGE, variables)

    def pin(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The program of `make pin`, as make runs it."""
        return subprocess.run(
            [sys.executable, str(ROOT / "tools/pin_images.py"), f"--roles={self.path.parent}",
             f"--insecure={self.registry.host}", *arguments],
            check=False, capture_output=True, text=True, env=self.registry.environment,
        )  # fmt: skip

    @property
    def digest(self) -> str:
        found = yaml.safe_load(self.lock.read_text())["images"][self.registry.reference]
        return str(found["platforms"]["linux/amd64"])

    def running(self, name: str = "pinned") -> tuple[str, str]:
        """The container's id and the digest of the image that it was made from."""
        found = self.site.ssh("lab-forge", f"podman inspect --format '{{{{.Id}}}} {{{{.ImageDigest}}}}' {name}").split()
        return found[0], found[1]

    def says(self) -> str:
        return self.site.ssh("lab-forge", "curl -sS --fail http://127.0.0.1:18000/")

    def notices(self, outcome: t.Any) -> list[str]:
        entry = next(hosts["lab-forge"] for name, hosts in outcome.results.items() if "ompose" in name)
        return [text for text in entry["hosts"]["lab-forge"]["notices"] if "pinned/app" in text]


@pytest.fixture(scope="module")
def pinned(site: Site) -> t.Iterator[Pinned]:
    made = Pinned(site)
    made.registry.put("sonarr")
    made.make()
    yield made
    site.set_vars(FORGE, None)
    site.play()
    # Images stay on a host (another service may use them, or the next run): these would be there for the next tests.
    site.ssh(
        "lab-forge",
        "podman images --quiet --filter label=pinned | sort -u | xargs --no-run-if-empty podman rmi --force",
    )
    shutil.rmtree(made.path)


def test_an_image_without_a_lock_is_listed(site: Site, pinned: Pinned) -> None:
    outcome = site.play("--check")
    assert "create file:/etc/containers/systemd/pinned.container" in outcome.actions()
    assert f"pull image:{pinned.registry.reference}" in outcome.actions()
    (notice,) = pinned.notices(outcome)
    assert f"{pinned.registry.reference} (pinned), " in notice


def test_a_pinned_image_runs_by_its_digest(site: Site, pinned: Pinned) -> None:
    made = pinned.pin()
    assert made.returncode == 0, made.stdout + made.stderr
    assert pinned.pin("--check").returncode == 0
    outcome = site.play()
    assert f"pull image:{pinned.registry.reference}@{pinned.digest}" in outcome.actions()
    assert pinned.notices(outcome) == []
    assert pinned.running()[1] == pinned.digest
    assert "sonarr (stand-in)" in pinned.says()
    unit = site.ssh("lab-forge", "cat /etc/containers/systemd/pinned.container")
    assert f"Image={pinned.registry.reference}@{pinned.digest}\n" in unit
    assert not site.play().converge()["changed"]


def test_a_tag_that_moves_changes_nothing_until_it_is_pinned_again(site: Site, pinned: Pinned) -> None:
    before = pinned.digest
    index = pinned.registry.put("radarr")
    checked = pinned.pin("--check")
    assert checked.returncode == 1
    assert f"pinned: stale: {pinned.registry.reference} has moved: it was " in checked.stdout
    assert index in checked.stdout
    assert pinned.digest == before
    # Even a host that has lost the image gets the old one: it is asked for by its digest.
    name = f"{pinned.registry.reference}@{before}"
    units = "pinned pinned_two pinned_three"
    site.ssh("lab-forge", f"systemctl stop {units} && podman rmi {name} && ! podman image exists {name}")
    site.play()
    assert pinned.running()[1] == before
    assert "sonarr (stand-in)" in pinned.says()
    assert pinned.pin().returncode == 0
    assert pinned.digest != before
    actions = site.play().actions()
    assert f"pull image:{pinned.registry.reference}@{pinned.digest}" in actions
    restarted = {action for action in actions if action.startswith(("restart", "start"))}
    assert restarted == {f"restart unit:{name}.service" for name in ("pinned", "pinned_two", "pinned_three")}
    assert "radarr (stand-in)" in pinned.says()
    assert pinned.pin("--check").returncode == 0


def test_what_cannot_be_pulled_leaves_what_runs(site: Site, pinned: Pinned) -> None:
    """A tag and a digest that the registry does not have, and a registry that does not answer, in one run."""
    host = pinned.registry.host
    refused = {
        "pinned": (f"{host}/pinned/app:nothing", "manifest unknown"),
        "pinned_two": (f"{host}/pinned/app:1@sha256:{'0' * 64}", "manifest unknown"),
        "pinned_three": ("127.0.0.1:5999/pinned/app:1", "connection refused"),
    }
    before = {name: pinned.running(name) for name in refused}
    # Something else of the same run stands.
    homepage = {"override": {"run": {"container": {"environment": {"SEEN": "yes"}}}}}
    pinned.enable({name: image for name, (image, _answer) in refused.items()}, homepage=homepage)
    outcome = site.play(expect=2)
    for name, (image, answer) in refused.items():
        said = re.search(f"host lab-forge: service {name} was taken back: (.*\n.*converge again)", outcome.message)
        assert said, outcome.message
        assert f"the image {image} cannot be pulled" in said[1]
        assert answer in said[1]
    assert set(outcome.converge()["taken_back"]) == set(refused)
    assert {name: pinned.running(name) for name in refused} == before
    assert "radarr (stand-in)" in pinned.says()
    assert "SEEN=yes" in site.ssh("lab-forge", "podman inspect --format '{{.Config.Env}}' homepage")
    unit = site.ssh("lab-forge", "cat /etc/containers/systemd/pinned.container")
    assert f"Image={pinned.registry.reference}@{pinned.digest}\n" in unit
    assert set(site.generation()["partial"]) == set(refused)


def test_a_lock_that_disagrees_stops_the_run_before_any_host(site: Site, pinned: Pinned) -> None:
    pinned.enable()
    text = pinned.lock.read_text()
    pinned.lock.write_text(text.replace("pinned/app:1:", "pinned/app:0:"))
    try:
        message = site.play(expect=None).message
    finally:
        pinned.lock.write_text(text)
    for part in ("lab-forge", "pinned", "images.lock.yml:4", "pinned/app:0", pinned.registry.reference, "make pin"):
        assert part in message, message
