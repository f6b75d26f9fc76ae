# The image of infra/Dockerfile with published weights inside, for nodes that share no folder. Fetch them first, where there is a
# network, and give their folder as what is built from:
#   eav weights fetch facebook/wav2vec2-base --to weights
#   docker build -f infra/weights.Dockerfile --build-arg BASE=ghcr.io/your-lab/eav-ray:0.2.0 -t ghcr.io/your-lab/eav-ray:0.2.0-weights weights
# Experiments find them by store.weights=/opt/eav-ray/weights.
ARG BASE
FROM ${BASE}

COPY --chown=root:root --chmod=a+rX . /opt/eav-ray/weights

# Each file is compared with the hash that was noted when it was fetched: another ends the build.
RUN eav weights list --to /opt/eav-ray/weights
