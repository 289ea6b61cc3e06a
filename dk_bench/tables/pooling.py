"""Tells which runs of a cell are alike besides, so that tables pair those alone that may be paired, and mark the rest.

A run's *draw* is what decides how its numbers are rounded: kind and number of devices, and the instruction set that
each library chose. Rounding alone changes a run as much as another seed does, so two draws of a seed are two runs, and
a difference pairs runs of one seed and one draw. Older records do not tell the instruction sets: a draw of their own.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dk_bench.runs.identity import devices_asked, is_per_device, setting
from dk_bench.runs.record import RunRecord, attempts_of

SETTINGS_OF_CUDA = ("runtime", "cudnn", "capability", "float32_products", "float32_convolutions")
SPLITS = ("train", "val")  # whose images make the data; tests come after training


class Hardware(NamedTuple):
    """One kind of hardware: the device's type and number, and what rounds, None where a record does not tell."""

    type: str
    devices: int
    rounding: tuple[tuple[str, Any], ...] | None

    def __str__(self) -> str:
        """Returns it in words: ``CPU (oneDNN ..., torch AVX512)``."""
        unknown = "settings unknown" if self.type == "cuda" else "instruction sets unknown"
        known = ", ".join(f"{name} {value}" for name, value in self.rounding or ())
        count = f"{self.devices} x " if self.devices > 1 else ""
        return f"{count}{_device(self.type)} ({known or unknown})"


class Pair(NamedTuple):
    """Holds what runs must have in common to be paired: the seed, the draw, and the images' checksums."""

    seed: int
    draw: tuple[Hardware, ...]
    data: tuple[str | None, ...]


def pair_of(record: RunRecord) -> Pair:
    """Tells what a run is paired by."""
    return Pair(record.seed, draw_of(record), checksums_of(record))


def draw_of(record: RunRecord) -> tuple[Hardware, ...]:
    """Returns the hardware that a run was trained on: one kind, or in turn those of the attempts that it took. An
    attempt that says that it took no step, but evaluated the trained model, say, does not count."""
    compiled = bool(setting(record.config, "trainer.compile"))
    trained = [attempt for attempt in attempts_of(record) if attempt.get("steps") != 0] or attempts_of(record)[-1:]
    kinds = [_kind(attempt["device"], compiled) for attempt in trained]
    return tuple(kind for place, kind in enumerate(kinds) if kind not in kinds[:place][-1:])


def _kind(device: Any, compiled: bool) -> Hardware:
    device = _section(device)
    rounding, cuda = _section(device.get("instruction_sets")), _section(device.get("cuda"))
    if device.get("type") == "cuda":
        rounding = cuda and {"name": device.get("name")} | {key: cuda.get(key) for key in SETTINGS_OF_CUDA}
    if rounding and compiled:
        rounding = {**rounding, "compiled": True}
    known = tuple(sorted((name, str(value)) for name, value in rounding.items())) if rounding else None
    return Hardware(str(device.get("type") or "unknown"), _count(device) or 1, known)


def _section(value: Any) -> Mapping[str, Any]:
    """Returns a part of a record that is free in form; nothing where it is none."""
    return value if isinstance(value, Mapping) else {}


def _count(device: Mapping[str, Any]) -> int | None:
    count = device.get("devices")
    return count if isinstance(count, int) else None


def checksums_of(record: RunRecord) -> tuple[str | None, ...]:
    """Returns the checksums of the images trained and validated on; None where a record does not say."""
    held = _section(record.data.get("checksum"))
    return tuple(str(held[split]) if split in held else None for split in SPLITS)


def test_checksum_of(record: RunRecord, metric: str) -> str | None:
    """Returns the checksum of the test images that a metric is of, as ``test/bend/top1``; None where a record does not
    say, and of images that were trained or validated on, which pairs have in common."""
    images, held = metric.rpartition("/")[0], _section(record.data.get("checksum"))
    return None if images in SPLITS or held.get(images) is None else str(held[images])


def devices_of(record: RunRecord) -> int:
    """Tells how many devices trained a run, where that changes more than rounding: those that normalise batches each by
    its own statistics, or that have a batch each."""
    return (_count(record.device) or devices_asked(record.config)) if is_per_device(record.config) else 1


def first_of_each(records: Iterable[RunRecord]) -> tuple[list[RunRecord], list[RunRecord]]:
    """Returns the runs of a cell that count, by seed, and those that were run again after one of the same seed and draw
    had finished, which change no figure.

    Of a seed that has not finished the one that began last counts, which may be running.
    """
    by_seed: dict[int, list[RunRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda r: (r.started, r.run_id)):
        by_seed[record.seed].append(record)
    first, again = [], []
    for _, runs in sorted(by_seed.items()):
        draws = set()
        for run in (run for run in runs if run.status == "finished"):
            (again if (draw := draw_of(run)) in draws else first).append(run)
            draws.add(draw)
        first += runs[-1:] if not draws else []
    return first, again


def each_once(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Returns every run once, that was found twice: as it stood last."""
    known: dict[tuple[str, str, int], RunRecord] = {}
    for record in sorted(records, key=lambda r: (r.status == "finished", r.ended or "", len(r.attempts))):
        known[record.run_id, record.started, record.seed] = record
    return [*known.values()]


def apart_by_data(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Returns the runs of a cell apart by their images' checksums. Those that do not say belong to the one that is
    known, if only one is, and are of their own otherwise."""
    parts: dict[tuple, list[RunRecord]] = defaultdict(list)
    for record in records:
        parts[checksums_of(record)].append(record)
    unknown = parts.pop((None,) * len(SPLITS), [])
    known = list(parts.values())
    if len(known) == 1:
        return [unknown + known[0]]
    return known + [unknown] * bool(unknown)


def mixture(runs: Sequence[RunRecord]) -> list[str]:
    """Tells what of runs that are pooled is not alike, in words: nothing where all is."""
    draws, attempts = [draw_of(run) for run in runs], [attempt for run in runs for attempt in attempts_of(run)]
    kinds = {kind for draw in draws for kind in draw}
    types = sorted({kind.type for kind in kinds})
    words = [" with ".join(map(_device, types))] if len(types) > 1 else []
    for type_, name in (("cpu", "instruction sets"), ("cuda", "kinds of GPU")):
        words += _several([kind.rounding for kind in kinds if kind.type == type_], name)
    words += _several([kind.devices for kind in kinds], "numbers of devices")
    resumed = sum(len(draw) > 1 for draw in draws)
    words += [f"{resumed} resumed on other hardware"] if resumed else []
    words += _several([str(attempt["git"].get("commit")) for attempt in attempts], "commits")
    words += _several([str(_section(attempt["versions"]).get("torch")) for attempt in attempts], "versions of torch")
    return words + _several([checksums_of(run) for run in runs], "states of the data")


def count_dirty(runs: Sequence[RunRecord]) -> int:
    """Tells how many runs had code with changes that no commit holds, in any attempt."""
    return sum(any(attempt["git"].get("dirty") for attempt in attempts_of(run)) for run in runs)


def _several(values: Iterable[Any], name: str) -> list[str]:
    """Tells how many different values there are, if several; unknown ones are one of them."""
    count = len(set(values))
    return [f"{count} {name}"] if count > 1 else []


def _device(type_: str) -> str:
    return {"cpu": "CPU", "cuda": "GPU"}.get(type_, type_)
