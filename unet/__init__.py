"""Arrays in, class maps out: the U-Net, its weights and the device it lives on. Knows no file format but safetensors."""
