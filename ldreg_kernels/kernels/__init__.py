"""Room 1: raw tensors in, raw tensors out. No autograd, no argument checking, no policy.

`contract.py` says what every backend takes and returns; `reference.py` is the naive truth; `native.py` is the C++
backend; `dispatch.py` picks one. The rooms above import `dispatch` and `contract` only.
"""
