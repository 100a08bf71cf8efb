"""Drawing images from a trained generator: what jobs, `Pipeline` and training share."""
