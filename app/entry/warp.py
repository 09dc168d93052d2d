"""The script that Streamlit runs: `python -m app`, or `streamlit run app/entry/warp.py`.

It stands in a folder of its own because Streamlit takes a folder `pages` beside the script for pages of another kind.
The settings beside it, in .streamlit/config.toml, hold for both ways to start it.
"""

import sys
from pathlib import Path

root = str(Path(__file__).resolve().parents[2])
if root not in sys.path:
    sys.path.insert(0, root)

from app.main import main  # noqa: E402

main()
