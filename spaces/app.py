"""The guard in a browser, as a Space: MODEL names a folder or a repository; without it, it is the demo checkpoint."""

import os

import safeqwen
from safeqwen import browser


name = os.environ.get("MODEL") or None
browser.launch(*safeqwen.load(name), host="0.0.0.0", port=7860, is_demo=name is None, model_name=name or "demo")
