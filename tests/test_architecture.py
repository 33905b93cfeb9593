"""The house's rules that a reader cannot see in one file: who may import whom, what never occurs.

Each rule reads the source; the last ones start an interpreter and look at what was imported.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRODUCT = ("server", "adapters_store", "training", "demo", "benchmarks")
SERVED = ("server", "adapters_store", "training")  # code that meets what a client sent

# Where code lives → what it must not import. The longest prefix that fits a module counts.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "server.kernels": ("server.adapters", "server.engine", "server.api", "adapters_store"),
    "server.adapters": ("server.engine", "server.api"),
    "server.engine": (
        "server.api",
        "adapters_store.store",
        "adapters_store.catalog",
        "adapters_store.database",
        "adapters_store.databases",
    ),
    "server.metrics": ("server.api", "server.adapters", "server.kernels"),
    "server.api": ("server.cli", "server.serve", "server.config", "server.kernels"),
    "server.config": ("server.api", "server.adapters", "server.kernels"),
    "server.cli": ("server.api", "server.engine", "server.adapters", "server.kernels"),
    "server.http_client": ("server", "adapters_store"),
    "adapters_store": ("server", "training", "demo", "benchmarks"),
    "training": ("server", "demo", "benchmarks"),
    "demo": ("server", "training", "benchmarks"),
}
API_IMPORTERS = ("server.api", "server.serve", "server.train_here", "tests", "benchmarks")
WEB = {"fastapi", "starlette", "uvicorn"}
WEB_IMPORTERS = ("server.api", "server.serve")

CATCH_ALL_NAMES = {"utils", "util", "helpers", "helper", "misc", "common"}
RUNS_DATA = {  # calls that execute, or unpickle, what they are given
    "eval", "exec", "compile", "__import__",
    "torch.load", "pickle.load", "pickle.loads", "marshal.loads", "dill.loads",
    "yaml.load", "yaml.unsafe_load", "importlib.import_module",
    "os.system", "os.popen",
}  # fmt: skip
RUNS_DATA_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
LONGEST_FUNCTION = 60


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(packages: tuple[str, ...] = PRODUCT) -> list[Path]:
    found = (path for package in packages for path in (ROOT / package).rglob("*.py"))
    return sorted(path for path in found if ".work" not in path.parts)  # peers' environments


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module or module.name) for every import, wherever it stands."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (start, node.module) if part)
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def within(name: str, prefixes: tuple[str, ...] | set[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def dotted(node: ast.expr) -> str:
    """ "torch.load" for the expression torch.load; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (start := dotted(node.value)):
        return f"{start}.{node.attr}"
    return ""


def test_the_rules_see_the_code() -> None:
    """A rule over no files would pass for ever."""
    seen = {module_name(path) for path in modules()}
    assert {"server.config", "server.engine.messages", "adapters_store.errors"} <= seen
    assert (3, "server.engine.messages") not in imports(ROOT / "server" / "cli.py")
    found = {name for _, name in imports(ROOT / "server" / "cli.py")}
    assert "server.config.load_settings" in found


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    name = module_name(path)
    rules = [where for where in FORBIDDEN if within(name, (where,))]
    if not rules:
        return
    where = max(rules, key=len)
    wrong = [
        f"line {line}: {imported}"
        for line, imported in imports(path)
        if within(imported, FORBIDDEN[where]) and not within(imported, (where,))
    ]
    assert not wrong, f"{name} must not import {FORBIDDEN[where]}"


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_only_the_api_is_of_the_web_and_nothing_imports_it(path: Path) -> None:
    name = module_name(path)
    wrong = [
        f"line {line}: {imported}"
        for line, imported in imports(path)
        if (within(imported, ("server.api",)) and not within(name, API_IMPORTERS))
        or (within(imported, WEB) and not within(name, WEB_IMPORTERS))
    ]
    assert not wrong


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_every_module_says_what_lives_there(path: Path) -> None:
    assert path.stat().st_size == 0 or ast.get_docstring(parse(path))


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_no_function_is_too_long(path: Path) -> None:
    long = [
        f"line {node.lineno}: {node.name}"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION
    ]
    assert not long


def test_no_catch_all_modules() -> None:
    parts = {part for path in modules((*PRODUCT, "tests")) for part in path.parts[-3:]}
    assert not {part for part in parts if part.removesuffix(".py") in CATCH_ALL_NAMES}


@pytest.mark.parametrize("path", modules(SERVED), ids=module_name)
def test_nothing_executes_data(path: Path) -> None:
    calls = [
        f"line {node.lineno}: {dotted(node.func)}"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and dotted(node.func) in RUNS_DATA
    ]
    shells = [
        f"line {node.lineno}: shell="
        for node in ast.walk(parse(path))
        if isinstance(node, ast.keyword)
        and node.arg in ("shell", "trust_remote_code")
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    ]
    imported = [name for _, name in imports(path) if within(name, RUNS_DATA_MODULES)]
    assert not calls + shells + imported


@pytest.mark.parametrize("path", modules(("server", "adapters_store")), ids=module_name)
def test_only_the_error_table_knows_failing_status_codes(path: Path) -> None:
    if module_name(path) == "server.api.errors":
        return
    wrong = [
        f"line {node.lineno}"
        for node in ast.walk(parse(path))
        if (
            isinstance(node, ast.keyword)
            and node.arg in ("status", "status_code")
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, int)
            and node.value.value >= 400
        )
        or (isinstance(node, ast.Name | ast.Attribute) and "HTTPException" in dotted(node))
        or (isinstance(node, ast.Attribute) and node.attr.startswith(("HTTP_4", "HTTP_5")))
    ]
    assert not wrong


def in_fresh_interpreter(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_the_engine_can_be_imported_where_there_is_no_web_framework() -> None:
    names = [module_name(path) for path in modules(("server/engine", "server/adapters"))]
    done = in_fresh_interpreter(f"""
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {WEB!r}:
            raise ModuleNotFoundError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Absent())
for name in {names!r}:
    importlib.import_module(name)
try:
    import fastapi
except ModuleNotFoundError:
    print("imported", len({names!r}))
""")
    assert done.stdout.strip() == f"imported {len(names)}", done.stderr


def test_help_waits_for_no_tensor_library() -> None:
    done = in_fresh_interpreter("""
import sys
import server.cli
print(sorted({"torch", "transformers", "fastapi", "uvicorn", "sqlalchemy"} & set(sys.modules)))
""")
    assert done.stdout.strip() == "[]", done.stderr
