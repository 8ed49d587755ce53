# Four images of one application:
#   docker build .                                    Beam worker, CUDA (the last stage)
#   docker build --build-arg VARIANT=cpu .            Beam worker, CPU
#   docker build --target cli --build-arg VARIANT=cpu .    the commands, as an unprivileged user
#   docker build --target template --build-arg VARIANT=cpu .    launcher of a Dataflow Flex Template
#
# Arguments:
#   VARIANT          cuda | cpu
#   PYTHON_IMAGE     Python 3.11, the minor version of BEAM_IMAGE; by digest
#   CUDA_IMAGE       any glibc at least as new as PYTHON_IMAGE's; by digest. The "base" flavour holds the
#                    CUDA runtime only: the torch wheels bring their own cuBLAS, cuDNN and NCCL
#   BEAM_IMAGE       gives /opt/apache/beam/boot; its version must be that of constraints.txt
#   LAUNCHER_IMAGE   gives Dataflow's template launcher
#   TORCH_INDEX_URL  where torch comes from, if not from pip's default index: the index of the CPU
#                    wheels for VARIANT=cpu, or of the wheels for an older NVIDIA driver
#   WEIGHTS          weights baked in besides the bundled model: "URI#SHA256 URI#SHA256 …", where URI
#                    is all that fsspec reads; the build fails when a digest differs
ARG VARIANT=cuda
ARG PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:528257d48c1da0dcecc2e725d1ae34498d60c965f1241e39cd6a85a8859bdf84
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04@sha256:2ab6381d970b211fb93853796dc6707eb8a72575a375c422b17cf4d8b2641701
ARG BEAM_IMAGE=apache/beam_python3.11_sdk:2.77.0
ARG LAUNCHER_IMAGE=gcr.io/dataflow-templates-base/python311-template-launcher-base:latest

FROM ${BEAM_IMAGE} AS beam

# hadolint ignore=DL3007
FROM ${LAUNCHER_IMAGE} AS launcher

FROM ${PYTHON_IMAGE} AS cpu

# Ubuntu has no Python 3.11, so the interpreter is the CPU variant's own, with the libraries it loads.
FROM ${CUDA_IMAGE} AS cuda
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
      ca-certificates libbz2-1.0 libexpat1 libffi8 liblzma5 libncursesw6 libreadline8t64 \
      libsqlite3-0 libssl3t64 libuuid1 netbase tzdata zlib1g \
 && rm -rf /var/lib/apt/lists/*
COPY --from=cpu /usr/local /usr/local
RUN ldconfig

# What the application needs, apart from its code, so that a change of code installs nothing again.
FROM cpu AS requirements
WORKDIR /src
COPY setup.py README.md ./
RUN python setup.py --quiet egg_info \
 && sed '/^\[/,$d' clapsep_beam.egg-info/requires.txt > /requirements.txt \
 && echo s3fs >> /requirements.txt

FROM cpu AS wheel
WORKDIR /src
COPY setup.py MANIFEST.in README.md CHANGELOG.md LICENSE NOTICE constraints.txt ./
COPY terminal terminal
COPY model model
COPY manifests manifests
COPY transforms transforms
COPY pipelines pipelines
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${VARIANT} AS application
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -c 'import bz2, ctypes, lzma, readline, sqlite3, ssl, uuid, venv, zlib'
WORKDIR /opt/clapsep
COPY constraints.txt LICENSE NOTICE ./
COPY --from=requirements /requirements.txt ./
ARG TORCH_INDEX_URL=
# hadolint ignore=DL3013
RUN pip install ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} "$(grep '^torch==' constraints.txt)"
RUN pip install --constraint constraints.txt --requirement requirements.txt \
 && pip check
COPY --from=wheel /wheels /opt/clapsep/wheels
RUN pip install --no-deps wheels/*.whl \
 && python -c 'from pipelines import preflight; print(preflight.check_packages())'
ENV CLAPSEP_CACHE=/opt/clapsep/cache
ARG WEIGHTS=
RUN mkdir -p "${CLAPSEP_CACHE}" \
 && for entry in ${WEIGHTS}; do \
      python -c 'import sys; from model.checkpoints.fetch import fetch; print(fetch(sys.argv[1], sha256=sys.argv[2]))' \
        "${entry%#*}" "${entry##*#}" || exit 1; \
    done \
 && chmod -R a+rwX "${CLAPSEP_CACHE}"
ENV HF_HUB_OFFLINE=1

FROM application AS cli
RUN useradd --create-home --uid 10001 clapsep
USER 10001
WORKDIR /home/clapsep
ENTRYPOINT ["python", "-m"]
CMD ["pipelines.separate", "--help"]

# A script of its own: started as a file, pipelines/separate.py would put its folder on the path.
FROM application AS template
COPY --from=launcher /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher
RUN printf 'import sys\n\nfrom pipelines import separate\n\nsys.exit(separate.run())\n' > launch.py \
 && python launch.py --help
ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/opt/clapsep/launch.py
ENTRYPOINT ["/opt/google/dataflow/python_template_launcher"]

# Root, as Dataflow needs it: it mounts folders of root's that the harness writes to.
FROM application AS worker
COPY --from=beam /opt/apache/beam /opt/apache/beam
# Else boot makes a virtual environment at every start, to install nothing into.
ENV RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1
ENTRYPOINT ["/opt/apache/beam/boot"]
