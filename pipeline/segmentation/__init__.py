"""The run: a plan, blocks that become mask and counts, and the engines that work on them."""
