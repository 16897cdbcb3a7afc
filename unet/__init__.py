"""Arrays in, class maps out: the U-Net, its weights, the device it lives on. Knows no file format but safetensors."""
