"""Rules for Python sources. Each takes text and returns findings, so that tests can plant violations."""

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

FUNCTION_LINES_SOFT, FUNCTION_LINES_HARD = 40, 60
MODULE_LINES_SOFT, MODULE_LINES_HARD = 400, 600
CLASS_LINES_HARD = 200
ARGUMENTS_HARD = 5

FORBIDDEN_WORDS = frozenset({"manager", "helper", "util", "misc", "chunk", "page"})
NAMES_OF_OTHERS = {
    "mount_helper": "mount(8)'s own term for mount.TYPE programs",
    "parse_helper": "mount(8)'s own term for mount.TYPE programs",
    "page_cache": "the kernel's page cache",
    "keep_page_cache": "the kernel's page cache",
    "page_size_bytes": "vLLM's attribute",
    "cpu_page_size": "vLLM's argument",
    "cpu_page_size_per_worker": "vLLM's attribute",
    "num_chunks": "vLLM's argument",
    "kv_bytes_per_chunk": "vLLM's argument",
    "blocks_per_chunk": "vLLM's attribute",
}
SIGNATURES_OF_OTHERS = {"rename": "pyfuse3.Operations.rename has six arguments"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Finding(NamedTuple):
    """One broken rule: where, and what to do about it."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def _functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def oversized(path: str, text: str) -> list[Finding]:
    """Functions, classes and modules over their hard bar."""
    tree = ast.parse(text)
    found = []
    module_lines = len(text.splitlines())
    if module_lines > MODULE_LINES_HARD:
        found.append(Finding(path, f"module of {module_lines} lines, at most {MODULE_LINES_HARD}"))
    for node in ast.walk(tree):
        if isinstance(node, Function) and _lines(node) > FUNCTION_LINES_HARD:
            found.append(Finding(f"{path}:{node.lineno}", f"{node.name} has {_lines(node)} lines, at most 60"))
        if isinstance(node, ast.ClassDef) and _lines(node) > CLASS_LINES_HARD:
            found.append(Finding(f"{path}:{node.lineno}", f"class {node.name} has {_lines(node)} lines, at most 200"))
    return found


def large(path: str, text: str) -> list[Finding]:
    """Functions and modules between the soft and the hard bar: reported, not failed."""
    found = []
    module_lines = len(text.splitlines())
    if MODULE_LINES_SOFT < module_lines <= MODULE_LINES_HARD:
        found.append(Finding(path, f"module of {module_lines} lines"))
    for node in _functions(ast.parse(text)):
        if FUNCTION_LINES_SOFT < _lines(node) <= FUNCTION_LINES_HARD:
            found.append(Finding(f"{path}:{node.lineno}", f"{node.name} has {_lines(node)} lines"))
    return found


def _is_command(node: Function) -> bool:
    """A typer command or callback: its arguments are the options of a command line, not a signature."""
    decorators = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return any(isinstance(d, ast.Attribute) and d.attr in {"command", "callback"} for d in decorators)


def long_signatures(path: str, text: str) -> list[Finding]:
    """Functions with more than five arguments besides self and cls."""
    found: list[Finding] = []
    if path.endswith("_commands.py"):  # all functions there are commands, registered by another module
        return found
    for node in _functions(ast.parse(text)):
        arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len([name for name in arguments if name not in {"self", "cls"}])
        if count > ARGUMENTS_HARD and node.name not in SIGNATURES_OF_OTHERS and not _is_command(node):
            found.append(Finding(f"{path}:{node.lineno}", f"{node.name} takes {count} arguments, at most 5"))
    return found


def _public_definitions(body: list[ast.stmt]) -> Iterator[Function | ast.ClassDef]:
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public_definitions(node.body)


def _is_overload(node: Function) -> bool:
    return any(isinstance(d, ast.Name) and d.id in {"overload", "override"} for d in node.decorator_list)


def _unannotated(node: Function) -> list[str]:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    bare = [a.arg for a in arguments if a is not None and a.annotation is None and a.arg not in {"self", "cls"}]
    return [*bare, *([] if node.returns is not None else ["return"])]


def undocumented(path: str, text: str) -> list[Finding]:
    """Public modules, classes and functions without a docstring, or with an argument that has no type."""
    tree = ast.parse(text)
    found = [] if ast.get_docstring(tree) else [Finding(path, "module without a docstring")]
    for node in _public_definitions(tree.body):
        where = f"{path}:{node.lineno}"
        if not ast.get_docstring(node) and not (isinstance(node, Function) and _is_overload(node)):
            found.append(Finding(where, f"{node.name} has no docstring"))
        if isinstance(node, Function) and (bare := _unannotated(node)):
            found.append(Finding(where, f"{node.name} lacks types: {', '.join(bare)}"))
    return found


def _defined_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def _words(name: str) -> set[str]:
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    words = {part.lower() for part in parts}
    return words | {word.removesuffix("s") for word in words}


def vague_names(path: str, text: str) -> list[Finding]:
    """Names that say nothing (manager, helper, util, misc) or that engines own (chunk, page)."""
    module = path.rsplit("/", 1)[-1].removesuffix(".py")
    names = [(module, 1), *_defined_names(ast.parse(text))]
    return [
        Finding(f"{path}:{line}", f"name {name!r} uses {', '.join(sorted(bad))}")
        for name, line in names
        if (bad := _words(name) & FORBIDDEN_WORDS) and name.strip("_").lower() not in NAMES_OF_OTHERS
    ]


_IGNORE = re.compile(r"#\s*(noqa|type:\s*ignore)\b(:\s*[A-Z0-9, ]+|\[[a-z0-9, -]+\])?(?P<reason>.*)")


def unreasoned_ignores(path: str, text: str) -> list[Finding]:
    """`noqa` and `type: ignore` comments without a code, or without a reason behind it."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        match = _IGNORE.search(line)
        if match and (match.group(2) is None or not re.search(r"[a-z]{3}", match.group("reason"))):
            found.append(Finding(f"{path}:{number}", f"{match.group(1)} without a code and a reason"))
    return found


def module_name(path: str) -> str:
    """Dotted import name of a source path: daemon/ and tools/ are source roots, not packages."""
    parts = path.removesuffix(".py").split("/")
    if parts[0] in {"daemon", "tools"}:
        parts = parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: str, text: str) -> set[str]:
    package = module_name(path).split(".")
    if not path.endswith("__init__.py"):
        package = package[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 100:
            names.add(node.value)  # `python -m NAME` and scripts that are run by file name
    return names


def dead_modules(sources: dict[str, str], other_text: str) -> list[Finding]:
    """Modules that nothing imports, runs or names as an entry point.

    `sources` maps path to text; `other_text` is where else a dotted name may stand (pyproject.toml, shell scripts).
    """
    used: dict[str, set[str]] = {path: _imported(path, text) for path, text in sources.items()}
    found = []
    for path in sources:
        name = module_name(path)
        if path.endswith(("__init__.py", "__main__.py")):
            continue
        folder, _, file = path.rpartition("/")
        used_by = [user for user, names in used.items() if user != path and {name, file} & names]
        # scripts that run outside the package find each other by plain names
        used_by += [user for user, names in used.items() if user.startswith(f"{folder}/run_") and file[:-3] in names]
        if name not in other_text and not used_by:
            found.append(Finding(path, f"nothing imports or runs {name}"))
    return found
