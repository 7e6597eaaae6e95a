"""The code that a network of one's own runs, as a fingerprint: its files, and their hashes.

It covers the module of the factory and every module of one's own that these import, wherever an
import statement stands, but not installed packages: their versions are taken instead. Code that
can't be found in this way is refused: compiled modules, and modules that are imported without a
statement. What no fingerprint sees is in docs/concepts.md ("A network of your own").
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Collection, Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path

from featurecache.errors import BadInput
from featurecache.text import one_line

_RECORDED = {"featurecache", "numpy", "timm", "torch"}  # their versions are in a shard's provenance
Sources = dict[str, tuple[str, frozenset[str]]]  # module -> SHA-256, and the libraries it imports


def sources_of(name: str, module_name: str) -> Sources:
    """The modules of one's own that `module_name` imports, directly or not, and itself: the SHA-256
    of the source, and the libraries that it imports."""
    top = module_name.partition(".")[0]
    sources: Sources = {}
    todo = [module_name]
    while todo:
        module = todo.pop()
        spec = _spec_of(module)
        if module in sources or spec is None:
            continue
        if spec.origin is None and spec.submodule_search_locations is not None:
            continue  # a folder without code of its own
        source = _source_of(name, module, spec)
        is_package = spec.submodule_search_locations is not None
        try:
            tree = ast.parse(source, spec.origin or module)
        except SyntaxError as error:
            raise BadInput(f"backbone {name}: {module} is not Python: {one_line(error)}") from error
        names = set(_imports(tree, module, is_package=is_package))
        # Asking for a package, unlike for a module in it, imports nothing.
        packages = {n.partition(".")[0] for n in names}
        libraries = {n for n in packages if (spec := _spec_of(n)) and _is_library(spec, top)}
        names = {n for n in names if n.partition(".")[0] not in libraries}
        sources[module] = hashlib.sha256(source).hexdigest(), frozenset(libraries)
        # The code of the packages around a module runs too.
        names |= {module.rpartition(".")[0]} if "." in module else set()
        todo += sorted(names)
    if module_name not in sources:
        raise BadInput(
            f"backbone {name}: there is no module {module_name} with Python source in "
            f"{Path.cwd()}, and none is installed"
        )
    return sources


def reason_in(name: str, error: Exception) -> str:
    """An error of the code of backbone `name`, with the last line of that code that ran."""
    reason = f"{type(error).__name__}: {one_line(error)}"
    specs = [_spec_of(module) for module in sources_of(name, name.partition(":")[0])]
    files = [spec.origin for spec in specs if spec is not None]
    lines = [
        f", in {frame.filename}, line {frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename in files
    ]
    return reason + "".join(lines[-1:])


def digests_of(sources: Sources) -> dict[str, str]:
    """The SHA-256 of each module, and the version of each library except of those that every shard
    records."""
    names = {library for _, libraries in sources.values() for library in libraries}
    names -= _RECORDED | set(sys.stdlib_module_names)
    packages = importlib.metadata.packages_distributions() if names else {}
    distributions = sorted({d for name in names for d in packages.get(name, ())})
    versions = {name: importlib.metadata.version(name) for name in distributions}
    return versions | {module: digest for module, (digest, _) in sources.items()}


def check_imports(name: str, known: Collection[str], code: Collection[str]) -> None:
    """Raise BadInput if a module of one's own was imported, beside the `known` ones, that is not in
    the fingerprint `code` of backbone `name`."""
    top = name.partition(":")[0].partition(".")[0]
    for module in sorted(set(sys.modules) - set(known) - set(code)):
        spec = _spec_of(module)
        if spec is not None and spec.origin is not None and not _is_library(spec, top):
            del sys.modules[module]  # so that the next load in this process sees it too
            raise BadInput(
                f"backbone {name}: its code imports {module} without an import statement, so it "
                "can't be fingerprinted; add one to the code that needs it"
            )


@contextlib.contextmanager
def fresh_modules(sources: Mapping[str, object]) -> Iterator[None]:
    """Import the modules that may have been edited since an earlier import of this process again,
    and put the earlier ones back at the end."""
    earlier = {}
    for module in sources:
        spec = _spec_of(module)
        if module in sys.modules and spec is not None and not _is_installed(spec):
            earlier[module] = sys.modules.pop(module)
    writes = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # Python takes stale bytecode if a file changed within a second
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        sys.modules.update(earlier)


def _source_of(name: str, module: str, spec: ModuleSpec) -> bytes:
    if spec.origin is not None and spec.origin.endswith(".py"):
        with contextlib.suppress(OSError):
            return Path(spec.origin).read_bytes()
    raise BadInput(
        f"backbone {name}: module {module} ({spec.origin}) has no Python source that could be "
        "fingerprinted; use a module that has"
    )


def _imports(tree: ast.Module, module: str, *, is_package: bool) -> Iterator[str]:
    """The modules that may be meant by the import statements of a source, in functions too."""
    parents = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            before = parents[: len(parents) - node.level + 1] if node.level else []
            start = ".".join([*before, *filter(None, [node.module])])
            yield start
            yield from (f"{start}.{alias.name}" for alias in node.names)


def _spec_of(module: str) -> ModuleSpec | None:
    if module in sys.modules:
        return getattr(sys.modules[module], "__spec__", None)
    try:
        return importlib.util.find_spec(module)
    except Exception:  # noqa: BLE001 - a name that is no module; importing a package around it
        return None


def _is_library(spec: ModuleSpec, top: str) -> bool:
    """Is this a module of Python, of an installed package, or of this one and the libraries that
    every network runs on, other than of the factory's own package `top`?"""
    package = spec.name.partition(".")[0]
    return package != top and (package in _RECORDED or _is_installed(spec))


def _is_installed(spec: ModuleSpec) -> bool:
    if spec.origin is None or not Path(spec.origin).is_absolute():  # built-in, frozen
        return spec.origin is not None
    path = Path(spec.origin)
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    return any(path.is_relative_to(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib"))
