"""What the cheap thing scores on the very rows of a committed run: word and character TF-IDF
with logistic regression, one classifier a task.

    .venv/bin/python benchmarks/text_baseline.py --preset hard12 --n-train 64 --n-eval 96
"""

import argparse

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skillstack_helpers.routers import HybridSVMRouter
from skillstack_helpers.tasks import PRESETS, load_task

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--preset", default="hard8", choices=PRESETS)
parser.add_argument("--n-train", type=int, default=48)
parser.add_argument("--n-router", type=int, default=256)
parser.add_argument("--n-eval", type=int, default=64)
parser.add_argument("--seed", type=int, default=42)
options = parser.parse_args()

scores = []
for name in PRESETS[options.preset]:
    data = load_task(name, options.n_train, options.n_router, options.n_eval, options.seed)
    features = HybridSVMRouter().make_pipeline()[0]  # the router's own features
    classifier = make_pipeline(features, LogisticRegression(max_iter=1000))
    classifier.fit(data.texts("train"), data.labels("train"))
    scores.append(classifier.score(data.texts("eval"), data.labels("eval")))
    print(f"{name:16s} {scores[-1]:.3f}")
print(f"{'mean':16s} {np.mean(scores):.3f}")
