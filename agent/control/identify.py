"""Identifies a loop's process from a record, and says how far the result can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from agent.config.types import ModelConfig
from agent.control.fit import LEAST_DAMPING, Bounds, Fit, Floats, Form, Simulation, whitening_of
from agent.control.misfit import misfit
from agent.control.record import Grid, Record, to_grid
from agent.control.source import Source, source_of

Grade = Literal["good", "fair", "poor"]

NOISE_ORDER = 6
WHITENINGS = 2
"""Times the residuals' autoregression is taken and the fit repeated with it."""
LAG_SHARE, DELAY_SHARE = 0.5, 0.25
"""Of the record's length: the longest lag and the longest delay that it could tell."""
NOT_SETTLING = 0.35
"""Of the record's length: where the lags are longer, the process may as well be integrating."""
GOOD, FAIR = 0.05, 0.3
"""Highest standard error of the delay, as a share of delay + lags, for a grade."""
GOOD_GAIN, FAIR_GAIN = 0.1, 0.25
"""Highest standard error of the gain, as a share of it; of a damping too."""
EXCITED_PEAK, EXCITED_TOTAL = 0.8, 8.0
"""Least effect on the PV of what moved the output from outside the loop, in multiples of the noise: at its largest, and
over the record. Quiet loops with dead bands or coarse registers stayed below 0.4 and 5, experiments above 1 and 11."""
EXPLAINED, EXPLAINED_INTEGRATING, EXPLAINED_FAIR = 0.7, 0.65, 0.3
"""Least share of the PV's variation that a good model explains, a good integrating one (it sums up each small load, and
drifts), and a fair one."""
FOLLOWS = 0.22
"""Greatest misfit of a good model; one that oscillates has 0.2 to 0.35 on a model of lags, eight lags have 0.2."""
NO_LAG = 0.5
"""Of the period: a lag this short cannot be told from a delay, and is no parameter of its own."""
ALIKE_LAGS = 0.8
"""Share of t1: a t2 above it is where the real lags end and a swing may begin."""
CLEARLY, SWINGS = 20.0, 0.7
"""Least fall of n log(sum of squares) by a swing (chi squared of 3 parameters: 16, 99.9 %), and its highest damping: it
overshoots by 5 % then. Of 4 to 30 equal lags the best swing had 0.79 to 0.85."""
ALIKE = 3.84
"""Rise of n log(sum of squares) below which another delay explains the record as well (chi squared, 95 %)."""


@dataclass(frozen=True, slots=True)
class Identified:
    """The process found. Standard errors in the unit of what they belong to; NaN where the record tells nothing.

    damping_error: 0 unless the process oscillates.

    `delays`: seconds, those that explain the record as well as the best one. `fit`: share of the PV's variation that
    the simulated process explains, which is no measure of trust in a closed loop. `why`: what keeps the grade down.
    t (seconds from the start), pv and simulated, each (samples,): the PV as recorded and as the process would have it.
    """

    model: ModelConfig
    period: float
    samples: int
    cut: int
    k_error: float
    t_error: float
    delay_error: float
    damping_error: float
    fit: float
    source: Source
    delays: tuple[float, ...]
    why: tuple[str, ...]
    t: Floats
    pv: Floats
    simulated: Floats

    @property
    def grade(self) -> Grade:
        return self.model.grade


def identify(record: Record, *, period: float | None = None) -> Identified:
    """The process that explains a record best, of both forms, and its grade.

    period: seconds of the grid; None: that of the samples. Raises ValueError, in words for the user, for a record with
    nothing in it to identify.
    """
    grid = to_grid(record, period)
    for what, values in (("output", grid.out), ("PV", grid.pv)):
        if np.ptp(values) <= 1e-12 * max(float(np.abs(values).max()), 1e-300):
            raise ValueError(f"the {what} never moves in this record")
    span = grid.period * len(grid.out)
    bounds = bounds_of(grid)
    lags, integrating = (whitened(grid, bounds, form) for form in ("settling", "integrating"))
    simulation, fit = _chosen([lags, integrating], span)
    if lags[1].t2 > ALIKE_LAGS * lags[1].t1:
        simulation, fit = _swinging((simulation, fit), whitened(grid, bounds, "oscillating"), bounds)
    return _judged(grid, simulation, fit)


def bounds_of(grid: Grid) -> Bounds:
    """What a record of this length could tell at most."""
    span = grid.period * len(grid.out)
    return Bounds(LAG_SHARE * span, DELAY_SHARE * span)


def whitened(grid: Grid, bounds: Bounds, form: Form) -> tuple[Simulation, Fit]:
    """The fit with residuals that are white: a slow disturbance then counts as what it is, and not as many samples."""
    plain = Simulation(grid, form=form)
    starts = plain.fits(bounds)
    simulation, fit = plain, starts[0]
    for _ in range(WHITENINGS):
        residuals = plain.pv - plain.columns(*fit.point) @ fit.linear
        if residuals @ residuals <= 1e-18 * (plain.pv @ plain.pv):
            break  # simulated data without noise: nothing to whiten
        simulation = Simulation(grid, form=form, whitening=whitening_of(residuals, NOISE_ORDER))
        fit = simulation.fit_from([fit, *starts])
    return simulation, fit


def _innovation(fit: Fit) -> float:
    """Mean square of what is new in each sample, comparable between forms."""
    return fit.sum_squares / len(fit.residuals)


def _chosen(fits: list[tuple[Simulation, Fit]], span: float) -> tuple[Simulation, Fit]:
    """Integrating where that explains as much with one parameter less, or the lag is beyond what the record shows."""
    settling, integrating = fits[0][1], fits[1][1]
    worse = len(settling.residuals) * math.log(_innovation(integrating) / max(_innovation(settling), 1e-300))
    return fits[1] if worse < ALIKE or settling.t1 > NOT_SETTLING * span else fits[0]


def _swinging(
    found: tuple[Simulation, Fit], swing: tuple[Simulation, Fit], bounds: Bounds
) -> tuple[Simulation, Fit]:
    """Oscillating where that explains the record clearly better than what was found, and than many lags do.

    Many lags look a little like a swing, and where slow loads hide what the gain is, one is made up for it. They are
    compared with the swing's own whitening: the noise is the same, whatever the process is.
    """
    simulation, fit = swing
    starts = Simulation(simulation.grid, form="many").fits(bounds)
    many = Simulation(simulation.grid, form="many", whitening=simulation.whitening).fit_from(starts)
    least = min(_innovation(found[1]), _innovation(many))
    better = len(fit.residuals) * math.log(least / max(_innovation(fit), 1e-300))
    return swing if better > CLEARLY and fit.damping < SWINGS else found


def _judged(grid: Grid, simulation: Simulation, fit: Fit) -> Identified:
    k_error, t_error, delay_error, damping_error = _errors(simulation, fit)
    plain = Simulation(grid, form=fit.form)
    simulated = plain.columns(*fit.point)
    residuals = plain.pv - simulated @ fit.linear
    source = source_of(grid, simulation, fit)
    delays = _alike(simulation, fit)
    variation = plain.pv - plain.pv.mean()
    explained = 1.0 - float(residuals @ residuals) / max(float(variation @ variation), 1e-300)
    why, grade = _grade(simulation, fit, source, delays, (k_error, delay_error, damping_error), explained)
    model = ModelConfig(
        k=fit.k,
        t1=fit.t1,
        t2=fit.t2,
        delay=fit.delay,
        bias=_bias(simulation, fit),
        integrating=fit.integrating,
        grade=grade,
        damping=fit.damping,
        noise=float(np.sqrt(fit.sum_squares / max(len(fit.residuals) - 6, 1))),
    )
    return Identified(
        model=model,
        period=grid.period,
        samples=len(grid.pv),
        cut=grid.cut,
        k_error=k_error,
        t_error=t_error,
        delay_error=delay_error,
        damping_error=damping_error,
        fit=explained,
        source=source,
        delays=delays,
        why=tuple(why),
        t=grid.at * grid.period,
        pv=grid.pv,
        simulated=grid.pv - residuals,
    )


def _bias(simulation: Simulation, fit: Fit) -> float:
    """The PV at an output of 0; of an integrating process the output at which the PV rests."""
    if fit.integrating:
        return simulation.start_out - float(fit.linear[2]) / fit.k if fit.k else math.nan
    return simulation.start_pv + float(fit.linear[1]) - fit.k * simulation.start_out


def _errors(simulation: Simulation, fit: Fit) -> tuple[float, float, float, float]:
    """Standard errors of gain, sum of lags, delay and damping, from the Jacobian at the fit.

    A delay at 0 stays a parameter, or its error could not be told.
    """
    lags = [i for i, lag in ((0, fit.t1), (1, fit.t2)) if lag > NO_LAG * simulation.grid.period]
    swings = fit.form == "oscillating"
    free = [*lags, *([1] if swings else []), 2]
    point = fit.point
    columns = simulation.columns(*point)
    slopes = [columns]
    for i in free:
        by = simulation.nudge(point, i)
        beside = point.copy()
        beside[i] += by
        slopes.append(((simulation.columns(*beside) - columns) @ fit.linear / by)[:, None])
    jacobian = np.hstack(slopes)
    scale = np.sqrt((jacobian * jacobian).sum(axis=0))
    scale[scale < 1e-150] = 1.0
    covariance = _sandwich(jacobian / scale, fit.residuals) / np.outer(scale, scale)
    q = columns.shape[1]
    together = covariance[q : q + len(lags), q : q + len(lags)].sum() if lags else 0.0
    damping = math.sqrt(covariance[-2, -2]) if swings else 0.0
    return math.sqrt(covariance[0, 0]), math.sqrt(max(together, 0.0)), math.sqrt(covariance[-1, -1]), damping


def _sandwich(jacobian: Floats, residuals: Floats) -> Floats:
    """Covariance of least squares whose residuals may still be correlated (Newey & West, 1987)."""
    n, q = jacobian.shape
    inverse = np.linalg.pinv(jacobian.T @ jacobian, rcond=1e-12)
    moments = jacobian * residuals[:, None]
    middle = moments.T @ moments
    lags = round(n ** (1 / 3))
    for lag in range(1, lags + 1):
        cross = moments[lag:].T @ moments[:-lag]
        middle += (1 - lag / (lags + 1)) * (cross + cross.T)
    covariance: Floats = inverse @ middle @ inverse * (n / max(n - q, 1))
    return covariance


def _alike(simulation: Simulation, fit: Fit) -> tuple[float, ...]:
    """Delays, a sample apart around the best, that explain the record as well when the lags are fitted anew."""
    found = [fit.delay]
    n, step = len(fit.residuals), max(simulation.grid.period, fit.bounds.delay / 60)
    for sign in (-1.0, 1.0):
        late, other = fit.delay + sign * step, fit
        while 0.0 <= late <= fit.bounds.delay:
            other = simulation.fit_from([other], delay=late)
            if n * math.log(max(other.sum_squares, 1e-300) / max(fit.sum_squares, 1e-300)) > ALIKE:
                break
            found.append(late)
            late += sign * step
    return tuple(sorted(found))


def _grade(
    simulation: Simulation,
    fit: Fit,
    source: Source,
    delays: tuple[float, ...],
    errors: tuple[float, float, float],
    explained: float,
) -> tuple[list[str], Grade]:
    """What keeps the grade down, in words, and the grade."""
    total, period = fit.delay + fit.t1 + fit.t2, simulation.grid.period
    gain_share = errors[0] / max(abs(fit.k), 1e-300)
    delay_share = errors[1] / max(total, period)
    poor, fair = [], []
    if source.effect < EXCITED_PEAK or source.total < EXCITED_TOTAL:
        what = "the output did not move by itself: what it did follows from the PV"
        if source.kind == "outside":
            what = (
                "what the output did by itself does not stand out from what the PV does anyway: it takes more"
            )
        poor.append(f"{what}. Step the setpoint, or let `tune --step`, `--relay` or `--prbs` move the output")
    if fit.delay >= 0.98 * fit.bounds.delay:
        poor.append(
            f"the delay is at its bound, {fit.bounds.delay:.4g} s: the record is too short to tell it"
        )
    if not fit.integrating and fit.t1 >= 0.98 * fit.bounds.lag:
        poor.append(
            f"the lag is at its bound, {fit.bounds.lag:.4g} s: the record is too short to see it settle"
        )
    if not gain_share <= FAIR_GAIN:
        poor.append(f"the gain is known to {100 * gain_share:.0f} % only")
    elif gain_share > GOOD_GAIN:
        fair.append(f"the gain is known to {100 * gain_share:.0f} % only")
    if not delay_share <= FAIR:
        poor.append(f"the delay is known to {errors[1]:.2g} s only")
    elif delay_share > GOOD:
        fair.append(f"the delay is known to {errors[1]:.2g} s only")
    if fit.damping <= 1.02 * LEAST_DAMPING:
        poor.append(f"the damping is at its bound, {LEAST_DAMPING:g}: this hardly dies down by itself")
    if errors[2] > GOOD_GAIN * fit.damping:
        (fair if errors[2] <= FAIR_GAIN * fit.damping else poor).append(
            f"the damping is known to {100 * errors[2] / fit.damping:.0f} % only"
        )
    if len(delays) > 1 and delays[-1] - delays[0] > max(4 * GOOD * total, 2 * period):
        fair.append(f"delays from {delays[0]:.3g} to {delays[-1]:.3g} s explain the record alike")
    share = f"the process found explains {max(100 * explained, 0):.0f} % of what the PV did"
    if explained < EXPLAINED_FAIR:
        poor.append(f"{share}: something else moved it")
    elif explained < (EXPLAINED_INTEGRATING if fit.integrating else EXPLAINED):
        fair.append(f"{share}: it drifts, oscillates or is moved by something else")
    if source.kind == "outside" and misfit(simulation, fit) > FOLLOWS:
        fair.append("the PV moves as the model found does not: it goes the wrong way first or has more lags")
    if source.kind == "setpoint":
        fair.append(
            "only the setpoint moved the loop, and the controller answered: the delay may be misjudged"
        )
    if source.effect < EXCITED_PEAK or source.total < EXCITED_TOTAL:
        return poor[:1], "poor"  # whatever else was found is found in nothing
    return poor + fair, "poor" if poor else "fair" if fair else "good"
