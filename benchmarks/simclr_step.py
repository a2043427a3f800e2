"""A SimCLR step on synthetic images, with ResNet-50 or ViT-B: networks, optimiser, images, one optimisation step.

    f = encoder(two views),  total = NT-Xent(projector(f)) + 0.01 R(f),  backward, optimiser

Augmentation, data loading and several processes are not part of it; the networks are transformers' own with random
weights. What R is and how long it takes is train_step.py's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldreg_kernels.losses.ntxent import nt_xent_loss

from .cases import TRACK

Network = Literal["resnet50", "vit-b"]
NETWORKS: tuple[Network, ...] = get_args(Network)
BETA = 0.01  # weight of R in the published SimCLR training
BUFFERS = 3  # batches of images that rounds rotate over

Track = Sequence[tuple[str, int]]
# A regulariser: features [B, D], k, LIDs to log -> R, and those LIDs [B] each
Regulariser = Callable[[Tensor, int, Track], tuple[Tensor, list[Tensor]]]


# ------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class StepCase:
    """One training step: `images` images in two views each, so 2 * images rows of features.

    `overrides` replaces settings of the network's configuration, for tests that cannot wait for a ResNet-50.
    """

    network: Network
    images: int
    pixels: int
    k: int = 64
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {self.network!r}")
        if not 2 <= self.k <= self.batch - 2:
            # The published form would quietly take fewer neighbours.
            raise ValueError(f"k must be in [2, 2 * images - 2 = {self.batch - 2}], got {self.k}")

    @property
    def batch(self) -> int:
        """Rows of features in a step, B."""
        return 2 * self.images

    @property
    def track(self) -> tuple[tuple[str, int], ...]:
        """The LIDs logged beside, each k cut to B - 2 as the published code does."""
        return tuple((estimator, min(k, self.batch - 2)) for estimator, k in TRACK)

    @property
    def mode(self) -> str:
        """For example "simclr resnet50 224px"."""
        return f"simclr {self.network}{' (cut down)' if self.overrides else ''} {self.pixels}px"

    @property
    def note(self) -> str:
        """What differs from the published step, "" where nothing does."""
        pairs = zip(TRACK, self.track, strict=True)
        cut = [f"{name} {k} ran with k = {used}" for (name, k), (_, used) in pairs if used < k]
        return f"only {self.batch} rows: {', '.join(cut)}" if cut else ""


_CPU = (StepCase("resnet50", 260, 32), StepCase("vit-b", 128, 32))  # 520 rows: room for the 512 neighbours logged
_CPU_QUICK = (StepCase("resnet50", 64, 32),)  # ViT-B's 86 million parameters take a CPU too long
_CUDA_QUICK = (StepCase("resnet50", 256, 224), StepCase("vit-b", 256, 224))
# The network's time grows with B, the regulariser's with B squared: small images show a batch as large as papers use.
_CUDA = (*_CUDA_QUICK, StepCase("resnet50", 1024, 96), StepCase("vit-b", 1024, 96))


def step_cases(device: str, *, quick: bool = False) -> tuple[StepCase, ...]:
    """The steps worth timing on a device, "cpu" or "cuda"; `quick` is ten seconds on two CPU cores."""
    found = {("cpu", False): _CPU, ("cpu", True): _CPU_QUICK, ("cuda", False): _CUDA, ("cuda", True): _CUDA_QUICK}
    if (device, quick) not in found:
        raise ValueError(f"device must be cpu or cuda, got {device!r}")
    return found[device, quick]


# ------------------------------------------------------------------------------------------------- the step


class Encoder(nn.Module):
    """images [B, 3, H, W] -> features [B, D]: ResNet's average over positions, or ViT's CLS token."""

    def __init__(self, case: StepCase) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel  # the [train] extra

        self.is_vit = case.network == "vit-b"
        if self.is_vit:
            settings = {"image_size": case.pixels, "patch_size": 16, **case.overrides}  # the rest is ViT-B by default
            self.network = ViTModel(ViTConfig(**settings), add_pooling_layer=False)
            self.output_dim: int = self.network.config.hidden_size
        else:
            depths, widths = [3, 4, 6, 3], [256, 512, 1024, 2048]
            settings = {"depths": depths, "hidden_sizes": widths, "layer_type": "bottleneck", **case.overrides}
            self.network = ResNetModel(ResNetConfig(**settings))
            self.output_dim = self.network.config.hidden_sizes[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, D]."""
        output = self.network(images)
        features: Tensor = output.last_hidden_state[:, 0] if self.is_vit else output.pooler_output.flatten(1)
        return features


def projector(input_dim: int, hidden_dim: int, output_dim: int) -> nn.Sequential:
    """SimCLR's head, layer for layer `ldreg_kernels.trainer.networks.heads.simclr_projector` (a test compares them).

    Importing that one asks for everything the trainer needs, which a machine that only measures may lack.
    """
    last_norm = nn.BatchNorm1d(output_dim)
    last_norm.bias.requires_grad_(False)
    return nn.Sequential(
        nn.Linear(input_dim, hidden_dim, bias=False),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, output_dim, bias=False),
        last_norm,
    )


class TrainStep:
    """Networks, optimiser and images of a case; `run` is one optimisation step.

    The learning rate is 0: the optimiser does all its work, yet every step of every variant begins from the same
    weights, so that variants see the same features.
    """

    def __init__(self, case: StepCase, device: torch.device) -> None:
        self.case, self.device = case, device
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = Encoder(case)
            hidden, output = (4096, 256) if case.network == "vit-b" else (2048, 128)
            self.projector = projector(self.encoder.output_dim, hidden, output)
        # The faster layout for convolutions under tensor cores, and on a CPU too.
        self.layout = torch.contiguous_format if case.network == "vit-b" else torch.channels_last
        self.encoder.to(device=device, memory_format=self.layout).train()  # type: ignore[call-overload]
        self.projector.to(device).train()
        self.temperature = 0.2 if case.network == "vit-b" else 0.1
        self.optimiser = self._optimiser()
        self.batches = [self._images(seed) for seed in range(BUFFERS)]

    def _optimiser(self) -> torch.optim.Optimizer:
        parameters = [p for module in (self.encoder, self.projector) for p in module.parameters() if p.requires_grad]
        if self.case.network == "vit-b":
            return torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.1)
        return torch.optim.SGD(parameters, lr=0.0, momentum=0.9, weight_decay=1e-6)

    def _images(self, seed: int) -> Tensor:
        """View 1 stacked on view 2, [B, 3, H, W]: smooth random images, and noise that differs between the views.

        Noise alone would not do: averaged over its positions every image would look the same to the network.
        """
        case = self.case
        generator = torch.Generator(self.device).manual_seed(seed)
        coarse = torch.randn(case.images, 3, 4, 4, generator=generator, device=self.device)
        images = F.interpolate(coarse, size=case.pixels, mode="bilinear").repeat(2, 1, 1, 1)
        noise = torch.randn(images.shape, generator=generator, device=self.device)
        return (images + 0.2 * noise).contiguous(memory_format=self.layout)

    def run(self, index: int, regulariser: Regulariser | None) -> Tensor:
        """One step on batch `index`; returns its features, detached."""
        on_gpu = self.device.type == "cuda"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=on_gpu):
            features = self.encoder(self.batches[index % BUFFERS])  # [B, D]
            z1, z2 = self.projector(features).chunk(2)
        total = nt_xent_loss(z1, z2, temperature=self.temperature)
        if regulariser is not None:
            total = total + BETA * regulariser(features, self.case.k, self.case.track)[0]
        total.backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return features.detach()
