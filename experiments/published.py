"""Results from the literature, as the scripts list them."""

from __future__ import annotations

from typing import NamedTuple

# Sources of published results.
EGNO_PAPER = "Xu et al., ICML 2024, arXiv:2401.11037"
REPORTED = f"as reported by {EGNO_PAPER}"
RUN_AGAIN, REPRODUCTION = "EGNO, its public code run again", "an independent reproduction"


class Published(NamedTuple):
    """A result from the literature.

    Attributes:
      method: the method's name.
      f_mse: error at the last time.
      a_mse: error over all times, if reported.
      source: who reported it, and what differs.
      task: the task it was measured on, as `Experiment.task` names it.
      other_split: whether the data were split in another way, as `source` says; tables mark it.
    """

    method: str
    f_mse: float
    a_mse: float | None
    source: str
    task: str = ""
    other_split: bool = False

    def cited(self, key: str) -> str:
        """Returns an error as text, marked where it was measured on another split."""
        number = getattr(self, key)
        mark = "\\*" if self.other_split else ""
        return "" if number is None else f"{number:.5f}".rstrip("0") + mark
