"""cd-dynamax: continuous-discrete filters whose moment equations Diffrax solves."""

import jax.numpy as jnp
from cd_dynamax.dynamax.linear_gaussian_ssm.inference import ParamsLGSSMInitial
from cd_dynamax.src.continuous_discrete_nonlinear_gaussian_ssm import (
    EKFHyperParams,
    ParamsCDNLGSSM,
    ParamsCDNLGSSMDynamics,
    ParamsCDNLGSSMEmissions,
)
from cd_dynamax.src.continuous_discrete_nonlinear_gaussian_ssm.cdnlgssm_utils import (
    LearnableLinear,
    LearnableMatrix,
    LearnableVector,
)
from cd_dynamax.src.continuous_discrete_nonlinear_gaussian_ssm.inference_ekf import (
    extended_kalman_filter,
)

from contestants import jitted

PACKAGE = "cd-dynamax"


class _Drift:
    def __init__(self, problem, rates):
        self.problem, self.rates = problem, rates

    def f(self, x, u=None, t=None):
        return self.problem.drift(jnp, x, self.rates)


def lorenz(problem, settings=None):
    eye = jnp.eye(3)

    def whole(p, ys):
        params = ParamsCDNLGSSM(
            initial=ParamsLGSSMInitial(
                mean=LearnableVector(jnp.asarray(problem.m0)),
                cov=LearnableMatrix(jnp.asarray(problem.P0)),
            ),
            dynamics=ParamsCDNLGSSMDynamics(
                drift=_Drift(problem, p["rates"]),
                diffusion_coefficient=LearnableMatrix(problem.diffusion * eye),
                diffusion_cov=LearnableMatrix(eye),
                approx_order=1,
            ),
            emissions=ParamsCDNLGSSMEmissions(
                emission_function=LearnableLinear(eye, jnp.zeros(3)),
                emission_cov=LearnableMatrix(p["R"]),
            ),
        )
        found = extended_kalman_filter(
            params,
            ys,
            jnp.asarray(problem.times)[:, None],
            EKFHyperParams(diffeqsolve_settings=settings or {}),
            output_fields=["filtered_means", "filtered_covariances"],
            warn=False,
        )
        return found.marginal_loglik, found.filtered_means, found.filtered_covariances

    return jitted(lambda p, ys: whole(p, ys)[0], problem.parameters, problem.ys, whole)
