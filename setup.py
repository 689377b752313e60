"""Package metadata; settings of the tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "claris_kaggle/version.py").read_text("utf-8"))
if VERSION is None:
    raise SystemExit("setup.py: no __version__ in claris_kaggle/version.py")

# `report` is always installed. As an extra, it completes an environment that was built by hand. The other extras are
# installed by name.
REPORT = ["jinja2>=3.1", "matplotlib>=3.8"]
SERVE = ["starlette>=1.6", "uvicorn>=0.30", "python-multipart>=0.0.20"]
ONNX = ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"]

setup(
    name="claris_kaggle",
    version=VERSION.group(1),
    description="Histopathologic Cancer Detection on Kaggle, from the files to a checked submission",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    project_urls={
        "Competition": "https://www.kaggle.com/c/histopathologic-cancer-detection",
        "Dataset paper": "https://arxiv.org/abs/1806.03962",
        "Issue tracker": "https://example.org/claris_kaggle/issues",  # a placeholder until the project has a public one
    },
    # The scripts of kernels/ travel inside, so that `claris launch` works without a clone.
    packages=[*find_packages(include=["claris_kaggle", "claris_kaggle.*"]), "claris_kaggle.kernel_scripts"],
    package_dir={"claris_kaggle.kernel_scripts": "kernels"},
    package_data={
        "claris_kaggle": ["py.typed"],
        "claris_kaggle.kaggle": ["plans/*.toml"],
        "claris_kaggle.models": ["networks.csv"],
        "claris_kaggle.reporting.templates": ["*.jinja", "*.js"],
        "claris_kaggle.kernel_scripts": ["train/*.*", "predict/*.*", "ensemble/*.*", "probe/*.*"],
    },
    python_requires=">=3.11",
    # The lower limits are the versions of Kaggle's image, except filelock, kaggle and kagglesdk: only the user's own
    # machine uses the last two. The versions of torch and torchvision depend on each other, so neither has an upper
    # limit, and pip chooses both.
    install_requires=[
        "torch>=2.10",
        "torchvision>=0.25",
        "timm>=1.0.26,<2",
        "albumentations>=2.0.8,<2.1",
        "opencv-python-headless>=4.9",  # as albumentations asks
        "numpy>=2.0,<3",
        "pandas>=2.2,<4",
        "scikit-learn>=1.6,<2",
        "scipy>=1.13",
        "joblib>=1.5,<2",
        "filelock>=3.28,<5",  # TIAToolbox of the extra `peers` takes nothing newer than 3.28
        "kaggle>=2.2.5,<3",
        "kagglesdk>=0.1.38",  # the client's typed layer
        "requests>=2.31",
        "six",  # imported by kaggle 2.2, which does not declare it
        "safetensors>=0.4",
        "huggingface_hub>=0.30",
        "pillow>=10",
        "tqdm>=4.66",
        "shtab>=1.7",
        *REPORT,
    ],
    extras_require={
        "report": REPORT,
        "serve": SERVE,
        "onnx": ONNX,
        # For `python -m benchmarks.peers` alone. Not in dev: TIAToolbox takes only older torch, pandas and Pillow.
        "peers": ["lightning>=2.6", "fastai>=2.8", "tiatoolbox>=2.1.3"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "pytest-cov>=5",
            "hypothesis>=6.100",
            "mutmut>=3.8",
            "ruff>=0.8",
            "mypy>=1.13",
            "pandas-stubs",
            "types-tqdm",
            "pre-commit>=3.8",
            "ttach>=0.0.3",
            "build>=1.2",
            "nbclient>=0.10",  # runs the notebooks of examples/
            "ipykernel>=6.29",
            "pdoc>=15",
            "markdown2>=2.5",  # the pages of the documentation's site
            "playwright>=1.40",
            "axe-playwright-python>=0.1.4",
            "httpx2",  # by which starlette tests its pages
            *SERVE,
            *ONNX,
        ],
    },
    entry_points={"console_scripts": ["claris = claris_kaggle.cli.main:main"]},
)
