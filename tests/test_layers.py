"""The structure of the package: import direction, circles, what is installed, and what is banned from it."""

import ast
import graphlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from itertools import chain
from pathlib import Path

import pytest

import simkit

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]

# Imports point to an earlier row or stay on the same. A name stands for the module or the whole package.
LAYERS = [
    {
        "errors",
        "units",
        "files",
        "progress",
        "config",
        "plotting",
        "md_plots",
        "run_plots",
        "label_placement",
        "memory",
        "device",
        "interrupt",
    },
    {"neighbors", "integrators", "kernels", "classical"},
    {"graph"},
    {
        "potential",
        "fast",
        "heads",
        "properties",
        "radial",
        "bessel",
        "triplets",
        "readout",
        "initialization",
        "electrostatics",
        "dispersion",
        "equivariant",
        "symmetric_contraction",
    },
    {"potentials", "datasets", "training"},
    {"labeling", "md", "calculator", "surrogates"},
    {"inference"},
    {"workflows"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Pairs on one level that must not know each other: data sets are used by training, never the reverse.
FORBIDDEN = {("datasets", "training"), ("datasets", "potentials")}


@dataclass(frozen=True)
class Module:
    """A module of the tree under the name it is installed by."""

    name: str
    path: Path

    @property
    def tree(self) -> ast.Module:
        return _parse(self.path)

    @property
    def layer(self) -> str:
        """The second part of the name ("training" of "simkit.training.loop"); empty for simkit/__init__.py itself."""
        return self.name.partition(".")[2].partition(".")[0]


@dataclass(frozen=True)
class Import:
    """One import of a module of simkit by another."""

    source: Module
    target: str
    line: int
    at_module_level: bool

    @property
    def layer(self) -> str:
        return self.target.partition(".")[2].partition(".")[0]

    def __str__(self) -> str:
        return f"{self.source.path.relative_to(ROOT)}:{self.line} imports {self.target}"


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def package_folders() -> dict[str, Path]:
    """Every package in the tree: name as installed -> folder."""
    folders = {"simkit.datasets": ROOT / "datasets", "simkit.potentials": ROOT / "potentials"}
    for init in sorted((ROOT / "simkit").rglob("__init__.py")):
        folders[".".join(init.parent.relative_to(ROOT).parts)] = init.parent
    return folders


@cache
def modules() -> tuple[Module, ...]:
    found = []
    for package, folder in package_folders().items():
        for path in sorted(folder.glob("*.py")):
            found.append(Module(package if path.stem == "__init__" else f"{package}.{path.stem}", path))
    return tuple(found)


def runtime_statements(tree: ast.Module) -> Iterator[ast.AST]:
    """All nodes that run when the module is imported: not the bodies of functions, not ``if TYPE_CHECKING``."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo.extend(ast.iter_child_nodes(node))


@cache
def imports() -> tuple[Import, ...]:
    """All imports between modules of simkit, at any depth, also those for type checking only."""
    names = {module.name for module in modules()}
    found = []
    for module in modules():
        at_module_level = {id(node) for node in runtime_statements(module.tree)}
        for node in ast.walk(module.tree):
            targets: list[str] = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [name if name in names else str(node.module) for name in inner]
            for target in targets:
                if target.split(".")[0] == "simkit":
                    found.append(Import(module, target, getattr(node, "lineno", 0), id(node) in at_module_level))
    return tuple(found)


def test_every_module_has_a_layer() -> None:
    unknown = sorted({module.layer for module in modules()} - LEVEL.keys() - {"", "__main__"})
    assert not unknown, f"add these to LAYERS in tests/test_layers.py: {unknown}"


def test_imports_point_down() -> None:
    wrong = []
    for found in imports():
        source, target = found.source.layer, found.layer
        if source in {"", "__main__"}:
            continue  # simkit/__init__.py resolves its names on first use; the tests below check that it stays lazy
        if target and (LEVEL[target] > LEVEL[source] or (source, target) in FORBIDDEN):
            wrong.append(str(found))
    assert not wrong, "imports must point down:\n" + "\n".join(wrong)


def test_only_the_version_is_imported_from_simkit_itself() -> None:
    """`from simkit import Calculator` inside the package would hide an import of a higher layer."""
    wrong = []
    for module in modules():
        for node in ast.walk(module.tree):
            plain = isinstance(node, ast.Import) and any(alias.name == "simkit" for alias in node.names)
            lazy = isinstance(node, ast.ImportFrom) and node.module == "simkit"
            if lazy:
                lazy = any(a.name != "__version__" and a.name not in LEVEL for a in node.names)  # type: ignore[attr-defined]
            if plain or (lazy and module.layer):
                wrong.append(f"{module.path.relative_to(ROOT)}:{node.lineno}")  # type: ignore[attr-defined]
    assert not wrong, "import the module that holds the name, not simkit:\n" + "\n".join(wrong)


def test_no_import_circles() -> None:
    graph: dict[str, set[str]] = {module.name: set() for module in modules()}
    for found in imports():
        if found.at_module_level and found.target != found.source.name:
            graph[found.source.name].add(found.target)
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail("import circle: " + " <- ".join(error.args[1]))


def test_package_list_is_complete() -> None:
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == sorted(package_folders()), (
        "packages in pyproject.toml differ from the tree"
    )


@pytest.mark.parametrize("folder", ["datasets", "potentials"])
def test_beside_packages_are_flat(folder: str) -> None:
    assert (ROOT / folder / "__init__.py").is_file()
    nested = [str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*/*.py")]
    assert not nested, f"{folder}/ is mapped into simkit and must stay flat: {nested}"


def test_everything_is_installed() -> None:
    missing = [module.name for module in modules() if importlib.util.find_spec(module.name) is None]
    for package, folder in package_folders().items():
        for path in folder.iterdir():
            source = path.is_dir() or path.suffix in {".py", ".pyc"}
            if not source and not resources.files(package).joinpath(path.name).is_file():
                missing.append(f"{package}: {path.name}")
    assert not missing, f"not installed (see packages and package-data in pyproject.toml): {missing}"


def test_one_installation() -> None:
    """simkit, its mapped packages and the tree agree: never half of an installed copy and half of another."""
    folders = {name: Path(str(resources.files(name))) for name in ("simkit", "simkit.datasets", "simkit.potentials")}
    if folders["simkit"] == ROOT / "simkit":  # an editable install
        assert folders["simkit.datasets"] == ROOT / "datasets"
        assert folders["simkit.potentials"] == ROOT / "potentials"
    else:
        assert folders["simkit.datasets"] == folders["simkit"] / "datasets"
        assert folders["simkit.potentials"] == folders["simkit"] / "potentials"
    for module in modules():
        installed = folders["simkit"].joinpath(*module.name.split(".")[1:])
        if folders["simkit"] != ROOT / "simkit":
            installed = installed / "__init__.py" if module.path.stem == "__init__" else installed.with_suffix(".py")
            assert installed.read_bytes() == module.path.read_bytes(), f"{module.name} is stale: install again"


def distributions(requirements: list[str]) -> set[str]:
    """The normalised names of requirements such as "numpy>=1.26"; those of simkit's own extras are left out."""
    found = {re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", line)[0]).lower() for line in requirements}
    return found - {"simkit"}


def test_dependencies_are_declared() -> None:
    """What a module imports at the top is a dependency; what it imports inside functions may also be an extra."""
    base = distributions(PROJECT["dependencies"])
    extra = distributions(list(chain(*PROJECT["optional-dependencies"].values())))
    providers = metadata.packages_distributions()
    wrong = []
    for module in modules():
        at_module_level = {id(node) for node in runtime_statements(module.tree)}
        for node in ast.walk(module.tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"simkit"}:
                declared = base if id(node) in at_module_level else base | extra
                if not distributions(providers.get(name, [name])) & declared:
                    wrong.append(f"{module.path.relative_to(ROOT)} imports {name}")
    assert not wrong, "not declared in pyproject.toml:\n" + "\n".join(wrong)


def test_constraints_pin_every_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", pin) for pin in pins)
    tested = PROJECT["dependencies"] + [
        line
        for extra in ("xtb", "dft", "dispersion", "logging", "ode", "inference", "test")
        for line in PROJECT["optional-dependencies"][extra]
    ]
    assert not distributions(tested) - distributions(pins), "add these to constraints.txt"


def test_one_version() -> None:
    assert simkit.__version__ == PROJECT["version"] == metadata.version("simkit")
    assert f"version: {simkit.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{simkit.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_lazy_names_exist() -> None:
    for name in simkit.__all__:
        assert getattr(simkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'calculater'"):
        _ = simkit.calculater


def run_python(code: str, folder: Path, safe_path: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONSAFEPATH"}}
    command = [sys.executable, *(["-P"] if safe_path else []), "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_import_is_light(tmp_path: Path) -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import simkit; seconds = time.perf_counter() - start\n"
        "heavy = {'torch', 'ase', 'matplotlib', 'torch_geometric', 'e3nn', 'numba', 'lightning', 'numpy'} & set(sys.modules)\n"
        "print(seconds, *sorted(heavy))"
    )
    result = run_python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    seconds, *heavy = result.stdout.split()
    assert not heavy, f"import simkit imported {heavy}"
    assert float(seconds) < 1.0


def test_command_line_is_light(tmp_path: Path) -> None:
    result = run_python("import simkit.cli, sys; print('torch' in sys.modules)", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "False", "simkit --help must not wait for torch"


@pytest.mark.parametrize("name", ["datasets", "potentials"])
def test_folder_is_refused_under_its_own_name(name: str) -> None:
    """With the repository on sys.path, `import datasets` must not stand in for another package of that name."""
    result = run_python(f"import {name}", ROOT, safe_path=False)
    assert result.returncode != 0
    assert "ImportError" in result.stderr
    assert f"simkit.{name}" in result.stderr


GLOBAL_STATE = {
    "torch.manual_seed",
    "torch.seed",
    "torch.set_default_dtype",
    "torch.set_default_device",
    "np.random.seed",
    "numpy.random.seed",
    "random.seed",
    "seed_everything",
}


def dotted(node: ast.AST) -> str:
    """The name that is called, such as "torch.load"; empty for anything but names and attributes."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def _forks_rng(node: ast.AST) -> bool:
    """Whether this is a block `with torch.random.fork_rng(...)`, at whose end torch's global generator is restored."""
    if not isinstance(node, ast.With):
        return False
    calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
    return any(dotted(call.func).endswith("fork_rng") for call in calls)


def banned(module: Module) -> Iterator[tuple[int, str]]:
    restored = {id(node) for scope in ast.walk(module.tree) if _forks_rng(scope) for node in ast.walk(scope)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Assert):
            yield node.lineno, "assert: raise an exception of simkit.errors"
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "relative import"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            if {"pickle", "cPickle", "dill", "cloudpickle"} & set(names):
                yield node.lineno, "pickle: a file could run code"
        elif isinstance(node, ast.Call):
            keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            name = dotted(node.func)
            if name == "torch.load" and keywords.get("weights_only") is not True:
                yield node.lineno, "torch.load without weights_only=True: a file could run code"
            if keywords.get("allow_pickle") is True or name in {"joblib.load", "eval", "exec"}:
                yield node.lineno, f"{name or 'allow_pickle'}: a file could run code"
            if name == "print" and module.layer not in {"cli", "workflows"}:
                yield node.lineno, "print in a library module: return the text, or log it"
            if name in GLOBAL_STATE and id(node) not in restored:
                yield node.lineno, f"{name} changes global state"


def test_no_banned_constructs() -> None:
    wrong = [f"{module.path.relative_to(ROOT)}:{line}: {why}" for module in modules() for line, why in banned(module)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "code",
    [
        "assert x",
        "from . import y",
        "import pickle",
        "from pickle import loads",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "print(1)",
        "torch.manual_seed(0)",
        "with x:\n    torch.manual_seed(0)",
    ],
)
def test_banned_constructs_are_found(code: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(code, encoding="utf-8")
    assert len(list(banned(Module("simkit.graph", path)))) == 1


def test_a_restored_generator_may_be_seeded(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("with torch.random.fork_rng(devices=[]):\n    torch.manual_seed(0)", encoding="utf-8")
    assert not list(banned(Module("simkit.graph", path)))
