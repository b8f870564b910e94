"""Python code that the user names in a recipe: found, hashed, copied and called, never pickled.

``file.py:callable`` names a file beside the recipe; the local modules it imports travel with it, so that an artifact
can be rebuilt after the user's files have moved on. ``package.module:callable`` names installed code, which is known
by its distribution's version; a module that Python finds outside its directories of installed packages can change
without a new version, and is known by its sources.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack import canonical
from modelpack.errors import StageError, UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import ModuleType


def split(reference: str) -> tuple[str, str]:
    """Split ``where:callable``.

    >>> split("nets.py:build")
    ('nets.py', 'build')

    Raises:
        UsageError: When a part is missing.
    """
    where, _, name = reference.rpartition(":")
    if not where or not name.isidentifier():
        raise UsageError(
            f"'{reference}' names no callable", then="write 'file.py:callable' or 'package.module:callable'"
        )
    return where, name


def closure(reference: str, base: Path) -> dict[str, bytes]:
    """Collect the source files behind a reference: the named file and every local module it imports, recursively.

    Args:
        reference: ``file.py:callable`` or ``package.module:callable``.
        base: Directory that file names are relative to.

    Returns:
        POSIX name relative to `base` → bytes; empty for installed code.

    Raises:
        UsageError: When the file is missing, outside `base`, or not Python.
    """
    where, _ = split(reference)
    if not where.endswith(".py"):
        return {}
    root = (base / where).parent
    if Path(where).is_absolute() or ".." in Path(where).parts:
        raise UsageError(f"'{where}' lies outside the recipe's directory", then="move it beside the recipe")
    found: dict[str, bytes] = {}
    queue = [base / where]
    while queue:
        path = queue.pop()
        name = path.relative_to(base).as_posix()
        if name in found:
            continue
        try:
            found[name] = path.read_bytes()
            tree = ast.parse(found[name], filename=str(path))
        except OSError as error:
            raise UsageError(f"cannot read '{path}': {error.strerror}") from error
        except SyntaxError as error:
            raise UsageError(f"not valid Python: {error.msg}", where=f"{path}:{error.lineno}") from error
        for module in _imported(tree, path.relative_to(root).parent.parts):
            queue += _local_files(root, module)
    return dict(sorted(found.items()))


def _imported(tree: ast.AST, package: tuple[str, ...] = ()) -> set[str]:
    """List the modules that a file imports, by absolute name; ``from a import b`` counts as both ``a`` and ``a.b``.

    Args:
        tree: The file.
        package: The package that it belongs to, which relative imports start from.
    """
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level <= len(package):
            above = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*above, *([node.module] if node.module else [])])
            names |= {stem, *(f"{stem}.{alias.name}" for alias in node.names)}
    return names


def _local_files(root: Path, module: str) -> list[Path]:
    """Find the files below `root` that importing a module runs: its packages' ``__init__`` and itself."""
    parts = module.split(".")
    files = []
    for depth in range(1, len(parts) + 1):
        stem = root.joinpath(*parts[:depth])
        files += [path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()]
    return files


def identity(reference: str, base: Path) -> dict[str, Any]:
    """Give the identity of a callable: the hash of its files, and versions of the distributions they import.

    Raises:
        UsageError: When the code cannot be found.
    """
    files = closure(reference, base)
    where, _ = split(reference)
    if not files:
        if importlib.util.find_spec(where.partition(".")[0]) is None:
            raise UsageError(
                f"no module '{where}' is installed", then="install it, or name a file.py beside the recipe"
            )
        return {"callable": reference, "versions": versions({where}), **_loose(where.partition(".")[0])}
    imported = set().union(*(_imported(ast.parse(source)) for source in files.values()))
    return {
        "callable": reference,
        "files": canonical.digest({k: v.decode() for k, v in files.items()}),
        "versions": versions(imported),
    }


def _loose(top: str) -> dict[str, str]:
    """Hash the sources of a module that no installation put in its place; empty for any other."""
    spec = None if top in sys.stdlib_module_names else importlib.util.find_spec(top)
    places = [Path(place) for place in (spec.submodule_search_locations or [spec.origin or ""])] if spec else []
    files = [file for place in places for file in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]
    hashes = [canonical.file_digest(file) for file in files if file.suffix == ".py" and not _installed(file)]
    return {"files": canonical.digest(hashes)} if hashes else {}


def _installed(file: Path) -> bool:
    return any(part in ("site-packages", "dist-packages") for part in file.parts)


@functools.cache
def _owners() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def versions(modules: set[str]) -> dict[str, str]:
    """Map the distributions behind module names to their major.minor versions; the standard library has none."""
    tops = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    names = {owner for top in tops for owner in _owners().get(top, [])} if tops else set()
    return {name: minor_version(name) for name in sorted(names)}


def minor_version(distribution: str) -> str:
    """Give a distribution's major.minor version, or ``absent``."""
    try:
        return ".".join(importlib.metadata.version(distribution).split("+")[0].split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def load(reference: str, base: Path) -> Callable[..., Any]:
    """Import a callable; a file's local imports resolve beside it.

    Raises:
        StageError: When importing fails or the name is not callable, with the reason.
    """
    where, name = split(reference)
    try:
        module = _load_file(base / where) if where.endswith(".py") else importlib.import_module(where)
    except (Exception, SystemExit) as error:
        raise StageError(f"importing it failed: {type(error).__name__}: {error}", where=where) from error
    target = getattr(module, name, None)
    if not callable(target):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise StageError(f"has no callable '{name}'", where=where, then=did_you_mean(name, known))
    return _among_siblings(target, (base / where).parent) if where.endswith(".py") else target


def _among_siblings(function: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Let a function import its file's siblings when it is called, too; it must not end the process."""

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        with _within(folder):
            result = function(*args, **kwargs)
        return _stepped(result, folder) if inspect.isgenerator(result) else result

    return called


def _stepped(generator: Iterator[Any], folder: Path) -> Iterator[Any]:
    """Give what a generator gives; its code runs only now, a step at a time."""
    while True:
        with _within(folder):
            try:
                item = next(generator)
            except StopIteration:
                return
        yield item


@contextlib.contextmanager
def _within(folder: Path) -> Iterator[None]:
    try:
        with _siblings(folder):
            yield
    except SystemExit as error:
        raise RuntimeError(f"it called exit({error.code!r})") from error


@contextlib.contextmanager
def _siblings(folder: Path) -> Iterator[None]:
    """Make the modules in a directory importable for a while, leaving nothing behind: neither names nor byte code."""
    before, writes = set(sys.modules), sys.dont_write_bytecode
    # Byte code beside an artifact's files would be a stranger among them.
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = writes
        # Local siblings must not stay importable under their plain names: the next file may bring others.
        for other in set(sys.modules) - before:
            file = Path(getattr(sys.modules[other], "__file__", None) or "")
            # A virtual environment may lie beside the recipe.
            local = file.is_relative_to(folder) and not _installed(file.relative_to(folder))
            if local and not other.startswith(_PRIVATE):
                del sys.modules[other]


_PRIVATE = "modelpack_user_"
"""Begins the names under which users' files are loaded."""


def _load_file(path: Path) -> ModuleType:
    # A private name per file: two recipes may each have a `net.py`, and artifacts carry old copies of both.
    name = f"{_PRIVATE}{canonical.digest(str(path.resolve()))[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _siblings(path.parent):
        try:
            sys.modules[name] = module
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module
