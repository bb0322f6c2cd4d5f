"""The rescue suite: plants faults in small trainings, or in the user's own, and scores who finds and mends them."""
