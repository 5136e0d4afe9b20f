"""The former name of `experiments.report`, kept for those who call it."""

import sys
import warnings

from experiments.report import main

if __name__ == "__main__":
    warnings.warn(
        "python -m experiments.results is now python -m experiments.report",
        DeprecationWarning,
        stacklevel=1,
    )
    sys.exit(main(sys.argv[1:]))
