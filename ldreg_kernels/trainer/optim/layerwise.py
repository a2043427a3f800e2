"""SGD with momentum over directions that are scaled tensor by tensor: what LARS and LARC share.

Norms and ratios stay on the device, and work on lists of tensors: a step synchronises nothing with the host. All
parameters of a group must be on one device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class LayerwiseSGD(torch.optim.Optimizer):
    """mu <- momentum mu + d,  theta <- theta - lr mu,  with d = `direction(theta, g)`; mu starts at 0.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        momentum: in [0, 1).
        weight_decay: wd.
        trust_coefficient: eta.
        more: what a subclass keeps in its groups.

    Raises:
        ValueError: a setting is negative or not finite, or momentum is not below 1.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        **more: Any,
    ) -> None:
        settings = {"momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient}
        super().__init__(params, {"lr": lr, **settings, **more})
        for group in self.param_groups:
            for name in ("lr", "momentum", "weight_decay", "trust_coefficient"):
                if not 0 <= group[name] < (1 if name == "momentum" else float("inf")):
                    raise ValueError(
                        f"{name} must be {'in [0, 1)' if name == 'momentum' else 'finite and not negative'}, "
                        f"got {group[name]}"
                    )

    def direction(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """What is added to the momentum: new tensors, or `gradients` themselves.

        Args:
            parameters: theta.
            gradients: g, of the same shapes.
            group: the settings.

        Returns:
            d, of the same shapes.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; parameters without a gradient are left alone.

        Args:
            closure: recomputes the loss, or None.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            momenta = [self._momentum_of(p) for p in parameters]
            d = self.direction(parameters, [p.grad for p in parameters], group)
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, d)
            torch._foreach_add_(parameters, momenta, alpha=-group["lr"])
        return loss

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def norms(tensors: list[Tensor]) -> Tensor:
    """Euclidean norms [len(tensors)] of whole tensors, on the device."""
    return torch.stack(torch._foreach_norm(tensors))
