"""Runnable experiments, one script each: `python -m experiments.nbody --help`.

They run from the root of the repository and are in no wheel. A script (`nbody`, `mocap`, `md17`,
`protein`) defines what is specific to it: settings of the data, tasks, published results. Its
configs are YAML files in `configs/<experiment>/`. The scripts share:

- `experiment`, `published`: what a script defines.
- `data_settings`: checks of the settings of the data, and names of tasks.
- `settings`: configs as files.
- `command_line`: arguments.
- `runner`, `decoding`: training and evaluation.
- `run_directory`: the files of a run.
- `run_page`, `run_pictures`: the HTML page and the pictures of a run.

`report` publishes the results of runs: `run_records` reads and selects them, `dot_plot` draws them.
`publish` publishes the model of a run with the library.
`studies` holds questions about EGNO that one command each answers: `python -m
experiments.studies.modes`.
"""

import signal
import sys


def _stop(number: int, frame: object) -> None:
    print("interrupted; start the same command again", file=sys.stderr, flush=True)
    raise SystemExit(75)  # egno_jax.training.liveness.RESUMABLE


# `python -m experiments.nbody` spends seconds on its imports, before it handles signals itself.
if sys.argv[:1] == ["-m"]:
    for _each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(_each, _stop)
