"""Sphinx configuration; `make docs` builds the site without network access."""

import importlib
import importlib.metadata
import inspect
import os
import pathlib
import re
import symtable
import sys
import warnings

from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

# The notebook kernels inherit this.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
warnings.filterwarnings("ignore", category=DeprecationWarning)

project = "egno_jax"
author = "The egno_jax authors"
copyright = author
release = importlib.metadata.version("egno_jax")
version = release

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
# A name in an annotation, such as `Trajectory`, can belong to several modules.
suppress_warnings = ["ref.python"]

html_theme = "furo"
html_title = f"egno_jax {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signatures carry the types
add_module_names = False
default_role = "code"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Notebooks are executed at every build, so that they show the current library.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True


def mark_up(app, what, name, obj, options, lines):
    """Converts docstrings to reStructuredText.

    An indented block after a colon and a blank line becomes a literal block. The bars of a norm
    are escaped.
    """
    literal_indent = None
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal_indent is not None and line.strip() and indent <= literal_indent:
            literal_indent = None
        if literal_indent is not None:
            continue
        following = lines[i + 1 : i + 3]
        if line.rstrip().endswith(":") and len(following) == 2 and not following[0].strip():
            if len(following[1]) - len(following[1].lstrip()) > indent:
                line = line.rstrip().rstrip(":") + "::"
                literal_indent = indent
        spans = line.split("`")  # every other one is in backticks
        lines[i] = "`".join(s if n % 2 else s.replace("|", r"\|") for n, s in enumerate(spans))


def skip_field_aliases(app, what, name, obj, skip, options):
    """Skips the fields of named tuples, which their classes document."""
    is_alias = (getattr(obj, "__doc__", "") or "").startswith("Alias for field number")
    return True if is_alias else None  # None: other handlers and autodoc decide


def skip_documented_classes(app, what, name, obj, skip, options):
    """Skips a class that an earlier section of the reference documents under another name."""
    if skip or what != "module" or not inspect.isclass(obj):
        return None
    seen = app.env.temp_data.setdefault("documented_classes", set())
    is_known = obj in seen
    seen.add(obj)
    return True if is_known else None


def add_constants(app, what, name, obj, options, lines):
    """Adds a package's public constants, which autodoc considers undocumented imports."""
    if what != "module" or not hasattr(obj, "__path__"):
        return
    for constant in getattr(obj, "__all__", ()):
        value = getattr(obj, constant)
        if callable(value) or inspect.ismodule(value):
            continue
        lines += ["", f".. py:data:: {constant}", f"   :module: {name}"]
        if len(repr(value)) <= 80:
            lines.append(f"   :value: {value!r}")
        lines += ["", *(f"   {line}" for line in documentation_of(name, constant))]


def documentation_of(package, constant):
    """Returns the documentation string of a constant, from the module that assigns it."""
    for name in sorted(sys.modules):
        if name.startswith(f"{package}.") and hasattr(sys.modules[name], constant):
            found = ModuleAnalyzer.for_module(name).find_attr_docs().get(("", constant))
            if found:
                return found
    return []


def public_names(module):
    """Returns `__all__` of a module or, without it, the public names that it assigns."""
    if hasattr(module, "__all__"):
        return module.__all__
    symbols = symtable.symtable(inspect.getsource(module), module.__name__, "exec").get_symbols()
    own = [symbol for symbol in symbols if symbol.is_assigned() and not symbol.is_imported()]
    return [symbol.get_name() for symbol in own if not symbol.get_name().startswith("_")]


def check_reference(app, env):
    """Warns about public names without an entry in the reference; `make docs` makes it an error.

    Names that the package exports need an entry only there.
    """
    documented = env.domaindata["py"]["objects"]
    modules = [name for name in env.domaindata["py"]["modules"] if name.startswith("egno_jax")]
    package = importlib.import_module("egno_jax")
    for name in modules:
        module = importlib.import_module(name)
        for public in public_names(module):
            places = {f"{name}.{public}"}
            value = getattr(module, public)
            if getattr(package, public, None) is value:
                places.add(f"egno_jax.{public}")
            if inspect.isclass(value):  # documented where another module exports it
                places.add(f"{value.__module__}.{value.__qualname__}")
            if not places & {*documented, *modules}:
                logging.getLogger(__name__).warning("%s.%s is not in the reference", name, public)


# The page of results has this line where its table goes, for readers of the source.
_TABLE = "The table is in the [README](../README.md#results)."


def add_results(app, docname, source):
    """Puts the README's table of results in place of the mark in the page `results`."""
    if docname != "results":
        return
    readme = (pathlib.Path(app.srcdir).parent / "README.md").read_text()
    table = readme.partition("experiments.report -->")[2].partition("<!-- end of results -->")[0]
    table = re.sub(r"\[([^]]*)\]\(experiments/[^)]*\)", r"\1 (`experiments/RESULTS.md`)", table)
    source[0] = source[0].replace(_TABLE, table.replace("](docs/", "]("))


def compile_quickly(app):
    """Sets what the notebook kernels inherit: most of their time is compilation."""
    cache = pathlib.Path(app.srcdir) / "_build" / "jax_cache"
    for name, value in {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }.items():
        os.environ.setdefault(name, value)


def setup(app):
    app.connect("builder-inited", compile_quickly)
    app.connect("source-read", add_results)
    app.connect("autodoc-skip-member", skip_field_aliases)
    app.connect("autodoc-skip-member", skip_documented_classes)
    app.connect("autodoc-process-docstring", mark_up, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", add_constants, priority=600)  # after it
    app.connect("env-check-consistency", check_reference)
