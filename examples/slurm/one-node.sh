#!/bin/bash
# Train on all GPUs of one machine: sbatch examples/slurm/one-node.sh RECIPE [OPTIONS of aimamba train]
# The job may be stopped and started again at any time: the same command goes on from the last checkpoint.

#SBATCH --job-name=aimamba
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Before the time is up Slurm sends SIGTERM to the processes of the step: they finish a step, save and end.
#SBATCH --signal=TERM@300

set -euo pipefail
recipe=${1:?usage: sbatch one-node.sh RECIPE [OPTIONS]}
shift

export OMP_NUM_THREADS=8
# torchrun gives its processes 30 seconds to save; the one of PyTorch 2.12 and later can be told otherwise.
patience=()
if torchrun --help | grep -q -- --shutdown-timeout; then patience=(--shutdown-timeout 240); fi

srun --kill-on-bad-exit=1 torchrun \
  --standalone \
  --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
  "${patience[@]}" \
  -m aimamba train "$recipe" "$@"
