"""mypy over our modules with the stubs of one generation of NVIDIA's libraries, and a look at what mypy passes over.

mypy alone would not do: it says nothing about what it takes for Any, about code that it takes for unreachable, and
about what a comment silences. So for each attribute and each call in the watched modules it is asked afterwards which
types it found, and where it found none, that is a problem too. Dropped results are another: TensorRT says with False,
and CUDA with a code, that something failed.

With that every name, argument, property and enum member of NVIDIA's that we use is checked, wherever it stands, and no
walk of our own over the source is needed but the one that finds the modules which import the libraries.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from inspect import isgetsetdescriptor
from pathlib import Path

from mypy import build, nodes, types
from mypy.main import process_options
from mypy.modulefinder import BuildSource

ROOT = Path(__file__).parents[2]
VENDORS = ("tensorrt", "tensorrt_lean", "cuda")
UNCHECKED = ("getattr", "setattr", "hasattr", "delattr", "vars", "eval", "exec")
# What leads from a node to another part of the tree, and what mypy does not take for expressions.
LINKS = {"node", "info", "base_type_exprs", "removed_base_type_exprs", "decorators", "original_decorators", "metaclass"}
FLAGS = ("--strict", "--follow-imports=silent", "--hide-error-context", "--no-pretty")
STRICTER = ("disallow_any_explicit", "disallow_any_unimported", "warn_unreachable")
UNRELATED = ("torch", "diffusers", "tokenizers")
SKIPPED = {"follow_imports": "skip", "ignore_missing_imports": True}
# Either library may be installed, and both offer the same: the names are those of the first.
EITHER = re.compile(r"\s*import tensorrt_lean as \w+")


@dataclass(frozen=True)
class Source:
    """One of our modules. ``watched``: it uses NVIDIA's libraries itself, so nothing in it may go unchecked."""

    path: Path
    module: str
    watched: bool


def problems(sources: Sequence[Source], stubs: Path, cache: Path) -> list[str]:
    """What is wrong with the sources where NVIDIA's libraries are as in ``stubs``, as ``path:line: message``."""
    watched = [source for source in sources if source.watched]
    texts = {source.path: source.path.read_text(encoding="utf-8") for source in sources}
    configuration = f"--config-file={ROOT / 'pyproject.toml'}"
    _, options = process_options([configuration, f"--cache-dir={cache}", *FLAGS, str(ROOT)])
    options.mypy_path = [str(stubs), *(str(ROOT / part) for part in ("runtime", "export", "training", ""))]
    options.export_types = options.preserve_asts = True
    # what pyproject.toml excuses, as nobody has NVIDIA's types, is not excused here
    for name in [n for n in options.per_module_options if n.startswith((*VENDORS, "declip"))]:
        del options.per_module_options[name]
    options.per_module_options |= {source.module: dict.fromkeys(STRICTER, True) for source in watched}
    # the schedulers of the generation: gigabytes of types that no call of NVIDIA's has to do with
    options.per_module_options |= {f"{name}.*": SKIPPED for name in UNRELATED}
    # with its text given, a module is looked at now; one without may come from the cache, which knows no expressions
    given = [BuildSource(str(source.path), source.module, texts[source.path]) for source in sources]
    result = build.build(given, options)
    found = [text for text in result.errors if ": error: " in text and _concerns(text, texts)]
    for source in watched:
        tree = result.graph[source.module].tree
        assert tree is not None
        place = os.path.relpath(source.path)  # as mypy writes it
        found += [f"{place}:{line}: {message}" for line, message in sorted({*_Look(tree, result.types).found})]
    return found


def _concerns(error: str, texts: dict[Path, str]) -> bool:
    """Whether it is about one of our modules (the stubs have errors too), and not about one name for either library."""
    path, line = error.split(":")[:2]
    text = texts.get(Path(path).absolute())
    return text is not None and not ("[no-redef]" in error and EITHER.match(text.splitlines()[int(line) - 1]))


class _Look:
    """What is not checked in a module, of all that mypy has read."""

    def __init__(self, tree: nodes.MypyFile, known: dict[nodes.Expression, types.Type]) -> None:
        self._known = known
        self.found = [(line, "'type: ignore' hides what is wrong") for line in tree.ignored_lines]
        all_nodes = list(_below(tree))
        # ``del a.b`` has no type, and of ``a.B.c`` with a class B the whole is looked up at once
        without = {node.expr for node in all_nodes if isinstance(node, nodes.DelStmt)}
        without |= {n.expr for n in all_nodes if isinstance(n, nodes.MemberExpr) and n.kind is not None and n in known}
        for node in all_nodes:
            if isinstance(node, nodes.MemberExpr | nodes.CallExpr) and node not in known and node not in without:
                self._complain(node, "mypy does not look at this: it takes it for unreachable")
            elif isinstance(node, nodes.MemberExpr):
                self._look_at_attribute(node)
            elif isinstance(node, nodes.CallExpr):
                self._look_at_call(node)
            elif isinstance(node, nodes.ExpressionStmt) and isinstance(node.expr, nodes.CallExpr):
                self._look_at_statement(node.expr)

    def _look_at_attribute(self, node: nodes.MemberExpr) -> None:
        receiver = self._type(node.expr)
        if receiver is not None and _holds_any(receiver):
            self._complain(node, f"mypy does not know what it is that has the attribute {node.name!r}")
        elif isinstance(self._type(node), types.AnyType):
            self._complain(node, f"mypy does not know what the attribute {node.name!r} is")
        elif isinstance(self._type(node), types.UninhabitedType):
            self._complain(node, f"the attribute {node.name!r} cannot be read")

    def _look_at_call(self, node: nodes.CallExpr) -> None:
        callee = self._type(node.callee)
        if callee is not None and _holds_any(callee):
            self._complain(node, "mypy does not know what is called")
        if isinstance(node.callee, nodes.NameExpr) and node.callee.fullname.removeprefix("builtins.") in UNCHECKED:
            self._complain(node, f"mypy cannot check what {node.callee.name} does")

    def _look_at_statement(self, call: nodes.CallExpr) -> None:
        callee = call.callee
        if not isinstance(callee, nodes.NameExpr | nodes.MemberExpr) or isinstance(self._type(call), types.NoneType):
            return
        receiver = self._type(callee.expr) if isinstance(callee, nodes.MemberExpr) else None
        of = receiver.type.module_name if isinstance(receiver, types.Instance) else ""
        if {of.partition(".")[0], callee.fullname.partition(".")[0]} & {*VENDORS}:
            self._complain(call, f"the result of {callee.name!r} is dropped, and with it what failed")

    def _type(self, expression: nodes.Expression) -> types.ProperType | None:
        kind = self._known.get(expression)
        return None if kind is None else types.get_proper_type(kind)

    def _complain(self, node: nodes.Context, message: str) -> None:
        self.found.append((node.line, message))


def _below(root: nodes.Node) -> Iterator[nodes.Node]:
    """All nodes of the tree. (mypy is compiled: its visitors cannot be subclassed.)"""
    queue: list[object] = [root]
    seen: set[int] = set()
    while queue:
        node = queue.pop()
        if isinstance(node, list | tuple):
            queue += node
        elif isinstance(node, nodes.Node) and not isinstance(node, nodes.TypeInfo | nodes.Var) and id(node) not in seen:
            seen.add(id(node))
            yield node
            names = {n for cls in type(node).__mro__ for n, value in vars(cls).items() if isgetsetdescriptor(value)}
            for name in names - LINKS:
                with suppress(AttributeError, AssertionError):  # some are there for some nodes only
                    queue.append(getattr(node, name))


def _holds_any(kind: types.ProperType) -> bool:
    parts = types.flatten_nested_unions([kind]) if isinstance(kind, types.UnionType) else [kind]
    return any(isinstance(types.get_proper_type(part), types.AnyType) for part in parts)


def using(folders: Collection[Path]) -> list[Path]:
    """The Python files in the folders that import one of NVIDIA's libraries, in whatever way and wherever they do."""
    return sorted(path for folder in folders for path in folder.rglob("*.py") if _uses(ast.parse(path.read_bytes())))


def _uses(module: ast.Module) -> bool:
    names: list[str] = []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module or "")
        elif isinstance(node, ast.Call) and re.search(r"import|find_spec", ast.unparse(node.func)):
            given = (*node.args, *(keyword.value for keyword in node.keywords))
            names += [str(value.value) for value in given if isinstance(value, ast.Constant)]
        elif isinstance(node, ast.Constant) and re.search(r"[_.]", str(node.value)):  # else "cuda" is a device
            names.append(str(node.value))
    return any(re.fullmatch(rf"({'|'.join(VENDORS)})(\.\w+)*", name) for name in names)


def needs_the_builder(path: Path) -> bool:
    """Whether the module imports the whole of TensorRT where it runs and would not take the lean runtime instead."""
    module = ast.parse(path.read_bytes())
    either = [node for node in ast.walk(module) if isinstance(node, ast.Try) and "tensorrt_lean" in ast.unparse(node)]
    typing = [node for node in ast.walk(module) if isinstance(node, ast.If) and "TYPE_CHECK" in ast.unparse(node.test)]
    within = {id(inner) for node in (*either, *typing) for inner in ast.walk(node)}
    imports = [node for node in ast.walk(module) if isinstance(node, ast.Import) and id(node) not in within]
    return any(alias.name == "tensorrt" for node in imports for alias in node.names)
