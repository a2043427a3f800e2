"""Where the files of a data set are looked for, and the two errors about them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..config.base import ConfigError

ENVIRONMENT = "LDREG_DATA"


def folders(dataset: str, root: Path | None) -> list[Path]:
    """The folders in which the files of a data set may lie, in the order of the search.

    Args:
        dataset: its name in the configuration.
        root: where the user says they are; nowhere else is looked then. It may be the folder itself, one that holds it
            under the data set's name, or the tree that `dpkg -x` leaves.

    Returns:
        The folders; they need not exist.
    """
    if root is not None:
        return [root, root / dataset, root / "usr/share/datasets" / dataset]
    places = [Path("/usr/share/datasets"), Path.home() / ".local/share/datasets"]
    if os.environ.get(ENVIRONMENT):
        places.insert(0, Path(os.environ[ENVIRONMENT]))
    return [place / dataset for place in places]


def missing(dataset: str, places: Sequence[Path]) -> ConfigError:
    """The error of a data set that is not on this machine."""
    where = " or ".join(str(place) for place in places)
    return ConfigError(f"data.root: no {dataset} in {where}; `ldreg data {dataset}` says how to get it")


def damaged(dataset: str, path: Path | str, what: object) -> ConfigError:
    """The error of a file that is not what it should be; the message is one line."""
    reason = " ".join(str(what).split())
    return ConfigError(f"data.root: {path}: {reason}; `ldreg data {dataset}` says where sound files come from")
