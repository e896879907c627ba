"""`python -m score_sde.runs runs/`: a table of the runs in a folder."""

import sys

from score_sde.runs.listing import main

sys.exit(main())
