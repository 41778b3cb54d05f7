"""Classes of the contract as their source says them: fields with types and defaults, methods with signatures."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from reference.docstrings import Docstring, parse


@dataclass(frozen=True)
class Attribute:
    """A field or a property; `default` is None where one must be given."""

    name: str
    type: str
    default: str | None
    meaning: str


@dataclass(frozen=True)
class Method:
    """A method, its signature without `self`."""

    name: str
    signature: str
    doc: Docstring


@dataclass(frozen=True)
class ClassDoc:
    """One class.

    Attributes:
        name: of the class.
        doc: its docstring.
        attributes: fields and properties, in the order of the source.
        methods: public ones, in the order of the source.
    """

    name: str
    doc: Docstring
    attributes: tuple[Attribute, ...]
    methods: tuple[Method, ...]


def read_class(cls: type[Any]) -> ClassDoc:
    """Read one class; what it inherits is not included."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    doc = parse(ast.get_docstring(node, clean=False))
    listed = doc.meanings("Attributes")
    attributes: list[Attribute] = []
    methods: list[Method] = []
    for position, part in enumerate(node.body):
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            if part.target.id.startswith("_") or "ClassVar" in ast.unparse(part.annotation):
                continue
            meaning = listed.get(part.target.id) or _docstring_after(node.body, position)
            attributes.append(Attribute(part.target.id, ast.unparse(part.annotation), _default(part.value), meaning))
        elif isinstance(part, ast.FunctionDef):
            own = parse(ast.get_docstring(part, clean=False))
            if _is_property(part):
                kind = ast.unparse(part.returns) if part.returns else ""
                attributes.append(Attribute(part.name, kind, None, listed.get(part.name) or own.text))
            elif not part.name.startswith("_") or part.name == "__call__":
                methods.append(Method(part.name, signature(part), own))
    if issubclass(cls, Exception):
        methods.insert(0, _constructor(cls))
    return ClassDoc(node.name, doc, tuple(attributes), tuple(methods))


def _constructor(error: type[Exception]) -> Method:
    """How an error is made: its own `__init__`, or the one that it inherits, with what the docstring of that class says
    of the arguments."""
    owner = next(cls for cls in error.__mro__ if "__init__" in vars(cls))
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(owner.__init__))).body
    assert isinstance(node, ast.FunctionDef)
    node.name, node.returns = error.__name__, None
    items: dict[str, str] = {}
    for cls in reversed(owner.__mro__):
        items |= parse(vars(cls).get("__doc__")).meanings("Args")
    given = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
    known = {name: meaning for name, meaning in items.items() if name in given}
    return Method(error.__name__, signature(node), Docstring(items={"Args": known}))


def read_functions(module: ModuleType) -> tuple[Method, ...]:
    """Public functions of a module, in the order of the source."""
    body = ast.parse(inspect.getsource(module)).body
    functions = [part for part in body if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")]
    return tuple(Method(part.name, signature(part), parse(ast.get_docstring(part, clean=False))) for part in functions)


def read_constants(module: ModuleType) -> tuple[Attribute, ...]:
    """Public names of a module with a docstring under them; `type` is what they are set to."""
    body = ast.parse(inspect.getsource(module)).body
    found = []
    for position, part in enumerate(body):
        target = part.targets[0] if isinstance(part, ast.Assign) else getattr(part, "target", None)
        if not isinstance(part, ast.Assign | ast.AnnAssign) or not isinstance(target, ast.Name) or part.value is None:
            continue
        meaning = _docstring_after(body, position)
        if meaning and not target.id.startswith("_"):
            found.append(Attribute(target.id, ast.unparse(part.value), None, meaning))
    return tuple(found)


def signature(node: ast.FunctionDef) -> str:
    """`name(a: int, *, b: str = '') -> float`, without `self` and `cls`."""
    arguments = node.args
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        arguments.args = arguments.args[1:]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(arguments)}){returns}"


def _is_property(node: ast.FunctionDef) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)


def _docstring_after(body: list[ast.stmt], position: int) -> str:
    """The string that stands under a field."""
    following = body[position + 1] if position + 1 < len(body) else None
    if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
        value = following.value.value
        if isinstance(value, str):
            return " ".join(value.split())
    return ""


def _default(value: ast.expr | None) -> str | None:
    """A default as a reader takes it: `field(default_factory=dict)` is `{}`."""
    if value is None:
        return None
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        if "default" in given:
            return ast.unparse(given["default"])
        factory = ast.unparse(given["default_factory"])
        return {"dict": "{}", "list": "[]", "tuple": "()"}.get(factory, factory)
    return ast.unparse(value)
