# The runner, for a Kubernetes Job:
#
#     docker build -f deploy/runner.Dockerfile -t <registry>/sentinel-runner:0.1.0 .
FROM rust:1.95-slim-trixie AS build
COPY . /src
WORKDIR /src
RUN cargo build --locked --release -p runner

FROM debian:trixie-slim
# Who vouches for a broker that is reached by https.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/sentinel-runner /usr/local/bin/
USER nobody
ENTRYPOINT ["sentinel-runner"]
