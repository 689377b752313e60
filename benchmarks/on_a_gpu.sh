#!/usr/bin/env bash
# Run the tests and benchmarks that need a GPU, in less than eight minutes. The machine needs no network.
#
#   bash benchmarks/on_a_gpu.sh [--wheels DIR] [--out DIR]    # save in DIR [docs/performance]
#   bash benchmarks/on_a_gpu.sh --quick                       # a short trial of every part, also on a CPU; saves nothing
#
# --wheels, or the variable WHEELS: a folder of wheels that are used for this run (benchmarks/README.md lists them).
# PYTHON: the interpreter. A part that fails or takes too long does not stop the others. The exit code is 1 if a part failed.
set -u
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3} wheels=${WHEELS:-} out="" quick=""
while [ $# -gt 0 ]; do
  case $1 in
    --wheels) wheels=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --quick) quick=--quick; shift ;;
    *) echo "on_a_gpu.sh: unknown argument $1; expected --wheels DIR, --out DIR or --quick" >&2; exit 2 ;;
  esac
done
SECONDS=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "$out" ]; then [ -n "$quick" ] && out=$work/results || out=docs/performance; fi
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
tests=$out/gpu_tests.log benchmarks=$out/gpu_benchmarks.log
failed=0

if [ -n "$wheels" ]; then
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
    --target "$work/packages" "$wheels"/*.whl || { echo "on_a_gpu.sh: the wheels in $wheels cannot be installed"; failed=1; }
fi
export PYTHONPATH="$work/packages:$PWD${PYTHONPATH:+:$PYTHONPATH}"
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/triton
export NO_ALBUMENTATIONS_UPDATE=1 HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

has() { "$python" -c "import $1" 2>/dev/null; }

# Compile the networks while the tests run, because the tests do not measure time.
compilations=()
if [ -z "$quick" ]; then
  for name in training inference; do
    timeout 170 "$python" -m benchmarks.gpu.warm "$name" >"$work/warm_$name.log" 2>&1 &
    compilations+=($!)
  done
fi
options=(-W default -p no:cacheprovider)
[ -z "$quick" ] && has xdist && options+=(-n 6)
[ -z "$quick" ] && has pytest_timeout && options+=(--timeout 130)
timeout --kill-after 5 160 "$python" -m pytest tests/gpu "${options[@]}" >"$tests" 2>&1
code=$?
echo "tests/gpu: exit code $code, $SECONDS s"
[ $code -ne 0 ] && failed=1
for process in "${compilations[@]+"${compilations[@]}"}"; do wait "$process"; done
cat "$work"/warm_*.log >"$benchmarks" 2>/dev/null
echo "compilation: done, $SECONDS s"

left=$((465 - SECONDS))
"$python" -m benchmarks.gpu $quick --out "$out" --seconds "$left" >>"$benchmarks" 2>&1 || failed=1

echo "== summary, $SECONDS s"
"$python" -m benchmarks.gpu.summary "$out" || failed=1
echo
grep -E "^(training|inference): compiled|^section " "$benchmarks"
grep -E "^(FAILED|ERROR)" "$tests"
tail -n 1 "$tests"
[ $failed -eq 0 ] && echo "all parts done, $SECONDS s" || echo "A PART FAILED, $SECONDS s: see $tests and $benchmarks"
exit $failed
