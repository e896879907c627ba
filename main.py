"""Train score-based diffusion models and sample from them; `python main.py --help`."""

import sys

from score_sde.cli import main

if __name__ == "__main__":
    sys.exit(main())
