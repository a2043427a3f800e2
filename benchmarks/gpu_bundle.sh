#!/usr/bin/env bash
# What gpu_gate.sh would otherwise make on the GPU machine, where time is short: the compiled modules, once more with the
# watchdog, for the Python and the GPU there; Triton's compiled kernels; wheels of what that machine lacks.
#
# Nothing here needs a GPU or torch for that Python. benchmarks/gpu_bundle.py writes the manifest, and checks it there.
set -euo pipefail

ARCHITECTURE=90a         # H100, H200
WHEELS=(flashlib==0.4.0) # contenders that no CUDA machine brings along; pure Python
TRITON=3.6.0             # what that machine's torch 2.11 comes with

usage() {
  cat <<'END'
usage: benchmarks/gpu_bundle.sh [DIR] [--python PYTHON] [--kernels SET] [--no-wheels]

  DIR          folder to make anew (default: build/gpu_bundle)
  --python     an interpreter of the GPU machine's version, with headers (default: $PYTHON312, python3.12, or pyenv's)
  --kernels    none, first or second (with first): whose Triton kernels are compiled ahead (default: first; minutes)
  --no-wheels  leave them out

PYTHON (default: that of .venv, else python3) has torch and Triton, and says what the plans launch.
Exit code: 0 made, 1 something failed or it is above 60 MB, 2 no such Python, or a wrong command line.
END
}

refuse() {
  printf 'gpu_bundle: %s\n\n' "$1" >&2
  usage >&2
  exit 2
}

folder='' python='' kernels=first wheels=1 failed=0
while (($#)); do
  case $1 in
    --python) python=${2-} && shift ;;
    --kernels)
      [[ ${2-} == none || ${2-} == first || ${2-} == second ]] || refuse "--kernels must be none, first or second, got '${2-}'"
      kernels=$2
      shift
      ;;
    --no-wheels) wheels=0 ;;
    -h | --help) usage && exit ;;
    -*) refuse "unknown option $1" ;;
    *)
      [[ -z $folder ]] || refuse "one DIR is enough, got '$folder' and '$1'"
      folder=$1
      ;;
  esac
  shift
done

# ------------------------------------------------------------------------------------------------ the interpreter

if [[ -z $python ]]; then
  for candidate in "${PYTHON312-}" python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12.*/bin/python3.12; do
    if [[ -n $candidate ]] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
  [[ -n $python ]] || refuse "no Python 3.12 was found; --python or PYTHON312 names one"
fi
"$python" -c '
import os, sysconfig
header = os.path.join(sysconfig.get_path("include"), "Python.h")
os.path.exists(header) or exit(f"gpu_bundle: {header} is missing: this Python has no headers")
' || exit 2

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
torch=${PYTHON:-python3}
[[ -n ${PYTHON-} || ! -x $root/.venv/bin/python ]] || torch=$root/.venv/bin/python
whole() { if [[ $1 == */* ]]; then echo "$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"; else echo "$1"; fi; }
python=$(whole "$python") torch=$(whole "$torch")
[[ $kernels == none ]] || "$torch" -c 'import torch, triton' || refuse "PYTHON must have torch and Triton, got '$torch'"

folder=${folder:-$root/build/gpu_bundle}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$root"
[[ -z $(ls -A "$folder") || -f $folder/manifest.json ]] || refuse "DIR must be empty or a bundle, got '$folder'"
rm -rf "${folder:?}"/*
echo '{"files": {}}' >"$folder/manifest.json" # until there is something in it
home=$folder.work                             # kept: the next bundle recompiles what changed
mkdir -p "$home"

# ------------------------------------------------------------------------------------------------ the modules

"$python" -m venv --clear "$home/venv"
builder=$home/venv/bin/python
"$builder" -m pip install -q --disable-pip-version-check 'setuptools>=77' 'pybind11>=2.13' 'ninja>=1.11'

# build FLAVOUR [VARIABLE=VALUE]: in a tree of its own, which is links but for setup.py, so that the objects of the two
# flavours and of the checkout stay apart.
build() {
  local tree=$home/$1 name
  shift
  mkdir -p "$tree"
  rm -rf "${tree:?}/lib" # distutils copies nothing over what is newer
  for name in csrc ldreg_kernels pyproject.toml README.md LICENSE; do ln -sfn "$PWD/$name" "$tree/$name"; done
  cp -p setup.py "$tree/setup.py"
  (cd "$tree" && env LDREG_BUILD_CUDA=1 LDREG_CUDA_ARCHS=$ARCHITECTURE "$@" \
    "$builder" setup.py -q build_ext --build-lib "$tree/lib")
}

echo "== modules for $("$builder" --version), sm_$ARCHITECTURE"
build modules
mkdir -p "$folder"/{modules,watchdog}
cp "$home"/modules/lib/ldreg_kernels/_*.so "$folder/modules/"
echo "== the CUDA module with the watchdog"
build watchdog LDREG_WATCHDOG=1
cp "$home"/watchdog/lib/ldreg_kernels/_cuda*.so "$folder/watchdog/"

# ------------------------------------------------------------------------------------------------ wheels and kernels

if ((wheels)); then
  echo "== wheels: ${WHEELS[*]}"
  "$builder" -m pip download -q --disable-pip-version-check --no-deps -d "$folder/wheels" "${WHEELS[@]}"
fi
if [[ $kernels != none ]]; then
  echo "== Triton $TRITON and its kernels for the plan: $kernels"
  "$builder" -m pip install -q --disable-pip-version-check --no-deps "triton==$TRITON"
  "$torch" -m benchmarks.triton_cache record "$kernels" "$ARCHITECTURE" >"$home/launches.pickle"
  "$builder" -m benchmarks.triton_cache compile "$home/launches.pickle" "$folder" || failed=1 # it has said why
fi
"$builder" -m benchmarks.gpu_bundle manifest "$folder" "$builder" "$ARCHITECTURE"
((!failed)) || printf 'gpu_bundle: not all kernels of Triton are in the bundle\n' >&2
exit "$failed"
