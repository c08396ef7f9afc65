# One node's image. torch's wheels bring their own CUDA libraries; the base has the driver's compatibility libraries.
#
#   docker build -t resnet-train .
#   docker run --gpus all --shm-size 1g --read-only --tmpfs /tmp --user "$(id -u)" -v /data:/data \
#       -v "$PWD/runs:/experiments/runs" resnet-train \
#       torchrun --standalone --nproc-per-node gpu -m resnet_train run imagenet-depth data.path=/data/imagenet
#   docker run -v "$PWD/runs:/experiments/runs" resnet-train resnet-train compare runs/imagenet-depth
#
# --shm-size: NCCL exchanges gradients through /dev/shm where GPUs have no direct link. Nothing else needs it.
# Another base: --build-arg BASE=debian:trixie-slim. scripts/image_check.sh builds the image and runs it.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04

# A compiler and Python's headers are for train.compile, which builds its launchers with them; jpegtran is for prepare --tiled.
# hadolint ignore=DL3006
FROM ${BASE} AS system
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libjpeg-turbo-progs python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# The dependencies alone, so that another change of pyproject.toml installs none of them anew.
FROM system AS requirements
COPY pyproject.toml /
RUN python3 -c "import tomllib; p = tomllib.load(open('/pyproject.toml', 'rb'))['project']; \
    print(*p['dependencies'], *p['optional-dependencies']['digits'], sep='\n')" > /requirements.txt

FROM system
COPY --from=requirements /requirements.txt /opt/
COPY constraints.txt /opt/
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --requirement /opt/requirements.txt --constraint /opt/constraints.txt

COPY pyproject.toml README.md LICENSE /opt/source/
COPY configs /opt/source/configs
COPY resnet_train /opt/source/resnet_train
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation /opt/source && /opt/venv/bin/pip check

# Any user may run it, on a root that is read-only: runs are written here, mounted or not, all else under /tmp. USER is for
# torch, which asks for a name when it compiles, and one who is only a number has none.
RUN install --directory --mode 1777 /experiments/runs
WORKDIR /experiments
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp USER=trainer \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG REVISION=unknown
LABEL org.opencontainers.image.title="resnet-train" \
    org.opencontainers.image.description="Train plain and residual networks across depths, and see the difference." \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.revision="$REVISION"
USER 1001

CMD ["resnet-train", "--help"]
