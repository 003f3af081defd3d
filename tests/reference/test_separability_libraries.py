"""Error rates against scikit-learn's ROC curve."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from diffinf.evaluate.separability import separability


@pytest.mark.parametrize("digits", [2, 15])
def test_rates_match_the_roc_curve(digits):
    generator = np.random.default_rng(digits)
    genuine = generator.normal(2, 1, 700).round(digits)
    impostor = generator.normal(size=6000).round(digits)
    truth = np.repeat([1, 0], [700, 6000])
    fmr, tpr, _ = roc_curve(truth, np.concatenate([genuine, impostor]), drop_intermediate=False)
    found = separability(genuine, impostor)
    for value, most in ((found.fmr100, 0.01), (found.fmr1000, 0.001)):
        assert value == pytest.approx((1 - tpr)[fmr <= most].min(), abs=1e-12)
    # The equal error rate lies between the rates at the two points around the crossing.
    crossing = np.argmax(1 - tpr <= fmr)
    around = [*fmr[crossing - 1 : crossing + 1], *(1 - tpr)[crossing - 1 : crossing + 1]]
    assert min(around) <= found.eer <= max(around) and max(around) - min(around) < 0.02
    rates = (impostor >= found.eer_threshold).mean(), (genuine < found.eer_threshold).mean()
    assert found.eer == pytest.approx(np.mean(rates), abs=1e-12)
