#!/bin/sh
# Runs chapters alone (tools/alone.py, which explains the options) from a small environment of its own, which the book's
# requirements need not be set up for. The weekly run calls it, also inside Google's Colab image, as anyone with Docker can:
#   docker run --rm --entrypoint sh -v "$PWD:/book:ro" us-docker.pkg.dev/colab-images/public/cpu-runtime \
#     /book/.github/alone.sh all --borrow python3
set -eu
cd "$(dirname "$0")/.."
own=$(mktemp -d)
trap 'rm -rf "$own"' EXIT
# Without pip and filled from outside, since the Python in Colab's image lacks what makes a whole one.
python3 -m venv --without-pip "$own/venv"
sed 's/\[.*\]//' requirements.txt >"$own/constraints.txt"
python3 -m pip --disable-pip-version-check --python "$own/venv/bin/python" install --quiet \
    --constraint "$own/constraints.txt" pip setuptools papermill
"$own/venv/bin/python" -m tools.alone "$@"
