"""What CAS is made of, and on what it depends beside the classifier: lengths, signs, and the gauge of the head."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccf_plugin.probe.attribution import cas_contributions

# Of the ResNet-18 of the docs a mean row of 0.1 % moves CAS by 3 % in the worst direction that was tried (all features
# alike), less than chance does. A row of random numbers has 1 / K, trained heads with weight decay about 1e-6.
MEAN_ROW_MATTERS = 1e-3


def shared_part(matrix: NDArray[np.float64], lengths: NDArray[np.float64]) -> float:
    """Σ_{i≠j} max(A_i · A_j, 0): CAS before it is normalised; in squared logits.

    C divides by the lengths: classes whose attributions all grow shorter share less, and CAS does not show it.

    Args:
        matrix: C, (K, K); NaN counts as 0.
        lengths: |A_i|, (K,); NaN likewise.
    """
    known = np.nan_to_num(lengths, nan=0.0)
    return float(known @ cas_contributions(torch.from_numpy(matrix)).numpy() @ known)


def mean_row_share(weight: Tensor) -> Tensor:
    """K |w̄|² / |W|², from 0 to 1, with w̄ the mean of the K rows of W, (K, n) float: a scalar.

    The head W + 1 vᵀ adds g · v to all logits of a sample: the softmax, the loss and the predictions are the same for
    each v; A(x), C and CAS are not. |W| is smallest without the mean row (v = -w̄); this is
    the share of |W|² that goes with it.
    """
    return len(weight) * weight.mean(0).square().sum() / weight.square().sum()
