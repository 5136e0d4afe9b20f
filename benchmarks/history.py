"""The errors of a training run over time, until a target is reached."""

from __future__ import annotations

from typing import Any


class Reached(Exception):
    """The error is at most the target: the run can end."""


class History:
    """A callback of `egno_jax.training.fit` that stops the run at an F-MSE of `target`."""

    def __init__(self, target: float) -> None:
        self._target = target
        self._records: list[dict[str, Any]] = []

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def on_chunk(self, record: dict[str, Any]) -> None:
        """Ignores training records."""

    def on_evaluation(self, record: dict[str, Any]) -> None:
        """Keeps step, seconds and F-MSE of a record.

        Raises:
          Reached: the F-MSE is at most the target.
        """
        self._records.append({key: record[key] for key in ("step", "seconds", "f_mse")})
        if record["f_mse"] <= self._target:
            raise Reached

    def result(self) -> dict[str, Any]:
        """Returns whether the target was reached, at which step and second, and all records."""
        last = self._records[-1]
        return {
            "is_reached": last["f_mse"] <= self._target,
            "step": last["step"],
            "seconds": last["seconds"],
            "best_f_mse": min(record["f_mse"] for record in self._records),
            "history": self._records,
        }
