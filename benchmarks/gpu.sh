#!/bin/sh
# Everything that only a GPU can say, in the order of importance and within ten minutes on a large one. What is known is
# written as it comes, so that a run that is cut short is not lost.
#
#   sh benchmarks/gpu.sh [folder for the figures] [python]
set -u
out=${1:-gpu-figures}
python=${2:-python3}
mkdir -p "$out"
export PYTHONPATH="$(cd "$(dirname "$0")/.." && pwd)/src${PYTHONPATH:+:$PYTHONPATH}"

nvidia-smi >"$out/gpu.txt" 2>&1
"$python" -c 'import torch, sys; print(sys.version, torch.__version__, torch.version.cuda)' >>"$out/gpu.txt" 2>&1

# bench NAME SECONDS OPTIONS...: a report in NAME.json, what was printed in NAME.txt
bench() {
	name=$1 limit=$2
	shift 2
	echo "== $name"
	timeout "$limit" "$python" -m streamavatar.cli bench --config wan22_5b --device cuda --json "$out/$name.json" "$@" \
		>"$out/$name.txt" 2>&1 || echo "stopped with $?"
	tail -n 30 "$out/$name.txt"
}

# Wrong figures are worse than none: kernels, graphs and transfers first.
echo "== tests"
timeout 120 "$python" -m pytest -q -m gpu tests/ops tests/engine >"$out/tests.txt" 2>&1
tail -n 15 "$out/tests.txt"

bench 928x704-light 120 --size 928x704 --chunks 100 --baselines
bench 1280x704-light 120 --size 1280x704 --chunks 100 --baselines
bench 928x704-full 90 --size 928x704 --decoder full --chunks 30
bench 928x704-light-500 120 --size 928x704 --chunks 500
