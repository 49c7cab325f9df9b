# Copyright: hearth.homelab contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The Debian tree, kernel and initrd that every QEMU host starts from.

Two steps, because building ZFS takes minutes and a compiler: the modules are built in a tree of their own, once for a
kernel and a version of ZFS, and only they are copied into the hosts' tree. That one has no compiler, no headers and no
dkms: it is small, and a host upgrades nothing that would build for an hour in an emulated processor.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

from lablib.core import LabError, end, locked, processes_of, remove_tree, run, say, tail
from lablib.image import (
    IMAGE_DISABLED_UNITS,
    IMAGE_FORMAT,
    IMAGE_PACKAGES,
    IMAGE_WITHOUT,
    apt_sources,
    architecture,
    bootstrap,
    finish_image,
)
from lablib.machine import Cache, Mirror
from lablib.proxy import ensure_proxy

#: ZFS on Linux is in contrib.
COMPONENTS = "main contrib"
# What a host needs of its own kernel, and the tools that go with the modules. The modules themselves are copied in.
KERNEL_PACKAGES = ("initramfs-tools", "linux-image-cloud-amd64", "wireguard-tools", "zfsutils-linux")
# All that is needed to find the root file system: a small initrd boots sooner where the processor is emulated.
INITRD_MODULES = ("virtio_pci", "virtio_blk", "ext4")
INITRD_SETTINGS = {
    "etc/initramfs-tools/conf.d/lab": "# written by the hearth lab\nMODULES=list\n",
    "usr/share/initramfs-tools/modules.d/lab": "\n".join(INITRD_MODULES) + "\n",
}
# Raised when what is done to the tree after mmdebstrap changes: part of the image's key.
FORMAT = 1
MODULES = "updates/dkms"  # below /usr/lib/modules/KERNEL: where dkms puts what it built


@dataclasses.dataclass(frozen=True)
class QemuImage:
    directory: Path

    @property
    def tree(self) -> Path:
        return self.directory / "tree"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"


def qemu_image_key(suite: str, mirror: Mirror) -> str:
    inputs = {
        "format": [IMAGE_FORMAT, FORMAT],
        "suite": suite,
        "components": COMPONENTS,
        "packages": [*IMAGE_PACKAGES, *KERNEL_PACKAGES],
        "initrd": INITRD_SETTINGS,
        "disabled": IMAGE_DISABLED_UNITS,
        "without": IMAGE_WITHOUT,
        "mirror": [mirror.main, mirror.security],
        "options": mirror.options,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def ensure_qemu_image(cache: Cache, suite: str, mirror: Mirror) -> QemuImage:
    """Built when there is none for these inputs. In a directory and under a lock of its own: it takes minutes, in which
    labs without QEMU hosts go on."""
    folder = cache.qemu
    image = QemuImage(folder / f"{suite}-{architecture()}-{qemu_image_key(suite, mirror)}")
    with locked(cache.lock("qemu-image"), "the QEMU image"):
        end(processes_of(folder), grace=0)  # what a killed run left at work
        for leftover in folder.glob(".build-*"):
            remove_tree(leftover)
        if image.directory.exists():
            return image
        say(f"Building the Debian {suite} image of QEMU hosts (once; kept in {image.directory})")
        port = ensure_proxy(cache, mirror)
        build = QemuImage(folder / f".build-{image.directory.name}")
        build.directory.mkdir(parents=True)
        hooks = [
            f'--essential-hook=mkdir -p "$1/{Path(name).parent}" && printf %s \'{text}\' >"$1/{name}"'
            for name, text in INITRD_SETTINGS.items()
        ]
        sources = apt_sources(suite, mirror, COMPONENTS)
        packages = (*IMAGE_PACKAGES, *KERNEL_PACKAGES)
        bootstrap(
            folder, cache.log("qemu-image"), "QEMU image", suite, mirror, port, sources, packages, build.tree, hooks
        )
        kernel = only(build.tree / "boot", "vmlinuz-*").name.removeprefix("vmlinuz-")
        modules = ensure_zfs_modules(cache, suite, mirror, port, kernel, zfs_version(build.tree))
        shutil.copytree(modules, build.tree / "usr/lib/modules" / kernel / MODULES, dirs_exist_ok=True)
        run(["chroot", build.tree, "depmod", kernel], owner=folder)
        shutil.copy(build.tree / "boot" / f"vmlinuz-{kernel}", build.kernel)
        shutil.copy(build.tree / "boot" / f"initrd.img-{kernel}", build.initrd)
        finish_image(build.tree, suite, mirror, COMPONENTS)
        # ConditionNeedsUpdate=: else the first boot rebuilds the linker's cache, the journal's catalogue and more.
        for name in ("etc/.updated", "var/.updated"):
            (build.tree / name).touch()
        build.directory.rename(image.directory)
        for other in folder.glob(f"{suite}-{architecture()}-*"):
            if other != image.directory:
                remove_tree(other)  # an image of older inputs: nothing will ask for it again
    return image


def only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise LabError(f"{folder} should have one {pattern}, it has {', '.join(path.name for path in found) or 'none'}")
    return found[0]


def zfs_version(tree: Path) -> str:
    """As dpkg says it: modules and tools of one version belong together."""
    argv = ["dpkg-query", f"--admindir={tree / 'var/lib/dpkg'}", "--show", "--showformat=${Version}", "zfsutils-linux"]
    return run(argv).stdout.strip()


def ensure_zfs_modules(cache: Cache, suite: str, mirror: Mirror, port: int, kernel: str, version: str) -> Path:
    """The directory with ZFS's modules for a kernel, built by Debian's zfs-dkms when there is none."""
    folder = cache.qemu
    kept = folder / f"zfs-{version}-{kernel}"
    if kept.exists():
        return kept
    say(f"Building ZFS {version} for Linux {kernel} (once, some minutes; kept in {kept})")
    build = folder / f".build-{kept.name}"
    build.mkdir()
    tree = build / "tree"
    packages = (f"linux-headers-{kernel}", f"zfs-dkms={version}")
    log = cache.log("zfs-modules")
    # What the package's own script has not built already; it asks for the running kernel, which is the machine's.
    hook = f'--customize-hook=chroot "$1" dkms autoinstall -k {kernel}'
    sources = apt_sources(suite, mirror, COMPONENTS)
    bootstrap(folder, log, "ZFS modules", suite, mirror, port, sources, packages, tree, [hook])
    modules = tree / "usr/lib/modules" / kernel / MODULES
    if not any(modules.glob("zfs.ko*")):
        logs = "\n".join(tail(path) for path in sorted(tree.glob("var/lib/dkms/zfs/**/make.log")))
        raise LabError(f"zfs-dkms {version} made no module for Linux {kernel}. The end of {log}:\n{tail(log)}\n{logs}")
    shutil.copytree(modules, build / "modules")
    (build / "modules").rename(kept)
    for other in folder.glob("zfs-*"):
        if other != kept:
            remove_tree(other)
    remove_tree(build)
    return kept
