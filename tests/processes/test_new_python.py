"""Processes forked in place of started (new_python.py in tests/cases) are as those that are started."""

import json
import os
import subprocess

import pytest
from new_python import run_new_python

SHOW = """
import json, os, sys
print(json.dumps([sys.argv, sys.orig_argv[1:], os.getcwd(), os.environ.get("GIVEN"), "HOME" in os.environ, __name__]))
print(sorted(name for name in sys.modules if name.startswith("dk_bench")), file=sys.stderr)
"""


def test_it_has_what_it_was_given_and_nothing_of_this_package(tmp_path):
    done = run_new_python(["-c", SHOW, "one", 2], cwd=tmp_path, env={"GIVEN": "this"})
    assert json.loads(done.stdout) == [
        ["-c", "one", "2"],
        ["-c", SHOW, "one", "2"],
        str(tmp_path),
        "this",
        False,
        "__main__",
    ]
    assert (done.stderr, done.returncode) == ("[]\n", 0)
    script = tmp_path / "script.py"
    script.write_text(SHOW)
    assert json.loads(run_new_python([script, "one"]).stdout)[:2] == [[str(script), "one"]] * 2


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("import sys; sys.exit(5)", 5, ""),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import sys; sys.exit('why')", 1, "why"),
        ("raise OSError('disk full')", 1, "OSError: disk full"),
    ],
)
def test_its_end_is_told(code, status, said):
    done = run_new_python(["-c", code])
    assert done.returncode == status and done.stderr.strip().endswith(said)
    assert run_new_python(["-m", "no_such_module"], env=os.environ).returncode == 1


def test_what_takes_too_long_is_ended():
    with pytest.raises(subprocess.TimeoutExpired):
        run_new_python(["-c", "import time; time.sleep(60)"], timeout=0.2)
