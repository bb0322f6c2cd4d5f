"""Other tools' ways to the same curvature, each behind the same three calls. A tool that is not installed is left out.

PyHessian is measured from its repository: the release on PyPI cannot compute densities on any current torch.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[Tensor, Tensor]


def hessian_products(model: nn.Module, batch: Batch) -> dict[str, Callable[[Tensor], Any]]:
    """Peer → a function that multiplies one flat vector by the Hessian of the cross-entropy; set up by now."""
    found: dict[str, Callable[[Tensor], Any]] = {}
    if (operator := _curvlinops(model, batch)) is not None:
        found["curvlinops"] = lambda v: operator @ v
    if (other := _eigenthings(model, batch)) is not None:
        found["hessian-eigenthings"] = other.matvec
    if (third := _pyhessian(model, batch)) is not None:
        from pyhessian.utils import hessian_vector_product

        shapes = [p.shape for p in third.params]

        def product(v: Tensor) -> Any:
            parts = [part.view(shape) for part, shape in zip(v.split([s.numel() for s in shapes]), shapes, strict=True)]
            return hessian_vector_product(third.gradsH, third.params, parts)

        found["PyHessian"] = product
    return found


def top_eigenvalues(model: nn.Module, batch: Batch, k: int) -> dict[str, Callable[[], Sequence[float]]]:
    """Peer → a function that computes the k largest eigenvalues from nothing, set-up included."""
    found: dict[str, Callable[[], Sequence[float]]] = {}
    if _curvlinops(model, batch) is not None:

        def arpack() -> Sequence[float]:
            from scipy.sparse.linalg import eigsh

            operator = _curvlinops(model, batch)
            start = np.random.default_rng(0).standard_normal(operator.shape[0]).astype(np.float32)
            values = eigsh(operator.to_scipy(), k=k, which="LA", tol=1e-3, v0=start, return_eigenvectors=False)
            return sorted(map(float, values), reverse=True)

        found["curvlinops + ARPACK, tol 1e-3"] = arpack
    if _pyhessian(model, batch) is not None:
        found["PyHessian, tol 1e-3"] = lambda: _pyhessian(model, batch).eigenvalues(top_n=k, tol=1e-3)[0]
    if _eigenthings(model, batch) is not None:

        def lanczos(steps: int) -> Callable[[], Sequence[float]]:
            from hessian_eigenthings import lanczos as solve

            return lambda: sorted(
                map(float, solve(_eigenthings(model, batch), k=k, max_iter=steps, which="LA", seed=0).eigenvalues),
                reverse=True,
            )

        found["hessian-eigenthings, 30 steps"] = lanczos(30)
    return found


def traces(matrix: Tensor) -> dict[str, Callable[[int, int], float]]:
    """Peer → `(products, seed)` → trace of a dense matrix. PyHessian's is Hutchinson's mean with a stop by luck."""
    try:
        from curvlinops import hutchinson_trace, hutchpp_trace, xtrace
    except ImportError:
        return {}
    found: dict[str, Callable[[int, int], float]] = {}
    for name, estimate, divisor in (("Hutchinson", hutchinson_trace, 1), ("Hutch++", hutchpp_trace, 3),
                                    ("XTrace", xtrace, 2)):  # fmt: skip

        def run(products: int, seed: int, estimate: Any = estimate, divisor: int = divisor) -> float:
            torch.manual_seed(seed)
            return float(estimate(matrix, products - products % divisor))

        found[f"curvlinops {name}"] = run
    return found


def densities(model: nn.Module, batch: Batch) -> dict[str, Callable[[int, int], tuple[np.ndarray, np.ndarray]]]:
    """Peer → `(probes, steps)` → nodes and weights of the spectral density."""
    found: dict[str, Callable[[int, int], tuple[np.ndarray, np.ndarray]]] = {}
    if _pyhessian(model, batch) is not None:

        def density(probes: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
            torch.manual_seed(0)
            nodes, weights = _pyhessian(model, batch).density(iter=steps, n_v=probes)
            return np.ravel(np.real(nodes)), np.ravel(np.real(weights)) / probes

        found["PyHessian"] = density
    if _curvlinops(model, batch) is not None:
        from curvlinops.papyan2020traces.spectrum import fast_lanczos

        def papyan(probes: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
            operator = _curvlinops(model, batch)
            torch.manual_seed(0)
            runs = [fast_lanczos(operator, steps) for _ in range(probes)]
            nodes = np.concatenate([np.asarray(values) for values, _ in runs])
            return nodes, np.concatenate([np.asarray(vectors)[0] ** 2 for _, vectors in runs]) / probes

        found["curvlinops (no reorthogonalisation)"] = papyan
    return found


def _curvlinops(model: nn.Module, batch: Batch) -> Any:
    try:
        from curvlinops import HessianLinearOperator
    except ImportError:
        return None
    parameters = [p for p in model.parameters() if p.requires_grad]
    return HessianLinearOperator(model, nn.CrossEntropyLoss(), parameters, [batch], check_deterministic=False)


def _eigenthings(model: nn.Module, batch: Batch) -> Any:
    try:
        from hessian_eigenthings import HessianOperator, supervised_loss
    except ImportError:
        return None
    return HessianOperator(model, [batch], supervised_loss(functional.cross_entropy))


def _pyhessian(model: nn.Module, batch: Batch) -> Any:
    try:
        from pyhessian import hessian
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls backward(create_graph=True), and torch warns of the leak
        model.zero_grad()  # it adds to .grad, and would take the sum of two calls for the gradient
        return hessian(model, nn.CrossEntropyLoss(), data=batch, cuda=False)
