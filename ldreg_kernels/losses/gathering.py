"""What losses over the rows of several processes have in common: whether to gather, over which group, and copies."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import torch.distributed as dist
from torch import Tensor, nn

from ..ops import validate
from ..ops.gather import gather_rows, several_processes
from .checks import check_pair_backend, check_temperature, shown_temperature


class Candidates(NamedTuple):
    """Result of `candidates_of`."""

    rows: Tensor  # those of all ranks; the same tensor where there is one process
    offset: int  # where this rank's own begin
    weight: float  # W over their number: times a sum over own rows, its mean over ranks is the mean over all rows


def candidates_of(
    name: str, rows: Tensor, group: dist.ProcessGroup | None, *, equal_rows: bool, fewest: int, views: int = 1
) -> Candidates:
    """The rows of all ranks of `group`, `views` of each image; ValueError for fewer than `fewest` images."""
    several = group is not None and several_processes(group)
    everyone, offset = gather_rows(rows, group, equal_rows=equal_rows) if several else (rows, 0)
    images = everyone.shape[0] // views
    if images < fewest:
        where = " over all ranks of the group" if several else ""
        what = f"{fewest} rows{where}, so that negatives exist" if fewest > 1 else f"{fewest} row{where}"
        raise ValueError(f"{name} must have at least {what}, got {images}")
    return Candidates(everyone, offset, (dist.get_world_size(group) if several else 1) / everyone.shape[0])


class GatheringLoss(nn.Module):
    """A loss with the settings `gather`, `group` and `equal_rows`.

    A copy of it has the same group. With a group it cannot be pickled (nor saved whole): a group belongs to its
    process, and a loss that came back without one would gather over other ranks, silently.
    """

    def __init__(self, gather: bool, group: dist.ProcessGroup | None, equal_rows: bool) -> None:
        super().__init__()
        self.gather = validate.flag("gather", gather)
        self.equal_rows = validate.flag("equal_rows", equal_rows)
        if group is not None:
            several_processes(group)  # says what is wrong with it
            if not gather:
                raise ValueError("group is used by gather=True only, got a group with gather=False")
        self._held = None if group is None else _Held(group)

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group to gather over; None is the default one. It is set where the loss is made."""
        return None if self._held is None else self._held.group

    def joint_group(self) -> dist.ProcessGroup | None:
        """The group whose rows are candidates: the default one where none is named; None gathers nothing."""
        if self.group is None and self.gather and several_processes():
            return dist.group.WORLD
        return self.group


class ContrastiveLoss(GatheringLoss):
    """A gathering loss with a temperature, and a backend for its sums over pairs."""

    def __init__(
        self,
        temperature: float | Tensor,
        gather: bool,
        group: dist.ProcessGroup | None,
        equal_rows: bool,
        backend: str,
    ) -> None:
        super().__init__(gather, group, equal_rows)
        check_temperature(temperature)
        check_pair_backend(backend)
        self.temperature = temperature
        self.backend = backend

    def settings(self) -> dict[str, Any]:
        """What the function takes, as keywords."""
        return {
            "temperature": self.temperature,
            "group": self.joint_group(),
            "equal_rows": self.equal_rows,
            "backend": self.backend,
        }

    def extra_repr(self) -> str:
        """The settings, for `repr`; a group has no name that says anything."""
        return f"temperature={shown_temperature(self.temperature)}, gather={self.gather}, equal_rows={self.equal_rows}"


class _Held:
    """A process group, as an attribute that does not stop its owner from being copied."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> _Held:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "group cannot be pickled: a process group belongs to the process that made it. Save the state_dict, and "
            "make the loss anew, with a group, where it is loaded"
        )
