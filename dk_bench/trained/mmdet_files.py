"""mmdet's files, ``config.py`` and ``model.pth``: what its tools and ``init_detector`` read."""

from pathlib import Path

from dk_bench import tasks
from dk_bench.files import open_atomically, write_atomically
from dk_bench.trained.load import Trained
from dk_bench.training.weights import write_plain

CONFIG, WEIGHTS = "config.py", "model.pth"


def write(trained: Trained, folder: Path) -> list[str]:
    """Writes both files into a folder and returns their names.

    The weights have mmdet's names; beside them are the classes' names and colours, the configuration and the versions
    of what made them: plain data, as ``torch.load`` reads by default. Paths of data are those of the run.

    Raises UserError for what is no detector, with the line by which a detector starts from a classifier's weights, and
    OSError where the folder cannot be written.
    """
    content, config = tasks.KINDS[trained.task].task.for_mmdet(trained.model, trained.path)
    write_atomically(folder / CONFIG, config)
    with open_atomically(folder / WEIGHTS) as stream:
        write_plain(content, stream)
    return [CONFIG, WEIGHTS]
