"""Random programs in the harness and in Bochs: both must leave the same registers and memory."""
