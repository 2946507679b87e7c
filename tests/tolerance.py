"""How far two right computations of the same thing may be apart, on any CPU.

An equality (ranks, recompute, compiled, cached against masked, ...) is tested in float64, where whatever order a CPU
sums in stays far below `EXACT`, and a mistake far above `DIFFERENT`. Where it is tested in fp32 or bf16 too, or a file
holds no more, the bound is `rounding`: computed from what is summed, not read off a run.
"""

from __future__ import annotations

import torch

EXACT = 1e-9  # float64, relative to values of size 1
DIFFERENT = 1e-4  # what a mutation must reach, in float64 as well


def rounding(terms: int, sums: int, magnitude: float = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """Returns the largest difference of two right results behind `sums` sums of `terms` terms, one after the other.

    An addition rounds its partial sum by at most eps / 2; as errors these are independent and uniform, of standard
    deviation eps / sqrt(12) relative to the values' size `magnitude`. n terms add up n such errors, m sums in series
    m n of them (what one errs the next takes in): sqrt(m n / 12) eps. Two orders differ by sqrt(2) of that, and the
    largest of thousands of such differences lies some five standard deviations out: 5 sqrt(m n / 6) eps, that is
    2 sqrt(m n) eps magnitude. Kernels that keep wider partial sums (bf16: in fp32) round once a sum: terms = 1.
    """
    return 2 * (terms * sums) ** 0.5 * torch.finfo(dtype).eps * magnitude
