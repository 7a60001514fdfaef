#!/usr/bin/env bash
# Sets up the environment if needed, and shows the demo as a web page: photos, the webcam and videos.
# Arguments go to Voila: on a machine without a screen use --no-browser, for another address --port 8900.
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
# -I: import fer_utils from this project, not from the folder in which the script was started.
exec "$python" -I -m fer_utils.cli webcam "$@"
