#!/usr/bin/env bash
# Sets up the environment if needed, and shows the demo as a web page: photos, the webcam and videos.
# Arguments go to Voila: on a machine without a screen use --no-browser, for another address --port 8900.
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$root" # where voila.json is
# In this folder Voila finds the template of the page.
export JUPYTER_PATH="$root/fer_utils/demo/page${JUPYTER_PATH:+:$JUPYTER_PATH}"
# -I: import fer_utils from this project, not from the folder in which the script was started.
exec "$python" -I -m voila notebooks/demo.ipynb --template=demo "$@"
