"""Optimizers: one file, one method, each a `torch.optim.Optimizer` that can be made for a model."""
