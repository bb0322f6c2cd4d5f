"""For all tests: the shape checker draws its samples from a random stream of its own."""

import random

import beartype._check.code.codemain as checks
import beartype._util.kind.integer.utilintget as integers

# beartype looks at a random item of each sequence and draws it from Python's global stream. The product must not move
# that stream, and tests compare it bit for bit, so the checks that run under pytest only must not move it either.
_private = random.Random(0)
checks.getrandbits = _private.getrandbits
integers.getrandbits = _private.getrandbits
