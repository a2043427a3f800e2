"""What losses over the rows of several processes have in common: whether to gather, over which group, and copies."""

from __future__ import annotations

from typing import Any, NoReturn

import torch.distributed as dist
from torch import nn

from ..ops import validate
from ..ops.gather import several_processes


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
