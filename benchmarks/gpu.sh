#!/bin/sh
# Everything that only a GPU can say, in the order of importance and within ten minutes on a large one. Needs no network.
# Parts do not depend on each other, and a bench writes its figures as they come: a part that fails or is cut short loses
# nothing else.
#
#   sh benchmarks/gpu.sh [folder for the figures] [python]
#
#   PARTS="tests light-928 light-1280 full-928 long-928 two"   which parts, and in which order (two: needs two GPUs)
#   WHEELS=.whl    folder of wheels for what the machine's Python lacks
#   REHEARSE=1     the same way on a CPU, in small: whether the script, not the GPU, does its work
#   COMMIT=abc     where the checkout came from, if it is no git checkout
#
# Wheels are fetched beforehand, where there is a network, for the Python of the GPU's machine; the engine and the bench
# need no FFmpeg, so these two are small:
#
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
#       --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 -d .whl dacite soxr
set -u
out=${1:-gpu-figures}
python=${2:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
wheels=${WHEELS:-$root/.whl}
parts=${PARTS:-tests light-928 light-1280 full-928 long-928}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
cd "$root" || exit 2
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
log="$out/log.txt"
failed=""
: >"$log"

say() { echo "$@" | tee -a "$log"; }

# environment ----------------------------------------------------------------------------------------------------------
say "commit $(git rev-parse --short HEAD 2>/dev/null || echo "${COMMIT:-unknown}")"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>&1 | tee -a "$log"
if ls "$wheels"/*.whl >/dev/null 2>&1; then
	site=$(mktemp -d)
	"$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl 2>&1 | tee -a "$log"
	export PYTHONPATH="$PYTHONPATH:$site" # behind: what the machine has goes first
fi
"$python" benchmarks/gpu_ready.py ${REHEARSE:+--cpu} 2>&1 | tee "$out/ready.txt"
cat "$out/ready.txt" >>"$log"
if ! grep -q '^ready' "$out/ready.txt"; then
	say "nothing was measured"
	exit 2
fi

# parts ----------------------------------------------------------------------------------------------------------------
if [ -n "${REHEARSE:-}" ]; then
	device="--device cpu --precision float32 --layers 1 --dim 128"
else
	device="--device cuda"
fi

# small FULL REHEARSED: one of two words
small() { if [ -n "${REHEARSE:-}" ]; then echo "$2"; else echo "$1"; fi; }

# part NAME SECONDS COMMAND...: its output goes to the log, the end of it to the screen
part() {
	name=$1 limit=$2
	shift 2
	say "== $name"
	begin=$(date +%s)
	timeout "$limit" "$@" >"$out/part.txt" 2>&1
	status=$?
	cat "$out/part.txt" >>"$log"
	tail -n 30 "$out/part.txt"
	rm -f "$out/part.txt"
	say "-- $name: exit status $status after $(($(date +%s) - begin)) s"
	[ "$status" = 0 ] || failed="$failed $name"
}

# bench NAME SECONDS OPTIONS...: a report in NAME.json
bench() {
	name=$1 limit=$2
	shift 2
	# shellcheck disable=SC2086
	part "$name" "$limit" "$python" -m streamavatar.cli bench --config wan22_5b $device --json "$out/$name.json" "$@"
}

large=$(small 928x704 64x32) larger=$(small 1280x704 64x64)
for each in $parts; do
	case $each in
	tests) # wrong figures are worse than none: kernels, graphs and transfers first
		files=$(grep -rl 'mark\.gpu' tests --include='test_*.py' | sort)
		# shellcheck disable=SC2086,SC2046
		part tests 150 "$python" -m pytest -q -rfEs -p no:cacheprovider --continue-on-collection-errors -m gpu \
			$(small "" --collect-only) $files
		;;
	light-928) bench light-928 130 --size "$large" --chunks "$(small 100 2)" ;;
	light-1280) bench light-1280 150 --size "$larger" --chunks "$(small 100 2)" ;;
	full-928) bench full-928 90 --size "$large" --decoder full --chunks "$(small 30 2)" --no-baselines ;;
	pruned-928) bench pruned-928 90 --size "$large" --decoder pruned --chunks "$(small 30 2)" --no-baselines ;;
	long-928) bench long-928 150 --size "$large" --chunks "$(small 500 3)" --no-baselines ;;
	two) bench two 120 --size "$large" --decoder full --decoder-device "$(small cuda:1 cpu)" --chunks "$(small 30 2)" --no-baselines ;;
	*) say "no part called $each" && failed="$failed $each" ;;
	esac
done
rm -f "$out/ready.txt"
if [ -n "$failed" ]; then
	say "failed or cut short:$failed (what they had measured is in $out)"
	exit 1
fi
say "all parts done: $out"
