"""Tests that one may look at after every episode: e-processes, the capital of a gambler against equality.

Two policies run on the same seeds, one after the other. Who bets on the first being better, at fair odds, multiplies
the stake by a large number only if it is: under the hypothesis that it is not, the capital E_t, E_0 = 1, has an
expectation of at most 1 at every time, however the time is chosen. So the first is better once E_t >= 1 / alpha, at any
t, with a probability of error <= alpha (Ville 1939). The setting: arXiv 2503.10966 and 2603.13616; the theory: Ramdas
and others, arXiv 2210.01948.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flowleap.policy.core.errors import FlowleapError, optional_import

Alternative = Literal["greater", "two-sided"]

PRIOR = (8.0, 3.0)
"""Of q, the probability that a discordant pair is won by the better policy: Beta(8, 3) on (1/2, 1)."""

_NODES = 32


def success_evidence(
    first: np.ndarray,
    second: np.ndarray,
    alternative: Alternative = "greater",
    prior: tuple[float, float] = PRIOR,
) -> np.ndarray:
    """Log E after each episode, from successes bool [..., T] of two policies on the same seeds.

    Pairs in which both succeed or both fail say nothing about who is better; see `beta_binomial` for the others.
    """
    wins = np.cumsum(first & ~second, axis=-1)
    losses = np.cumsum(second & ~first, axis=-1)
    forward = beta_binomial(wins, losses, prior)
    return forward if alternative == "greater" else _either(forward, beta_binomial(losses, wins, prior))


def beta_binomial(wins: np.ndarray, losses: np.ndarray, prior: tuple[float, float] = PRIOR) -> np.ndarray:
    """Log of the beta-binomial e-process against "a discordant pair is won with probability q <= 1/2".

    E = int_{1/2}^1 q^w (1-q)^l pi(q) dq / (1/2)^(w+l), pi the density of Beta(a, b) restricted to (1/2, 1)
      = 2^(w+l) B(a+w, b+l) / B(a, b) * P[Beta(a+w, b+l) > 1/2] / P[Beta(a, b) > 1/2]

    The likelihood ratio of any q > 1/2 is a martingale for fair coins and falls on average for worse ones; a mixture
    of such is one, too.

    Raises:
        FlowleapError: scipy is not installed.
    """
    special = optional_import("scipy.special", "compare")
    a, b = prior
    ratio = special.betaln(a + wins, b + losses) - special.betaln(a, b) + (wins + losses) * math.log(2)
    with np.errstate(divide="ignore"):  # losses by the hundred leave nothing: log 0
        above = np.log(special.betainc(b + losses, a + wins, 0.5)) - np.log(special.betainc(b, a, 0.5))
    return np.asarray(ratio + above)


def score_evidence(
    first: np.ndarray,
    second: np.ndarray,
    bounds: tuple[float, float],
    alternative: Alternative = "greater",
    prior: tuple[float, float] = PRIOR,
) -> np.ndarray:
    """Log E after each episode, from scores [..., T] within `bounds` of two policies on the same seeds.

    See `betting`. Where the scores are successes, 0 or 1, this is `success_evidence`.

    Raises:
        FlowleapError: a score beyond the bounds, which would void the guarantee.
    """
    low, high = bounds
    for scores in (first, second):
        beyond = ~((scores >= low) & (scores <= high))
        if not low < high or beyond.any():
            example = f"{scores[beyond][0]:g} is a score" if beyond.any() else "they are empty"
            raise FlowleapError(
                f"bounds=[{low:g},{high:g}]: {example}; give the lowest and highest score that the task allows"
            )
    differences = (np.asarray(first, np.float64) - second) / (high - low)
    forward = betting(differences, prior)
    return forward if alternative == "greater" else _either(forward, betting(-differences, prior))


def betting(differences: np.ndarray, prior: tuple[float, float] = PRIOR) -> np.ndarray:
    """Log capital after each bet on `differences` [..., T] in [-1, 1], against "their mean is <= 0".

    K_t = sum_k w_k prod_{i <= t} (1 + lambda_k d_i),  0 < lambda_k < 1

    Waudby-Smith and Ramdas, JRSS B 86, 1 (2024): each product is a gambler who always stakes the share lambda_k; their
    mean is one who stakes the mean share, weighted by what each has won so far, a predictable bet. On pairs won, lost
    and level, d = 1, -1, 0, a share lambda is the likelihood ratio of q = (1 + lambda) / 2, so that with the prior of q
    this is `beta_binomial`, its integral taken by Gauss and Legendre (32 nodes). Any weights keep the guarantee.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    shares, (a, b) = (1 + nodes) / 2, prior
    weights = weights * (1 + shares) ** (a - 1) * (1 - shares) ** (b - 1)
    total = np.full(np.shape(differences), -np.inf)
    for share, weight in zip(shares, weights / weights.sum(), strict=True):
        np.logaddexp(total, np.cumsum(np.log1p(share * differences), axis=-1) + math.log(weight), out=total)
    return total


@dataclass(frozen=True)
class Evidence:
    """What the episodes so far say of two policies.

    Attributes:
        forward: log E [T] that the first is better (or, two-sided, that either is).
        backward: log E [T] that the second is better.
        alpha: the probability of error allowed.
        alternative: what is tested.
    """

    forward: np.ndarray
    backward: np.ndarray
    alpha: float
    alternative: Alternative

    @property
    def stopped_after(self) -> int | None:
        """Episodes after which the test was decided; None if it is not."""
        return stopping_time(self.forward, self.alpha)

    @property
    def futile_after(self) -> int | None:
        """Episodes after which the second was as clearly better; never, two-sided: that is its decision."""
        return stopping_time(self.backward, self.alpha) if self.alternative == "greater" else None

    @property
    def decided(self) -> bool:
        """Whether one may stop: also where going on would be futile, which cannot cause a false alarm."""
        return self.stopped_after is not None or self.futile_after is not None

    def verdict(self, first: str, second: str) -> str:
        """What it says of two policies with these names, in a line."""
        stopped, futile = self.stopped_after, self.futile_after
        if stopped is not None and (futile is None or stopped <= futile):
            turned = self.backward[stopped - 1] > self.forward[stopped - 1]
            better, worse = (second, first) if turned else (first, second)
            found = f"{better} is better than {worse}, decided after {stopped} episodes"
        elif futile is not None:
            found = f"{first} is not shown to be better: the evidence is for {second}, stopped after {futile} episodes"
        else:
            found = f"undecided after {len(self.forward)} episodes"
        wrong = f"wrong with probability <= {self.alpha:g}, whenever one looks"
        return f"{found} (E = {capital(self.forward[-1]):.3g}; to decide at {1 / self.alpha:g} is {wrong})"


def collect_evidence(
    first: np.ndarray,
    second: np.ndarray,
    bounds: tuple[float, float] | None,
    alpha: float,
    alternative: Alternative,
) -> Evidence:
    """The evidence of scores [T] within `bounds`, or of successes, 0 or 1, where `bounds` is None."""

    def evidence(x: np.ndarray, y: np.ndarray, side: Alternative) -> np.ndarray:
        if bounds is None:
            return success_evidence(x > 0.5, y > 0.5, side)
        return score_evidence(x, y, bounds, side)

    return Evidence(
        evidence(first, second, alternative), evidence(second, first, "greater"), alpha, alternative
    )


def capital(log_evidence: np.ndarray) -> np.ndarray:
    """E of log E, at most e^700, so that it is a finite number."""
    return np.asarray(np.exp(np.minimum(log_evidence, 700.0)))


def stopping_time(log_evidence: np.ndarray, alpha: float) -> int | None:
    """The number of episodes [T] after which E >= 1 / alpha for the first time; None if it never is."""
    reached = np.flatnonzero(log_evidence >= -math.log(alpha))
    return int(reached[0]) + 1 if len(reached) else None


def _either(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Half of the stake on each side: a test of both."""
    return np.asarray(np.logaddexp(forward, backward) - math.log(2))
