"""Room 2: checked and differentiable. Arguments are validated here, torch ops registered here, gradients attached here.

It sees the kernels through `kernels.dispatch` (and the vocabulary in `kernels.contract`) only.
"""
