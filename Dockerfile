# An image that serves a registered model, built from the wheel. `--build-arg PIP_EXTRA_INDEX_URL=…`, an index of PyTorch's wheels
# for CPUs, leaves out CUDA and Triton, 4 of 7.6 GB:
#   uv build --wheel && docker build -t ptmrec .
#   docker run -p 5000:5000 -e MLFLOW_TRACKING_URI=http://mlflow:8080 ptmrec serve --model models:/movies@champion --host 0.0.0.0
FROM python:3.12-slim
ARG PIP_EXTRA_INDEX_URL
COPY dist/*.whl /tmp/
RUN pip install --no-cache-dir /tmp/*.whl && rm /tmp/*.whl && useradd --create-home ptmrec
USER ptmrec
WORKDIR /home/ptmrec
EXPOSE 5000
# Healthy once the model is warmed up: the server does not listen before.
HEALTHCHECK --start-period=300s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:5000/ping')"]
ENTRYPOINT ["ptmrec"]
CMD ["--help"]
