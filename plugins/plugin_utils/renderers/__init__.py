# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One renderer per contract: pure functions from the composed fleet to items of a host's plan.

A renderer is ``render(fleet: Fleet, host: Host, plan: PlanBuilder) -> None``. It looks at all services of the
host (or of the fleet, where it renders what others contribute) and adds items owned by the contributing service,
so that one service can be applied, held back or removed alone. RENDERERS in ``registry.py`` lists them in order;
a renderer that belongs to a provider runs on the hosts whose service says ``provides: {CONTRACT: RENDERER}``.
"""
