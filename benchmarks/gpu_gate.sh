#!/usr/bin/env bash
# Everything a GPU is needed for, in one command of at most nine minutes: build, GPU tests, compute-sanitizer, benchmarks.
# Or in two of five and four, as named plans: what a first run is most likely to find comes first.
#
# It uses what the machine has (python, torch, Triton, nvcc; no network), and modules that gpu_bundle.sh built elsewhere,
# else it builds in place. Every step runs under a time limit, and OUT/summary.md is rewritten before each one, so that
# it is there when all is killed. benchmarks/gate_page.py writes it and decides what counts as a failure.
set -euo pipefail

# The plans: seconds for all of it, and the steps in order, each with the seconds it may take at most. A step is
#   build-watchdog, build            modules from the bundle, else compiled here; watchdog: they stop what waits in vain
#   answers-B                        sanitize.py on backend B at full speed
#   tests-B                          the GPU tests of B, in processes that are replaced when their device is lost
#   memcheck-B racecheck-B initcheck-B   sanitize.py under compute-sanitizer
#   timing, profile-DTYPE, bench     the train case against its yardsticks; one launch of it by ncu; as many cases as fit
#   host                             what a small call costs the host
declare -A plan_seconds=([all]=540 [first]=300 [second]=240) plan_steps
plan_steps[all]='build:150 answers-cuda:40 tests-cuda:90 memcheck-cuda:90 bench:150 racecheck-cuda:60 initcheck-cuda:60
  answers-triton:60 tests-triton:120 memcheck-triton:90 racecheck-triton:60 initcheck-triton:60'
plan_steps[first]='build-watchdog:100 answers-cuda:40 tests-cuda:90 memcheck-cuda:90
  build:100 timing:45 profile-float32:25 profile-bfloat16:25 answers-triton:60'
# The second begins with answers again: the compiler schedules wgmma otherwise where there is a watchdog.
plan_steps[second]='build:100 answers-cuda:30 racecheck-cuda:45 initcheck-cuda:45 host:25 bench:85 tests-triton:120'

usage() {
  cat <<'END'
usage: benchmarks/gpu_gate.sh OUT [first|second] [--tests] [--sanitize] [--bench] [--backend NAME] [--bundle DIR]
                              [--no-build] [--cap STEP=SECONDS] [--minutes N] [--dry-run]

  OUT          folder for summary.md, *.log, measurements.csv and report.html
  first        at most five minutes: answers, tests and memcheck of CUDA with modules that end a kernel that waits in
               vain; then the train case timed and profiled; answers of Triton
  second       at most four: answers without the watchdog, racecheck, initcheck, benchmarks, tests of Triton
  --tests, --sanitize, --bench
               only these sections; without any, all of them
  --backend    cuda or triton: only its steps; repeatable; both by default
  --bundle     what gpu_bundle.sh made, or none (default: build/gpu_bundle, if it is there)
  --no-build   never compile: modules of the bundle, or those that are there
  --cap        seconds for a step, in place of its own; repeatable
  --minutes N  end within N minutes, such as 9 (the default) or 2.5
  --dry-run    no GPU needed: the CPU backend and the reference stand in for CUDA and Triton

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

out='' plan='' sections='' wanted='' bundle='' build=1 dry_run=0 budget=''
declare -A caps=()
while (($#)); do
  case $1 in
    --tests | --sanitize | --bench) sections+=" ${1#--}" ;;
    --dry-run) dry_run=1 ;;
    --no-build) build=0 ;;
    --backend)
      [[ ${2-} == cuda || ${2-} == triton ]] || refuse "--backend must be cuda or triton, got '${2-}'"
      wanted+=" $2"
      shift
      ;;
    --bundle)
      [[ ${2-} == none || -d ${2-} ]] || refuse "--bundle must be a folder or none, got '${2-}'"
      bundle=$2
      [[ $2 == none ]] || bundle=$(cd "$2" && pwd)
      shift
      ;;
    --cap)
      [[ ${2-} =~ ^([a-z0-9-]+)=([0-9]{1,4})$ && " ${plan_steps[*]}" == *[[:space:]]"${BASH_REMATCH[1]}":* ]] ||
        refuse "--cap must be a step and seconds, such as tests-cuda=60, got '${2-}'"
      caps[${BASH_REMATCH[1]}]=$((10#${BASH_REMATCH[2]}))
      shift
      ;;
    --minutes)
      [[ ${2-} =~ ^([0-9]{1,3})(\.([0-9]))?$ ]] || refuse "--minutes must be a number such as 9 or 2.5, got '${2-}'"
      budget=$((10#${BASH_REMATCH[1]} * 60 + ${BASH_REMATCH[3]:-0} * 6))
      shift
      ;;
    -h | --help) usage && exit ;;
    -*) refuse "unknown option $1" ;;
    first | second)
      [[ -z $plan ]] || refuse "one plan is enough, got '$plan' and '$1'"
      [[ -n $out ]] || refuse "OUT is missing: it comes before the plan"
      plan=$1
      ;;
    *)
      [[ -z $out ]] || refuse "one OUT is enough, got '$out' and '$1'"
      out=$1
      ;;
  esac
  shift
done
[[ -n $out ]] || refuse "OUT is missing"
[[ -z $plan || -z $sections ]] || refuse "a plan has its own steps:$sections cannot be added to '$plan'"
plan=${plan:-all}
budget=${budget:-${plan_seconds[$plan]}}

SECONDS=0 # bash counts it up
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
[[ $python != */* ]] || python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -n $bundle || ! -d build/gpu_bundle ]] || bundle=$PWD/build/gpu_bundle
[[ $bundle != none ]] || bundle=''
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin # nvcc, compute-sanitizer and ncu are often only there
unset TRITON_INTERPRET                             # kernels are to run on the GPU
dry=()
((dry_run)) && dry=(--dry-run)

work=$(mktemp -d) # what gate_page.py reads: machine, steps, not_reached
running=''
trap 'rm -rf "$work"' EXIT
trap '[[ -z $running ]] || kill "$running"; exit 130' INT TERM
touch "$work"/{steps,not_reached}
rm -f "$out"/{summary.md,build.log,tests.log,sanitize.log,bench.log,progress.log} # measurements.csv only grows

# ------------------------------------------------------------------------------------------------ steps

not_reached() { echo "$1" | tee -a "$work/not_reached"; }

page() { "$python" -m benchmarks.gate_page "$out" "$work" "${dry[@]}" "$@"; }

# step SECTION NAME CAP COMMAND...: runs it, its output at the end of SECTION.log, and notes what gate_page.py reads.
step() {
  local section=$1 name=$2 limit=$3 left code=0 start=$SECONDS log began now
  shift 3
  left=$((budget - budget / 27 - 1 - SECONDS)) # the page and a step that does not listen need some of it
  ((limit <= left)) || limit=$left
  if ((limit < 3)); then
    not_reached "$name: no time was left"
    return 1
  fi
  page --running "$name" >/dev/null || true
  echo "== $name, at most $limit s"
  log=$out/$section.log
  echo "== $name: $*" >>"$log"
  began=$(stat -c %s "$log") now=$(date +%s)
  # An interrupt, because pytest then still says what it found (bash has what it starts with & ignore one); and the
  # end, for whoever does not listen. In the background, so that Ctrl-C ends the script and not only its wait.
  # Twelve seconds, because pytest's controller gives its workers ten.
  timeout --signal=INT --kill-after=12 "$limit" env --default-signal=INT "$@" >>"$log" 2>&1 &
  running=$!
  wait "$running" || code=$?
  # Whoever is left in its group did not listen either, such as a kernel's process when the tool around it did.
  if ((code == 124)); then
    for _ in 1 2 3 4 5 6; do ! kill -0 -- -"$running" 2>/dev/null || sleep 1; done
    ! kill -KILL -- -"$running" 2>/dev/null || code=137
  fi
  running=''
  printf '%s\t' "$name" "$code" $((SECONDS - start)) "$section" "$began" "$(stat -c %s "$log")" >>"$work/steps"
  echo "$now" >>"$work/steps"
  echo "== exit code $code" >>"$log"
  echo "   exit code $code, $((SECONDS - start)) s"
  return "$code"
}

# run_build NAME CAP: the bundle's modules, or a build. `built` says whether there is something to run.
run_build() {
  local name=$1 cap=$2 flavour=modules
  [[ $name != build-watchdog ]] || flavour=watchdog
  if ((dry_run)); then
    not_reached "build: left out of a dry run"
    return
  fi
  built=0
  if [[ " $fits " == *" $flavour "* ]]; then
    if step build "install-$flavour" 30 "$python" -m benchmarks.gpu_bundle install "$bundle" "$flavour"; then
      built=1
      return
    fi
    not_reached "bundle: its $flavour cannot be loaded here, see build.log"
    fits=${fits/$flavour/}
  fi
  if ((!build)); then
    not_reached "$name: --no-build, and no module of a bundle fits; what is there is used"
    built=1
    return
  fi
  export LDREG_BUILD_CUDA=1 # fails aloud
  # Code for this machine alone, which takes a third of the time.
  [[ -n ${LDREG_CUDA_ARCHS-} ]] || LDREG_CUDA_ARCHS=$(sed -n 's/^architecture: //p' "$work/machine")
  export LDREG_CUDA_ARCHS
  local watchdog=()
  [[ $flavour == modules ]] || watchdog=(LDREG_WATCHDOG=1)
  ! step build "$name" "$cap" env "${watchdog[@]}" "$python" setup.py -q build_ext --inplace || built=1
}

# run_tests NAME CAP BACKEND. A test has half the step's time: then its process is ended, and the next one tried. On
# Triton, where a test may compile for most of a minute, it has all of it.
run_tests() {
  local name=$1 cap=$2 backend=$3 workers options longest=$(($2 / 2))
  [[ $backend != triton ]] || longest=$cap
  if [[ ! -f $work/leave_out ]]; then # --ignore=... of test files that need a package this machine lacks
    if ! "$python" -m benchmarks.summary tests >"$work/leave_out" 2>>"$work/not_reached"; then
      tail -n 1 "$work/not_reached" >>"$out/tests.log" # without them nothing is known, which is no pass
      printf '%s\t1\t0\ttests\t0\t%s\t0\n' "$name" "$(stat -c %s "$out/tests.log")" >>"$work/steps"
      rm "$work/leave_out"
      return
    fi
  fi
  mapfile -t options <"$work/leave_out"
  workers=$(nproc)
  [[ $backend != cuda || $workers -lt 8 ]] || workers=8 # enough, since hardly anything is compiled in its tests
  options+=(-q -p no:cacheprovider -p benchmarks.gpu_pytest --ldreg-backend "$backend" -n "$workers")
  options+=(--timeout="$longest" --timeout-method=thread -o faulthandler_timeout=$((longest * 8 / 9)))
  options+=(--max-worker-restart=12)
  if ((dry_run)); then
    export LDREG_TEST_SIMULATOR=0 # which would be compiled first
    options=(python_tests/ops/test_knn.py -k "own_batch and not 1100" "${options[@]}")
  else
    options=(python_tests -m gpu "${options[@]}")
  fi
  printf 'step\t-\t%s\t%s\n' "$name" "$longest" >>"$out/progress.log"
  # Workers share the processors: torch and the compiler of torch.compile would start a thread on each, in every one.
  OMP_NUM_THREADS=$(($(nproc) > workers ? $(nproc) / workers : 1)) TORCHINDUCTOR_COMPILE_THREADS=1 \
    LDREG_TEST_PROGRESS=$out/progress.log step tests "$name" "$cap" "$python" -m pytest "${options[@]}" || true
}

# run_answers NAME CAP BACKEND. It also leaves Triton's compiled kernels in their cache.
run_answers() {
  local code=0
  step sanitize "$1" "$2" "$python" -m benchmarks.sanitize --backend "$3" || code=$?
  ((code != 3)) || without+=" $3" # nothing of it can run, and its log says why
}

# run_tool NAME CAP BACKEND: compute-sanitizer around the same.
run_tool() {
  local name=$1 cap=$2 backend=$3 tool=${1%%-*} options
  if ((dry_run)); then
    not_reached "$tool: it needs a GPU"
  elif ! command -v compute-sanitizer >/dev/null; then
    not_reached "$tool: compute-sanitizer was not found"
  elif [[ " $without " != *" $backend "* ]]; then
    # torch asks the driver for what may be missing and handles the error; ours are checked at every call.
    options=(--tool "$tool" --error-exitcode 99 --report-api-errors no --print-limit 20)
    # Races are inside a kernel, so ours are enough. initcheck has to see torch's too: it only knows of writes by
    # kernels it watches, and would call whatever torch wrote uninitialised.
    [[ $tool != racecheck ]] || options+=(--kernel-name kernel_substring=ldreg)
    # Every tensor its own cudaMalloc: inside torch's pool, reading past the end of one is reading another.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step sanitize "$name" "$cap" \
      compute-sanitizer "${options[@]}" "$python" -m benchmarks.sanitize --backend "$backend" || true
  fi
}

# run_timing NAME CAP: the first two cases of the headline are the train case; the others are left when time is up.
run_timing() {
  local options=(--device cuda --quick --suite headline --contender 'ldreg cuda' --contender torch.mm)
  options+=(--contender published --seconds $(($2 * 7 / 10))) # it ends by itself, and needs a moment for its plots
  ((!dry_run)) || options=(--device cpu --quick --suite n --contender 'ldreg cpu' --seconds 25)
  step bench "$1" "$2" "$python" -m benchmarks "${options[@]}" --out "$out" || true
}

# run_profile NAME CAP: the third call, as ncu sees it.
run_profile() {
  local code dtype=${1#profile-}
  if ((dry_run)); then
    not_reached "$1: it needs a GPU"
  elif ! command -v ncu >/dev/null; then
    not_reached "$1: ncu was not found"
  else
    code="import torch, ldreg_kernels as ldk
x = torch.randn(4096, 2048, device='cuda', dtype=torch.$dtype, requires_grad=True)
for _ in range(3): ldk.ldreg_loss(x, k=64, backend='cuda')
torch.cuda.synchronize()"
    step bench "$1" "$2" ncu --clock-control none --kernel-name regex:ldreg --launch-skip 2 --launch-count 1 --set full \
      "$python" -c "$code" || true
  fi
}

# run_host NAME CAP
run_host() {
  if ((dry_run)); then
    not_reached "$1: without a GPU it would compile a stand-in first; python -m benchmarks.host"
  else
    step bench "$1" "$2" "$python" -m benchmarks.host --out "$out" --rounds 3 || true
  fi
}

run_bench() {
  local seconds=$2 options left=$((budget - budget / 27 - 1 - SECONDS))
  ((seconds <= left)) || seconds=$left
  options=(--device cuda --seconds $((seconds * 8 / 10))) # it ends by itself, and needs a moment for its plots
  ((seconds >= 400)) || options+=(--quick)               # else the suites would end with the first
  ((!dry_run)) || options=(--device cpu --quick --suite n --seconds 20)
  step bench "$1" "$2" "$python" -m benchmarks "${options[@]}" --out "$out" || true
}

# ------------------------------------------------------------------------------------------------ the run

code=0
"$python" -m benchmarks.summary machine "${dry[@]}" >"$work/machine" || code=$?
((code == 0)) || exit "$code" # it has said why
cat "$work/machine"

fits='' # what of the bundle can be used on this machine; the reasons why not are not_reached
if [[ -n $bundle ]] && ((!dry_run)); then
  architecture=$(sed -n 's/^architecture: //p' "$work/machine")
  fits=$("$python" -m benchmarks.gpu_bundle fits "$bundle" "$architecture" 2>>"$work/not_reached" | tr '\n' ' ') || true
  if [[ " $fits " == *' wheels '* ]]; then
    if timeout 20 "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target build/gpu_wheels \
      "$bundle"/wheels/*.whl; then
      PYTHONPATH=$PYTHONPATH:$PWD/build/gpu_wheels
    else
      not_reached "bundle: pip refused its wheels"
    fi
  fi
  if [[ " $fits " == *' triton '* ]]; then
    TRITON_CACHE_DIR=$("$python" -m benchmarks.gpu_bundle cache "$bundle") && export TRITON_CACHE_DIR
  fi
fi

built=1 without='' # backends of which nothing can run
for item in ${plan_steps[$plan]}; do
  name=${item%:*} kind=${item%%[-:]*} backend=${name#*-}
  cap=${caps[$name]:-${item#*:}}
  case $kind in
    build) section=build backend='' whose='' ;;
    tests) section=tests whose=$backend ;;
    timing | profile) section=bench backend='' whose=cuda ;;
    host | bench) section=bench backend='' whose='' ;;
    *) section=sanitize whose=$backend ;;
  esac
  [[ -z $sections || $section == build || " $sections " == *" $section "* ]] || continue
  [[ -z $wanted || -z $whose || " $wanted " == *" $whose "* ]] || continue
  if ((dry_run)) && [[ -n $backend ]]; then
    case $backend in cuda) backend=cpu ;; triton) backend=reference ;; esac
    name=$kind-$backend
  fi
  if ((!built)) && [[ $kind != build ]]; then
    not_reached "$name: there is no build to run"
    continue
  fi
  case $kind in
    build) run_build "$name" "$cap" ;;
    tests) run_tests "$name" "$cap" "$backend" ;;
    answers) run_answers "$name" "$cap" "$backend" ;;
    timing) run_timing "$name" "$cap" ;;
    profile) run_profile "$name" "$cap" ;;
    host) run_host "$name" "$cap" ;;
    bench) run_bench "$name" "$cap" ;;
    *) run_tool "$name" "$cap" "$backend" ;;
  esac
done

code=0
page || code=$?
exit "$code"
