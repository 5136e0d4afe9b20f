"""Runnable experiments, one script each: `python -m experiments.nbody --help`.

They run from the root of the repository and are in no wheel. A script (`nbody`, `mocap`, `md17`,
`protein`) holds what is its own, as data: settings, presets, data set, published figures. What
scripts share:

- `command_line`: arguments.
- `methods`: the presets of the baselines.
- `runner`: training and evaluation.
- `run_directory`: the files of a run.
- `run_page`: pictures and the HTML page of a run.

`report` publishes the results of runs, with `report_rows` (what compares with what),
`report_tables` and `report_figures`; `results` is its former name. `studies` holds questions about
EGNO that one command each answers: `python -m experiments.studies.modes`.
"""
