"""Rigid models, kernel specs, and the deformed models that timm knows by name. Begin with spec.py (what may change) and
deform.py (how it is done); variants.py lists the models."""

from dk_bench.models import bases, deformed  # noqa: F401  (registers what timm has to know)
from dk_bench.models.deform import deform
from dk_bench.models.outcomes import Outcome, outcomes_of
from dk_bench.models.spec import KernelSpec
from dk_bench.models.variants import (
    BEYOND_MODELS,
    LARGE_MODELS,
    MODELS,
    PAPER_MODELS,
    SMALL_MODELS,
    TEST_MODELS,
    Variant,
)

__all__ = [
    "BEYOND_MODELS",
    "LARGE_MODELS",
    "MODELS",
    "PAPER_MODELS",
    "SMALL_MODELS",
    "TEST_MODELS",
    "KernelSpec",
    "Outcome",
    "Variant",
    "deform",
    "outcomes_of",
]
