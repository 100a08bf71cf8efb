"""Numbers about images: how well they are reconstructed, how real samples look.

A new metric of samples is one file here, which ends with its `MetricKind`, and one line in KINDS.
"""

from bar_jax.metrics import classifier, clip_score, frechet, inception_score, kid, precision_recall

KINDS = {
    "fid": frechet.FID,
    "sfid": frechet.SFID,
    "inception_score": inception_score.KIND,
    "precision_recall": precision_recall.KIND,
    "kid": kid.KIND,
    "fd_dinov2": frechet.FD_DINOV2,
    "clip_score": clip_score.KIND,
    "class_accuracy": classifier.ACCURACY,
    "classifier_fid": classifier.FID,
}
