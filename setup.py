"""Installs the rooms as packages: `pip install -e .[metrics,track]`; recipes and assets stay in the checkout.

Ranges stand here, for environments that already hold a torch; requirements.txt holds exact versions.
"""

from setuptools import find_namespace_packages, setup

ROOMS = ["wan", "cogvideox", "utils", "model", "pipeline", "trainer", "demo", "scripts"]

REQUIRES = [
    "torch>=2.9",  # torch.optim.Muon, FlexAttention and FSDP2 as we use them
    "diffusers>=0.35",  # AutoencoderKLWan of both Wan 2.1 and 2.2
    "transformers>=4.51",
    "accelerate>=1.0",
    "peft>=0.15",
    "tokenizers>=0.21",
    "sentencepiece>=0.2",
    "safetensors>=0.5",
    "huggingface_hub>=0.30",
    "omegaconf>=2.4",  # tuples
    "numpy>=1.26",
    "einops>=0.8",
    "ftfy>=6.2",
    "av>=17",
    "pillow>=10",
    "lmdb>=1.4",
    "tqdm>=4.66",
]

EXTRAS = {
    "flash": ["flash-attn>=2.7"],  # builds against the installed torch; needs a CUDA device
    "flash4": ["flash-attn-4>=4.0.0b36"],  # pure Python, no build; block-sparse attention on Hopper
    "track": ["wandb>=0.18", "tensorboard>=2.17"],
    "demo": ["gradio>=6", "scikit-learn>=1.4"],  # the web page; digits clips are drawn from its handwritten digits
    "metrics": ["scikit-learn>=1.4", "matplotlib>=3.8"],
    "dev": ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "ruff>=0.8", "mypy>=1.11"],
}

setup(
    name="longtake",
    version="0.1.0",
    description="Trains, distils, streams and serves causal Wan video diffusion",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_namespace_packages(include=[f"{room}{suffix}" for room in ROOMS for suffix in ("", ".*")]),
    py_modules=["train", "inference"],
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
