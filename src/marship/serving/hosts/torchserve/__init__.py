"""What TorchServe's worker needs to run a handler of ours: the only part that imports `ts`."""
