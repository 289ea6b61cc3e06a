"""``python -m dk_bench`` is the command ``dk-bench``."""

import sys

from dk_bench.cli import main

sys.exit(main())
