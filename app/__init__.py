"""The web app: Streamlit, tables and pictures. Everything it knows it asks of the engine; it never imports torch.

server.py     `python -m app`: the web server with its settings and headers
entry/        the script that Streamlit runs, and .streamlit/config.toml: settings and theme
main.py       navigation, the opened selection, errors
status.py     the status strip in the sidebar
engine.py     the engine of this process, the id of a browser session
view.py       everything that a link restores
ui.py         small pieces that the pages share
pages/        one module a page, each with `render()`
components/   what runs in the browser: the pilot, the panes
"""
