# docker build -t multitask . && docker run --rm -v "$PWD/logs:/workspace/logs" multitask scripts/train.py weighting=upgrad
# The versions that this commit was tested with. With a GPU: docker run --gpus all … trainer=gpu
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /workspace
COPY . .
RUN make .venv/.made
ENTRYPOINT [".venv/bin/python"]
CMD ["scripts/train.py"]
