"""A page of HTML that works offline and that no text in it can make load or send anything."""

from html import escape

__all__ = ["offline_page"]

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'"
)


def offline_page(title: str, *, style: str, main: str) -> str:
    """Return a whole page: title and heading (escaped here), style, and what stands below the heading.

    Args:
        title: plain text.
        style: CSS.
        main: HTML, in which every text is escaped already.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{main}
</main>
</body>
</html>
"""
