#!/usr/bin/env bash
# Train with torchrun, which starts all processes again, from the last checkpoint, when one is lost. On one machine:
#
#   launch/torchrun.sh CONFIG [key=value ...]
#
# On several, the same command on each; HOST is one of them, by a name or an address that all of them reach:
#
#   HOST=10.0.0.1 NODES=2 launch/torchrun.sh CONFIG [key=value ...]
#
# NODES=1:4 is elastic: whoever comes within LAST_CALL seconds takes part, and when a machine is lost the others go on
# (HOST has to stay); backend.processes in CONFIG bounds how many processes there may be. A machine that does not answer
# for 15 seconds counts as lost. GPUS=4 takes fewer than all; on the CPU it is the number of processes. Two runs with
# the same HOST need two PORTs. Machines whose own names the others do not know need ADDRESS, by which they do, and
# GLOO_SOCKET_IFNAME, the interface that has it.
set -euo pipefail

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Else torchrun keeps the store of its first round for good: losing the machine that has it would end all others, and no
# machine could come later.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Seconds between a signal and the end of the processes. torchrun obeys it from torch 2.13 on; before, it waits for 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110}"

place=(--standalone)
if [[ -n ${NODES:-} ]]; then
  : "${HOST:?is not set: name the machine where all others meet}"
  meeting="last_call_timeout=${LAST_CALL:-30}"
  place=(--nnodes "$NODES" --rdzv-backend c10d --rdzv-id hires-gan --rdzv-endpoint "$HOST:${PORT:-29400}")
  if [[ -n ${ADDRESS:-} ]]; then
    place+=(--local-addr "$ADDRESS")
    meeting+=",is_host=$([[ $ADDRESS == "$HOST" ]] && echo true || echo false)"
  fi
  place+=(--rdzv-conf "$meeting")
fi
exec torchrun "${place[@]}" --nproc-per-node "${GPUS:-gpu}" --max-restarts "${RESTARTS:-3}" -m hires_gan train "$@"
