# finetooth in a container, as a user without privileges.
#   docker build -t finetooth .
#   docker build -t finetooth --build-arg TORCH="torch --index-url URL" .
#   docker run --rm -v "$PWD:/work" finetooth run recipe.yaml
# TORCH takes pip's arguments for the build of torch: for a CPU, CUDA or ROCm the URL that PyTorch's installation page
# names; as it stands, the build that pip picks. Run with --gpus all, or with --device /dev/kfd --device /dev/dri.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build
ARG TORCH=""
RUN apt-get update && apt-get install --no-install-recommends -y gcc g++ make git && rm -rf /var/lib/apt/lists/*
COPY . /source
WORKDIR /source
# not editable: the image that is kept has no checkout
RUN python -m venv /opt/finetooth && /opt/finetooth/bin/pip install --no-cache-dir uv hatchling editables build
RUN /opt/finetooth/bin/pip install --no-cache-dir ${TORCH:-$(grep '^torch==' constraints.txt)}
RUN grep -v '^torch==' constraints.txt > /tmp/constraints \
    && /opt/finetooth/bin/uv pip install --no-cache --python /opt/finetooth/bin/python -c /tmp/constraints \
        $(make --silent packages)

FROM python:${PYTHON}-slim
# the compiled kernels are built on the machine they run on
RUN apt-get update && apt-get install --no-install-recommends -y gcc g++ && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 finetooth
COPY --from=build /opt/finetooth /opt/finetooth
ENV PATH=/opt/finetooth/bin:$PATH PYTHONUNBUFFERED=1
USER finetooth
WORKDIR /work
ENTRYPOINT ["ft"]
CMD ["--help"]
