# Copyright: hearth.homelab contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The Debian tree that every host starts from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from lablib.core import end, locked, processes_of, remove_tree, run, run_with_progress, say, write
from lablib.machine import Cache, Mirror, need_tool, plain_http
from lablib.proxy import ensure_proxy

# The base image is what a plain Debian 13 cloud image has, and no package that a service declares: those must be
# installed by the converge under test, with its own ids and into its own storage.
IMAGE_PACKAGES = (
    "ca-certificates",
    "curl",
    "dbus",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "libpam-systemd",
    "netbase",
    "nftables",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
    "systemd-timesyncd",
    "tzdata",
    "udev",
)
# Background apt runs would hold dpkg's lock while a converge needs it. Disabled and no more: a service may declare them.
IMAGE_DISABLED_UNITS = ("apt-daily.timer", "apt-daily-upgrade.timer")
# Raised when what is done to the tree after mmdebstrap changes: part of the image's key.
IMAGE_FORMAT = 6
# Left out of the base packages: a fifth of what is copied for every host. Packages installed later are complete.
IMAGE_WITHOUT = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")


def architecture() -> str:
    return run(["dpkg", "--print-architecture"]).stdout.strip()


def image_key(suite: str, mirror: Mirror) -> str:
    inputs = {
        "format": IMAGE_FORMAT,
        "suite": suite,
        "architecture": architecture(),
        "packages": IMAGE_PACKAGES,
        "disabled": IMAGE_DISABLED_UNITS,
        "without": IMAGE_WITHOUT,
        "mirror": [mirror.main, mirror.security],
        "options": mirror.options,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def apt_sources(suite: str, mirror: Mirror, components: str = "main") -> str:
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    parts = [(mirror.main, f"{suite} {suite}-updates"), (mirror.security, f"{suite}-security")]
    return "\n".join(
        f"Types: deb\nURIs: {plain_http(uri)}\nSuites: {suites}\nComponents: {components}\nSigned-By: {keyring}\n"
        for uri, suites in parts
    )


def ensure_image(cache: Cache, suite: str, mirror: Mirror) -> Path:
    """The tree that every host starts from; built when there is none for these inputs."""
    tree = cache.images / f"{suite}-{architecture()}-{image_key(suite, mirror)}"
    with locked(cache.lock("image"), "the image"):
        end(processes_of(cache.images), grace=0)  # what a killed run left at work
        for leftover in cache.images.glob(".build-*"):
            remove_tree(leftover)
        if tree.exists():
            return tree
        say(f"Building the Debian {suite} image (once; kept in {tree})")
        port = ensure_proxy(cache, mirror)
        build = cache.images / f".build-{tree.name}"
        build.mkdir(parents=True)
        sources = apt_sources(suite, mirror)
        bootstrap(
            cache.images, cache.log("image"), "image", suite, mirror, port, sources, IMAGE_PACKAGES, build / "tree"
        )
        finish_image(build / "tree", suite, mirror)
        (build / "tree").rename(tree)
        remove_tree(build)
        for other in cache.images.glob(f"{suite}-{architecture()}-*"):
            if other != tree:
                remove_tree(other)  # an image of older inputs: nothing will ask for it again
    return tree


def bootstrap(
    owner: Path,
    log: Path,
    what: str,
    suite: str,
    mirror: Mirror,
    port: int,
    sources: str,
    packages: Sequence[str],
    tree: Path,
    more: Sequence[str] = (),
) -> None:
    """A Debian tree with these packages, taken through the apt proxy on `port`; beside it a file with its sources."""
    write(tree.with_name(f"{tree.name}.sources"), sources)
    options = [f'--aptopt={key} "{value}"' for key, value in mirror.options]
    run_with_progress(
        what,
        [
            need_tool("mmdebstrap"),
            "--mode=root",
            "--variant=minbase",
            f"--include={','.join(packages)}",
            f'--aptopt=Acquire::http::Proxy "http://127.0.0.1:{port}"',
            '--aptopt=Acquire::Languages "none"',
            *options,
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in IMAGE_WITHOUT),
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            # The package lists stay, so that the first installation in a host needs no `apt-get update`.
            "--skip=cleanup/apt/lists",
            *more,
            suite,
            tree,
            tree.with_name(f"{tree.name}.sources"),
        ],
        log,
        owner,
    )


def finish_image(tree: Path, suite: str, mirror: Mirror, components: str = "main") -> None:
    for pattern in (
        "etc/ssh/ssh_host_*",
        "etc/apt/sources.list.d/*",
        "etc/apt/apt.conf.d/99mmdebstrap",
        "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
        "var/log/*.log",
    ):
        for path in tree.glob(pattern):
            path.unlink()
    write(tree / "etc/apt/sources.list.d/debian.sources", apt_sources(suite, mirror, components))
    lines = ['Acquire::Languages "none";', *(f'{key} "{value}";' for key, value in mirror.options)]
    write(tree / "etc/apt/apt.conf.d/90lab", "// written by the hearth lab\n" + "\n".join(lines) + "\n")
    for name in ("etc/hostname", "etc/resolv.conf"):
        (tree / name).unlink(missing_ok=True)
    (tree / "etc/machine-id").write_text("", encoding="utf-8")
    run(["systemctl", f"--root={tree}", "enable", "systemd-networkd.service", "ssh.service"])
    run(["systemctl", f"--root={tree}", "disable", *IMAGE_DISABLED_UNITS])
