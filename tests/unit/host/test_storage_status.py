# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host says before a key is generated for it: real directories and marks, and a server that may not answer."""

from __future__ import annotations

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import storage, storage_status
from ansible_collections.hearth.homelab.plugins.module_utils.layout import Layout
from ansible_collections.hearth.homelab.plugins.module_utils.runner import Completed


class Psql:
    """Answers as psql does; keeps what it was asked."""

    def __init__(self, code: int = 0, stdout: str = "") -> None:
        self.code, self.stdout, self.asked = code, stdout, []

    def run(self, argv, **options) -> Completed:
        self.asked.append((argv, options.get("user")))
        return Completed(argv, self.code, self.stdout, "")


def look(tmp_path, runner=None, **request):
    return storage_status.look(Layout(tmp_path), runner or Psql(), {"host": "forge", **request})


def test_storage(tmp_path):
    Layout(tmp_path).prepare()
    for name in ("marked", "data", "found", "other"):
        (tmp_path / "srv" / name).mkdir(parents=True)
    storage.write_mark("/srv/marked", "forge", "app", root=str(tmp_path))
    storage.write_mark("/srv/data", "forge", "app", sentinel=True, root=str(tmp_path))
    storage.write_mark("/srv/other", "nas", "app", root=str(tmp_path))
    (tmp_path / "srv" / "found" / "file").touch()
    paths = [f"/srv/{name}" for name in ("absent", "marked", "data", "found", "other")]
    answer = look(tmp_path, storage=dict.fromkeys(paths, "app"))
    assert {entry["path"]: entry["state"] for entry in answer["storage"]} == {
        "/srv/absent": "new", "/srv/marked": "empty_marked", "/srv/data": "data", "/srv/found": "found",
        "/srv/other": "found",
    }  # fmt: skip
    (tmp_path / "srv" / "data" / storage.MARK).unlink()
    [lost] = look(tmp_path, storage={"/srv/data": "app"})["storage"]
    assert lost["state"] == "lost"
    assert "held data of app" in lost["message"]


def test_secrets_are_named_and_never_shown(tmp_path):
    layout = Layout(tmp_path)
    layout.secret("app/key").parent.mkdir(parents=True)
    layout.secret("app/key").write_text("hunter2hunter2")
    answer = look(tmp_path, secrets=["app/key", "app/other"])
    assert answer["secrets"] == ["app/key"]
    assert "hunter2" not in str(answer)
    with pytest.raises(ValueError, match="is not a secret's name"):
        look(tmp_path, secrets=["../../etc/shadow"])


def test_databases(tmp_path):
    there = Psql(stdout="postgres\ntemplate0\napp\n")
    assert look(tmp_path, there, databases=["app", "other"])["databases"] == {"app": True, "other": False}
    [(argv, user)] = there.asked
    assert (argv[0], user) == ("psql", "postgres")
    # No server, no psql: nobody knows, and that is never "none".
    for code in (2, 127):
        assert look(tmp_path, Psql(code), databases=["app"])["databases"] == {"app": None}
    quiet = Psql()
    assert look(tmp_path, quiet)["databases"] == {}
    assert quiet.asked == []
