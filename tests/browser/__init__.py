"""Views in a real browser: JupyterLab on loopback, Chromium, and tests that wait on the page and never on a clock."""
