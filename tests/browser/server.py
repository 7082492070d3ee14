"""JupyterLab on loopback, in scratch folders of its own: the checkout's packages, this environment's kernel."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, dict[str, Any]] = {
    # All cells are attached to the page; outputs that were scrolled away stay there to be looked at.
    "@jupyterlab/notebook-extension/tracker": {
        "windowingMode": "none",
        "kernelShutdown": True,
        "kernelStatus": {"showOnStatusBar": False, "showProgress": False},
    },
    # A document that was changed asks whether it may be left.
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False, "confirmClosingDocument": False},
    "@jupyterlab/apputils-extension/notification": {
        "checkForUpdates": False,
        "doNotDisturbMode": True,
        "fetchNews": "false",
    },
    "@jupyterlab/apputils-extension/themes": {"theme": "JupyterLab Light", "adaptive-theme": False},
}


class JupyterLab:
    """A server that is running: `url`, `token`, and `folder`, the root that its notebooks are in.

    Parameters
    ----------
    scratch : a folder that is empty; home, settings, runtime files, log and notebooks go there.

    Raises
    ------
    RuntimeError
        Where the server ended before it answered; says what it printed.
    """

    def __init__(self, scratch: Path) -> None:
        self.folder, self.token = scratch / "notebooks", "loopback"
        self._settings, self._runtime, self._log = scratch / "settings", scratch / "runtime", scratch / "jupyterlab.log"
        self.folder.mkdir()
        self._write_settings()
        own = {
            "HOME": scratch,
            "IPYTHONDIR": scratch / "ipython",
            "JUPYTER_CONFIG_DIR": scratch / "config",
            "JUPYTER_DATA_DIR": scratch / "data",
            "JUPYTER_RUNTIME_DIR": self._runtime,
            "JUPYTERLAB_SETTINGS_DIR": self._settings,
            "JUPYTERLAB_WORKSPACES_DIR": scratch / "workspaces",
            "JUPYTER_PREFER_ENV_PATH": "1",
            "PYTHONPATH": ROOT,
        }
        environment = {name: value for name, value in os.environ.items() if name != "JUPYTER_PATH"}
        environment |= {name: str(value) for name, value in own.items()}
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": "0",
            "ServerApp.open_browser": "False",
            "ServerApp.root_dir": str(self.folder),
            "ServerApp.allow_root": "True",
            "IdentityProvider.token": self.token,
            "LabApp.expose_app_in_browser": "True",
            "LabApp.extension_manager": "readonly",
            "LabApp.news_url": "",
        }
        command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
        with self._log.open("wb") as log:
            # A group of its own, so that whatever it started can be ended with it.
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        """Learn the address, once the server answers there."""
        while True:
            try:
                self._process.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                for path in self._runtime.glob("jpserver-*.json"):
                    # Half of it may be there, and nobody may be listening yet.
                    with suppress(json.JSONDecodeError, urllib.error.URLError):
                        self.url = json.loads(path.read_text(encoding="utf-8"))["url"].rstrip("/")
                        self.ask("api/status")
                        return
            else:
                said = self._log.read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"JupyterLab ended before it answered; it said:\n{said[-4000:]}")

    def _write_settings(self) -> None:
        shutil.rmtree(self._settings, ignore_errors=True)
        for name, values in SETTINGS.items():
            path = self._settings / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values), encoding="utf-8")

    def ask(self, path: str, method: str = "GET") -> Any:
        """Return what the server's own interface answers, from JSON; None for no content."""
        request = urllib.request.Request(
            f"{self.url}/{path}", method=method, headers={"Authorization": f"token {self.token}"}
        )
        # Loopback, whatever proxy the environment names.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def reset(self) -> None:
        """End all kernels and forget changed settings, so that no test sees the one before it."""
        for session in self.ask("api/sessions"):
            self.ask(f"api/sessions/{session['id']}", "DELETE")
        self._write_settings()

    def close(self) -> None:
        """End the server, and with it its kernels."""
        if self._process.poll() is None:
            # Its own signal to shut down kernels first and then itself.
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
