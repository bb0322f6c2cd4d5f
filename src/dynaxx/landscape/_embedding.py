"""Non-linear pictures of points in a plane, by libraries that need not be installed."""

from typing import Any, Literal

import numpy as np

from dynaxx.errors import NotApplicable


def embedded(products: np.ndarray, kind: Literal["tsne", "umap"], seed: int) -> np.ndarray:
    """Points of a plane whose neighbours are those of the vectors.

    Args:
        products: Inner products of the vectors, shape (n, n).
        kind: "tsne" (van der Maaten and Hinton 2008) or "umap" (McInnes et al. 2018).
        seed: Of the placement.

    Returns:
        Shape (n, 2).

    Raises:
        NotApplicable: The library is not installed, or there are too few points.
    """
    squares = np.diag(products)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0.0))
    np.fill_diagonal(distances, 0.0)
    n = len(products)
    if n < 5:
        raise NotApplicable(f"{n} points have no neighbourhoods to keep; 5 are needed.")
    mapper: Any
    if kind == "tsne":
        try:
            from sklearn.manifold import TSNE
        except ImportError:
            raise NotApplicable("It needs scikit-learn: pip install scikit-learn.") from None
        # A third of the points is the most that scikit-learn's search of neighbours is meant for.
        mapper = TSNE(metric="precomputed", init="random", perplexity=min(30.0, (n - 1) / 3), random_state=seed % 2**32)
    else:
        try:
            from umap import UMAP  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise NotApplicable("It needs umap-learn: pip install umap-learn.") from None
        mapper = UMAP(metric="precomputed", n_neighbors=min(15, n - 1), random_state=seed % 2**32)
    return np.asarray(mapper.fit_transform(distances), dtype=np.float64)
