# The studio and its server with the packaged weights (docs/deploying.md):
#   docker build --tag aimamba .
#   docker run --rm --publish 7860:7860 aimamba
# For NVIDIA cards, with a torch for CUDA and Triton kernels:
#   docker build --tag aimamba:cuda --build-arg TORCH=https://download.pytorch.org/whl/cu130 --build-arg EXTRAS=studio,cuda .
#   docker run --rm --gpus all --publish 7860:7860 aimamba:cuda
# Any other command: docker run --rm --volume "$PWD:/work" aimamba sample -n 4
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
WORKDIR /source
COPY constraints.txt .
RUN pip install --no-cache-dir --constraint constraints.txt hatchling
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m hatchling build --target wheel --directory /dist

FROM python:${PYTHON}-slim
ARG TORCH=https://download.pytorch.org/whl/cpu
ARG EXTRAS=studio
# Kernels are compiled on the machine that runs them, for its CPU.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 aimamba
COPY constraints.txt /tmp/
COPY --from=build /dist/*.whl /tmp/
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt --extra-index-url "${TORCH}" \
    "$(ls /tmp/aimamba-*.whl)[${EXTRAS}]"

USER 1000
WORKDIR /work
EXPOSE 7860
HEALTHCHECK --interval=30s --start-period=2m --timeout=5s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]
ENTRYPOINT ["aimamba"]
CMD ["studio", "--host", "0.0.0.0", "--port", "7860"]
