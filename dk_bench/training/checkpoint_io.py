"""Writes checkpoints to the disk."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from dk_bench.files import open_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: a crash at any moment leaves the old one whole.

    Lightning's own way makes the file in the system's folder for temporary files and moves it, which across file
    systems is a copy that a crash leaves half done. Lightning calls this on the first process alone.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises OSError where the file cannot be written; the old one is still there then."""
        with open_atomically(path) as stream:
            try:
                torch.save(checkpoint, stream)
            except RuntimeError as error:  # torch's "unexpected pos", while it handles what the stream raised
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
