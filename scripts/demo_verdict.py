"""Compares the demo's models with what they must beat, and says where to look; exit 1 if one of them does not."""

import sys
from pathlib import Path

import numpy as np

import dynaxx
from dynaxx import catalog
from dynaxx.tasks._bigram import bits_per_byte

run, drawn, left, mended = map(Path, sys.argv[1:])
view = dynaxx.open_run(run)
model = float(np.asarray(view["val_bits_per_byte"])[-1])
bigram = bits_per_byte(catalog.task("stdlib-lm", "tiny"))
print(f"validation bits per byte: model {model:.2f}, bigram baseline {bigram:.2f}")
alone, rescued = (float(np.asarray(dynaxx.open_run(each)["val_loss"])[-1]) for each in (left, mended))
print(f"digits at thirty times the rate: validation loss {alone:.3f} left alone, {rescued:.3f} with the navigator")
for what, page in (("map", drawn), ("report", run), ("story", mended)):
    print(f"{what}: {(page / 'report.html').resolve().as_uri()}")
sys.exit(0 if model < bigram and rescued < alone / 2 else 1)
