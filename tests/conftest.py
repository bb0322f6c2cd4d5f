"""For all tests: one thread, and a shape checker that draws its samples from a random stream of its own."""

import random

import beartype._check.code.codemain as checks
import beartype._util.kind.integer.utilintget as integers
import torch

# Small nets on two threads of busy cores are 10 to 40 times slower. Processes that a test spawns set it themselves.
torch.set_num_threads(1)

# beartype looks at a random item of each sequence and draws it from Python's global stream. The product must not move
# that stream, and tests compare it bit for bit, so the checks that run under pytest only must not move it either.
_private = random.Random(0)
checks.getrandbits = _private.getrandbits
integers.getrandbits = _private.getrandbits
