"""Twenty SIGKILLs at random moments of a sweep, runner and cells, see tools/sweep_kills.py, which says what it checks."""

import os
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[1] / "tools" / "sweep_kills.py"


def test_sweep_survives_twenty_kills():
    command = [sys.executable, str(TOOL), "--fork", "--kills", "20", "--seed", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    shown = done.stdout.splitlines()
    assert shown[-1].startswith("20 kills in ") and sum(line.startswith("  kill ") for line in shown) == 20
