"""The packages poa_ds, data_tools and poa_kernels, and the program poa-ds.

Ranges are loose here; constraints.txt pins the versions that were tested together.
"""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="poa_ds",
    version="0.1.0",
    description="Pre-train one elastic vision backbone with DeepSpeed, deploy any of its sizes",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["poa_ds", "poa_ds.*", "data_tools", "data_tools.*"]),
        *find_packages("kernels"),
        "poa_ds.ds_configs",
    ],
    package_dir={
        # a top-level package `kernels` would hide the one that transformers imports
        "poa_kernels": "kernels/poa_kernels",
        "poa_ds.ds_configs": "ds_configs",  # no code: recipe/shipped.py finds the files there
    },
    package_data={
        "poa_kernels": ["*.json"],
        "poa_ds.ds_configs": ["*"],
        "poa_ds.bench.methods": ["tables/*"],
        "poa_ds.plan": ["*.json"],
        "poa_ds.report": ["page_parts/*"],
    },
    entry_points={"console_scripts": ["poa-ds = poa_ds.cli:main"]},
    install_requires=[
        "deepspeed>=0.19,<0.20",  # engine.py and its neighbours use internals of this series
        "einops>=0.7",
        "fsspec>=2024.2",
        "huggingface_hub>=0.34",
        "matplotlib>=3.8",
        "mlflow>=3.0",
        "numpy>=1.26",
        "pillow>=10.0",
        "plotly>=6.0",
        "psutil>=5.9",
        "pyarrow>=14.0",
        "pyyaml>=6.0",
        "safetensors>=0.4.3",
        "scipy>=1.11",
        "timm>=1.0.9",
        "torch>=2.9",
        "torchvision>=0.24",
        "tqdm>=4.66",
        "triton>=3.5; platform_system == 'Linux'",
        "webdataset>=1.0.2",
    ],
    extras_require={
        "demo": ["scikit-image>=0.22", "scikit-learn>=1.4"],
        "decode": ["simplejpeg>=1.7"],  # for data.decoder
        "detection": ["pycocotools>=2.0.8"],
        "test": [
            "furo>=2024.8",
            "hypothesis>=6.100",
            "ipykernel>=6.29",
            "myst-parser>=4.0",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "pycocotools>=2.0.8",
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "ruff>=0.11",
            "simplejpeg>=1.7",
            "tensorboard>=2.17",
            "tifffile>=2024.1",
            "transformers>=5.0",
            "sphinx>=8.0",
            "wandb>=0.31",
        ],
        "docs": ["furo>=2024.8", "myst-parser>=4.0", "sphinx>=8.0"],
        "tiff": ["tifffile>=2024.1"],  # for images that are measurements
        "tensorboard": ["tensorboard>=2.17"],
        "wandb": ["wandb>=0.31"],
        "hf": ["transformers>=5.0"],
        "onnx": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"],
    },
)
