"""Phrases on local kernels on dense and 1x1 convolutions, from what was estimated of them."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "results"


def fused() -> list[str]:
    """What results/gpu/README.md says that a fused kernel would promise."""
    rows = json.loads((RESULTS / "gpu" / "fused-estimate.json").read_text(encoding="utf-8"))["rows"]
    of = {kind: [row for row in rows if row["dtype"] == kind] for kind in ("bfloat16", "tf32", "float32")}
    best = {kind: sorted(row["promise at best"] for row in some) for kind, some in of.items()}
    worst = {kind: sorted(row["promise without overlap"] for row in some) for kind, some in of.items()}
    assert best["bfloat16"][0] < 1.5 < best["bfloat16"][-1] and worst["bfloat16"][-1] < 1.5
    half, tf32 = ("bfloat16", "tf32")
    return [
        f"{best[half][0]:.2f} to {best[half][-1]:.2f} times the speed in bfloat16",
        f"{worst[half][0]:.2f} to {worst[half][-1]:.2f} times if they do not",
        f"with TF32 {best[tf32][0]:.2f} to {best[tf32][-1]:.2f} and {worst[tf32][0]:.2f} to {worst[tf32][-1]:.2f}",
        f"at most {best['float32'][-1]:.2f}, as these",
        "So 1.5 times is promised",
    ]
