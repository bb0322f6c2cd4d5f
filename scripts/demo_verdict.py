"""Compares the demo's model with a bigram baseline and says where to look; exit 1 if the model is not better."""

import sys
from pathlib import Path

import numpy as np

import dynaxx
from dynaxx import catalog
from dynaxx.tasks._bigram import bits_per_byte

run, drawn = map(Path, sys.argv[1:])
view = dynaxx.open_run(run)
model = float(np.asarray(view["val_bits_per_byte"])[-1])
bigram = bits_per_byte(catalog.task("stdlib-lm", "tiny"))
print(f"validation bits per byte: model {model:.2f}, bigram baseline {bigram:.2f}")
for what, page in (("map", drawn), ("report", run)):
    print(f"{what}: {(page / 'report.html').resolve().as_uri()}")
sys.exit(0 if model < bigram else 1)
