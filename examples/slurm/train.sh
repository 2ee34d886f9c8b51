#!/bin/bash
# Train on all GPUs of one machine or several: sbatch --nodes 4 examples/slurm/train.sh RECIPE [OPTIONS of aimamba train]
# The folder of the run (--out) must be on a file system that all machines share.
# The job may be stopped and started again at any time, also with another number of machines: the same command goes on
# from the last checkpoint.

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
recipe=${1:?usage: sbatch train.sh RECIPE [OPTIONS]}
shift

export OMP_NUM_THREADS=8
# torchrun gives its processes 30 seconds to save; the one of PyTorch 2.12 and later can be told otherwise.
patience=()
if torchrun --help | grep -q -- --shutdown-timeout; then patience=(--shutdown-timeout 240); fi
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# One torchrun a machine; they meet at the first one. Within a machine every copy of the model is whole, or, with
# --set parallel.shard=8, shared by its eight GPUs, so that parameters travel over NVLink and only gradients between
# machines.
srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" \
  --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
  --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$first:29500" \
  "${patience[@]}" \
  -m aimamba train "$recipe" "$@"
