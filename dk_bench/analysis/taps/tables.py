"""Where taps go as numbers: taps and kernels at a place, distributions of offsets, shares of taps outside; as CSV."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dk_bench.analysis.learned import DATA, KERNEL
from dk_bench.analysis.outputs import write_csv
from dk_bench.analysis.taps.figures import channels_shown
from dk_bench.analysis.taps.study import LayerTaps, TapsStudy, statistics


def write_tables(study: TapsStudy, folder: Path) -> list[Path]:
    """Writes taps.csv, kernels.csv, offsets.csv and outside.csv. Raises UserError where it cannot."""
    offsets, outside = [], []
    for each in study.offsets:
        source, count = {"layer": each.source.layer, "kind": each.source.kind}, each.values[:, 0].size
        offsets += [source | {"axis": axis, "count": count} | numbers for axis, numbers in statistics(each.values)]
        outside.append(source | {"taps": count, "share": each.outside, "share of rigid taps": each.outside_before})
    return [
        write_csv(folder, "taps", _tap_rows(study.layers)),
        write_csv(folder, "kernels", _kernel_rows(study.layers)),
        write_csv(folder, "offsets", offsets),
        write_csv(folder, "outside", outside),
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
    """Gives the mean magnitude and the channels that are drawn, over the scope and as sampled; ``input`` is the channel
    of the input, in the group of ``channel``."""
    for layer in layers:
        for what, kernels in (("stored", layer.stored), ("sampled", layer.sampled)):
            of_all = {("mean magnitude", ""): np.abs(kernels).mean(0)}
            for (channel, read), values in (
                of_all | {layer.pair(c): kernels[c] for c in channels_shown(layer)}
            ).items():
                for (row, column), weight in np.ndenumerate(values):
                    place = {"layer": layer.name, "channel": channel, "input": read, "what": what}
                    yield place | {"row": row, "column": column, "weight": float(weight)}
