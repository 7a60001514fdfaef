#!/usr/bin/env bash
# Sets up the environment if needed, runs every notebook that is not up to date, and builds the report.
# ./run_all.sh --help shows the options, ./run_all.sh --dry-run what would run, and why.
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
exec "$python" -I -m fer_utils.pipeline "$@" # -I: from this project, wherever it was started from
