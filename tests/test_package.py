"""Dependencies, version, types and public names of the package."""

import ast
import configparser
import importlib
import importlib.util
import inspect
import pathlib
import re
import subprocess
import sys
import textwrap
from unittest import mock

import pytest

import egno_jax

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "egno_jax"
MODULES = ("", ".ops", ".nn", ".graph", ".metrics", ".training", ".datasets")
# Modules that are not part of the interface: `egno_jax` exports their names, or only the library
# uses them.
INNER_MODULES = {
    "egno_jax.checks",
    "egno_jax.checkpoint",
    "egno_jax.config",
    "egno_jax.convert",
    "egno_jax.deprecation",
    "egno_jax.extras",
    "egno_jax.families",
    "egno_jax.files",
    "egno_jax.locks",
    "egno_jax.params",
}
# The import names of setup.cfg's core dependencies.
CORE = {"jax", "flax", "optax", "jraph", "e3nn_jax", "orbax", "chex", "numpy"}


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    assert config.read(ROOT / "setup.cfg")
    return config


class ImportTimeImports(ast.NodeVisitor):
    """Collects the packages that importing a module imports; function bodies do not run."""

    def __init__(self):
        self.packages = set()

    def visit_Import(self, node):
        self.packages |= {alias.name.partition(".")[0] for alias in node.names}

    def visit_ImportFrom(self, node):
        if node.level == 0:
            self.packages.add(node.module.partition(".")[0])

    def visit_FunctionDef(self, node):
        pass

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node):
        if ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)


def test_core_dependencies_are_those_of_setup_cfg():
    required = setup_cfg()["options"]["install_requires"].split()
    names = {re.split(r"[><=~!\[]", line)[0].replace("-", "_") for line in required}
    assert {name.removesuffix("_checkpoint") for name in names} == CORE


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_modules_import_only_core_dependencies(path):
    imports = ImportTimeImports()
    imports.visit(ast.parse(path.read_text()))
    strange = imports.packages - CORE - {"egno_jax"} - sys.stdlib_module_names
    assert not strange, f"import {strange} where it is used, with an error that names the extra"


def test_imports_without_the_extras():
    """In a new interpreter, our own imports of other packages than the core fail."""
    script = f"""
        import builtins, importlib, sys

        original = builtins.__import__
        allowed = {sorted(CORE | {"egno_jax"})!r}

        def guarded(name, globals=None, locals=None, fromlist=(), level=0):
            importer = (globals or {{}}).get("__name__", "")
            package = name.partition(".")[0]
            if importer.partition(".")[0] == "egno_jax" and level == 0:
                if package not in allowed and package not in sys.stdlib_module_names:
                    raise ImportError(f"{{importer}} imports {{name}}")
            return original(name, globals, locals, fromlist, level)

        builtins.__import__ = guarded
        for module in {MODULES!r}:
            importlib.import_module("egno_jax" + module)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, check=True)


def test_submodules_are_imported_on_demand():
    script = """
        import sys

        import egno_jax

        lazy = ("training", "datasets", "visualize")
        assert not [name for name in lazy if f"egno_jax.{name}" in sys.modules]
        assert "e3nn_jax" not in sys.modules  # which would double the time of the import
        assert {*lazy, "baselines", "graph", "apply"} <= {*dir(egno_jax)}
        assert callable(egno_jax.training.fit) and callable(egno_jax.datasets.stack)
        assert egno_jax.visualize is sys.modules["egno_jax.visualize"]
        assert not hasattr(egno_jax, "trainning")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, check=True)


def test_version_is_that_of_setup_cfg():
    assert egno_jax.__version__ == setup_cfg()["metadata"]["version"]


def test_types_are_declared():
    assert (PACKAGE / "py.typed").is_file()
    assert setup_cfg()["options.package_data"]["egno_jax"] == "py.typed"


def public_names(module) -> list[str]:
    """Returns the names of `__all__`, or else the public classes and functions of a module."""
    if hasattr(module, "__all__"):
        return module.__all__
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]


@pytest.mark.parametrize("name", MODULES)
def test_public_names_exist_and_are_documented(name):
    module = importlib.import_module(f"egno_jax{name}")
    assert inspect.getdoc(module)
    assert public_names(module)
    for public in public_names(module):
        value = getattr(module, public)
        if inspect.isclass(value):
            own = vars(value).get("__doc__") or ""
            generated = own.startswith(f"{value.__name__}(")
            assert own and not generated, f"{module.__name__}.{public}"
        elif callable(value) or inspect.ismodule(value):
            assert inspect.getdoc(value), f"{module.__name__}.{public}"


def public_modules() -> set[str]:
    """Returns every package, and the modules at the top that are not `INNER_MODULES`."""
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("*.py")}
    at_the_top = {f"egno_jax.{path.stem}" for path in PACKAGE.glob("[!_]*.py")}
    return packages | at_the_top - INNER_MODULES


def test_every_public_module_is_in_the_reference():
    """Sphinx warns of public names of these modules that are missing (docs/conf.py)."""
    reference = (ROOT / "docs" / "api.md").read_text()
    documented = re.findall(r"^\.\. automodule:: (\S+)$", reference, re.MULTILINE)
    assert sorted(documented) == sorted(public_modules())
    headings = set(re.findall(r"^## (egno_jax\S*)$", reference, re.MULTILINE))
    assert headings == set(documented)
    left_out = re.findall(r":exclude-members: (.*)", reference)
    names = {f"egno_jax.{name}" for names in left_out for name in names.split(", ")}
    assert names <= set(documented)


def test_the_build_of_the_reference_warns_of_missing_names(monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # else conf.py sets it
    specification = importlib.util.spec_from_file_location("conf", ROOT / "docs" / "conf.py")
    conf = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(conf)
    logger = mock.Mock()
    monkeypatch.setattr(conf.logging, "getLogger", lambda name: logger)
    # Rollout and rollout may be documented with the package, which exports them.
    objects = ("egno_jax.rolling.State", "egno_jax.rolling.NextGraph", "egno_jax.Rollout")
    data = {"modules": {"egno_jax.rolling": None}, "objects": dict.fromkeys(objects)}
    conf.check_reference(None, mock.Mock(domaindata={"py": data}))
    missing = {call.args[2] for call in logger.warning.call_args_list}
    assert {"OVERFLOW", "rollout", "refresh", "with_state", "radius_graph"} <= missing
    assert not missing & {"State", "NextGraph", "Rollout", "Params", "np"}


def test_citation_names_the_software_and_the_paper():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == setup_cfg()["metadata"]["version"]
    assert citation["license"] == setup_cfg()["metadata"]["license"]
    (paper,) = citation["references"]
    assert len(paper["authors"]) == 9
    assert "2401.11037" in paper["identifiers"][0]["value"]


def test_changelog_has_this_version():
    version = re.escape(setup_cfg()["metadata"]["version"])
    assert re.search(rf"^## \[{version}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_conda_recipe_has_the_version_and_the_dependencies_of_setup_cfg():
    config, text = setup_cfg(), (ROOT / "conda" / "meta.yaml").read_text()
    assert f'version = "{config["metadata"]["version"]}"' in text
    run = text.partition("  run:\n")[2].partition("\n\n")[0]
    listed = [line.strip(" -").replace(" ", "") for line in run.splitlines()]
    wanted = config["options"]["install_requires"].split()
    assert listed == [f"python{config['options']['python_requires']}", *wanted]
