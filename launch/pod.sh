#!/usr/bin/env bash
# Train in a pod of Kubernetes, together with the pods on other nodes. The manifests in k8s/ start it:
#
#   launch/pod.sh CONFIG [key=value ...]
#
# First `hires-gan doctor` tells whether anything is missing. Then accelerate starts a process for each GPU.
#
# NODES pods train together, with GPUS GPUs each, or with PROCESSES processes each where GPUS is 0.
# JOB_COMPLETION_INDEX is this pod's number; the first pod listens at MASTER_ADDR:MASTER_PORT. Where Kubeflow's Trainer
# sets its PET_ variables, these count. LAUNCH is the file in launch/: nodes, zero1_nodes or zero2_nodes. NEEDS names the
# variables that have to be set besides, such as MLFLOW_TRACKING_URI; for PATIENCE seconds the doctor waits for what may
# still come, such as MLflow's answer. RESTARTS is how often all pods were started again. Then it waits for the other
# pods, as long as it takes.
#
# Exit codes: 0 finished, 2 something has to be mended and starting again would not help, 75 stopped by a signal behind
# a checkpoint, anything else failed.
set -u

refuse() {
  echo "error: $1" >&2
  exit 2
}

number() { # NAME VALUE LEAST MOST
  [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ && $2 -ge $3 && $2 -le $4 ]] ||
    refuse "$1 is '$2', and has to be a whole number from $3 to $4: look for the key $1 of the ConfigMap hires-gan (\
kubectl get configmap hires-gan -o yaml), which k8s/ makes"
}

[[ $# -gt 0 ]] || refuse "no configuration: give CONFIG [key=value ...]"
here=$(dirname "$0")
nodes=${PET_NNODES:-${NODES-}}
gpus=${GPUS-}
index=${PET_NODE_RANK:-${JOB_COMPLETION_INDEX:-0}}
address=${PET_MASTER_ADDR:-${MASTER_ADDR:-127.0.0.1}}
port=${PET_MASTER_PORT:-${MASTER_PORT-}}
launch=$here/${LAUNCH:-nodes}.yaml
number NODES "$nodes" 1 100000
number GPUS "$gpus" 0 1000
number MASTER_PORT "$port" 1 65535
processes=$gpus
if ((gpus == 0)); then
  processes=${PROCESSES-}
  number PROCESSES "$processes" 1 1000
  export ACCELERATE_USE_CPU=true
fi
[[ -f $launch ]] || refuse "LAUNCH is '$LAUNCH', and there is no $launch: take nodes, zero1_nodes or zero2_nodes"
# torchrun, which accelerate calls, would read them for options that accelerate gives.
unset "${!PET_@}"

# Kubernetes tells the first process of a container alone. A signal interrupts `wait`, which is why it is called again.
child=
stopped=
stop() {
  stopped=yes
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT

attend() { # COMMAND...: run it, hand signals on, and leave its exit code in `code`
  "$@" &
  child=$!
  [[ -z $stopped ]] || stop
  local before=
  while
    wait "$child"
    code=$?
    # Above 128: a signal has interrupted the wait, or ended the child, of which the next wait says the same.
    ((code > 128)) && { [[ $code != "$before" ]] || kill -0 "$child" 2>/dev/null; }
  do
    before=$code
  done
  child=
}

# Each process that ends writes its exit code there, since launchers make 1 of all. In a pod it is the termination log.
export HIRES_GAN_ENDINGS=${HIRES_GAN_ENDINGS:-/dev/termination-log}
[[ -w $HIRES_GAN_ENDINGS ]] || HIRES_GAN_ENDINGS=$(mktemp)

ended_with() { # CODE: whether a process did
  grep -q "^exit code $1:" "$HIRES_GAN_ENDINGS"
}

attend hires-gan doctor "$@" --gpus "$gpus" --wait "${PATIENCE:-0}" ${NEEDS:+--needs "$NEEDS"}
[[ -z $stopped ]] || exit 75
# Behind a restart, what is missing may come back, such as a server: that counts as one of the failures that are allowed.
((code == 0)) || exit $((${RESTARTS:-0} > 0 ? 1 : 2))

attend python -m hires_gan.training.meeting "$address" "$port" "$nodes" "$index"
[[ -z $stopped ]] || exit 75
((code == 0)) || exit "$code"

attend accelerate launch --config_file "$launch" --num_machines "$nodes" --num_processes $((nodes * processes)) \
  --machine_rank "$index" --main_process_ip "$address" --main_process_port "$port" -m hires_gan train "$@"
((code != 0)) || exit 0
# As with a process that was not ready to write a checkpoint, whatever ends behind a signal is to go on.
[[ -z $stopped ]] && ! ended_with 75 || exit 75
! ended_with 2 || exit 2
exit "$code"
