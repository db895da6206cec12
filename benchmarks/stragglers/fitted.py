"""What was fitted, and the record of how: the loss curve and the weights of the score.

`python -m benchmarks.stragglers.fit` prints both anew; the seeds it uses are none that the figures use.
"""

from __future__ import annotations

from orchestrator.core.scoring import Weights
from orchestrator.simulation.loss import Curve

CURVE = Curve(start=2.4, floor=1.0, scale=2.0, power=0.5, gain=0.1)
FITTED_WEIGHTS = Weights(compute=0.0, bandwidth=0.0, delay=0.0, loss=0.0, time=1.0)
RECORD = {
    "command": "python -m benchmarks.stragglers.fit",
    "seeds": "1001 to 1004, setups 1 to 3, 12 and 40 nodes; the figures use others",
}
