"""The numbers that `poa-ds plan` assumes: each with its unit and where it comes from.

What the plan counts from a recipe's shapes is not here. None of these was measured by this project
on a GPU; those that were are read from a file (measured.py) and stand in their place.
"""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Constant:
    """One number. source: a data sheet, somebody's report, or an assumption that is called so."""

    value: float
    unit: str
    source: str


SHEET = "NVIDIA data sheet"
COUNTED = "estimate: a step's products at 0.80 (A100) or 0.85 of the reachable rate, its pointwise"
SHARE = f"{COUNTED} traffic at 0.85 or 0.90 of the bandwidth, both counted, over the peak"


SUSTAINED = Constant(0.85, "of the bandwidth", "assumption: what pointwise kernels sustain")


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU. name: what its driver calls it, or the end of that.

    efficiency: share of `peak` that the backbones reach, all operators told.
    """

    name: str
    memory: Constant
    peak: Constant
    peak_fp32: Constant
    efficiency: Constant
    bandwidth: Constant
    nvlink: Constant
    port: Constant
    bandwidth_share: Constant = SUSTAINED


GPUS = {
    "a100-80g": Gpu(
        name="A100-SXM4-80GB",
        memory=Constant(80.0, "GiB", f"{SHEET}; the driver reports 81,920 MiB"),
        peak=Constant(312.0, "TFLOP/s", f"{SHEET}, bf16 without sparsity"),
        peak_fp32=Constant(19.5, "TFLOP/s", f"{SHEET}, fp32 without TF32"),
        efficiency=Constant(0.54, "of the peak", SHARE),
        bandwidth=Constant(2.04, "TB/s", SHEET),
        nvlink=Constant(300.0, "GB/s", f"{SHEET}: NVLink 3, one direction of one GPU"),
        port=Constant(200.0, "Gbit/s", "DGX A100: one HDR InfiniBand port for each GPU"),
    ),
    "h100": Gpu(
        name="H100 80GB HBM3",
        memory=Constant(79.6, "GiB", f"{SHEET} (SXM); the driver reports 81,559 MiB"),
        peak=Constant(989.0, "TFLOP/s", f"{SHEET}, bf16 without sparsity"),
        peak_fp32=Constant(67.0, "TFLOP/s", f"{SHEET}, fp32 without TF32"),
        efficiency=Constant(0.39, "of the peak", SHARE),
        bandwidth=Constant(3.35, "TB/s", SHEET),
        nvlink=Constant(450.0, "GB/s", f"{SHEET}: NVLink 4, one direction of one GPU"),
        port=Constant(400.0, "Gbit/s", "DGX H100: one NDR InfiniBand port for each GPU"),
    ),
    "h200": Gpu(
        name="H200",
        memory=Constant(140.4, "GiB", f"{SHEET} (SXM); the driver reports 143,771 MiB"),
        peak=Constant(989.0, "TFLOP/s", f"{SHEET}, bf16 without sparsity"),
        peak_fp32=Constant(67.0, "TFLOP/s", f"{SHEET}, fp32 without TF32"),
        efficiency=Constant(0.44, "of the peak", SHARE),
        bandwidth=Constant(4.8, "TB/s", SHEET),
        nvlink=Constant(450.0, "GB/s", f"{SHEET}: NVLink 4, one direction of one GPU"),
        port=Constant(400.0, "Gbit/s", "DGX H200: one NDR InfiniBand port for each GPU"),
    ),
}

GENERAL = {
    "framework": Constant(
        2.0, "GiB", "assumption: CUDA context, NCCL's buffers, cuBLAS workspaces of one process"
    ),
    "fragments": Constant(
        0.05, "of the rest", "assumption: what the caching allocator cannot use for other sizes"
    ),
    "link_share": Constant(0.75, "of a link", "assumption: what collectives of NCCL sustain"),
    "score_bytes": Constant(
        78.0,
        "bytes per student score",
        "counted from the operators: product, cast, log-softmax, cross-entropy, both ways",
    ),
    "chunked_class_bytes": Constant(
        183.0,
        "bytes per student score",
        "counted likewise where scores are made part by part: three targets, twice (no cache)",
    ),
    "chunked_patch_bytes": Constant(
        95.0, "bytes per student score", "counted likewise: one target, twice (no cache)"
    ),
    "teacher_score_bytes": Constant(
        21.0,
        "bytes per teacher score and pass",
        "counted from the operators of Sinkhorn's passes over recomputed scores, their mean",
    ),
    "similarity_bytes": Constant(
        68.0,
        "bytes per similarity",
        "counted from the operators of SEED's loss, float32: a student's to the queue, both ways",
    ),
    "target_similarity_bytes": Constant(
        32.0, "bytes per similarity", "counted likewise: those that say what is learned"
    ),
    "optimizer_bytes": Constant(
        52.0, "bytes per parameter", "counted: fused AdamW, then the moving average (ideal: 42)"
    ),
    "images_per_core": Constant(
        250.0,
        "images/s",
        "measured: BENCHMARKS.md, a 2-core Xeon, 500 x 375 px images, 2 + 8 crops: 266",
    ),
    "published_gpu_hours": Constant(
        2752.0, "A100-hours", "POA, ECCV 2024: 32 A100 x 86 hours for the recipe of the defaults"
    ),
    "imagenet": Constant(1_281_167, "images", "ImageNet-1K, training set"),
}
