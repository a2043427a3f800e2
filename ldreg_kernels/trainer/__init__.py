"""Room 6: a reference trainer that proves the regulariser in real training runs.

config -> data, augmentation, backbones, heads, methods, regulariser -> engine -> evaluation, checkpoint,
run_folder, plots; verify and demo are built on the engine. Everything here needs the extra
`ldreg_kernels[train]`.
"""

from __future__ import annotations

from importlib.util import find_spec

_LIBRARIES = (
    "PIL",
    "accelerate",
    "kornia",
    "matplotlib",
    "pydantic",
    "safetensors",
    "sklearn",
    "tensorboard",
    "transformers",
    "yaml",
)


def _require_train_extra() -> None:
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ldreg_kernels.trainer needs {', '.join(missing)}: install the extra, pip install 'ldreg_kernels[train]'"
        )


_require_train_extra()
