"""`python -m warp_core` is `warp-core`."""

import sys

from warp_core.cli import main

sys.exit(main())
