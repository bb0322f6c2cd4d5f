"""Perturbed steps: sharpness-aware, noisy, dropped; one file, one method."""
