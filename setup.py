"""Packaging. Tool settings are in pyproject.toml, the tested set of versions in constraints.txt."""

from setuptools import setup

EXTRAS = {
    "diffusers": [
        "diffusers>=0.35",
        "transformers>=4.56",
        "accelerate>=1.0",
        "psutil>=5.9",
        "scipy>=1.11",
        "pillow>=10",
    ],
    "cli": ["typer>=0.12", "rich>=13", "tqdm>=4.66", "pandas>=2.0", "matplotlib>=3.8", "pillow>=10"],
    "bench": ["rich>=13", "tqdm>=4.66", "pandas>=2.0", "matplotlib>=3.8"],
    "dev": ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "ruff>=0.12", "scipy>=1.11"],
}

setup(
    name="entropy_attn",
    version="0.1.0",
    description="Fused attention with entropy and a per-call scale for text-to-image diffusion",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # entropy_attn/kernels is a link to kernels/, which must not be an importable top-level package of its own.
    packages=[
        "entropy_attn",
        "entropy_attn.bench",
        "entropy_attn.cli",
        "entropy_attn.guidance",
        "entropy_attn.integrations",
        "entropy_attn.kernels",
        "entropy_attn.pipelines",
        "entropy_attn.plots",
        "entropy_attn.profiling",
        "entropy_attn.scale",
        "entropy_attn.shapes",
    ],
    package_data={"entropy_attn.kernels": ["*.csv"], "entropy_attn.shapes": ["model/*", "model/*/*"]},
    # The CPU build of torch does not bring Triton; the kernels' interpreter and compiler run without a GPU.
    install_requires=["torch>=2.9", "numpy", 'triton>=3.5; platform_system == "Linux"'],
    extras_require={**EXTRAS, "all": sorted({need for extra in EXTRAS.values() for need in extra})},
    entry_points={"console_scripts": ["entropy-attn = entropy_attn.cli:main"]},
)
