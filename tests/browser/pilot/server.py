"""Serve page.py with the app's own settings: python -m tests.browser.pilot.server PORT."""

import sys
from pathlib import Path

import streamlit as st

from app.server import settings

if __name__ == "__main__":
    page = Path(__file__).with_name("page.py")
    st.App(page).run(config=settings(port=int(sys.argv[1])))
