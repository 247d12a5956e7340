# An image with the commands, among them the server: docs/serving.md shows how to build and run it.
FROM python:3.11-slim

# The versions with which the tests passed; `make lock` writes them.
COPY requirements.lock /build/
RUN pip install --no-cache-dir --requirement /build/requirements.lock

COPY pyproject.toml README.md LICENSE /build/
COPY fusion_pl /build/fusion_pl
RUN pip install --no-cache-dir --no-deps /build && useradd --create-home --uid 1000 user

USER 1000
WORKDIR /work
EXPOSE 8000
ENTRYPOINT ["fusion-pl"]
CMD ["--help"]
