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
INSTALL = "`pip install dk_bench[detection]` installs what detection needs"


def require_mm() -> None:
    """Raises UserError where mmengine, mmcv or mmdet is absent, of another version, or mmcv has no operators that load.

    Versions are those that pip knows: a package of the wrong version is not imported, as that may fail in its own way.
    """
    for package, versions in REQUIREMENTS.items():
        if importlib.util.find_spec(package) is None:
            raise UserError(f"detection needs {package}{versions}, which is not installed: {INSTALL}")
        found = _version(package)
        if found not in SpecifierSet(versions, prereleases=True):
            raise UserError(f"detection needs {package}{versions}, found {package} {found}: {INSTALL}")
    try:
        importlib.import_module("mmcv._ext")
    except ImportError as error:
        needed = "mmcv with its compiled operators (mmcv-lite has none), built for this torch"
        raise UserError(f"detection needs {needed}: {error}. {INSTALL}") from error


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a checkout on the path, or mmcv-lite
        return str(getattr(importlib.import_module(package), "__version__", "0"))


require_mm()
