#!/usr/bin/env python3
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the reference pages and the JSON Schemas from what documents itself; `--check` fails when one is stale.

Sources: plugins/plugin_utils/schema.py, the DOCUMENTATION of modules and filters, and each role's argument specs, defaults and
contribution. A role that is added needs nothing here. Pages whose source is gone are removed.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import typing as t
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / ".collections"))

from ansible_collections.hearth.homelab.plugins.plugin_utils import schema, templates
from pydantic import TypeAdapter

#: First line of every generated page; also how a page that may be removed is recognised.
MARK = "<!-- Made by tools/make_docs.py (make docs-pages): change the source, not this page. -->"
RULES = "roles/prometheus/templates/base.yml.j2"
CORE = schema.CoreVariables().model_dump(by_alias=True)
Data = dict[str, t.Any]


def load(path: Path) -> Data:
    data = yaml.safe_load(path.read_text()) if path.exists() else None
    return data if isinstance(data, dict) else {}


def cell(value: t.Any) -> str:
    """A text inside a table: one line, no column separators, markup of Ansible's documentation resolved."""
    if isinstance(value, list):
        value = " ".join(str(entry) for entry in value)
    text = re.sub(r"\b[CVOPEI]\(([^()]*)\)", r"`\1`", str(value))
    text = re.sub(r"\bM\((?:hearth\.homelab\.)?([^()]*)\)", r"`\1`", text)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def code(value: t.Any) -> str:
    """A value as YAML in one line."""
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split()).replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def table(head: t.Sequence[str], rows: t.Iterable[t.Sequence[str]]) -> list[str]:
    found = list(rows)
    if not found:
        return []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in found), ""]


def page(*parts: str | list[str]) -> str:
    lines: list[str] = [MARK]
    for part in parts:
        lines += [part, ""] if isinstance(part, str) else part
    return "\n".join(lines).rstrip() + "\n"


# --- roles -----------------------------------------------------------------------------------------------------------


class Role:
    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self.spec = load(path / "meta/argument_specs.yml").get("argument_specs", {}).get("main", {})
        self.defaults = load(path / "defaults/main.yml")
        self.contribution: Data = load(path / "vars/contribution.yml").get(f"{self.name}_contribution") or {}
        self.summary = str(self.contribution.get("summary") or self.spec.get("short_description") or self.name)

    def options(self) -> list[str]:
        rows = []
        for name, option in sorted(self.spec.get("options", {}).items()):
            kind = option.get("type", "str") + (f" of {option['elements']}" if option.get("elements") else "")
            default = self.defaults.get(name, option.get("default"))
            text = cell(option.get("description", ""))
            if option.get("choices"):
                text += " One of " + ", ".join(code(choice) for choice in option["choices"]) + "."
            rows.append((f"`{name}`", kind, "" if default is None else code(default), text))
        return table(("option", "type", "default", "meaning"), rows) or ["It has no options.", ""]

    def example(self) -> list[str]:
        if not self.contribution:
            return []
        return ["```yaml", "hearth_services:", f"  {self.name}: {{}}", "```", ""]


def mapping(value: t.Any) -> list[tuple[str, Data]]:
    """Entries of a contract that is a mapping of mappings; whatever is written otherwise is left out."""
    entries = value.items() if isinstance(value, dict) else ()
    return [(str(key), entry) for key, entry in entries if isinstance(entry, dict)]


def declares(role: Role) -> list[str]:
    """What a contribution asks of the host and of other services."""
    lines: list[str] = []

    def section(title: str, rows: list[str]) -> None:
        if rows:
            lines.extend([f"### {title}", "", *rows])

    # A template in place of a contract says nothing before it is resolved.
    contribution = {
        key: value for key, value in role.contribution.items() if not (isinstance(value, str) and "{{" in value)
    }
    run = contribution.get("run") or {}
    facts: list[tuple[str, str]] = [("tier", code(contribution.get("tier", "services")))]
    if container := run.get("container"):
        facts += [
            ("container image", code(container.get("image", ""))),
            ("why a container", cell(container.get("reason", ""))),
        ]
    native = run.get("native") or {}
    for key in ("packages", "replaces"):
        if native.get(key):
            facts.append(
                (f"Debian packages{' replaced' if key == 'replaces' else ''}", ", ".join(map(code, native[key])))
            )
    units = [unit.get("name", "") if isinstance(unit, dict) else unit for unit in native.get("units") or []]
    if units:
        facts.append(("units", ", ".join(code(unit) for unit in units)))
    if user := contribution.get("user"):
        facts.append(("user", f"{code(user.get('name', ''))}, id {user.get('id', '')}"))
    if protect := contribution.get("protect"):
        facts.append(("protection class", code(protect.get("class", ""))))
    for key in ("provides", "database", "requires", "wants", "notify"):
        if contribution.get(key):
            value = contribution[key]
            facts.append((key, ", ".join(map(code, value)) if isinstance(value, list) else code(value)))
    section("At a glance", table(("what", "value"), facts))
    section("Ports", table(("name", "port", "protocol", "address", "open to"), [
        (f"`{name}`", code(entry.get("port", "")), ", ".join(map(str, entry.get("protocol", ["tcp"]))),
         code(entry.get("address", "loopback")), code(entry["from"]) if entry.get("from") else "this host only")
        for name, entry in mapping(contribution.get("listen"))]))  # fmt: skip
    section("Storage", table(("name", "mountpoint", "properties"), [
        (f"`{name}`", code(entry.get("mountpoint", "")),
         ", ".join(f"{key}: {code(value)}" for key, value in entry.items() if key != "mountpoint"))
        for name, entry in mapping(contribution.get("storage"))]))  # fmt: skip
    if route := contribution.get("route"):
        section("Route", table(("key", "value"), [(key, code(value)) for key, value in route.items()]))
    section("Secrets", table(("name", "kind", "generated", "delivered as"), [
        (f"`{name}`", str(entry.get("kind", "")), code(entry["generate"]) if entry.get("generate") else "no: yours",
         code(entry["deliver"]) if entry.get("deliver") else "a hole in a template")
        for name, entry in mapping(contribution.get("secrets"))]))  # fmt: skip
    section("Files", table(("path", "from", "mode"), [
        (code(entry.get("path", "")), code(entry.get("template") or "its contribution"), code(entry.get("mode", "0644")))
        for entry in contribution.get("files") or [] if isinstance(entry, dict)]))  # fmt: skip
    section("Alerts", [line for alert in alerts_of(role) for line in alert_text(alert, 4)])
    return lines


def alerts_of(role: Role) -> list[Data]:
    """Its alerts; of a list that a template makes, those that it has with the role's defaults."""
    found = role.contribution.get("alerts") or []
    if isinstance(found, str):
        environment = templates.environment()
        scope = environment.scope(CORE, role.defaults, {"inventory_hostname": "HOST", "service": {"name": role.name}})
        found = templates.Compiled(environment, found).resolve(
            scope, lambda _path, why: sys.exit(f"{role.path}: {why}")
        )
    return [alert for alert in found if isinstance(alert, dict)]


def alert_text(alert: Data, level: int) -> list[str]:
    lines = [f"{'#' * level} {alert['alert']}", "", f"{cell(alert.get('summary', ''))}. Severity "
             f"{alert.get('severity', '')}, after {alert.get('for', '0s')}.", ""]  # fmt: skip
    if alert.get("description"):
        lines += [cell(alert["description"]), ""]
    lines += ["```promql", str(alert.get("expr", "")).strip(), "```", ""]
    return [*lines, f"What to do: {cell(alert.get('runbook', ''))}", ""]


def roles() -> list[Role]:
    return [Role(path) for path in sorted((ROOT / "roles").iterdir()) if (path / "meta/argument_specs.yml").exists()]


def role_pages() -> t.Iterator[tuple[str, str]]:
    found = roles()
    for role in found:
        description = role.spec.get("description", [])
        intro = " ".join(description) if isinstance(description, list) else str(description)
        what = [cell(intro), ""] if intro else []
        yield f"docs/reference/roles/{role.name}.md", page(
            f"# {role.name}", f"{role.summary}.", what, "## Options", role.options(),
            ["## Enable it", "", *role.example()] if role.contribution else [],
            ["## What it declares", "", *declares(role)] if role.contribution else [],
        )  # fmt: skip
        # A README that people wrote stays: the reference page is there beside it.
        readme = role.path / "README.md"
        if not readme.exists() or readme.read_text().startswith(MARK):
            alone = ["Alone, with what it requires:", "", "```yaml", "- hosts: forge", "  gather_facts: false", "  roles:",
                     f"    - hearth.homelab.{role.name}", "```", ""]  # fmt: skip
            yield f"roles/{role.name}/README.md", page(
                f"# {role.name}", f"{role.summary}.", "## Options", role.options(), "## Example",
                "Enabled in the inventory:", role.example(), alone,
                "Ports, storage, secrets and alerts: see the reference, `docs/reference/roles/"
                f"{role.name}.md` of the collection.",
            )  # fmt: skip
    yield "docs/reference/roles/index.md", page(
        "# Roles",
        table(("role", "what", "tier"), [
            (f"[{role.name}]({role.name}.md)", cell(role.summary), str(role.contribution.get("tier", ""))) for role in found]),
    )  # fmt: skip


# --- alerts ----------------------------------------------------------------------------------------------------------


def fleet_alerts() -> list[Data]:
    """The rules about machines. Their file is a template only around the rules, which are raw."""
    text = (ROOT / RULES).read_text() if (ROOT / RULES).exists() else ""
    text = re.sub(r"{%-?\s*(end)?raw\s*-?%}", "", text)
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        sys.exit(f"error: {RULES} is not YAML around its raw block, so its alerts cannot be listed: {error}")
    return [
        {**rule, **rule.get("annotations", {}), "severity": rule.get("labels", {}).get("severity", "")}
        for group in data.get("groups", []) for rule in group.get("rules", []) if "alert" in rule
    ]  # fmt: skip


def unit_alerts() -> list[Data]:
    """The two that every unit gets, as their renderer makes them for an example."""
    from types import SimpleNamespace

    from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import prometheus

    origin, service = SimpleNamespace(name="HOST"), SimpleNamespace(name="SERVICE")
    rules = prometheus.unit_rules(t.cast("t.Any", origin), t.cast("t.Any", service), "UNIT.service")
    return [{**rule, **rule["annotations"], "severity": rule["labels"]["severity"]} for rule in rules]


def alerts() -> list[tuple[str, list[Data]]]:
    """Every alert, by what it is about."""
    groups = [("Every service", unit_alerts()), ("Every machine", fleet_alerts())]
    return groups + [(role.name, found) for role in roles() if (found := alerts_of(role))]


def without_runbook(groups: t.Iterable[tuple[str, list[Data]]]) -> list[str]:
    """Alerts that do not say what to do: whoever is woken by one needs that first."""
    return [
        f"{title}: {alert['alert']}"
        for title, found in groups
        for alert in found
        if not str(alert.get("runbook") or "").strip()
    ]


def alerts_page() -> tuple[str, str]:
    lines = ["Every alert names its host, service and severity, and says what to do.", ""]
    for title, found in alerts():
        lines += [f"## {title}", ""]
        for alert in found:
            lines += alert_text(alert, 3)
    return "docs/alerts.md", page("# Alerts", lines)


# --- modules and filters ---------------------------------------------------------------------------------------------------------


def constants(path: Path, cls: str = "") -> dict[str, t.Any]:
    """The constants of a file, or of a class in it."""
    found = {}
    body = ast.parse(path.read_text()).body
    if cls:
        [body] = [node.body for node in body if isinstance(node, ast.ClassDef) and node.name == cls]
    for node in body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        ):
            found[node.targets[0].id] = node.value.value
    return found


def values(entries: Data, prefix: str = "") -> t.Iterator[tuple[str, str, str]]:
    for name, entry in entries.items():
        kind = str(entry.get("type", "")) + (f" of {entry['elements']}" if entry.get("elements") else "")
        yield f"`{prefix}{name}`", kind, cell(entry.get("description", ""))
        yield from values(entry.get("contains") or {}, f"{prefix}{name}.")


def documentation(source: dict[str, t.Any]) -> Data:
    """The DOCUMENTATION of a plugin with the fragments that it extends, merged as ansible-doc does: its own keys win."""
    doc: Data = yaml.safe_load(source["DOCUMENTATION"])
    for name in doc.pop("extends_documentation_fragment", []):
        path = ROOT / "plugins" / "doc_fragments" / f"{name.removeprefix('hearth.homelab.')}.py"
        for key, value in yaml.safe_load(constants(path, "ModuleDocFragment")["DOCUMENTATION"]).items():
            doc[key] = {**value, **(doc.get(key) or {})}
    return doc


def option_rows(options: Data, prefix: str = "") -> t.Iterator[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each option, those inside of others behind them."""
    for name, option in options.items():
        yield (
            f"`{prefix}{name}`" + (" (required)" if option.get("required") else ""),
            option.get("type", "str") + (f" of {option['elements']}" if option.get("elements") else ""),
            "" if option.get("default") is None else code(option["default"]),
            cell(option["description"])
            + (" One of " + ", ".join(map(code, option["choices"])) + "." if option.get("choices") else ""),
        )
        yield from option_rows(option.get("suboptions") or {}, f"{prefix}{name}.")


def plugin_pages(kind: str, key: str, title: str) -> t.Iterator[tuple[str, str]]:
    """A page for each plugin of ``plugins/KIND`` with documentation, and their index. ``key`` has the name."""
    names = []
    folder = f"docs/reference/{'modules' if kind == 'modules' else f'{kind}s'}"
    for path in sorted((ROOT / "plugins" / kind).glob("*.py")):
        source = constants(path)
        if "DOCUMENTATION" not in source:
            continue
        doc = documentation(source)
        name = doc[key]
        names.append((f"[{name}]({name}.md)", cell(doc["short_description"])))
        description = doc["description"] if isinstance(doc["description"], list) else [doc["description"]]
        attributes = [(f"`{entry}`", str(value.get("support", "")), cell(value.get("description", "")))
                      for entry, value in (doc.get("attributes") or {}).items()]  # fmt: skip
        yield f"{folder}/{name}.md", page(
            f"# hearth.homelab.{name}", f"{doc['short_description']}.", [f"- {cell(text)}" for text in description] + [""],
            "## Options", table(("option", "type", "default", "meaning"), option_rows(doc.get("options") or {}))
            or ["It has no options.", ""],
            ["## Attributes", "", *table(("attribute", "support", "meaning"), attributes)] if attributes else [],
            "## Examples", ["```yaml", str(source.get("EXAMPLES", "")).strip(), "```", ""],
            "## Result", table(("key", "type", "meaning"), values(yaml.safe_load(source.get("RETURN", "")) or {})),
        )  # fmt: skip
    yield f"{folder}/index.md", page(f"# {title}", table((kind.removesuffix("s"), "what"), names))


# --- schema ----------------------------------------------------------------------------------------------------------


def editor_schema(data: Data, title: str) -> Data:
    """What pydantic exports, with the looser forms that its validators also take, and room for the owner's x_ keys.

    Compose resolves templates before it validates, so a value that is not a string may be written as one.
    """
    template = {"type": "string", "pattern": r"\{\{|\{%"}

    def walk(node: t.Any) -> t.Any:
        if isinstance(node, list):
            return [walk(entry) for entry in node]
        if not isinstance(node, dict):
            return node
        found = {key: walk(value) for key, value in node.items() if key != "title" or not isinstance(value, str)}
        if found.get("type") == "object" and "properties" in found:
            found["patternProperties"] = {"^x_": {}}
            found["properties"] = {key: loosen(value) for key, value in found["properties"].items()}
        elif isinstance(found.get("additionalProperties"), dict):
            found["additionalProperties"] = loosen(found["additionalProperties"])
        return found

    def loosen(value: Data) -> Data:
        outside = {key: value[key] for key in ("description", "default") if key in value}
        inside = {key: entry for key, entry in value.items() if key not in outside}
        return {**outside, "anyOf": [inside, template]} if inside else outside

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **walk(data)}


def loose_types(model: type) -> Data:
    """The JSON Schema of a model where sizes, durations and texts may be written as people write them."""
    from pydantic.json_schema import GenerateJsonSchema

    class Generate(GenerateJsonSchema):
        def function_before_schema(self, schema: t.Any) -> t.Any:
            """A value that a validator reads first may be written in other forms: their own type says only one."""
            inner = super().function_before_schema(schema)
            name = getattr(schema["function"].get("function"), "__name__", "")
            forms = {
                "parse_size": {"type": ["integer", "string"]},
                "parse_duration": {"type": ["integer", "string"]},
                "_text": {"type": ["string", "number", "boolean"]},
                "_units": {"type": "array"},
                "_validate": {"type": ["array", "object"]},
                "_certificates": {"type": ["string", "object"]},
            }
            return forms.get(name, inner)

    return t.cast("Data", TypeAdapter(model).json_schema(by_alias=True, schema_generator=Generate))


def referenced(data: Data) -> Data:
    """Without definitions that nothing refers to."""
    while True:
        text = json.dumps(data)
        unused = [name for name in data.get("$defs", {}) if f'"#/$defs/{name}"' not in text]
        if not unused:
            return data
        data = {**data, "$defs": {key: value for key, value in data["$defs"].items() if key not in unused}}


def schemas() -> t.Iterator[tuple[str, str]]:
    contribution = editor_schema(loose_types(schema.Contribution), "A contribution of Hearth")
    definitions = contribution.pop("$defs", {})
    of_role = {
        "$schema": contribution.pop("$schema"),
        "title": contribution.pop("title"),
        "type": "object",
        "patternProperties": {"^[a-z][a-z0-9_]*_contribution$": {"$ref": "#/$defs/Contribution"}},
        "$defs": {"Contribution": contribution, **definitions},
    }
    yield "docs/schema/contribution.json", dump(of_role)
    core = editor_schema(loose_types(schema.CoreVariables), "Variables of Hearth")
    entry = editor_schema(loose_types(schema.ServiceEntry), "")
    entry = {key: value for key, value in entry.items() if key not in ("$schema", "title")}
    entry["properties"]["contribution"] = {"anyOf": [{"$ref": "#/$defs/Contribution"}, {"type": "null"}],
                                           "description": entry["properties"]["contribution"].get("description", "")}  # fmt: skip
    services = {"type": "object", "description": "Services by name.",
                "additionalProperties": {"anyOf": [entry, {"type": "null"}]}}  # fmt: skip
    core["properties"]["hearth_services"] = services
    core["patternProperties"] = {"^hearth_services__": services, "^(?!hearth_)": {}}
    core["$defs"] = {**core.get("$defs", {}), **of_role["$defs"]}
    yield "docs/schema/variables.json", dump(core)


def dump(data: Data) -> str:
    return json.dumps(referenced(data), indent=1, ensure_ascii=False) + "\n"


def type_name(node: Data) -> str:
    if "$ref" in node:
        name = str(node["$ref"]).rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(type_name(entry) for entry in node["anyOf"]))
    if "enum" in node or "const" in node:
        return ", ".join(code(value) for value in node.get("enum", [node.get("const")]))
    kind = node.get("type", "anything")
    kind = " or ".join(kind) if isinstance(kind, list) else str(kind)
    if kind == "array":
        return f"list of {type_name(node['items'])}" if node.get("items") else "list"
    if kind == "object" and isinstance(node.get("additionalProperties"), dict):
        return f"mapping of {type_name(node['additionalProperties'])}"
    return kind


def fields(node: Data) -> list[str]:
    required = node.get("required", [])
    rows = []
    for name, field in node.get("properties", {}).items():
        default = "required" if name in required else code(field["default"]) if field.get("default") is not None else ""
        rows.append((f"`{name}`", type_name(field).replace("|", "\\|"), default, cell(field.get("description", ""))))
    return table(("key", "type", "default", "meaning"), rows)


def contracts_page() -> tuple[str, str]:
    lines: list[str] = []
    definitions: Data = {}
    for title, model in (("Contribution", schema.Contribution), ("Service entry", schema.ServiceEntry),
                         ("Core variables", schema.CoreVariables)):  # fmt: skip
        data = loose_types(model)
        definitions |= data.get("$defs", {})
        lines += [f"## {title}", "", cell(data.get("description", "")), "", *fields(data)]
    lines += ["## Types", "", "What the tables above name, in alphabetical order.", ""]
    for name in sorted(definitions):
        node = definitions[name]
        lines += [
            f"### {name}",
            "",
            *([cell(node["description"]), ""] if node.get("description") else []),
            *fields(node),
        ]
    return "docs/reference/contracts.md", page(
        "# Contracts",
        f"Everything that a contribution (schema {schema.SCHEMA_VERSION}) and the inventory may say. Unknown keys are errors; "
        "keys that start with `x_` are yours and ignored.",
        lines,
    )


# --- all of it -------------------------------------------------------------------------------------------------------


def everything() -> dict[str, str]:
    return dict(
        [
            *role_pages(),
            *plugin_pages("modules", "module", "Modules"),
            *plugin_pages("filter", "name", "Filters"),
            contracts_page(),
            alerts_page(),
            *schemas(),
        ]
    )


def leftovers(pages: t.Container[str]) -> list[Path]:
    """Generated pages whose source is gone."""
    found = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "roles").glob("*/README.md")]
    return [path for path in found if str(path.relative_to(ROOT)) not in pages and path.read_text().startswith(MARK)]


def undescribed() -> list[str]:
    """Fields of the schema that say nothing about themselves."""
    found = []
    for name, model in sorted(vars(schema).items()):
        if isinstance(model, type) and issubclass(model, schema.Model) and model is not schema.Model:
            found += [f"{name}.{key}" for key, field in model.model_fields.items() if not field.description]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is stale")
    check = parser.parse_args().check
    failed = False
    if missing := undescribed():
        print(f"error: plugins/plugin_utils/schema.py: no description: {', '.join(missing)}", file=sys.stderr)
        failed = True
    if silent := without_runbook(alerts()):
        print(f"error: alerts without a runbook, which says what to do: {', '.join(silent)}", file=sys.stderr)
        failed = True
    pages = everything()
    for name, text in pages.items():
        path = ROOT / name
        if path.exists() and path.read_text() == text:
            continue
        if check:
            print(f"error: {name} is stale: run make docs-pages and commit it", file=sys.stderr)
            failed = True
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"wrote {name}")
    for path in leftovers(pages):
        if check:
            print(f"error: {path.relative_to(ROOT)} has no source any more: run make docs-pages", file=sys.stderr)
            failed = True
        else:
            path.unlink()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
