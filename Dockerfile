# hires_gan with all extras but dev, its ops compiled ahead of time. `make image` builds it; docs/image.md says how to
# use it. The scripts in image/ do the work, and run outside of containers too: `make image-check`.

# The CUDA of the torch that constraints.txt pins.
ARG CUDA=13.0.2
ARG UBUNTU=24.04
ARG PYTHON=python3.12
# A100, H100 and H200, B200; newer GPUs compile the PTX when they first meet it.
ARG TORCH_CUDA_ARCH_LIST="8.0 9.0 10.0+PTX"

# What changes seldom: an environment with torch and everything else that is pinned, and the compiler for the ops.
FROM nvidia/cuda:${CUDA}-devel-ubuntu${UBUNTU} AS dependencies
ARG PYTHON
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++=4:13.* "${PYTHON}=3.*" "${PYTHON}-venv=3.*" \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt pyproject.toml ./
COPY image/dependencies.sh image/requirements.py image/
RUN --mount=type=cache,target=/root/.cache/pip image/dependencies.sh /opt/venv

# What changes with the code: the wheel.
FROM dependencies AS wheel
COPY LICENSE MANIFEST.in README.md setup.py ./
COPY csrc csrc
COPY hires_gan hires_gan
COPY image/wheel.sh image/
ARG TORCH_CUDA_ARCH_LIST
RUN image/wheel.sh /opt/venv /dist
# For the check below, whose user reads them: a checkout may be its owner's alone.
COPY --chmod=755 configs configs
COPY --chmod=755 image image

# torch brings its own CUDA libraries. From this base come those with which older drivers of data centre GPUs run
# CUDA 13, and the refusal to start under drivers that are too old even for that.
FROM nvidia/cuda:${CUDA}-base-ubuntu${UBUNTU}
ARG PYTHON
# NCCL looks for the libraries of InfiniBand and RoCE when it starts; without them it takes TCP, which is far slower.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        ca-certificates=20* ibverbs-providers=50.* libibverbs1=50.* "${PYTHON}=3.*" \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 hires-gan \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin hires-gan \
    && install --directory --owner 10001 --group 10001 /opt/hires-gan/runs
COPY --from=dependencies /opt/venv /opt/venv
RUN --mount=type=bind,source=image,target=/src/image --mount=type=bind,from=wheel,source=/dist,target=/dist \
    /src/image/install.sh /opt/venv /dist
WORKDIR /opt/hires-gan
COPY --chmod=644 LICENSE ./
COPY --chmod=755 configs configs
COPY --chmod=755 launch launch
# /tmp is all that has to be writable beside the run's folder: every cache goes below HOME. A name in USER serves user
# numbers that have none in /etc/passwd. GitPython, which MLflow imports, complains of a missing git otherwise.
ENV PATH=/opt/venv/bin:${PATH} \
    HOME=/tmp \
    USER=hires-gan \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GIT_PYTHON_REFRESH=quiet \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
ARG TORCH_CUDA_ARCH_LIST
RUN --network=none --mount=type=tmpfs,target=/tmp \
    --mount=type=bind,from=wheel,source=/src,target=/src /src/image/check.sh /opt/venv
# Last, since they change with every commit.
ARG VERSION=unknown
ARG COMMIT=
ENV HIRES_GAN_COMMIT=${COMMIT}
LABEL org.opencontainers.image.title="hires-gan" \
      org.opencontainers.image.description="Trains Progressive GAN, StyleGAN and MUNIT at up to 1024x1024" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
HEALTHCHECK --interval=5m --timeout=1m --start-period=1m CMD ["hires-gan", "doctor", "--quick"]
# None of the base's: what stands behind the image's name is the command.
ENTRYPOINT []
CMD ["hires-gan", "--help"]
