"""Where a loss ratio may have changed, and how likely that is: pure.

A change of the loss is told from chance by Bayesian change-point detection (Adams and MacKay 2007; Fearnhead
2006): the window is taken for a row of segments, each of a constant loss ratio of its own. How well a segment
explains its counts is the beta-binomial likelihood, and one pass over all places at which a segment may end
sums up all ways to divide the window. What is left is how likely it is that the last change was at each of
those places; the loss is the median of what was lost since, weighted so. A change shows as soon as it is more
likely than not, one that comes soon after another is no mixture of three losses, and what looks like a change
for a moment does not move the value. While no change is likely enough, all of the window counts, so that few
packets tell as much as they can.
"""

from __future__ import annotations

import math
from math import lgamma
from operator import itemgetter

from ryu_apps.tally import NOTHING, WINDOW_S, Tallies, Tally

AGES_S = (2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 15, 18, 22, 26, 30, 36, 43, 51, WINDOW_S)
"""The last change may have been so long ago; the last of these stands for none."""
CHANGES_PER_S = 1 / 50
"""How often a loss is taken to change."""
LOST, KEPT = 0.5, 8.0
"""Parameters of the beta distribution of loss ratios: small more often than not."""
LEAST_LOST = 2.0
"""Fewer lost packets than this cannot show a change."""
RECENT_S = 6
NOISE_S = 4
"""Over so many seconds is seen how much less than their number the packets tell."""
CAUTION = 3.0
"""What is not known of which packets were counted has more great errors than a normal distribution."""
UNCHANGED = 0.3
"""Where it is at least so likely that the loss has not changed, all of the window counts."""
LEAST_WEIGHT = 1e-4
"""What is less likely than this is left out."""
LIKELY = 0.9
"""The interval is that of hypotheses which together are so likely; the others lie in its tails."""


def since_last_change(tallies: Tallies) -> Tally:
    """Return what was sent and lost since the loss last changed, averaged over when that may have been."""
    if max(tallies(WINDOW_S).lost, tallies(RECENT_S).lost) < LEAST_LOST:
        return tallies(WINDOW_S)
    changes = last_changes(tallies)
    if changes[-1][1] >= UNCHANGED:
        return tallies(WINDOW_S)
    return _middle([(weight, tallies(age_s)) for age_s, weight in changes if weight >= LEAST_WEIGHT])


def last_changes(tallies: Tallies) -> list[tuple[float, float]]:
    """Return how likely (0..1, adding up to one) the last change was so many seconds ago, for all AGES_S."""
    counts = _counts(tallies)
    ages = (0.0, *AGES_S)
    hazards = [0.0] * len(ages)
    for index in range(1, len(AGES_S)):
        hazards[index] = math.log(CHANGES_PER_S * (ages[index + 1] - ages[index - 1]) / 2)
    older = [0.0] * len(ages)
    """The log likelihood of everything before an age, given a change there."""
    reached: list[float] = []
    for end in range(len(AGES_S) - 1, -1, -1):
        reached = [
            older[start] + hazards[start] + _likelihood(counts[start], counts[end])
            for start in range(end + 1, len(ages))
        ]
        older[end] = _log_sum(reached)
    return [(age_s, math.exp(each - older[0])) for age_s, each in zip(AGES_S, reached, strict=True)]


def _counts(tallies: Tallies) -> list[tuple[float, float]]:
    """Return (sent, lost) since each age, the youngest first, as so many packets as tell as much.

    Counts of two ends that do not agree on the moment may say that lost packets came back: that is none lost.
    """
    short = tallies(NOISE_S)
    noisy = Tally(sent=short.sent, lost=short.lost, variance=CAUTION * short.variance)
    worth = noisy.trials / short.sent if short.sent > 0 else 1.0
    counts, sent, lost = [(0.0, 0.0)], 0.0, 0.0
    for age_s in AGES_S:
        tally = tallies(age_s)
        more = max(0.0, tally.sent - sent)
        lost += min(more, max(0.0, tally.lost - lost))
        sent += more
        counts.append((worth * sent, worth * lost))
    return counts


def _likelihood(since: tuple[float, float], until: tuple[float, float]) -> float:
    """Return the log of how likely the losses of a segment are, whatever its loss ratio."""
    sent, lost = since[0] - until[0], since[1] - until[1]
    return lgamma(lost + LOST) + lgamma(sent - lost + KEPT) - lgamma(sent + LOST + KEPT) - _PRIOR


_PRIOR = lgamma(LOST) + lgamma(KEPT) - lgamma(LOST + KEPT)


def _log_sum(logs: list[float]) -> float:
    """Return the log of a sum, given the logs of what is added up."""
    most = max(logs)
    return most + math.log(sum(math.exp(each - most) for each in logs))


def _middle(parts: list[tuple[float, Tally]]) -> Tally:
    """Return a tally with the weighted median of the ratios: what is hardly likely does not move it.

    Its variance is that of those that are likely enough to be within the interval: of each one's own ratio,
    and between them.
    """
    parts = sorted(((weight, tally) for weight, tally in parts if tally.sent >= 1), key=_WEIGHT, reverse=True)
    total = sum(weight for weight, _ in parts)
    if len(parts) < 2:
        return parts[0][1] if parts else NOTHING
    sent = sum(weight * tally.sent for weight, tally in parts) / total
    ratio = _median([(tally.ratio, weight) for weight, tally in parts])
    variance = seen = 0.0
    for weight, tally in parts:
        variance += weight * (_variance(tally) + (tally.ratio - ratio) ** 2)
        seen += weight
        if seen >= LIKELY * total:
            break
    beyond_chance = max(0.0, variance / seen - ratio * (1 - ratio) / sent)
    return Tally(sent=sent, lost=ratio * sent, variance=beyond_chance * sent * sent)


_WEIGHT = itemgetter(0)


def _median(weighted: list[tuple[float, float]]) -> float:
    """Return the median of (value, weight)."""
    left = sum(weight for _, weight in weighted) / 2
    for value, weight in sorted(weighted):
        left -= weight
        if left <= 0:
            return value
    return weighted[-1][0]


def _variance(tally: Tally) -> float:
    """Return the variance of a tally's ratio; none lost of few is no certainty."""
    trials = max(tally.trials, 1.0)
    ratio = min(0.5, max(tally.ratio, 0.5 / trials))
    return ratio * (1 - ratio) / trials
