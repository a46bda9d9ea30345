#!/bin/bash
# Training on several machines with SLURM: sbatch examples/slurm.sh train.py ARGUMENTS…
#
# Each machine gets one task, torchrun, which starts a process a GPU. Where a process dies all are started again, up to
# three times, and so is the job where a machine fails: the script has to go on from its last checkpoint, as the guide's
# page on several GPUs shows. The same line takes `-m jorge compare …` instead of a script.
#SBATCH --job-name=jorge
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / SLURM_GPUS_ON_NODE))

srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" \
    --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$head:${PORT:-29500}" \
    --max-restarts 3 \
    "$@"
