"""What a filter does about measurements that do not fit: heavy-tailed noise, and gates."""

from filterdyn.outliers.base import AbstractOutlierRule, ScalarUpdate, check_outliers
from filterdyn.outliers.gate import Gate
from filterdyn.outliers.huber import HuberNoise
from filterdyn.outliers.student_t import StudentTNoise

__all__ = [
    "AbstractOutlierRule",
    "Gate",
    "HuberNoise",
    "ScalarUpdate",
    "StudentTNoise",
    "check_outliers",
]
