"""`gather`, `group` and `equal_rows` of the losses that have them: what is refused, and copies that keep their group.

The kind behind it: BYOL copies models, and `copy.deepcopy` of a loss with a group said "cannot pickle ProcessGroup".
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator

import cases
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ldreg_kernels.losses import InfoNCELoss, LDRegLoss, NNCLRLoss, NTXentLoss, SigmoidLoss


def ldreg(**options) -> LDRegLoss:
    return LDRegLoss(k=4, **options)


def value(loss: nn.Module) -> Tensor:
    rows = cases.features(12, 5)
    return loss(*rows.split({LDRegLoss: 12, NNCLRLoss: 3}.get(type(loss), 6)))


MAKERS = [ldreg, InfoNCELoss, NNCLRLoss, NTXentLoss, SigmoidLoss]
LOSSES = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.new_group([0])
    dist.destroy_process_group()


@LOSSES
def test_copies_have_the_same_group(make: Callable[..., nn.Module], group) -> None:
    model = nn.Sequential(nn.Linear(5, 5), make(group=group, equal_rows=True))
    before = value(model[1])
    for twin in (copy.deepcopy(model)[1], copy.copy(model[1]), copy.deepcopy([model, model])[1][1]):
        assert twin is not model[1]
        assert twin.group is group
        assert (twin.gather, twin.equal_rows) == (True, True)
        assert torch.equal(value(twin), before)


@LOSSES
def test_a_loss_with_a_group_is_not_pickled_without_it(make: Callable[..., nn.Module], group) -> None:
    loss = make(group=group)
    for how in (pickle.dumps, copy_by_torch):
        with pytest.raises(TypeError, match=r"^group cannot be pickled: a process group belongs to the process that"):
            how(loss)
    assert not any("group" in key for key in make(group=group).state_dict())


@LOSSES
def test_a_loss_without_a_group_is_pickled(make: Callable[..., nn.Module]) -> None:
    loss = make(gather=False)
    for twin in (pickle.loads(pickle.dumps(loss)), copy_by_torch(loss)):
        assert (twin.group, twin.gather) == (None, False)
        assert torch.equal(value(twin), value(loss))


def copy_by_torch(loss: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@LOSSES
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": 3}, "group must be a torch.distributed.ProcessGroup or None, got int"),
        ({"group": "gloo"}, "group must be a torch.distributed.ProcessGroup or None, got str"),
        ({"group": torch.ones(3)}, "group must be a torch.distributed.ProcessGroup or None, got Tensor"),
        ({"gather": "no"}, "gather must be True or False, got str 'no'"),
        ({"equal_rows": 1}, "equal_rows must be True or False, got int 1"),
    ],
)
def test_bad_settings_are_refused_when_the_loss_is_made(make: Callable[..., nn.Module], options, message: str) -> None:
    with pytest.raises(TypeError, match=f"^{message}$"):
        make(**options)


@LOSSES
def test_a_group_that_is_of_no_use_is_refused(make: Callable[..., nn.Module], group) -> None:
    with pytest.raises(ValueError, match=r"^group is used by gather=True only, got a group with gather=False"):
        make(gather=False, group=group)
    with pytest.raises(ValueError, match="group must be a process group that this process is a member of, but rank 0"):
        make(group=dist.GroupMember.NON_GROUP_MEMBER)
