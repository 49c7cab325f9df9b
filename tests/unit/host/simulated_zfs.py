# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""ZFS as data and real directories, for crash states: what zfs(8) does to datasets, one effect at a time.

A dataset's content is a real directory: at its mount point while it is mounted, else below ``.zfs`` of the root, where
the directory that it hides waits meanwhile. Snapshots are copies. Properties have sources, guids are the dataset's own,
and a received dataset has another guid and received properties, as with the real one. A subcommand or an option that is
not modelled is an error.
"""

from __future__ import annotations

import itertools
import os
import shutil
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.hearth.homelab.plugins.module_utils import zfs
from ansible_collections.hearth.homelab.plugins.module_utils.runner import Completed

#: Defaults of OpenZFS 2.3, as ``zfs get -p`` prints them.
DEFAULTS = {
    "atime": "on", "canmount": "on", "casesensitivity": "sensitive", "compression": "on", "encryption": "off",
    "keylocation": "none", "mountpoint": "/", "quota": "0", "readonly": "off", "recordsize": "131072",
    "refreservation": "0", "sync": "standard",
}  # fmt: skip


@dataclass
class Snap:
    guid: str
    holds: list[str] = field(default_factory=list)


@dataclass
class Node:
    guid: str
    local: dict[str, str] = field(default_factory=dict)
    received: dict[str, str] = field(default_factory=dict)
    snapshots: dict[str, Snap] = field(default_factory=dict)
    mounted: bool = False
    origin: str = ""
    resume: str = ""


class SimulatedZfs:
    """``run`` answers ``zfs ...``. ``effect`` is called before every change with its name."""

    def __init__(self, root: Path, pools: t.Iterable[str] = ("tank",), first: int = 1000) -> None:
        self.root = root
        self.numbers = itertools.count(first)
        self.nodes: dict[str, Node] = {}
        self.effect: t.Callable[[str], None] = lambda _name: None
        for pool in pools:
            self.nodes[pool] = Node(self._guid(), {"mountpoint": f"/{pool}"})
            self._content(self.nodes[pool]).mkdir(parents=True)
            self._mount(pool)

    def _guid(self) -> str:
        return str(next(self.numbers))

    # -- content ------------------------------------------------------------------------------------------------------

    def _content(self, node: Node) -> Path:
        return self.root / ".zfs" / node.guid

    def content(self, name: str) -> Path:
        """Where a dataset's files are now."""
        node = self.nodes[name]
        return self._at(name) if node.mounted else self._content(node)

    def _at(self, name: str) -> Path:
        return self.root / self.get(name, "mountpoint")[0].lstrip("/")

    def _hidden(self, node: Node) -> Path:
        return self.root / ".zfs" / f"{node.guid}-under"

    def _mount(self, name: str) -> None:
        node, path = self.nodes[name], self._at(name)
        self.effect(f"mount {name}")
        path.mkdir(parents=True, exist_ok=True)
        # A directory cannot hide another here: it is moved aside. Datasets below it are mounted after it, as ZFS does.
        os.rename(path, self._hidden(node))
        os.rename(self._content(node), path)
        node.mounted = True

    def _unmount(self, name: str) -> None:
        node, path = self.nodes[name], self._at(name)
        self.effect(f"unmount {name}")
        os.rename(path, self._content(node))
        os.rename(self._hidden(node), path)
        node.mounted = False

    def _snapshot_content(self, name: str, snapshot: str) -> Path:
        return self.root / ".zfs" / f"{self.nodes[name].guid}@{snapshot}"

    # -- properties ---------------------------------------------------------------------------------------------------

    def get(self, name: str, prop: str) -> tuple[str, str]:
        """Value and source."""
        node = self.nodes[name]
        computed = {
            "type": "filesystem", "guid": node.guid, "mounted": "yes" if node.mounted else "no", "available": "1000000000",
            "origin": node.origin or "-", "receive_resume_token": node.resume or "-", "keystatus": "-",
            "encryptionroot": "-",
        }  # fmt: skip
        if prop in computed:
            return computed[prop], "-"
        if prop in node.local:
            return node.local[prop], "local"
        if prop in node.received:
            return node.received[prop], "received"
        if prop not in zfs.NOT_INHERITED:
            for parent in reversed(zfs.parents(name)):
                above = self.nodes[parent]
                if prop in above.local or prop in above.received:
                    value = above.local.get(prop, above.received.get(prop, ""))
                    if prop == "mountpoint" and value.startswith("/"):
                        value = f"{value.rstrip('/')}{name[len(parent) :]}"
                    return value, f"inherited from {parent}"
        if ":" in prop:
            return "-", "-"
        return DEFAULTS.get(prop, "-"), "default" if prop in DEFAULTS else "-"

    # -- the program --------------------------------------------------------------------------------------------------

    def run(self, argv: t.Sequence[str], data: bytes | None = None) -> Completed:
        command, arguments = argv[1], list(argv[2:])
        handler = getattr(self, f"_{command.replace('-', '_')}_command", None)
        if handler is None:
            raise AssertionError(f"zfs {command} is not modelled: {argv}")
        try:
            return Completed(tuple(argv), 0, handler(arguments) or "", "")
        except LookupError as error:
            return Completed(tuple(argv), 1, *error.args[:2])

    @staticmethod
    def _fail(message: str, stdout: str = "") -> t.NoReturn:
        raise LookupError(stdout, f"{message}\n")

    def _need(self, name: str) -> Node:
        if name.partition("@")[0] not in self.nodes:
            self._fail(f"cannot open '{name}': dataset does not exist")
        return self.nodes[name.partition("@")[0]]

    def _get_command(self, arguments: list[str]) -> str:
        assert arguments[:5] == ["-Hp", "-t", "filesystem,volume", "-o", "name,property,value,source"], arguments
        properties, names = arguments[5].split(","), arguments[6:]
        lines = [
            "\t".join((name, prop, *self.get(name, prop)))
            for name in names
            if name in self.nodes
            for prop in properties
        ]
        stdout = "".join(f"{line}\n" for line in lines)
        missing = [name for name in names if name not in self.nodes]
        if missing:
            self._fail("\n".join(f"cannot open '{name}': dataset does not exist" for name in missing), stdout)
        return stdout

    def _create_command(self, arguments: list[str]) -> None:
        options, (name,) = self._options(arguments)
        if name in self.nodes:
            self._fail(f"cannot create '{name}': dataset already exists")
        self._need(name.rpartition("/")[0])
        self.effect(f"create {name}")
        node = self.nodes[name] = Node(self._guid(), options)
        self._content(node).mkdir(parents=True)
        self._mount_if(name)

    def _mount_if(self, name: str) -> None:
        if self.get(name, "canmount")[0] == "on" and self.get(name, "mountpoint")[0].startswith("/"):
            self._mount(name)

    def _set_command(self, arguments: list[str]) -> None:
        *pairs, name = arguments
        node = self._need(name)
        values = dict(pair.split("=", 1) for pair in pairs)
        moves = "mountpoint" in values and values["mountpoint"] != self.get(name, "mountpoint")[0]
        was = node.mounted
        if moves and was:
            self._unmount(name)
        self.effect(f"set {name}")
        node.local.update(values)
        if moves and (was or self.get(name, "mountpoint")[0].startswith("/")):
            self._mount_if(name)

    def _inherit_command(self, arguments: list[str]) -> None:
        prop, name = arguments
        node = self._need(name)
        if prop in zfs.NOT_INHERITED:
            self._fail(f"'{prop}' property cannot be inherited")
        self.effect(f"inherit {name}")
        node.local.pop(prop, None)
        node.received.pop(prop, None)

    def _mount_command(self, arguments: list[str]) -> None:
        (name,) = arguments
        if self._need(name).mounted:
            self._fail(f"cannot mount '{name}': filesystem already mounted")
        self._mount(name)

    def _destroy_command(self, arguments: list[str]) -> None:
        recursive = arguments[0] == "-r"
        (name,) = arguments[1:] if recursive else arguments
        self._need(name)
        below = [other for other in self.nodes if other.startswith(f"{name}/")]
        if (below or self.nodes[name].snapshots) and not recursive:
            self._fail(f"cannot destroy '{name}': filesystem has children")
        for gone in sorted([name, *below], reverse=True):
            if self.nodes[gone].mounted:
                self._unmount(gone)
            self.effect(f"destroy {gone}")
            if self.nodes[gone].snapshots and any(self._clones(gone, name) for name in self.nodes[gone].snapshots):
                self._fail(f"cannot destroy '{gone}': filesystem has dependent clones")
            for snapshot in self.nodes[gone].snapshots:
                shutil.rmtree(self._snapshot_content(gone, snapshot))
            node = self.nodes.pop(gone)
            shutil.rmtree(self._content(node))

    def _list_command(self, arguments: list[str]) -> str:
        if arguments[:7] == ["-Hp", "-t", "snapshot", "-o", "name,guid", "-s", "createtxg"]:
            return "".join(
                f"{name}@{snapshot}\t{snap.guid}\n"
                for name in arguments[7:]
                for snapshot, snap in self._need(name).snapshots.items()
            )
        assert arguments[:6] == ["-Hp", "-r", "-t", "filesystem,volume,snapshot", "-o", "name,userrefs,clones"], (
            arguments
        )
        lines = []
        for asked in arguments[6:]:
            self._need(asked)
            for name, node in sorted(self.nodes.items()):
                if name == asked or name.startswith(f"{asked}/"):
                    lines.append(f"{name}\t-\t-")
                    lines += [
                        f"{name}@{snapshot}\t{len(snap.holds)}\t{','.join(self._clones(name, snapshot))}"
                        for snapshot, snap in node.snapshots.items()
                    ]
        return "".join(f"{line}\n" for line in lines)

    def _clones(self, name: str, snapshot: str) -> list[str]:
        return [other for other, node in self.nodes.items() if node.origin == f"{name}@{snapshot}"]

    def _unmount_command(self, arguments: list[str]) -> None:
        (name,) = arguments
        if not self._need(name).mounted:
            self._fail(f"cannot unmount '{name}': not currently mounted")
        self._unmount(name)

    def _rename_command(self, arguments: list[str]) -> None:
        old, new = arguments
        node = self._need(old)
        if new in self.nodes:
            self._fail(f"cannot rename '{old}': dataset already exists")
        assert not node.mounted, "renaming what is mounted by an inherited mount point is not modelled"
        self.effect(f"rename {old} {new}")
        self.nodes[new] = self.nodes.pop(old)
        for other in self.nodes.values():
            if other.origin.startswith(f"{old}@"):
                other.origin = f"{new}@{other.origin.partition('@')[2]}"

    def _clone_command(self, arguments: list[str]) -> None:
        options, (origin, name) = self._options(arguments)
        source, _, snapshot = origin.partition("@")
        if snapshot not in self._need(source).snapshots:
            self._fail(f"cannot open '{origin}': dataset does not exist")
        self.effect(f"clone {origin} {name}")
        node = self.nodes[name] = Node(self._guid(), options, origin=origin)
        shutil.copytree(self._snapshot_content(source, snapshot), self._content(node), symlinks=True)

    def _promote_command(self, arguments: list[str]) -> None:
        (name,) = arguments
        node = self._need(name)
        source, _, last = node.origin.partition("@")
        self.effect(f"promote {name}")
        below = self.nodes[source]
        moved = list(below.snapshots)[: list(below.snapshots).index(last) + 1]
        for snapshot in moved:
            before = self._snapshot_content(source, snapshot)
            node.snapshots[snapshot] = below.snapshots.pop(snapshot)
            os.rename(before, self._snapshot_content(name, snapshot))
        node.origin, below.origin = "", f"{name}@{last}"

    @staticmethod
    def _options(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
        options: dict[str, str] = {}
        while arguments[0] in ("-o", "-x"):
            prop, _, value = arguments[1].partition("=")
            if arguments[0] == "-o":
                options[prop] = value
            arguments = arguments[2:]
        return options, arguments

    # -- streams: a snapshot of ``remote``, another machine's ZFS ------------------------------------------------------

    def receive(self, remote: SimulatedZfs, send: t.Sequence[str], receive: t.Sequence[str]) -> Completed:
        """``zfs send ... | zfs receive -s -u ...``. Each snapshot of a stream has two effects: half of it (a kill leaves a
        resume token), and the rest."""
        assert list(receive[:4]) == ["zfs", "receive", "-s", "-u"], receive
        options, (name,) = self._options(list(receive[4:]))
        options = {key: value for key, value in options.items() if value}
        arguments = [entry for entry in send[2:] if entry not in ("-L", "-c", "-e")]
        if name in self.nodes and self.nodes[name].resume and arguments[0] != "-t":
            said = f"cannot receive incremental stream: destination {name} contains partially-complete state\n"
            return Completed(tuple(receive), 1, "", said)
        if arguments[0] == "-t":
            # The token names the snapshot that was cut off.
            node = self._need(name)
            wanted = [arguments[1].partition(":")[2]]
            source = arguments[1].partition(":")[0]
        elif arguments[0] == "-I":
            source, _, last = arguments[2].partition("@")
            every = list(remote.nodes[source].snapshots)
            wanted = every[every.index(arguments[1].removeprefix("@")) + 1 : every.index(last) + 1]
            node = self._need(name)
        else:
            source, _, last = arguments[0].partition("@")
            if name in self.nodes:
                return Completed(
                    tuple(receive), 1, "", f"cannot receive new filesystem stream: destination '{name}' exists\n"
                )
            wanted = [last]
            self.effect(f"begin {name}")
            node = self.nodes[name] = Node(
                self._guid(), dict(options), {"recordsize": "16384"}, resume=f"{source}:{last}"
            )
            self._content(node).mkdir(parents=True)
        for snapshot in wanted:
            self.effect(f"receive half of {name}@{snapshot}")
            node.resume = f"{source}:{snapshot}"
            self.effect(f"receive {name}@{snapshot}")
            content = remote._snapshot_content(source, snapshot)
            shutil.rmtree(self._content(node))
            shutil.copytree(content, self._content(node), symlinks=True)
            node.snapshots[snapshot] = Snap(remote.nodes[source].snapshots[snapshot].guid)
            shutil.copytree(content, self._snapshot_content(name, snapshot), symlinks=True)
            node.resume = ""
        return Completed(tuple(receive), 0, "", "")

    def _snapshot_command(self, arguments: list[str]) -> None:
        for entry in arguments:
            name, _, snapshot = entry.partition("@")
            node = self._need(name)
            if snapshot in node.snapshots:
                self._fail(f"cannot create snapshot '{entry}': dataset already exists")
            self.effect(f"snapshot {entry}")
            shutil.copytree(self.content(name), self._snapshot_content(name, snapshot), symlinks=True)
            node.snapshots[snapshot] = Snap(self._guid())
