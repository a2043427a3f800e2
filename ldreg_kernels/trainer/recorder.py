"""The records of a run in progress: in memory, and in its folder."""

from __future__ import annotations

from typing import Any

import torch

from .evaluation import Geometry
from .run_folder import RunFolder
from .step_log import Observer, Window


class Recorder(Observer):
    """Keeps the records of a run, and writes them into its folder.

    Args:
        folder: None keeps them in memory alone.
    """

    def __init__(self, folder: RunFolder | None = None) -> None:
        self.steps: list[dict[str, Any]] = []
        self.geometries: list[dict[str, Any]] = []
        self._folder = folder
        self._speeds: list[float] = []

    @property
    def images_per_second(self) -> float:
        """The median over the windows."""
        return float(torch.tensor(self._speeds).median()) if self._speeds else float("nan")

    def window(self, window: Window) -> None:
        """Keep a window's records."""
        self._speeds.append(window.images_per_second)
        for record in window.records:
            self.steps.append(dict(record))
            self._write(self.steps[-1])

    def add_geometry(self, step: int, epoch: int, geometry: Geometry) -> None:
        """Keep a measurement of held-out features.

        Args:
            step: optimiser steps before it.
            epoch: the epoch that has ended.
            geometry: the numbers.
        """
        self.geometries.append({"kind": "geometry", "step": step, "epoch": epoch, **geometry.numbers()})
        self._write(self.geometries[-1])

    def _write(self, record: dict[str, Any]) -> None:
        if self._folder is not None:
            self._folder.log(record)
