"""How plots look: colours, and what matplotlib is told."""

from __future__ import annotations

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

INK, MUTED, GRID = "#1f2733", "#6b7685", "#e3e7ec"
WARNING = "#b3372f"


def apply() -> None:
    """Have all plots of this process look alike."""
    plt.rcParams.update(
        {
            "font.size": 10,
            "axes.edgecolor": MUTED,
            "axes.labelcolor": INK,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": GRID,
            "axes.axisbelow": True,
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "text.color": INK,
            "legend.frameon": False,
            "svg.fonttype": "none",
        }
    )
