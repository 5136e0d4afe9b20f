"""Prints setup.cfg's core dependencies pinned to their lower bounds, one a line, for pip."""

import configparser
import pathlib


def lower_bounds(path: pathlib.Path) -> list[str]:
    """Reads `install_requires` and turns each `name>=version` into `name==version`.

    Args:
      path: setup.cfg.

    Returns:
      The pins; jaxlib is pinned along with jax.

    Raises:
      ValueError: a requirement is not of the form `name>=version`.
    """
    config = configparser.ConfigParser()
    config.read(path)
    pins = []
    for requirement in config["options"]["install_requires"].split():
        name, bound, version = requirement.partition(">=")
        if not bound:
            raise ValueError(f"{path}: {requirement!r} has no lower bound; write name>=version")
        pins.append(f"{name}=={version}")
        if name == "jax":
            pins.append(f"jaxlib=={version}")
    return pins


if __name__ == "__main__":
    print("\n".join(lower_bounds(pathlib.Path(__file__).parent.parent / "setup.cfg")))
