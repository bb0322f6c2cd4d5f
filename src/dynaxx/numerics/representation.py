"""What a network does on a fixed batch, as a vector whose distances no permutation of hidden units changes."""

from jaxtyping import Float
from torch import Tensor

ROWS = 64
"""Examples (or positions) of which a Gram matrix is kept: its 4,096 entries are as many as a sketch of weights has."""


def output_vector(outputs: Float[Tensor, "*rows units"]) -> Float[Tensor, " n"]:
    """The outputs as one vector; the distance of two is the root mean square, over rows, of the distance of outputs.

    Args:
        outputs: Logits or predictions, the last axis being units.

    Returns:
        float64, all entries over √rows.

    Example:
        >>> import torch
        >>> output_vector(torch.tensor([[3.0, 4.0]]))
        tensor([3., 4.], dtype=torch.float64)
    """
    return outputs.double().flatten() / (outputs.numel() / outputs.shape[-1]) ** 0.5


def similarity_vector(features: Float[Tensor, "*rows units"]) -> Float[Tensor, " n"]:
    """The centred linear Gram matrix of the rows, of norm 1: ⟨a, b⟩ is the linear CKA of two representations.

    So the distance of two is √(2 − 2·CKA): 0 where one is the other rotated, reflected or scaled, √2 where they have
    nothing in common (Kornblith et al. 2019). At most `ROWS` rows count, evenly spaced.

    Args:
        features: Activations, the last axis being units.

    Returns:
        float64, one entry a pair of rows; zeros where all rows are equal.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 4.0]])
        >>> float((similarity_vector(x) - similarity_vector(-7 * x.flip(1))).norm()) < 1e-6
        True
    """
    rows = features.double().reshape(-1, features.shape[-1])
    rows = rows[:: -(-len(rows) // ROWS)]
    rows = rows - rows.mean(0)
    gram = (rows @ rows.T).flatten()
    size = gram.norm()
    return gram / size if float(size) > 0 else gram
