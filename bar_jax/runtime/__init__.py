"""What a run stands on: processes and meshes, files, the workdir, signals, progress, logs."""
