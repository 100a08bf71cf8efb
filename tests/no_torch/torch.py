"""tensorboardX imports torch if it can, which takes longer than all else together."""

raise ImportError
