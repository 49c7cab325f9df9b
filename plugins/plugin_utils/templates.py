# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The project's own Jinja environment: contributions and configuration files, rendered on plain data.

Ansible's templar costs about 1 ms for each string (measured with ansible-core 2.19.14); this environment compiles a
string once per run and evaluates it in about 5 microseconds. What it gives up is lookups: a template here sees
resolved variables only, so that equal inputs always give equal plans.
"""

from __future__ import annotations

import functools
import re
import typing as t
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.runtime

_NO_LOOKUPS = (
    "lookups are not available in contributions and configuration templates: set a variable to the lookup (an option "
    "in defaults/main.yml, or a variable of the inventory) and use the variable here"
)


_CODE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
_STRING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
#: An identifier that is no attribute.
_WORD = re.compile(r"(?<![\w.])[A-Za-z_]\w*")


class TemplateError(Exception):
    """A template that cannot be compiled or rendered: ``message``, and where (``line`` counts from 1; 0: unknown)."""

    def __init__(self, message: str, file: str = "", line: int = 0) -> None:
        super().__init__(f"{file}:{line}: {message}" if file and line else message)
        self.message, self.file, self.line = message, file, line


class _Plugins(dict[str, t.Any]):
    """Ansible's filters (or tests) and those of collections, then Jinja's own, as Ansible itself looks them up.

    Ansible's `unique`, for one, gives a list where Jinja's gives a generator. Loaded when first named.
    """

    def __init__(self, builtin: t.Mapping[str, t.Any], kind: t.Literal["filter", "test"]) -> None:
        super().__init__()
        self._builtin = dict(builtin)
        self._kind = kind
        self._missing: set[str] = set()

    def __missing__(self, name: str) -> t.Any:
        found = None
        if name not in self._missing:
            found = self._load(name) or self._builtin.get(name)
        if found is None:
            self._missing.add(name)
            raise KeyError(name)
        self[name] = found
        return found

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def get(self, name: str, default: t.Any = None) -> t.Any:
        try:
            return self[name]
        except KeyError:
            return default

    def _load(self, name: str) -> t.Any:
        # Imported late: the plugin loader reads Ansible's configuration, which a pure rendering does not need.
        from ansible.plugins.loader import filter_loader, test_loader

        try:
            plugin = (filter_loader if self._kind == "filter" else test_loader).get(name)
        except KeyError:
            return None
        if plugin is None or (plugin.accept_args_markers and name in self._builtin):
            return None  # Ansible's `default` and `defined` know its own markers instead of Jinja's Undefined
        return plugin.j2_function


def _denied(name: str, why: str) -> t.Callable[..., t.NoReturn]:
    def denied(*_args: t.Any, **_kwargs: t.Any) -> t.NoReturn:
        raise TemplateError(f"{name}(): {why}")

    return denied


def _finalize(value: t.Any) -> t.Any:
    """Text of an expression's value. ``None`` in a configuration file is a mistake that no validator finds."""
    if value is None:
        raise TemplateError(
            "an expression gives null where text is made of it: use default('...', true), or test it first"
        )
    return value


class Environment(jinja2.Environment):
    """StrictUndefined, Ansible's filters and tests, no lookups; keys of mappings win over their methods."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            keep_trailing_newline=True,
            undefined=jinja2.StrictUndefined,
            extensions=[jinja2.ext.do, jinja2.ext.loopcontrols],
            loader=jinja2.FunctionLoader(self._read),
            cache_size=-1,
            auto_reload=False,
            finalize=_finalize,
        )
        self.filters = _Plugins(self.filters, "filter")
        self.tests = _Plugins(self.tests, "test")
        for name in ("lookup", "query", "q"):
            self.globals[name] = _denied(name, _NO_LOOKUPS)
        self.globals["now"] = _denied("now", "a plan is the same whenever it is made; there is no time in it")
        self._expressions: dict[str, Expression] = {}

    def getattr(self, obj: t.Any, attribute: str) -> t.Any:
        """``service.ports.items`` is the port called items, if there is one, and only else the method."""
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def join_path(self, template: str, parent: str) -> str:
        """The path of an include: beside the file that includes it, or below the role's ``templates/``."""
        path = Path(template)
        if path.is_absolute():
            return template
        beside = Path(parent).parent
        for directory in (beside, *beside.parents):
            if (directory / path).is_file():
                return str(directory / path)
            if directory.name == "templates":
                break
        return str(beside / path)

    @staticmethod
    def _read(name: str) -> tuple[str, str, t.Callable[[], bool]] | None:
        try:
            return Path(name).read_text(encoding="utf-8"), name, lambda: True
        except (FileNotFoundError, IsADirectoryError):
            return None

    def render_file(self, path: Path | str, variables: t.Mapping[str, t.Any]) -> str:
        """The text of a template file. TemplateError names the file and line, also in an included file."""
        try:
            return self.get_template(str(path)).render(variables)
        except Exception as error:
            raise self._explain(error, str(path)) from error

    def scope(self, *layers: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        """Variables for expressions: Jinja's globals, then these layers (a later one wins)."""
        scope = dict(self.globals)
        for layer in layers:
            scope.update(layer)
        return scope

    def expression(self, source: str) -> Expression:
        """The compiled form of a string; the same object for equal strings. TemplateError if it does not compile."""
        found = self._expressions.get(source)
        if found is None:
            found = self._expressions[source] = Expression(self, source)
        return found

    def file_names(self, path: Path) -> frozenset[str]:
        """Names in the code of a template file: all variables that it uses, and a few words that are none.

        Jinja's own analysis generates code and costs 0.5 ms per file; what is no variable is dropped by whoever
        looks the names up.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return frozenset()  # rendering reports it
        names: set[str] = set()
        for code in _CODE.findall(text):
            names.update(_WORD.findall(_STRING.sub("", code)))
        return frozenset(names)

    def names_of_file(self, path: Path) -> frozenset[str]:
        """The variables that a template file and what it includes by a literal name use, by Jinja's own analysis."""
        names: set[str] = set()
        seen: set[str] = set()
        todo = [str(path)]
        while todo:
            file = todo.pop()
            if file in seen:
                continue
            seen.add(file)
            try:
                tree = self.parse(Path(file).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, jinja2.TemplateError):
                continue  # rendering reports it, with the line
            names |= jinja2.meta.find_undeclared_variables(tree) - self.globals.keys()
            todo.extend(self.join_path(name, file) for name in jinja2.meta.find_referenced_templates(tree) if name)
        return frozenset(names)

    def _explain(self, error: Exception, file: str) -> TemplateError:
        if isinstance(error, jinja2.TemplateSyntaxError):
            return TemplateError(f"syntax error in the template: {error.message}", error.filename or file, error.lineno)
        if isinstance(error, jinja2.TemplateNotFound):
            return TemplateError(f"the template {error.message} does not exist", *_line_of(error, file))
        return TemplateError(_message(error), *_line_of(error, file))


#: `{{ name }}`, `{{ name.key.key }}`: most of what contributions consist of. Compiling costs 0.5 ms with Jinja.
_REFERENCE = re.compile(r"\{\{\s*([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\s*\}\}")
_CONSTANTS = frozenset(("true", "false", "none", "True", "False", "None", "self", "super", "caller", "loop", "not"))

_Parts = tuple["str | tuple[str, ...]", ...]


def _references(source: str) -> _Parts | None:
    """Literal texts and dotted references, if the string has nothing else for Jinja in it."""
    parts: list[str | tuple[str, ...]] = []
    end = 0
    for match in _REFERENCE.finditer(source):
        keys = tuple(match[1].split("."))
        if keys[0] in _CONSTANTS:
            return None
        if match.start() > end:
            parts.append(source[end : match.start()])
        parts.append(keys)
        end = match.end()
    if end < len(source):
        parts.append(source[end:])
    rest = "".join(part for part in parts if isinstance(part, str))
    return None if "{" in rest or "}" in rest or "\r" in rest else tuple(parts)


class Expression:
    """One compiled string. A string that is a single ``{{ expression }}`` gives the expression's native value."""

    __slots__ = ("_environment", "_native", "_parts", "_template", "names", "source")

    def __init__(self, environment: Environment, source: str) -> None:
        self.source = source
        self._environment = environment
        self._template: jinja2.Template | None = None
        self._native = False
        self._parts = _references(source)
        if self._parts is not None:
            names = {part[0] for part in self._parts if not isinstance(part, str)}
            self.names = frozenset(names - environment.globals.keys())
            self._native = len(self._parts) == 1
            return
        try:
            tree = environment.parse(source)
            self.names = frozenset(jinja2.meta.find_undeclared_variables(tree) - environment.globals.keys())
            only = _single_expression(tree)
            self._native = only is not None
            if only is not None:
                assign = jinja2.nodes.Assign(jinja2.nodes.Name("result", "store"), only, lineno=1)
                tree = jinja2.nodes.Template([assign], lineno=1)
                tree.set_environment(environment)
            self._template = environment.from_string(tree)
        except (jinja2.TemplateError, TemplateError) as error:
            message = getattr(error, "message", None) or str(error)
            raise TemplateError(f"syntax error in the template {source!r}: {message}") from error

    def __call__(self, variables: dict[str, t.Any]) -> t.Any:
        """Its value in a scope (``Environment.scope``). TemplateError says what is wrong, without a place."""
        try:
            return self._value(variables)
        except Exception as error:
            raise TemplateError(_message(error)) from error

    def _value(self, variables: dict[str, t.Any]) -> t.Any:
        if self._template is None:
            parts: _Parts = self._parts or ()
            if self._native:
                return self._look_up(parts[0], variables)
            return "".join(
                part if isinstance(part, str) else str(_finalize(self._look_up(part, variables))) for part in parts
            )
        # `shared` spares a copy of the scope for each string; an expression cannot write to it.
        context = self._template.new_context(variables, shared=True)
        if not self._native:
            return "".join(self._template.root_render_func(context))
        for _nothing in self._template.root_render_func(context):
            pass
        value = context.vars["result"]
        if isinstance(value, jinja2.Undefined):
            value._fail_with_undefined_error()
        return list(value) if isinstance(value, t.Iterator) else value

    def _look_up(self, keys: str | tuple[str, ...], variables: dict[str, t.Any]) -> t.Any:
        try:
            value = variables[keys[0]]
        except KeyError:
            value = self._environment.undefined(name=keys[0])
        for key in keys[1:]:
            value = self._environment.getattr(value, key)
        if isinstance(value, jinja2.Undefined):
            value._fail_with_undefined_error()
        return value


def _single_expression(tree: jinja2.nodes.Template) -> jinja2.nodes.Expr | None:
    if len(tree.body) != 1 or not isinstance(tree.body[0], jinja2.nodes.Output):
        return None
    parts = tree.body[0].nodes
    return parts[0] if len(parts) == 1 and not isinstance(parts[0], jinja2.nodes.TemplateData) else None


def _message(error: BaseException) -> str:
    """What went wrong, in words: the innermost of Ansible's chained errors, without Python's class names."""
    if isinstance(error, TemplateError):
        return error.message
    if isinstance(error, jinja2.UndefinedError):
        return str(error.message).replace(f"{__name__.rpartition('.')[0]}.", "")
    text = str(error).strip() or type(error).__name__
    return (
        text
        if isinstance(error, jinja2.TemplateError) or "Ansible" in type(error).__name__
        else f"{type(error).__name__}: {text}"
    )


def _line_of(error: BaseException, file: str) -> tuple[str, int]:
    """File and line of the innermost template frame: Jinja rewrites tracebacks to the templates' own lines."""
    place = (file, 0)
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name == file or ("/templates/" in name and not name.endswith(".py")):
            place = (name, trace.tb_lineno)
        trace = trace.tb_next
    return place


def is_template(value: str) -> bool:
    """Whether a string has anything for Jinja in it."""
    return "{{" in value or "{%" in value or "{#" in value


@functools.cache
def environment() -> Environment:
    """The one environment of this process: its compiled templates are shared by all hosts."""
    return Environment()


# --- data with templates in it ---------------------------------------------------------------------------------------


class Compiled:
    """Plain data whose strings may be templates, compiled once and resolved for each service.

    ``names`` are the variables that the templates use. Parts without templates are shared between results: whoever
    merges results copies what it changes.
    """

    __slots__ = ("_tree", "errors", "names")

    def __init__(self, environment: Environment, value: t.Any, trusted: t.Callable[[str], bool] | None = None) -> None:
        """``trusted`` answers whether a string may be rendered; without it all may (a role's own files)."""
        names: set[str] = set()
        #: Strings that do not compile: (path, message).
        self.errors: list[tuple[tuple[str | int, ...], str]] = []

        def compile_(part: t.Any, path: tuple[str | int, ...]) -> t.Any:
            if isinstance(part, str):
                if not is_template(part) or (trusted and not trusted(part)):
                    return str(part)
                try:
                    expression = environment.expression(str(part))
                except TemplateError as error:
                    self.errors.append((path, error.message))
                    return str(part)
                names.update(expression.names)
                return expression
            if isinstance(part, dict):
                pairs = {str(key): compile_(entry, (*path, str(key))) for key, entry in part.items()}
                return _Map(pairs) if any(type(entry) in _DYNAMIC for entry in pairs.values()) else pairs
            if isinstance(part, list | tuple):
                entries = [compile_(entry, (*path, index)) for index, entry in enumerate(part)]
                return _List(entries) if any(type(entry) in _DYNAMIC for entry in entries) else entries
            return _scalar(part)

        self._tree = compile_(value, ())
        self.names = frozenset(names)

    def resolve(
        self,
        variables: dict[str, t.Any],
        failed: t.Callable[[tuple[str | int, ...], str], None],
        only: str | None = None,
    ) -> t.Any:
        """The data with all templates resolved; with ``only``, a mapping with that key alone (or nothing).

        Each template that fails is given to ``failed`` (path, message) and becomes None.
        """
        if only is None:
            return _resolve(self._tree, variables, failed, ())
        return {only: _resolve(self._tree[only], variables, failed, (only,))} if only in self._tree else {}


class _Map(dict[str, t.Any]):
    """A mapping with a template somewhere inside."""


class _List(list[t.Any]):
    """A list with a template somewhere inside."""


_DYNAMIC = (Expression, _Map, _List)


def _scalar(value: t.Any) -> t.Any:
    """An untagged int, float ...: tagged ones are subclasses that pydantic and JSON treat differently."""
    if value is None or isinstance(value, bool):
        return value
    for base in (int, float):
        if isinstance(value, base):
            return base(value)
    return value


def _resolve(
    tree: t.Any,
    variables: dict[str, t.Any],
    failed: t.Callable[[tuple[str | int, ...], str], None],
    path: tuple[str | int, ...],
) -> t.Any:
    kind = type(tree)
    if kind is Expression:
        try:
            return tree(variables)
        except TemplateError as error:
            failed(path, error.message)
            return None
    if kind is _Map:
        return {
            key: _resolve(value, variables, failed, (*path, key)) if type(value) in _DYNAMIC else value
            for key, value in tree.items()
        }
    if kind is _List:
        return [_resolve(value, variables, failed, (*path, index)) for index, value in enumerate(tree)]
    return tree
