"""What a PC's firmware does before and for a boot loader: the BIOS services and the start of the image."""
