"""Rendered faces with known factors, and the annotators who label them."""

from diffinf.data.rendered.annotate import annotate
from diffinf.data.rendered.contact import write_contact_sheet
from diffinf.data.rendered.factors import FACTORS, FaceFactors, concatenate, factor_names, plain_faces
from diffinf.data.rendered.presets import PRESETS, RenderPlan
from diffinf.data.rendered.render import render_faces
from diffinf.data.rendered.sample import sample_faces, sample_identities
from diffinf.data.rendered.tasks import class_names, counterfactual, true_labels
from diffinf.data.rendered.write import RenderedFaces, factors_from_table, render_dataset, sample_dataset

__all__ = [
    "FACTORS",
    "PRESETS",
    "FaceFactors",
    "RenderPlan",
    "RenderedFaces",
    "annotate",
    "class_names",
    "concatenate",
    "counterfactual",
    "factor_names",
    "factors_from_table",
    "plain_faces",
    "render_dataset",
    "render_faces",
    "sample_dataset",
    "sample_faces",
    "sample_identities",
    "true_labels",
    "write_contact_sheet",
]
