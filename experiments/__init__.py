"""Runnable experiments, one script each: `python -m experiments.nbody --help`.

A script holds what is its own, as data: settings, presets, data set, published figures. What
scripts share stands in `command_line` (arguments), `run_directory` (files), `runner` (training and
evaluation) and `report` (pictures and the HTML page).
"""
