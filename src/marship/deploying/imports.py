"""What a Python file imports, and which of it the file can do without.

Without running it: an archive's handler is read before anybody trusts it.
"""

import ast
from collections.abc import Iterator

_ABSENCES = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
_MACHINE = {("sys", "platform"), ("sys", "version_info"), ("os", "name")} | {
    ("platform", name) for name in ("system", "machine", "python_implementation")
}
"""What a file asks before it imports what is for some machines or versions of Python."""
_MAIN = {
    ast.dump(ast.parse(text, mode="eval").body)
    for text in ("__name__ == '__main__'", "'__main__' == __name__")
}


def read(source: bytes) -> Iterator[tuple[str, bool]]:
    """What a file imports, wherever that stands, and whether the file can do without.

    Raises:
        SyntaxError: It is not Python.

    Example:
        >>> list(read(b"import numpy, yaml"))
        [('numpy', False), ('yaml', False)]
    """
    tree = ast.parse(source)
    sought = set(_sought(tree))
    machine = set(_of_machine(tree))
    for node, is_optional in _statements(tree, machine):
        for name in _names(node):
            yield name, is_optional or name.partition(".")[0] in sought


def _names(node: ast.AST) -> list[str]:
    """What one part of a file imports by itself."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        is_own = node.level or not node.module
        return [] if is_own else [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and _named(node.func) in ("import_module", "__import__"):
        name = _first(node)
        return [] if name is None or name.startswith(".") else [name]
    return []


def _sought(tree: ast.AST) -> Iterator[str]:
    """Modules that a file looks for before it imports them: `find_spec("NAME")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _named(node.func) == "find_spec":
            name = _first(node)
            if name is not None:
                yield name.partition(".")[0]


def _first(call: ast.Call) -> str | None:
    """The text that a call is given as `name`, or first."""
    given = [word.value for word in call.keywords if word.arg in ("name", "fullname")]
    for value in [*call.args[:1], *given]:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return value.value
    return None


def _of_machine(tree: ast.AST) -> Iterator[str]:
    """The file's names for what it asks about its machine: imported, or noted before."""
    known: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = {a.asname or a.name for a in node.names if (node.module, a.name) in _MACHINE}
            known |= names
            yield from names
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if _asks_machine(node.value, known):
                yield from (target.id for target in targets if isinstance(target, ast.Name))


def _asks_machine(condition: ast.AST, names: set[str]) -> bool:
    for part in ast.walk(condition):
        if isinstance(part, ast.Attribute) and (_named(part.value), part.attr) in _MACHINE:
            return True
        if isinstance(part, ast.Name) and part.id in names:
            return True
    return False


def _statements(
    node: ast.AST, machine: set[str], *, is_optional: bool = False
) -> Iterator[tuple[ast.AST, bool]]:
    """The parts of a file, but those for type checkers and for who runs it itself."""
    yield node, is_optional
    is_never = isinstance(node, ast.If) and _is_never(node.test)
    is_optional = is_optional or _bears_absence(node, machine)
    for child in node.orelse if is_never else ast.iter_child_nodes(node):  # type: ignore[attr-defined]
        yield from _statements(child, machine, is_optional=is_optional)


def _is_never(test: ast.expr) -> bool:
    """Whether a condition is of type checkers, or of `python FILE`."""
    if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Eq):
        return ast.dump(test) in _MAIN
    return _named(test) == "TYPE_CHECKING"


def _bears_absence(node: ast.AST, machine: set[str]) -> bool:
    """Whether a statement goes on where an import in it fails, or is not for every machine."""
    if isinstance(node, ast.If | ast.IfExp):
        return _asks_machine(node.test, machine)
    if isinstance(node, ast.Match):
        return _asks_machine(node.subject, machine)
    if isinstance(node, ast.Try | ast.TryStar):
        return any(
            bool(_caught(handler.type) & _ABSENCES)
            and not any(isinstance(part, ast.Raise) for part in ast.walk(handler))
            for handler in node.handlers
        )
    if isinstance(node, ast.With):
        calls = [item.context_expr for item in node.items]
        return any(
            isinstance(call, ast.Call)
            and _named(call.func) == "suppress"
            and any(_caught(given) & _ABSENCES for given in call.args)
            for call in calls
        )
    return False


def _caught(kind: ast.expr | None) -> set[str | None]:
    """The names of the exceptions that are caught; all where none is named."""
    if kind is None:
        return {"Exception"}
    return {_named(one) for one in (kind.elts if isinstance(kind, ast.Tuple) else [kind])}


def _named(node: ast.expr) -> str | None:
    """What `NAME` and `module.NAME` name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None
