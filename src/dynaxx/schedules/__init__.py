"""Learning-rate curves: pure functions of the step; one file, one curve."""
