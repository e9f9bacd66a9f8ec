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
_IMPORTERS = {("importlib", "import_module"), ("", "import_module"), ("", "__import__")}
_FINDERS = {"find_spec", "find_loader"}
_STEPS = 2


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
    for node, is_optional in _statements(tree, _Names(tree)):
        for name in _imported(node):
            yield name, is_optional or name.partition(".")[0] in sought


def _imported(node: ast.AST) -> list[str]:
    """What one part of a file imports by itself."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        is_own = node.level or not node.module
        return [] if is_own else [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and _called(node.func) in _IMPORTERS:
        name = _first(node) or ""
        return [name] if all(part.isidentifier() for part in name.split(".")) else []
    return []


def _sought(tree: ast.AST) -> Iterator[str]:
    """Modules that a file looks for before it imports them: `find_spec("NAME")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _named(node.func) in _FINDERS:
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


class _Names:
    """A file's names for its machine and for absent modules: imported, or noted before.

    Args:
        tree: The file.
    """

    def __init__(self, tree: ast.AST) -> None:
        nodes = list(ast.walk(tree))
        self._modules: dict[str, str] = {}
        self._machine: set[str] = set()
        for node in nodes:
            if isinstance(node, ast.Import):
                self._modules |= {a.asname: a.name for a in node.names if a.asname}
            elif isinstance(node, ast.ImportFrom):
                asked = [a for a in node.names if (node.module, a.name) in _MACHINE]
                self._machine |= {a.asname or a.name for a in asked}
        self._absences = set(_ABSENCES)
        assigned = [node for node in nodes if isinstance(node, ast.Assign | ast.AnnAssign)]
        for _ in range(_STEPS):  # one name may be noted by another
            for node in assigned:
                self._note(node)

    def _note(self, node: ast.Assign | ast.AnnAssign) -> None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        if node.value is None:
            return
        if self.asks_machine(node.value):
            self._machine |= names
        if isinstance(node.value, ast.Tuple) and self.has_absence(node.value):
            self._absences |= names

    def asks_machine(self, condition: ast.AST) -> bool:
        """Whether a condition is of the machine or the version of Python."""
        for part in ast.walk(condition):
            if isinstance(part, ast.Attribute):
                module = _named(part.value) or ""
                if (self._modules.get(module, module), part.attr) in _MACHINE:
                    return True
            elif isinstance(part, ast.Name) and part.id in self._machine:
                return True
        return False

    def has_absence(self, kind: ast.expr | None) -> bool:
        """Whether errors of this kind, all where none is named, are those of absent modules."""
        if kind is None:
            return True
        kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
        return any(_named(one) in self._absences for one in kinds)


def _statements(tree: ast.AST, names: _Names) -> Iterator[tuple[ast.AST, bool]]:
    """The parts of a file, but those for type checkers and for who runs it itself."""
    waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
    while waiting:  # not recursive: a sum of a thousand terms is as many parts deep
        node, is_optional = waiting.pop()
        yield node, is_optional
        is_optional = is_optional or _bears_absence(node, names)
        waiting += [(child, is_optional) for child in _parts(node)]


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of one, but those that no server runs."""
    always = _always(node.test) if isinstance(node, ast.If) else None
    if isinstance(node, ast.If) and always is not None:
        yield from [node.test, *(node.body if always else node.orelse)]
    else:
        yield from ast.iter_child_nodes(node)


def _always(test: ast.expr) -> bool | None:
    """What a condition is on every server; None if it depends."""
    if isinstance(test, ast.Constant):
        return bool(test.value)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = _always(test.operand)
        return None if inner is None else not inner
    if isinstance(test, ast.BoolOp):
        found, ends = {_always(value) for value in test.values}, isinstance(test.op, ast.Or)
        return ends if ends in found else (None if None in found else not ends)
    return False if _named(test) == "TYPE_CHECKING" or _is_main(test) else None


def _is_main(test: ast.expr) -> bool:
    """Whether a condition is `__name__ == "__main__"`."""
    if not (isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Eq)):
        return False
    sides = (test.left, test.comparators[0])
    found = {
        side.id if isinstance(side, ast.Name) else getattr(side, "value", "") for side in sides
    }
    return found == {"__name__", "__main__"}


def _bears_absence(node: ast.AST, names: _Names) -> bool:
    """Whether a statement goes on where an import in it fails, or is not for every machine."""
    if isinstance(node, ast.If | ast.IfExp):
        return names.asks_machine(node.test)
    if isinstance(node, ast.BoolOp):
        return names.asks_machine(node.values[0])
    if isinstance(node, ast.Match):
        return names.asks_machine(node.subject)
    if isinstance(node, ast.Try | ast.TryStar):
        return any(
            names.has_absence(handler.type)
            and not any(isinstance(part, ast.Raise) for part in handler.body)
            for handler in node.handlers
        )
    if isinstance(node, ast.With):
        calls = [item.context_expr for item in node.items]
        return any(
            isinstance(call, ast.Call)
            and _named(call.func) == "suppress"
            and any(map(names.has_absence, call.args))
            for call in calls
        )
    return False


def _called(function: ast.expr) -> tuple[str, str]:
    """The module that a function is taken from, empty where none is named, and its name."""
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return function.value.id, function.attr
    return "", function.id if isinstance(function, ast.Name) else ""


def _named(node: ast.expr) -> str | None:
    """What `NAME` and `module.NAME` name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None
