"""The naive truth for sums over pairs: a block of rows against all candidates, in plain torch.

`formula` is the sum as one differentiable expression over the whole [M, N] matrix. The contract's two functions are the
same arithmetic with the gradient written out, some rows at a time, so that float64 too needs no more than O(M + N)
memory beside its inputs. What it does not do: be fast.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .contract import Pairs

_BLOCK = 1 << 22  # logits at a time


def formula(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, own: int | None, views: int = 1) -> Tensor:
    """The row sums [M]: ln sum_j exp(scale <x_i, y_j>), or with a bias sum_j ln(1 + exp(scale <x_i, y_j> + bias))."""
    logits = scale * (x @ y.T)  # [M, N]
    if bias is not None:
        logits = logits + bias
    if own is not None:
        logits = logits.masked_fill(
            _left_out(slice(0, x.shape[0]), x.shape[0], y.shape[0], own, views, x.device), -math.inf
        )
    return logits.logsumexp(dim=1) if bias is None else torch.logaddexp(logits, logits.new_zeros(())).sum(dim=1)


def pair_sums(pairs: Pairs, need_gradient: bool = False) -> tuple[Tensor, Tensor | None]:
    """Contract `pair_sums`."""
    state = _state(pairs)
    return state, pair_gradients(pairs, state, torch.ones_like(state[0]), True, False)[0] if need_gradient else None


def _state(pairs: Pairs) -> Tensor:
    state = pairs.scale.new_empty(2, pairs.x.shape[0])
    for rows, cosines in _blocks(pairs):
        if pairs.bias is not None:
            logits = pairs.scale * cosines + pairs.bias
            state[:, rows] = torch.stack(
                [logits.sigmoid().sum(1), torch.logaddexp(logits, logits.new_zeros(())).sum(1)]
            )
            continue
        top = cosines.amax(dim=1)  # [block]
        top = torch.where(top == -math.inf, 0.0, top)  # a row without candidates
        state[0, rows] = top
        state[1, rows] = (pairs.scale * (cosines - top[:, None])).exp().sum(dim=1)
    return state


def pair_gradients(
    pairs: Pairs, state: Tensor, by_value: Tensor, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Contract `pair_gradients`."""
    x, y = _unit(pairs)
    by_x = torch.zeros_like(x) if need_x or pairs.symmetric else None
    by_y = by_x if pairs.symmetric else torch.zeros_like(y) if need_y else None
    for rows, cosines in _blocks(pairs):
        if pairs.bias is not None:
            weights = (pairs.scale * cosines + pairs.bias).sigmoid() * by_value[rows, None]
        else:
            top, total = state[:, rows, None]
            share = torch.where(total > 0, by_value[rows, None] / total, 0.0)  # a row without candidates has none
            weights = (pairs.scale * (cosines - top)).exp() * share  # [block, N]
        if by_x is not None:
            by_x[rows] += weights @ y
        if by_y is not None:
            by_y.addmm_(weights.T, x[rows])
    return by_x, None if pairs.symmetric else by_y


def _blocks(pairs: Pairs) -> Iterator[tuple[slice, Tensor]]:
    """Some rows and their cosines [rows, N], -inf where a candidate is the row itself."""
    x, y = _unit(pairs)
    M, N = x.shape[0], y.shape[0]
    step = max(1, _BLOCK // max(1, N))
    for first in range(0, M, step):
        rows = slice(first, min(first + step, M))
        cosines = x[rows] @ y.T
        if pairs.own is not None:
            cosines.masked_fill_(_left_out(rows, M, N, pairs.own, pairs.views, x.device), -math.inf)
        yield rows, cosines


def _unit(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """The unit rows in the dtype of `scale`."""
    x, y = pairs.x.to(pairs.scale.dtype), pairs.y.to(pairs.scale.dtype)
    if pairs.x_factor is not None:
        x = x * pairs.x_factor[:, None]
    if pairs.y_factor is not None:
        y = y * pairs.y_factor[:, None]
    return x, y


def _left_out(rows: slice, M: int, N: int, own: int, views: int, device: torch.device) -> Tensor:
    """[rows, N] bool: the candidates that are the row itself, or another view of the same image."""
    row = torch.arange(rows.start, rows.stop, device=device)
    candidate = torch.arange(N, device=device)
    itself = (row + own)[:, None] == candidate
    return itself if views == 1 else itself | (((row + M // 2) % M + own)[:, None] == candidate)
