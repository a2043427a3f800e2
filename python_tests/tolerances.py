"""Every tolerance of the ops and kernels tests, each with its reason. Nothing else sets one.

The contract (exact mode): distances within 1e-6 relative, LID within 4e-6 (1 + LID), gradient given the
indices within 1e-5 in L2. A float32 distance is off by r relative (half an ulp is 6e-8), and
LID = m / (d_k - m) multiplies that by 1 + LID, so an absolute error of r LID (1 + LID) is unavoidable; it
passes 4e-6 (1 + LID) at LID = 4e-6 / r. The bounds below are the larger of the two.
"""

import torch

# Relative error of a distance, and how near two distances must be to count as a tie: the contract.
DISTANCE = 1e-6
# The reference's float64 is the truth of these tests; its float32 is the naive baseline, which adds the D
# squares in eight vector lanes one after another: D / 8 roundings of 6e-8 in the square, half of that in its
# root. Longer rows it computes in float64.
REFERENCE_DISTANCE_PER_D = 4e-9
REFERENCE_LONGEST = 2048
# float64 in, float64 out: D roundings of 1e-16 each, D <= 1e4.
DISTANCE_FLOAT64 = 1e-12
# The same where squares need a scale of their own: features of 1e-300 to 1e300, alone or beside ordinary ones.
DISTANCE_FLOAT64_EXTREME = 1e-9

LID = 4e-6  # times (1 + LID): the contract
# Times LID (1 + LID): distances within 2e-7, which fp32 differences added in lanes keep to D = 8192. It takes
# over from the contract at LID = 20.
LID_PER_LID = 2e-7
LID_FLOAT64 = 1e-11  # times (1 + LID)^2: the distance bound times the conditioning, with a digit to spare

# LIDs above this come from distances equal to 1e-5: float32 can place them only within tens of per cent, and
# beyond 1e6 they are degenerate by definition. A backend may answer NaN or anything above a tenth of it.
LID_UNRESOLVED = 1e5

# scikit-dimension, point by point, absolute: times (1 + LID). The strict reading of the contract, met where
# LID <= 25.
SKDIM = 4e-6

# Relative L2 of the gradient given the indices: the contract. Its coefficients are 1 / (d_k - m), so it is
# conditioned by 1 + LID, which takes over where a row (k = 2, say) has an LID above 100.
GRADIENT = 1e-5
GRADIENT_PER_LID = 1e-7
GRADIENT_FLOAT64 = 1e-10
# A float32 unit gradient is rounded once more into the dtype of x: half an ulp, for every entry.
GRADIENT_ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
GRADIENT_SMALLEST = {torch.float16: 2.0**-24, torch.bfloat16: 0.0}  # below it float16 flushes to zero

# Loss: mean of ln LID, and d ln LID = relative error of LID, averaged; float32 output of a number of order 1
# to 10.
LOSS = 2e-5
LOSS_FLOAT64 = 1e-11

# Features on which the published float32 form loses 1e-2: mean relative LID error allowed here, and the least
# the published form must show for the comparison to mean something.
ILL_CONDITIONED = 1e-4
PUBLISHED_IS_WORSE_THAN = 1e-3

# Closed forms against autograd in float64, both without cancellation: 3e-16 was measured, times a digit and a
# half.
CLOSED_FORM = 1e-14
# sum_j d_j w_j = 0 relative to sum_j |d_j w_j|: float64 sums of 64 terms, conditioned by 1 + LID.
SCALE_FREE = 1e-12

# Compiled against eager: the ops themselves are the same launch, but the layer in front of them is fused
# differently (an ulp in a feature), which LID multiplies by its conditioning.
COMPILED = {"rtol": 1e-4, "atol": 1e-5}

# Invariance in float32: rotating rounds every coordinate again (6e-8 of the row's norm), and k-NN distances
# are about the norm for the data used, so a distance moves by about 2e-7 and LID by that times its
# conditioning.
INVARIANCE = 2e-6  # times LID (1 + LID)

# A seeded z-test: |z| > 4 has probability 6e-5 under the hypothesis; the seed makes it one draw for ever.
Z_SCORE = 4.0

# Ctrl-C must end a long run within about a second; half a second more is the interpreter leaving.
INTERRUPT_SECONDS = 1.5


def distance(backend: str, dtype: torch.dtype, D: int) -> float:
    """Relative tolerance of a distance."""
    if dtype == torch.float64:
        return DISTANCE_FLOAT64
    if backend == "reference" and D <= REFERENCE_LONGEST:
        return DISTANCE + REFERENCE_DISTANCE_PER_D * D
    return DISTANCE


def lid(backend: str, dtype: torch.dtype, truth: torch.Tensor) -> torch.Tensor:
    """Absolute tolerance of every LID, from its true value [B]."""
    if dtype == torch.float64:
        return LID_FLOAT64 * (1 + truth) ** 2
    per_lid = LID if backend == "reference" else LID_PER_LID
    return (1 + truth) * torch.clamp(per_lid * truth, min=LID)


def gradient(backend: str, dtype: torch.dtype, largest_lid: float) -> float:
    """Relative L2 tolerance of a gradient matrix given the indices."""
    if dtype == torch.float64:
        return GRADIENT_FLOAT64
    per_lid = LID if backend == "reference" else GRADIENT_PER_LID
    return max(GRADIENT, per_lid * (1 + largest_lid)) + GRADIENT_ROUNDING.get(dtype, 0.0)


def pairs(largest_logit: float) -> float:
    """Relative tolerance of float32 sums over pairs and their gradients; of logarithms, relative to 1 + their size.

    A cosine is off by about half an ulp, 6e-8, and so is a logit, of its size, when scale and bias have come to it; its
    exponential is off by as much. A tile adds up to 48 terms in float32; where they are equal, all roundings may go the
    same way, half an ulp of half the sum on average.
    """
    return 1.2e-7 * (12 + largest_logit)
