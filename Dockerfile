# One node's image. torch's wheels bring their own CUDA libraries, so the base only makes the driver visible.
#
#   docker build -t resnet-train .
#   docker run --gpus all --ipc host --user "$(id -u)" -v /data:/data -v "$PWD/runs:/experiments/runs" resnet-train \
#       torchrun --standalone --nproc-per-node gpu -m resnet_train run configs/imagenet-depth.yaml data.path=/data/imagenet
#   docker run -v "$PWD/runs:/experiments/runs" resnet-train resnet-train compare runs/imagenet-depth
#
# --ipc host: NCCL exchanges gradients through /dev/shm where GPUs have no direct link. --user: `runs` belongs to you.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

# A compiler and Python's headers are for train.compile, which builds its launchers with them; jpegtran is for prepare --tiled.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libjpeg-turbo-progs python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Any user may run it: what it installs is readable by all, and what it writes beside `runs` goes to /tmp. USER, since
# torch asks for a name when it compiles, and one who is only a number has none.
RUN useradd --create-home --uid 1001 trainer && install --directory --owner trainer /opt/venv /experiments/runs
USER trainer
WORKDIR /experiments
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp USER=trainer

COPY --chown=trainer pyproject.toml README.md LICENSE /tmp/source/
COPY --chown=trainer resnet_train /tmp/source/resnet_train
COPY --chown=trainer configs /tmp/source/configs
RUN python3 -m venv /opt/venv && pip install --no-cache-dir /tmp/source && rm -rf /tmp/source
COPY configs ./configs

CMD ["resnet-train", "--help"]
