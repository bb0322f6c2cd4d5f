"""Mathematics in pure functions: reductions by layer, sketches, floating-point operation counts."""
