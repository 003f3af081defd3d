"""Measures: arrays in, frozen dataclasses out. They know no model and no file; truth is asked for only here.

- `diffinf.evaluate.detection`: how well a score finds wrong labels
- `diffinf.evaluate.conversion`: how many wrong labels became right because the image was changed
- `diffinf.evaluate.fidelity`: Fréchet and kernel distance, precision, recall, density, coverage of generated images
- `diffinf.evaluate.realism`: precision, density, coverage of edited images relative to as many real ones
- `diffinf.evaluate.copies`: generated images that copy a training image
- `diffinf.evaluate.separability`: genuine against impostor scores, of as many pairs as there are
- `diffinf.evaluate.rca`: do generated images show the class asked for; in `rca_metric` as a torchmetrics metric
- `diffinf.evaluate.gain`: what retraining gained, with intervals and paired tests
- `diffinf.evaluate.measures`: all measures of one arm, calibration, logits without the training prior; both on
  `diffinf.evaluate.resampling`
- `diffinf.evaluate.groups`: flags, edits and accuracy by group, and where they fall on one above all
- `diffinf.evaluate.neighbours`: distances of large feature sets, tile by tile
- `diffinf.evaluate.thresholds`: exact thresholds on scores that are too many to hold
- `diffinf.evaluate.intervals`: bootstrap and Wilson intervals
"""
