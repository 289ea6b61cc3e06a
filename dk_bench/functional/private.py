"""What the operators' registration needs of torch that is private to it, and so may go away in a later version."""

from __future__ import annotations

from operator import attrgetter

import torch
import torch._functorch.pyfunctorch  # noqa: F401  (so that its names can be looked up)

_NEEDED = {
    "_C": (
        "DispatchKey",
        "DispatchKeySet",
        "_AutoDispatchBelowAutograd",
        "_ExcludeDispatchKeyGuard",
        "_ForceDispatchKeyGuard",
        "_after_autograd_keyset",
        "_any_requires_grad",
        "_are_functorch_transforms_active",
        "_dispatch_has_kernel_for_dispatch_key",
        "_dispatch_key_for_device",
        "_dispatch_tls_local_exclude_set",
        "_dispatch_tls_local_include_set",
    ),
    "_C._functorch": (
        "TransformType",
        "_unwrap_functional_tensor",
        "_wrap_functional_tensor",
        "get_interpreter_stack",
        "get_unwrapped",
        "is_batchedtensor",
        "is_functorch_wrapped_tensor",
        "is_legacy_batchedtensor",
    ),
    "_functorch.pyfunctorch": ("retrieve_current_functorch_interpreter",),
    "autograd.forward_ad": ("_current_level", "_set_fwd_grad_enabled"),
}


def check_torch() -> None:
    """Raises ImportError where this torch has not all of it: at once, not from inside somebody's training step."""
    for module, names in _NEEDED.items():
        for name in names:
            try:
                attrgetter(f"{module}.{name}")(torch)
            except AttributeError as error:
                raise ImportError(
                    f"dk_bench: torch {torch.__version__} has no torch.{module}.{name}, by which the operators are "
                    "differentiated; torch 2.11 and 2.14 have it"
                ) from error
