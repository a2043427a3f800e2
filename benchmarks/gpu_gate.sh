#!/usr/bin/env bash
# Everything a GPU is needed for, in one command of at most nine minutes: build, GPU tests, compute-sanitizer, benchmarks.
#
# It uses what the machine has (python, torch, Triton, nvcc; no network) and builds in place. Every step runs under a
# time limit; what does not fit is named in OUT/summary.md, which benchmarks/summary.py writes. That file also decides
# what counts as a failure.
set -euo pipefail

usage() {
  cat <<'END'
usage: benchmarks/gpu_gate.sh OUT [--tests] [--sanitize] [--bench] [--minutes N] [--dry-run]

  OUT          folder for summary.md, *.log, measurements.csv and report.html
  --tests, --sanitize, --bench
               only these sections; without any, all of them
  --minutes N  end within N minutes, such as 9 (the default) or 2.5
  --dry-run    no GPU needed: collects the tests, runs the sanitizers' workload and a short benchmark on the CPU

PYTHON (default python3) is the interpreter; LDREG_COMMIT names the commit where there is no .git.
Exit code: 0 nothing failed, 1 a step failed, 2 no GPU, or a wrong command line.
END
}

refuse() {
  printf 'gpu_gate: %s\n\n' "$1" >&2
  usage >&2
  exit 2
}

# ------------------------------------------------------------------------------------------------ command line

out='' tests=0 sanitize=0 bench=0 dry_run=0 budget=540
while (($#)); do
  case $1 in
    --tests) tests=1 ;;
    --sanitize) sanitize=1 ;;
    --bench) bench=1 ;;
    --dry-run) dry_run=1 ;;
    --minutes)
      [[ ${2-} =~ ^([0-9]{1,3})(\.([0-9]))?$ ]] || refuse "--minutes must be a number such as 9 or 2.5, got '${2-}'"
      budget=$((10#${BASH_REMATCH[1]} * 60 + ${BASH_REMATCH[3]:-0} * 6))
      shift
      ;;
    -h | --help) usage && exit ;;
    -*) refuse "unknown option $1" ;;
    *)
      [[ -z $out ]] || refuse "one OUT is enough, got '$out' and '$1'"
      out=$1
      ;;
  esac
  shift
done
[[ -n $out ]] || refuse "OUT is missing"
((tests + sanitize + bench)) || tests=1 sanitize=1 bench=1

SECONDS=0 # bash counts it up
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
[[ $python != */* ]] || python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin # nvcc and compute-sanitizer are often only there
unset TRITON_INTERPRET                             # kernels are to run on the GPU
dry=()
((dry_run)) && dry=(--dry-run)

work=$(mktemp -d) # what summary.py reads: machine, steps, not_reached and a log for each step
running=''
trap 'rm -rf "$work"' EXIT
trap '[[ -z $running ]] || kill "$running"; exit 130' INT TERM
touch "$work"/{steps,not_reached}
rm -f "$out"/{summary.md,build.log,tests.log,sanitize.log,bench.log} # measurements.csv only grows

# ------------------------------------------------------------------------------------------------ steps

# Seconds a step may take if $1 are kept for those after it. The page and a step that ignores its signal need 21 of 540.
limit() { echo $((budget - budget / 27 - 1 - SECONDS - $1)); }
for_tests=$((tests ? budget / 6 : 0)) for_sanitize=$((sanitize ? budget / 6 : 0)) for_bench=$((bench ? budget / 4 : 0))

not_reached() { echo "$1" | tee -a "$work/not_reached"; }

# step SECTION NAME LIMIT COMMAND...: runs it, notes exit code and seconds, and adds what it printed to SECTION.log.
step() {
  local section=$1 name=$2 limit=$3 code=0 start=$SECONDS
  shift 3
  if ((limit < 3)); then
    not_reached "$name: no time was left"
    return 1
  fi
  echo "== $name, at most $limit s"
  # An interrupt, because pytest then still says what it found (bash has what it starts with & ignore one); and the
  # end, for whoever does not listen. In the background, so that Ctrl-C ends the script and not only its wait.
  timeout --signal=INT --kill-after=10 "$limit" env --default-signal=INT "$@" >"$work/$name.log" 2>&1 &
  running=$!
  wait "$running" || code=$?
  running=''
  printf '%s\t%s\t%s\n' "$name" "$code" $((SECONDS - start)) >>"$work/steps"
  { echo "== $name: $*" && cat "$work/$name.log" && echo "== exit code $code"; } >>"$out/$section.log"
  echo "   exit code $code, $((SECONDS - start)) s"
  return "$code"
}

run_build() {
  export LDREG_BUILD_CUDA=1 # fails aloud
  # Code for this machine alone, which takes a third of the time.
  [[ -n ${LDREG_CUDA_ARCHS-} ]] || LDREG_CUDA_ARCHS=$(sed -n 's/^architecture: //p' "$work/machine")
  export LDREG_CUDA_ARCHS
  step build build "$(limit $((for_tests + for_sanitize + for_bench)))" "$python" setup.py -q build_ext --inplace
}

run_tests() {
  local leave_out # --ignore=... of test files that need a package this machine lacks; the reasons are not_reached
  if ! "$python" -m benchmarks.summary tests >"$work/leave_out" 2>>"$work/not_reached"; then
    printf 'tests\t1\t0\n' >>"$work/steps" # without them nothing is known, which is no pass
    tail -n 1 "$work/not_reached" >"$work/tests.log"
    return
  fi
  mapfile -t leave_out <"$work/leave_out"
  local pytest=("$python" -m pytest python_tests -m gpu -q -p no:cacheprovider "${leave_out[@]}")
  if ((dry_run)); then pytest+=(--collect-only); else pytest+=(--maxfail=25 --timeout=120); fi
  step tests tests "$(limit $((for_sanitize + for_bench)))" "${pytest[@]}" || true
}

run_sanitize() {
  local backend tool code options found=() backends=(cuda triton)
  ((dry_run)) && backends=(cpu)
  for backend in "${backends[@]}"; do
    # Once at full speed: are the answers right? It also leaves Triton's compiled kernels in their cache.
    code=0
    step sanitize "answers-$backend" "$(limit "$for_bench")" \
      "$python" -m benchmarks.sanitize --backend "$backend" || code=$?
    ((code == 3)) || found+=("$backend") # 3: nothing of it can run, and its log says why
  done
  if ((dry_run)); then
    not_reached "memcheck, racecheck, initcheck: they need a GPU"
    return
  fi
  if ! command -v compute-sanitizer >/dev/null; then
    not_reached "memcheck, racecheck, initcheck: compute-sanitizer was not found"
    return
  fi
  # Every tensor its own cudaMalloc: inside torch's pool, reading past the end of one is reading another.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in memcheck racecheck initcheck; do # by what they find; all backends get the first before any the next
    for backend in "${found[@]}"; do
      # torch asks the driver for what may be missing and handles the error; ours are checked at every call.
      options=(--tool "$tool" --error-exitcode 99 --report-api-errors no --print-limit 20)
      # Races are inside a kernel, so ours are enough. initcheck has to see torch's too: it only knows of writes by
      # kernels it watches, and would call whatever torch wrote uninitialised.
      [[ $tool != racecheck ]] || options+=(--kernel-name kernel_substring=ldreg)
      step sanitize "$tool-$backend" "$(limit "$for_bench")" \
        compute-sanitizer "${options[@]}" "$python" -m benchmarks.sanitize --backend "$backend" || true
    done
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
}

run_bench() {
  local seconds options
  seconds=$(limit 0)
  options=(--device cuda --seconds $((seconds * 8 / 10))) # it ends by itself, and needs a moment for its plots
  ((seconds >= 400)) || options+=(--quick)               # else the suites would end with the first
  ((dry_run)) && options=(--device cpu --quick --suite n --seconds 20)
  step bench bench "$seconds" "$python" -m benchmarks "${options[@]}" --out "$out" || true
}

# ------------------------------------------------------------------------------------------------ the run

code=0
"$python" -m benchmarks.summary machine "${dry[@]}" >"$work/machine" || code=$?
((code == 0)) || exit "$code" # it has said why
cat "$work/machine"

if ((dry_run)); then
  not_reached "build: left out of a dry run"
elif ! run_build; then
  not_reached "tests, sanitize, bench: there is no build to run"
  tests=0 sanitize=0 bench=0
fi
((tests)) && run_tests
((sanitize)) && run_sanitize
((bench)) && run_bench

code=0
"$python" -m benchmarks.summary page "$out" "$work" "${dry[@]}" || code=$?
exit "$code"
