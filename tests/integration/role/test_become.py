# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The way in is an account without rights, and sudo. On lab-nas-1, which the role's tests leave alone."""

from __future__ import annotations

import typing as t

import pytest

from ..conftest import Site

HOST = "lab-nas-1"
DEPLOY = {"ansible_user": "deploy"}


@pytest.fixture(scope="module", autouse=True)
def deploy(site: Site) -> t.Iterator[None]:
    """An account with the lab's key that may use sudo without a password."""
    site.ssh(
        HOST,
        "id deploy >/dev/null 2>&1 || useradd --create-home --shell /bin/bash deploy;"
        "install -d -m 700 -o deploy -g deploy /home/deploy/.ssh;"
        "install -m 600 -o deploy -g deploy /root/.ssh/authorized_keys /home/deploy/.ssh/authorized_keys;"
        "umask 227; echo 'deploy ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/deploy",
    )
    yield
    # Its connections too: Ansible keeps one open for a minute, and would use it for a later account of this name.
    site.ssh(HOST, "rm -f /etc/sudoers.d/deploy; pkill -KILL -u deploy; sleep 1; userdel --force --remove deploy 2>&1")


def test_without_become_it_says_what_to_do(site: Site) -> None:
    outcome = site.play(limit=HOST, playbook="playbooks/core.yml", variables=DEPLOY, expect=None)
    assert outcome.status != 0
    assert "this must run as root on the host: use --become" in outcome.message


def test_it_converges_in_one_exchange_and_leaves_no_file_of_the_account(site: Site) -> None:
    site.ssh(HOST, "rm -rf /var/lib/hearth/agent; echo '# by hand' >> /etc/chrony/chrony.conf; touch /run/stamp")
    outcome = site.play("--become", limit=HOST, playbook="playbooks/core.yml", variables=DEPLOY)
    assert "modify file:/etc/chrony/chrony.conf" in outcome.actions(HOST)
    again = site.play("--become", limit=HOST, playbook="playbooks/core.yml", variables=DEPLOY).converge(HOST)
    assert not again["changed"], again["actions"]
    assert again["exchanges"] == 1
    # Everything travels through sudo's standard input: the account never holds a request, nor a secret in it. What is
    # mounted below /run/user is systemd's own for every account that logs in.
    owned = site.ssh(HOST, "find / /tmp /run /dev/shm -xdev -user deploy -newer /run/stamp -type f")
    assert owned.split() == []
