"""Where taps go as numbers: taps and kernels at a place, distributions of offsets, shares of taps outside; as CSV."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dk_bench.analysis.learned import DATA, KERNEL
from dk_bench.analysis.outputs import write_csv
from dk_bench.analysis.taps.figures import channels_shown
from dk_bench.analysis.taps.study import LayerTaps, Offsets, TapsStudy, statistics


def write_tables(study: TapsStudy, folder: Path) -> list[Path]:
    """Writes taps.csv, kernels.csv, offsets.csv and outside.csv. Raises UserError where it cannot."""
    return [
        write_csv(folder, "taps", _tap_rows(study.layers)),
        write_csv(folder, "kernels", _kernel_rows(study.layers)),
        write_csv(folder, "offsets", _offset_rows(study.offsets)),
        write_csv(folder, "outside", _outside_rows(study.offsets)),
    ]


def _tap_rows(layers: Sequence[LayerTaps]) -> Iterator[dict[str, object]]:
    for layer in layers:
        groups = [(KERNEL, 0, layer.kernel)] if layer.kernel else []
        groups += [(DATA, group, taps) for group, taps in enumerate(layer.data or [])]
        for kind, group, taps in groups:
            for tap, outside in enumerate(taps.outside):
                row = {"layer": layer.name, "kind": kind, "group": group, "tap": tap}
                for when, places in (("before", taps.before), ("after", taps.after)):
                    row |= {f"{when} {axis}": float(at) for axis, at in zip("yx", places[tap], strict=True)}
                yield row | {"outside": int(outside)}


def _kernel_rows(layers: Sequence[LayerTaps]) -> Iterator[dict[str, object]]:
    """Gives the mean magnitude and the channels that are drawn, over the scope and as sampled."""
    for layer in layers:
        for what, kernels in (("stored", layer.stored), ("sampled", layer.sampled)):
            drawn = {"mean magnitude": np.abs(kernels).mean(0), **{c: kernels[c] for c in channels_shown(layer)}}
            for channel, values in drawn.items():
                for (row, column), weight in np.ndenumerate(values):
                    place = {"layer": layer.name, "channel": channel, "what": what, "row": row, "column": column}
                    yield place | {"weight": float(weight)}


def _offset_rows(found: Sequence[Offsets]) -> Iterator[dict[str, object]]:
    for each in found:
        for axis, numbers in statistics(each.values):
            yield _source(each) | {"axis": axis, "count": each.values[:, 0].size} | numbers


def _outside_rows(found: Sequence[Offsets]) -> Iterator[dict[str, object]]:
    for each in found:
        shares = {"share": each.outside, "share of rigid taps": each.outside_before}
        yield _source(each) | {"taps": each.values[:, 0].size} | shares


def _source(each: Offsets) -> dict[str, object]:
    return {"layer": each.source.layer, "kind": each.source.kind}
