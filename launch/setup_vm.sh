#!/usr/bin/env bash
# Run by tpu.sh on every worker of a TPU slice, in the clone it was copied to: mounts a bucket with
# Cloud Storage FUSE, and makes the environment $BAR_JAX_VENV with bar_jax in it.
#
#   BAR_JAX_VENV=DIR bash launch/setup_vm.sh BUCKET    # seen at /mnt/BUCKET
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bucket=$1 folder=/mnt/$1

# https://cloud.google.com/storage/docs/cloud-storage-fuse/install
if ! command -v gcsfuse > /dev/null; then
  key=/usr/share/keyrings/cloud.google.asc apt=https://packages.cloud.google.com/apt
  curl -fsS "$apt/doc/apt-key.gpg" | sudo tee "$key" > /dev/null
  echo "deb [signed-by=$key] $apt gcsfuse-$(lsb_release -c -s) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  sudo apt-get -qq update
  sudo apt-get -qq -y -o DPkg::Lock::Timeout=300 install gcsfuse # a new VM updates itself first
fi

# Root mounts, for this user: while nothing is mounted nobody writes to the VM's disk by mistake.
# Nothing is remembered of what is there (on TPU VMs it would be, for ever): others change it too.
# Renaming a folder copies file by file where a bucket has no hierarchical namespace: refused.
if ! mountpoint -q "$folder"; then
  sudo mkdir -p "$folder"
  sudo gcsfuse -o allow_other "--uid=$(id -u)" "--gid=$(id -g)" --metadata-cache-ttl-secs=0 \
    --metadata-cache-negative-ttl-secs=0 --rename-dir-limit=0 "$bucket" "$folder"
fi

# TPU VMs may have a Python that is too old; uv brings another.
if ! python3 -c "import sys; sys.exit(sys.version_info < (3, 11))" && [[ ! -d $BAR_JAX_VENV ]]; then
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --seed --python 3.11 "$BAR_JAX_VENV"
fi
# shellcheck source=launch/setup_venv.sh
source launch/setup_venv.sh
install_bar_jax tpu
