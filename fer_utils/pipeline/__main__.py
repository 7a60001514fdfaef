"""Entry point of `python -m fer_utils.pipeline`, which ./run_all.sh calls."""

import sys

from fer_utils.pipeline.cli import main

sys.exit(main())
