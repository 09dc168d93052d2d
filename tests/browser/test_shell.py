"""The shell of the app in a browser: navigation, status, theme, offline."""

from tests.browser.conftest import OpenTab


def test_the_first_page_stands(open_tab: OpenTab, app_url: str):
    tab = open_tab(f"{app_url}/help")
    tab.page.get_by_role("heading", name="Help").first.wait_for()
