from __future__ import annotations

import pytest
from tiny_problem import Problem, make_problem

from diffinf.config import ClassifierConfig


@pytest.fixture(scope="session")
def problem() -> Problem:
    return make_problem(64, 0)


@pytest.fixture(scope="session")
def unseen() -> Problem:
    return make_problem(40, 1)


@pytest.fixture
def config() -> ClassifierConfig:
    return ClassifierConfig(steps=24, batch_size=16, learning_rate=5e-3, checkpoints=3, folds=2)
