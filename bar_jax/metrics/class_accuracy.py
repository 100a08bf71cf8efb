"""Class accuracy: does a classifier trained on real images read the samples' classes?"""

import numpy as np
from PIL import Image
from sklearn.svm import SVC

LARGEST_SIDE = 32  # pixels; larger images are shrunk, for the classifier reads raw pixels


def features(images: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, 3] -> [B, D] float32 in [0, 1], with sides of at most LARGEST_SIDE."""
    if images.shape[1] > LARGEST_SIDE:
        size = (LARGEST_SIDE, LARGEST_SIDE)
        images = np.stack([np.asarray(Image.fromarray(i).resize(size, Image.BOX)) for i in images])
    return images.reshape(len(images), -1).astype(np.float32) / 255


def train_classifier(images: np.ndarray, labels: np.ndarray) -> SVC:
    """A support vector machine with RBF kernel on raw pixels of real images."""
    return SVC(C=10.0, gamma="scale").fit(features(images), labels)


def class_accuracy(classifier: SVC, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images uint8 [B, H, W, 3] whose class the classifier finds."""
    return float(np.mean(classifier.predict(features(images)) == labels))
