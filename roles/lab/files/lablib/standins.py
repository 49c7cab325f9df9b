# Copyright: hearth.homelab contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Stand-in container images, written by hand as OCI layouts: no container engine is needed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shutil
import tarfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lablib.core import LabError, remove_tree, run
from lablib.image import architecture
from lablib.machine import Cache
from lablib.proxy import proxy_state

FILES = Path(__file__).resolve().parents[1]


def standin_definitions() -> dict[str, Any]:
    return tomllib.loads((FILES / "standins.toml").read_text(encoding="utf-8"))


def ensure_busybox(cache: Cache, suite: str, image: Path) -> Path:
    """A static busybox from the image's own Debian release, unpacked and never installed on the machine."""
    folder = cache.root / "busybox"
    target = folder / f"busybox-{suite}-{architecture()}"
    if target.exists():
        return target
    remove_tree(folder)
    download = folder / "download"
    download.mkdir(parents=True)
    (download / "package").mkdir()
    # The image's lists name the package's file; the proxy on loopback has it. Nothing of the machine's apt is used.
    wanted = _package_file(image, "busybox-static")
    port = int(proxy_state(cache)["port"])
    package = download / "busybox-static.deb"
    options = ["-o", f"Acquire::http::Proxy=http://127.0.0.1:{port}", "-o", "APT::Sandbox::User=root"]
    run(["/usr/lib/apt/apt-helper", *options, "download-file", wanted[0], package, f"SHA256:{wanted[1]}"])
    run(["dpkg-deb", "--extract", package, download / "package"])
    found = next(path for path in (download / "package").glob("**/bin/busybox") if path.is_file())
    shutil.copy2(found, target)
    remove_tree(download)
    return target


def _package_file(tree: Path, package: str) -> tuple[str, str]:
    """URL and SHA-256 of a package as the tree's own, signed lists have it."""
    base = ""
    for line in (tree / "etc/apt/sources.list.d/debian.sources").read_text(encoding="utf-8").splitlines():
        if line.startswith("URIs:"):
            base = line.split()[1]
            break
    prefix = re.sub(r"^https?://", "", base).replace("/", "_")
    for path in sorted((tree / "var/lib/apt/lists").glob(f"{prefix}_dists_*_Packages")):
        with path.open(encoding="utf-8") as lines:
            entry: dict[str, str] = {}
            for line in lines:
                if line == "\n":
                    if entry.get("Package") == package:
                        return f"{base}/{entry['Filename']}", entry["SHA256"]
                    entry = {}
                elif not line.startswith(" "):
                    key, _, value = line.partition(":")
                    entry[key] = value.strip()
    raise LabError(f"{package} is in none of the package lists of {tree}")


def standin_answers(name: str, definition: Mapping[str, Any]) -> str:
    lines = []
    for answer in definition["answers"]:
        fields = [
            answer["path"],
            str(answer.get("status", 200)),
            answer.get("type", "application/json"),
            answer.get("header", "-").lower(),
            answer.get("environment", "-"),
            answer["body"],
        ]
        if any("\t" in field or "\n" in field or not field for field in fields):
            raise LabError(f"standins.toml: {name}: an answer must have no tabs, newlines or empty values")
        if not re.fullmatch(r"-|[A-Za-z_][A-Za-z0-9_]*", fields[4]):
            raise LabError(f"standins.toml: {name}: {fields[4]!r} is not the name of an environment variable")
        lines.append("\t".join(fields))
    return "\n".join(lines) + "\n"


def standin_collections(name: str, definition: Mapping[str, Any]) -> str:
    lines = []
    for entry in definition.get("collections", ()):
        fields = [entry["path"], entry.get("header", "-").lower(), entry.get("environment", "-")]
        if not re.fullmatch(r"(/[A-Za-z0-9._-]+)+", fields[0]):
            raise LabError(f"standins.toml: {name}: {fields[0]!r} is not a plain path")
        if not re.fullmatch(r"-|[a-z0-9-]+", fields[1]) or not re.fullmatch(r"-|[A-Za-z_][A-Za-z0-9_]*", fields[2]):
            raise LabError(f"standins.toml: {name}: a collection's header or environment is not a name")
        lines.append("\t".join(fields) + "\n")
    return "".join(lines)


def build_standin(name: str, definition: Mapping[str, Any], busybox: Path, target: Path) -> str:
    """Write an OCI image layout by hand and give its digest. Bytes depend on the inputs alone."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w", format=tarfile.USTAR_FORMAT) as archive:

        def add(path: str, content: bytes | None, mode: int) -> None:
            entry = tarfile.TarInfo(path)
            entry.mode = mode
            if content is None:
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))

        state = str(definition["state"]).strip("/")
        for folder in sorted({"bin", "etc", "standin", "tmp", state}):
            add(folder, None, 0o1777 if folder == "tmp" else 0o755)
        add("bin/busybox", busybox.read_bytes(), 0o755)
        link = tarfile.TarInfo("bin/sh")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        archive.addfile(link)
        add("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n", 0o644)
        for script in ("serve", "respond"):
            add(f"standin/{script}", (FILES / "standin" / script).read_bytes(), 0o755)
        add("standin/answers", standin_answers(name, definition).encode(), 0o644)
        add("standin/collections", standin_collections(name, definition).encode(), 0o644)

    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as stream:
        stream.write(layer.getvalue())

    blobs = target / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(content: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    config = {
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": ["/standin/serve"],
            "Env": ["PATH=/bin", f"STANDIN_PORT={definition['port']}", f"STANDIN_STATE={definition['state']}"],
            "ExposedPorts": {f"{definition['port']}/tcp": {}},
            "Labels": {
                "org.opencontainers.image.title": name,
                "org.opencontainers.image.description": f"stand-in for {name}: proves wiring, never the application",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
    }
    kind = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": blob(json.dumps(config, sort_keys=True).encode(), f"{kind}.config.v1+json"),
        "layers": [blob(packed.getvalue(), f"{kind}.layer.v1.tar+gzip")],
    }
    top = blob(json.dumps(manifest, sort_keys=True).encode(), f"{kind}.manifest.v1+json")
    index = {"schemaVersion": 2, "manifests": [top | {"annotations": {"org.opencontainers.image.ref.name": "standin"}}]}
    (target / "index.json").write_text(json.dumps(index), encoding="utf-8")
    (target / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}', encoding="utf-8")
    return str(top["digest"])
