#!/usr/bin/env bash
# Sets up the environment if needed, runs every notebook that is not up to date, and builds the report.
# ./run_all.sh --help lists the options, ./run_all.sh --dry-run shows what would run and why.
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
# -I: import fer_utils from this project, not from the folder in which the script was started.
exec "$python" -I -m fer_utils.pipeline "$@"
