"""The private parts of torch that the registration of operators needs, and that a later version may drop."""

from operator import attrgetter

import torch
import torch._functorch.pyfunctorch  # noqa: F401  (so that its names can be looked up)

_NEEDED = """
    _C.DispatchKey _C.DispatchKeySet _C._AutoDispatchBelowAutograd _C._ExcludeDispatchKeyGuard
    _C._ForceDispatchKeyGuard _C._after_autograd_keyset _C._any_requires_grad _C._are_functorch_transforms_active
    _C._dispatch_has_kernel_for_dispatch_key _C._dispatch_key_for_device _C._dispatch_tls_local_exclude_set
    _C._dispatch_tls_local_include_set
    _C._functorch.TransformType _C._functorch._unwrap_functional_tensor _C._functorch._wrap_functional_tensor
    _C._functorch.get_interpreter_stack _C._functorch.get_unwrapped _C._functorch.is_batchedtensor
    _C._functorch.is_functorch_wrapped_tensor _C._functorch.is_legacy_batchedtensor
    _functorch.pyfunctorch.retrieve_current_functorch_interpreter
    autograd.forward_ad._current_level autograd.forward_ad._set_fwd_grad_enabled
"""


def check_torch() -> None:
    """Raises ImportError where this torch has not all of it: at once, not from inside somebody's training step."""
    for name in _NEEDED.split():
        try:
            attrgetter(name)(torch)
        except AttributeError as error:
            raise ImportError(
                f"dk_bench: torch {torch.__version__} has no torch.{name}, by which the operators are differentiated; "
                "torch 2.11, 2.14 and 2.15 have it"
            ) from error
