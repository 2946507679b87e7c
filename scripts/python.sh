# Sourced by the scripts of this folder, in the project's folder: `python` becomes the interpreter to use.
# PYTHON, else that of .venv, else the python (or python3) that the shell finds.
python=${PYTHON:-.venv/bin/python}
if [ -z "${PYTHON:-}" ] && [ ! -x "$python" ]; then
  python=$(command -v python || command -v python3 || echo python)
fi
