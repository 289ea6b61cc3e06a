"""Twenty SIGKILLs at random moments of a sweep, to runner and runs; tools/sweep_kills.py says what it checks."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_sweep_survives_twenty_kills():
    command = [sys.executable, str(ROOT / "tools" / "sweep_kills.py"), "--fork", "--kills", "20", "--seed", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    shown = done.stdout.splitlines()
    assert shown[-1].startswith("20 kills in ") and sum(line.startswith("  kill ") for line in shown) == 20
