"""The causes that a finding may name, one word for one thing, and which of them follow from which."""

CAUSES: dict[str, str] = {
    # learning rate and schedule
    "learning_rate_too_high": "the steps are longer than the curvature along them allows",
    "learning_rate_too_low": "the steps are so short that the loss falls far slower than it could",
    "warmup_missing": "full-sized steps were taken before the optimizer's statistics and the curvature had settled",
    "schedule_too_aggressive": "the rate rises, restarts or decays faster than the loss can follow",
    "momentum_too_high": "the momentum carries the weights past where the gradient has turned",
    # optimizer
    "preconditioner_lag": "second moments are far below the squared gradients of now, so that steps are too long",
    "epsilon_too_large": "ε outweighs the second moments, so that the optimizer is gradient descent with a tiny rate",
    "weight_decay_too_high": "the decay shrinks the weights faster than the gradient can restore them",
    "weight_decay_coupled": "L2 regularisation is divided by Adam's second moments instead of being decoupled",
    "clipping_too_tight": "nearly every update is clipped, so that the threshold sets the rate",
    "gradients_not_cleared": "gradients of earlier steps are still in the sum: zero_grad is missing or misplaced",
    # batch size and noise
    "batch_too_small": "the gradient's noise outweighs the gradient",
    "batch_too_large": "the batch is far above the gradient noise scale, so that examples are wasted",
    # data
    "corrupted_batch": "a few batches hold values or labels unlike all others",
    "non_finite_data": "the input holds NaN or infinite values",
    "hard_batch": "a batch of valid but difficult examples; the state is not harmed",
    "data_shift": "the data changed at a moment and stayed changed",
    "label_noise": "part of the labels contradict their inputs",
    "shuffled_labels": "labels carry no information about their inputs",
    "unshuffled_data": "the order of the examples repeats or is sorted",
    "repeated_batch": "the same batch comes again and again",
    "class_imbalance": "one class outweighs the others, so that predicting it is nearly enough",
    "inputs_not_normalised": "the scale of the inputs is far from one",
    # initialisation and model
    "initialisation_too_large": "the first outputs are far from indifferent, so that the loss starts far too high",
    "initialisation_too_small": "signals shrink from layer to layer at the start",
    "initialisation_symmetric": "units of a layer start alike and receive equal gradients",
    "vanishing_gradients": "gradients shrink by orders of magnitude on their way to the first layers",
    "exploding_gradients": "gradients grow by orders of magnitude on their way to the first layers",
    "saturated_activations": "activations sit in the flat ends of their function",
    "dead_units": "units are never active, so that nothing reaches the weights before them",
    "attention_logit_growth": "attention logits grow until the attention is on one token",
    "cancelling_updates": "the updates of some layers undo what those of others gain",
    "ill_conditioned": "curvatures differ by orders of magnitude between directions or layers",
    "too_little_capacity": "the model cannot represent more than it does already",
    # wiring
    "frozen_parameters": "parameters do not require gradients although they were meant to be trained",
    "parameters_not_in_optimizer": "parameters receive gradients and are in no group of the optimizer",
    "stale_parameters": "the optimizer holds parameters that the model no longer uses",
    "loss_disconnected": "no gradient flows from the loss to these parameters",
    "wrong_loss_sign": "the loss that is minimised falls as the goal is missed further",
    "double_softmax": "the model's outputs are probabilities already and are normalised a second time",
    "train_eval_mismatch": "the model computes something else in evaluation than in training mode",
    # regularisation and generalisation
    "overfitting": "the training set is being memorised",
    "regularisation_too_strong": "dropout, decay or noise keeps the model from fitting what it could",
    "forgetting": "what was learned before is being overwritten",
    # state
    "weights_overwritten": "weights changed by more than any step: a flipped bit, or code that writes to them",
    # precision
    "overflow": "values exceed what the number format holds",
    "underflow": "gradients are below what the number format holds",
    "loss_scale_stuck": "the gradient scaler cannot leave a scale that is too low or too high",
    # where the run is
    "converged": "the loss is as low as this model, data and schedule bring it",
    "noise_floor": "steps bounce in the noise of the gradient at this rate and batch size",
    "flat_valley": "the gradient is small along a long flat direction that still leads down",
    "saddle": "the gradient is small and some direction curves downward",
    "edge_of_stability": "sharpness hovers at the threshold while the loss falls on average; nothing is wrong",
    "grokking": "the training set is solved, the weights shrink, and the validation may yet follow",
    # system
    "data_starvation": "the accelerator waits for data",
    "memory_pressure": "memory is nearly exhausted",
}
"""Slug → what is the matter, as it stands in reports after "because"."""

_OVERSHOT = (
    "exploding_gradients", "vanishing_gradients", "saturated_activations", "dead_units", "attention_logit_growth",
    "cancelling_updates", "ill_conditioned", "preconditioner_lag", "overflow",
)  # fmt: skip
"""What steps that are too long leave behind."""
_STANDSTILL = ("converged", "noise_floor", "flat_valley", "saddle")
"""What a loss looks like that a fault keeps from falling."""
_CUT_OFF = ("vanishing_gradients", "exploding_gradients", "ill_conditioned", "too_little_capacity", *_STANDSTILL)
"""What a model looks like of which a part does not learn."""

STATES = frozenset((*_OVERSHOT, *_STANDSTILL))
"""Causes that nobody sets: states of a model or of a run, which have a cause themselves if one is found."""

NO_FAULT = frozenset(("converged", "noise_floor", "edge_of_stability", "grokking"))
"""Where a run is when nothing is wrong with it."""

BRINGS_ABOUT: dict[str, tuple[str, ...]] = {
    "learning_rate_too_high": (*_OVERSHOT, *_STANDSTILL, "loss_disconnected"),
    "learning_rate_too_low": (*_STANDSTILL, "batch_too_large"),
    "warmup_missing": ("learning_rate_too_high", *_OVERSHOT),
    "schedule_too_aggressive": ("learning_rate_too_high", "learning_rate_too_low", *_OVERSHOT, *_STANDSTILL),
    "momentum_too_high": ("learning_rate_too_high", "data_shift", *_OVERSHOT, *_STANDSTILL),
    "epsilon_too_large": ("learning_rate_too_low", *_STANDSTILL),
    "clipping_too_tight": ("learning_rate_too_low", *_STANDSTILL),
    "weight_decay_too_high": (
        "learning_rate_too_high",
        "loss_disconnected",
        "shuffled_labels",
        "dead_units",
        *_CUT_OFF,
    ),
    "weight_decay_coupled": ("learning_rate_too_high", "loss_disconnected", "shuffled_labels", "dead_units", *_CUT_OFF),
    "gradients_not_cleared": (
        "learning_rate_too_high",
        "warmup_missing",
        "momentum_too_high",
        "corrupted_batch",
        *_OVERSHOT,
    ),
    "corrupted_batch": ("learning_rate_too_high", "data_shift", *_OVERSHOT, *_STANDSTILL),
    "non_finite_data": ("corrupted_batch", *_OVERSHOT, *_STANDSTILL),
    "label_noise": ("overfitting", "too_little_capacity", *_STANDSTILL),
    "shuffled_labels": ("overfitting", "data_shift", "too_little_capacity", "dead_units", *_STANDSTILL),
    "unshuffled_data": ("forgetting", "data_shift", "learning_rate_too_high", "gradients_not_cleared", *_OVERSHOT),
    "repeated_batch": ("overfitting", "unshuffled_data", "data_shift", "label_noise", *_STANDSTILL),
    "class_imbalance": ("overfitting", "data_shift", "corrupted_batch", "vanishing_gradients", "dead_units"),
    "inputs_not_normalised": ("initialisation_too_large", "warmup_missing", "learning_rate_too_high", *_OVERSHOT),
    "initialisation_too_large": ("warmup_missing", "learning_rate_too_high", "momentum_too_high", *_OVERSHOT),
    "initialisation_too_small": (
        "vanishing_gradients",
        "learning_rate_too_low",
        "learning_rate_too_high",
        *_STANDSTILL,
    ),
    "initialisation_symmetric": ("loss_disconnected", "dead_units", "shuffled_labels", *_CUT_OFF),
    "weights_overwritten": (
        "learning_rate_too_high",
        "corrupted_batch",
        "data_shift",
        "overfitting",
        *_OVERSHOT,
        *_STANDSTILL,
    ),
    "exploding_gradients": ("overflow",),
    "saturated_activations": ("vanishing_gradients", "dead_units"),
    "dead_units": ("vanishing_gradients", "loss_disconnected", *_STANDSTILL),
    "frozen_parameters": _CUT_OFF,
    "parameters_not_in_optimizer": _CUT_OFF,
    "stale_parameters": _CUT_OFF,
    "loss_disconnected": _CUT_OFF,
    "wrong_loss_sign": ("learning_rate_too_high", "overfitting", "data_shift", *_OVERSHOT),
    "double_softmax": (
        "vanishing_gradients",
        "learning_rate_too_low",
        "label_noise",
        "too_little_capacity",
        *_STANDSTILL,
    ),
    "regularisation_too_strong": ("too_little_capacity", *_STANDSTILL),
    "overfitting": _STANDSTILL,
    "loss_scale_stuck": ("loss_disconnected", "learning_rate_too_low", *_STANDSTILL),
}
"""Cause → what it brings about, itself a cause of what is seen. It holds no circle. Where both are named and the former
does not begin later, the latter is its symptom: a remedy for it alone would not help."""
