#!/usr/bin/env bash
# Stage 2 over two hosts: two network namespaces of this machine with an address each, joined by a veth pair. Needs root.
#
#   bash benchmarks/two_hosts.sh STAGE1_RUN OUT
#
# 1. torchrun with one rank a host, to the end.   2. deepspeed --hostfile … --no_ssh --node_rank, to the end.
# 3. two ranks on one host.  All three must end with the same metrics.
# 4. the link is cut while training: both hosts must stop by themselves; then the same commands resume to the same metrics.
set -euo pipefail
stage1=$(realpath "$1") out=$(realpath -m "$2")
cd "$(dirname "$0")/.."
bin=$(dirname "$(realpath -s "$(command -v python)")")
mkdir -p "$out"
if [ "$(id -u)" != 0 ] || ! ip netns add ptmrec-probe 2>/dev/null; then
    echo "skipped: network namespaces are not possible here (needs root and iproute2)"
    exit 0
fi
ip netns del ptmrec-probe
tidy() { ip netns del ptmrec0 2>/dev/null || true; ip netns del ptmrec1 2>/dev/null || true; }
trap tidy EXIT
tidy
ip netns add ptmrec0
ip netns add ptmrec1
ip link add veth0 netns ptmrec0 type veth peer name veth0 netns ptmrec1
for host in 0 1; do
    ip -n ptmrec$host addr add 10.77.0.$((host + 1))/24 dev veth0
    ip -n ptmrec$host link set veth0 up
    ip -n ptmrec$host link set lo up
done
# Gloo must not take the address that the host's name resolves to.
export GLOO_SOCKET_IFNAME=veth0 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES="" PATH="$bin:$PATH" PYTHONPATH=$PWD
settings=(--stage1 "$stage1" --epochs 2 --batch_size 12 --checkpoint_every 2 --device cpu --tracking.enabled false)
printf '10.77.0.1 slots=1\n10.77.0.2 slots=1\n' >"$out/hostfile"

on_host() { ip netns exec "ptmrec$1" "${@:2}"; }
with_torchrun() { # HOST FOLDER
    on_host "$1" torchrun --nnodes 2 --nproc_per_node 1 --node_rank "$1" --master_addr 10.77.0.1 --master_port 29611 \
        launchers/stage2.py "${settings[@]}" --timeout 20 --out "$2" >"$2-host$1.log" 2>&1
}
with_deepspeed() { # HOST FOLDER
    on_host "$1" deepspeed --hostfile "$out/hostfile" --no_ssh --node_rank "$1" --master_addr 10.77.0.1 \
        --master_port 29612 launchers/stage2.py "${settings[@]}" --out "$2" >"$2-host$1.log" 2>&1
}
on_both() { # HOW FOLDER
    local codes=()
    "$1" 0 "$2" & local first=$!
    "$1" 1 "$2" & local second=$!
    wait $first || codes+=("host 0: $?")
    wait $second || codes+=("host 1: $?")
    [ ${#codes[@]} = 0 ] || echo "  exit codes: ${codes[*]}"
}

on_host 0 env -u GLOO_SOCKET_IFNAME torchrun --nproc_per_node 2 --master_addr 127.0.0.1 --master_port 29610 \
    launchers/stage2.py "${settings[@]}" --out "$out/one-host" >"$out/one-host.log" 2>&1
compare() {
    if cmp -s "$out/one-host/metrics.json" "$out/$1/metrics.json"; then echo "$1: the metrics of one host"
    else echo "$1: DIFFERENT from one host"; fi
}
on_both with_torchrun "$out/torchrun"; compare torchrun
on_both with_deepspeed "$out/deepspeed"; compare deepspeed

echo "cut: the link is taken down after the first checkpoint"
on_both with_torchrun "$out/cut" & both=$!
until compgen -G "$out/cut/checkpoints/step-*" >/dev/null; do sleep 0.05; done
ip -n ptmrec1 link set veth0 down
cut=$SECONDS
wait $both
echo "  both hosts stopped after $((SECONDS - cut)) seconds (--timeout 20)"
grep -h "error: rank\|: error: " "$out"/cut-host*.log | grep -v Traceback | cut -c1-250 | sed 's/^/  /' || true
ip -n ptmrec1 link set veth0 up
on_both with_torchrun "$out/cut"; compare cut
