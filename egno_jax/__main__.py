"""`python -m egno_jax`: the command line, see `egno_jax.cli`."""

import sys

from egno_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
