"""Which of mmengine's and mmdet's hooks a configuration may have: what each of them does to a run under Lightning."""

from collections.abc import Iterator, Mapping
from typing import Any

from dk_bench.detection.loops import ITERATIONS, Loop
from dk_bench.errors import UserError
from dk_bench.runs.identity import HOOKS_OF_THE_CELL

ACTING = HOOKS_OF_THE_CELL  # change what is trained or evaluated: `runner_hooks` does what they do
# Watch, write or draw: without them a run under Lightning is the same, and what they do is done by other parts of it.
WATCHING = set(
    "CheckInvalidLossHook CheckpointHook DetVisualizationHook DistSamplerSeedHook EmptyCacheHook "
    "GroundingVisualizationHook IterTimerHook LoggerHook MemoryProfilerHook NPUProfilerHook NaiveVisualizationHook "
    "NumClassCheckHook ProfilerHook RuntimeInfoHook TrackVisualizationHook".split()
)
# Average what normalisation has gathered over devices: on one device there is nothing to do.
OVER_DEVICES = {"SyncBuffersHook", "SyncNormHook"}
OF_EPOCHS = {"PipelineSwitchHook", "YOLOXModeSwitchHook"}
# Why others are refused.
REASONS = {
    "EarlyStoppingHook": "ends training before its schedule does; expected a shorter train_cfg",
    "MeanTeacherHook": "trains a student by its teacher on images without labels, as mmdet's own runner can; "
    "expected a detector that learns from labels",
    "ParamSchedulerHook": "steps the schedules, which is done here already; expected none",
    "PrepareTTAHook": "evaluates by several views of an image; expected none: evaluation is of one view",
}
# Of default_hooks: what mmengine would leave out where the key is None, and is done here.
LEFT_OUT = {"param_scheduler": "learning rates follow their schedules", "sampler_seed": "every epoch has its own order"}


def name_of(hook: Mapping[str, Any]) -> str:
    """Returns the name of a hook's class, without its module."""
    return str(hook.get("type")).rpartition(".")[2]


def hooks_of(cfg: Mapping[str, Any], names: set[str] | frozenset[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields key and settings of the ``custom_hooks`` that have one of the names, in the order of the file."""
    for number, hook in enumerate(cfg.get("custom_hooks") or ()):
        if name_of(hook) in names:
            yield f"custom_hooks.{number}", dict(hook)


def check_hooks(cfg: Mapping[str, Any], loop: Loop) -> None:
    """Raises UserError for a hook that would change results under mmengine's runner, and cannot here."""
    for hook in cfg.get("custom_hooks") or ():
        name = name_of(hook)
        _check_known("custom_hooks", name)
        if loop.by_iterations and name in OF_EPOCHS:
            raise UserError(f"key 'custom_hooks' has {name!r}, which counts epochs, but {ITERATIONS} has none of them")
    for key, hook in (cfg.get("default_hooks") or {}).items():
        if hook is None and key in LEFT_OUT:
            raise UserError(f"expected no such key: {LEFT_OUT[key]}", key=f"default_hooks.{key}", value=hook)
        if hook and hook.get("type") and (name := name_of(hook)) != "ParamSchedulerHook":
            _check_known(f"default_hooks.{key}", name)
            if name in ACTING:
                raise UserError(f"key 'default_hooks.{key}' is {name!r}, expected it in 'custom_hooks'")


def _check_known(key: str, name: str) -> None:
    if name not in WATCHING | ACTING | OVER_DEVICES:
        reason = REASONS.get(name, "only mmdet's own runner calls; expected none that changes results")
        raise UserError(f"key '{key}' has {name!r}, which {reason}")


def check_devices(cfg: Mapping[str, Any], devices: int, *, synchronised: bool) -> None:
    """Raises UserError where a hook would average over several devices what is not equal on them."""
    if devices > 1 and not synchronised and (held := list(hooks_of(cfg, OVER_DEVICES))):
        key, hook = held[0]
        expected = "expected trainer.sync_batchnorm=True, by which they are equal, or one device"
        raise UserError(
            f"key '{key}' is a {name_of(hook)}, which averages statistics over {devices} devices; {expected}"
        )
