# Copyright: hearth.homelab contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One lab: bridge, firewall, services and hosts; up, down and what is in between."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import ipaddress
import json
import os
import shlex
import socket
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lablib.core import (
    LABS_CGROUP,
    WORK,
    LabError,
    Process,
    cgroup_roots,
    end,
    end_cgroup,
    environment,
    find_tool,
    locked,
    processes_of,
    remove_tree,
    run,
    say,
    spawn,
    tail,
    wait_for_port,
    wait_gone,
    write,
)
from lablib.image import ensure_image
from lablib.machine import Cache, find_mirror, install_tools, missing_packages, need_tool, optional_tool
from lablib.proxy import ensure_proxy, release_proxy
from lablib.qemu import QEMU, SSH_TIMEOUT, STOP_TIMEOUT, find_accelerator, make_disks, require_qemu_hosts
from lablib.qemu_image import QemuImage, ensure_qemu_image
from lablib.spec import Host, Spec
from lablib.standins import build_standin, ensure_busybox, standin_definitions
from lablib.wheels import ensure_wheels, python_of

PROGRAM = Path(__file__).resolve().parents[1] / "hearth_lab.py"
HOST_KEY = "etc/ssh/ssh_host_ed25519_key.pub"
#: Seconds after which package lists name files that a mirror may have no longer.
LISTS_AGE = 86400
#: Seconds after which a host whose process is not seen has ended.
GONE = 3
#: Seconds until SSH of an nspawn host must answer, and that its shutdown may take.
NSPAWN_TIMEOUT = 60.0


class Lab:
    """A lab's directory below <cache>/labs/, and everything that lives from it."""

    def __init__(self, cache: Cache, name: str) -> None:
        self.cache = cache
        self.directory = cache.labs / name
        self.state_file = self.directory / "state.json"

    # -- records

    def load(self) -> dict[str, Any]:
        return json.loads(self.state_file.read_text(encoding="utf-8")) if self.state_file.exists() else {}

    def record(self, **changes: Any) -> dict[str, Any]:
        """Write down a change before it is made: `down` after a crash must know of it."""
        state = self.load() | changes
        write(self.state_file, json.dumps(state, indent=2, sort_keys=True) + "\n", 0o600)
        return state

    def record_processes(self) -> None:
        found = [dataclasses.asdict(process) for process in processes_of(self.directory)]
        self.record(processes=sorted(found, key=lambda process: (process["part"], process["pid"])))

    def running(self, part: str) -> list[Process]:
        return [process for process in processes_of(self.directory) if process.part == part]

    def host_directory(self, name: str) -> Path:
        return self.directory / "hosts" / name

    def console(self, name: str) -> Path:
        return self.directory / "log" / f"console-{name}.log"

    # -- up

    def up(self, spec: Spec, link: Path | None) -> bool:
        """Make the lab as `spec` says; True when anything had to be done."""
        with locked(self.cache.lock(f"lab-{spec.name}"), f"lab {spec.name}"):
            known = self.load()
            if "spec" in known and Spec.from_json(known["spec"]) != spec:
                raise LabError(
                    f"lab {spec.name} exists with other settings. Found: {json.dumps(known['spec'])}. "
                    f"Wanted: {json.dumps(spec.to_json())}. Shut it down first: `hearth_lab.py down --name {spec.name}`"
                )
            if not known:
                self.check_routes(spec)
            require_qemu_hosts(spec)
            mirror = find_mirror(spec.mirror)
            end([process for process in processes_of(self.directory) if process.part == WORK], grace=0)
            missing = self.missing(spec)
            self.make_link(link)
            if not missing:
                return False
            if not known:
                self.announce(spec)
            # Before the first change; and the apt proxy stays while any lab has a record.
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.record(spec=spec.to_json(), bridge=spec.bridge, table=spec.table)
            install_tools(self.cache, qemu=bool(spec.qemu_hosts))
            images: dict[str, Path] = {}
            if len(spec.qemu_hosts) < len(spec.hosts):
                images["nspawn"] = ensure_image(self.cache, spec.suite, mirror)
            if spec.qemu_hosts:
                image = ensure_qemu_image(self.cache, spec.suite, mirror)
                images["qemu"] = image.tree
                self.ensure_kernel(image)
            ensure_proxy(self.cache, mirror)
            any_image = next(iter(images.values()))  # both have Debian's own Python and busybox
            wheels = self.ensure_wheels(spec, any_image)
            self.ensure_keys()
            self.ensure_bridge(spec)
            self.ensure_firewall(spec)
            self.ensure_services(spec, wheels)
            with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as copies:
                for done in [copies.submit(self.ensure_host, spec, host, images[host.kind]) for host in spec.hosts]:
                    done.result()
            self.write_ssh(spec)
            for host in spec.hosts:
                self.start(spec, host)
            for host in spec.hosts:
                self.wait_for_ssh(host)
            self.ensure_standins(spec, any_image)
            self.refresh_lists(spec)
            self.record_processes()
            return True

    def missing(self, spec: Spec) -> list[str]:
        """What of the lab is not there. Empty means that `up` has nothing to do."""
        if self.load().get("spec") is None:
            return ["everything"]
        parts = {process.part for process in processes_of(self.directory)}
        wanted = {"resolver", "registry", "apt-relay", *(f"host-{host.name}" for host in spec.hosts)}
        if spec.python_requirements:
            wanted.add("wheels")
        missing = sorted(wanted - parts)
        if not processes_of(self.cache.shared):
            missing.append("apt proxy")
        if not Path("/sys/class/net", spec.bridge).exists():
            missing.append(f"bridge {spec.bridge}")
        elif run(["nft", "list", "table", "inet", spec.table], check=False).returncode != 0:
            missing.append(f"nft table {spec.table}")
        if not missing:
            missing += [f"SSH on {host.name}" for host in spec.hosts if not self.ssh_answers(host)]
        if not (self.directory / "registry.json").exists():
            missing.append("stand-in images")
        return missing

    def announce(self, spec: Spec) -> None:
        packages = missing_packages(qemu=bool(spec.qemu_hosts))
        say(f"Lab {spec.name}: this changes on the machine, until `down`:")
        say(f"  bridge {spec.bridge} with {spec.gateway} and {spec.gateway6}, and one host per name on it: "
            + ", ".join(f"{host.name} ({host.kind}, {host.address})" for host in spec.hosts))  # fmt: skip
        say(f"  nft table inet {spec.table}: those hosts reach each other and the services below, nothing else")
        say(f"  on {spec.gateway}: resolver (53), apt proxy ({spec.apt_port}), image registry ({spec.registry_port})")
        if spec.python_requirements:
            say(
                f"    and Python packages ({spec.python_port}): {', '.join(spec.python_requirements)} and what they need"
            )
        say("and stays afterwards:")
        say(f"  {self.cache.root} (images, packages, logs)")
        say(f"  Debian packages installed now: {', '.join(packages) or 'none'}")

    def check_routes(self, spec: Spec) -> None:
        """Refuse a subnet that the machine already knows: its own traffic would disappear into the lab."""
        wanted: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = [spec.network, spec.network6]
        for family in ("-4", "-6"):
            listed = (
                run([optional_tool("ip"), "-json", family, "route", "show", "table", "all"], check=False).stdout or "[]"
            )
            for route in json.loads(listed):
                destination = str(route.get("dst", "default"))
                if destination == "default" or route.get("type") in ("multicast", "broadcast", "anycast"):
                    continue
                try:
                    network = ipaddress.ip_network(destination, strict=False)
                except ValueError:
                    continue
                for own in wanted:
                    if network.version == own.version and network.overlaps(own) and network.prefixlen > 0:
                        device = route.get("dev", "?")
                        raise LabError(
                            f"lab_subnet {own} overlaps the machine's route {network} on {device}. "
                            f"Choose another lab_subnet (or lab_subnet6) for lab {spec.name}, or remove that route."
                        )

    def make_link(self, link: Path | None) -> None:
        """A stable place inside a checkout that an inventory can name; never replaces anything but a link."""
        if link is None:
            return
        if link.is_symlink():
            if os.readlink(link) == str(self.directory):
                return
            link.unlink()
        elif link.exists():
            raise LabError(f"{link} exists and is not a link: move it away, the lab's keys are linked there")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(self.directory)

    def ensure_keys(self) -> None:
        folder = self.directory / "ssh"
        folder.mkdir(exist_ok=True, mode=0o700)
        if not (folder / "id_ed25519").exists():
            self.make_key(folder / "id_ed25519", f"hearth-lab-{self.directory.name}")

    def make_key(self, path: Path, comment: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in (path, path.with_name(path.name + ".pub")):
            leftover.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])

    def ensure_bridge(self, spec: Spec) -> None:
        mark = f"hearth-lab:{self.directory}"
        present = Path("/sys/class/net", spec.bridge)
        if present.exists():
            alias = (present / "ifalias").read_text(encoding="utf-8").strip()
            if alias != mark:
                raise LabError(
                    f"interface {spec.bridge} exists and is not this lab's (alias {alias!r}): use another lab_name"
                )
        else:
            run(["ip", "link", "add", "name", spec.bridge, "type", "bridge"])
            run(["ip", "link", "set", "dev", spec.bridge, "alias", mark])
        # Settings of this interface alone; they vanish with it.
        for setting in (f"ipv6/conf/{spec.bridge}/accept_ra=0", f"ipv6/conf/{spec.bridge}/disable_ipv6=0"):
            path, _, value = setting.partition("=")
            with contextlib.suppress(FileNotFoundError):
                Path("/proc/sys/net", path).write_text(value, encoding="utf-8")
        run(["ip", "address", "replace", f"{spec.gateway}/{spec.network.prefixlen}", "dev", spec.bridge])
        run(
            [
                "ip",
                "-6",
                "address",
                "replace",
                f"{spec.gateway6}/{spec.network6.prefixlen}",
                "dev",
                spec.bridge,
                "nodad",
            ]
        )
        run(["ip", "link", "set", "dev", spec.bridge, "up"])
        for host in spec.hosts:  # hosts that ran on while somebody removed the bridge
            interface = f"vb-{self.machine(host.name)}"
            if Path("/sys/class/net", interface).exists():
                run(["ip", "link", "set", "dev", interface, "master", spec.bridge, "up"])
        self.ensure_bridge_traffic(spec)

    def ensure_bridge_traffic(self, spec: Spec) -> None:
        """Where br_netfilter is on (Docker does that), iptables' FORWARD chain also sees frames between the hosts."""
        for command, family in (("iptables", "ip"), ("ip6tables", "ip6")):
            switch = Path(f"/proc/sys/net/bridge/bridge-nf-call-{command}")
            if not switch.exists() or switch.read_text(encoding="utf-8").strip() != "1" or find_tool(command) is None:
                continue
            # Looked up with nft, because asking iptables would make the chain, and nothing would remove it again.
            if run(["nft", "list", "chain", family, "filter", "FORWARD"], check=False).returncode != 0:
                continue
            rule = self.bridge_rule(spec.bridge)
            if run([command, "-w", "-C", "FORWARD", *rule], check=False).returncode != 0:
                self.record(forward_rules=sorted({*self.load().get("forward_rules", []), command}))
                run([command, "-w", "-I", "FORWARD", "1", *rule])

    @staticmethod
    def bridge_rule(bridge: str) -> list[str]:
        return ["-i", bridge, "-o", bridge, "-m", "comment", "--comment", "hearth-lab", "-j", "ACCEPT"]

    def ensure_firewall(self, spec: Spec) -> None:
        open_ports = [53, spec.apt_port, spec.registry_port, *([spec.python_port] if spec.python_requirements else ())]
        ports = f"{{ {', '.join(map(str, open_ports))} }}"
        # `add` before `delete`, so that one transaction replaces the table whether it was there or not.
        rules = f"""
add table inet {spec.table}
delete table inet {spec.table}
table inet {spec.table} {{
  comment "hearth-lab:{self.directory}"
  # What was refused, for people who wonder and for the test that tries.
  counter elsewhere {{ }}
  counter machine {{ }}
  counter forwarded {{ }}
  chain prerouting {{
    # Before routing: nothing from the hosts leaves the bridge, whether the machine forwards or not, and they learn it
    # at once instead of waiting for a time-out.
    type filter hook prerouting priority -150; policy accept;
    iifname != "{spec.bridge}" accept
    ip daddr {{ {spec.subnet}, 224.0.0.0/4, 255.255.255.255 }} accept
    ip6 daddr {{ {spec.subnet6}, fe80::/10, ff00::/8 }} accept
    meta protocol {{ ip, ip6 }} counter name elsewhere reject with icmpx type admin-prohibited
  }}
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname "{spec.bridge}" jump from_hosts
    # The services are for the hosts: not for the machine's other networks.
    iifname != "lo" ip daddr {spec.gateway} drop
    iifname != "lo" ip6 daddr {spec.gateway6} drop
  }}
  chain from_hosts {{
    ct state established,related accept
    icmp type echo-request accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, echo-request }} accept
    ip daddr {spec.gateway} meta l4proto {{ tcp, udp }} th dport {ports} accept
    ip6 daddr {spec.gateway6} meta l4proto {{ tcp, udp }} th dport {ports} accept
    meta pkttype {{ broadcast, multicast }} counter name machine drop
    counter name machine reject with icmpx type admin-prohibited
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname "{spec.bridge}" oifname "{spec.bridge}" accept
    iifname "{spec.bridge}" counter name forwarded drop
    oifname "{spec.bridge}" counter name forwarded drop
  }}
}}
"""
        run(["nft", "-f", "-"], stdin=rules)

    def ensure_wheels(self, spec: Spec, image: Path) -> Path | None:
        """The folder of Python packages that the hosts are offered, if they are offered any."""
        if not spec.python_requirements:
            return None
        return ensure_wheels(self.cache, spec.python_requirements, python_of(image))

    def ensure_services(self, spec: Spec, wheels: Path | None) -> None:
        logs = self.directory / "log"
        logs.mkdir(exist_ok=True)
        if not self.running("apt-relay"):
            listen = [f"--listen={address}" for address in (spec.gateway, spec.gateway6)]
            ports = [f"--port={spec.apt_port}", f"--proxy={self.cache.shared / 'state.json'}"]
            argv = [sys.executable, str(PROGRAM), "_relay", *listen, *ports]
            spawn(self.directory, "apt-relay", argv, logs / "apt-relay.log")
            wait_for_port(spec.gateway, spec.apt_port, "the apt relay", logs / "apt-relay.log")
        if not self.running("resolver"):
            write(self.directory / "dnsmasq.conf", self.resolver_configuration(spec))
            spawn(
                self.directory,
                "resolver",
                [need_tool("dnsmasq"), "--keep-in-foreground", f"--conf-file={self.directory / 'dnsmasq.conf'}"],
                logs / "resolver.log",
            )
            wait_for_port(spec.gateway, 53, "dnsmasq", logs / "resolver.log")
        if not self.running("registry"):
            # JSON is YAML: the registry reads it.
            configuration = {
                "version": 0.1,
                "log": {"level": "warn"},
                "storage": {
                    "filesystem": {"rootdirectory": str(self.directory / "registry")},
                    "delete": {"enabled": True},
                },
                "http": {"addr": f"{spec.gateway}:{spec.registry_port}"},
            }
            write(self.directory / "registry.yml", json.dumps(configuration, indent=2) + "\n")
            spawn(
                self.directory,
                "registry",
                [need_tool("docker-registry"), "serve", self.directory / "registry.yml"],
                logs / "registry.log",
                # A bug of its otel client: without this it looks for a collector on localhost.
                {"OTEL_TRACES_EXPORTER": "none"},
            )
            wait_for_port(spec.gateway, spec.registry_port, "docker-registry", logs / "registry.log")
        if wheels and not self.running("wheels"):
            argv = [sys.executable, "-m", "http.server", f"--bind={spec.gateway}", f"--directory={wheels}"]
            spawn(self.directory, "wheels", [*argv, str(spec.python_port)], logs / "wheels.log")
            wait_for_port(spec.gateway, spec.python_port, "the list of Python packages", logs / "wheels.log")

    def resolver_configuration(self, spec: Spec) -> str:
        lines = [
            "# written by the hearth lab: the lab's own names, and nothing else",
            "user=nobody",
            "group=nogroup",
            "no-resolv",
            "no-hosts",
            "no-poll",
            "bind-interfaces",
            "except-interface=lo",
            f"listen-address={spec.gateway},{spec.gateway6}",
            "pid-file=",
            f"host-record=registry.{spec.domain},{spec.gateway},{spec.gateway6}",
            f"host-record=apt.{spec.domain},{spec.gateway},{spec.gateway6}",
        ]
        for host in spec.hosts:
            lines.append(f"host-record={host.name}.{spec.domain},{host.name},{host.address},{host.address6}")
            if host.name == spec.wildcard:
                lines += [f"address=/{spec.domain}/{address}" for address in (host.address, host.address6)]
        # Everything else does not exist, said at once.
        lines.append("address=/#/")
        return "\n".join(lines) + "\n"

    def ensure_kernel(self, image: QemuImage) -> None:
        """The lab's own kernel and initrd, which stay when the image is replaced, and how fast they can run."""
        folder = self.directory / "kernel"
        if not folder.exists():
            fresh = folder.with_name(".kernel.new")
            remove_tree(fresh)
            fresh.mkdir()
            run(["cp", image.kernel, image.initrd, fresh])
            fresh.rename(folder)
        if "accelerator" not in self.load():
            found, reason = find_accelerator(need_tool(QEMU), folder / "vmlinuz", folder / "initrd", self.directory)
            if reason:
                say(f"  KVM does not work here ({reason}): QEMU emulates the processor, a boot takes a minute or more")
            self.record(accelerator=found)

    def ensure_host(self, spec: Spec, host: Host, image: Path) -> None:
        """What a host starts from: a directory for nspawn, disks for QEMU."""
        root = self.host_directory(host.name)
        if root.exists():
            return
        fresh = root.with_name(f".{host.name}.new")
        remove_tree(fresh)
        fresh.parent.mkdir(parents=True, exist_ok=True)
        if not host.qemu:
            self.make_tree(spec, host, image, fresh)
        else:
            started = time.monotonic()
            fresh.mkdir()
            tree = fresh / "tree"
            self.make_tree(spec, host, image, tree)
            self.refresh_tree(host, tree)
            make_disks(host, tree, fresh, self.directory)
            (tree / HOST_KEY).rename(fresh / "host_key.pub")
            remove_tree(tree)
            say(f"  {host.name}: disks made in {time.monotonic() - started:.1f} s")
        fresh.rename(root)

    def make_tree(self, spec: Spec, host: Host, image: Path, fresh: Path) -> None:
        """A host's own root: a copy, not an overlay, because podman cannot put its overlays on an overlay, and because
        renaming a directory that comes from a lower layer fails, which no real host does."""
        copy = ["cp", "--archive", "--reflink=auto", "--one-file-system"]
        if not host.qemu:
            run([*copy, image, fresh], owner=self.directory)
        else:
            # Its tree is only read, to fill a disk: most of it need not be copied. Nothing is written below /usr.
            fresh.mkdir(mode=0o755)
            run([*copy, "--link", image / "usr", fresh], owner=self.directory)
            rest = sorted(path for path in image.iterdir() if path.name != "usr")
            run([*copy, *rest, fresh], owner=self.directory)
        self.make_key(fresh / "etc/ssh/ssh_host_ed25519_key", f"root@{host.name}")
        write(fresh / "etc/machine-id", uuid.uuid4().hex + "\n", 0o444)
        write(fresh / "etc/hostname", host.name + "\n")
        write(fresh / "etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
              f"127.0.1.1 {host.name}.{spec.domain} {host.name}\n")  # fmt: skip
        # No search domain: with the wildcard below it, any unknown name would lead to the wildcard's host.
        write(fresh / "etc/resolv.conf", f"nameserver {spec.gateway}\n")
        write(fresh / "etc/systemd/network/10-lab.network", self.network_configuration(spec, host))
        write(
            fresh / "etc/apt/apt.conf.d/91lab-proxy", f'Acquire::http::Proxy "http://{spec.gateway}:{spec.apt_port}";\n'
        )
        if spec.python_requirements:
            write(fresh / "etc/pip.conf", self.pip_configuration(spec))
        (fresh / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
        public = (self.directory / "ssh/id_ed25519.pub").read_text(encoding="utf-8")
        write(fresh / "root/.ssh/authorized_keys", public, 0o600)
        registry = f'[[registry]]\nlocation = "{spec.registry}"\ninsecure = true\n'
        write(fresh / "etc/containers/registries.conf.d/90-lab.conf", "# written by the hearth lab\n" + registry)
        if (
            not host.qemu
            and "pids" not in (cgroup_roots()[0] / "cgroup.controllers").read_text(encoding="utf-8").split()
        ):
            # A hybrid machine keeps the pids controller in cgroup v1, out of a host's reach: podman's default fails.
            limit = "# written by the hearth lab\n[containers]\npids_limit = 0\n"
            write(fresh / "etc/containers/containers.conf.d/90-lab.conf", limit)

    def host_key(self, host: Host) -> Path:
        """The public one. Of a QEMU host it is kept beside the disks, because nothing looks into those."""
        return self.host_directory(host.name) / ("host_key.pub" if host.qemu else HOST_KEY)

    def refresh_tree(self, host: Host, tree: Path) -> None:
        """As refresh_lists does, before the host boots: reading the lists takes an emulated processor minutes."""
        lists = tree / "var/lib/apt/lists"
        if time.time() - lists.stat().st_mtime < LISTS_AGE:
            return
        say(f"  {host.name}: its package lists are older than a day, updating them")
        run(["chroot", tree, "apt-get", "-q", "update"], owner=self.directory)

    @staticmethod
    def pip_configuration(spec: Spec) -> str:
        return (
            "# written by the hearth lab\n"
            "[global]\n"
            "no-index = true\n"
            f"find-links = http://{spec.gateway}:{spec.python_port}/\n"
            f"trusted-host = {spec.gateway}\n"
            "disable-pip-version-check = true\n"
        )

    @staticmethod
    def network_configuration(spec: Spec, host: Host) -> str:
        return (
            "# written by the hearth lab\n"
            f"[Match]\nName={'eth0' if host.qemu else 'host0'}\n\n"
            "[Network]\n"
            f"Address={host.address}/{spec.network.prefixlen}\n"
            f"Gateway={spec.gateway}\nGateway={spec.gateway6}\n"
            "IPv6AcceptRA=no\nLLMNR=no\nMulticastDNS=no\n\n"
            "[Address]\n"
            f"Address={host.address6}/{spec.network6.prefixlen}\n"
            # Static addresses on a private bridge: a second of waiting for duplicates buys nothing.
            "DuplicateAddressDetection=none\n"
        )

    def write_ssh(self, spec: Spec) -> None:
        folder = self.directory / "ssh"
        known, config = [], []
        for host in spec.hosts:
            key = " ".join(self.host_key(host).read_text(encoding="utf-8").split()[:2])
            known.append(f"{host.name},{host.name}.{spec.domain},{host.address},{host.address6} {key}")
            config.append(
                f"Host {host.name} {host.name}.{spec.domain} {host.address}\n"
                f"  HostName {host.address}\n  User root\n"
                f"  IdentityFile {folder / 'id_ed25519'}\n  IdentitiesOnly yes\n"
                f"  UserKnownHostsFile {folder / 'known_hosts'}\n  StrictHostKeyChecking yes\n  BatchMode yes\n"
            )
        write(folder / "known_hosts", "\n".join(known) + "\n")
        write(folder / "config", "\n".join(config), 0o600)

    def cgroup(self, name: str) -> str:
        """The control group of a host, below each root."""
        if Path("/run/systemd/system").exists():
            return f"machine.slice/{self.scope(name)}"
        return f"{LABS_CGROUP}/{self.directory.name}/{name}"

    def scope(self, name: str) -> str:
        return f"hearth_lab_{self.directory.name}_{name}.scope".replace("-", "_")

    def machine(self, name: str) -> str:
        """nspawn's name for a host: unique among all labs, and short enough that "vb-" + it is its interface's name."""
        return f"h{zlib.crc32(f'{self.directory}/{name}'.encode()):08x}"

    def end_host(self, name: str) -> None:
        """Leave nothing of a host running, however it or its supervisor ended. Its disk stays."""
        end(self.running(f"host-{name}"), grace=0)
        end_cgroup(self.cgroup(name))
        if Path("/run/systemd/system").exists():
            # systemd notices an empty scope a moment later; its name must be free before the host starts again.
            run(["systemctl", "stop", self.scope(name)], check=False)
        interface = Path("/sys/class/net", f"vb-{self.machine(name)}")
        # Connections that were open keep a dead host's network, and with it this interface, for minutes. A short wait
        # lets them close in the ordinary way first.
        limit = time.monotonic() + 0.5
        while interface.exists() and not (interface / "tun_flags").exists() and time.monotonic() < limit:
            time.sleep(0.05)
        if interface.exists():
            run(["ip", "link", "delete", "dev", interface.name], check=False)

    def start(self, spec: Spec, host: Host) -> None:
        if self.running(f"host-{host.name}"):
            return
        self.end_host(host.name)  # what a killed supervisor left running
        argv: list[str | Path] = []
        if Path("/run/systemd/system").exists():
            # Out of the session's scope, which ends with the login, into one that systemd leaves alone.
            argv += ["systemd-run", "--quiet", "--scope", "--collect", f"--unit={self.scope(host.name)}"]
            argv += ["--slice=machine.slice", "--property=Delegate=yes"]
        # A mount namespace of its own: what nspawn leaves behind when it is killed vanishes with it.
        argv += ["unshare", "--mount", "--propagation", "private"]
        argv += [
            sys.executable,
            PROGRAM,
            "_host",
            f"--lab={self.directory}",
            f"--bridge={spec.bridge}",
        ]
        argv += [f"--cgroup={self.cgroup(host.name)}", f"--machine={self.machine(host.name)}"]
        argv += [f"--console={self.console(host.name)}", host.name]
        spawn(self.directory, f"host-{host.name}", argv, self.console(host.name))

    def ssh(self, host: str, command: Sequence[str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
        argv = ["ssh", "-F", str(self.directory / "ssh/config"), "-o", f"ConnectTimeout={timeout / 2:.0f}"]
        argv += [host, shlex.join(command)]
        return subprocess.run(
            argv,
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            env=environment(),
        )

    def ssh_answers(self, host: Host) -> bool:
        return self.ssh_problem(host) == ""

    def ssh_problem(self, host: Host) -> str:
        """Why nobody gets in, in the words of ssh; empty when it works."""
        limit = 60 if host.qemu else 10
        try:
            done = self.ssh(host.name, ["true"], timeout=limit)
        except subprocess.TimeoutExpired:
            return f"ssh waited for {limit} s"
        return "" if done.returncode == 0 else done.stderr.strip() or f"ssh ended with status {done.returncode}"

    def wait_for_ssh(self, host: Host) -> None:
        started = reported = seen = time.monotonic()
        problem = ""
        open_once = False
        limit = SSH_TIMEOUT[self.load()["accelerator"]] if host.qemu else NSPAWN_TIMEOUT
        while time.monotonic() - started < limit:
            # A process that is just being replaced by its program (execve(2)) shows no environment for a moment.
            if self.running(f"host-{host.name}"):
                seen = time.monotonic()
            elif time.monotonic() - seen > GONE:
                break
            try:
                # ssh itself would wait for seconds; asked once, because sshd penalises who only looks
                if not open_once:
                    socket.create_connection((host.address, 22), timeout=1).close()
                open_once = True
                problem = self.ssh_problem(host)
            except OSError as error:
                problem = str(error)
            if not problem:
                say(f"  {host.name}: SSH after {time.monotonic() - started:.1f} s at {host.address}")
                return
            if time.monotonic() - reported > 10:
                reported = time.monotonic()
                say(f"  {host.name}: waiting for SSH, {time.monotonic() - started:.0f} s")
            time.sleep(0.2)
        running = "is running" if self.running(f"host-{host.name}") else "has ended"
        raise LabError(
            f"{host.name} does not answer on SSH ({host.address}: {problem}); its {host.kind} process {running}. "
            f"The end of its console ({self.console(host.name)}):\n{tail(self.console(host.name))}\n"
            f"The end of its journal:\n{self.journal_end(host)}"
        )

    def journal_end(self, host: Host) -> str:
        """What a host that cannot be asked wrote last, read from its disk."""
        if host.qemu:
            return "(in its disk, where only the host can read it)"
        command = "journalctl"
        if find_tool(command) is None:
            return f"({command} is not installed here)"
        folder = self.host_directory(host.name) / "var/log/journal"
        argv = [command, f"--directory={folder}", "--lines=30", "--output=short-monotonic", "--no-pager", "--quiet"]
        return run(argv, check=False).stdout.strip() or "(empty)"

    def ensure_standins(self, spec: Spec, image: Path) -> None:
        """Push what the registry does not have; remember each reference and digest."""
        if (self.directory / "registry.json").exists():
            return
        with locked(self.cache.lock("busybox"), "busybox"):
            busybox = ensure_busybox(self.cache, spec.suite, image)
        pushed = {}
        for name, definition in sorted(standin_definitions().items()):
            layout = self.directory / "standins" / name
            remove_tree(layout)
            digest = build_standin(name, definition, busybox, layout)
            reference = f"standin/{name}:{definition['tag']}"
            target = f"docker://{spec.gateway}:{spec.registry_port}/{reference}"
            run([need_tool("skopeo"), "--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false",
                 f"oci:{layout}:standin", target], owner=self.directory)  # fmt: skip
            pushed[name] = {"reference": f"{spec.registry}/{reference}", "digest": digest}
        write(self.directory / "registry.json", json.dumps(pushed, indent=2, sort_keys=True) + "\n")

    def refresh_lists(self, spec: Spec) -> None:
        """A mirror moves on: package lists older than a day name files that may be gone."""
        for host in spec.hosts:
            lists = self.host_directory(host.name) / "var/lib/apt/lists"
            if host.qemu or time.time() - lists.stat().st_mtime < LISTS_AGE:
                continue
            say(f"  {host.name}: its package lists are older than a day, updating them")
            done = self.ssh(host.name, ["apt-get", "-q", "update"], timeout=300)
            if done.returncode != 0:
                raise LabError(f"{host.name}: `apt-get update` failed through the lab's proxy:\n{done.stderr[-2000:]}")
            os.utime(lists)  # apt leaves the time alone when nothing had changed

    # -- single hosts

    def spec(self) -> Spec:
        known = self.load()
        if "spec" not in known:
            raise LabError(f"lab {self.directory.name} is not up: there is no {self.state_file}")
        return Spec.from_json(known["spec"])

    def host(self, name: str) -> Host:
        for host in self.spec().hosts:
            if host.name == name:
                return host
        raise LabError(
            f"lab {self.directory.name} has no host {name}: it has {', '.join(h.name for h in self.spec().hosts)}"
        )

    def power_off(self, name: str, *, orderly: bool) -> None:
        """Orderly: as `poweroff` does. Otherwise as if the plug was pulled; what was written stays as it is."""
        processes = self.running(f"host-{self.host(name).name}")
        if orderly and processes:
            host = self.host(name)
            limit = STOP_TIMEOUT[self.load()["accelerator"]] if host.qemu else NSPAWN_TIMEOUT
            with contextlib.suppress(subprocess.TimeoutExpired):  # it may be gone before it says so
                self.ssh(name, ["systemctl", "poweroff"], timeout=limit)
            wait_gone(processes, limit)
        self.end_host(name)
        self.record_processes()

    def power_on(self, name: str) -> None:
        self.start(self.spec(), self.host(name))
        self.wait_for_ssh(self.host(name))
        self.record_processes()

    # -- down

    def down(self) -> bool:
        """Undo all of `up`, from whatever state it or a crash left. True when there was anything."""
        with locked(self.cache.lock(f"lab-{self.directory.name}"), f"lab {self.directory.name}"):
            state = self.load()
            existed = self.directory.exists() or bool(processes_of(self.directory))
            # Their disks are deleted in a moment: no shutdown to wait for.
            for host in state.get("spec", {}).get("hosts", []):
                self.end_host(host["name"])
            end(processes_of(self.directory), grace=3)
            if table := state.get("table"):
                run(["nft", "delete", "table", "inet", table], check=False)
            if bridge := state.get("bridge"):
                for command in state.get("forward_rules", []):
                    run([command, "-w", "-D", "FORWARD", *self.bridge_rule(bridge)], check=False)
                alias = Path("/sys/class/net", bridge, "ifalias")
                if alias.exists() and alias.read_text(encoding="utf-8").strip() in ("", f"hearth-lab:{self.directory}"):
                    run(["ip", "link", "delete", "dev", bridge])
            remove_tree(self.directory)
        if find_tool("apt-cacher-ng") is not None:
            release_proxy(self.cache)
        return existed

    def status(self) -> dict[str, Any]:
        state = self.load()
        if "spec" not in state:
            return {
                "name": self.directory.name,
                "up": False,
                "directory": str(self.directory),
                "missing": ["everything"],
            }
        spec = Spec.from_json(state["spec"])
        missing = self.missing(spec)
        images = self.directory / "registry.json"
        return {
            "name": spec.name,
            "up": not missing,
            "missing": missing,
            "directory": str(self.directory),
            "domain": spec.domain,
            "bridge": spec.bridge,
            "gateway": spec.gateway,
            "apt_proxy": f"http://{spec.gateway}:{spec.apt_port}",
            "registry": spec.registry,
            "python_packages": f"http://{spec.gateway}:{spec.python_port}/" if spec.python_requirements else "",
            "images": json.loads(images.read_text(encoding="utf-8")) if images.exists() else {},
            "ssh_config": str(self.directory / "ssh/config"),
            "ssh_key": str(self.directory / "ssh/id_ed25519"),
            "known_hosts": str(self.directory / "ssh/known_hosts"),
            "hosts": {
                host.name: dataclasses.asdict(host)
                | {"running": bool(self.running(f"host-{host.name}")), "root": str(self.host_directory(host.name))}
                for host in spec.hosts
            },
            "processes": [dataclasses.asdict(process) for process in processes_of(self.directory)],
        }
