# Targets: cpu (predict, serve; the default), gpu (TensorRT) and train. See docs/containers.md.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm
# The same Python with a compiler, and the toolkit with the headers of the driver: both only for compiling PyCUDA.
ARG COMPILER_IMAGE=docker.io/library/python:3.11-bookworm
ARG CUDA_IMAGE=docker.io/nvidia/cuda:13.0.1-devel-ubuntu24.04

FROM ${CUDA_IMAGE} AS cuda

FROM ${PYTHON_IMAGE} AS wheel
ENV PIP_CACHE_DIR=/var/cache/pip
WORKDIR /build
COPY constraints.txt ./
RUN --mount=type=cache,target=/var/cache/pip \
    python3 -m venv .venv && .venv/bin/pip install --constraint constraints.txt hatchling
COPY . ./
RUN .venv/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM ${COMPILER_IMAGE} AS pycuda
ENV PIP_CACHE_DIR=/var/cache/pip
WORKDIR /build
COPY constraints.txt containers/constraints-gpu.txt ./
# The driver's interface is all that is used of it: no CURAND.
RUN --mount=type=cache,target=/var/cache/pip --mount=type=bind,from=cuda,source=/usr/local,target=/cuda \
    printf 'CUDA_ROOT = "%s"\nCUDA_ENABLE_CURAND = False\n' /cuda/cuda-*.* > ~/.aksetup-defaults.py \
    && python3 -m venv .venv \
    && .venv/bin/pip wheel --no-deps --constraint constraints.txt --constraint constraints-gpu.txt --wheel-dir /wheels pycuda

FROM wheel AS install-cpu
ARG CPU_EXTRAS=cpu,serve
RUN --mount=type=cache,target=/var/cache/pip \
    python3 -m venv --without-pip /opt/alexdeploy \
    && .venv/bin/pip --python /opt/alexdeploy install --constraint constraints.txt \
        "$(echo /wheels/alexdeploy-*.whl)[${CPU_EXTRAS}]"

FROM wheel AS install-gpu
ARG GPU_EXTRAS=gpu,serve
COPY --from=pycuda /wheels /wheels
RUN --mount=type=cache,target=/var/cache/pip \
    python3 -m venv --without-pip /opt/alexdeploy \
    && .venv/bin/pip --python /opt/alexdeploy install --constraint constraints.txt \
        --constraint containers/constraints-gpu.txt \
        "$(echo /wheels/alexdeploy-*.whl)[${GPU_EXTRAS}]" /wheels/pycuda-*.whl

FROM wheel AS install-train
ARG TRAIN_EXTRAS=cpu,report,train
# PyPI's torch is the build for CUDA; an index of builds for CPUs gives an image of a fifth of its size.
ARG TORCH_INDEX
RUN --mount=type=cache,target=/var/cache/pip \
    python3 -m venv --without-pip /opt/alexdeploy \
    && .venv/bin/pip --python /opt/alexdeploy install --constraint constraints.txt \
        ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} torch \
    && .venv/bin/pip --python /opt/alexdeploy install --constraint constraints.txt \
        "$(echo /wheels/alexdeploy-*.whl)[${TRAIN_EXTRAS}]"

FROM ${PYTHON_IMAGE} AS runtime
# Any user may write there, and into /data if nothing is mounted; the folder of keys must be his own, and is made by the program.
RUN install -d -m 1777 /data /var/cache/alexdeploy /var/lib/alexdeploy
ENV PATH=/opt/alexdeploy/bin:${PATH} \
    HOME=/tmp \
    ALEXDEPLOY_CACHE=/var/cache/alexdeploy \
    ALEXDEPLOY_STATE=/var/lib/alexdeploy/state \
    PYTHONDONTWRITEBYTECODE=1
ARG VERSION
ARG REVISION
ARG SOURCE
LABEL org.opencontainers.image.title="alexdeploy" \
      org.opencontainers.image.description="AlexNet from training to production inference" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
WORKDIR /data
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["alexdeploy"]
CMD ["--help"]

FROM runtime AS train
COPY --from=install-train /opt/alexdeploy /opt/alexdeploy

FROM runtime AS server
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python3", "-ISc", "\
import http.client, sys; \
server = http.client.HTTPConnection('127.0.0.1', 8000, timeout=4); \
server.request('GET', '/v2/health/ready'); \
sys.exit(server.getresponse().status != 200)"]

FROM server AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=install-gpu /opt/alexdeploy /opt/alexdeploy

FROM server AS cpu
COPY --from=install-cpu /opt/alexdeploy /opt/alexdeploy
