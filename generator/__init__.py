"""hvforge's toolchain: image.toml -> a bootable VMX hypervisor image."""

__version__ = "0.1.0"
