"""Detection on mmdet: a backbone of any timm model, data in COCO's format, training under Lightning.

Begin with module.py, whose losses and metrics are mmdet's; backbone.py is what mmdet configurations name.

mmengine registers the modules by itself (`dk_bench.registry`). Raises UserError, on import, that says what to install
where mmengine, mmcv or mmdet is absent or of a version that does not serve.
"""

import importlib
import importlib.metadata
import importlib.util

from packaging.specifiers import SpecifierSet

from dk_bench.errors import UserError

# pyproject.toml's extra "detection" says the same; a test compares them.
REQUIREMENTS = {"mmengine": "", "mmcv": ">=2.0.0,<2.2.0", "mmdet": ">=3.3,<3.4"}
# Maintained forks that are imported by the same names: what they are called on PyPI, and the versions that were tried.
FORKS = {
    "mmengine": ("onedl-mmengine", ">=0.10.12,<0.11"),
    "mmcv": ("onedl-mmcv", ">=2.3.6,<2.4"),
    "mmdet": ("onedl-mmdetection", ">=3.5.1,<3.6"),
}
INSTALL = "`pip install 'dk_bench[detection]'` installs what detection needs"


def require_mm() -> None:
    """Raises UserError where mmengine, mmcv or mmdet is absent, of another version, or mmcv has no operators that load.

    Versions are those that pip knows: a package of the wrong version is not imported, as that may fail in its own way.
    """
    for package in REQUIREMENTS:
        _require(package)
    if _distribution("mmdet")[0] == "mmdet":  # it stops, as it is imported, at a later mmcv, so at the fork's
        name, found = _distribution("mmcv")
        if name != "mmcv":
            needed = f"mmcv{REQUIREMENTS['mmcv']} beside mmdet, or {FORKS['mmdet'][0]} beside {name}"
            raise UserError(f"detection needs {needed}, found mmdet and {name} {found}: {INSTALL}")
    try:
        importlib.import_module("mmcv._ext")
    except ImportError as error:
        needed = "mmcv with its compiled operators (mmcv-lite has none), built for this torch"
        raise UserError(f"detection needs {needed}: {error}. {INSTALL}") from error


def _require(package: str) -> None:
    """Raises UserError where a package is absent, there twice, or of a version that does not serve."""
    versions = REQUIREMENTS[package]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"detection needs {package}{versions}, which is not installed: {INSTALL}")
    name, found = _distribution(package)
    fork, forked = FORKS[package]
    if name == package and _installed(fork) and _installed(package):
        both = f"{package} or {fork}, and both are installed, over each other"
        raise UserError(f"detection needs {both}: uninstall both, then install one")
    wanted = versions if name == package else forked
    if found not in SpecifierSet(wanted, prereleases=True):
        raise UserError(f"detection needs {name}{wanted}, found {name} {found}: {INSTALL}")


def _installed(name: str) -> str | None:
    """Returns the version of a distribution that pip knows, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _distribution(package: str) -> tuple[str, str]:
    """Tells what a package was installed as, and its version: itself (so are checkouts and mmcv-lite), or its fork."""
    for name in (package, FORKS[package][0]):
        if found := _installed(name):
            return name, found
    return package, str(getattr(importlib.import_module(package), "__version__", "0"))


require_mm()
