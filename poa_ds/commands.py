"""The commands of poa-ds: which module carries each out, what it is for, an example."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """module.<arguments>(parser) declares the arguments, module.<run>(args) does the work.

    hands_on: what stands behind `--` is another program's, `args.words`. scores: what it adds to a
    run's evaluations.jsonl is brought to MLflow behind it.
    """

    module: str
    summary: str
    example: str
    run: str = "run"
    hands_on: bool = False
    arguments: str = "add_arguments"
    scores: bool = False


COMMANDS = {
    "demo": Command(
        "poa_ds.demo",
        "the whole job on photographs that are in the box, in minutes",
        "poa-ds demo --out runs/demo",
    ),
    "recipes": Command(
        "poa_ds.recipe.shipped",
        "the recipes and DeepSpeed files that --config and --deepspeed_config find by name",
        "poa-ds recipes vit_s16_in1k",
    ),
    "shard photos": Command(
        "data_tools.photos",
        "patches of 19 embedded photographs -> shards (needs the extra `demo`)",
        "poa-ds shard photos --out data/photos",
    ),
    "shard folder": Command(
        "data_tools.folder",
        "any tree of images -> shards; the first folder level is the class",
        "poa-ds shard folder --root my_images --out data/my_images",
    ),
    "shard imagenet": Command(
        "data_tools.imagenet",
        "an ImageNet tree, or its official archives -> shards for train and val",
        "poa-ds shard imagenet --root imagenet --out data/imagenet",
    ),
    "shard list": Command(
        "data_tools.listed",
        "a text file of paths -> shards; a class may stand behind each path",
        "poa-ds shard list --list images.txt --out data/listed",
    ),
    "shard cifar10": Command(
        "data_tools.cifar10",
        "CIFAR-10 -> shards for train and val",
        "poa-ds shard cifar10 --source downloads --download --out data/cifar10",
    ),
    "check": Command(
        "data_tools.check",
        "verify shards against their index",
        "poa-ds check data/imagenet/train",
    ),
    "stats": Command(
        "data_tools.stats",
        "mean, deviation and percentiles of each channel of images, as a recipe takes them",
        "poa-ds stats my_tiffs --range 0 4095",
    ),
    "index": Command(
        "data_tools.foreign",
        "index tars that another WebDataset tool wrote; they stay as they are",
        "poa-ds index data/laion --workers 8",
    ),
    "eval knn": Command(
        "poa_ds.evaluate.command",
        "k-NN accuracy of any sizes of a run",
        "poa-ds eval knn runs/photos --sizes 32x2,96x4",
        scores=True,
    ),
    "eval rebase": Command(
        "poa_ds.evaluate.rebase_command",
        "what a ViT's slices are worth before any training: as it is, sorted, rotated",
        "poa-ds eval rebase runs/dinov2 --bank data/my_images/train --queries data/my_images/val",
    ),
    "eval linear": Command(
        "poa_ds.evaluate.linear.command",
        "linear classifiers on frozen features: the field's 52 per size, in one pass",
        "poa-ds eval linear runs/photos --crops centre --epochs 10",
        scores=True,
    ),
    "eval finetune": Command(
        "poa_ds.finetune",
        "sizes that learn whole from labels, each in a training of its own",
        "poa-ds eval finetune runs/photos --sizes 96x4 --epochs 20 --batch 256",
        scores=True,
    ),
    "eval logistic": Command(
        "poa_ds.evaluate.logistic.command",
        "logistic regression on features of many sizes, from all labels or a few",
        "poa-ds eval logistic runs/photos --val data/photos/val --subset 10%",
        scores=True,
    ),
    "eval clusters": Command(
        "poa_ds.evaluate.clusters.command",
        "k-means of features of many sizes, and how classes show in it: no label is learnt from",
        "poa-ds eval clusters runs/photos --val data/photos/val",
        scores=True,
    ),
    "eval segmentation": Command(
        "poa_ds.evaluate.segmentation.command",
        "linear heads on frozen features for the class of every pixel: mIoU of many sizes",
        "poa-ds eval segmentation runs/photos --layout ade20k --train ADEChallengeData2016",
        scores=True,
    ),
    "eval detection": Command(
        "poa_ds.evaluate.detection.command",
        "boxes and masks of things: Mask R-CNN on sizes, trained whole, scored as COCO does",
        "poa-ds eval detection runs/vit_l16 --sizes small,base --coco data/coco",
        scores=True,
    ),
    "embed": Command(
        "poa_ds.evaluate.embed.command",
        "features of any images, by any sizes of a run -> safetensors, npy or parquet",
        "poa-ds embed runs/photos --images my_images --sizes 32x2,96x4 --out features",
    ),
    "look": Command(
        "poa_ds.evaluate.look.command",
        "one page of pictures: what sizes see in images",
        "poa-ds look runs/photos --images my_images --out look.html",
    ),
    "latency": Command(
        "poa_ds.evaluate.latency.command",
        "how long each size takes by itself on this machine",
        "poa-ds latency runs/photos --sizes all --threads 1",
    ),
    "sizes": Command(
        "poa_ds.evaluate.sizes",
        "every size with its parameters, GFLOPs and accuracy",
        "poa-ds sizes runs/photos --max-params 25M",
    ),
    "report": Command(
        "poa_ds.report.command",
        "one page about runs, to open in a browser: choose a size, see how the training went",
        "poa-ds report runs/photos --out report.html",
    ),
    "compare": Command(
        "poa_ds.bench.compare.command",
        "runs side by side: each size's k-NN and cost, who is ahead where, a picture",
        "poa-ds compare runs/photos runs/photos_dspnet --by images --out compared.png",
    ),
    "extract": Command(
        "poa_ds.deploy.extract",
        "one size as a model of its own",
        "poa-ds extract runs/photos --size 64x3 --out models/64x3 --format timm --check",
    ),
    "publish": Command(
        "poa_ds.deploy.publish",
        "one size with its model card as a folder for the Hugging Face hub, checked",
        "poa-ds publish runs/photos --size 64x3 --out hub/64x3 --licence apache-2.0",
    ),
    "init": Command(
        "poa_ds.deploy.init",
        "a network of any width and depth to start from, made from a run's template",
        "poa-ds init runs/photos_sweet --size 128x6 --out models/128x6 --check",
    ),
    "template": Command(
        "poa_ds.export.template",
        "the template that a finished run's ViT is nearest to, for init of any size",
        "poa-ds template runs/photos --ranks 24,48,48 --out runs/photos_template",
    ),
    "twin": Command(
        "poa_ds.recipe.twin",
        "the recipe of one size of a run alone: what its slice is compared with",
        "poa-ds twin runs/photos --size 64x3 --out photos_64x3.yaml",
    ),
    "checkpoint inspect": Command(
        "poa_ds.checkpoint.command",
        "the checkpoints of a run: step, ranks, size, whole or what is wrong",
        "poa-ds checkpoint inspect runs/photos --diff runs/other",
        run="inspect",
        arguments="add_inspect_arguments",
    ),
    "checkpoint convert": Command(
        "poa_ds.checkpoint.command",
        "a checkpoint in another number of files, or its teacher alone",
        "poa-ds checkpoint convert runs/photos runs/taken_out --teacher",
        run="convert",
        arguments="add_convert_arguments",
    ),
    "mlflow": Command(
        "poa_ds.track.mlflow_ui",
        "MLflow's pages of a run, by a link that lands on the curves of all its sizes",
        "poa-ds mlflow runs/photos --port 5001",
    ),
    "tensorboard": Command(
        "poa_ds.track.tensorboard_command",
        "a run's curves as files of TensorBoard, made from its folder",
        "poa-ds tensorboard runs/photos",
    ),
    "wandb": Command(
        "poa_ds.track.wandb_command",
        "a run's curves for Weights & Biases, there or as its files, made from its folder",
        "poa-ds wandb runs/photos",
    ),
    "mlflow-sync": Command(
        "poa_ds.track.mlflow_sync",
        "bring into MLflow what a run's folder has and the store lacks; nothing comes twice",
        "poa-ds mlflow-sync runs/photos --uri http://localhost:5000",
    ),
    "import": Command(
        "poa_ds.export.import_weights",
        "DINOv2, DINOv3, other ViTs, published POA networks -> a run that other commands read",
        "poa-ds import timm:vit_small_patch14_reg4_dinov2.lvd142m --out runs/dinov2"
        " --image-size 224 --rebase rotate --calibrate data/photos/train",
    ),
    "adapt": Command(
        "poa_ds.adapt",
        "weights that exist and a folder of images -> a trained run of all sizes, in one line",
        "poa-ds adapt --weights timm:vit_small_patch16_224.dino --download --images my_images"
        " --out runs/mine",
    ),
    "launch": Command(
        "poa_ds.launch",
        "train through the launcher: signals handed on, faults continued from",
        "poa-ds launch --max-restarts 3 -- --config ds_configs/photos.yaml output_dir=runs/photos",
        hands_on=True,
    ),
    "bench gpu": Command(
        "poa_ds.bench.gpu.command",
        "everything that is to be measured on a GPU, one report; the same command continues",
        "poa-ds bench gpu --budget 30m --out runs/bench_gpu",
    ),
    "bench methods": Command(
        "poa_ds.bench.methods.command",
        "variants of a recipe (methods, or one change at a time) on several seeds, in one table",
        "poa-ds bench methods --table methods --seeds 0 1 2 --out runs/methods",
    ),
    "bench gradients": Command(
        "poa_ds.bench.gradients",
        "what the intact and the smaller student want of the weights they share, over a run",
        "poa-ds bench gradients data.train=data/photos/train --steps 200",
    ),
    "bench twins": Command(
        "poa_ds.bench.twins",
        "time and counted work of a step of one run of all sizes, and of each size alone",
        "poa-ds bench twins --config ds_configs/photos.yaml",
    ),
    "bench step": Command(
        "poa_ds.bench.step",
        "time and memory of a training step beside a plain three-pass implementation",
        "poa-ds bench step --config ds_configs/photos.yaml",
    ),
    "bench heads": Command(
        "poa_ds.bench.heads",
        "memory and time of heads and losses, with whole score matrices and without",
        "poa-ds bench heads --config ds_configs/vit_l16_in1k.yaml",
    ),
    "bench index": Command(
        "data_tools.index_bench",
        "a million tiny samples: index build, start-up, memory per worker",
        "poa-ds bench index --samples 1000000",
    ),
    "plan": Command(
        "poa_ds.plan.command",
        "memory, time and waiting of a run on GPUs that are not here",
        "poa-ds plan --config ds_configs/vit_l16_in1k.yaml --nodes 4 --gpus 8 --gpu a100-80g",
    ),
    "bench data": Command(
        "poa_ds.bench.data",
        "images/s of the loader, part by part, and the workers that a rate needs",
        "poa-ds bench data data.train=data/imagenet/train --workers 1,4,8 --rate 4000",
    ),
}
