"""What a score network predicts, and how that becomes x0 and eps.

At a point of a schedule x = alpha * x0 + sigma * eps. Whatever the network's answer m means, x0 and eps are linear in x
and m: ``x0 = p*x + q*m``. That is all that samplers need, so guidance, parameterization and step become one linear
pass. Formulas hold for any (alpha, sigma), so they serve the three spaces in which a latent can live:

    vp     alpha^2 + sigma^2 = 1      kappa  alpha = 1 (sigma = kappa)      flow  alpha = 1 - sigma
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.expression import hypot
from scoregraph.graph.spec import Spec

SPACES = ("vp", "kappa", "flow")

Linear = tuple[float, float]
"""(p, q) of ``p*x + q*m``."""


@dataclass(frozen=True)
class Prediction(Spec):
    """Family of parameterizations. All methods work in float64 at one point (alpha, sigma) of a schedule, sigma > 0."""

    family: ClassVar[str] = "prediction"
    singular: ClassVar[bool] = False
    """True where x0 is not determined at alpha = 0 (eps and score)."""

    def to_x0(self, alpha: float, sigma: float) -> Linear:
        """(p, q) with x0 = p*x + q*m."""
        raise TypeError(f"{type(self).__name__} does not define to_x0")

    def to_eps(self, alpha: float, sigma: float) -> Linear:
        """(p, q) with eps = p*x + q*m."""
        p, q = self.to_x0(alpha, sigma)
        return (1.0 - alpha * p) / sigma, -alpha * q / sigma

    def c_in(self, alpha: float, sigma: float) -> float:
        """The factor on x at the network's input: 1 unless preconditioning is part of the parameterization."""
        return 1.0

    @property
    def boundary(self) -> float:
        """The kappa = sigma / alpha at which the network's x0 is x itself (0 unless it was trained otherwise)."""
        return 0.0


@dataclass(frozen=True)
class Eps(Prediction):
    """The network predicts the noise: m = eps (DDPM, Stable Diffusion 1)."""

    name: ClassVar[str] = "eps"
    singular: ClassVar[bool] = True

    def to_x0(self, alpha: float, sigma: float) -> Linear:
        """x0 = (x - sigma*m) / alpha."""
        return 1.0 / alpha, -sigma / alpha

    def to_eps(self, alpha: float, sigma: float) -> Linear:
        """eps = m."""
        return 0.0, 1.0


@dataclass(frozen=True)
class X0(Prediction):
    """The network predicts the clean sample: m = x0 (a denoiser)."""

    name: ClassVar[str] = "x0"

    def to_x0(self, alpha: float, sigma: float) -> Linear:
        """x0 = m."""
        return 0.0, 1.0


@dataclass(frozen=True)
class V(Prediction):
    """The network predicts the velocity of the variance-preserving path (Salimans and Ho 2022): m = a*eps - s*x0.

    a and s are alpha and sigma scaled to a^2 + s^2 = 1, in whatever space the latent lives.
    """

    name: ClassVar[str] = "v"

    def to_x0(self, alpha: float, sigma: float) -> Linear:
        """x0 = a*(x/n) - s*m with n = sqrt(alpha^2 + sigma^2), a = alpha/n, s = sigma/n."""
        norm = hypot(alpha, sigma)
        return alpha / norm**2, -sigma / norm

    def to_eps(self, alpha: float, sigma: float) -> Linear:
        """eps = s*(x/n) + a*m."""
        norm = hypot(alpha, sigma)
        return sigma / norm**2, alpha / norm


@dataclass(frozen=True)
class Flow(Prediction):
    """The network predicts the velocity of the straight path (rectified flow, flow matching): m = eps - x0."""

    name: ClassVar[str] = "flow"

    def to_x0(self, alpha: float, sigma: float) -> Linear:
        """x0 = (x - sigma*m) / (alpha + sigma)."""
        return 1.0 / (alpha + sigma), -sigma / (alpha + sigma)

    def to_eps(self, alpha: float, sigma: float) -> Linear:
        """eps = (x + alpha*m) / (alpha + sigma)."""
        return 1.0 / (alpha + sigma), alpha / (alpha + sigma)


@dataclass(frozen=True)
class Score(Prediction):
    """The network predicts the gradient of the log density of x: m = -eps / sigma (Song et al. 2021)."""

    name: ClassVar[str] = "score"
    singular: ClassVar[bool] = True

    def to_x0(self, alpha: float, sigma: float) -> Linear:
        """x0 = (x + sigma^2*m) / alpha."""
        return 1.0 / alpha, sigma**2 / alpha

    def to_eps(self, alpha: float, sigma: float) -> Linear:
        """eps = -sigma*m."""
        return 0.0, -sigma


@dataclass(frozen=True)
class Edm(Prediction):
    """The raw network F of EDM (Karras et al. 2022, table 1): D(x) = c_skip*x + c_out*F(c_in*x, c_noise).

    In kappa space c_skip = sd^2/(k^2+sd^2), c_out = k*sd/sqrt(k^2+sd^2), c_in = 1/sqrt(k^2+sd^2); elsewhere the same of
    x/alpha at k = sigma/alpha. ``sigma_data`` (sd) is the standard deviation of the data.
    """

    name: ClassVar[str] = "edm"
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        options.real(self, "sigma_data", low=0.0, above=True)

    def to_x0(self, alpha: float, sigma: float) -> Linear:
        """x0 = c_skip*(x/alpha) + c_out*m."""
        norm = hypot(sigma, alpha * self.sigma_data)
        return self.sigma_data**2 * alpha / norm**2, self.sigma_data * sigma / norm

    def to_eps(self, alpha: float, sigma: float) -> Linear:
        """eps = (x - alpha*x0) / sigma, with the division by sigma carried out."""
        norm = hypot(sigma, alpha * self.sigma_data)
        return sigma / norm**2, -alpha * self.sigma_data / norm

    def c_in(self, alpha: float, sigma: float) -> float:
        """1/sqrt(k^2 + sd^2), of x/alpha."""
        return 1.0 / hypot(sigma, alpha * self.sigma_data)


@dataclass(frozen=True)
class TrigFlow(Edm):
    """The raw network F of TrigFlow (Lu and Song 2025): D = cos(t)*x_t - sin(t)*sd*F(x_t/sd, t), with tan(t) = k/sd.

    x_t = cos(t)*(x/alpha), so that is EDM's parameterization with the opposite sign of F. ``sigma_data`` = 1 belongs to
    data that were divided by their standard deviation, as the time "angle" supposes.
    """

    name: ClassVar[str] = "trigflow"
    sigma_data: float = 1.0

    def to_x0(self, alpha: float, sigma: float) -> Linear:
        """x0 = cos^2(t)*(x/alpha) - sin(t)*sd*m."""
        p, q = super().to_x0(alpha, sigma)
        return p, -q

    def to_eps(self, alpha: float, sigma: float) -> Linear:
        """eps = (x - alpha*x0) / sigma, with the division by sigma carried out."""
        p, q = super().to_eps(alpha, sigma)
        return p, -q


@dataclass(frozen=True)
class Consistency(Prediction):
    """The raw network F of a consistency model (Song et al. 2023, appendix C): f(x) = c_skip*x + c_out*F(c_in*x).

    In kappa space c_skip = sd^2/((k-k0)^2+sd^2) and c_out = (k-k0)*sd/sqrt(k^2+sd^2), so that f(x) = x at the boundary
    k0 = ``sigma_min``; c_in as in EDM.
    """

    name: ClassVar[str] = "consistency"
    sigma_data: float = 0.5
    sigma_min: float = 0.002

    def __post_init__(self) -> None:
        options.real(self, "sigma_data", low=0.0, above=True)
        options.real(self, "sigma_min", low=0.0)

    def to_x0(self, alpha: float, sigma: float) -> Linear:
        """x0 = c_skip*(x/alpha) + c_out*m."""
        gap = sigma - alpha * self.sigma_min
        skip = self.sigma_data**2 * alpha / (gap**2 + (alpha * self.sigma_data) ** 2)
        return skip, gap * self.sigma_data / hypot(sigma, alpha * self.sigma_data)

    def c_in(self, alpha: float, sigma: float) -> float:
        """1/sqrt(k^2 + sd^2), of x/alpha."""
        return 1.0 / hypot(sigma, alpha * self.sigma_data)

    @property
    def boundary(self) -> float:
        """k0."""
        return self.sigma_min


eps = Eps
x0 = X0
v = V
flow = Flow
score = Score
edm = Edm
trigflow = TrigFlow
consistency = Consistency
