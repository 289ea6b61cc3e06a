"""Classifiers by timm's names, deformed as a configuration says, and those in checkpoints."""

import dataclasses
import difflib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from dk_bench.classification.task import Classification
from dk_bench.config import ModelConfig, config_from_dict, spec_of
from dk_bench.errors import UserError
from dk_bench.models import MODELS, KernelSpec, deform
from dk_bench.models.deform import GENERIC
from dk_bench.models.pretrained import classes_of, is_of, names_weights
from dk_bench.training.checkpoint import load_weights, read_checkpoint
from dk_bench.training.task import task_of
from dk_bench.training.weights import exported_as, is_ours, read_plain, weights_in

log = logging.getLogger(__name__)


def kernel_spec(config: ModelConfig) -> KernelSpec | None:
    """Tells what deforms the model that a configuration names: its ``spec``, or that of a model of ours.

    None for other models of timm, which stay as they are.

    Raises UserError for a spec that makes no sense, and where one is given for a model that is deformed by its name.
    """
    ours = MODELS.get(config.name)
    if config.spec is None:
        return ours.spec if ours else None
    if ours and not ours.spec.is_rigid:
        expected = f"null for {config.name}, which is deformed already; or name its rigid base, {ours.base!r}"
        raise UserError(f"expected {expected}", key="model.spec", value=config.spec)
    return spec_of(config)


def check_name(name: str) -> None:
    """Raises UserError, with names that are near, for a model that timm does not know."""
    if not timm.is_model(name):
        close = difflib.get_close_matches(str(name), timm.list_models(), n=3)
        hint = f", did you mean {' or '.join(close)}?" if close else "; `dk-bench models` lists ours"
        raise UserError(f"which timm does not know{hint}", key="model.name", value=name)


def build_model(config: ModelConfig, num_classes: int | None) -> nn.Module:
    """Returns the timm model, deformed where its name or ``config.spec`` says so.

    Weights come from ``config.checkpoint`` (of the same model or of its rigid base, as a run of ours, timm's train.py,
    ``torch.save(model.state_dict(), ...)`` or an export in timm's hub layout leave them) or, with
    ``config.pretrained``, from timm (of the rigid base, but where ``config.kwargs`` name others). They may be of
    another number of classes: then the classifier starts anew; with None as the number it is that of the checkpoint.

    Raises UserError for a name timm does not know (with near ones), arguments the model does not take, a spec that
    does not fit it, weights that cannot be had, and a checkpoint that cannot be read or is of another model.
    """
    check_name(config.name)
    if config.name == GENERIC:
        raise UserError("expected the rigid base; 'model.spec' deforms it", key="model.name", value=config.name)
    if config.checkpoint:
        return _from_checkpoint(config, num_classes)
    named = names_weights(config.kwargs.get("pretrained_cfg"), config.kwargs.get("pretrained_cfg_overlay"))
    if config.spec is None and (named or not config.pretrained):
        return _create(config.name, config, num_classes)
    base, spec = base_and_spec(config)
    if named and config.pretrained:  # of either; into the base alone, timm would load what fits of the deformed one
        with torch.device("meta"):  # a spec that does not fit is told before
            deform_as_named(_create(base, without_initial_weights(config), num_classes), spec, config)
        return _create(GENERIC, config, num_classes, base=base, spec=spec.to_dict())
    return deform_as_named(_create(base, config, num_classes), spec, config)


def without_initial_weights(config: ModelConfig) -> ModelConfig:
    """Returns the same model from random weights: for a checkpoint's to follow, which make the others needless."""
    return dataclasses.replace(config, checkpoint=None, pretrained=False)


def base_and_spec(config: ModelConfig) -> tuple[str, KernelSpec | None]:
    """Returns the rigid model and what deforms it, if anything: the same for a name of ours as for base and spec."""
    spec, ours = kernel_spec(config), MODELS.get(config.name)
    return ours.base if ours else config.name, spec if spec and not spec.is_rigid else None


def _from_checkpoint(config: ModelConfig, num_classes: int | None) -> nn.Module:
    (base, spec), path = base_and_spec(config), config.checkpoint
    content = read_plain(path)
    weights = weights_in(content)
    if is_ours(content):
        classes, is_rigid = _checked(content, config)
        model = _create(base, config, classes)
    else:
        if told := exported_as(path):
            _check_export(told, config)
        cfg = timm.get_pretrained_cfg(base)
        classes = classes_of(weights, cfg.to_dict() if cfg else {}) or num_classes or 0
        model = _create(base, config, classes)
        is_rigid = spec is None or is_of(weights, model)
    if not is_rigid:
        model = deform_as_named(model, spec, config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise _other_weights(content, weights, config, error) from error
    if is_rigid:
        model = deform_as_named(model, spec, config)
    if num_classes is not None and classes != num_classes:
        model.reset_classifier(num_classes)
        log.warning("%s: of %d classes, so that the classifier of %d starts anew", path, classes, num_classes)
    return model


def _checked(checkpoint: dict[str, Any], config: ModelConfig) -> tuple[int, bool]:
    """Tells how many classes a checkpoint of ours tells apart, and whether it is the rigid base's. Raises UserError
    where it is of another model."""
    path, held = config.checkpoint, checkpoint["hyper_parameters"]
    if task_of(checkpoint) != Classification.name:
        reason = f"a checkpoint of {task_of(checkpoint)}, expected one of a classification run"
        raise UserError(f"{reason}; 'load_from' of a detector's takes those", key="model.checkpoint", value=path)
    held_config = config_from_dict(held["config"], source=str(path)).model
    (base, spec), held_model = base_and_spec(config), base_and_spec(held_config)
    if held_model not in ((base, spec), (base, None)):
        of = f"a checkpoint of {_words(held_config)}, expected one of {_expected(config)}"
        raise UserError(of, key="model.checkpoint", value=path)
    return len(held["classes"]), held_model == (base, None)


def _check_export(told: Mapping[str, Any], config: ModelConfig) -> None:
    """Raises UserError where timm's hub layout says that its weights are of another model: those of two specs may have
    the same names and shapes."""
    name, args = told["architecture"], told.get("model_args") or {}
    spec = args.get("spec") if name == GENERIC else None
    held = ModelConfig(args.get("base", name) if spec else name, spec)
    (base, spec), held_model = base_and_spec(config), base_and_spec(held)
    if held_model not in ((base, spec), (base, None)):
        reason = f"an export of {_words(held)}, expected one of {_expected(config)}"
        raise UserError(reason, key="model.checkpoint", value=config.checkpoint)


def _other_weights(content: Any, weights: dict[str, Any], config: ModelConfig, error: RuntimeError) -> UserError:
    """Returns the error of weights that fit neither the model nor its rigid base."""
    expected, lines = _expected(config), " ".join(str(error).split())[:300]
    if is_ours(content) and weights:
        held = content["hyper_parameters"]["config"]["model"]["name"]
        return UserError(f"{config.checkpoint}: its weights ({held}) do not fit {config.name}: {lines}")
    of = f" of {content['arch']}" if isinstance(content.get("arch"), str) else ""
    reason = f"weights{of}, expected those of {expected}: {lines}"
    if not weights:
        reason = f"which holds no weights, expected those of {expected}"
    return UserError(reason, key="model.checkpoint", value=config.checkpoint)


def _expected(config: ModelConfig) -> str:
    base, spec = base_and_spec(config)
    return f"{_words(config)} or of its rigid base {base}" if spec else _words(config)


def _words(config: ModelConfig) -> str:
    return f"{config.name} with spec {spec_of(config).changed()}" if config.spec else config.name


def _create(name: str, config: ModelConfig, num_classes: int, **deformed_by: Any) -> nn.Module:
    kwargs = dict(config.kwargs)
    if config.drop_path_rate:  # not every model takes the argument
        kwargs["drop_path_rate"] = config.drop_path_rate
    try:
        return timm.create_model(name, pretrained=config.pretrained, num_classes=num_classes, **deformed_by, **kwargs)
    except (TypeError, ValueError, RuntimeError, OSError) as error:  # OSError: no network, no file
        made_with, reason = kwargs or "its defaults", " ".join(str(error).split())[:600]
        if config.pretrained:
            of = deformed_by.get("base", name)
            unless = f"timm has weights of {of}, can reach them and load them with {made_with}: {reason}"
            raise UserError(f"expected false unless {unless}", key="model.pretrained", value=True) from error
        raise UserError(f"model {config.name} cannot be made with {made_with}: {reason}") from error


def deform_as_named(model: nn.Module, spec: KernelSpec | None, config: ModelConfig) -> nn.Module:
    """Deforms a model by a spec, if any. Raises UserError that names ``model.spec`` where it does not fit the model."""
    try:
        return deform(model, spec or KernelSpec())
    except ValueError as error:
        reason = f"which does not fit {config.name}: {error}"
        raise UserError(reason, key="model.spec", value=config.spec) from error


def load_model(path: str | Path) -> nn.Module:
    """Returns the trained timm model in a checkpoint, in evaluation mode on the CPU. With EMA it is the averaged one.

    Raises UserError as `read_classifier` does.
    """
    checkpoint = read_classifier(path)
    held = checkpoint["hyper_parameters"]
    config = config_from_dict(held["config"], source=str(path)).model
    model = build_model(without_initial_weights(config), len(held["classes"]))
    load_weights(model, checkpoint, path)
    return model.eval()


def read_classifier(path: str | Path) -> dict[str, Any]:
    """Reads a classification run's checkpoint. Raises UserError as `read_checkpoint` does, and for another task's."""
    checkpoint = read_checkpoint(path)
    if task_of(checkpoint) != Classification.name:
        raise UserError(f"{path}: a checkpoint of {task_of(checkpoint)}, expected one of a classification run")
    return checkpoint
