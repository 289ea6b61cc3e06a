"""Times calls as a user's loop sees them: warm, and cold.

Warm: the same call again and again. After one call that is not timed comes a series of a few milliseconds, and its mean
is one measurement. Series of different calls take turns, in an order that changes every round, so that a machine that
slows down slows all alike and no call always follows the same one. Disturbances only ever add time: the lower quartile
over the rounds is what counts. Cold: one call after the caches were emptied, the median of a few.

On CUDA a series is a graph of several calls, so that it tells the GPU's time and not that of launching.
"""

import ctypes
import ctypes.util
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dk_bench.analysis.bench.calls import Call
from dk_bench.runs.hardware import collect_machine

SERIES_SECONDS, SERIES_CALLS = 0.008, (2, 50)  # of a series: about so long, but so many calls
LONG_CALL = 0.02  # seconds from which a call is a series by itself
SECONDS_A_CALL = 1.0  # all rounds of a call take about so long at most, but LEAST_ROUNDS of them
LEAST_ROUNDS = 3  # and all that others' slow operators get
LOST = 2.0  # a way to the base's result that takes more than so many times the fastest way's time gets one round
COLD_ROUNDS = 5
CACHE_BYTES = 64 << 20  # where the system does not tell
GRAPH_CALLS = 10  # in one graph, on CUDA

Clock = Callable[[], float]


@dataclass(frozen=True)
class TimedCall:
    """A call and how it is timed: ``seconds`` gives the mean of a series of ``calls``, in so many ``rounds``."""

    call: Call
    seconds: Callable[[], float]
    calls: int
    rounds: int


class Spread(NamedTuple):
    """Quartiles over rounds."""

    low: float
    median: float
    high: float


def spread(times: Sequence[float]) -> Spread:
    """Returns the quartiles, between the two nearest times; one time is all three."""
    return Spread(*(statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [*times] * 3))


def in_rounds(measures: Sequence[Callable[[], float]], rounds: Sequence[int]) -> list[list[float]]:
    """Returns what each measure gave in each of its rounds, which have orders of their own, the same in every run."""
    results: list[list[float]] = [[] for _ in measures]
    for number in range(max(rounds, default=0)):
        order = [index for index, last in enumerate(rounds) if number < last]
        random.Random(number).shuffle(order)
        for index in order:
            results[index].append(measures[index]())
    return results


def make_series(
    calls: Sequence[Call], device: torch.device, rounds: int, clock: Clock = time.perf_counter
) -> list[TimedCall]:
    """Returns a series of every call, with at most so many rounds, and fewer where they would take long."""
    if device.type == "cuda":
        few = min(rounds, LEAST_ROUNDS)
        return [TimedCall(call, *_on_cuda(call), few if call.slow else rounds) for call in calls]
    lasting = [max(seconds_on_host(call, 1, clock), 1e-9) for call in calls]
    ways: dict[tuple[str, ...], float] = {}
    for call, seconds in zip(calls, lasting, strict=True):
        key = call.operator, call.setting.dtype, call.mode
        if call.is_base:
            ways[key] = min(seconds, ways.get(key, seconds))
    series = []
    for call, seconds in zip(calls, lasting, strict=True):
        least, most = SERIES_CALLS
        number = 1 if seconds > LONG_CALL else round(min(max(SERIES_SECONDS / seconds, least), most))
        fitting = max(LEAST_ROUNDS, int(SECONDS_A_CALL / (seconds * (number + 1))))
        if call.slow:
            fitting = LEAST_ROUNDS
        elif call.is_base and seconds > LOST * ways[call.operator, call.setting.dtype, call.mode]:
            fitting = 1
        series.append(TimedCall(call, partial(seconds_on_host, call, number, clock), number, min(rounds, fitting)))
    return series


def seconds_on_host(call: Call, calls: int, clock: Clock = time.perf_counter) -> float:
    """Returns the mean over so many calls, after one that is not timed."""
    with call.context():
        call.function()
        begin = clock()
        for _ in range(calls):
            call.function()
        return (clock() - begin) / calls


def _on_cuda(call: Call) -> tuple[Callable[[], float], int]:
    with call.context():
        replay, calls = _capture(call.function)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds() -> float:
        with call.context():
            replay()
            start.record()
            replay()
            end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / calls

    return seconds, calls


def _capture(call: Callable[[], Any]) -> tuple[Callable[[], Any], int]:
    """Returns a CUDA graph of several calls, or the call itself where it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(GRAPH_CALLS):
                call()
    except RuntimeError:
        torch.cuda.synchronize()
        return call, 1
    return graph.replay, GRAPH_CALLS


def cold_times(
    series: Sequence[TimedCall], clock: Clock = time.perf_counter, empty: Callable[[], Any] | None = None
) -> list[float | None]:
    """Returns the seconds of single calls of each series after ``empty`` was called, which empties the caches: the
    median of a few. None for a series of few rounds."""
    empty = empty or _make_empty()

    def seconds(call: Call) -> float:
        with call.context():
            empty()
            begin = clock()
            call.function()
            return clock() - begin

    rounds = [min(COLD_ROUNDS, s.rounds) if s.rounds > LEAST_ROUNDS else 0 for s in series]
    results = in_rounds([partial(seconds, s.call) for s in series], rounds)
    return [statistics.median(times) if times else None for times in results]


def _make_empty() -> Callable[[], Any]:
    """Returns a function that moves twice the largest cache through the caches."""
    largest = max((cache["bytes"] for cache in collect_machine(probe=False)["caches"]), default=CACHE_BYTES)
    buffer = torch.zeros(2 * largest // 4)
    return lambda: buffer.add_(1)


def peak_memory(call: Callable[[], Any], device: torch.device) -> int | None:
    """Returns the most bytes a call holds at once beyond what was held before; None where the system does not tell (the
    CPU's is the resident set's high-water mark, which Linux alone lets a process reset)."""
    call()  # what is made once, at the first call, is not counted
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        trim = ctypes.CDLL(ctypes.util.find_library("c")).malloc_trim  # memory kept for reuse would hide what is used
        trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        call()
        return max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError, TypeError):
        return None


def _resident(field: str) -> int:
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(field))
    return int(line.split()[1]) * 1024
