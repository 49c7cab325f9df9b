# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which missing secrets are generated, which are refused and why; values as declared; what awaits a person."""

from __future__ import annotations

import base64
import shutil
import subprocess
import typing as t
from dataclasses import replace
from pathlib import Path

import pytest
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.vars.manager import VariableManager
from ansible_collections.hearth.homelab.plugins.plugin_utils import compose, secret_step
from ansible_collections.hearth.homelab.plugins.plugin_utils import secret_generation as g
from ansible_collections.hearth.homelab.plugins.plugin_utils.layers import Source
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import (
    GenerateKeypair,
    GenerateLength,
    SecretSpec,
)

from .fleets import native, repository

# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "length", "charset"),
    [
        ({"length": 32, "charset": "hex"}, 32, "0123456789abcdef"),
        ({"length": 12, "charset": "digits"}, 12, "0123456789"),
        ({"length": 40}, 40, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"),
        ({"length": 25, "charset": "base64"}, 25, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/="),
    ],
)
def test_values_are_as_declared(how: dict[str, t.Any], length: int, charset: str) -> None:
    first, second = (g.generate(GenerateLength(**how)) for _ in range(2))
    assert len(first) == length
    assert set(first) <= set(charset)
    assert first != second


def test_a_wireguard_pair() -> None:
    private = g.generate(GenerateKeypair(keypair="wireguard"))
    assert len(base64.b64decode(private)) == 32
    assert len(base64.b64decode(g.public_half("wireguard", private))) == 32
    # Alice's, of RFC 7748, section 6.1.
    alice = ("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
             "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")  # fmt: skip
    secret, public = (base64.b64encode(bytes.fromhex(text)).decode() for text in alice)
    assert g.public_half("wireguard", f"{secret}\n") == public


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed here")
def test_an_ssh_pair_is_what_ssh_keygen_reads(tmp_path: Path) -> None:
    private = g.generate(GenerateKeypair(keypair="ssh-ed25519"))
    path = tmp_path / "key"
    path.write_text(private)
    path.chmod(0o600)
    said = subprocess.run(["ssh-keygen", "-y", "-f", str(path)], capture_output=True, text=True, check=True).stdout
    assert said.split()[:2] == g.public_half("ssh-ed25519", private).split()
    assert g.public_half("ssh-ed25519", private.strip()) == g.public_half("ssh-ed25519", private)


@pytest.mark.parametrize("kind", ["ssh-ed25519", "wireguard"])
@pytest.mark.parametrize("value", ["", "hunter2hunter2", base64.b64encode(b"x" * 31).decode(), "\u00e9" * 20])
def test_what_is_no_private_key_is_said_without_its_value(kind: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"is no private key of kind {kind}") as caught:
        g.public_half(kind, value)
    assert not value or value not in str(caught.value)


# --- decisions -------------------------------------------------------------------------------------------------------

FILE = "/x/secrets/forge.sops.yml"
ACCESS = SecretSpec(kind="access", generate=GenerateLength())
DATA = SecretSpec(kind="data", generate=GenerateLength())
OWN = g.Data(storage=("/var/lib/app",))
WITH_DATABASE = g.Data(databases={"postgresql app": ("/var/lib/postgresql",)})


def need(spec: SecretSpec = ACCESS, data: g.Data = OWN, **more: t.Any) -> g.Need:
    return g.Need(**{"host": "forge", "service": "app", "key": "key", "spec": spec, "state": "missing", "file": FILE,
                     "data": data, "owners": dict.fromkeys(data.paths, "app"), **more})  # fmt: skip


def said(state: str, message: str = "", **more: t.Any) -> g.Answer:
    return g.Answer(storage={"/var/lib/app": (state, message)}, **more)


def server(state: str, exists: bool | None = None) -> g.Answer:
    return g.Answer(storage={"/var/lib/postgresql": (state, "")}, databases={"app": exists})


CASES: list[tuple[str, g.Need, g.Answer | None, dict[str, t.Any], str]] = [
    # what, need, the host's answer, options of plan, what the refusal says ("": it is made)
    ("access needs no answer", need(), None, {}, ""),
    ("new storage", need(DATA), said("new"), {}, ""),
    ("made, and never started", need(DATA), said("empty_marked"), {}, ""),
    ("data", need(DATA), said("data"), {}, "/var/lib/app holds data"),
    ("found data", need(DATA), said("found", "/var/lib/app has content"), {}, "/var/lib/app has content"),
    ("lost data", need(DATA), said("lost", "/var/lib/app held data"), {}, "/var/lib/app held data"),
    ("unreadable storage", need(DATA), said("unknown", "cannot be read"), {}, "cannot be read"),
    ("silence about it", need(DATA), g.Answer(), {}, "the host said nothing about it"),
    ("not asked", need(DATA), None, {}, "it is not in this run"),
    ("unreachable", need(DATA), g.Answer(error="no route to host"), {}, "no route to host"),
    ("the host has it", need(DATA), said("new", stored=frozenset({"app/key"})), {}, "the host still has a value of it"),
    ("another is stored", need(DATA), said("new", stored=frozenset({"app/other"})), {}, ""),
    ("nothing to prove it with", need(DATA, g.Data()), g.Answer(), {}, "no storage and no database"),
    ("a new server", need(DATA, WITH_DATABASE), server("new"), {}, ""),
    ("no such database", need(DATA, WITH_DATABASE), server("data", exists=False), {}, ""),
    ("the database exists", need(DATA, WITH_DATABASE), server("data", exists=True), {}, "database app exists"),
    ("nobody knows", need(DATA, WITH_DATABASE), server("data"), {}, "nobody knows whether the postgresql database app"),
    ("another kind of server", need(DATA, g.Data(databases={"mariadb app": ("/var/lib/mysql",)})),
     g.Answer(storage={"/var/lib/mysql": ("data", "")}), {}, "nobody knows whether the mariadb database app"),
    ("a backup may have it", need(DATA, replace(OWN, elsewhere=True)), said("new"), {}, "a backup may hold"),
    ("a person says no", need(DATA, replace(OWN, elsewhere=True)), said("new"), {"start_empty": ["app"]}, ""),
    ("never over data", need(DATA), said("data"), {"start_empty": ["app"]}, "holds data"),
    ("a broken file", need(), None, {"broken": {"forge": "secrets/all.sops.yml is not valid YAML"}},
     "secrets/all.sops.yml is not valid YAML, and may have it"),
    ("in the clear", need(state="plain"), None, {}, "is not encrypted"),
    ("access is rotated", need(state="present"), None, {"rotate": ["app/key"]}, ""),
    ("data is not", need(DATA, state="present"), said("new"), {"rotate": ["app/key"]}, "could not be read with a new"),
    ("a variable is not", need(state="variable"), None, {"rotate": ["app/key"]}, "the variable app_secrets"),
    ("nor what a person wrote", need(SecretSpec(kind="access"), state="present"), None, {"rotate": ["app/key"]},
     "does not say how to generate it"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "wanted", "answer", "options", "refusal"), CASES, ids=[case[0] for case in CASES])
def test_decisions(what: str, wanted: g.Need, answer: g.Answer | None, options: dict[str, t.Any], refusal: str) -> None:
    made = g.plan([wanted], {"forge": answer} if answer else {}, **options)
    if not refusal:
        assert [make.name for make in made.make] == ["app/key"], made
        assert made.make[0].rotate == ("rotate" in options)
        assert not made.refused
        return
    assert made.make == ()
    [found] = made.refused
    assert refusal in found.reason
    assert str(found).startswith("host forge, service app, secret key: ")
    assert found.remedy


def test_what_a_person_writes_is_named_and_not_made() -> None:
    made = g.plan([need(SecretSpec(kind="access"))], {})
    assert [each.name for each in made.owner] == ["app/key"]
    assert (made.make, made.refused) == ((), ())


def test_one_secret_of_a_group_is_made_once_or_not_at_all() -> None:
    both = [need(DATA), need(DATA, host="nas")]
    [made] = g.plan(both, {"forge": said("new"), "nas": said("new")}).make
    assert made.hosts == ("forge", "nas")
    refused = g.plan(both, {"forge": said("new"), "nas": said("data")})
    assert refused.make == ()
    assert [refusal.host for refusal in refused.refused] == ["nas"]


def test_what_a_run_is_about() -> None:
    present = need(state="present", key="old")
    others = need(host="nas", file="/x/secrets/nas.sops.yml")
    shared = need(host="nas")
    every = [need(), present, others, shared]
    assert g.selected(every, ["forge"]) == [need(), shared]
    assert g.selected(every, ["forge"], ["app/old"]) == [need(), present, shared]
    with pytest.raises(
        g.GenerationError, match=r"no service of these hosts has a secret 'app/odl'.*did you mean app/old"
    ):
        g.selected(every, ["forge"], ["app/odl"])


def test_only_hosts_with_a_key_that_encrypts_are_asked() -> None:
    wanted = [need(), need(DATA, key="data"), need(DATA, WITH_DATABASE, host="nas"), need(DATA, g.Data(), host="hub")]
    assert g.question(wanted) == {
        "forge": {"storage": {"/var/lib/app": "app"}, "databases": [], "secrets": ["app/data"]},
        "nas": {"storage": {"/var/lib/postgresql": "app"}, "databases": ["app"], "secrets": ["app/key"]},
    }


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (None, "not in this run"),
        ({"skipped": True}, "not in this run"),
        ({"unreachable": True, "msg": "Failed to connect\nto the host"}, "Failed to connect to the host"),
        ({"failed": True, "msg": "this must run as root"}, "this must run as root"),
        ({"changed": False}, "it gave no answer"),
    ],
)
def test_no_answer_is_never_taken_for_new(result: dict[str, t.Any] | None, error: str) -> None:
    answer = g.Answer.from_result(result)
    assert error in answer.error
    assert g.plan([need(DATA)], {"forge": answer}).make == ()


# --- from an inventory -------------------------------------------------------------------------------------------------

APP = native(
    user={"name": "app", "id": 2999},
    storage={"state": {"mountpoint": "/var/lib/app"}},
    protect={"class": "standard"},
    secrets={
        "api": {"kind": "access", "generate": {"length": 16}},
        "data": {"kind": "data", "generate": {"length": 64, "charset": "hex"}},
        "tunnel": {"kind": "access", "generate": {"keypair": "wireguard"}},
        "mine": {"kind": "access"},
    },
)


def test_an_inventory_without_secrets(tmp_path: Path) -> None:
    made = repository(tmp_path)
    made.role("app", APP)
    made.vars("host_vars/forge.yml", {"hearth_services": {"app": {}}})
    source = made.source()
    step = secret_step.Step(source, source.hosts)
    assert step.questions() == {"forge": {"storage": {"/var/lib/app": "app"}, "databases": [], "secrets": ["app/data"]}}
    outcome = step.run({}, check=True)
    assert [make.name for make in outcome.made] == ["app/api", "app/tunnel"]
    assert outcome.files == [str(made.inventory / name) for name in ("secrets/forge.sops.yml", "known.yml")]
    assert any("would write the public half of app/tunnel of forge" in line for line in outcome.lines())
    assert [each.name for each in outcome.plan.owner] == ["app/mine"]
    assert "secret data: it is of kind data, so the host must say" in outcome.failure()
    assert any("app/mine is missing" in line for line in outcome.lines())
    assert not (made.inventory / "secrets").exists()


def test_a_key_without_a_value_in_a_groups_file_is_made_there(tmp_path: Path) -> None:
    hosts = {
        name: {"hearth_addresses": {"lan": f"192.0.2.{number}"}} for number, name in enumerate(("forge", "nas"), 10)
    }
    made = repository(tmp_path, hosts, {"servers": ["forge", "nas"]})
    made.role("app", native(secrets={"shared": {"kind": "access", "generate": {"length": 16}}}))
    made.vars("group_vars/all/services.yml", {"hearth_services": {"app": {}}})
    made.secrets("servers", {"app": {"shared": None}})
    source = made.source()
    outcome = secret_step.Step(source, ["forge"]).run({}, check=True)
    assert [(make.name, make.hosts) for make in outcome.made] == [("app/shared", ("forge", "nas"))]
    assert outcome.files == [str(made.inventory / "secrets" / "servers.sops.yml")]


def test_nothing_is_made_while_a_file_that_may_have_it_cannot_be_read(tmp_path: Path) -> None:
    made = repository(tmp_path)
    made.role("app", native(secrets={"api": {"kind": "access", "generate": {"length": 16}}}))
    made.vars("host_vars/forge.yml", {"hearth_services": {"app": {}}})
    made.vars("secrets/all.sops.yml", "app: {api: in the clear}\n")
    source = made.source()
    outcome = secret_step.Step(source, source.hosts).run({})
    assert "all.sops.yml is not encrypted: it has no `sops` key, and may have it" in outcome.failure()
    assert not (made.inventory / "secrets" / "forge.sops.yml").exists()


@pytest.mark.parametrize("variable", ["awx_job_id", "tower_job_id"])
def test_a_job_of_awx_writes_nothing(variable: str, tmp_path: Path) -> None:
    made = repository(tmp_path)
    made.role("app", native(secrets={"api": {"kind": "access", "generate": {"length": 16}}}))
    made.vars("host_vars/forge.yml", {"hearth_services": {"app": {}}})
    source = made.source(extra={variable: 7})
    outcome = secret_step.Step(source, source.hosts).run({})
    assert not outcome.changed
    assert "app/api: (access, 16 alphanumeric), for forge" in outcome.failure()
    assert not (made.inventory / "secrets").exists()


def test_what_cannot_be_composed_is_said(tmp_path: Path) -> None:
    made = repository(tmp_path)
    made.role("app", native(secrets={"api": {"kind": "acces"}}))
    made.vars("host_vars/forge.yml", {"hearth_services": {"app": {}}})
    source = made.source()
    with pytest.raises(g.GenerationError, match=r"secrets\.api\.kind"):
        secret_step.Step(source, source.hosts)


def test_of_several_inventories_the_one_that_defines_the_host_is_written_to(tmp_path: Path) -> None:
    """molecule and others put an inventory of their own before the owner's."""
    made = repository(tmp_path)
    made.role("app", native(secrets={"tunnel": {"kind": "access", "generate": {"keypair": "wireguard"}}}))
    made.vars("host_vars/forge.yml", {"hearth_services": {"app": {}}})
    other = made.write("first/hosts.yml", {"all": {"hosts": {}}}).parent
    loader = DataLoader()
    loader.set_basedir(str(tmp_path / "playbooks"))
    inventory = InventoryManager(loader=loader, sources=[str(other), str(made.inventory)])
    manager = VariableManager(loader=loader, inventory=inventory)
    manager._extra_vars = {}
    step = secret_step.Step(Source(inventory, manager, loader), ["forge"])
    assert [make.file for make in step.run({}, check=True).made] == [str(made.inventory / "secrets" / "forge.sops.yml")]
    assert step.composition.secrets["forge"].known == str(made.inventory / "known.yml")


def test_public_halves_are_data_that_templates_use(tmp_path: Path) -> None:
    made = repository(tmp_path)
    file = {"path": "/etc/app/peer", "content": "peer {{ service.public_keys.tunnel }}"}
    secrets = {"tunnel": {"kind": "access", "generate": {"keypair": "wireguard"}}, "other": {"kind": "access"}}
    made.role("app", native(secrets=secrets, files=[file]))
    made.vars("host_vars/forge.yml", {"hearth_services": {"app": {}}})
    made.secrets("forge", {"app": {"tunnel": "x", "other": "x"}})
    [problem] = compose.compose(made.source()).report.problems
    assert "the public half of the key pair tunnel is not known" in problem.message
    made.vars("known.yml", {"public_keys": {"forge": {"app": {"tunnel": "PUBLIC="}}}})
    found = compose.compose(made.source())
    assert found.report.problems == []
    forge = found.fleet.hosts["forge"]
    assert forge.services["app"].contribution.files[0].content == "peer PUBLIC="
    assert forge.public_keys == {"app/tunnel": "PUBLIC="}
    made.vars("known.yml", "public_keys: [no, mapping]\n")
    assert any(
        "known.yml is not what Hearth writes" in each.message for each in compose.compose(made.source()).report.problems
    )
