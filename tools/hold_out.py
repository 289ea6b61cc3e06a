"""Holds a part of training images out, to choose settings by: writes two tars, the rest and the part.

python tools/hold_out.py IMAGES REST.tar PART.tar [--every N]

IMAGES is a folder or tar with one folder of images a class (docs/data.md). Of each class every Nth image, by default
the fifth, tenth and so on in the order of dk_bench's numbering, is in PART, all others in REST. Files keep their bytes.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from dk_bench.data.scan import Scan, scan
from dk_bench.errors import UserError, system_errors
from dk_bench.files import open_atomically


def split(labels: Sequence[int], every: int) -> tuple[list[int], list[int]]:
    """Returns the numbers of the images that stay, and of those held out: every Nth of each class. Raises UserError
    where a class would have none on one side."""
    least = min(Counter(labels).values())
    if not 2 <= every <= least:
        raise UserError(f"--every {every}: expected 2 to {least}, the images of the smallest class")
    seen: Counter[int] = Counter()
    rest, part = [], []
    for index, label in enumerate(labels):
        seen[label] += 1
        (rest if seen[label] % every else part).append(index)
    return rest, part


def write(images: Scan, indices: Iterable[int], path: Path) -> None:
    """Writes images as a tar with a folder a class, whole or not at all. Raises UserError where it cannot."""
    with (
        system_errors(f"{path}: cannot be written"),
        open_atomically(path) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for index in indices:
            content = images.content(index)
            name = f"{images.classes[images.labels[index]]}/{images.names[index].rpartition('/')[2]}"
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def main(arguments: list[str] | None = None) -> int:
    """Writes both tars. Returns 0, or 2 for bad input, which it tells in a sentence."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", metavar="IMAGES")
    parser.add_argument("rest", type=Path, metavar="REST.tar")
    parser.add_argument("part", type=Path, metavar="PART.tar")
    parser.add_argument("--every", type=int, default=5, metavar="N", help="%(default)s")
    args = parser.parse_args(arguments)
    try:
        images = scan(args.images, "IMAGES")
        for path, indices in zip((args.rest, args.part), split(images.labels, args.every), strict=True):
            write(images, indices, path)
            print(f"{path}: {len(indices):,} images of {len(images.classes)} classes")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
