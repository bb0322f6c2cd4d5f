"""L2 regularisation that Adam divides by its second moments, instead of decoupled weight decay."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._facts import groups, layer_facts
from dynaxx.detectors._read import QUIETLY, end_of, matching, rows
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

SHARE = Threshold(
    value=0.15,
    origin="λ‖θ‖/‖g‖; at 0.16, 0.23 and 0.48 three nets of the rescue suite ended 18 % above, at 4 and at 21 times "
    "their loss without; TheDeepChecker (2022) alarms at 2, where the decay outweighs the data",
    false_alarms="not known: none of the 161 healthy runs of the rescue suite couples a decay into Adam",
)
COUPLED = ("Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "Adadelta")
"""Optimizers of torch that add λθ to the gradient before they normalise it, unless told to decouple."""


class CoupledWeightDecay(Detector):
    """λ‖θ‖ against ‖g‖ where the optimizer adds λθ to the gradient and then adaptive.

    Weights with large gradients are then hardly decayed, those with small ones strongly (Loshchilov and Hutter 2019).
    """

    code = "D32"
    title = "L2 coupled into Adam"
    reads = ("grad_norm",)

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """The configuration decides that it is so, the figures whether it matters."""
        optimizer = run.manifest.get("optimizer", {})
        if not optimizer:
            raise NotApplicable("the log does not say which optimizer it was")
        decays = [
            float(group.get("weight_decay") or 0.0)
            for group in groups(run)
            if not group.get("decoupled_weight_decay", False)
        ]
        decay = max(decays, default=0.0)
        if optimizer.get("class") not in COUPLED or decay <= 0:
            return None
        share, layer = _share(run, decay)
        evidence = [Evidence(text=f"{optimizer['class']} with weight_decay={decay:g} adds it to the gradient")]
        if np.isfinite(share):
            evidence.append(
                Evidence(
                    text=f"λ‖θ‖ is {share:.2g} of the gradient's norm, most in {layer}",
                    columns=("parameter_norm", "grad_norm"),
                    value=share,
                    threshold=SHARE.value,
                )
            )
        harmful = share >= SHARE.value
        return Finding(
            code=self.code,
            name="coupled_weight_decay",
            title=f"weight decay {decay:g} goes through Adam's normalisation"
            + (f" and is {share:.2g} of the gradient" if np.isfinite(share) else ""),
            severity="warning" if harmful else "note",
            spans=((int(run.steps[0]), end_of(run)),),
            layers=(layer,) if layer else (),
            evidence=tuple(evidence),
            causes=ranked(
                suspect(
                    "weight_decay_coupled",
                    0.6,
                    5.0 if harmful else 1.0,
                    why="the optimizer's class and options say so",
                    remedies=(Remedy(text="Use AdamW, or decoupled_weight_decay=True; tune the decay anew."),),
                ),
                suspect(
                    "weight_decay_too_high",
                    0.15,
                    5.0 if share > 3 else 0.5,
                    why=f"λ‖θ‖/‖g‖ = {share:.2g}",
                    remedies=(Remedy(text="Lower the weight decay tenfold."),),
                ),
            ),
            test=Test(text="Train a copy some steps with AdamW at the same decay and compare the validation loss."),
        )


def _share(run: Log, decay: float) -> tuple[float, str]:
    """Median λ‖θ‖/‖g‖ of the whole model over the second half of the shared rows, and the layer where it is largest."""
    if "parameter_norm" not in run.columns:
        return float("nan"), ""
    size, slope = rows(run, "parameter_norm"), rows(run, "grad_norm")
    here, there = matching(size, slope)
    if len(here) < 10 or size.labels != slope.labels:
        return float("nan"), ""
    half = len(here) // 2
    theta, g = size.values[here[half:]], slope.values[there[half:]]
    facts = layer_facts(run)
    learning = np.array([facts.get(label, {}).get("trainable", 1) > 0 for label in size.labels])
    good = np.isfinite(theta).all(axis=1) & np.isfinite(g).all(axis=1)
    theta, g = theta[good][:, learning], g[good][:, learning]
    if theta.size == 0:
        return float("nan"), ""
    whole = np.sqrt((theta**2).sum(axis=1)) / np.maximum(np.sqrt((g**2).sum(axis=1)), 1e-30)
    by_layer = np.median(theta, axis=0) / np.maximum(np.median(g, axis=0), 1e-30)
    names = [label for label, learns in zip(size.labels, learning, strict=True) if learns]
    return float(decay * np.median(whole)), names[int(np.argmax(by_layer))]
