"""Records that are looked at again and again, read anew only when they have changed."""

from pathlib import Path

from dk_bench.errors import UserError
from dk_bench.runs.record import RunRecord, read_record


class RecordCache:
    """Reads records as `read_record` does, and keeps them."""

    def __init__(self) -> None:
        self._kept: dict[Path, tuple[tuple[int, int, int], RunRecord | None]] = {}

    def read(self, path: Path) -> RunRecord | None:
        """Returns the record in a file; None where there is none, or none that can be read."""
        try:
            now = path.stat()
        except OSError:
            self._kept.pop(path, None)
            return None
        stamp = (now.st_ino, now.st_mtime_ns, now.st_size)
        if path not in self._kept or self._kept[path][0] != stamp:
            try:
                record = read_record(path)
            except UserError:
                record = None
            self._kept[path] = (stamp, record)
        return self._kept[path][1]
