"""The command `egno-jax`: from trajectory files to predicted trajectory files.

    egno-jax inspect copper.extxyz
    egno-jax train copper.extxyz --window 40fs --out runs/copper
    egno-jax predict runs/copper copper.extxyz --out predicted.extxyz

Needs the extra `cli`.
"""

from egno_jax.cli.commands import COMMANDS, main

__all__ = ["COMMANDS", "main"]
