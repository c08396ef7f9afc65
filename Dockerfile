# One node's image. torch's wheels bring their own CUDA libraries, so the base only makes the driver visible.
#
#   docker build -t resnet-train .
#   docker run --gpus all --ipc host -v /data:/data -v $PWD/runs:/work/runs resnet-train \
#       run configs/imagenet-depth.yaml data.path=/data/imagenet
#
# It starts one process for each GPU. --ipc host: data workers pass batches through shared memory.
FROM nvidia/cuda:12.8.1-base-ubuntu24.04

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's image has a user of id 1000 already; a run writes as this one, never as root.
RUN useradd --create-home --uid 1001 trainer && install --directory --owner trainer /work /work/runs
USER trainer
WORKDIR /work
ENV PATH=/home/trainer/venv/bin:$PATH PYTHONUNBUFFERED=1

COPY --chown=trainer pyproject.toml README.md LICENSE ./source/
COPY --chown=trainer resnet_train ./source/resnet_train
RUN python3 -m venv /home/trainer/venv && pip install --no-cache-dir ./source && rm -rf ./source
COPY --chown=trainer configs ./configs

ENTRYPOINT ["torchrun", "--standalone", "--nproc-per-node=gpu", "-m", "resnet_train"]
CMD ["--help"]
