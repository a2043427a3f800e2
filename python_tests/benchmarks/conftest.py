"""The gate on a machine that seems to have a GPU: see pretended_gpu.py."""

from __future__ import annotations

from pathlib import Path

import pretended_gpu
import pytest


@pytest.fixture
def pretended(tmp_path: Path) -> pretended_gpu.Gate:
    python, path = pretended_gpu.tools(tmp_path / "tools")

    def run(*options: str, **variables: str) -> pretended_gpu.Result:
        return pretended_gpu.gate(tmp_path / "out", *options, python=python, PATH=path, **variables)

    return run
